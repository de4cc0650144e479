"""Deadlines looked at by one coarse timer, rather than a timer for each event.

Setting a deadline is one addition: on the way of every request and body chunk that is all a timeout costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["NEVER", "Clock", "Stall"]

NEVER = float("inf")


class Clock:
    """The time, at most `tick_s` seconds old, and a sweep every `tick_s` seconds while one is needed.

    sweep: gets the loop's time in seconds; returns whether there is anything left to look at. It must not raise.
    """

    __slots__ = ("_handle", "_loop", "_sweep", "_tick_s", "now")

    def __init__(self, tick_s: float, sweep: Callable[[float], bool]) -> None:
        self._tick_s = tick_s
        self._sweep = sweep
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None
        self.now = 0.0

    def start(self) -> None:
        """Sweep from now on, until the sweep says that nothing is left. Needs the running loop."""
        if self._handle is None:
            self._loop = loop = asyncio.get_running_loop()
            self.now = loop.time()
            self._handle = loop.call_later(self._tick_s, self._tick)

    def later(self, seconds: float) -> float:
        """The time `seconds` from now; reached at the earliest then, at the latest two ticks later."""
        return self.now + self._tick_s + seconds

    def stop(self) -> None:
        """Sweep no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        assert self._loop is not None
        self._handle = None
        self.now = self._loop.time()
        if self._sweep(self.now) and self._handle is None:
            self._handle = self._loop.call_later(self._tick_s, self._tick)


class Stall:
    """Tells a write buffer that nobody empties from one that is emptied slowly. Asked at each sweep."""

    __slots__ = ("_since", "_size")

    def __init__(self) -> None:
        self._size = -1
        self._since = 0.0

    def reset(self) -> None:
        """Begin anew."""
        self._size = -1

    def is_longer_than(self, seconds: float, size: int, now: float) -> bool:
        """Whether the buffer has held `size` bytes, unchanged, for `seconds`."""
        if size != self._size:
            self._size = size
            self._since = now
        return now - self._since >= seconds
