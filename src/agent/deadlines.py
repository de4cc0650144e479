"""Deadlines that let the sockets be read first where the loop stood still.

A process that was stopped (SIGSTOP, a frozen container, a host that swaps) finds its timers due and its sockets full in
the same moment. If a timer ran first, it would call late what had come in time. So a deadline that comes late by more
than `LATE_S` waits another `GRACE_S`: turns of the loop, in which the sockets are read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

__all__ = ["GRACE_S", "LATE_S", "Deadline", "timeout"]

LATE_S = 1.0
"""A timer that comes later than this was not late by load: the loop stood still."""
GRACE_S = 1.0


class Deadline:
    """Calls `callback` after `seconds`, as `loop.call_later` does, unless cancelled. Needs the running loop.

    Where the loop stood still, the call comes `GRACE_S` after the loop turns again. That is done once: a loop whose
    every turn is longer than `LATE_S` keeps its deadlines, too.
    """

    __slots__ = ("_callback", "_due_s", "_graced", "_handle", "_loop")

    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._graced = False
        self._due_s = self._loop.time() + seconds
        self._handle = self._loop.call_later(seconds, self._reached)

    def cancel(self) -> None:
        """Call nothing. May be called at any time."""
        self._handle.cancel()

    def _reached(self) -> None:
        if self._loop.time() - self._due_s > LATE_S and not self._graced:
            self._graced = True
            self._handle = self._loop.call_later(GRACE_S, self._reached)
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
