#!/usr/bin/env python3
"""Checks commit messages against the format in CONTRIBUTING.md. Exit code 0: good, 1: bad, 2: usage or Git's error.

    .ci/commit_message.py FILE             the message in FILE, as Git calls a commit-msg hook
    .ci/commit_message.py --range A..B     the messages of these commits, without merges

The check needs Git and Python's standard library only. It runs before any environment exists.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["main", "problems"]

SUBJECT_COLUMNS = 60
BODY_COLUMNS = 72
AREA = r"[a-z0-9][a-z0-9_.\-]*"
SUBJECT = re.compile(rf"{AREA}: (?P<change>\S.*)")
NOT_IMPERATIVE = re.compile(r".*[aeiouy].*(?:ing|(?<!e)ed)|.*[^su']s")
"""A participle ("added", "adding") or a third person ("adds"). The first vowel keeps "bring", the double e "feed"."""
IMPERATIVE = frozenset({"alias", "bias", "canvas", "embed"})
"""Imperatives that look like the forms above."""
SCISSORS = re.compile(r"^\S -+ >8 -+$", re.MULTILINE)
"""`git commit --verbose` puts the diff below this line."""
FENCE = re.compile(r"\s*(?:```|~~~)")
TRAILER = re.compile(r"[A-Z][a-z]+(?:-[A-Za-z]+)+: \S")
"""A name with a hyphen (`Co-authored-by:`). Git reads a trailer from one line."""
MERGE = re.compile(r"Merge (?:branch|branches|commit|pull request|remote-tracking branch|tag)\b")
AUTOSQUASH = re.compile(r"(?:fixup|squash|amend)! ")


def problems(message: str, *, is_draft: bool = False) -> list[str]:
    """The faults of a message, one sentence for each. Empty if the message is good.

    Args:
        message: the whole message, without Git's comments.
        is_draft: the commit is not yet part of a pull request. Then a merge and a commit for
            `git rebase --autosquash` may keep the subjects that Git gives them.
    """
    lines = [line.rstrip() for line in message.strip("\n").split("\n")]
    subject, body = lines[0], lines[1:]
    if is_draft and (MERGE.match(subject) or AUTOSQUASH.match(subject)):
        return []
    found = list(_subject_problems(subject))
    if body and body[0]:
        found.append("The second line must be blank.")
    found += _body_problems(body)
    return found


def _subject_problems(subject: str) -> Iterator[str]:
    if not subject.strip():
        yield "The subject is missing."
        return
    if len(subject) > SUBJECT_COLUMNS:
        yield f"The subject has {len(subject)} characters. The limit is {SUBJECT_COLUMNS}."
    if subject.endswith("."):
        yield "The subject must not end with a full stop."
    match = SUBJECT.fullmatch(subject)
    if match is None:
        yield "The subject must be `area: imperative`, with the area in lower case: `hub: close idle tunnels`."
        return
    verb = match["change"].split()[0]
    if verb[0].isupper():
        yield f"The word behind the area must be in lower case: {verb!r}."
    elif NOT_IMPERATIVE.fullmatch(verb) and verb not in IMPERATIVE:
        yield f"The word behind the area must be an imperative (`add`, not `added`, `adding` or `adds`): {verb!r}."


def _body_problems(body: list[str]) -> Iterator[str]:
    is_fenced = False
    for number, line in enumerate(body, 2):
        if FENCE.match(line):
            is_fenced = not is_fenced
        elif len(line) > BODY_COLUMNS and not is_fenced and not _may_be_long(line):
            yield f"Line {number} has {len(line)} columns. The limit is {BODY_COLUMNS}, except for URLs and code."


def _may_be_long(line: str) -> bool:
    """Whether a line cannot be wrapped: code, a URL, one long word, a trailer."""
    is_code = line.startswith(("    ", "\t"))
    return is_code or "://" in line or " " not in line.strip() or TRAILER.match(line) is not None


def _git(*arguments: str, text: str = "") -> str:
    done = subprocess.run(["git", *arguments], input=text, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return done.stdout


def _draft(path: Path) -> str:
    """The message that Git makes from the file: no comments, and nothing below the scissors."""
    text = SCISSORS.split(path.read_text(encoding="utf-8", errors="replace"), maxsplit=1)[0]
    return _git("stripspace", "--strip-comments", text=text)


def _commits(revisions: str) -> Iterator[tuple[str, str]]:
    """(abbreviated hash, message) of each commit, oldest first."""
    listed = _git("log", "--no-merges", "--reverse", "-z", "--format=%h%n%B", "--end-of-options", revisions)
    for entry in listed.split("\0"):
        name, _, message = entry.partition("\n")
        if name:
            yield name, message


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Check commit messages against CONTRIBUTING.md.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("file", nargs="?", type=Path, metavar="FILE", help="the file with the message, from Git's hook")
    what.add_argument("--range", metavar="A..B", help="the commits to check, without merges")
    options = parser.parse_args(arguments)
    is_draft = options.range is None
    try:
        messages = [("", _draft(options.file))] if is_draft else list(_commits(options.range))
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"The messages cannot be read: {error}", file=sys.stderr)
        return 2
    bad = 0
    for name, message in messages:
        found = problems(message, is_draft=is_draft)
        if found:
            bad += 1
            subject = message.strip("\n").partition("\n")[0]
            print(f"{name} {subject}".strip(), *(f"  {each}" for each in found), sep="\n", file=sys.stderr)
    if bad:
        print("CONTRIBUTING.md has the format of commit messages.", file=sys.stderr)
    elif not is_draft:
        print(f"Commit messages checked: {len(messages)}. All are good.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
