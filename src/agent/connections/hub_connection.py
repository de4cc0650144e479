"""The hub's end of a connection. The hub opens it, and the agent's last bytes reach the proxy before the end does.

With `close` each direction ends separately. Without `close`, the connection ends with its first direction.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import TargetError
from ..tunnel.packet import CLOSE, ERROR
from .connection import HUB_TRANSITIONS, ConnectionOwner, Event, State, TunnelConnection

__all__ = ["CLIENT_GONE", "HubConnection", "HubConnectionOwner", "ProxyEnd"]

OPEN, ENDING, _, CLOSED = State

CLIENT_GONE = "the client closed the connection"
"""The text of the ERROR for a connection whose proxy, or client, has left."""


class ProxyEnd(Protocol):
    """The part of the carrier's other end that is used here. The hub's proxy has that end."""

    def set_extra_info(self, name: str, value: object, /) -> None: ...


class HubConnectionOwner(ConnectionOwner, Protocol):
    """The part of the session that its connections use."""

    def connection_caught_up(self, connection: HubConnection) -> None: ...
    def connection_closed(self, connection: HubConnection) -> None: ...


class HubConnection(TunnelConnection):
    """The hub's role. proxy_end: gets the extra info `failure`, a TargetError, where a response isn't whole."""

    role = "hub"

    def __init__(self, conn_id: int, owner: HubConnectionOwner, proxy_end: ProxyEnd) -> None:
        super().__init__(conn_id, owner, HUB_TRANSITIONS)
        self._owner = owner
        self._proxy_end = proxy_end
        self.probed_at_bytes = 0
        """`received_bytes` when its turn to be probed last came."""

    @property
    def is_announced(self) -> bool:
        """Whether the agent has been sent a packet of it, or needs none."""
        outbound = self._outbound
        return outbound is None or (self.sent_bytes > 0 and not outbound.queued_bytes)

    # -- from the agent

    def peer_ended(self, failure: TargetError) -> None:
        """Give the proxy all bytes that arrived, then close its upstream, because the agent finished or is lost.

        A whole response may precede the tunnel's end, for example when an agent drains.

        failure: the proxy's error if the response is not whole.
        """
        if self._move(Event.PEER_ENDED) is CLOSED:
            return
        if not self.peer_done:
            self._proxy_end.set_extra_info("failure", failure)
        outbound, self._outbound = self._outbound, None
        if outbound is not None:
            outbound.abort()
        self._close_window()
        self.inbound.close()  # I1

    def finish_inbound(self) -> None:
        if self._close_sent:
            self._done()
        else:
            self.inbound.finish()

    def inbound_overfull(self, reason: str) -> None:
        self.abort(reason)

    # -- from the carrier

    def eof_received(self) -> bool:
        # Only after a 101. The base protocol has no half-close, so the connection ends with the client's end.
        # Otherwise an agent whose target had ended too would wait for the client forever, and this hub for the agent.
        self.eof_seen = True
        if self.state is not OPEN:
            return self.state is ENDING  # the carrier closes behind what waits
        if self._owner.peer_closes and self._outbound is not None:
            self._close_sent = True
            self._outbound.finish(CLOSE)
            if not self.peer_done:
                return True
        self._done()
        return True

    def _done(self) -> None:
        """No more bytes go in either direction: the carrier closes behind what waits."""
        if self._move(Event.DONE) is OPEN:
            self._close_window()
            self.inbound.close()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.inbound.paused:  # so nothing waits there
            self._owner.connection_caught_up(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the agent forget this connection, because the proxy finished with it or its client closed."""
        if self._move(Event.CARRIER_LOST) is CLOSED:
            return
        outbound = self._release()
        if outbound is not None:
            if exc is None and not self._close_sent:
                if self.peer_done:
                    outbound.finish(CLOSE)
                else:
                    outbound.finish(ERROR, CLIENT_GONE)
            elif exc is not None or not self.peer_done:
                outbound.abort()
                self._owner.late_error(self.conn_id, CLIENT_GONE)
        self._owner.connection_closed(self)

    # -- the end

    def abort(self, reason: str) -> None:
        """Close now, and drop the bytes that the client has not taken. reason: the text of the agent's ERROR."""
        if self._move(Event.ABORT) is not CLOSED:
            self.reason = reason
            self._end_by_error()

    def close_safely(self) -> None:
        self._end_by_error()

    def _end_by_error(self) -> None:
        outbound = self._release()
        if outbound is not None:  # else the agent has ended it
            outbound.abort()
            self._owner.late_error(self.conn_id, self.reason)
        self._owner.connection_closed(self)
