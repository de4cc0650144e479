"""One connection of a tunnel, at either end: its bytes between the packets and the carrier, and its one end.

    peer's packets ──► inbound ──► carrier's transport ══► the proxy's protocol
    peer's packets ◄── outbound ◄── data_received ◄══════╝

The connection is the protocol on the tunnel's end of the carrier. The carrier is a pipe or a Unix socket. Credit,
back-pressure, CLOSE and the end exist once, here. A role defines the order in which things end. Its transitions are a
table:

    agent      outcome              carrier lost                  hub       peer ended, or done     carrier lost
      OPEN ───────────► ENDING ─────────────────► CLOSED          OPEN ─────────────────► ENDING ──────────────► CLOSED
       │ │ carrier lost                             ▲ ▲            │ carrier lost, abort     │ abort               ▲ ▲
       │ └──────────────────────────────────────────┘ │            └─────────────────────────┴─────────────────────┘ │
       │ abort            outcome, or outcome timeout │            └───────────────────────────────────────────────────┘
       └────────► FAILING ────────────────────────────┘
      any ── cancelled ─────────────────────────► CLOSED

ENDING has the same meaning at both ends. The side that responds has finished, and its last bytes are still in transit.
At the agent, the proxy has finished, and its bytes go to the tunnel. At the hub, the agent has finished, and its bytes
go to the proxy.

Invariants. I1: a response byte that left before the end was known arrives before the end does. I2: the peer gets at
most one ending. I3: after CLOSED nothing reaches the tunnel or the carrier. I4: an event without an entry is our fault,
so the connection logs it and closes safely.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Final, Protocol

from .inbound import Inbound

__all__ = ["AGENT_TRANSITIONS", "HUB_TRANSITIONS", "ConnectionOwner", "Event", "Outbound", "State", "TunnelConnection"]

logger = logging.getLogger(__name__)


class State(enum.Enum):
    __hash__ = object.__hash__  # the tables below are indexed by both, at C's speed

    OPEN = "open"
    ENDING = "ending"
    FAILING = "failing"
    CLOSED = "closed"


class Event(enum.Enum):
    __hash__ = object.__hash__

    OUTCOME = "outcome"
    """The agent's proxy reports how the connection ended, before it closes its transport."""
    OUTCOME_TIMEOUT = "outcome timeout"
    """The agent's proxy reported nothing in time after ABORT."""
    CANCELLED = "cancelled"
    """At the agent: the hub's client closed, or the session ended. The bytes in transit have no reader."""
    PEER_ENDED = "peer ended"
    """At the hub: the agent sent ERROR, or the session is lost. The bytes that arrived are still useful."""
    DONE = "done"
    """At the hub: no more bytes go in either direction."""
    ABORT = "abort"
    """This side gives up, after a peer that is too slow or at the end of a drain."""
    CARRIER_LOST = "carrier lost"


Transitions = dict[tuple[State, Event], State]

OPEN, ENDING, FAILING, CLOSED = State  # looked up once: until Python 3.12 an enum's attribute costs a call

AGENT_TRANSITIONS: Final[Transitions] = {
    (State.OPEN, Event.OUTCOME): State.ENDING,
    (State.OPEN, Event.CARRIER_LOST): State.CLOSED,  # without an outcome: the safe row of the table of endings
    (State.OPEN, Event.ABORT): State.FAILING,
    (State.OPEN, Event.CANCELLED): State.CLOSED,
    (State.ENDING, Event.OUTCOME): State.ENDING,  # the first outcome counts
    (State.ENDING, Event.CARRIER_LOST): State.CLOSED,
    (State.ENDING, Event.ABORT): State.CLOSED,
    (State.ENDING, Event.CANCELLED): State.CLOSED,
    (State.FAILING, Event.OUTCOME): State.CLOSED,
    (State.FAILING, Event.CARRIER_LOST): State.FAILING,  # after our abort, before the outcome
    (State.FAILING, Event.ABORT): State.FAILING,
    (State.FAILING, Event.OUTCOME_TIMEOUT): State.CLOSED,
    (State.FAILING, Event.CANCELLED): State.CLOSED,
    (State.CLOSED, Event.OUTCOME): State.CLOSED,
    (State.CLOSED, Event.OUTCOME_TIMEOUT): State.CLOSED,
    (State.CLOSED, Event.CARRIER_LOST): State.CLOSED,
    (State.CLOSED, Event.ABORT): State.CLOSED,
    (State.CLOSED, Event.CANCELLED): State.CLOSED,
}

