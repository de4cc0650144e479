"""One client of a fixed port: its bytes go to one target, by a CONNECT that the proxy itself writes.

    accepted ──► CONNECT in flight ──200──► tunnel ──► both ends ──► closed
                       └──► refused, failed, or the tunnel is cut ──► one log line, reset

The client speaks no HTTP, so a reset is all that it gets of a failure. Bytes that it sends before the tunnel is open
wait in a bounded `Backlog`. The client may end its direction before that.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol, cast

from ..errors import Party
from ..outcome import Kind, Outcome, Stage
from .backlog import Backlog
from .client_side import ClientSide, ClientTunnel
from .clock import NEVER, Stall
from .context import ConnectionOwner
from .forwarded_fields import receive
from .headers import Fields
from .heads import Response, parse_request
from .liveness import is_gone, probe_when_idle, reset_when_closed
from .metrics import RequestMetrics
from .origin import ClientOrigin
from .pieces import Piece
from .relay import Exchange

__all__ = ["FixedPortConnection", "FixedPortOwner"]

REASON_BYTES = 1024
"""The part of an agent's refusal that is read. Its reason is one line."""

logger = logging.getLogger(__name__)


class FixedPortOwner(ConnectionOwner, Protocol):
    """The port, as its connections see it.

    name: of the port in the log. refused_tunnels: counts connections that reached no target.
    """

    name: str
    refused_tunnels: int


