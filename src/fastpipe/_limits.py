"""The pipe's numbers and the checks on them, shared by both twins. All sizes are bytes."""

from __future__ import annotations

import sys
from operator import index
from typing import Final, SupportsIndex

DEFAULT_LIMIT: Final = 65536  # asyncio's default high-water mark
DEFAULT_MAX_CHUNK: Final = 262144  # what asyncio's selector transport reads at most in one go

# The budget of same-turn delivery. After so many callbacks, or so many bytes, timers and sockets get their turn.
# 512 calls are about 50 µs of a compiled ping-pong. One round trip in 256 pays for a loop turn, which keeps loop turns
# out of the 99th percentile. 1 MiB takes about as long if every callback copies its bytes.
TURN_CALLS: Final = 512
TURN_BYTES: Final = 1 << 20


def checked_limit(limit: SupportsIndex) -> int:
    """The high-water mark that `limit` means: an int, 0 to sys.maxsize. Raises TypeError or ValueError."""
    value = index(limit)
    if not 0 <= value <= sys.maxsize:
        raise ValueError(f"limit must be 0 to {sys.maxsize} bytes, not {value}")
    return value


def checked_max_chunk(max_chunk: SupportsIndex | None) -> int:
    """The most bytes of one data_received: 1 to sys.maxsize, the meaning of None. Raises TypeError or ValueError."""
    if max_chunk is None:
        return sys.maxsize
    value = index(max_chunk)
    if not 1 <= value <= sys.maxsize:
        raise ValueError(f"max_chunk must be 1 to {sys.maxsize} bytes or None, not {value}")
    return value


def water_marks(high: int | None, low: int | None) -> tuple[int, int]:
    """(high, low) as asyncio completes them: 64 KiB by default, low a quarter of high. Raises ValueError."""
    if high is None:
        high = DEFAULT_LIMIT if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return min(high, sys.maxsize), min(low, sys.maxsize)
