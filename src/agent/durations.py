"""How long things took, counted in an array of ranges: adding one time costs about a tenth of a microsecond."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

__all__ = ["BOUNDS_S", "Durations"]

BOUNDS_S = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
"""Upper ends of the ranges in seconds, each included; one more range has what took longer than all of them. From what
an in-process answer takes to the longest default timeout."""


class Durations:
    """A histogram of times. sum_s: of all times added, in seconds."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one time, >= 0 seconds."""
        self._counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def __add__(self, other: Durations) -> Durations:
        """Those of both, counted apart from either."""
        both = Durations()
        both._counts = [one + another for one, another in zip(self._counts, other._counts, strict=True)]
        both.sum_s = self.sum_s + other.sum_s
        return both

    @property
    def cumulative(self) -> list[int]:
        """For each bound how many times were at most so long, and last how many there were in all."""
        return list(accumulate(self._counts))
