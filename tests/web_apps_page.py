"""The examples of docs/web-apps.md, which `make browser` runs."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Literal

Mode = Literal["host", "path"]

PAGE = Path(__file__).parent.parent / "docs" / "web-apps.md"
MODES: dict[str, tuple[Mode, ...]] = {
    "By host:": ("host",),
    "By path:": ("path",),
    "By host and by path:": ("host", "path"),
}
COMMENTS = ("# ", "// ")


@dataclasses.dataclass(frozen=True)
class Example:
    """The blocks of one application and one mode, behind the line that names their test.

    Attributes:
        section: the heading above the blocks.
        mode: how users reach the application.
        test: the test's name, "" if no test runs the blocks.
        commands: one for each line of a shell block, continued lines joined.
        files: (path, text) of each other block. The block's first line names the path in a comment.
    """

    section: str
    mode: Mode
    test: str
    commands: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()

    @property
    def port(self) -> str:
        """The application's port in this example, "" if the agent itself serves it."""
        found = re.search(r"=http://127\.0\.0\.1:(\d+)", " ".join(self.commands))
        return found[1] if found else ""


def shell_commands(block: str) -> list[str]:
    """The commands of a shell block, without comments."""
    joined = re.sub(r"\\\n\s*", "", block)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def examples(text: str) -> list[Example]:
    """All examples of the page, in its order. Raises ValueError for a file without a name."""
    found: list[Example] = []
    section, test = "", ""
    modes: tuple[Mode, ...] = ()
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("#"):
            section, test, modes = line.lstrip("# "), "", ()
        elif line in MODES:
            modes = MODES[line]
            found += [Example(section, mode, test) for mode in modes]
        elif named := re.search(r"Run by `(test_\w+)`", line):
            test, modes = named[1], ()
        elif line.startswith("```"):
            body = []
            for inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            if modes:
                for place in range(len(found) - len(modes), len(found)):
                    found[place] = with_block(found[place], line[3:], "\n".join(body) + "\n")
    return found


def with_block(example: Example, language: str, body: str) -> Example:
    """The example with one more block. Raises ValueError for a file without a name."""
    if language == "sh":
        return dataclasses.replace(example, commands=(*example.commands, *shell_commands(body)))
    first = body.partition("\n")[0]
    for comment in COMMENTS:
        if first.startswith(comment):
            return dataclasses.replace(example, files=(*example.files, (first[len(comment) :], body)))
    raise ValueError(f"{example.section}: the first line of a {language} block names no file")


def example_of(test: str, mode: Mode) -> Example:
    """The example that a test runs. Raises LookupError."""
    for example in examples(PAGE.read_text(encoding="utf-8")):
        if example.test == test and example.mode == mode:
            return example
    raise LookupError(f"docs/web-apps.md has no example for {test} by {mode}")


def hub_arguments(mode: Mode) -> list[str]:
    """The arguments of the page's hub: `hub`, and its options. Raises LookupError."""
    for example in examples(PAGE.read_text(encoding="utf-8")):
        if example.mode == mode and example.commands[0].startswith("fastpipe-agent hub "):
            return words(example.commands[0])[1][1:]
    raise LookupError(f"docs/web-apps.md has no hub by {mode}")


def agent_variables() -> dict[str, str]:
    """The variables that the page's agents have. Raises LookupError."""
    for example in examples(PAGE.read_text(encoding="utf-8")):
        for command in example.commands:
            if command.startswith("export "):
                return dict(word.split("=", 1) for word in shlex.split(command)[1:])
    raise LookupError("docs/web-apps.md exports no variables")


def words(command: str) -> tuple[dict[str, str], list[str]]:
    """(variables before the command, its words)."""
    parts = shlex.split(command)
    variables: dict[str, str] = {}
    while parts and re.match(r"[A-Z_]+=", parts[0]):
        name, _, value = parts.pop(0).partition("=")
        variables[name] = value
    return variables, parts
