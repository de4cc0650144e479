"""A set of connection ids with a cost per gap, not per id. A session remembers its closed ids until it ends."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

__all__ = ["MAX_RANGES", "IdRanges"]

MAX_RANGES = 32 * 1024
"""About 3 MB. An honest hub leaves a gap for each connection that is open, and those are fewer."""


class IdRanges:
    """Integers kept as ranges. Those a hub chooses come nearly in order, so the ranges stay few.

    `add` and `in` take the logarithm of the number of ranges. An id that lies between two ranges joins them. A hub that
    leaves gaps on purpose, or a session of months, may cause more than MAX_RANGES. The lower half then becomes one
    range, which includes the ids in its gaps.
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self) -> None:
        self._firsts: list[int] = []  # rising; the range i is _firsts[i] to _lasts[i], both included
        self._lasts: list[int] = []

    def __contains__(self, conn_id: int) -> bool:
        at = bisect_right(self._firsts, conn_id) - 1
        return at >= 0 and conn_id <= self._lasts[at]

    def add(self, conn_id: int) -> None:
        """Remember `conn_id`. A second call does nothing."""
        after = bisect_right(self._firsts, conn_id)
        before = after - 1
        if before >= 0 and conn_id <= self._lasts[before]:
            return
        joins_before = before >= 0 and self._lasts[before] == conn_id - 1
        joins_after = after < len(self._firsts) and self._firsts[after] == conn_id + 1
        if joins_before and joins_after:
            self._lasts[before] = self._lasts.pop(after)
            del self._firsts[after]
        elif joins_before:
            self._lasts[before] = conn_id
        elif joins_after:
            self._firsts[after] = conn_id
        else:
            self._firsts.insert(after, conn_id)
            self._lasts.insert(after, conn_id)
            if len(self._firsts) > MAX_RANGES:
                half = MAX_RANGES // 2
                del self._firsts[1:half], self._lasts[: half - 1]

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(first, last) of each range, rising, both included."""
        return zip(self._firsts, self._lasts, strict=True)
