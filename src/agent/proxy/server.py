"""One client's HTTP/1.1 connection, on any asyncio transport: requests in, one at a time, answers in order.

What the next byte from the client is:

    HEAD ──head whole──► BODY ──body whole──► WAITING ──response whole──► HEAD
      │                    └─response whole first─► DRAINING ──body whole──► HEAD
      │ malformed                                       └──too much, too late──► LINGERING
      └──► LINGERING ──► CLOSED               WAITING ──101──► UPGRADED ──► CLOSED

Invariants:
C1. One request is in flight; bytes behind it wait unread, and past `pipelined_bytes` reading pauses. Answers in order.
C2. What is left of a body is never read as a request: a connection that can't reach a body's end closes.
C3. In one turn of the loop at most `HEADS_PER_TURN` requests are taken: each may be answered at once.
C4. Once the request is whole, a client's end without TLS may be a half-close: its exchange then lasts as long as the
    target sends something every `half_closed_s`. Time in which the client takes nothing does not count.
C5. `outcome` is called once, before the transport is closed, or when the client is gone.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import TYPE_CHECKING, cast

from ..errors import Party
from ..outcome import Kind, Outcome, Stage
from .blame import FAULT_FIELD, write_fault
from .chunked import ChunkError
from .clock import NEVER, Stall
from .headers import Fields
from .heads import ALLOW, Fault, Request, bound_upgrade, parse_request
from .liveness import is_gone, reset_when_closed, watch_half_closed
from .readers import BodyReader, Piece, RequestHeadReader
from .relay import Exchange
from .responses import own_response
from .upgrade import Upgraded

if TYPE_CHECKING:
    from .proxy import Proxy

__all__ = ["ClientConnection"]

SILENCE_S = 1.0
"""How long a client that sends nothing is left alone when others need its place."""

log = logging.getLogger(__name__)


class Input(enum.Enum):
    HEAD = enum.auto()
    BODY = enum.auto()
    WAITING = enum.auto()
    DRAINING = enum.auto()
    UPGRADED = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


HEAD, BODY, WAITING, DRAINING, UPGRADED, LINGERING, CLOSED = Input
HEADS_PER_TURN = 4
"""Of one connection's pipelined requests, so many are answered in one turn of the loop by the proxy itself: no more
than a few times what a proxied request costs, so others wait no longer than for those."""


class ClientConnection:
    """One client's connection, as the protocol of its transport.

    proxy, conn_id: whose and which. carrier: what carries it, for counting only. metrics: where its requests are
    counted, None: nowhere. requests_left: how many more it serves, 0 for any number. writing_paused: the client takes
    no more for now. advancing: input is being worked on, so what comes of it need not begin to do so. may_have_left:
    the client has sent its whole request and its end.
    """

    accepts_views = True

    __slots__ = (
        "_backlog",
        "_backlog_paused",
        "_body",
        "_closing",
        "_deadline",
        "_drain_left",
        "_ends_by_closing",
        "_exchange",
        "_exchange_paused",
        "_explained",
        "_half_closed",
        "_heads",
        "_in_hand",
        "_input",
        "_is_base_hubs",
        "_is_tls",
        "_last",
        "_last_head",
        "_last_target",
        "_outcome",
        "_served",
        "_silent",
        "_stall",
        "_transport",
        "_upgraded",
        "_yielded",
        "advancing",
        "carrier",
        "conn_id",
        "may_have_left",
        "metrics",
        "proxy",
        "requests_left",
        "writing_paused",
    )

    def __init__(
        self, proxy: Proxy, conn_id: int, outcome: Outcome, carrier: str = "", is_base_hubs: bool = False
    ) -> None:
        self.proxy = proxy
        self.conn_id = conn_id
        self.carrier = carrier
        self.metrics = proxy.metrics.get(carrier)
        self.requests_left = proxy.requests_per_connection
        self.writing_paused = False
        self.advancing = False
        self.may_have_left = False
        self._outcome: Outcome | None = outcome
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._is_tls = False
        self._is_base_hubs = is_base_hubs  # it comes from a hub without features
        self._input = HEAD
        self._heads = RequestHeadReader(proxy.limits)
        self._last: Request | None = None  # the request before, its head, and the target that this asked for
        self._last_head = self._last_target = b""
        self._body: BodyReader | None = None
        self._backlog: bytes | bytearray = b""  # input behind the request in flight, unread
        self._exchange: Exchange | None = None  # the request in flight
        self._upgraded: Upgraded | None = None  # what came of it after a 101
        self._drain_left = 0
        self._deadline = NEVER
        self._backlog_paused = False
        self._exchange_paused = False
        self._half_closed = False
        self._closing = False  # the answer in flight is the last one
        self._ends_by_closing = False  # and has no other end
        self._explained = False  # a line has said why the request whose body is drained ended
        self._served = True
        self._silent = True  # no request has come yet
        self._in_hand = False  # there is input behind the head that is begun
        self._yielded = False  # the backlog is worked on at the loop's next turn
        self._stall = Stall()

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        limits = self.proxy.limits
        self._transport.set_write_buffer_limits(high=limits.buffer_bytes, low=limits.buffer_bytes // 4)
        self._served = self.proxy.opened(self)
        self._deadline = self.proxy.clock.later(limits.head_timeout_s)

    def data_received(self, data: Piece) -> None:
        """Work on input until it is used up, or has to wait."""
        if self._yielded:
            self._hold_back(data)
            return
        self.advancing = True
        heads = 0
        try:
            while data:
                state = self._input
                if state is HEAD and not self.writing_paused:
                    if heads == HEADS_PER_TURN:
                        self._yield(data)
                        break
                    heads += 1
                    data = self._take_head(data)
                elif state is BODY or state is DRAINING:
                    data = self._take_body(data)
                elif state is UPGRADED:
                    assert self._upgraded is not None
                    self._upgraded.client_bytes(data)
                    return
                elif state is WAITING or state is HEAD:
                    self._hold_back(data)
                    break
                else:
                    return
        finally:
            self.advancing = self._in_hand = False
        exchange = self._exchange
        if exchange is not None and exchange.corked:
            exchange.uncork()

    def eof_received(self) -> bool:
        self._half_closed = True
        state = self._input
        if state is UPGRADED:
            assert self._upgraded is not None
            return self._upgraded.client_eof() and not self._is_tls
        if state is WAITING or (state is HEAD and self._backlog):
            if is_gone(self._transport):
                self._transport.abort()
                return False
            if not self._is_tls and state is WAITING:
                watch_half_closed(self._transport)
                self.may_have_left = True
                self.target_moves()
            return not self._is_tls
        if state is BODY:
            assert self._exchange is not None
            self._exchange.fail(400, "the request's body ended early", "request body", True, "client")
        elif state is HEAD and self._heads.begun:
            self._refuse(Fault(400, "the request's head ended early"))
        elif state is LINGERING:
            self._shut()
        else:
            self._finish()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, upgraded = self._exchange, self._upgraded
        stage = Stage.IDLE
        if exchange is not None:
            stage = exchange.stage
            self._drop_exchange()
            exchange.client_lost()
        elif upgraded is not None:
            stage = Stage.UPGRADED
            self._drop_exchange()
            upgraded.client_lost()
        elif self._input is HEAD and self._heads.begun:
            stage = Stage.HEAD
        self._input = CLOSED
        self._backlog = b""
        self._tell(Kind.CLIENT_GONE, stage)
        self.proxy.forget(self)

    def pause_writing(self) -> None:
        self.writing_paused = True
        self._stall.reset()
        if self._exchange is not None:
            self._exchange.pause_receiving()
        elif self._upgraded is not None:
            self._upgraded.pause_receiving()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._exchange is not None:
            self._exchange.resume_receiving()
            if self.may_have_left:
                self.target_moves()
        elif self._upgraded is not None:
            self._upgraded.resume_receiving()
        elif self._input is HEAD and self._backlog and not self._yielded:
            self._go_on()

    # -- input

    def _hold_back(self, data: Piece) -> None:  # C1
        if not self._backlog and type(data) is bytes:
            self._backlog = data
        else:
            if type(self._backlog) is not bytearray:
                self._backlog = bytearray(self._backlog)
            self._backlog += data
        if len(self._backlog) > self.proxy.limits.pipelined_bytes and not self._backlog_paused:
            self._backlog_paused = True
            if not self._exchange_paused:
                self._pause_transport()

    def _go_on(self) -> None:
        """Work on what was held back."""
        data = bytes(self._backlog)
        self._backlog = b""
        if self._backlog_paused:
            self._backlog_paused = False
            if not self._exchange_paused:
                self._resume_transport()
        self.data_received(data)
        if self._half_closed and self._input is not UPGRADED and self._input is not CLOSED:
            self.eof_received()

    def _yield(self, rest: Piece) -> None:
        """Leave the rest of the input to the loop's next turn: others have theirs before."""
        self._hold_back(rest)
        self._yielded = True
        asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._yielded = False
        if self._input is HEAD and self._backlog and not self.writing_paused:
            self._go_on()

    def _take_head(self, data: Piece) -> Piece:
        """Look for a whole request head, and begin its exchange. Returns what follows it."""
        heads = self._heads
        begun = bool(heads.begun)
        try:
            head, rest = heads.take(data)
            if head is not None:
                request, target = self._last, self._last_target
                if request is None or head != self._last_head:
                    request, target = parse_request(head, self.proxy.limits, request)
                    if request.upgrade and self._is_base_hubs:
                        bound_upgrade(request, 0, "upgrade-base-hub")
                    if request.block:
                        self._last, self._last_target, self._last_head = request, target, head
                    else:  # a long one would be held while the connection idles
                        self._last, self._last_target, self._last_head = None, b"", b""
                self._in_hand = len(rest) > 0
                self._begin(request, target)
            elif not begun:
                self._deadline = self.proxy.clock.later(self.proxy.limits.head_timeout_s)
            return rest
        except Fault as fault:
            self._refuse(fault)
            return b""

    def _begin(self, request: Request, target: bytes) -> None:
        """A whole head has come: answer it here, or begin its exchange."""
        proxy = self.proxy
        self._exchange = exchange = Exchange(self, request, target)
        self._silent = False
        proxy.requests_in_flight += 1
        if request.length == 0:
            self._input = WAITING
            self._deadline = NEVER
        else:
            self._input = BODY
            self._deadline = proxy.clock.later(proxy.limits.body_timeout_s)
            self._body = BodyReader(request.length, proxy.limits)
        if not self._served:
            extra = {"conn_id": self.conn_id, "stage": "connection", "status": 503, "fault": proxy.party}
            if proxy.draining:
                reason = f"the {proxy.party} is being stopped"
            else:
                reason = "too many connections"
                extra["limit"] = proxy.connections_limit
            log.info(reason, extra=extra)
            limit = "" if proxy.draining else proxy.connections_limit
            self.respond_with(503, reason, close=True, fault=proxy.party, limit=limit)
        elif target == b"*":
            self.respond_with(204, "", fields=[(b"Allow", ALLOW)])
        else:
            exchange.start()

    def _take_body(self, data: Piece) -> Piece:
        """Pass the next bytes of the request's body on, or drop them where the response is through already."""
        exchange, body = self._exchange, self._body
        assert body is not None
        try:
            pieces, rest = body.take(data)
        except ChunkError as error:
            if exchange is not None:
                exchange.fail(400, str(error), "request body", True, "client", error.limit)
            else:
                self._stop_draining(str(error), error.limit)
            return b""
        if exchange is None:
            self._drain_left -= len(data) - len(rest)
            if self._drain_left < 0:
                reason = "the request's body is too long to be read behind its response"
                self._stop_draining(reason, "limits.drain_bytes")
                return b""
        else:
            self._deadline = self.proxy.clock.later(self.proxy.limits.body_timeout_s)
            if exchange.continue_at != NEVER:
                exchange.body_came()
        ended = body.ended
        if ended:
            self._body = None
            self._deadline = NEVER
            self._input = WAITING
        if exchange is not None:
            exchange.client_data(pieces, ended)
        elif ended:
            self._next()
        return rest

    def _refuse(self, fault: Fault) -> None:
        """Answer a head that can't be served, and close."""
        extra = {"conn_id": self.conn_id, "stage": "request head", "status": fault.status, "fault": "client"}
        if fault.rule:
            extra["rule"] = fault.rule
        if fault.limit:
            extra["limit"] = fault.limit
        log.info(fault.reason, extra=extra)
        self.respond_with(fault.status, fault.reason, close=True, fields=fault.fields)

    # -- what the exchange calls

    def write(self, data: Piece) -> None:
        """Send to the client; immutable, kept by reference."""
        self._transport.write(data)

    def writelines(self, pieces: list[Piece]) -> None:
        """Send pieces in order."""
        self._transport.writelines(pieces)

    def write_eof(self) -> bool:
        """Send the client the end of an upgraded connection. Returns whether the carrier could."""
        if not self._transport.can_write_eof() or self._transport.is_closing():
            return False
        self._transport.write_eof()
        return True

    def target_moves(self) -> None:
        """The target has sent something, or may send again, for a client that may have left."""
        self._deadline = self.proxy.clock.later(self.proxy.limits.half_closed_s)

    def pause_reading(self) -> None:
        """The target takes no more of the client's bytes for now."""
        if not self._exchange_paused:
            self._exchange_paused = True
            if not self._backlog_paused:
                self._pause_transport()

    def resume_reading(self) -> None:
        """The target takes more."""
        if self._exchange_paused:
            self._exchange_paused = False
            if self._input is BODY:
                self._deadline = self.proxy.clock.later(self.proxy.limits.body_timeout_s)
            if not self._backlog_paused:
                self._resume_transport()

    def announce_close(self, request: Request | None) -> bool:
        """Decide, as an answer's head is written, whether the connection ends behind it; the head then says so."""
        exchange = self._exchange
        if (
            request is None
            or not request.keep_alive
            or self.proxy.draining
            or self.proxy.leaving
            or (self._half_closed and not self._backlog and not self._in_hand)
            or (exchange is not None and exchange.awaits_continue)  # the client may or may not send its body now
        ):
            self._closing = True
        if self.requests_left:
            self.requests_left -= 1
            if not self.requests_left:
                self._closing = True
        return self._closing

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
        """Send an answer of the proxy's own; the exchange, if there is one, is over. A 503 says when to try again.

        fault, limit: told to a hub of ours with a status of 500 and above, for its log.
        """
        if status >= 500 and fault and not (self.proxy.owns_clients or self._is_base_hubs):
            fields = [*(fields or ()), (FAULT_FIELD, write_fault(fault, limit, reason))]
        if status == 503:
            fields = [*(fields or ()), (b"Retry-After", b"%d" % self.proxy.limits.retry_after_s)]
        request = self._exchange.request if self._exchange is not None else None
        closing = self.announce_close(request) or close
        self._closing = closing
        keep = request is not None and request.is_1_0 and not closing
        connection = b"close" if closing else b"keep-alive" if keep else b""
        head_only = request is not None and request.method == b"HEAD"
        if self.metrics is not None:
            self.metrics.own[status // 100] += 1
        self.write(own_response(status, reason, fields=fields or [], connection=connection, head_only=head_only))
        if request is None:
            self._linger()
        else:
            self.exchange_done()
            self._explained = True

    def exchange_done(self) -> None:
        """The response is whole: go on with the next request, or close."""
        self._drop_exchange()
        if self._ends_by_closing:
            reset_when_closed(self._transport, False)
        if self._input is BODY:
            if self._closing:
                self._linger()
            else:
                self._input = DRAINING
                self._explained = False
                self._drain_left = self.proxy.limits.drain_bytes
                self._deadline = self.proxy.clock.later(self.proxy.limits.drain_s)
            self.resume_reading()
        else:
            self._next()

    def switch(self, upgraded: Upgraded) -> None:
        """After a 101: bytes both ways from now on, those that waited first."""
        self._exchange = None
        self._upgraded = upgraded
        self._body = None  # what is left of it goes first, as it comes
        self.may_have_left = False
        self._input = UPGRADED
        self._deadline = NEVER
        if self.writing_paused:
            upgraded.pause_receiving()
        if self._backlog:
            self._go_on()
        if self._half_closed:
            upgraded.client_eof()

    def upgraded_done(self) -> None:
        """An upgraded connection has ended in order."""
        self._drop_exchange()
        self._tell(Kind.COMPLETE, Stage.UPGRADED)
        self._shut()

    def end_by_closing(self) -> None:
        """The head of a response that closing ends has gone out. Until the body is whole the connection is set to end
        by a reset, also where this process is killed: what was truncated must not look whole (RFC 9112, section 8)."""
        self._ends_by_closing = True
        reset_when_closed(self._transport, True)

    def cut(self, stage: Stage) -> None:
        """End the connection with its response unfinished: what was written still goes out, no more. Behind
        `end_by_closing` nothing does."""
        self._drop_exchange()
        if self.metrics is not None:
            self.metrics.cut += 1
        self._tell(Kind.FAILED, stage)
        if self._ends_by_closing:
            self._input = CLOSED
            self._abort_transport()
        else:
            self._shut()

    # -- ends

    def _next(self) -> None:
        """Nothing is outstanding: the next request, or the end; also where the head went out before a drain began."""
        if self._closing or self.proxy.draining:
            self._finish()
            return
        self._input = HEAD
        self._deadline = self.proxy.clock.later(self.proxy.limits.keep_alive_s)
        if self._exchange_paused:
            self.resume_reading()
        if self.advancing:
            return
        if self._backlog:
            if not self.writing_paused:
                self._go_on()
        elif self._half_closed:
            self._finish()

    def _finish(self) -> None:
        """Close after a whole answer, or idle."""
        if (self._backlog or self._in_hand) and not self._half_closed:
            self._linger()  # closing on unread bytes would reset the connection, and the answer with it
        else:
            self._tell(Kind.COMPLETE, Stage.IDLE)
            self._shut()

    def _stop_draining(self, reason: str, limit: str) -> None:
        """The rest of an answered request's body isn't read."""
        if not self._explained:
            extra = {"conn_id": self.conn_id, "stage": "request body", "fault": "client"}
            if limit:
                extra["limit"] = limit
            log.info(reason, extra=extra)
        self._linger()  # C2

    def _linger(self) -> None:
        """Close, but let a client that still sends read its answer: end our half, ignore what comes for a while."""
        self._tell(Kind.COMPLETE, Stage.IDLE)
        self._backlog = b""
        if self._half_closed or self._transport.is_closing():
            self._shut()
            return
        self._input = LINGERING
        self._stall.reset()
        self._deadline = self.proxy.clock.later(self.proxy.limits.linger_s)
        self._exchange_paused = self._backlog_paused = False
        self._resume_transport()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _shut(self) -> None:
        self._input = CLOSED
        self._deadline = self.proxy.clock.later(self.proxy.limits.linger_s)
        self._backlog = b""
        self._stall.reset()
        if not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        exchange, upgraded = self._exchange, self._upgraded
        if exchange is not None:
            self._drop_exchange()
            self._tell(Kind.FAILED, exchange.stage)
            exchange.client_lost()
        elif upgraded is not None:
            self._drop_exchange()
            self._tell(Kind.FAILED, Stage.UPGRADED)
            upgraded.client_lost()
        self._tell(Kind.COMPLETE, Stage.IDLE)
        self._input = CLOSED
        self._abort_transport()

    def close_if_idle(self) -> None:
        """End the connection if no request is outstanding on it, nor anything to be expected of its upgrade."""
        if self._input is HEAD and not self._backlog and not self._heads.begun:
            self._finish()
        elif self._upgraded is not None:
            self._upgraded.end_if_left()

    def _abort_transport(self) -> None:
        """End the transport at once, by a reset where bytes are lost and nothing else would tell the client."""
        if self._ends_by_closing and self._transport.get_write_buffer_size():
            reset_when_closed(self._transport, True)
        self._transport.abort()

    def is_silent(self) -> bool:
        """Whether the client has been connected for a second, and has sent nothing at all."""
        if not self._silent or self._input is not HEAD or self._heads.begun or self._backlog:
            return False
        # The deadline is that of the first head, from the connection on.
        return self.proxy.clock.later(self.proxy.limits.head_timeout_s) - self._deadline >= SILENCE_S

    def _drop_exchange(self) -> None:
        if self._exchange is not None or self._upgraded is not None:
            self._exchange = self._upgraded = None
            self.proxy.requests_in_flight -= 1

    def _tell(self, kind: Kind, stage: Stage) -> None:  # C5
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome(self.conn_id, kind, stage)

    def _pause_transport(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def _resume_transport(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # -- time

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the loop's time."""
        if self._exchange is not None:
            self._exchange.look_at_deadlines(now)
        elif self._upgraded is not None:
            self._upgraded.look_at_deadlines(now)
        if now >= self._deadline:
            self._deadline = NEVER
            self._late()
        if self.writing_paused or self._input is CLOSED or self._input is LINGERING:
            limit_s = self.proxy.limits.write_timeout_s
            if self._stall.is_longer_than(limit_s, self._transport.get_write_buffer_size(), now):
                self._log_end(logging.WARNING, "the client takes nothing", "write", "limits.write_timeout_s")
                self.abort()
        if self.may_have_left and self._input is WAITING and is_gone(self._transport):
            self._transport.abort()

    def _late(self) -> None:
        state = self._input
        if state is HEAD:
            if self._heads.begun:
                reason, limit = "the request's head did not come in time", "limits.head_timeout_s"
                self._refuse(Fault(408, reason, limit=limit))
            elif not self._backlog:
                self._finish()
        elif state is BODY:
            if self._exchange_paused:  # it is the target that is slow
                self._deadline = self.proxy.clock.later(self.proxy.limits.body_timeout_s)
            else:
                assert self._exchange is not None
                reason, limit = "the request's body did not come in time", "limits.body_timeout_s"
                self._exchange.fail(408, reason, "request body", True, "client", limit)
        elif state is WAITING:
            if self.writing_paused:  # it is the client that is slow
                self.target_moves()
            else:
                reason = "the client has sent its end and the target sends nothing"
                self._log_end(logging.INFO, reason, "half-closed", "limits.half_closed_s")
                self._abort_transport()
        elif state is DRAINING:
            self._stop_draining("the request's body did not end soon behind its response", "limits.drain_s")
        elif self._transport.get_write_buffer_size():  # LINGERING, CLOSED: it still reads its answer
            self._deadline = self.proxy.clock.later(self.proxy.limits.linger_s)
        elif state is LINGERING:
            self._shut()
        else:  # by TLS a close waits for the peer's own, and many idle clients read nothing
            self._abort_transport()

    def _log_end(self, level: int, reason: str, stage: str, limit: str) -> None:
        """Say why the client's connection ends, and what it has got of a response that isn't whole."""
        exchange = self._exchange
        extra: dict[str, object] = {"conn_id": self.conn_id, "stage": stage, "fault": "client", "limit": limit}
        if exchange is not None:
            truncation = exchange.truncation()
            if truncation:
                unsent_bytes = self._transport.get_write_buffer_size()
                truncation["sent_bytes"] = max(0, truncation["sent_bytes"] - unsent_bytes)
            extra.update(truncation)
        log.log(level, reason, extra=extra)
