"""Each byte in each place of a field. tests/http2/test_frame_errors.py has the rules of whole heads."""

from __future__ import annotations

import re

import pytest

from agent.http2.head_rules import fault_of

NAME = re.compile(rb":?[!-9;-@\[-~]+")  # RFC 9113, section 8.2.1
VALUE = re.compile(rb"(?![ \t])[^\0\r\n]*(?<![ \t])")


@pytest.mark.parametrize("form", [b"%b", b":%b", b"a%b", b":a%b", b"%ba"])
def test_a_name_has_only_the_bytes_of_a_name(form: bytes) -> None:
    for octet in range(256):
        name = form % bytes((octet,))
        is_name = not fault_of([(name, b"")], "trailers").startswith("a field's name")
        assert is_name == (NAME.fullmatch(name) is not None), name


@pytest.mark.parametrize("form", [b"%b", b"x%b", b"%bx", b"x%bx"])
def test_a_value_has_no_line_end_and_no_blanks_around_it(form: bytes) -> None:
    for octet in range(256):
        value = form % bytes((octet,))
        assert (fault_of([(b"a", value)], "trailers") == "") == (VALUE.fullmatch(value) is not None), value


@pytest.mark.parametrize("name", [b"", b":"])
def test_a_name_is_not_empty(name: bytes) -> None:
    assert fault_of([(name, b"")], "trailers").startswith("a field's name")
