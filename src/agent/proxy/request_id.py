"""Makes request ids: 32 hexadecimal digits, unique for all processes, cheap enough for each request."""

from __future__ import annotations

import secrets

__all__ = ["ID_BYTES", "RequestIds"]

ID_BYTES = 32
_PAIRS = [b"%02x" % number for number in range(256)]


class RequestIds:
    """Returns a new id for each call. 64 bits are random for each object, and 64 bits count."""

    __slots__ = ("_count", "_head", "_start")

    def __init__(self) -> None:
        self._start = secrets.token_hex(8).encode()
        self._count = 0
        self._head = b""

    def next(self) -> bytes:
        """Return the next id."""
        count = self._count
        self._count = count + 1
        low = count & 0xFFFF
        if low == 0:
            self._head = self._start + b"%012x" % (count >> 16)
        return b"".join((self._head, _PAIRS[low >> 8], _PAIRS[low & 255]))
