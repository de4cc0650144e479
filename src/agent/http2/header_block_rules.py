"""HPACK for both twins (RFC 7541): tables, limits, each field's form, and a text for each broken rule.

It exists once, so a compiled coder and a Python coder can't choose or report differently.
"""

from __future__ import annotations

from typing import Final

from hpack.table import HeaderTable

from ..errors import WireError
from .errors import ErrorCode

__all__ = [
    "FIELD_BYTES",
    "HUFFMAN_BITS",
    "INTEGER_OCTETS",
    "NEVER_INDEXED",
    "NOT_INDEXED",
    "STATIC_TABLE",
    "TABLE_BYTES",
    "bad_index",
    "bad_table_size",
    "list_too_large",
    "malformed_block",
]

STATIC_TABLE: Final[tuple[tuple[bytes, bytes], ...]] = HeaderTable.STATIC_TABLE
"""Appendix A, of which the first entry has index 1."""

TABLE_BYTES: Final = 4096
"""The default of SETTINGS_HEADER_TABLE_SIZE (RFC 9113, section 6.5.2). An encoder uses no larger table."""

FIELD_BYTES: Final = 32
"""Counts for each field beside its name and value (section 4.1)."""

INTEGER_OCTETS: Final = 6
"""The most octets of an integer: its prefix and 35 bits. Longer ones are malformed (section 5.1)."""

NEVER_INDEXED: Final = frozenset((b"authorization", b"cookie", b"proxy-authorization"))
"""Secrets. Users share a target's connection, so a table with them would let one user probe for another's.

See section 7.1.
"""

NOT_INDEXED: Final = frozenset(
    (
        b":path",
        b"age",
        b"content-length",
        b"content-range",
        b"etag",
        b"grpc-message",
        b"grpc-timeout",
        b"if-modified-since",
        b"if-none-match",
        b"last-modified",
        b"location",
        b"range",
        b"set-cookie",
        b"traceparent",
        b"x-request-id",
    )
)
"""Fields that differ between requests. In the table they would only push others out."""

LARGEST_PART: Final = 2
"""A field enters the table if it takes at most half of it."""

# The codes of section 5.2 are canonical, so the lengths of appendix B give them all. The last one is EOS.
HUFFMAN_BITS: Final = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b080606060505"
    "050606060606060607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605"
    "06050606060507070606060506070605050607070707070f0b0e0d1c14161414161616171617171717171817181816171817"
    "1717171516171617171816151416161717151716161815161717151516151716171714161616171616171a1a141316171619"
    "1a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c"
    "1b1b1b1b1b1a1e"
)


def malformed_block() -> WireError:
    return WireError("HTTP/2: HPACK: a malformed header block", http2_code=ErrorCode.COMPRESSION_ERROR)


def bad_index() -> WireError:
    return WireError("HTTP/2: HPACK: an index beyond the tables", http2_code=ErrorCode.COMPRESSION_ERROR)


def bad_table_size(limit: int) -> WireError:
    rule = f"HPACK: a table of more than {limit} bytes"
    return WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.COMPRESSION_ERROR)


def list_too_large(limit: int) -> WireError:
    return WireError(f"HTTP/2: a head of more than {limit} bytes", http2_code=ErrorCode.ENHANCE_YOUR_CALM)
