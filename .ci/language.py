#!/usr/bin/env python3
"""Checks the English of pages, comments, docstrings and messages against CONTRIBUTING.md.

    .ci/language.py PATH ...            one line for each finding: `file:line: rule: sentence`
    .ci/language.py --count PATH ...    how many findings each rule has in each path

A path is a file, or a folder with everything below it. Exit code 0: no finding, 1: findings, 2: usage.

The check reads these parts of a file:

- Markdown: headings, paragraphs, list items and table cells, without code.
- Python and Cython: comments, docstrings, and strings of at least four words that look like prose.
- Makefile, Dockerfile, TOML and YAML: comments, and the help texts behind `##`.

A code span, a URL, a placeholder and a number with its unit each count as one word.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

__all__ = ["Finding", "findings", "main"]

MOST_WORDS = 20
LEAST_WORDS = 4
"""A shorter string is a name or a value, not a message."""
MOST_SHOWN = 160
"""Characters of a sentence that a finding shows."""

PYTHON = frozenset({".py", ".pyi", ".pyx", ".pxd", ".pxi"})
HASHED = frozenset({".toml", ".yml", ".yaml", ".cfg", ".sh"})
HASHED_NAMES = frozenset({"Makefile", "Dockerfile", "beside", "run"})
SKIPPED = frozenset({"build", "dist", "node_modules", "results", "__pycache__"})


class Finding(NamedTuple):
    """One rule that one sentence breaks."""

    path: str
    line: int
    rule: str
    sentence: str

    def __str__(self) -> str:
        shown = self.sentence if len(self.sentence) <= MOST_SHOWN else self.sentence[: MOST_SHOWN - 1] + "…"
        return f"{self.path}:{self.line}: {self.rule}: {shown}"


class Text(NamedTuple):
    """A paragraph, an item, a cell, a comment or a string. No sentence crosses its border."""

    line: int
    text: str


# --- The rules ------------------------------------------------------------------------------------------------------

CODE = "␣"
"""The mark that replaces a code span, a placeholder or a URL before the rules run."""

_FINITE = (
    r"(?:is|are|was|were|has|have|had|does|do|did|can|cannot|can't|could|must|may|will|would|should|needs?|gets?|"
    r"goes|comes?|takes?|gives?|makes?|keeps?|holds?|sends?|closes|reads?|waits?|stays?|becomes?|counts?|costs?|means)"
)
_SUBJECT = (
    r"(?:it|they|this|that|these|those|the|an?|each|every|no|nobody|nothing|there|he|you|we|else|then|so|its|their|"
    r"all|both|only|one|otherwise|here|now)"
)
JOINED = re.compile(
    rf"\b{_FINITE}\b[^:]*:\s+(?:(?:{_SUBJECT})\b|{CODE})(?:(?!, and |, or )[^:])*?\b{_FINITE}\b", re.IGNORECASE
)
"""A colon between two clauses: a verb before it, a subject and a verb behind."""
SEMICOLON = re.compile(r"(?:\S+\s+){2,}\S*;\s+(?:\S+\s+){2,}\S")
"""Three words on both sides: shorter ones are entries of a list."""

# Each with the word to use instead. The first expression that matches a place names the finding.
BANNED: dict[str, str] = {
    r"anew|afresh": "again",
    r"(?:is|are|was|were|be|been|being) (?:said|told|waited for|asked for|gone|heard of)": "active voice",
    r"(?:has|have|had) gone|gone from|once gone|what is gone|are gone|is gone": "closed, removed, ended",
    r"says?|said|saying": "report, state, log, name",
    r"tells?|telling|told": "report, state, show",
    r"goes on|go on|went on|going on|gone on": "continue",
    r"of (?:its|their|our|your|my|his|one's|(?:\w+)'s) own|of one's": "its own X",
    r"comes? to|came to": "reach, become, be",
    r"but for": "except for",
    r"(?:not|no\w*|n't)(?: \w+){0,6} any more|any more": "no longer",
    r"(?<!there )(?:is|are|was|were) (?-i:none)": "repeat the noun",
    r"stands?|stood|standing": "is, is in, means, remains",
    r"answer(?:s|ed|ing)?": "response, respond, reply",
    r"what (?:it|they|he|one) \w+(?: \w+){0,4} what": "name the thing",
    r"(?<=, )for (?:it|that|they|there|nobody|nothing)": "because",
    r"as (?:it|they) (?:comes?|stands?)": "name the state",
    r"is over|are over|was over|were over": "has ended",
    r"must needs|lest|thereby|thereof|therein|whereby|whoever|whomever|whatsoever|wherever it": "plain words",
    r"all the same|to begin with|in the very|of the kind": "plain words",
    r"of ours|of theirs|of yours|of mine": "our X",
    r"knows? nothing of|hears? (?:of|nothing)|learns? of": "name the fact",
}
_BANNED = [(re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE), use) for pattern, use in BANNED.items()]

SUBJECTLESS = re.compile(r"(?:What|Who|Whoever|Whatever|Whom|Whose|One that|That which)\b(?!.*\?)")
"""A sentence whose subject has no name."""

_WORD = re.compile(r"[A-Za-z][a-z]+(?:'[a-z]+)?")
_NUMBER = re.compile(
    r"(?<![\w.])[~±≤≥<>−-]?\d[\d,.]*(?:\s?[–-]\s?\d[\d,.]*)?\s?"
    r"(?:[µmn]?s|min|h|[KMGT]i?B(?:/s)?|[KMG]bit/s|bytes|bits|1/s|×|%|minutes?|seconds?|hours?|days?|turns?)(?![\w])"
)


@functools.cache
def _misspellings() -> dict[str, str]:
    """{wrong: right} of codespell's dictionary, where it is installed. Words with several corrections are left out."""
    spec = find_spec("codespell_lib")
    if spec is None or spec.origin is None:
        return {}
    lines = (Path(spec.origin).parent / "data" / "dictionary.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("->") for line in lines)
    return {wrong: right for wrong, _, right in pairs if "," not in right}


def problems(sentence: str) -> Iterator[str]:
    """The rules that a sentence breaks, each as `rule` or `rule (what to write)`.

    Args:
        sentence: one sentence, its code spans already one word each.
    """
    words = word_count(sentence)
    if words > MOST_WORDS:
        yield f"long ({words} words)"
    if SEMICOLON.search(sentence):
        yield "semicolon"
    if JOINED.search(sentence):
        yield "colon"
    taken: list[tuple[int, int]] = []
    for pattern, use in _BANNED:
        for match in pattern.finditer(sentence):
            if all(match.end() <= start or match.start() >= end for start, end in taken):
                taken.append(match.span())
                yield f"banned {match[0]!r} ({use})"
    if SUBJECTLESS.match(sentence):
        yield "subject (name the thing)"
    for word in _WORD.findall(sentence):
        right = _misspellings().get(word.lower())
        if right is not None:
            yield f"spelling {word!r} ({right})"


def word_count(sentence: str) -> int:
    """How many words a reader counts. A number with its unit is one."""
    return sum(1 for word in _NUMBER.sub("1 ", sentence).split() if any(map(str.isalnum, word)) or CODE in word)


_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|resp|approx|sec|fig)|(?<![A-Za-z])(?-i:[A-Z]))\.$", re.IGNORECASE
)
_STOP = re.compile(r"[.!?][\"'”)\]]*\s+(?=\S)")


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """(offset, sentence) of each. A full stop behind an abbreviation ends none."""
    start = 0
    for stop in _STOP.finditer(text):
        if _ABBREVIATION.search(text[: stop.start() + 1]):
            continue
        yield start, text[start : stop.end()].strip()
        start = stop.end()
    if text[start:].strip():
        yield start, text[start:].strip()


