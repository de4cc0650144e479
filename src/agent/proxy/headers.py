"""The hop-by-hop rules of header fields, as pure functions on lists of (name, value).

A connection's own fields are not forwarded (RFC 9110, section 7.6.1), and all others are. The sender of a head writes
message framing, `Host` and `Connection` itself, and never copies them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import PolicyError

__all__ = [
    "COMMON_OPTIONS",
    "NO_OPTIONS",
    "SPECIAL",
    "WITH_URLS",
    "Fields",
    "check_fields",
    "drop_named",
    "elements",
    "forwarded_trailers",
    "is_protected",
    "serialize",
    "tokens",
]

Fields = list[tuple[bytes, bytes]]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"proxy-connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"tunnel-fault",  # blame.py
    }
)
SPECIAL = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
"""Fields that the proxy reads, and then rewrites or drops. It never forwards them unchanged."""

WITH_URLS = frozenset(
    {
        b"alt-svc",
        b"clear-site-data",
        b"content-location",
        b"destination",
        b"location",
        b"nel",
        b"refresh",
        b"report-to",
        b"service-worker-allowed",
        b"set-cookie",
    }
)
"""Fields that name URLs or origins. `Target.map_request` and `Target.map_response` may change them."""

PROTECTED = frozenset({b"host", b"content-length", b"authorization"})
"""Names that a `Connection` field must not have. They would be removed from a request after its checks."""

# RFC 9110, section 6.5.1: framing, routing, authentication, request modifiers and content's own description.
NOT_A_TRAILER = SPECIAL | {
    b"age",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-range",
    b"content-type",
    b"date",
    b"expires",
    b"location",
    b"max-forwards",
    b"pragma",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"vary",
    b"warning",
    b"www-authenticate",
    b"cookie",
}

NOT_IN_NAME = re.compile(rb"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
NOT_IN_VALUE = re.compile(rb"[\0\r\n]")
NO_OPTIONS: frozenset[bytes] = frozenset()
KEEP_ALIVE = frozenset({b"keep-alive"})
CLOSE = frozenset({b"close"})
COMMON_OPTIONS = {b"keep-alive": KEEP_ALIVE, b"Keep-Alive": KEEP_ALIVE, b"close": CLOSE}


def tokens(values: Iterable[bytes]) -> list[bytes]:
    """The elements of a comma-separated list field, all its lines joined, lower-case, empty ones left out."""
    return [element.lower() for element in elements(values)]


def elements(values: Iterable[bytes]) -> list[bytes]:
    """As `tokens`, but in the sender's spelling."""
    return [element for value in values for part in value.split(b",") if (element := part.strip(b" \t"))]


def is_protected(option: bytes) -> bool:
    """Whether a `Connection` option names a field that may not be taken off a request (wire.md, identity rule 1)."""
    return option in PROTECTED or option.replace(b"_", b"-").startswith(b"impersonate-")


def drop_named(fields: Fields, options: frozenset[bytes]) -> Fields:
    """Leave out the fields that the `Connection` options name."""
    return [field for field in fields if field[0].lower() not in options]


def forwarded_trailers(fields: Fields) -> Fields:
    """The trailer fields of a response that the proxy forwards. `grpc.grpc_trailers`: those of a call."""
    return [field for field in fields if field[0].lower() not in NOT_A_TRAILER]


def serialize(start_line: bytes, fields: Fields) -> bytes:
    """Write a head: `start_line` without its CRLF, then one line a field, then the empty line.

    fields: from a parser. Other fields must pass `check_fields` first.
    """
    return b"\r\n".join([start_line, *map(b": ".join, fields), b"\r\n"])


def check_fields(fields: Fields) -> None:
    """Raise PolicyError where a field isn't one: it would end its line, or begin another."""
    try:
        for name, value in fields:
            if NOT_IN_NAME.search(name) or not name or NOT_IN_VALUE.search(value):
                raise ValueError
    except (TypeError, ValueError):  # of the wrong types, too, or no pair
        raise PolicyError("process", "headers as pairs of bytes", "a field that can't be written") from None
