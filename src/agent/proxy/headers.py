"""Which header fields travel: hop-by-hop rules as pure functions on lists of (name, value).

A connection's own fields end with it (RFC 9110, section 7.6.1). What goes on is the rest; message framing, `Host` and
`Connection` are written afresh by whoever sends the head, never copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = [
    "Fields",
    "connection_options",
    "drop_named",
    "forwarded_trailers",
    "is_protected",
    "serialize",
    "split_fields",
    "tokens",
]

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset({
    b"connection", b"proxy-connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
})  # fmt: skip
SPECIAL = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
"""Fields that are read, and then written afresh or dropped: they never go on as they came."""

PROTECTED = frozenset({b"host", b"content-length", b"authorization"})
"""What a `Connection` field must not name: naming them would take them off a request behind a check's back."""

# RFC 9110, section 6.5.1: framing, routing, authentication, request modifiers and content's own description.
NOT_A_TRAILER = SPECIAL | {
    b"age", b"authorization", b"cache-control", b"content-encoding", b"content-range", b"content-type", b"date",
    b"expires", b"location", b"max-forwards", b"pragma", b"range", b"retry-after", b"set-cookie", b"vary", b"warning",
    b"www-authenticate", b"cookie",
}  # fmt: skip

LINE_BREAK = re.compile(rb"[\r\n\0]")


def split_fields(fields: Fields) -> tuple[Fields, dict[bytes, list[bytes]]]:
    """Part the end-to-end fields, in order, from the special ones: lower-case name → values in order."""
    rest: Fields = []
    special: dict[bytes, list[bytes]] = {}
    for field in fields:
        name = field[0].lower()
        if name in SPECIAL:
            if name in special:
                special[name].append(field[1])
            else:
                special[name] = [field[1]]
        else:
            rest.append(field)
    return rest, special


def tokens(values: Iterable[bytes]) -> list[bytes]:
    """The elements of a comma-separated list field, all its lines joined, lower-case, empty ones left out."""
    return [token for value in values for part in value.split(b",") if (token := part.strip(b" \t").lower())]


def connection_options(special: dict[bytes, list[bytes]]) -> frozenset[bytes]:
    """What the `Connection` lines name, lower-case."""
    values = special.get(b"connection")
    return frozenset(tokens(values)) if values else frozenset()


def is_protected(option: bytes) -> bool:
    """Whether a `Connection` option names a field that may not be taken off a request (wire.md, identity rule 1)."""
    return option in PROTECTED or option.replace(b"_", b"-").startswith(b"impersonate-")


def drop_named(fields: Fields, options: frozenset[bytes]) -> Fields:
    """Leave out the fields that the `Connection` options name."""
    return [field for field in fields if field[0].lower() not in options]


def forwarded_trailers(fields: Fields) -> Fields:
    """The trailer fields of a response that may go on."""
    return [field for field in fields if field[0].lower() not in NOT_A_TRAILER]


def serialize(start_line: bytes, fields: Fields) -> bytes:
    """Write a head: `start_line` without its CRLF, then one line a field, then the empty line.

    Raises ValueError where a part holds a CR, LF or NUL, or a name isn't one: the head would not have the lines it was
    meant to have (I1).
    """
    lines = [start_line]
    lines += [b": ".join(field) for field in fields]
    head = b"\r\n".join(lines)
    breaks = len(fields)
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b"\0" in head:
        raise ValueError("a header field holds a line break")
    return head + b"\r\n\r\n"
