"""How long to wait before the next attempt: longer each time, never at the same moment as everybody else."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["BackOff"]


class BackOff:
    """Delays that grow from first_s by factor each time, each spread by ± jitter, never above max_s.

    The defaults are wire.md's ("end of the stream"): 0.5 s, by 1.5, ± 50 %, at most 60 s.

    random: gives numbers from 0 to 1; for tests.
    """

    def __init__(
        self,
        first_s: float = 0.5,
        factor: float = 1.5,
        jitter: float = 0.5,
        max_s: float = 60.0,
        *,
        random: Callable[[], float] = random.random,
    ) -> None:
        if not (first_s > 0 and factor >= 1 and 0 <= jitter < 1 and max_s >= first_s):
            raise ValueError("a back-off needs first_s > 0, factor >= 1, 0 <= jitter < 1 and max_s >= first_s")
        self._first_s = first_s
        self._factor = factor
        self._jitter = jitter
        self._max_s = max_s
        self._random = random
        self._next_s = first_s

    def next_s(self, most_s: float | None = None) -> float:
        """Return the next delay, in seconds. most_s: the upper limit of this delay, with its jitter."""
        delay_s = self._grow()
        if most_s is not None:
            delay_s = min(delay_s, most_s / (1 + self._jitter))
        return min(self._max_s, self.spread_s(delay_s))

    def spread_s(self, delay_s: float) -> float:
        """Return this delay, spread by ± jitter, so that the agents of a lost hub don't all reconnect at once."""
        return delay_s * (1 + self._jitter * (2 * self._random() - 1))

    def between_s(self, low_s: float, high_s: float) -> float:
        """A delay by chance between two others."""
        return low_s + (high_s - low_s) * self._random()

    def reset(self) -> None:
        """Start over: things went well for a while."""
        self._next_s = self._first_s

    def _grow(self) -> float:
        delay_s = self._next_s
        self._next_s = min(self._max_s, delay_s * self._factor)
        return delay_s
