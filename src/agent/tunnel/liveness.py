"""Watches one connection for the hub, to find out whether the agent is alive.

Every received byte is a sign of life. The hub sends a PING (HTTP/2) to an agent after `idle_s` of silence. The PING
goes out at once if a request has waited for `unanswered_s` and the agent was silent as long.

               ask: a PING goes out               `suspect_s` without a byte
    ┌───────┐ ─────────────────────► ┌───────┐ ──────────────────────────► ┌───────────┐
    │ HEARD │                        │ ASKED │                             │ SUSPECTED │
    └───────┘ ◄───────────────────── └───────┘                             └───────────┘
        ▲           a byte               │ `idle_s` + `answer_s` without a byte  │ │
        └────────────────────────────────┼───────────────── a byte ──────────────┘ │
                                         ▼                                         │
                                     ┌───────┐                                     │
                                     │ ENDED │ ◄───────────────────────────────────┘
                                     └───────┘   `idle_s` + `answer_s` without a byte

A suspected agent gets no new requests while another agent of its cluster serves (`hub`).

Invariants:
L1. A byte counts when it arrives, not when the timer next looks, because `suspected` compares times.
L2. A late timer is no proof against the peer. The bytes that the kernel has received meanwhile are read first. The end
    is delayed by as long as this process was blocked. That never happens twice in a row, so a busy hub finds dead
    agents, too.
L3. A slow link is not a dead link. Until MAX_SILENCE_S, the end is delayed while TCP acknowledges more waiting bytes.
    The PING is queued behind those bytes.
L4. Each connection has one timer. A received byte moves no timer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Callable
from typing import Final, Protocol

from ..errors import AgentError
from ..runtime.deadlines import CATCH_UP_S, LATE_S

__all__ = ["TRANSITIONS", "Event", "Liveness", "LivenessTimes", "State"]

MAX_SILENCE_S: Final = 60.0
"""How long a connection may last without a byte from its agent, whatever its TCP acknowledges."""

TICK_S: Final = 0.001
"""A timer of uvloop may fire so much too soon."""


@dataclasses.dataclass(frozen=True, slots=True)
class LivenessTimes:
    """The times after which a hub asks, suspects and ends, in seconds. Raises ValueError if one isn't positive.

    idle_s: silence of a connection before its PING.
    answer_s: further silence before the connection ends.
    unanswered_s: wait of a request for its response head before a PING, if the agent has been silent as long.
    suspect_s: silence after a PING before the agent is suspected.
    """

    idle_s: float = 8.0
    answer_s: float = 8.0
    unanswered_s: float = 1.5
    suspect_s: float = 2.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be positive, not {getattr(self, field.name)!r}")


class State(enum.Enum):
    HEARD = enum.auto()
    ASKED = enum.auto()
    SUSPECTED = enum.auto()
    ENDED = enum.auto()


# Looked up once: until Python 3.12 an enum's attribute costs a call.
HEARD, ENDED = State.HEARD, State.ENDED


class Event(enum.Enum):
    """ask: a PING goes out. byte: one came after it. unanswered: none for `suspect_s`. over: none at all, or closed."""

    ASK = enum.auto()
    BYTE = enum.auto()
    UNANSWERED = enum.auto()
    OVER = enum.auto()


TRANSITIONS: Final = {
    (State.HEARD, Event.ASK): State.ASKED,
    (State.HEARD, Event.BYTE): State.HEARD,
    (State.HEARD, Event.OVER): State.ENDED,
    (State.ASKED, Event.BYTE): State.HEARD,
    (State.ASKED, Event.UNANSWERED): State.SUSPECTED,
    (State.ASKED, Event.OVER): State.ENDED,
    (State.SUSPECTED, Event.BYTE): State.HEARD,
    (State.SUSPECTED, Event.OVER): State.ENDED,
    (State.ENDED, Event.OVER): State.ENDED,
}
"""All transitions there are."""


class Watched(Protocol):
    """The connection that is watched, as far as it is used here."""

    @property
    def heard_s(self) -> float:
        """The time of the last received byte, by the loop's clock."""

    def outgoing(self) -> tuple[int, bool]:
        """Return the bytes that the peer's TCP has acknowledged so far, and whether more bytes wait.

        The first value never falls.
        """

    def ping(self) -> None: ...
    def fail(self, error: Exception) -> None: ...
    def abort(self) -> None: ...