HUB_TRANSITIONS: Final[Transitions] = {
    (State.OPEN, Event.PEER_ENDED): State.ENDING,
    (State.OPEN, Event.DONE): State.ENDING,
    (State.OPEN, Event.CARRIER_LOST): State.CLOSED,
    (State.OPEN, Event.ABORT): State.CLOSED,
    (State.ENDING, Event.PEER_ENDED): State.ENDING,
    (State.ENDING, Event.CARRIER_LOST): State.CLOSED,
    (State.ENDING, Event.ABORT): State.CLOSED,
    (State.CLOSED, Event.PEER_ENDED): State.CLOSED,
    (State.CLOSED, Event.CARRIER_LOST): State.CLOSED,
    (State.CLOSED, Event.ABORT): State.CLOSED,
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
    """The credit that the peer has on this connection, where credit is counted (wire.md, "window")."""

    def arrived(self, size_bytes: int, /) -> bool: ...
    def unread(self, size_bytes: int, /) -> None: ...
    def close(self) -> None: ...


class Carrier(Protocol):
    """The part of the transport at the tunnel's end of the carrier that a connection uses."""

    def write(self, data: bytes | memoryview, /) -> None: ...
    def write_eof(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


class ConnectionOwner(Protocol):
    """The part of its maker that a connection uses, in either role."""

    @property
    def peer_closes(self) -> bool: ...
    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound: ...
    def receive_window(self, conn_id: int) -> Window | None: ...
    def late_error(self, conn_id: int, text: str) -> None: ...


class TunnelConnection:
    """The protocol on the tunnel's end of one carrier. `attach` gives it the carrier.

    A role, `AgentConnection` or `HubConnection`, gives the transitions and has what happens at the end.
    """

    accepts_views = True
    role = ""
    """Which end of the tunnel it is: `agent` or `hub`. It is also the fault of an event without an entry."""

    carrier: Carrier
    inbound: Inbound

    def __init__(self, conn_id: int, owner: ConnectionOwner, transitions: Transitions) -> None:
        self.conn_id = conn_id
        self._transitions = transitions
        self.state = OPEN
        self.reason = ""
        """Why the connection failed, as text that the client may see. Empty without a failure."""
        self.sent_bytes = 0
        """Bytes of the carrier that went to the tunnel."""
        self.received_bytes = 0
        """Bytes of the tunnel that this connection took."""
        self.probe_at_s = 0.0
        """Loop time of the next probe, set by `Prober`."""
        self.peer_done = False
        """The peer has sent CLOSE: DATA after it is a mistake."""
        self.eof_seen = False
        """The proxy sends no more, which may be a half-close."""
        self._close_sent = False
        self._reading_paused = False
        self._outbound: Outbound | None = owner.outbound(conn_id, self._pause_reading, self._resume_reading)
        self._window = owner.receive_window(conn_id)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The carrier is up. `attach` has run before."""

    def attach(self, carrier: Carrier, inbound: Inbound) -> None:
        self.carrier = carrier
        self.inbound = inbound

    # -- what differs between carriers and roles. A cdef class can't be abstract, so a missing override raises.

    def abort_carrier(self) -> None:
        """Close both ends now, dropping what is under way. Again is no error."""
        self.carrier.abort()

    def peer_closed(self) -> bool:
        """Whether the proxy's end is closed in both directions. The caller has seen its end of stream."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        raise NotImplementedError

    def finish_inbound(self) -> None:
        """Send the peer's end of stream to the proxy, after the bytes that wait."""
        self.inbound.finish()

    def inbound_overfull(self, reason: str) -> None:
        """`inbound` took none of a packet, since it is full. reason: text that the client may see."""
        raise NotImplementedError

    def close_safely(self) -> None:
        """Close after our fault, with the ending that breaks nothing for the peer."""
        raise NotImplementedError

    # -- from the peer

    def feed(self, data: bytes | memoryview) -> bool:
        """Hand on one DATA packet, n >= 1 bytes, immutable. The connection must be OPEN, and the peer not done.

        Returns False, and nothing was taken, where the peer had no credit for it.
        """
        size = len(data)
        if self._window is not None:
            if not self._window.arrived(size):
                return False
        elif self._outbound is not None:
            self._outbound.heard()
        self.received_bytes += size
        overfull = self.inbound.feed(data)
        if overfull:
            self.inbound_overfull(overfull)
        elif self._window is not None:
            self._return_credit()
        return True

    def _return_credit(self) -> None:
        """Count bytes as read if the carrier takes them without a pause. They fit in the carrier's own buffer."""
        if self._window is not None:
            in_carrier_bytes = self.carrier.get_write_buffer_size() if self.inbound.paused else 0
            self._window.unread(self.inbound.held_bytes + in_carrier_bytes)

    def peer_finished(self) -> None:
        """The peer sends no more for this id (CLOSE). Again is no error."""
        if self.state is OPEN and not self.peer_done:
            self.peer_done = True
            self._close_window()
            self.finish_inbound()

    # -- from the carrier: asyncio's Protocol

    def data_received(self, data: bytes | memoryview) -> None:
        outbound = self._outbound
        if outbound is None:  # I3
            return
        self.sent_bytes += len(data)
        outbound.write(data)

    def pause_writing(self) -> None:
        self.inbound.pause()

    def resume_writing(self) -> None:
        if self.state is not CLOSED:
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
        """Follow the table. Returns the state before, or CLOSED if the connection has nothing to do (I4)."""
        before = self.state
        after = self._transitions.get((before, event))
        if after is not None:
            self.state = after
            return before
        extra = {"conn_id": self.conn_id, "state": before.value, "event": event.value, "fault": self.role}
        logger.error("a connection met an event that its state does not allow, and closes", extra=extra)
        if before is not CLOSED:
            self.reason = self.reason or f"a connection failed: {event.value} while {before.value}"
            self.close_safely()
        return CLOSED

    def _release(self) -> Outbound | None:
        """Drop all held bytes and close the carrier. Returns the outbound if the peer may still get an ending."""
        self.state = CLOSED  # I3
        self._close_window()
        self.inbound.stop()
        self.abort_carrier()
        outbound, self._outbound = self._outbound, None
        return outbound

    def _close_window(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    @property
    def paused(self) -> tuple[bool, bool]:
        """Whether the carrier takes none of the peer's bytes now, and whether the tunnel takes none of the proxy's."""
        return self.inbound.paused, self._reading_paused

    @property
    def waiting_bytes(self) -> int:
        """The bytes that arrived from the peer and that the proxy has not taken."""
        return self.inbound.held_bytes + self.carrier.get_write_buffer_size()
