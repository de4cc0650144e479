"""Checks all deadlines by one coarse timer, rather than by a timer for each event.

Setting a deadline is one addition. A request or a body's chunk pays no more than that for its time limit.

A process can be stopped: SIGSTOP, a frozen container, a host that swaps. Then its timers are due and its sockets full
in the same moment. Bytes that arrived in time must not be late for that, so a late tick sweeps nothing. The loop gets a
tick's length of turns to read its sockets before the next tick. The stopped time does not count either, because bytes
need many turns to cross a tunnel and its pipes.
Two late ticks in a row mean load. Their time counts, so deadlines still pass if every turn is long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["NEVER", "Clock", "Stall"]

NEVER = float("inf")
LATE_TICKS = 4
"""A tick later than this was not late by load. The process was stopped. As long as the shortest limit."""


class Clock:
    """The time, at most `tick_s` seconds old, and a sweep every `tick_s` seconds while one is needed.

    Attributes:
        now: seconds, to compare with results of `later` only. It is the loop's time without the stopped time, unless
            `counts_stops`.
        sweep: gets `now`, and returns whether anything is left to check. It must not raise.
    """

    __slots__ = (
        "_counts_stops",
        "_due_s",
        "_handle",
        "_loop",
        "_skipped",
        "_stood_still_s",
        "_sweep",
        "_tick_s",
        "_was_late",
        "now",
    )

    def __init__(self, tick_s: float, sweep: Callable[[float], bool], *, counts_stops: bool = False) -> None:
        self._tick_s = tick_s
        self._sweep = sweep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._counts_stops = counts_stops
        self._skipped = False  # the tick before this one swept nothing
        self._was_late = False
        self._due_s = 0.0  # when the next tick should come, by the loop's time
        self._stood_still_s = 0.0
        self.now = 0.0

    def start(self) -> None:
        """Sweep until the sweep returns that nothing is left. Needs the running loop."""
        if self._handle is None:
            self._loop = asyncio.get_running_loop()
            self.now = self._loop.time() - self._stood_still_s
            self._wind()

    def later(self, seconds: float) -> float:
        """Return the time in `seconds` seconds, or up to two ticks more."""
        return self.now + self._tick_s + seconds

    def stop(self) -> None:
        """Sweep no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        assert self._loop is not None
        self._handle = None
        time_s = self._loop.time()
        late_s = time_s - self._due_s
        is_late = late_s > LATE_TICKS * self._tick_s
        if is_late and not self._was_late and not self._counts_stops:
            self._stood_still_s += late_s
        self._was_late = is_late
        self.now = time_s - self._stood_still_s
        self._skipped = is_late and not self._skipped  # never twice: a loop whose every turn is long sweeps, too
        if self._skipped or (self._sweep(self.now) and self._handle is None):
            self._wind()

    def _wind(self) -> None:
        assert self._loop is not None
        self._due_s = self._loop.time() + self._tick_s
        self._handle = self._loop.call_later(self._tick_s, self._tick)


class Stall:
    """Finds a write buffer that nobody drains. Call it at each sweep. A slowly drained buffer passes."""

    __slots__ = ("_since", "_size")

    def __init__(self) -> None:
        self._size = -1
        self._since = 0.0

    def reset(self) -> None:
        """Reset the count."""
        self._size = -1

    def is_longer_than(self, seconds: float, size: int, now: float) -> bool:
        """Whether the buffer has held `size` bytes, unchanged, for `seconds`."""
        if size != self._size:
            self._size = size
            self._since = now
        return now - self._since >= seconds
