"""docs/architecture.md names files, rooms and tests that exist, and every room of the agent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PAGE = CHECKOUT / "docs" / "architecture.md"
AGENT = CHECKOUT / "src" / "agent"
if not PAGE.exists() or not AGENT.exists():
    pytest.skip("the checkout has no docs or src", allow_module_level=True)

TEXT = PAGE.read_text(encoding="utf-8")
NAMED = set(re.findall(r"`((?:src|tests|docs|bench)/[\w./-]+)`", TEXT))
GLOSSARY = TEXT.partition("## Glossary")[2]


def section(heading: str) -> str:
    """The text below a heading, up to the next one of its level."""
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables, without their heads."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for head, line in zip(["", *text.splitlines()], text.splitlines(), strict=False)
        if line.startswith("|") and not line.startswith("| ---") and head.startswith("|")
    ]


def test_every_file_and_folder_that_the_page_names_exists() -> None:
    assert len(NAMED) > 40
    assert not sorted(name for name in NAMED if not (CHECKOUT / name).exists())


def test_every_room_is_in_the_table_of_rooms() -> None:
    rooms = {path.parent.name for path in AGENT.glob("*/__init__.py")}
    assert {room for row in rows(section("The rooms")) for room in re.findall(r"`src/agent/(\w+)/`", row[0])} == rooms


def test_every_module_of_the_vocabulary_is_named() -> None:
    vocabulary = {path.name for path in AGENT.glob("*.py") if not path.name.startswith("__")}
    assert {Path(name).name for name in NAMED if re.fullmatch(r"src/agent/\w+\.py", name)} == vocabulary


def test_names_at_the_joints_are_in_the_source() -> None:
    joints = rows(section("The joints"))
    assert len(joints) >= 12
    source = "\n".join(path.read_text(encoding="utf-8") for path in AGENT.rglob("*.py"))
    names = {name for row in joints for name in re.findall(r"`([A-Za-z_]\w*)(?:\.\w+)?`", " ".join(row))}
    assert not sorted(name for name in names if not re.search(rf"\b{name}\b", source))


def test_the_glossary_is_in_order_and_explains_each_word_once() -> None:
    words = [row[0].strip("`") for row in rows(GLOSSARY) if row[0] != "word"]
    assert len(words) >= 25
    assert words == sorted(set(words), key=str.lower)
