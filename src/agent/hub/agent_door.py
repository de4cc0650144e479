"""Admits agents to the gRPC port, from an accepted socket to the first accepted call.

After a hub's restart all its agents reconnect at once. A hub that begins all handshakes at once finishes none in time.
So it begins few. The other connections wait unread, in order, and cost nothing.

                        ┌────────── PARKED ◄─────┐ silent: costs a descriptor, and no slot
              accepted  │ its first byte         │
    TCP ──► WAITING ────┴──► oldest first ───────┴──► BEGUN ──► a call is accepted ──► IN
                                                        │ no call within LOAN_S           ▲
                                                        └──► SLOW ── a call is accepted ──┤
                                                               ▲── its last call has closed ◄─┘

    PARKED, BEGUN, SLOW ── no accepted call within call_timeout_s, or others need the place ──► closed

Invariants
  D1  At most SLOTS are BEGUN, and one turn of the loop begins at most PER_TURN. Users' requests run in between.
  D2  BEGUN and SLOW are at most `strangers`, without those whose calls have closed. All connections together, the
      admitted ones too, are at most `max_connections`. At a limit, a new connection replaces the oldest PARKED, or else
      the oldest SLOW one.
  D3  An agent's time starts when the hub begins it, not while it waits in the hub's queue.
  D4  The queue is never longer than the work of MAX_WAIT_S at the measured pace. An agent beyond that is closed before
      TLS, and reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
import select
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

from ..runtime.acceptor import Acceptor, RateLimitedLog, hang_up

__all__ = ["AgentDoor", "AgentProtocol", "Guest"]

logger = logging.getLogger(__name__)

SLOTS = 64
"""Agents begun at the same time: about 130 ms of work with TLS, less than the patience of the slowest agent."""

PER_TURN = 4
"""Agents begun in one turn of the loop: about 8 ms of work with TLS, which delays a user's request."""

LOAN_S = 0.5
"""How long an agent keeps its slot while the hub waits for its next byte."""

PATIENCE_S = 5.0
"""How long a begun agent is safe from being closed for another one's sake."""

LOOKS_PER_TURN = 64
"""Connections that are looked at in one turn of the loop, silent ones included."""

MAX_WAIT_S = 20.0
"""The longest queue, as the time of its work. Agents wait 30 s for TLS (wire.md)."""

TICK_S = 0.25
FIRST_PACE = 1000.0
"""Agents a second that the queue is measured by before the hub's own pace is known."""

_SAMPLE = 8
"""Agents that a tick must finish to measure the pace."""

MIN_PACE = 4.0
_SMOOTHING = 0.2
_LEFT = getattr(select, "POLLRDHUP", 0) | getattr(select, "POLLHUP", 0) | getattr(select, "POLLERR", 0)


class AgentProtocol(Protocol):
    """The used part of an agent's connection: an asyncio protocol that can close."""

    def close(self) -> None:
        """Close the connection in order. It may linger for a moment."""

    def abort(self) -> None:
        """Drop the connection now."""


class State(enum.Enum):
    WAITING = enum.auto()
    PARKED = enum.auto()
    BEGUN = enum.auto()
    SLOW = enum.auto()
    IN = enum.auto()
    GONE = enum.auto()


WAITING, PARKED, BEGUN, SLOW, IN, GONE = State


class Guest:
    """One connection. peer: its address. Its protocol calls `call_accepted`, `calls_ended` and `connection_ended`."""

    __slots__ = ("_door", "begun_s", "due_s", "peer", "protocol", "sock", "state", "task", "was_in")

    def __init__(self, door: AgentDoor, sock: socket.socket, peer: Any) -> None:
        self._door = door
        self.sock = sock
        self.peer = peer
        self.state = WAITING
        self.due_s = self.begun_s = 0.0
        self.was_in = False
        self.protocol: AgentProtocol | None = None
        self.task: asyncio.Task[None] | None = None

    def call_accepted(self) -> None:
        """A call of this connection's was accepted. Again is no error."""
        self._door._let_in(self)

    def calls_ended(self) -> None:
        """This connection has no accepted call any longer."""
        self._door._let_out(self)

    def connection_ended(self) -> None:
        """The connection is closed."""
        self._door._left(self)


