"""One stream of a client's HTTP/2 connection: the client side of one exchange, and the user of the stream.

    begin ──► exchange ──start_response──► head, DATA ──► END_STREAM
      │          └── respond_with, abort_response
      └── malformed ──► RST_STREAM

Invariants:
S1. A request with a Content-Length is whole at the target only if the client's DATA add up to it. The last piece waits
    for END_STREAM.
S2. While the exchange's target takes nothing, the client gets no credit. So a stream holds at most its window.
S3. While more than HIGH_BYTES wait for the client's credit, the exchange's target is not read.
S4. A response that is whole before its request ends the stream: END_STREAM, then RST_STREAM with NO_ERROR.
"""

from __future__ import annotations

import logging
from typing import Protocol

from ..errors import Party
from ..http2.errors import ErrorCode
from ..http2.framing import FrameWriter
from ..http2.stream import Http2Stream
from .client_side import ClientSide, ClientTunnel
from .clock import NEVER, Stall
from .context import ConnectionOwner
from .grpc import failure_head, failure_trailers, is_grpc
from .headers import Fields
from .heads import ALLOW, CHUNKED, UNFRAMED, Fault, Response
from .http2_requests import Http2RequestReader, MalformedStream, accept_of
from .http2_responses import (
    CONTINUE_FIELDS,
    informational_fields,
    own_response_fields,
    response_fields,
    trailer_fields,
)
from .metrics import RequestMetrics
from .pieces import Piece
from .relay import Exchange
from .responses import own_parts

__all__ = ["HIGH_BYTES", "Http2ClientStream"]

HIGH_BYTES = 128 * 1024
"""The most bytes of a response that wait on one stream before its target is read no more."""

NO_TRAILERS: Fields = []

WHOLE_BYTES = 16384
"""The longest body that leaves with its head in one write. A larger one takes its stream's turns."""

logger = logging.getLogger(__name__)


class StreamOwner(Protocol):
    """The client's connection, as its streams see it.

    Attributes:
        is_served: requests are served. Otherwise the first one is turned away.
        corked: streams whose request's head waits for the first DATA.
    """

    conn_id: int
    metrics: RequestMetrics | None
    is_served: bool
    corked: list[Http2ClientStream]

    def log_malformed(self, request_id: bytes, reason: str, stage: str) -> None:
        """Log the reason of a stream error PROTOCOL_ERROR."""

    def turn_away(self, stream: Http2ClientStream) -> None:
        """Respond to a request of a connection that is one too many, and let the connection end."""

    def responds(self) -> None:
        """A response begins. If the connection serves no further request, the client gets GOAWAY."""


