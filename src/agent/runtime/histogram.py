"""A histogram of durations.

Adding a duration only appends it to a list. The proxy's sweep sorts and counts the durations of each quarter of a
second together. With a busy agent's cold caches, that is far cheaper than finding the range of each duration at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

__all__ = ["BOUNDS_S", "Histogram"]

BOUNDS_S = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
"""Upper bounds of the ranges in seconds, each included. One more range has all longer durations. The bounds reach from
the time of an in-process response to the longest default timeout."""

_TOGETHER = 1000


class Histogram:
    """A histogram of times.

    add: takes one time, >= 0 seconds. `settle` must be called from time to time, or what was added grows.
    """

    __slots__ = ("_counts", "_recent", "_sum_s", "add")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0
        self._recent: list[float] = []  # not counted yet
        self.add: Callable[[float], None] = self._recent.append  # no Python call for each request

    def settle(self) -> None:
        """Count what was added, where it is much."""
        if len(self._recent) >= _TOGETHER:
            self._count()

    def _count(self) -> None:
        recent, counts = self._recent, self._counts
        recent.sort()
        self._sum_s += sum(recent)
        below = 0
        for number, bound in enumerate(BOUNDS_S):
            up_to = bisect_right(recent, bound, below)
            counts[number] += up_to - below
            below = up_to
        counts[-1] += len(recent) - below
        recent.clear()

    def __add__(self, other: Histogram) -> Histogram:
        """Those of both, counted apart from either."""
        both = Histogram()
        both._sum_s = self.sum_s + other.sum_s
        both._counts = [one + another for one, another in zip(self._counts, other._counts, strict=True)]
        return both

    @property
    def sum_s(self) -> float:
        """Of all times added, in seconds."""
        self._count()
        return self._sum_s

    @property
    def cumulative(self) -> list[int]:
        """For each bound how many times were at most so long, and last how many there were in all."""
        self._count()
        return list(accumulate(self._counts))
