"""The rules for heads, by name: the log's `rule`, with the text for client and operator.

`broken_line`, `broken_status_line` and `broken_fields` find the rule that a malformed head breaks, so they may be slow.
Both twins share them, so both report the same rule. They decide nothing. If they find no rule, the head that llhttp
rejected stays rejected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import AgentError

__all__ = [
    "RULES",
    "STRAY",
    "STRAYS",
    "TOKEN",
    "HeadError",
    "Rule",
    "broken_fields",
    "broken_line",
    "broken_status_line",
    "framing_rule",
    "length_rule",
    "stray_rule",
]


class Rule(NamedTuple):
    """One rule. name: for the log's field `rule`. text: what is wrong, to follow "malformed request head: "."""

    name: str
    text: str


RULES = {
    name: Rule(name, text)
    for name, text in {
        # Any line of a head.
        "bare-lf": "a line ends without CR",  # RFC 9112, section 2.2
        "bare-cr": "a CR without LF",
        "nul": "a NUL byte",
        # The request line.
        "empty-lines": "too many empty lines before the request line",
        "line-byte": "the request line has a byte that is not visible ASCII",
        "line-form": "the request line is not a method, a target and a version with one space between",
        "method-length": "the method has more than 32 bytes",
        "method-token": "the method is not a token",
        "version-form": "the version is not HTTP/, a digit, a dot and a digit",
        "target-asterisk": "only OPTIONS may ask for *",
        "target-form": "the request target is not a path",
        "target-authority": "the target of CONNECT is not a host and a port",  # RFC 9112, section 3.2.3
        "target-byte": "the request target has '#' or a backslash",
        "dot-segment": "the request target has dot segments",
        # The status line.
        "not-http1": "it does not begin with HTTP/1",
        "status-version": "the version is not HTTP/1.0 or HTTP/1.1",
        "status-form": "the status is not three digits between spaces",
        "status-range": "the status is not from 100 to 599",  # RFC 9110, section 15
        "reason-byte": "a control character in the reason phrase",
        # Fields.
        "folded-line": "a field line begins with white space",  # obs-fold: RFC 9112, section 5.2
        "no-colon": "a field line has no colon",
        "name-empty": "a field has no name",
        "name-space": "white space between a field's name and its colon",  # RFC 9112, section 5.1
        "name-byte": "a field's name is not a token",
        "value-byte": "a control character in a field's value",
        "head-size": "it is too large",
        "head": "it is not well-formed",  # llhttp's verdict, for which no rule above was found
        # Framing.
        "length-repeated": "more than one Content-Length field",
        "length-value": "the Content-Length is not one number",
        "length-size": "the Content-Length has more than 19 digits, or is 2^63 or more",
        "length-with-coding": "Content-Length and Transfer-Encoding in one head",
        "coding-version": "Transfer-Encoding in HTTP/1.0",
        "coding-repeated": "more than one Transfer-Encoding field",
        "coding-value": "the Transfer-Encoding is not exactly chunked",
        "coding-unknown": "unknown transfer coding",
        "framing-disguised": "a field with '_' looks like Content-Length or Transfer-Encoding",
        # A request's own fields.
        "host-missing": "the Host field is missing",
        "host-repeated": "more than one Host field",
        "host-value": "the Host field is not one valid host",
        "connection-names": "the Connection field names a field that belongs to the request",
        "upgrade-body": "an upgrade to websocket or SPDY/3.1 with a body that is chunked or too long",
        "connect-body": "a CONNECT has a body",  # RFC 9110, section 9.3.6
        "upgrade-base-hub": "an upgrade to websocket or SPDY/3.1 with a body, from a hub without features",
        # A response's own fields.
        "switch-unasked": "it switches to a protocol that the request did not ask for",
    }.items()
}

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n)(?!\Z)|\0")
"""Bytes that make a head malformed, whatever follows: a LF without CR, a CR without LF, a NUL."""