_HIDDEN = re.compile(
    r"<!--.*?-->"
    r"|(?P<code>``.+?``|`[^`]+`|https?://[^\s)>]+)"
    r"|!?\[(?P<link>[^\]]*)\]\([^)\s]*\)"
    r"|(?P<field>\{[^{}\s][^{}]*\}|%\(\w+\)[sdr]|%[sdrf](?!\w))"
    r"|(?P<mark>\*\*|__(?=\w)|(?<=\w)__|(?<![\w*])\*(?=\w)|(?<=\w)\*(?![\w*]))",
    re.DOTALL,
)


def _plain(text: str) -> str:
    """The text with a mark in place of code, and without markup. Line breaks stay, to count lines by."""

    def plain(match: re.Match[str]) -> str:
        breaks = "\n" * match[0].count("\n")
        if match["code"] or match["field"]:
            return CODE + breaks
        if match["link"] is not None:
            return _plain(match["link"])
        return breaks

    return _HIDDEN.sub(plain, text)


# --- What is read of a file -----------------------------------------------------------------------------------------

_DRAWING = re.compile(r"[─-╿▲-◿→←↑↓►◄═]{2}|[│║╔╚╗╝┌└├]|-{2,}>|<-{2,}|\S {3,}\S|^[\s|+\-=~^]+$")
"""A line of a picture or of a table in columns."""
_BULLET = re.compile(r"^\s*(?:[-*•] |\d+[.)] |[A-Z]\d+\. )")
"""How a list's item begins: a bullet, a number, or the number of an invariant."""
_CODE_LINE = re.compile(
    r"\s*(?:>>>|\.\.\. |\$ |@\w|[\w.\[\]\"']+ = |[\w.]+\(.*\)$|(?:async )?(?:def|class|with|import|from) )"
)


