"""One client's HTTP/1.1 connection, on any asyncio transport: requests in, one at a time, responses in order.

`client_states` has the table of its states and events.

Invariants:
C1. One request is in flight. Bytes after it wait unread, and past `pipelined_bytes` reading pauses.
C2. The rest of a body is never read as a request. A connection that can't reach a body's end closes.
C3. One turn of the loop takes at most `HEADS_PER_TURN` requests, because the proxy may respond to each at once.
C4. Once the request is whole, a client's FIN without TLS may be a half-close. Its exchange then lasts as long as the
    target sends something every `half_closed_s`. Time in which the client takes nothing does not count.
C5. `outcome` is called once, before the transport is closed, or when the client has left.
C6. `_advance` is the only loop over input, and nothing enters it twice. The effects of its input change the state, and
    the loop reads the state.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from ..config.limits import ProxyLimits
from ..errors import Party
from ..http2.frames import PREFACE
from ..outcome import Kind, Outcome, Stage
from .backlog import Backlog
from .blame import FAULT_FIELD, write_fault
from .chunked import ChunkError
from .client_side import ClientSide, ClientTunnel
from .client_states import NEXT_BY_STATE, Event, State
from .clock import NEVER, Stall
from .context import ConnectionOwner
from .head_writer import informational_head, switching_head
from .headers import Fields
from .heads import ALLOW, CHUNKED, UNFRAMED, Fault, Request, Response
from .liveness import is_gone, probe_when_idle, reset_when_closed, watch_half_closed
from .origin import A_HUB, A_USER, HubOrigin, Origin, origin_of
from .pieces import Piece, write_pieces
from .readers import BodyReader
from .relay import Exchange
from .request_reader import RequestReader
from .response_writer import ResponseWriter
from .responses import CONTINUE, own_response

__all__ = ["ClientConnection"]

SILENCE_S = 1.0
"""How long a client that sends nothing is left alone when others need its place."""

logger = logging.getLogger(__name__)

# Looked up once: until Python 3.12 an enum's attribute costs a call.
HEAD, BODY, WAITING, DRAINING, UPGRADED, LINGERING, CLOSED = State
REQUEST, REQUEST_WITH_BODY, BODY_END, RESPONSE_END, SWITCH, LINGER, CLOSE, LOST = Event
HEADS_PER_TURN = 4
"""The most pipelined requests of one connection that the proxy itself responds to in one turn of the loop. They cost no
more than a few proxied requests, so other connections wait no longer."""


class ClientConnection(ClientSide):
    """One client's connection, as the protocol of its transport and the client side of its exchanges.

    owner: the proxy. carrier: what carries it, for counting only. metrics: where its requests are counted, None:
    nowhere. requests_left: how many more it serves, 0 for any number.
    """

    accepts_views = True

    __slots__ = (
        "_backlog",
        "_body",
        "_closing",
        "_deadline",
        "_drain_left",
        "_ends_by_closing",
        "_exchange",
        "_explained",
        "_half_closed",
        "_in_hand",
        "_is_tls",
        "_is_trusted_hubs",
        "_may_be_http2",
        "_origin",
        "_outcome",
        "_preface",
        "_reports_faults",
        "_requests",
        "_served",
        "_silent",
        "_stall",
        "_state",
        "_transport",
        "_upgraded",
        "_writer",
        "_yielded",
        "carrier",
        "metrics",
        "owner",
        "requests_left",
    )

    def __init__(
        self, owner: ConnectionOwner, conn_id: int, outcome: Outcome, carrier: str = "", origin: Origin = A_HUB
    ) -> None:
        self.conn_id = conn_id
        self.request_id = b""
        self.writing_paused = self.is_delivering = self.may_have_left = self.response_begun = False
        self.carries_grpc = isinstance(origin, HubOrigin)
        self.owner = owner
        self.carrier = carrier
        self.metrics = owner.metrics.get(carrier)
        self.requests_left = owner.requests_per_connection
        self._outcome: Outcome | None = outcome
        self._origin = origin
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._is_tls = False
        self._state = HEAD
        self._is_trusted_hubs = isinstance(origin, HubOrigin) and origin.is_trusted
        serves_connect = owner.connect_route is not None and (not isinstance(origin, HubOrigin) or origin.sends_connect)
        self._requests = RequestReader(self._head_limits(), origin, serves_connect)
        self._body: BodyReader | None = None
        self._backlog = Backlog(owner.limits.pipelined_bytes)  # input behind the request in flight
        self._writer = ResponseWriter()
        self._exchange: Exchange | None = None  # the request in flight
        self._upgraded: ClientTunnel | None = None  # what came of it after a 101
        self._drain_left = 0
        self._deadline = NEVER
        self._half_closed = False
        self._closing = False  # the response in flight is the last one
        self._ends_by_closing = False  # and has no other end
        self._explained = False  # a log line has the reason that ended the request whose body is drained
        self._served = True
        self._reports_faults = not owner.owns_clients and isinstance(origin, HubOrigin) and not origin.is_base
        self._silent = True  # no request has come yet
        self._in_hand = False  # there is input behind the head that is begun
        self._yielded = False  # the backlog is worked on at the loop's next turn
        self._may_be_http2 = False  # all bytes so far begin HTTP/2's preface
        self._preface = b""  # those bytes
        self._stall = Stall()

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._backlog.transport = self._writer.transport = cast(asyncio.Transport, transport)
        self._is_tls = transport.get_extra_info("ssl_object") is not None
        if self._origin is A_USER:
            self._origin = self._requests.origin = origin_of(transport)
        limits = self.owner.limits
        self._transport.set_write_buffer_limits(high=limits.buffer_bytes, low=limits.buffer_bytes // 4)
        self._served = self.owner.opened(self)
        self._deadline = self.owner.clock.later(limits.head_timeout_s)
        if self.owner.http2_max_streams and not isinstance(self._origin, HubOrigin):
            if not self._is_tls:
                self._may_be_http2 = True
            elif transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2":
                self._hand_over(b"")

    def _begins_http2(self, data: Piece) -> bool:
        """Whether the connection's first bytes are HTTP/2's preface, or a part of it (RFC 9113, section 3.3)."""
        found = self._preface + data
        if not PREFACE.startswith(found[: len(PREFACE)]):
            self._may_be_http2 = False
            return False
        self._preface = found
        self._silent = False
        if len(found) >= len(PREFACE):
            self._hand_over(found)
        return True

    def _hand_over(self, data: bytes) -> None:
        """Hand the connection to HTTP/2. data: its first bytes."""
        transport, outcome = self._transport, self._outcome
        self._may_be_http2 = False
        self._outcome = None
        protocol = self.owner.speak_http2(self, outcome, self._origin, self._served)
        transport.pause_reading()  # uvloop chooses how it reads when reading begins
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if data:
            protocol.receive(data)
        if not transport.is_closing():
            transport.resume_reading()

    def data_received(self, data: Piece) -> None:
        if self._may_be_http2:
            held = self._preface
            if self._begins_http2(data):
                return
            if held:
                data = held + data
        if self._yielded:
            self._backlog.hold(data)
        else:
            self._advance(data)

    def eof_received(self) -> bool:
        self._half_closed = True
        state = self._state
        if state is UPGRADED:
            assert self._upgraded is not None
            return self._upgraded.client_eof() and not self._is_tls
        if state is WAITING or (state is HEAD and self._backlog.held):
            if is_gone(self._transport):
                self._transport.abort()
                return False
            if not self._is_tls and state is WAITING:
                watch_half_closed(self._transport)
                self.may_have_left = True
                self.target_moved()
            return not self._is_tls
        if state is BODY:
            assert self._exchange is not None
            self._exchange.fail(400, "the request's body ended early", "request body", True, "client")
        elif state is HEAD and self._requests.has_begun():
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
            stage = self._writer.stage
            self._drop_exchange()
            exchange.client_lost()
        elif upgraded is not None:
            stage = Stage.UPGRADED
            self._drop_exchange()
            upgraded.client_lost()
        elif self._state is HEAD and self._requests.has_begun():
            stage = Stage.HEAD
        self._move(LOST)
        self._backlog.drop()
        self._tell(Kind.CLIENT_GONE, stage)
        self.owner.forget(self)

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
                self.target_moved()
        elif self._upgraded is not None:
            self._upgraded.resume_receiving()
        elif self._state is HEAD and self._backlog.held and not self._yielded:
            self._work_off_backlog()

    # -- input

    def _move(self, event: Event) -> bool:
        """Go to the next state by the table. Where it has no entry the connection ends, and this returns False."""
        row = NEXT_BY_STATE[self._state]
        state = row.get(event)
        if state is None:
            extra = {**self.log_fields(), "stage": "connection", "fault": self.owner.party}
            logger.error(f"a client's connection has no way from {self._state.name} by {event.name}", extra=extra)
            self.abort()
            return False
        self._state = state
        return True

    def _advance(self, data: Piece) -> None:
        """Work on input until it is used up, or has to wait (C6)."""
        self.is_delivering = True
        heads = 0
        try:
            while data:
                state = self._state
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
                    break
                elif state is WAITING or state is HEAD:
                    self._backlog.hold(data)  # C1
                    break
                else:
                    break
        finally:
            self.is_delivering = self._in_hand = False
        exchange = self._exchange
        if exchange is not None:
            exchange.uncork()

    def _work_off_backlog(self) -> None:
        """Work on what was held back, and on the client's end behind it."""
        self._advance(self._backlog.take())
        if self._half_closed and self._state is not UPGRADED and self._state is not CLOSED:
            self.eof_received()

    def _yield(self, rest: Piece) -> None:
        """Leave the rest of the input to the loop's next turn: others have theirs before."""
        self._backlog.hold(rest)
        self._yielded = True
        asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._yielded = False
        if self._state is HEAD and self._backlog.held and not self.writing_paused:
            self._work_off_backlog()

    def _take_head(self, data: Piece) -> Piece:
        """Look for a whole request head, and begin its exchange. Returns what follows it."""
        requests = self._requests
        begun = requests.has_begun()
        try:
            rest = requests.take(data, self._head_limits())
            request, target = requests.request, requests.own_target
            requests.request, requests.own_target = None, b""
            if request is not None:
                self.request_id = requests.request_id or self.owner.request_ids.next()
                self._in_hand = len(rest) > 0
                self._begin(request, target)
            elif not begun:
                self._deadline = self.owner.clock.later(self.owner.limits.head_timeout_s)
            return rest
        except Fault as fault:
            self._refuse(fault)
            return b""

    def _head_limits(self) -> ProxyLimits:
        return self.owner.widened_limits if self._is_trusted_hubs else self.owner.limits

    def _begin(self, request: Request, target: bytes) -> None:
        """A whole head has come: respond here, or begin its exchange."""
        owner = self.owner
        if request.length == 0:
            if not self._move(REQUEST):
                return
            self._deadline = NEVER
        else:
            if not self._move(REQUEST_WITH_BODY):
                return
            self._body = BodyReader(request.length, owner.limits)
        self._exchange = exchange = Exchange(self, owner, self.metrics, request, target)
        self._writer.expect(exchange.is_call)
        self._silent = self.response_begun = False
        if request.length != 0:
            self._await_body()
        owner.requests_in_flight += 1
        if not self._served:
            self._turn_away()
        elif target == b"*":
            self.respond_with(204, "", fields=[(b"Allow", ALLOW)])
        else:
            exchange.start()

    def _turn_away(self) -> None:
        """Respond to the first request of a connection that is one too many."""
        party, limit = self.owner.party, self.owner.connections_limit
        extra: dict[str, object] = {**self.log_fields(), "stage": "connection", "status": 503, "fault": party}
        if self.owner.draining:
            reason, limit = f"the {party} is being stopped", ""
        else:
            reason = "too many connections"
            extra["limit"] = limit
        logger.info(reason, extra=extra)
        self.respond_with(503, reason, close=True, fault=party, limit=limit)

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
            self._await_body()
        ended = body.ended
        if ended:
            self._body = None
            self._deadline = NEVER
            self._move(BODY_END)
        if exchange is not None:
            exchange.client_data(pieces, ended)
        elif ended:
            self._next()
        return rest

    def _await_body(self) -> None:
        """Set when the next byte of the request's body is due. A call's body, and one behind a response head, may take
        any time."""
        exchange = self._exchange
        if self.response_begun or exchange is None or exchange.is_call:
            self._deadline = NEVER
        else:
            self._deadline = self.owner.clock.later(self.owner.limits.body_timeout_s)

    def _refuse(self, fault: Fault) -> None:
        """Respond to a head that can't be served, and close."""
        self.request_id = self.owner.request_ids.next()
        extra = {**self.log_fields(), "stage": "request head", "status": fault.status, "fault": "client"}
        if fault.rule:
            extra["rule"] = fault.rule
        if fault.limit:
            extra["limit"] = fault.limit
        logger.info(fault.reason, extra=extra)
        self.respond_with(
            fault.status, fault.reason, close=True, fields=fault.fields, fault="client", limit=fault.limit
        )

    # -- what the exchange calls: the client side

    def pause_request(self) -> None:
        self._backlog.pause()

    def resume_request(self) -> None:
        if self._backlog.resume() and self._state is BODY:
            self._await_body()

    def target_moved(self) -> None:
        self._deadline = self.owner.clock.later(self.owner.limits.half_closed_s)

    def send_continue(self) -> None:
        self._transport.write(CONTINUE)

    def send_informational(self, response: Response) -> None:
        if self._exchange is not None and not self._exchange.request.is_1_0:
            self._transport.write(informational_head(response))

    def start_response(
        self, response: Response, length: int, pieces: list[Piece], ended: bool, trailers: Fields
    ) -> None:
        exchange, writer = self._exchange, self._writer
        assert exchange is not None
        request = exchange.request
        if length != CHUNKED or not request.is_1_0:
            self._start(request, response, length, pieces, ended, trailers)
        elif self.owner.owns_clients:
            self._begin_response()
            self._announce_close(None)
            writer.start(response, UNFRAMED, b"close", pieces, ended, trailers, True)
            self._end_by_closing()
        else:
            writer.collecting = response
            self.send_body(pieces, ended, trailers)

    def _start(
        self, request: Request, response: Response, length: int, pieces: list[Piece], ended: bool, trailers: Fields
    ) -> None:
        """Write the head. It announces whether the connection closes."""
        self._begin_response()
        connection = b"close" if self._announce_close(request) else b"keep-alive" if request.is_1_0 else b""
        self._writer.start(response, length, connection, pieces, ended, trailers)

    def _begin_response(self) -> None:
        """The head goes out. The rest of the body may take any time, so the kernel looks for a dead client."""
        self.response_begun = True
        if self._state is BODY:
            self._deadline = NEVER
            probe_when_idle(self._transport)

    def send_body(self, pieces: list[Piece], ended: bool, trailers: Fields) -> None:
        writer = self._writer
        response = writer.collecting
        if response is None:
            writer.send(pieces, ended, trailers)
            return
        exchange = self._exchange
        assert exchange is not None
        if not writer.collect(pieces, self.owner.limits.collect_bytes):
            reason = "the response has no length and is too large for an HTTP/1.0 client"
            exchange.fail(502, reason, "response body", limit="limits.collect_bytes")
        elif ended:
            body = writer.collected()
            self._start(exchange.request, response, len(body), [body], True, trailers)

    def _announce_close(self, request: Request | None) -> bool:
        """Decide, before a response's head is written, whether the connection closes after it."""
        exchange = self._exchange
        if (
            request is None
            or not request.keep_alive
            or self.owner.draining
            or self.owner.leaving
            or (self._half_closed and not self._backlog.held and not self._in_hand)
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
        if fault and self._reports_faults:
            fields = [*(fields or ()), (FAULT_FIELD, write_fault(fault, limit, reason))]
        if status == 503:
            fields = [*(fields or ()), (b"Retry-After", b"%d" % self.owner.limits.retry_after_s)]
        request = self._exchange.request if self._exchange is not None else None
        closing = self._announce_close(request) or close
        self._closing = closing
        keep = request is not None and request.is_1_0 and not closing
        connection = b"close" if closing else b"keep-alive" if keep else b""
        head_only = request is not None and request.method == b"HEAD"
        if self.metrics is not None:
            self.metrics.own[status // 100] += 1
        self._transport.write(
            own_response(
                status, reason, self.request_id, fields=fields or [], connection=connection, head_only=head_only
            )
        )
        if request is None:
            self._linger()
        else:
            self.response_done()
            self._explained = True

    def response_done(self) -> None:
        self._drop_exchange()
        if self._ends_by_closing:
            reset_when_closed(self._transport, False)
        if self._state is BODY:
            if self._closing:
                self._linger()
            else:
                self._move(RESPONSE_END)
                self._explained = False
                self._drain_left = self.owner.limits.drain_bytes
                self._deadline = self.owner.clock.later(self.owner.limits.drain_s)
            self.resume_request()
        elif self._move(RESPONSE_END):
            self._next()

    def abort_response(self, reason: str, limit: str) -> None:
        """Close once the written bytes are sent, unless closing ends the body (`_end_by_closing`)."""
        stage = Stage.UPGRADED if self._upgraded is not None else self._writer.stage
        self._drop_exchange()
        if self.metrics is not None:
            self.metrics.cut += 1
        self._tell(Kind.FAILED, stage)
        if self._ends_by_closing:
            self._move(LOST)
            self._abort_transport()
        else:
            self._shut()

    def truncation(self) -> dict[str, int]:
        return self._writer.truncation()

    # -- what the exchange and its tunnel call behind a 101

    def switch_protocols(self, response: Response, rest: Piece, upgraded: ClientTunnel) -> None:
        head = switching_head(response)
        write_pieces(self._transport, [head, rest] if rest else [head])
        if not self._move(SWITCH):
            upgraded.client_lost()
            return
        self._exchange = None
        self._upgraded = upgraded
        self._body = None  # the rest of the body is sent first, as it arrives
        self.may_have_left = False
        self._deadline = NEVER
        if response.status != 101:  # a CONNECT's tunnel may be silent for hours
            probe_when_idle(self._transport)
            if self.owner.owns_clients:  # a tunnel that is cut must not look whole
                self._end_by_closing()
        if self.writing_paused:
            upgraded.pause_receiving()
        if self._backlog.held:
            self._work_off_backlog()
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
        self._drop_exchange()
        self._tell(Kind.COMPLETE, Stage.UPGRADED)
        if self._ends_by_closing:
            reset_when_closed(self._transport, False)
        self._shut()

    # -- ends

    def _end_by_closing(self) -> None:
        """Set the connection to end by a reset until the body is whole. The head of a body that closing ends was sent.

        A killed process resets it too, since a truncated body must not look whole (RFC 9112, section 8).
        """
        self._ends_by_closing = True
        reset_when_closed(self._transport, True)

    def _next(self) -> None:
        """Take the next request, or close. It covers a head that was sent before a drain began."""
        if self._closing or self.owner.draining:
            self._finish()
            return
        self._deadline = self.owner.clock.later(self.owner.limits.keep_alive_s)
        self.resume_request()
        if self.is_delivering:  # C6
            return
        if self._backlog.held:
            if not self.writing_paused:
                self._work_off_backlog()
        elif self._half_closed:
            self._finish()

    def _finish(self) -> None:
        """Close after a whole response, or an idle connection."""
        if (self._backlog.held or self._in_hand) and not self._half_closed:
            self._linger()  # closing on unread bytes would reset the connection, and lose the response
        else:
            self._tell(Kind.COMPLETE, Stage.IDLE)
            self._shut()

    def _stop_draining(self, reason: str, limit: str) -> None:
        """Stop reading the rest of a body whose request has its response."""
        if not self._explained:
            extra = {**self.log_fields(), "stage": "request body", "fault": "client"}
            if limit:
                extra["limit"] = limit
            logger.info(reason, extra=extra)
        self._linger()  # C2

    def _linger(self) -> None:
        """Close, but let a client that still sends read its response: half-close, and ignore input for a while."""
        self._tell(Kind.COMPLETE, Stage.IDLE)
        self._backlog.drop()
        if self._half_closed or self._transport.is_closing():
            self._shut()
            return
        self._move(LINGER)
        self._stall.reset()
        self._deadline = self.owner.clock.later(self.owner.limits.linger_s)
        self._backlog.read_on()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _shut(self) -> None:
        self._move(CLOSE)
        self._deadline = self.owner.clock.later(self.owner.limits.linger_s)
        self._backlog.drop()
        self._stall.reset()
        if not self._transport.is_closing():
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        exchange, upgraded = self._exchange, self._upgraded
        if exchange is not None:
            self._drop_exchange()
            self._tell(Kind.FAILED, self._writer.stage)
            exchange.client_lost()
        elif upgraded is not None:
            self._drop_exchange()
            self._tell(Kind.FAILED, Stage.UPGRADED)
            upgraded.client_lost()
        self._tell(Kind.COMPLETE, Stage.IDLE)
        self._move(LOST)
        self._abort_transport()

    def close_if_idle(self) -> None:
        """End the connection if no request is outstanding on it, nor anything to be expected of its upgrade."""
        if self._state is HEAD and not self._backlog.held and not self._requests.has_begun():
            self._finish()
        elif self._upgraded is not None:
            self._upgraded.end_if_left()

    def _abort_transport(self) -> None:
        """Close the transport at once, by a reset if bytes are lost and the framing would not show it."""
        if self._ends_by_closing and self._transport.get_write_buffer_size():
            reset_when_closed(self._transport, True)
        self._transport.abort()

    def is_silent(self) -> bool:
        """Whether the client has been connected for a second, and has sent nothing at all."""
        if not self._silent or self._state is not HEAD or self._requests.has_begun() or self._backlog.held:
            return False
        # The deadline is that of the first head, from the connection on.
        return self.owner.clock.later(self.owner.limits.head_timeout_s) - self._deadline >= SILENCE_S

    def _drop_exchange(self) -> None:
        if self._exchange is not None or self._upgraded is not None:
            self._exchange = self._upgraded = None
            self.owner.requests_in_flight -= 1

    def _tell(self, kind: Kind, stage: Stage) -> None:  # C5
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome(self.conn_id, kind, stage)

    # -- time

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the clock's time."""
        if self._exchange is not None:
            self._exchange.look_at_deadlines(now)
        elif self._upgraded is not None:
            self._upgraded.look_at_deadlines(now)
        if now >= self._deadline:
            self._deadline = NEVER
            self._late()
        is_call = self._exchange is not None and self._exchange.is_call  # its client may read late
        if (self.writing_paused and not is_call) or self._state is CLOSED or self._state is LINGERING:
            limit_s = self.owner.limits.write_timeout_s
            if self._stall.is_longer_than(limit_s, self._transport.get_write_buffer_size(), now):
                self._log_end(logging.WARNING, "the client takes nothing", "write", "limits.write_timeout_s")
                self.abort()
        # Behind a FIN the loop does not read. Only a look at the socket shows that the client has left.
        may_have_left = self.may_have_left if self._state is WAITING else self._state is UPGRADED and self._half_closed
        if may_have_left and is_gone(self._transport):
            self._transport.abort()

    def _late(self) -> None:
        state = self._state
        if state is HEAD:
            if self._requests.has_begun():
                reason, limit = "the request's head did not come in time", "limits.head_timeout_s"
                self._refuse(Fault(408, reason, limit=limit))
            elif not self._backlog.held:
                self._finish()
        elif state is BODY:
            if self._backlog.is_paused:  # it is the target that is slow
                self._await_body()
            else:
                assert self._exchange is not None
                reason, limit = "the request's body did not come in time", "limits.body_timeout_s"
                self._exchange.fail(408, reason, "request body", True, "client", limit)
        elif state is WAITING:
            if self.writing_paused:  # it is the client that is slow
                self.target_moved()
            else:
                reason = "the client has sent its end and the target sends nothing"
                self._log_end(logging.INFO, reason, "half-closed", "limits.half_closed_s")
                self._abort_transport()
        elif state is DRAINING:
            self._stop_draining("the request's body did not end soon behind its response", "limits.drain_s")
        elif self._transport.get_write_buffer_size():  # LINGERING, CLOSED: it still reads its response
            self._deadline = self.owner.clock.later(self.owner.limits.linger_s)
        elif state is LINGERING:
            self._shut()
        else:  # by TLS a close waits for the peer's own, and many idle clients read nothing
            self._abort_transport()

    def _log_end(self, level: int, reason: str, stage: str, limit: str) -> None:
        """Log why the client's connection ends, and how much the client got of an unfinished response."""
        exchange = self._exchange
        extra: dict[str, object] = {**self.log_fields(), "stage": stage, "fault": "client", "limit": limit}
        if exchange is not None:
            truncation = self.truncation()
            if truncation:
                unsent_bytes = self._transport.get_write_buffer_size()
                truncation["sent_bytes"] = max(0, truncation["sent_bytes"] - unsent_bytes)
            extra.update(truncation)
        logger.log(level, reason, extra=extra)
