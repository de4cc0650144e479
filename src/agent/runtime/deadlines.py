"""Deadlines that wait for the sockets after the process was stopped.

After a stop (SIGSTOP, a frozen container, a swapping host), timers are due and sockets are full at once. A timer that
ran first would time out bytes that arrived in time. So a deadline that is late by more than `LATE_S` waits again for as
long as the stop was. It gives the sockets `CATCH_UP_S` more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

__all__ = ["CATCH_UP_S", "LATE_S", "Deadline", "timeout"]

LATE_S: Final = 0.05
"""A timer that fires this late shows that the process was stopped, and that bytes may wait in its sockets.

A loop may run its timers before it reads its sockets. libuv does so after an interrupted wait.
"""

CATCH_UP_S: Final = 0.1
"""The time that the loop then has to read its sockets."""


class Deadline:
    """Calls `callback` after `seconds`, as `loop.call_later` does, unless cancelled. Needs the running loop.

    If the process was stopped, that time does not count, up to `seconds`. The deadline moves once, so that a loop with
    only slow turns keeps its deadlines too.
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