def paragraphs(lines: Iterable[tuple[int, str]]) -> Iterator[Text]:
    """Paragraphs and list items of numbered lines. Pictures, columns and lines of code are left out."""
    number = 0
    held: list[str] = []
    for line_number, line in lines:
        is_row = re.fullmatch(r"\s*\|.*\|\s*", line) is not None
        is_left_out = not line.strip() or is_row or _DRAWING.search(line) or _CODE_LINE.match(line)
        if is_left_out or _BULLET.match(line):
            if held:
                yield Text(number, "\n".join(held))
            held = []
        if is_row:
            yield from cells(line_number, line)
        elif not is_left_out:
            if not held:
                number = line_number
            held.append(_BULLET.sub("", line, count=1) if not held else line)
    if held:
        yield Text(number, "\n".join(held))


def cells(number: int, row: str) -> Iterator[Text]:
    """The cells of a table's row. A line of dashes has none."""
    if not re.fullmatch(r"[\s|:\-]+", row):
        plain = re.sub(r"`[^`]*`", lambda code: code[0].replace("|", "¦"), row.replace(r"\|", "¦"))
        yield from (Text(number, cell) for cell in plain.strip().strip("|").split("|") if cell.strip())


def markdown(source: str) -> Iterator[Text]:
    """Headings, paragraphs, items and cells of a page."""
    held: list[tuple[int, str]] = []
    fence = ""
    for number, line in enumerate(source.split("\n"), 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        is_cells = line.lstrip().startswith("|")
        if fence or mark or is_cells or line.startswith("#"):
            yield from paragraphs(held)
            held = []
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif is_cells:
            yield from cells(number, line)
        elif line.startswith("#"):
            yield Text(number, line.lstrip("# "))
        else:
            held.append((number, line))
    yield from paragraphs(held)


_TOKEN = re.compile(
    r"(?P<prefix>[A-Za-z]{0,2})(?P<quote>\"\"\"|'''|\"|')(?P<body>(?:\\.|(?!(?P=quote)).)*)(?P=quote)|(?P<comment>\#[^\n]*)",
    re.DOTALL,
)
_PRAGMA = re.compile(r"#\s*(?:type:|noqa|fmt:|pragma|cython:|distutils:|mypy:|ruff:|!)|#!/")
_PROSE = re.compile(rf"[(\[“\"'‘]*(?:[A-Za-zµ{CODE}][\w.'’{CODE}/+-]*|[-+±]?\d[\w.,%/]*|[–—:×→/&|-])[,;:.!?…)\]”\"'’]*")
"""One word of prose, with the punctuation around it."""


def python(source: str) -> Iterator[Text]:
    """Comments, docstrings and prose in strings of Python or Cython."""
    comments: list[tuple[int, str]] = []
    column = last = -1
    string: list[str] = []
    string_line, string_end = 0, 0

    def joined() -> Iterator[Text]:
        text = "".join(string)
        string.clear()
        words = _plain(text).split()
        if len(words) >= LEAST_WORDS and "{{" not in text and all(map(_PROSE.fullmatch, words)):
            yield Text(string_line, text)

    for token in _TOKEN.finditer(source):
        line = source.count("\n", 0, token.start()) + 1
        start = token.start() - source.rfind("\n", 0, token.start()) - 1
        before = source[token.start() - start : token.start()]
        if token["comment"] is not None:
            is_whole = not before.strip()
            if comments and not (is_whole and line == last + 1 and start == column):
                yield from paragraphs(comments)
                comments = []
            column, last = (start, line) if is_whole else (-1, -1)
            comment = token["comment"]
            if not _PRAGMA.match(comment):
                comments.append((line, comment.lstrip("#:").removeprefix(" ")))
            continue
        body = token["body"]
        if "b" in token["prefix"].lower():
            continue
        if source[: token.start()].rstrip().endswith("cdef extern from *:"):  # C code
            continue
        is_statement = not before.strip() and source[: token.start()].rstrip()[-1:] not in tuple("(,=[{+")
        if len(token["quote"]) == 3 and is_statement and "f" not in token["prefix"].lower():  # a docstring
            yield from docstring(body, line)
        elif len(token["quote"]) == 1 and "\n" not in body:
            if string and source[string_end : token.start()].strip():
                yield from joined()
            if not string:
                string_line = line
            string.append(body.replace(r"\n", "\n").replace(r"\"", '"').replace(r"\'", "'"))
            string_end = token.end()
    yield from paragraphs(comments)
    yield from joined()


def docstring(body: str, line: int) -> Iterator[Text]:
    """Paragraphs and items of a docstring. A block behind `::` and a deeper indented block are code."""
    lines = [(line + index, each) for index, each in enumerate(body.split("\n"))]
    indents = [len(each) - len(each.lstrip()) for _, each in lines[1:] if each.strip()]
    base = min(indents, default=0)
    kept: list[tuple[int, str]] = []
    block = -1  # the indent that a block of code has at least
    ends_with_colons = is_blank = False
    section = ""
    for number, each in lines:
        indent = len(each) - len(each.lstrip()) - base if number > line else 0
        if each.strip():
            if block >= 0 and indent < block:
                block = -1
            if block < 0 and indent > 0 and (ends_with_colons or (is_blank and indent >= 4 and not section)):
                block = indent
            header = re.fullmatch(r"\s*(Args|Arguments|Returns|Raises|Yields|Attributes|States|Invariants):", each)
            section = header[1] if header else (section if indent > 0 else "")
            entry = section and re.match(r"\s*[\w`*, .]+?(?: \([^)]*\))?: (?=\S)", each)
            if block >= 0 or header:
                kept.append((number, ""))
            elif entry:
                kept.extend(((number, ""), (number, each[entry.end() :])))
            else:
                kept.append((number, each))
            ends_with_colons = each.rstrip().endswith("::")
        else:
            kept.append((number, ""))
        is_blank = not each.strip()
    return paragraphs(kept)


def hashed(source: str) -> Iterator[Text]:
    """Comments of a Makefile, a Dockerfile, TOML or YAML."""
    comments: list[tuple[int, str]] = []
    for number, line in enumerate(source.split("\n"), 1):
        match = re.match(r"\s*#(?!!)(.*)", line)
        if match is not None:
            comments.append((number, match[1].removeprefix(" ")))
            continue
        yield from paragraphs(comments)
        comments = []
        behind = re.search(r"\s#+ (.*)$", line)
        if behind is not None and behind[1].strip():
            yield from paragraphs([(number, behind[1])])
    yield from paragraphs(comments)


def findings(path: Path) -> Iterator[Finding]:
    """The findings of a file, in the order of its lines."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        texts = markdown(source)
    elif path.suffix in PYTHON:
        texts = python(source)
    else:
        texts = hashed(source)
    for text in sorted(texts):
        plain = _plain(text.text)
        for offset, sentence in sentences(plain):
            line = text.line + plain.count("\n", 0, offset)
            shown = " ".join(sentence.split())
            for rule in problems(shown):
                yield Finding(str(path), line, rule, shown.replace(CODE, "`…`"))


def files(path: Path) -> Iterator[Path]:
    """The files below a path that this check reads."""
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(each for each in folders if each not in SKIPPED and not each.endswith(".egg-info"))
        folders[:] = [each for each in folders if not each.startswith(".") or each in {".ci", ".github"}]
        for name in sorted(names):
            each = Path(folder, name)
            if each.suffix in PYTHON | HASHED | {".md"} or name in HASHED_NAMES:
                yield each


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check the English of pages, comments, docstrings and messages.")
    parser.add_argument("--count", action="store_true", help="print only how many findings each path has")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder with all below it")
    options = parser.parse_args(arguments)
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        parser.error(f"no such path: {missing[0]}")
    total = 0
    for path in options.paths:
        found = [finding for each in files(path) for finding in findings(each)]
        total += len(found)
        if options.count:
            rules = Counter(finding.rule.split()[0] for finding in found)
            print(f"{len(found):6} {path}  {', '.join(f'{rule} {count}' for rule, count in rules.most_common())}")
        else:
            print(*found, sep="\n", end="\n" if found else "")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
