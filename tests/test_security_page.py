"""docs/security.md lists the fields that the hub removes from users' requests, and those that it passes."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import pytest

from agent.messages import RequestHead, Target
from agent.policy.identity import is_identity_header
from agent.proxy.forwarded_fields import is_forwarding_field

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "security.md"
if not PAGE.exists():
    pytest.skip("the checkout has no docs/security.md", allow_module_level=True)

_, _, SECTION = PAGE.read_text(encoding="utf-8").partition("## Fields that name a user\n")
SECTION = SECTION.partition("\n## ")[0]


def names(lines: str) -> list[bytes]:
    """The names of fields in some lines. `X-A-User`, `-Groups` are X-A-User and X-A-Groups, and `*` is any end."""
    found: list[str] = []
    for name in re.findall(r"`(-?[\w-]+\*?)`", lines):
        found.append(found[-1].rpartition("-")[0] + name if name.startswith("-") else name.replace("*", "x"))
    return [name.encode() for name in found]


REMOVED = names("\n".join(line.rpartition("|")[0].rpartition("|")[0] for line in re.findall(r"^\| .*$", SECTION, re.M)))
PASSED = names("\n".join(re.findall(r"^- .*$", SECTION, re.M)))


def test_the_lists_are_read() -> None:
    assert b"X-Forwarded-Groups" in REMOVED
    assert b"X-Auth-Request-Groups" in PASSED
    assert (len(REMOVED) > 20, len(PASSED) > 15) == (True, True)


@pytest.mark.parametrize("name", REMOVED, ids=bytes.decode)
def test_fields_that_the_hub_removes(name: bytes) -> None:
    assert is_forwarding_field(name)


@pytest.mark.parametrize("name", PASSED, ids=bytes.decode)
def test_fields_that_the_hub_passes(name: bytes) -> None:
    assert not is_forwarding_field(name)
    assert not is_identity_header(name)


def test_the_processor_of_the_page_removes_them() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)
    module: dict[str, Any] = {}
    exec(block, module)
    kept = [(b"Accept", b"*/*"), (b"X-Remote", b"1")]
    forged = [(name, b"root") for name in (b"Remote-User", b"REMOTE_USER", b"X_WebAuth_User", b"x-auth-request-email")]
    head = RequestHead("GET", b"/", "1.1", [kept[0], *forged, kept[1]])
    assert module["Remove"]().process(head, Target("http://h")).headers == kept