class Liveness:
    """Watches one connection from `start` to `stop`.

    watchers: called by the timer when the agent becomes suspected, and when a suspected agent was heard again.
    state: the state when the timer last looked, or at the last call of `ask`.
    """

    def __init__(self, connection: Watched, times: LivenessTimes) -> None:
        self.times = times
        self.state = State.HEARD
        self.watchers: list[Callable[[], None]] = []
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        self._was_late = False  # the timer, when it last fired
        self._asked_s = 0.0
        self._suspect_s = 0.0  # when the agent that was asked becomes suspected
        self._taken_bytes = 0  # when the end was last put off, or the agent asked
        self._end_s = 0.0
        self._was_suspected = False  # when it ended

    def start(self) -> None:
        """Watch from now on."""
        self._arm(self._connection.heard_s + self.times.idle_s)

    def stop(self) -> None:
        """The connection has ended. From now on nothing is called."""
        self._was_suspected = self.suspected
        self.state = TRANSITIONS[self.state, Event.OVER]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def silent_s(self) -> float:
        """The time since the last received byte, in seconds."""
        return self._loop.time() - self._connection.heard_s

    @property
    def suspected(self) -> bool:
        """Whether the agent did not respond to a PING in time, and has sent nothing since.

        If the connection has ended: whether that was so at its end, or its silence ended it.
        """
        return self._was_suspected or (self.state is State.SUSPECTED and not self._is_heard)  # L1

    def ask(self) -> bool:
        """A request has waited for `unanswered_s`: ask the agent whether it lives, if it has been silent as long.

        Returns `suspected`. Each request that still waits calls this at each sweep.
        """
        state, heard_s = self.state, self._connection.heard_s
        if state is not HEARD:
            if state is ENDED or heard_s < self._asked_s:
                return self.suspected
            self._move(Event.BYTE)
        if self._timer is not None and self._loop.time() - heard_s >= self.times.unanswered_s:
            self._ask()
        return False

    # ------------------------------------------------------------ the machine

    @property
    def _is_heard(self) -> bool:
        return self._connection.heard_s >= self._asked_s  # equal: clocks count whole milliseconds

    def _ask(self) -> None:
        now_s, times = self._loop.time(), self.times
        self._move(Event.ASK)
        self._asked_s = now_s
        self._taken_bytes, _ = self._connection.outgoing()
        self._end_s = max(self._connection.heard_s + times.idle_s, now_s) + times.answer_s
        self._suspect_s = now_s + times.suspect_s
        self._connection.ping()
        self._arm(min(self._suspect_s, self._end_s))

    def _look(self) -> None:
        self._timer = None
        now_s, times = self._loop.time() + TICK_S, self.times
        late_s = now_s - self._due_s
        self._was_late = late_s > LATE_S and not self._was_late
        if self._was_late:  # L2
            self._suspect_s += late_s
            self._end_s += late_s
            self._arm(now_s + CATCH_UP_S)
            return
        if self.state is not State.HEARD and self._is_heard:
            self._move(Event.BYTE)
        if self.state is State.HEARD:
            due_s = self._connection.heard_s + times.idle_s
            if now_s < due_s:
                self._arm(due_s)
            else:
                self._ask()
            return
        if now_s >= self._end_s and not self._is_taking(now_s):
            self._end()
            return
        if self.state is State.ASKED and now_s >= self._suspect_s:
            self._move(Event.UNANSWERED)
        # The timer checks a suspected agent as often, so that the log soon shows when it was heard.
        look_s = self._suspect_s if self.state is State.ASKED else now_s + times.suspect_s
        self._arm(min(look_s, self._end_s))

    def _is_taking(self, now_s: float) -> bool:
        """Whether the agent's TCP has taken more bytes since the PING. If so, the end is delayed."""
        before = self._taken_bytes
        self._taken_bytes, waits = self._connection.outgoing()
        if self._taken_bytes <= before or not waits or now_s - self._connection.heard_s >= MAX_SILENCE_S:
            return False
        self._end_s = now_s + self.times.answer_s  # L3
        return True

    def _end(self) -> None:
        silent_s = self.silent_s
        self._was_suspected = True
        self._move(Event.OVER)
        self._connection.fail(AgentError(f"no byte came from it for {silent_s:.3g} s"))
        self._connection.abort()

    def _move(self, event: Event) -> None:
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if (before is State.SUSPECTED and event is Event.BYTE) or self.state is State.SUSPECTED:
            for watcher in list(self.watchers):
                watcher()

    def _arm(self, due_s: float) -> None:  # L4
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._loop.call_at(due_s, self._look)
