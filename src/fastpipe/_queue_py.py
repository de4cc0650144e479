"""Orders the callbacks of pipes: one queue for all pipes on one loop, drained in the loop's turns.

The first wake-up is one `call_soon`. Callbacks that follow from it join the same queue and are made in the same turn.
Their order is that of `call_soon`. Each end gets one callback at a time, so no pipe waits for a busy one. After
TURN_CALLS callbacks or TURN_BYTES bytes, the rest waits for the next turn. So timers and sockets wait no longer than
one turn. If a turn brought bytes or an EOF, eof_received and connection_lost wait for the next turn (I10).
"""

from __future__ import annotations

import asyncio
from collections import deque
from threading import get_ident
from typing import Protocol
from weakref import WeakKeyDictionary

from fastpipe._limits import TURN_BYTES, TURN_CALLS


class Deliverable(Protocol):
    """The part of a pipe's end that the queue uses."""

    _queued: bool  # in the queue, or deferred: set and cleared with that

    def _step(self) -> None:
        """Make the callback that is due first, or defer it. Join the queue again if another is due."""


class DeliveryQueue:
    """The ends that have a callback due, and the thread that they belong to.

    A pipe without a loop has its own queue. All pipes on one loop share a queue, which lives as long as the loop. The
    queue holds no reference to the loop, because then neither would ever be freed. The ends hold the loop.
    """

    __slots__ = ("bytes", "calls", "deferred", "depth", "draining", "due", "eof_delivered", "scheduled", "thread")

    def __init__(self) -> None:
        self.thread = get_ident()
        self.due: deque[Deliverable] = deque()
        self.deferred: list[Deliverable] = []  # ends whose EOF or loss is due in the next turn
        self.eof_delivered = False  # eof_received was called in this turn
        self.scheduled = False  # the loop has a Drain to call
        self.draining = False
        self.depth = 0  # inline deliveries on the stack
        self.calls = self.bytes = 0  # made and delivered in this turn, or in this outermost inline write

    def wake(self, end: Deliverable, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have the end's next callback made. Raises RuntimeError where the loop is closed."""
        end._queued = True
        self.due.append(end)
        if not self.scheduled and not self.draining:
            self.schedule(loop)

    def schedule(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Request a turn of the loop. If the loop is closed, empty the queue and raise RuntimeError."""
        assert loop is not None, "an end without a loop has no protocol, so no callback is due"
        self.scheduled = True
        try:
            loop.call_soon(Drain(self, loop))
        except BaseException:
            self.forget()
            raise

    def defer(self, end: Deliverable) -> None:
        """Leave the end's next callback to the next turn (I10)."""
        end._queued = True
        self.deferred.append(end)

    def forget(self) -> None:
        """Empty the queue, because the loop is closed."""
        self.scheduled = False
        self._release_deferred()
        while self.due:
            self.due.popleft()._queued = False

    def budget_spent(self) -> bool:
        """Whether this turn's budget is used up."""
        return self.calls >= TURN_CALLS or self.bytes >= TURN_BYTES

    def drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """One turn: callbacks in the order they came due, until none is or the budget is spent."""
        self.scheduled = False
        if self.draining:  # a loop run inside a callback, whose turn continues when it returns
            return
        self.thread = get_ident()
        self.draining = True
        self.eof_delivered = False
        self.calls = self.bytes = 0
        due, most_calls, most_bytes = self.due, TURN_CALLS, TURN_BYTES
        try:
            while due and self.calls < most_calls and self.bytes < most_bytes:
                end = due.popleft()
                end._queued = False
                self.calls += 1
                end._step()
        finally:  # SystemExit and KeyboardInterrupt pass through, as everywhere in asyncio
            self.draining = False
            self._release_deferred()
            if due and not self.scheduled:
                self.schedule(loop)

    def _release_deferred(self) -> None:
        """Put what was deferred behind the queue."""
        self.due.extend(self.deferred)
        self.deferred.clear()


class Drain:
    """The callback for the loop. A closed loop drops it uncalled, which empties the queue."""

    __slots__ = ("loop", "queue")

    def __init__(self, queue: DeliveryQueue, loop: asyncio.AbstractEventLoop) -> None:
        self.queue: DeliveryQueue | None = queue
        self.loop = loop

    def __call__(self) -> None:
        queue, self.queue = self.queue, None
        if queue is not None:
            queue.drain(self.loop)

    def __del__(self) -> None:
        if self.queue is not None:
            self.queue.forget()

    def __repr__(self) -> str:  # what asyncio's debug mode names when callbacks were slow
        return "<fastpipe drain>"


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, DeliveryQueue] = WeakKeyDictionary()


def queue_of(loop: asyncio.AbstractEventLoop) -> DeliveryQueue:
    """The one queue on this loop."""
    queue = _queues.get(loop)
    if queue is None:
        queue = _queues.setdefault(loop, DeliveryQueue())
    return queue
