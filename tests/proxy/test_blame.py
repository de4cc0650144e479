"""The field by which an agent reports to its hub whose fault a failure was."""

from __future__ import annotations

import pytest

from agent.proxy.blame import read_fault, write_fault


@pytest.mark.parametrize("fault", ["client", "target", "agent", "policy"])
@pytest.mark.parametrize("limit", ["", "limits.first_byte_timeout_s"])
def test_what_is_written_is_read(fault, limit):
    assert read_fault(write_fault(fault, limit, "the target refused it")) == (fault, limit, "the target refused it")


def test_a_reason_breaks_no_head():
    assert write_fault("agent", "", "a\r\nX: y\u20ac" + "z" * 1000)[:16] == b"agent - a??X: y?"
    assert len(write_fault("agent", "", "z" * 1000)) == 208


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", ("agent", "", "")),
        (b"hub", ("agent", "", "")),
        (b"nobody limits.x y", ("agent", "limits.x", "y")),
        (b"target - \x1b[31m\xff\x85", ("target", "", "?[31m\xff?")),
        (b"target " + b"l" * 900 + b" " + b"r" * 900, ("target", "l" * 64, "r" * 200)),
    ],
)
def test_a_hostile_field_is_bounded_and_names_the_agent(value, expected):
    assert read_fault(value) == expected
