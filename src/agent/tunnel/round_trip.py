"""The least round trip of the last seconds, which sizes the windows.

One sample holds the link's round trip plus the queues on both hosts. The least of several samples holds only the link's
round trip. A link's round trip changes if a route moves or a laptop changes its network. So only the last WINDOW_S
count, as in BBR. Each sample is one exchange between both ends of the session. The kernel's value would end at a proxy.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

__all__ = ["RoundTrip"]

WINDOW_S: Final = 10.0
"""How long a sample counts: as long as BBR's filter of the least round trip."""

SAMPLE_S: Final = 2.0
"""How old the newest sample may be while data flows."""

GUESS_S: Final = 0.05
"""The round trip before the first sample."""


class RoundTrip:
    """A minimum over a sliding window of time. now_s: a clock.

    Invariant I1: `_samples` has ascending times and ascending round trips, so the first is the least. The newest sample
    stays however old it is.
    """

    __slots__ = ("_now_s", "_samples")

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._samples: deque[tuple[float, float]] = deque()  # when, and how long

    def add(self, round_trip_s: float) -> None:
        """Take a sample."""
        samples = self._samples
        while samples and samples[-1][1] >= round_trip_s:  # I1
            samples.pop()
        samples.append((self._now_s(), round_trip_s))

    @property
    def least_s(self) -> float:
        """The least sample of the last WINDOW_S. If all samples are older, the newest."""
        samples = self._samples
        if not samples:
            return GUESS_S
        oldest_s = self._now_s() - WINDOW_S
        while len(samples) > 1 and samples[0][0] < oldest_s:
            samples.popleft()
        return samples[0][1]

    @property
    def is_stale(self) -> bool:
        """Whether a new sample is due while data flows."""
        return not self._samples or self._now_s() - self._samples[-1][0] >= SAMPLE_S
