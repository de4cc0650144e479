"""The agent's end of a connection. The proxy reports an outcome, and the table of endings selects the hub's packet.

*Outcome*: the proxy's `outcome`. The proxy calls it before it closes its transport, so before the carrier closes here.
*Abort*: this side gives up (a target too slow, the end of a drain). It aborts the carrier. The proxy loses its client
and still reports the stage. *Outcome timeout*: the proxy did not report in time.
"""

from __future__ import annotations

from typing import Protocol

from ..outcome import Kind, Stage
from ..runtime.deadlines import Deadline
from ..tunnel.packet import CLOSE, ERROR
from .connection import AGENT_TRANSITIONS, ConnectionOwner, Event, State, TunnelConnection
from .endings import Ending, choose_ending

__all__ = ["AgentConnection", "AgentConnectionOwner"]

OPEN, ENDING, FAILING, CLOSED = State  # looked up once: until Python 3.12 an enum's attribute costs a call


class AgentConnectionOwner(ConnectionOwner, Protocol):
    """The part of the manager that its connections use."""

    @property
    def outcome_timeout_s(self) -> float: ...
    def connection_failed_inbound(self) -> None: ...
    def connection_closed(self, connection: AgentConnection, ending: Ending | None) -> None: ...


class AgentConnection(TunnelConnection):
    """The agent's role. Each subclass is a carrier. It makes a transport and calls `attach` with it."""

    role = "agent"
    mode = ""
    """The carrier's name, `memory` or `uds`."""

    def __init__(self, conn_id: int, owner: AgentConnectionOwner) -> None:
        TunnelConnection.__init__(self, conn_id, owner, AGENT_TRANSITIONS)
        self.outcome: tuple[Kind, Stage] | None = None
        self.strayed = False
        """DATA arrived after the proxy's outcome, because the hub doesn't know yet that the connection has ended."""
        self._owner = owner
        self._owes_answer = False  # aborted with a request that the proxy may not have seen
        self._outcome_deadline: Deadline | None = None

    # -- what carriers differ in

    def proxy_has_it(self) -> bool:
        """Whether a protocol of the proxy's is there to report an outcome."""
        return True

    def stop_sending(self) -> None:
        """The proxy reads no more: what the carrier itself still holds for it may go."""

    # -- from the hub

    def cancelled(self, reason: str) -> None:
        """Drop everything of this connection at once, without a packet, after the loss of its client or session."""
        if self._move(Event.CANCELLED) is not CLOSED:
            self.reason = reason
            self._end(None)

    def inbound_overfull(self, reason: str) -> None:
        self._owner.connection_failed_inbound()
        self.abort(reason, owes_answer=True)

    def abort(self, reason: str, *, owes_answer: bool = False) -> None:
        """Give up on the connection. The ending that the hub gets depends on the stage that the proxy reports.

        reason: text that the client may see.
        owes_answer: a request is outstanding, even if the proxy hasn't seen it.
        """
        before = self._move(Event.ABORT)
        if before is not OPEN and before is not ENDING:
            return
        self.reason = reason
        if before is ENDING:  # what the carrier still holds is lost, so the outcome is no longer true
            self._end(self._ending_of(None))
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
            self._end(self._ending_of(None))

    # -- from the proxy

    def outcome_received(self, kind: Kind, stage: Stage) -> None:
        """Take the proxy's report of how the connection ended. Only the first report counts."""
        before = self._move(Event.OUTCOME)
        if before is OPEN:
            self.outcome = kind, stage
            self.inbound.stop()
            self.stop_sending()
            if self.eof_seen:  # no more bytes can arrive, so there is no wait
                self.carrier.close()
        elif before is FAILING:
            self.outcome = kind, stage
            self._end(self._ending_when_aborted(stage))

    def _ending_when_aborted(self, stage: Stage) -> Ending:
        if self.sent_bytes == 0 and (self._owes_answer or stage is not Stage.IDLE):
            return self._ending_of((Kind.FAILED, Stage.HEAD))  # whatever the proxy wrote, its client has none of it
        if stage in (Stage.IDLE, Stage.HEAD) and self._reading_paused:
            return self._ending_of(None)  # its end was lost
        if stage is Stage.IDLE and self._owes_answer:
            return self._ending_of((Kind.FAILED, Stage.HEAD))
        return self._ending_of((Kind.FAILED, stage))

    def _ending_of(self, outcome: tuple[Kind, Stage] | None) -> Ending:
        return choose_ending(outcome, response_bytes=self.sent_bytes, hub_closes=self._owner.peer_closes)

    # -- from the carrier

    def eof_received(self) -> bool:
        self.eof_seen = True
        if self.state is not OPEN or self.peer_closed():
            return False  # the transport closes itself, and `connection_lost` ends it
        if self._owner.peer_closes and self._outbound is not None:
            self._close_sent = True
            self._outbound.finish(CLOSE)
        return True  # a half-close: the hub's bytes still go to the proxy

    def connection_lost(self, exc: Exception | None) -> None:
        before = self._move(Event.CARRIER_LOST)
        if before is not OPEN and before is not ENDING:
            return
        if self.outcome is None:
            self.reason = self.reason or "the agent's proxy left without an outcome"
        self._end(self._ending_of(self.outcome))

    # -- the end

    def close_safely(self) -> None:
        self._end(self._ending_of(None))

    def _end(self, ending: Ending | None) -> None:
        """ending: None if the hub gets no packet and expects nothing more."""
        if self._outcome_deadline is not None:
            self._outcome_deadline.cancel()
        outbound = self._release()
        text = self.reason or "the agent could not complete the response"
        if outbound is None:
            return
        if ending is None:
            outbound.abort()
        elif not self._close_sent:
            outbound.finish(ending.code, text if ending.code == ERROR else "")  # I1, I2
        elif ending.code == ERROR:
            self._owner.late_error(self.conn_id, text)
        self._owner.connection_closed(self, ending)