class Http2ClientStream(ClientSide):
    """One stream of `connection`."""

    __slots__ = (
        "_connection",
        "_deadline",
        "_early",
        "_exchange",
        "_held",
        "_is_grpc",
        "_left",
        "_owner",
        "_request_paused",
        "_sent_bytes",
        "_stall",
        "_status",
        "_stream",
        "_unread",
        "_upgraded",
        "_websocket_key",
        "_writer",
    )

    def __init__(self, connection: StreamOwner, owner: ConnectionOwner, stream: Http2Stream) -> None:
        self.conn_id = connection.conn_id
        self.request_id = b""
        self.writing_paused = self.is_delivering = self.may_have_left = self.response_begun = False
        self.carries_grpc = True
        self._connection = connection
        self._owner = owner
        self._stream = stream
        self._writer = stream.writer
        self._exchange: Exchange | None = None  # the request in flight
        self._upgraded: ClientTunnel | None = None  # what came of it behind a 101 or a CONNECT's 200
        self._is_grpc = False  # the request is a call, even if its head can't be served
        self._left = CHUNKED  # bytes of the body that Content-Length still owes, CHUNKED without one
        self._held: Piece = b""  # the body's last piece (S1)
        self._early: bytearray | None = None  # a tunnel's first bytes, before the tunnel is open
        self._request_paused = False
        self._unread = 0  # bytes without credit for the client, while the request is paused
        self._deadline = NEVER
        self._websocket_key = b""
        self._status = 0
        self._sent_bytes = 0
        self._stall = Stall()

    # -- the request

    def begin(self, reader: Http2RequestReader, fields: Fields, ended: bool) -> None:
        """Check the head, and begin the exchange, or respond here."""
        owner = self._owner
        self.request_id = b""
        self._is_grpc = is_grpc(fields)
        try:
            reader.take(fields, ended, owner.limits)
            request, target = reader.request, reader.own_target
            assert request is not None
            if ended and request.length > 0:
                raise MalformedStream("the request has no DATA, and a Content-Length")
        except MalformedStream as error:
            self._malformed(error.reason, "request head")
            return
        except Fault as fault:
            self._refuse(fault)
            return
        self.request_id = reader.request_id or owner.request_ids.next()
        self._websocket_key = reader.websocket_key
        if request.is_connect or self._websocket_key:
            self._early = bytearray()
        elif reader.has_length:
            self._left = request.length
        self._exchange = exchange = Exchange(self, owner, self._connection.metrics, request, target)
        owner.requests_in_flight += 1
        if not self._connection.is_served:
            self._connection.turn_away(self)
        elif target == b"*":
            self.respond_with(204, "", fields=[(b"Allow", ALLOW)])
        elif not ended and self._left == 0:
            self._await_body()  # S1: it starts with END_STREAM
        elif request.length == 0:
            exchange.start()
        else:
            self._await_body()
            self.is_delivering = True
            self._connection.corked.append(self)
            exchange.start()

    def uncork(self) -> None:
        """The input in hand is used up."""
        self.is_delivering = False
        if self._exchange is not None:
            self._exchange.uncork()

    def _await_body(self) -> None:
        """Set when the next byte of the request's body is due. A call's body, and one behind a response head, may take
        any time."""
        if not self._is_grpc and not self.response_begun:
            self._deadline = self._owner.clock.later(self._owner.limits.body_timeout_s)

    def _refuse(self, fault: Fault) -> None:
        """Respond to a head that can't be served."""
        self.request_id = self._owner.request_ids.next()
        extra = {**self.log_fields(), "stage": "request head", "status": fault.status, "fault": "client"}
        if fault.rule:
            extra["rule"] = fault.rule
        if fault.limit:
            extra["limit"] = fault.limit
        logger.info(fault.reason, extra=extra)
        self.respond_with(fault.status, fault.reason, fields=fault.fields, limit=fault.limit)

    def _malformed(self, reason: str, stage: str) -> None:
        """End the stream, because the client has broken a rule of HTTP/2's."""
        self._connection.log_malformed(self.request_id, reason, stage)
        exchange = self._exchange
        self._drop_exchange()
        if exchange is not None:
            exchange.client_lost()
        self._reset(ErrorCode.PROTOCOL_ERROR)

    # -- what the stream calls

    def data_received(self, data: Piece) -> None:
        """Take the next bytes of the request's body or the tunnel."""
        size = len(data)
        if self._upgraded is not None:
            self._upgraded.client_bytes(data)
        elif self._early is not None:
            self._early += data  # joined, since pieces of some bytes would take many times the memory
            self._unread += size
            return
        elif self._exchange is not None:
            if self._left >= 0:
                self._left -= size
                if self._left < 0:
                    self._malformed("the DATA are more than the Content-Length", "request body")
                    return
            self._await_body()
            if self._left == 0:
                self._held = data
            else:
                self._exchange.client_data([data], False)
        if self._request_paused:
            self._unread += size  # S2
        else:
            self._stream.consumed(size)

    def stream_ended(self) -> None:
        """The client has sent END_STREAM."""
        self._deadline = NEVER
        if self._upgraded is not None:
            self._upgraded.client_eof()
        elif self._exchange is not None and self._early is None:
            held, self._held = self._held, b""
            if self._left > 0:
                self._malformed("the DATA are less than the Content-Length", "request body")
            elif self._left == 0 and not held:
                self._exchange.start()
            else:
                self._exchange.client_data([held] if held else [], True)

    def trailers_received(self, headers: Fields) -> None:
        """The client has ended its request by trailers, which are dropped."""
        self.stream_ended()

    def headers_received(self, headers: Fields, ended: bool) -> None:
        """Only clients receive responses."""

    def informational_received(self, headers: Fields) -> None:
        """Only clients receive responses."""

    def stream_lost(self, error: Exception) -> None:
        """The client has reset the stream, or the connection is lost."""
        self._lose()

    def _lose(self) -> None:
        exchange, upgraded = self._exchange, self._upgraded
        self._drop_exchange()
        if exchange is not None:
            exchange.client_lost()
        elif upgraded is not None:
            upgraded.client_lost()

    def fill(self, writer: FrameWriter) -> bool:
        """The client takes all that waits, and more."""
        if self.writing_paused:
            self.writing_paused = False
            if self._exchange is not None:
                self._exchange.resume_receiving()
            elif self._upgraded is not None:
                self._upgraded.resume_receiving()
        return False

    # -- what the exchange calls: the client side

    def pause_request(self) -> None:
        self._request_paused = True

    def resume_request(self) -> None:
        if not self._request_paused:
            return
        self._request_paused = False
        if self._deadline != NEVER:
            self._deadline = self._owner.clock.later(self._owner.limits.body_timeout_s)
        if self._early is None:
            self._give_credit()

    def _give_credit(self) -> None:
        if not self._request_paused:
            unread, self._unread = self._unread, 0
            if unread:
                self._stream.consumed(unread)

    def target_moved(self) -> None:
        """A client by HTTP/2 has no half-closed connection."""

    def send_continue(self) -> None:
        self._stream.send_headers(CONTINUE_FIELDS)

    def send_informational(self, response: Response) -> None:
        self._stream.send_headers(informational_fields(response))

    def start_response(
        self, response: Response, length: int, pieces: list[Piece], ended: bool, trailers: Fields
    ) -> None:
        exchange = self._exchange
        assert exchange is not None
        if self._websocket_key and 200 <= response.status < 300:
            # By HTTP/2 a 2xx opens the tunnel, whose bytes the client would take for frames.
            exchange.fail(502, "the target did not switch to websocket", "response head")
            return
        if self._is_grpc and length == 0:
            length = UNFRAMED  # only a head, which gRPC knows by its END_STREAM
        fields = response_fields(response, length)
        if ended and pieces and not trailers and self._send_whole(response.status, fields, pieces):
            return
        self._head(response.status, fields, ended and not pieces and not trailers)
        if not ended or pieces or trailers:
            self.send_body(pieces, ended, trailers)

    def _send_whole(self, status: int, fields: Fields, pieces: list[Piece]) -> bool:
        """Send a small response in one write. Returns whether that was possible."""
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        size = len(body)
        if size > WHOLE_BYTES:
            return False
        self._begin_response(status)
        self._stream.stops_peer = True  # S4
        if type(body) is not bytes:
            body = bytes(body)
        if not self._stream.send_whole(fields, body):
            self._stream.stops_peer = False
            return False
        self._sent_bytes = size
        return True

    def _begin_response(self, status: int) -> None:
        if not self.response_begun:
            self._connection.responds()
            self.response_begun = self._stream.responded = True
            self._status = status
            self._deadline = NEVER

    def _head(self, status: int, fields: Fields, ended: bool) -> None:
        """Send the head of the final response."""
        self._begin_response(status)
        if ended:
            self._stream.stops_peer = True  # S4
        self._stream.send_headers(fields, end_stream=ended)

    def send_body(self, pieces: list[Piece], ended: bool, trailers: Fields) -> None:
        writer = self._writer
        for piece in pieces:
            self._sent_bytes += len(piece)
            writer.append(piece)
        if ended:
            self._stream.stops_peer = True  # S4
            self._stream.finish((trailer_fields(trailers, self._is_grpc) or None) if trailers else None)
        elif pieces:
            self._sending()

    def _sending(self) -> None:
        """There are bytes to send."""
        self._stream.wake()
        if self._writer.pending > HIGH_BYTES and not self.writing_paused:
            self.writing_paused = True  # S3
            if self._exchange is not None:
                self._exchange.pause_receiving()
            elif self._upgraded is not None:
                self._upgraded.pause_receiving()

    def response_done(self) -> None:
        self._drop_exchange()

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
        owner, metrics = self._owner, self._connection.metrics
        if self._is_grpc and status >= 300:
            self._fail_call(status, reason, limit)
            return
        if status == 503:
            fields = [*(fields or ()), (b"Retry-After", b"%d" % owner.limits.retry_after_s)]
        head, body = own_parts(status, reason, self.request_id, fields or [])
        if self._exchange is not None and self._exchange.request.method == b"HEAD" and not self._websocket_key:
            body = b""
        if metrics is not None:
            metrics.own[status // 100] += 1
        self._head(status, own_response_fields(status, head), not body)
        if body:
            self.send_body([body], True, NO_TRAILERS)
        self._drop_exchange()

    def _fail_call(self, status: int, reason: str, limit: str) -> None:
        """Respond to a call with a status of gRPC: a head, and nothing behind it."""
        if self._connection.metrics is not None:
            self._connection.metrics.own[status // 100] += 1
        self._head(200, [(b":status", b"200"), *failure_head(status, reason, self.request_id, limit)], True)
        self._drop_exchange()

    def abort_response(self, reason: str, limit: str) -> None:
        code = ErrorCode.INTERNAL_ERROR
        if self._upgraded is not None:
            code = ErrorCode.CANCEL if self._websocket_key else ErrorCode.CONNECT_ERROR
        if self._connection.metrics is not None:
            self._connection.metrics.cut += 1
        is_call = self._is_grpc and self._upgraded is None
        self._drop_exchange()
        if is_call:
            self._stream.stops_peer = True  # S4
            self._stream.finish(failure_trailers(reason, self.request_id, limit))
        else:
            self._reset(code)

    def truncation(self) -> dict[str, int]:
        if not self.response_begun:
            return {}
        unsent_bytes = self._writer.pending
        return {"status": self._status, "truncated": True, "sent_bytes": max(0, self._sent_bytes - unsent_bytes)}

    # -- what the exchange and its tunnel call behind a 101 or a CONNECT's 200

    def switch_protocols(self, response: Response, rest: Piece, upgraded: ClientTunnel) -> None:
        fields: Fields = [(b":status", b"200")]
        if self._websocket_key:
            found = response_fields(response, CHUNKED)
            accepts = [value for name, value in found if name == b"sec-websocket-accept"]
            if accepts != [accept_of(self._websocket_key)]:
                extra = {**self.log_fields(), "stage": "response head", "status": 502, "fault": "target"}
                logger.warning("the target's Sec-WebSocket-Accept is wrong", extra=extra)
                upgraded.client_lost()
                self.respond_with(502, "the target's Sec-WebSocket-Accept is wrong", fault="target")
                return
            fields += [field for field in found if field[0] not in (b"sec-websocket-accept", b":status")]
        self._exchange = None
        self._upgraded = upgraded
        self._head(200, fields, False)
        if rest:
            self.write(rest)
        if self.writing_paused:
            upgraded.pause_receiving()
        early, self._early = self._early, None
        if early:
            upgraded.client_bytes(bytes(early))
        self._give_credit()
        if self._stream.remote_ended:
            upgraded.client_eof()

    def write(self, data: Piece) -> None:
        self._sent_bytes += len(data)
        self._writer.append(data)
        self._sending()

    def write_eof(self) -> bool:
        self._stream.finish()
        return True

    def tunnel_done(self) -> None:
        self._drop_exchange()
        self._stream.stops_peer = True
        self._stream.finish()

    # -- ends

    def _drop_exchange(self) -> None:
        if self._exchange is not None or self._upgraded is not None:
            self._exchange = self._upgraded = self._early = None
            self._held = b""
            self._deadline = NEVER
            self._owner.requests_in_flight -= 1

    def _reset(self, code: int) -> None:
        self._stream.reset(code)

    def close_if_idle(self) -> None:
        """At a drain, end a tunnel whose client has left. It only awaits the silence of its target."""
        if self._upgraded is not None:
            self._upgraded.end_if_left()

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
        pending = self._writer.pending
        if not pending or (self._is_grpc and self._exchange is not None):  # a call's client may read late
            self._stall.reset()
        elif self._stall.is_longer_than(self._owner.limits.write_timeout_s, self._sent_bytes - pending, now):
            self._stalled()

    def _late(self) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if self._request_paused:  # it is the target that is slow
            self._deadline = self._owner.clock.later(self._owner.limits.body_timeout_s)
        else:
            reason, limit = "the request's body did not come in time", "limits.body_timeout_s"
            exchange.fail(408, reason, "request body", True, "client", limit)

    def _stalled(self) -> None:
        """The client has given no credit for `write_timeout_s`."""
        extra: dict[str, object] = {**self.log_fields(), "stage": "write", "fault": "client"}
        extra["limit"] = "limits.write_timeout_s"
        if self._exchange is not None:
            extra.update(self.truncation())
        logger.warning("the client takes nothing", extra=extra)
        self._reset(ErrorCode.CANCEL)
        self._lose()