class AgentDoor:
    """Admits agents.

    Args:
        protocol: makes the protocol of one connection, which calls its Guest.
        tls: the port's context, None for plaintext.
        max_connections: the limit of the port.
        strangers: the limit of begun connections without an accepted call.
        reason_of: describes a failed handshake, None if it needs no log line.
        on_tls_failed: called with the peer and that description.
        call_timeout_s: seconds from the begin of a connection to its accepted call.

    Attributes:
        refused: connections closed before their call, by reason: `queue`, `connections`, `strangers`, `no_call`.
    """

    def __init__(
        self,
        *,
        protocol: Callable[[Guest], Any],
        tls: ssl.SSLContext | None,
        max_connections: int,
        strangers: int,
        reason_of: Callable[[BaseException], str | None],
        on_tls_failed: Callable[[Any, str], None],
        call_timeout_s: float = 10.0,
    ) -> None:
        self._protocol = protocol
        self._tls = tls
        self._max_connections = max_connections
        self._max_strangers = strangers
        self._slots = min(SLOTS, strangers)
        self._reason_of = reason_of
        self._on_tls_failed = on_tls_failed
        self._call_timeout_s = call_timeout_s
        self._loop = asyncio.get_running_loop()
        self._acceptor: Acceptor | None = None
        self._queue: deque[Guest] = deque()
        self._spoken: deque[Guest] = deque()  # those that were parked, and came before those in the queue
        self._by_state: dict[State, dict[Guest, None]] = {state: {} for state in (PARKED, BEGUN, SLOW)}  # oldest first
        self._inside = 0
        self._pump_due: asyncio.Handle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._tick_at_s = 0.0
        self._pace = FIRST_PACE
        self._done = 0  # slots given back since the last tick
        self._cpu_s = 0.0  # of the loop's thread, at the last tick
        self._was_busy = False
        self._closed = False
        self.refused: Counter[str] = Counter()
        waiting = "too many agents are waiting, so new connections are closed"
        self._late = RateLimitedLog(logger, logging.WARNING, waiting)
        self._full = RateLimitedLog(logger, logging.WARNING, "too many connections from agents, so some are closed")
        self._silent = RateLimitedLog(
            logger, logging.WARNING, f"connections to the gRPC port without an accepted call for {call_timeout_s:g} s"
        )
        self._crowd = RateLimitedLog(
            logger, logging.WARNING, "too many connections to the gRPC port without a call: the oldest are closed"
        )

    def open(self, sockets: list[socket.socket]) -> int:
        """Accept on these sockets, which are the door's from now on. Returns the port."""
        self._acceptor = Acceptor(sockets, self._accepted, lambda sock: None, name="grpc")
        self._acceptor.start()
        return self._acceptor.port

    def stop(self) -> None:
        """Accept no more, and close what waits. Agents that are begun or inside stay. Again is no error."""
        self._closed = True
        if self._acceptor is not None:
            self._acceptor.close()
        if self._pump_due is not None:
            self._pump_due.cancel()
        for queue in (self._spoken, self._queue):
            while queue:
                self._drop(queue.popleft())
        for guest in list(self._by_state[PARKED]):
            self._drop(guest)
        for log in (self._late, self._full, self._silent, self._crowd):
            log.close()

    async def close(self) -> None:
        """Close all that no call has been accepted of. Cancelled: all of it is closed but not waited for."""
        self.stop()
        tasks = []
        for state in (BEGUN, SLOW):
            for guest in list(self._by_state[state]):
                if guest.task is not None:
                    tasks.append(guest.task)
                self._drop(guest)
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def waiting(self) -> int:
        """Connections that the hub could begin with."""
        return len(self._queue) + len(self._spoken)

    @property
    def refused_descriptors(self) -> int:
        """Connections closed because no descriptor was left."""
        return self._acceptor.refused if self._acceptor is not None else 0

    @property
    def open_connections(self) -> int:
        """Connections of the port, in whichever state."""
        return self.waiting + sum(map(len, self._by_state.values())) + self._inside

    # -- who comes

    def _accepted(self, sock: socket.socket, peer: Any) -> None:
        sock.setblocking(False)
        waiting = self.waiting
        if waiting > max(SLOTS, MAX_WAIT_S * self._pace):  # D4
            sock.close()
            self.refused["queue"] += 1
            self._late(waiting=waiting, a_second=round(self._pace))
            return
        if self.open_connections >= self._max_connections and not self._make_room():
            sock.close()
            self.refused["connections"] += 1
            self._full(limit=self._max_connections)
            return
        self._queue.append(Guest(self, sock, peer))
        self._pump_soon()

    def _make_room(self) -> bool:  # D2
        """Close the connection that is least likely to be an agent's. Returns whether there is one."""
        guest = next(iter(self._by_state[PARKED]), None)
        return self._make_way(guest) if guest is not None else self._end_slow()

    def _end_slow(self) -> bool:
        guest = next(iter(self._by_state[SLOW]), None)
        return guest is not None and self._loop.time() - guest.begun_s > PATIENCE_S and self._make_way(guest)

    def _make_way(self, guest: Guest) -> bool:
        self.refused["strangers"] += 1
        self._crowd(peer=guest.peer, limit=self._max_strangers)
        self._drop(guest, at_once=True)
        return True

    def _pump_soon(self) -> None:
        if self._pump_due is None and not self._closed:
            self._pump_due = self._loop.call_soon(self._pump)
        if self._tick_timer is None:
            self._tick_at_s = self._loop.time() + TICK_S
            self._tick_timer = self._loop.call_at(self._tick_at_s, self._tick)

    def _pump(self) -> None:
        """Look at those who wait, the oldest first, and begin with as many as may be."""
        self._pump_due = None
        begun = looks = 0
        while self.waiting and begun < PER_TURN and looks < LOOKS_PER_TURN and self._has_slot:  # D1
            looks += 1
            if len(self._by_state[BEGUN]) + len(self._by_state[SLOW]) >= self._max_strangers and not self._end_slow():
                return  # until one is in or gone
            guest = (self._spoken or self._queue).popleft()
            if guest.due_s == 0.0:
                guest.due_s = self._loop.time() + self._call_timeout_s  # D3
            ready = _ready(guest.sock)
            if ready is None:
                self._drop(guest)
            elif ready or not self._park(guest):
                self._begin(guest)
                begun += 1
        if self.waiting and self._has_slot:
            self._pump_soon()

    @property
    def _has_slot(self) -> bool:
        return len(self._by_state[BEGUN]) < self._slots

    def _park(self, guest: Guest) -> bool:
        """Wait for its first byte. Returns whether this loop can."""
        try:
            self._loop.add_reader(guest.sock, self._spoke, guest)
        except NotImplementedError:  # Windows' proactor
            return False
        self._move(guest, PARKED)
        return True

    def _spoke(self, guest: Guest) -> None:
        self._loop.remove_reader(guest.sock)
        self._move(guest, WAITING)
        self._spoken.append(guest)
        self._pump_soon()

    def _begin(self, guest: Guest) -> None:
        guest.begun_s = self._loop.time()
        guest.due_s = max(guest.due_s, guest.begun_s + LOAN_S)  # D3: it may have waited since its first byte
        self._move(guest, BEGUN)
        guest.task = self._loop.create_task(self._connect(guest))
        guest.task.add_done_callback(lambda task: self._connected(guest, task))

    async def _connect(self, guest: Guest) -> None:
        tls_options: dict[str, Any] = {}
        if self._tls is not None:
            tls_options = {"ssl": self._tls, "ssl_handshake_timeout": 2 * self._call_timeout_s}  # the door is first
        protocol = guest.protocol = self._protocol(guest)
        await self._loop.connect_accepted_socket(lambda: protocol, guest.sock, **tls_options)

    def _connected(self, guest: Guest, task: asyncio.Task[None]) -> None:
        guest.task = None
        if guest.protocol is None:  # it could not be made
            guest.sock.close()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            reason = None if guest.state is GONE else self._reason_of(error)
            if reason is not None:
                self._on_tls_failed(guest.peer, reason)
            self._left(guest)

    # -- what becomes of them

    def _let_in(self, guest: Guest) -> None:
        if guest.state in (BEGUN, SLOW):
            self._move(guest, IN)
            self._inside += 1

    def _let_out(self, guest: Guest) -> None:
        """Treat an agent without calls like one that has used up its time (`begun_s`), so it blocks no others."""
        if guest.state is IN:
            self._inside -= 1
            guest.due_s = math.inf  # its protocol closes it
            guest.was_in = True
            self._move(guest, SLOW)

    def _left(self, guest: Guest) -> None:
        if guest.state is IN:
            self._inside -= 1
        self._move(guest, GONE)

    def _move(self, guest: Guest, state: State) -> None:
        """The one place where a guest's state changes."""
        before, guest.state = guest.state, state
        found = self._by_state.get(before)
        if found is not None:
            del found[guest]
        entered = self._by_state.get(state)
        if entered is not None:
            entered[guest] = None
        if state in (IN, GONE) and before in (BEGUN, SLOW) and not guest.was_in:
            self._done += 1
        if before in (BEGUN, SLOW) and self.waiting:
            self._pump_soon()

    def _drop(self, guest: Guest, at_once: bool = False) -> None:
        """Close a connection that no call was accepted of. at_once: without a word to its peer."""
        state = guest.state
        self._move(guest, GONE)
        if state is PARKED:
            self._loop.remove_reader(guest.sock)
        if guest.task is not None:
            hang_up(guest.sock)
        elif guest.protocol is not None:
            (guest.protocol.abort if at_once else guest.protocol.close)()
        else:
            guest.sock.close()

    # -- time

    def _tick(self) -> None:
        now_s = self._loop.time()
        late_s = max(0.0, now_s - self._tick_at_s - TICK_S)
        if late_s:  # the process was stopped, so read the waiting bytes first
            for state in (PARKED, BEGUN, SLOW):
                for guest in self._by_state[state]:
                    guest.due_s += late_s
                    guest.begun_s += late_s
        for state in (PARKED, BEGUN, SLOW):
            for guest in [one for one in self._by_state[state] if one.due_s <= now_s]:
                self.refused["no_call"] += 1
                self._silent(peer=guest.peer)
                self._drop(guest)
        busy = bool(self.waiting)
        if busy:
            # By the hub's own time: how long agents take is no reason to turn others away.
            spent_s = time.thread_time() - self._cpu_s
            if self._was_busy and spent_s > 0 and (self._done >= _SAMPLE or spent_s > TICK_S / 2):
                measured = self._done / spent_s
                self._pace = max(MIN_PACE, self._pace + _SMOOTHING * (measured - self._pace))
            for guest in [one for one in self._by_state[BEGUN] if one.begun_s + LOAN_S <= now_s]:
                if not _ready(guest.sock):  # else it waits for us
                    self._move(guest, SLOW)
            self._pump_soon()  # the oldest SLOW may have become old enough
        self._was_busy = busy
        self._done = 0
        self._cpu_s = time.thread_time()
        self._tick_timer = None
        if busy or any(self._by_state.values()):
            self._tick_at_s = now_s + TICK_S
            self._tick_timer = self._loop.call_at(self._tick_at_s, self._tick)


def _ready(sock: socket.socket) -> bool | None:
    """Whether the peer has sent anything, None if it has left."""
    if not _LEFT:
        return _has_data(sock)
    with contextlib.suppress(OSError, ValueError):  # the latter for one that is closed
        poll = select.poll()
        poll.register(sock, select.POLLIN | _LEFT)
        found = poll.poll(0)
        if not found:
            return False
        return None if found[0][1] & _LEFT else True
    return None


def _has_data(sock: socket.socket) -> bool | None:
    try:
        return True if sock.recv(1, socket.MSG_PEEK) else None
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return None
