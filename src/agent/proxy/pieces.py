"""Pieces of a message as they pass through the proxy, and how several leave in one write."""

from __future__ import annotations

from typing import Any

__all__ = ["JOIN_BYTES", "Piece", "write_pieces"]

Piece = bytes | memoryview

JOIN_BYTES = 65536
"""Pieces up to this many bytes are joined into one write. That is one packet, or one system call."""


def write_pieces(writer: Any, pieces: list[Piece]) -> None:
    """Write pieces in order. Small ones are joined into one, large ones are written by reference."""
    if len(pieces) == 1:
        writer.write(pieces[0])
    elif sum(map(len, pieces)) <= JOIN_BYTES:
        writer.write(b"".join(pieces))
    else:
        writer.writelines(pieces)