class FixedPortConnection(ClientSide):
    """The protocol of the client's transport, and the client side of its only exchange.

    owner: the port. target: HOST:PORT. carrier, origin: as in `Proxy.connection`.
    """

    accepts_views = True

    def __init__(
        self, owner: FixedPortOwner, target: bytes, conn_id: int, outcome: Outcome, carrier: str, origin: ClientOrigin
    ) -> None:
        self.conn_id = conn_id
        self.request_id = owner.request_ids.next()
        self.writing_paused = self.is_delivering = self.may_have_left = self.response_begun = False
        self.owner = owner
        self.carrier = carrier
        self.metrics: RequestMetrics | None = owner.metrics.get(carrier)
        self.requests_left = 0
        self._outcome: Outcome | None = outcome
        self._target = target
        self._origin = origin
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._is_tls = False
        self._exchange: Exchange | None = None  # until the tunnel is open
        self._tunnel: ClientTunnel | None = None
        self._backlog = Backlog(owner.limits.pipelined_bytes)  # what comes before the tunnel is open
        self._half_closed = False
        self._closing = False
        self._deadline = NEVER  # for a close
        self._stall = Stall()
        self._refusal: bytearray | None = None  # the agent's, as far as it has come
        self._refused_status = 0
        self._is_explained = False  # a log line has the agent's reason

    def log_fields(self) -> dict[str, object]:
        target = self._target.decode("ascii")
        where = {"listener": self.owner.name, "cluster": self.owner.cluster, "connect_target": target}
        return {**super().log_fields(), **where}

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        owner = self.owner
        self._transport = self._backlog.transport = cast(asyncio.Transport, transport)
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        high = owner.limits.buffer_bytes
        self._transport.set_write_buffer_limits(high=high, low=high // 4)
        if not owner.opened(self):
            self._turn_away()
            return
        head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (self._target, self._target)
        request, target = parse_request(head, owner.limits, serves_connect=True)
        receive(request, self._origin)
        self._exchange = exchange = Exchange(self, owner, self.metrics, request, target)
        owner.requests_in_flight += 1
        exchange.start()

    def data_received(self, data: Piece) -> None:
        if self._tunnel is not None:
            self._tunnel.client_bytes(data)
        elif not self._closing:
            self._backlog.hold(data)

    def eof_received(self) -> bool:
        self._half_closed = True
        if self._tunnel is not None:
            return self._tunnel.client_eof() and not self._is_tls
        return self._exchange is not None and not self._is_tls

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, tunnel = self._exchange, self._tunnel
        self._leave()
        if exchange is not None:
            exchange.client_lost()
        elif tunnel is not None:
            tunnel.client_lost()
        self._backlog.drop()
        self._tell(Kind.CLIENT_GONE, Stage.HEAD if exchange is not None else Stage.UPGRADED)
        self.owner.forget(self)

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._stall.reset()
        if self._tunnel is not None:
            self._tunnel.pause_receiving()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._tunnel is not None:
            self._tunnel.resume_receiving()

    # -- what the exchange calls

    def pause_request(self) -> None:
        self._backlog.pause()

    def resume_request(self) -> None:
        self._backlog.resume()

    def target_moved(self) -> None:
        """A half-closed client has the same time limits."""

    def send_continue(self) -> None:
        """A CONNECT has no body."""

    def send_informational(self, response: Response) -> None:
        """The client speaks no HTTP."""

    def start_response(
        self, response: Response, length: int, pieces: list[Piece], ended: bool, trailers: Fields
    ) -> None:
        """The agent refused the CONNECT. Its reason is in the body."""
        self._refused_status = response.status
        self._refusal = bytearray()
        self._is_explained = bool(response.fault) and response.status >= 500  # as the exchange logs them
        self.send_body(pieces, ended, trailers)

    def send_body(self, pieces: list[Piece], ended: bool, trailers: Fields) -> None:
        assert self._refusal is not None
        for piece in pieces:
            self._refusal += piece
        exchange = self._exchange
        if not ended and len(self._refusal) > REASON_BYTES and exchange is not None:
            self._explain()
            self._leave()
            exchange.client_lost()
            self._reset(Stage.HEAD)

    def response_done(self) -> None:
        self._explain()
        self._leave()
        self._reset(Stage.HEAD)

    def _explain(self) -> None:
        """Log why the agent refused the connection."""
        if self._is_explained or self._refusal is None:
            return
        line = bytes(self._refusal[:REASON_BYTES]).partition(b"\n")[0].decode("utf-8", "replace")
        extra = {
            **self.log_fields(),
            "stage": "policy",
            "status": self._refused_status,
            "fault": "client" if self._refused_status < 500 else "agent",
            "reason": "".join(char if char.isprintable() else "?" for char in line),
        }
        logger.info("the agent refused a connection of a fixed port", extra=extra)

    def respond_with(
        self,
        status: int,
        reason: str,
        *,
        close: bool = False,
        fields: Fields | None = None,
        fault: Party | None = None,
        limit: str = "",
    ) -> None:
        """Reset the connection. The log has the reason already."""
        if self.metrics is not None:
            self.metrics.own[status // 100] += 1
        self._leave()
        self._reset(Stage.HEAD)

    def abort_response(self, reason: str, limit: str) -> None:
        """The tunnel was cut, or the agent's refusal. The reset shows that bytes are missing."""
        if self.metrics is not None:
            self.metrics.cut += 1
        stage = Stage.UPGRADED if self._tunnel is not None else Stage.HEAD
        self._leave()
        self._reset(stage)

    def truncation(self) -> dict[str, int]:
        return {}

    # -- the tunnel

    def switch_protocols(self, response: Response, rest: Piece, upgraded: ClientTunnel) -> None:
        self._exchange = None
        self._tunnel = upgraded
        self.response_begun = True
        probe_when_idle(self._transport)
        reset_when_closed(self._transport, True)  # also by a kill of this process
        if rest:
            self._transport.write(rest)
        if self.writing_paused:
            upgraded.pause_receiving()
        if self._backlog.held:
            upgraded.client_bytes(self._backlog.take())
        if self._half_closed:
            upgraded.client_eof()

    def write(self, data: Piece) -> None:
        self._transport.write(data)

    def write_eof(self) -> bool:
        if not self._transport.can_write_eof() or self._transport.is_closing():
            return False
        self._transport.write_eof()
        return True

    def tunnel_done(self) -> None:
        self._leave()
        self._tell(Kind.COMPLETE, Stage.UPGRADED)
        reset_when_closed(self._transport, False)
        self._close()

    # -- ends

    def _turn_away(self) -> None:
        owner = self.owner
        extra = {**self.log_fields(), "stage": "connection", "status": 503, "fault": owner.party}
        if owner.draining:
            reason = f"the {owner.party} is being stopped"
        else:
            reason = "too many connections"
            extra["limit"] = owner.connections_limit
        logger.info(reason, extra=extra)
        self._reset(Stage.HEAD)

    def _leave(self) -> None:
        """The exchange and the tunnel have ended."""
        if self._exchange is not None or self._tunnel is not None:
            self._exchange = self._tunnel = None
            self.owner.requests_in_flight -= 1

    def _reset(self, stage: Stage) -> None:
        """Close the connection so that the client does not take it for an orderly end."""
        if self._closing:
            return
        if stage is Stage.HEAD:
            self.owner.refused_tunnels += 1
        self._closing = True
        self._backlog.drop()
        self._tell(Kind.FAILED, stage)
        reset_when_closed(self._transport, True)
        self._transport.abort()

    def _close(self) -> None:
        self._closing = True
        self._backlog.drop()
        self._stall.reset()
        self._deadline = self.owner.clock.later(self.owner.limits.linger_s)
        if not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        exchange, tunnel = self._exchange, self._tunnel
        self._leave()
        if exchange is not None:
            exchange.client_lost()
        elif tunnel is not None:
            tunnel.client_lost()
        self._reset(Stage.UPGRADED)
        self._transport.abort()

    def _tell(self, kind: Kind, stage: Stage) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome(self.conn_id, kind, stage)

    # -- what the proxy calls

    def close_if_idle(self) -> None:
        """At a drain: end a tunnel of which nothing is expected."""
        if self._tunnel is not None:
            self._tunnel.end_if_left()

    def is_silent(self) -> bool:
        """Whether the client needs no connection yet. A target may be the first to speak, so that is never known."""
        return False

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the clock's time."""
        if self._exchange is not None:
            self._exchange.look_at_deadlines(now)
        elif self._tunnel is not None:
            self._tunnel.look_at_deadlines(now)
        unsent_bytes = self._transport.get_write_buffer_size()
        if self._closing and now >= self._deadline:
            if unsent_bytes:  # the client still reads
                self._deadline = self.owner.clock.later(self.owner.limits.linger_s)
            else:
                self._transport.abort()
        if self.writing_paused or self._closing:
            limit_s = self.owner.limits.write_timeout_s
            if self._stall.is_longer_than(limit_s, unsent_bytes, now):
                extra = {**self.log_fields(), "stage": "write", "fault": "client", "limit": "limits.write_timeout_s"}
                logger.warning("the client takes nothing", extra=extra)
                self.abort()
        # Behind a FIN the loop does not read. Only a look at the socket shows that the client has left.
        if self._half_closed and is_gone(self._transport):
            self._transport.abort()
