"""One connection of the tunnel: its bytes between the packets and the carrier, and its one end.

    hub's packets ──► inbound ──► carrier's transport ══► the proxy's protocol
    hub's packets ◄── outbound ◄── data_received ◄══════╝

The connection is the protocol on the manager's end of the carrier, whatever that is. Its life:

               word                 carrier lost
      OPEN ───────────► ENDING ─────────────────────► CLOSED     the usual way: told by the table of endings
       │ │ carrier lost, no word                        ▲ ▲
       │ └──────────────────────────────────────────────┘ │     told the safe row
       │ break                     word, or silence       │
       └───────────► FAILING ─────────────────────────────┘     we broke it off: the proxy's word says how far it was
      any ── gone ──────────────────────────────────► CLOSED     the hub's client or the session is gone: told nothing

*word*: the proxy's `outcome`, given before it closes its transport, so before the carrier's end can be seen here.
*break*: this side gives up (a target too slow, the end of a drain); the carrier is aborted and the proxy, which finds
its client gone, still says at which stage that was. *silence*: it didn't, in time.

Invariants. I1: a response byte that left the proxy before its word reaches the tunnel before the ending does. I2: the
hub is told at most one ending. I3: after CLOSED nothing reaches the tunnel or the carrier.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Final, Protocol

from ..outcome import Kind, Stage
from ..runtime.deadlines import Deadline
from ..tunnel.packet import CLOSE, ERROR
from .endings import Ending, choose_ending
from .inbound import Inbound, OverfullError

__all__ = ["Connection", "ConnectionOwner", "Outbound", "State", "Window"]


class State(enum.Enum):
    __hash__ = object.__hash__  # the table below is indexed by both, at C's speed

    OPEN = "open"
    ENDING = "ending"
    FAILING = "failing"
    CLOSED = "closed"


class Event(enum.Enum):
    __hash__ = object.__hash__

    OUTCOME = "outcome"
    LOST = "lost"
    ABORT = "abort"
    OUTCOME_TIMEOUT = "outcome timeout"
    CANCELLED = "cancelled"


OPEN, ENDING, FAILING, CLOSED = State  # looked up once: until Python 3.12 an enum's attribute costs a call
_NEXT: Final[dict[tuple[State, Event], State]] = {
    (State.OPEN, Event.OUTCOME): State.ENDING,
    (State.OPEN, Event.LOST): State.CLOSED,
    (State.OPEN, Event.ABORT): State.FAILING,
    (State.OPEN, Event.CANCELLED): State.CLOSED,
    (State.ENDING, Event.OUTCOME): State.ENDING,  # the first outcome counts
    (State.ENDING, Event.LOST): State.CLOSED,
    (State.ENDING, Event.ABORT): State.CLOSED,
    (State.ENDING, Event.CANCELLED): State.CLOSED,
    (State.FAILING, Event.OUTCOME): State.CLOSED,
    (State.FAILING, Event.LOST): State.FAILING,  # our own abort; the outcome is still to come
    (State.FAILING, Event.ABORT): State.FAILING,
    (State.FAILING, Event.OUTCOME_TIMEOUT): State.CLOSED,
    (State.FAILING, Event.CANCELLED): State.CLOSED,
    **{(State.CLOSED, event): State.CLOSED for event in Event},
}


class Outbound(Protocol):
    """The connection's place in the tunnel's scheduler, as the tunnel hands it out."""

    @property
    def queued_bytes(self) -> int: ...
    def heard(self) -> None: ...
    def write(self, data: bytes | memoryview) -> None: ...
    def finish(self, code: int | None = None, error_message: str = "") -> None: ...
    def abort(self) -> None: ...


class Window(Protocol):
    """The credit that the hub has on this connection, where credit is counted (wire.md, "window")."""

    def arrived(self, size_bytes: int, /) -> bool: ...
    def unread(self, size_bytes: int, /) -> None: ...
    def close(self) -> None: ...


class Carrier(Protocol):
    """What is used of the transport at the manager's end of the carrier."""

    def write(self, data: bytes | memoryview, /) -> None: ...
    def write_eof(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class ConnectionOwner(Protocol):
    """What a connection needs of the manager that made it."""

    @property
    def hub_closes(self) -> bool: ...
    @property
    def outcome_timeout_s(self) -> float: ...
    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound: ...
    def receive_window(self, conn_id: int) -> Window | None: ...
    def late_error(self, conn_id: int, text: str) -> None: ...
    def connection_failed_inbound(self) -> None: ...
    def connection_closed(self, connection: Connection, ending: Ending | None) -> None: ...


class Connection:
    """The protocol on the manager's end of one carrier. Subclasses make the carrier and call `attach` with it."""

    accepts_views = True
    mode = ""
    """What carries it: `memory` or `uds`."""

    carrier: Carrier
    inbound: Inbound

    def __init__(self, conn_id: int, owner: ConnectionOwner) -> None:
        self.conn_id = conn_id
        self.state = OPEN
        self.outcome: tuple[Kind, Stage] | None = None
        self.reason = ""
        """Why it ended, in words fit for the client; "" where nothing went wrong."""
        self.response_bytes = 0
        self.hub_done = False
        """The hub has sent CLOSE: DATA after it is a mistake."""
        self.strayed = False
        """DATA came after the proxy's outcome: the hub doesn't know yet that the connection is over."""
        self.probe_at_s = 0.0
        """Loop time of the next probe; kept by the manager."""
        self._owner = owner
        self._outbound = owner.outbound(conn_id, self._pause_reading, self._resume_reading)
        self._window = owner.receive_window(conn_id)
        self._reading_paused = False
        self.eof_seen = False
        """The proxy sends no more, which may be a half-close."""
        self._close_sent = False
        self._owes_answer = False  # aborted with a request that the proxy may not have seen
        self._outcome_deadline: Deadline | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The carrier is up; it was attached before."""

    def attach(self, carrier: Carrier, inbound: Inbound) -> None:
        self.carrier = carrier
        self.inbound = inbound

    # -- what carriers differ in

    def proxy_has_it(self) -> bool:
        """Whether a protocol of the proxy's is there to report an outcome."""
        return True

    def stop_sending(self) -> None:
        """The proxy reads no more: what the carrier itself still holds for it may go."""

    def abort_carrier(self) -> None:
        """Close both ends now, dropping what is under way. Again is no error."""
        self.carrier.abort()

    def peer_closed(self) -> bool:
        """Whether the proxy's end is closed in both directions; asked once its end of stream has come."""
        return False

    # -- from the hub

    def feed(self, data: bytes | memoryview) -> bool:
        """Hand on one DATA packet, n >= 1 bytes, immutable. The connection must be OPEN.

        Returns False, and nothing was taken, where the hub had no credit for it.
        """
        if self._window is None:
            self._outbound.heard()
        elif not self._window.arrived(len(data)):
            return False
        try:
            self.inbound.feed(data)
        except OverfullError as error:
            self._owner.connection_failed_inbound()
            self.abort(str(error), owes_answer=True)
            return True
        self._return_credit()
        return True

    def _return_credit(self) -> None:
        """What the carrier takes without having enough counts as read: it is no more than the carrier's own buffer."""
        if self._window is not None and self.state is OPEN:
            in_carrier_bytes = self.carrier.get_write_buffer_size() if self.inbound.paused else 0
            self._window.unread(self.inbound.held_bytes + in_carrier_bytes)

    def hub_finished(self) -> None:
        """The hub sends no more for this id (CLOSE)."""
        if self.state is OPEN and not self.hub_done:
            self.hub_done = True
            self._close_window()
            self.inbound.finish()

    def cancelled(self, reason: str) -> None:
        """The client or the session is gone: everything of this connection goes at once, and nobody is told."""
        if self._move(Event.CANCELLED) is not CLOSED:
            self.reason = reason
            self._end(None)

    def abort(self, reason: str, *, owes_answer: bool = False) -> None:
        """Give up on the connection; what the hub is told depends on how far the proxy says it was.

        reason: fit for the client's eyes. owes_answer: a request is outstanding, even if the proxy hasn't seen it.
        """
        before = self._move(Event.ABORT)
        if before in (FAILING, CLOSED):
            return
        self.reason = reason
        if before is ENDING:  # what the carrier still holds is lost, so the outcome is no longer true
            self._end(choose_ending(None, response_bytes=self.response_bytes, hub_closes=self._owner.hub_closes))
            return
        self._owes_answer = owes_answer or self.inbound.held_bytes > 0
        self.inbound.stop()
        self.abort_carrier()
        if not self.proxy_has_it():
            self.outcome_timeout()
        else:
            self._outcome_deadline = Deadline(self._owner.outcome_timeout_s, self.outcome_timeout)

    def outcome_timeout(self) -> None:
        """The proxy reported no outcome in time."""
        if self._move(Event.OUTCOME_TIMEOUT) is FAILING:
            self._end(choose_ending(None, response_bytes=self.response_bytes, hub_closes=self._owner.hub_closes))

    # -- from the proxy

    def outcome_received(self, kind: Kind, stage: Stage) -> None:
        """The proxy reports how the connection ended; the first report counts."""
        before = self._move(Event.OUTCOME)
        if before is OPEN:
            self.outcome = kind, stage
            self.inbound.stop()
            self.stop_sending()
            if self.eof_seen:  # nothing more can come that would have to be waited for
                self.carrier.close()
        elif before is FAILING:
            self.outcome = kind, stage
            self._end(self._ending_when_aborted(stage))

    def _ending_when_aborted(self, stage: Stage) -> Ending:
        hub_closes = self._owner.hub_closes
        if self.response_bytes == 0 and (self._owes_answer or stage is not Stage.IDLE):
            outcome = Kind.FAILED, Stage.HEAD  # whatever the proxy wrote, its client has none of it
        elif stage in (Stage.IDLE, Stage.HEAD) and self._reading_paused:
            return choose_ending(None, response_bytes=self.response_bytes, hub_closes=hub_closes)  # its end was lost
        elif stage is Stage.IDLE and self._owes_answer:
            outcome = Kind.FAILED, Stage.HEAD
        else:
            outcome = Kind.FAILED, stage
        return choose_ending(outcome, response_bytes=self.response_bytes, hub_closes=hub_closes)

    # -- from the carrier: asyncio's Protocol

    def data_received(self, data: bytes | memoryview) -> None:
        if self.state is CLOSED:  # I3
            return
        self.response_bytes += len(data)
        self._outbound.write(data)

    def eof_received(self) -> bool:
        self.eof_seen = True
        if self.state is not OPEN or self.peer_closed():
            return False  # the transport closes itself, and `connection_lost` ends it
        if self._owner.hub_closes:
            self._close_sent = True
            self._outbound.finish(CLOSE)
        return True  # a half-close: the hub's bytes still go to the proxy

    def connection_lost(self, exc: Exception | None) -> None:
        before = self._move(Event.LOST)
        if before in (FAILING, CLOSED):
            return
        if self.outcome is None:
            self.reason = self.reason or "the agent's proxy left without an outcome"
        self._end(choose_ending(self.outcome, response_bytes=self.response_bytes, hub_closes=self._owner.hub_closes))

    def pause_writing(self) -> None:
        self.inbound.pause()

    def resume_writing(self) -> None:
        if self.state is OPEN:
            self.inbound.resume()
            self._return_credit()

    # -- from the tunnel's scheduler

    def _pause_reading(self) -> None:
        self._reading_paused = True
        if self.state is not CLOSED:
            self.carrier.pause_reading()

    def _resume_reading(self) -> None:
        self._reading_paused = False
        if self.state is not CLOSED:
            self.carrier.resume_reading()

    # -- the end

    def _move(self, event: Event) -> State:
        """Go where the table says; returns the state before. What has no entry is a fault of ours: closed, and said."""
        before = self.state
        after = _NEXT.get((before, event))
        if after is None:
            self.state = CLOSED
            raise RuntimeError(f"connection {self.conn_id}: {event} can't happen while {before}")
        self.state = after
        return before

    def _end(self, ending: Ending | None) -> None:
        """ending: None where the hub is told nothing and wants nothing more."""
        self.state = CLOSED  # I3
        if self._outcome_deadline is not None:
            self._outcome_deadline.cancel()
        self._close_window()
        self.inbound.stop()
        self.abort_carrier()
        text = self.reason or "the agent could not complete the response"
        if ending is None:
            self._outbound.abort()
        elif not self._close_sent:
            self._outbound.finish(ending.code, text if ending.code == ERROR else "")  # I1, I2
        elif ending.code == ERROR:
            self._owner.late_error(self.conn_id, text)
        self._owner.connection_closed(self, ending)

    def _close_window(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    @property
    def paused(self) -> tuple[bool, bool]:
        """Whether the carrier takes none of the hub's bytes now, and whether the tunnel takes none of the proxy's."""
        return self.inbound.paused, self._reading_paused

    @property
    def outbound_bytes(self) -> int:
        """What the tunnel still holds of this connection."""
        return self._outbound.queued_bytes
