"""Deadlines that let the sockets be read first where the loop stood still.

A process that was stopped (SIGSTOP, a frozen container, a host that swaps) finds its timers due and its sockets full in
the same moment. If a timer ran first, it would call late what had come in time. So a deadline that comes late by more
than `LATE_S` waits as long as the process stood still, and `CATCH_UP_S` for the sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

__all__ = ["CATCH_UP_S", "LATE_S", "Deadline", "timeout"]

LATE_S: Final = 0.05
"""A timer that fires so much later than it was set for shows that this process stood still: what it waits for may have
come meanwhile. A loop may execute its timers before it reads its sockets (libuv's does when its wait was interrupted).
"""

CATCH_UP_S: Final = 0.1
"""What the loop then gets for reading, before one looks again."""


class Deadline:
    """Calls `callback` after `seconds`, as `loop.call_later` does, unless cancelled. Needs the running loop.

    If the loop stood still, that time does not count, up to `seconds`. The deadline moves once: a loop whose every turn
    is longer than `LATE_S` keeps its deadlines too.
    """

    __slots__ = ("_callback", "_due_s", "_handle", "_loop", "_moved", "_seconds")

    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._moved = False
        self._seconds = seconds
        self._due_s = self._loop.time() + seconds
        self._handle = self._loop.call_later(seconds, self._reached)

    def cancel(self) -> None:
        """Call nothing. May be called at any time."""
        self._handle.cancel()

    def _reached(self) -> None:
        late_s = self._loop.time() - self._due_s
        if late_s > LATE_S and not self._moved:
            self._moved = True
            self._handle = self._loop.call_later(min(late_s, self._seconds) + CATCH_UP_S, self._reached)
        else:
            self._callback()


@contextlib.asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, by a Deadline: raises TimeoutError where the block takes longer."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        deadline = Deadline(seconds, lambda: limit.reschedule(loop.time()))
        try:
            yield
        finally:
            deadline.cancel()