NAME = re.compile(TOKEN)
CONTROL = re.compile(rb"[\0-\x08\x0a-\x1f\x7f]")
STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r\n)")
STRAYS = {b"\n": RULES["bare-lf"], b"\r": RULES["bare-cr"], b"\0": RULES["nul"]}
MAX_LENGTH = 2**63 - 1


class HeadError(AgentError):
    """A response head is malformed: the fault of the target. The text is fit for the client.

    rule: the name of the rule that the head broke, for the log.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__(f"the target sent a malformed response head: {rule.text}")
        self.rule = rule.name


def stray_rule(raw: bytes | bytearray, start: int, end: int) -> Rule | None:
    """The rule of the first stray byte in `raw[start:end]`, a head or as much of it as has come."""
    found = STRAY.search(raw, start, end)
    return STRAYS[bytes(found.group())] if found is not None else None


def broken_line(line: bytes) -> Rule:
    """The rule that a whole request line of visible ASCII and spaces breaks, though it has no CRLF in it."""
    parts = line.split(b" ")
    if len(parts) != 3 or b"" in parts:
        return RULES["line-form"]
    if NAME.fullmatch(parts[0]) is None:
        return RULES["method-token"]
    return RULES["version-form"]


def broken_status_line(head: bytes) -> Rule | None:
    """The rule that a response head's first line breaks, or None."""
    if not head.startswith(b"HTTP/1."):
        return RULES["not-http1"]
    if head[7:9] not in (b"0 ", b"1 "):
        return RULES["status-version"]
    match = STATUS.match(head)
    if match is None:
        return RULES["status-form"]
    if not b"100" <= match[1] <= b"599":
        return RULES["status-range"]
    return RULES["reason-byte"] if CONTROL.search(head[12 : head.index(b"\r\n")]) else None


def broken_fields(head: bytes, start: int) -> Rule:
    """The rule that a head's fields break. head: with its empty line. start: where the fields begin."""
    rule = stray_rule(head, 0, len(head))
    if rule is not None:
        return rule
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for line in head[start:-4].split(b"\r\n"):
        name, colon, value = line.partition(b":")
        broken = _broken_field(line, name, colon, value)
        if broken:
            return RULES[broken]
        lower = name.lower()
        if lower == b"content-length":
            lengths.append(value.strip(b" \t"))
        elif lower == b"transfer-encoding":
            codings.append(value.strip(b" \t"))
    rule = framing_rule(lengths, codings, False)
    return RULES["head"] if rule is None or rule.name == "coding-unknown" else rule


def _broken_field(line: bytes, name: bytes, colon: bytes, value: bytes) -> str:
    """The name of the rule that one field line breaks, or ""."""
    if line[:1] in (b" ", b"\t"):
        return "folded-line"
    if not colon:
        return "no-colon"
    if not name:
        return "name-empty"
    if name[-1:] in (b" ", b"\t"):
        return "name-space"
    if NAME.fullmatch(name) is None:
        return "name-byte"
    return "value-byte" if CONTROL.search(value) else ""


def framing_rule(lengths: Sequence[bytes] | None, codings: Sequence[bytes] | None, is_1_0: bool) -> Rule | None:
    """The rule that the values of all Content-Length and Transfer-Encoding fields break (RFC 9112, section 6).

    None where there is no doubt about the body's length. Names without fields: None or empty.
    """
    if codings:
        if lengths:
            return RULES["length-with-coding"]
        if is_1_0:
            return RULES["coding-version"]
        if len(codings) != 1:
            return RULES["coding-repeated"]
        if codings[0].lower() != b"chunked":
            return RULES["coding-unknown" if NAME.fullmatch(codings[0]) else "coding-value"]
        return None
    return length_rule(lengths) if lengths else None


def length_rule(lengths: Sequence[bytes]) -> Rule | None:
    """The rule that the values of all Content-Length fields break."""
    if len(lengths) != 1:
        return RULES["length-repeated"]
    if not lengths[0].isdigit():
        return RULES["length-value"]
    digits = lengths[0].lstrip(b"0")
    if len(lengths[0]) > 19 or (digits and int(digits) > MAX_LENGTH):
        return RULES["length-size"]
    return None
