"""One stream to a target: the HTTP/2 form of `UpstreamStream`.

    IDLE ──send(head)──► OPEN ──────────── response whole ───────────► released
              │            │ refused, and the body sent so far is kept
              │            ▼
              └───────── MOVING ──another connection──► OPEN           at most once
                           └──none──► upstream_lost, with `failure`

`deliver` passes on all parts of one arrival together: the head, the pieces of the body, and the end. So a small
response reaches the client in one write.

Invariants:
S1. The connection counts the stream until `_release`, once. After that the stream makes no call to its user.
S2. Credit for received bytes returns while the response is not paused. So a slow client holds at most one window.
S3. At most KEPT_BODY_BYTES of a body are kept for the case that the target refuses the stream.
S4. END_STREAM is the end of a response only if the DATA add up to its Content-Length.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Protocol

from ..errors import TargetError, WireError
from ..http2.errors import ErrorCode, GoAwayError, StreamReset, StreamsExhausted, code_name
from ..http2.framing import FrameWriter
from ..http2.head_rules import Headers
from .clock import Stall
from .heads import CHUNKED, UNFRAMED, Request, Response
from .http2_target_heads import (
    MalformedTrailers,
    ResponseHeads,
    check_trailers,
    needs_http1,
    request_fields,
    websocket_fields,
    websocket_key,
)
from .pieces import Piece
from .rules import HeadError
from .upstream_stream import HeldTunnel, StreamUser, TunnelUser, UpstreamStream

if TYPE_CHECKING:
    from ..config.limits import ProxyLimits
    from ..http2.stream import Http2Stream
    from ..messages import Target
    from .head_writer import TargetHead
    from .headers import Fields

__all__ = ["Http2TargetStream", "StreamSource", "TargetConnection"]

logger = logging.getLogger(__name__)

KEPT_BODY_BYTES = 64 * 1024
"""The most bytes of a body that are sent again to another connection (http.md's rule for refused streams)."""

FILL_BYTES = 64 * 1024
"""The most bytes given to the connection at a time. The others wait here, so that this side sees the windows."""


class TargetConnection(Protocol):
    """The connection of a stream, as the stream calls it."""

    heads: ResponseHeads

    def open(self, user: Http2TargetStream, fields: Headers, ended: bool) -> Http2Stream:
        """Open a stream. Raises StreamsExhausted."""

    def touched(self, stream: Http2TargetStream) -> None:
        """Bytes for this stream have arrived. `deliver` follows, once all are there."""

    def release(self) -> None:
        """One stream less."""

    @property
    def takes_connect(self) -> bool:
        """Whether the target takes extended CONNECT requests."""

    @property
    def is_closing(self) -> bool:
        """Whether it opens no further stream."""

    @property
    def failure(self) -> TargetError | None:
        """Why the connection ended, where that is known."""


class StreamSource(Protocol):
    """Where another connection comes from."""

    @property
    def limits(self) -> ProxyLimits: ...

    async def reserve(self, target: Target, other_than: TargetConnection) -> TargetConnection:
        """Another connection with room for one stream, which the caller must release. Raises TargetError.

        Cancelled: nothing stays reserved.
        """


class Http2TargetStream(UpstreamStream):
    """One request and its response on a shared connection.

    connection: counts this stream already.
    reused: the connection has served a stream before.
    is_touched: the connection calls `deliver` soon.
    """

    __slots__ = (
        "_connection",
        "_ended",
        "_failure",
        "_head",
        "_informational",
        "_is_grpc",
        "_is_head_only",
        "_kept",
        "_kept_bytes",
        "_left",
        "_length",
        "_moving",
        "_pieces",
        "_reading_paused",
        "_request_ended",
        "_response",
        "_source",
        "_stall",
        "_stream",
        "_switches",
        "_trailers",
        "_tunnel",
        "_unread_bytes",
        "_unsent",
        "_unsent_bytes",
        "_was_moved",
        "_websocket_key",
        "is_touched",
    )

    def __init__(self, source: StreamSource, connection: TargetConnection, reused: bool) -> None:
        self.user: StreamUser | None = None
        self.path = None
        self.reused = reused
        self.has_answered = False
        self.writing_paused = False
        self.is_touched = False
        self._source = source
        self._connection: TargetConnection | None = connection
        self._stream: Http2Stream | None = None
        # the request
        self._head: TargetHead | None = None
        self._websocket_key: bytes | None = None
        self._unsent: deque[Piece] = deque()
        self._unsent_bytes = 0
        self._kept: list[Piece] | None = []  # S3
        self._kept_bytes = 0
        self._request_ended = False
        self._stall = Stall()
        self._moving: asyncio.Task[None] | None = None
        self._was_moved = False
        # the response
        self._is_head_only = self._is_grpc = False
        self._informational = 0
        self._response: Response | None = None
        self._length = CHUNKED
        self._left = -1  # bytes that Content-Length still owes, -1 without one
        self._pieces: list[Piece] = []
        self._ended = False
        self._trailers: Fields = []
        self._switches = False
        self._reading_paused = False
        self._unread_bytes = 0
        self._failure: TargetError | None = None
        self._tunnel: TunnelUser | None = None

    # -- the exchange's calls

    @property
    def failure(self) -> TargetError | None:
        if self._failure is None and self._connection is not None:
            return self._connection.failure
        return self._failure

    def start(self, user: StreamUser, request: Request) -> bool:
        if self._connection is None or self._connection.is_closing:
            self._release()
            return False
        self.user = user
        self._is_head_only = request.method == b"HEAD"
        self._is_grpc = request.is_grpc
        return True

    def send(self, head: TargetHead | None, pieces: list[Piece], ended: bool) -> None:
        if ended or (head is not None and head.request.length == 0):
            self._request_ended = True
        if pieces:
            self._keep(pieces)
            self._unsent.extend(pieces)
            self._unsent_bytes += sum(map(len, pieces))
        if head is not None:
            self._head = head
            self._open()
        elif self._stream is not None:
            self._send_on(self._stream)
        if not self.writing_paused and self._waiting_bytes() > self._source.limits.buffer_bytes:
            self.writing_paused = True
            self._stall.reset()
            user = self.user or self._tunnel
            if user is not None:
                user.pause_sending()

    def _keep(self, pieces: list[Piece]) -> None:
        if self._kept is None:
            return
        self._kept_bytes += sum(map(len, pieces))
        if self._kept_bytes > KEPT_BODY_BYTES or self.has_answered:
            self._kept = None
        else:
            self._kept += pieces

    def _open(self) -> None:
        head, connection = self._head, self._connection
        assert head is not None
        assert connection is not None
        if head.request.upgrade:
            key = websocket_key(head)
            fault = self._upgrade_fault(head, key, connection)
            if fault:
                # Not from within `send`, whose caller has not finished.
                asyncio.get_running_loop().call_soon(self._fail, fault, "request head")
                return
            self._websocket_key = key
        is_tunnel = self._websocket_key is not None
        if is_tunnel:
            self._request_ended = False
        fields = websocket_fields(head) if is_tunnel else request_fields(head)
        try:
            stream = connection.open(self, fields, self._request_ended and not self._unsent)
        except StreamsExhausted as error:
            asyncio.get_running_loop().call_soon(self._refused, str(error))
            return
        self._stream = stream
        self._send_on(stream)

    @staticmethod
    def _upgrade_fault(head: TargetHead, key: bytes | None, connection: TargetConnection) -> str:
        """Why HTTP/2 can't carry the request's upgrade, or ""."""
        if key is None:
            return "the target has only HTTP/2, which does not have the requested upgrade" if needs_http1(head) else ""
        if head.request.length != 0:
            return "the target has only HTTP/2, where a WebSocket's request has no body"
        return "" if connection.takes_connect else "the target does not take WebSockets by HTTP/2"

    def _send_on(self, stream: Http2Stream) -> None:
        """Let the connection ask for what is unsent, or end the request."""
        if self._unsent:
            stream.wake()
        elif self._request_ended and not stream.local_ended:
            stream.finish()

    def _waiting_bytes(self) -> int:
        return self._unsent_bytes + (self._stream.writer.pending if self._stream is not None else 0)

    def takes_nothing(self, now: float) -> bool:
        if not self.writing_paused:
            return False
        return self._stall.is_longer_than(self._source.limits.write_timeout_s, self._waiting_bytes(), now)

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._return_credit()

    def _return_credit(self) -> None:
        unread, self._unread_bytes = self._unread_bytes, 0
        if unread and self._stream is not None and not self._stream.gone:
            self._stream.consumed(unread)

    def finish(self, request_done: bool) -> None:
        stream = self._stream
        self._release()
        if stream is not None and not stream.local_ended:
            stream.reset(ErrorCode.NO_ERROR)  # RFC 9113, section 8.1

    def abort(self) -> None:
        stream = self._stream
        self._release()
        if stream is not None:
            stream.reset(ErrorCode.CANCEL)

    def _release(self) -> None:
        """The stream serves no user from now on (S1)."""
        self.user = self._tunnel = None
        self._unsent, self._pieces, self._kept = deque(), [], None
        self._unsent_bytes = 0
        self._response = None
        moving, self._moving = self._moving, None
        if moving is not None:
            moving.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._failure = connection.failure
            connection.release()

    # -- the connection's calls: what is to be sent

    def fill(self, writer: FrameWriter) -> bool:
        """Give the connection the next bytes."""
        unsent = self._unsent
        given = 0
        while unsent and given < FILL_BYTES:
            piece = unsent.popleft()
            writer.append(piece)
            given += len(piece)
        self._unsent_bytes -= given
        if not unsent and self._request_ended and self._stream is not None:
            self._stream.finish()
        # By what is unsent here alone, since the connection does not ask again for what it was given.
        if self.writing_paused and self._unsent_bytes <= self._source.limits.buffer_bytes // 4:
            self.writing_paused = False
            asyncio.get_running_loop().call_soon(self._resume_sending)
        return bool(unsent)

    def _resume_sending(self) -> None:
        user = self.user or self._tunnel
        if user is not None and not self.writing_paused:
            user.resume_sending()

    # -- the connection's calls: what has arrived

    def headers_received(self, headers: Headers, ended: bool) -> None:
        """Read the final response's head."""
        connection, head = self._connection, self._head
        if self.user is None or connection is None or head is None:
            return
        self._answered()
        try:
            if self._websocket_key is not None and headers[0][1].startswith(b"2"):
                self._response = connection.heads.switched(headers, self._websocket_key)
                self._switches = True
                self._ended = ended
                connection.touched(self)
                return
            response = connection.heads.read(headers)
        except HeadError as error:
            self._fail(str(error), "response head", rule=error.rule)
            return
        self._take_length(response)
        self._response = response
        if ended:
            self._end([])
        if self._connection is not None:
            connection.touched(self)

    def _take_length(self, response: Response) -> None:
        """Note the body's length, and the length for the client. As in `ResponseReader`."""
        length, status = response.content_length, response.status
        if self._is_head_only or status in (204, 304):
            self._left = 0
            self._length = length if length >= 0 and status != 204 else UNFRAMED
            return
        self._left = length
        takes_trailers = self._head is not None and self._head.request.takes_trailers
        # In HTTP/1.1 only a chunked body has trailers, and they may follow a Content-Length in HTTP/2.
        self._length = CHUNKED if length < 0 or takes_trailers else length

    def informational_received(self, headers: Headers) -> None:
        """Pass a 1xx on."""
        user, connection = self.user, self._connection
        if user is None or connection is None:
            return
        self._answered()
        try:
            response = ResponseHeads().read(headers)
        except HeadError as error:
            self._fail(str(error), "response head", rule=error.rule)
            return
        self._informational += 1
        if self._informational > self._source.limits.informational_responses:
            limit = "limits.informational_responses"
            self._fail("the target sent too many 1xx responses", "response head", limit=limit)
            return
        user.informational(response)

    def data_received(self, data: Piece) -> None:
        """Take bytes of the body, or of the tunnel."""
        connection = self._connection
        if connection is None:
            return
        size = len(data)
        self._unread_bytes += size
        if self._left >= 0 and not self._switches and self._tunnel is None:
            if size > self._left:
                self._fail("the target sent more than its Content-Length", "response body")
                return
            self._left -= size
        self._pieces.append(data)
        connection.touched(self)

    def trailers_received(self, headers: Headers) -> None:
        """The response is whole, with these trailers."""
        try:
            trailers = check_trailers(headers, self._source.limits, self._is_grpc)
        except MalformedTrailers as error:
            self._fail(f"the target's body is broken: {error}", "response body", limit=error.limit)
            return
        self._end(trailers)
        if self._connection is not None:
            self._connection.touched(self)

    def stream_ended(self) -> None:
        """The target has ended its side."""
        self._end([])
        if self._connection is not None:
            self._connection.touched(self)

    def _end(self, trailers: Fields) -> None:
        if self._left > 0:  # S4
            self._fail("the target sent less than its Content-Length", "response body")
            return
        self._ended = True
        self._trailers = trailers if self._length == CHUNKED else []  # HTTP/1.1 has no others
        response = self._response
        if response is not None and not trailers and self._length == CHUNKED:
            if response.content_length >= 0:
                self._length = response.content_length
            elif not self._pieces:
                self._length = 0  # a head with END_STREAM

    def stream_lost(self, error: Exception) -> None:
        """The stream was reset, or its connection ended."""
        if self._connection is None:
            return
        stream_id = self._stream.id if self._stream is not None else 0
        if isinstance(error, StreamReset):
            if error.code == ErrorCode.REFUSED_STREAM and not self.has_answered:
                self._refused("the target refused the stream")
                return
        elif isinstance(error, GoAwayError) and stream_id > error.last_stream_id and not self.has_answered:
            self._refused("the target closed the connection before it took the stream")
            return
        if self._response is None or self._ended or self._switches:
            self.deliver()  # otherwise the client gets a 502 instead of a response that is cut short
        if self._tunnel is not None:
            tunnel = self._tunnel
            self._release()
            tunnel.upstream_lost(error)
        elif isinstance(error, StreamReset):
            self._fail(f"the target reset the stream ({code_name(error.code)})", self._stage)
        elif isinstance(error, WireError):
            self._fail(f"the target broke HTTP/2: {error.rule.removeprefix('HTTP/2: ')}", self._stage)
        else:
            user = self.user
            if user is not None:
                user.upstream_lost(error)

    @property
    def _stage(self) -> str:
        return "response body" if self.has_answered and self._response is None else "response head"

    def _answered(self) -> None:
        self.has_answered = True
        self._kept = None

    # -- what goes to the user

    def deliver(self) -> None:
        """Pass on what has arrived."""
        response, self._response = self._response, None
        pieces, self._pieces = self._pieces, []
        if self._switches and response is not None:
            self._switches = False
            if self.user is None:
                return
            self.user.switched(response, b"")
        if self._tunnel is not None:
            self._deliver_to_tunnel(pieces)
            return
        user, ended = self.user, self._ended
        if user is None:
            return
        if response is not None:
            user.response_started(response, self._length, pieces, ended, self._trailers)
        elif pieces or ended:
            user.response_body(pieces, ended, self._trailers)
        if not self._reading_paused:
            self._return_credit()

    def _deliver_to_tunnel(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if self._tunnel is not None:
                self._tunnel.tunnel_data(piece)
        if not self._reading_paused:
            self._return_credit()
        if self._ended and self._tunnel is not None:
            self._ended = False
            if not self._tunnel.tunnel_eof():
                self.close()

    def _fail(self, reason: str, stage: str, *, limit: str = "", rule: str = "") -> None:
        """The target broke its protocol, or can't serve the request."""
        user, tunnel, stream = self.user, self._tunnel, self._stream
        if stream is not None:
            stream.reset(ErrorCode.PROTOCOL_ERROR)
        if user is not None:
            self._ended = False
            if self._pieces and self._response is None:  # the client has the head already
                self.deliver()
            user.response_failed(reason, stage, limit, rule)
        elif tunnel is not None:
            self._release()
            tunnel.upstream_lost(ConnectionAbortedError(reason))

    # -- a stream that the target did not process (RFC 9113, section 8.7)

    def _refused(self, reason: str) -> None:
        """Move to another connection, once, where all of the body is kept."""
        if self._connection is None or self.user is None:
            return
        if self._was_moved or self._kept is None:
            self._fail(reason + (", twice" if self._was_moved else ", and too much was sent to begin again"), "retry")
            return
        head = self._head
        assert head is not None
        extra = {"request_id": head.request_id.decode(), "stage": "retry", "reason": reason}
        logger.warning("the request goes to another connection of the target", extra=extra)
        self._was_moved = True
        self.reused = False
        self._unsent = deque(self._kept)
        self._unsent_bytes = self._kept_bytes
        self._stream = None
        connection, self._connection = self._connection, _NOWHERE
        connection.release()
        self._moving = asyncio.get_running_loop().create_task(self._move(head.target, connection))

    async def _move(self, target: Target, other_than: TargetConnection) -> None:
        try:
            connection = await self._source.reserve(target, other_than)
        except TargetError as error:
            self._moving = None
            self._failure = error
            if self.user is not None:
                self.user.upstream_lost(None)
            return
        self._moving = None
        self._connection = connection
        self._open()

    # -- a tunnel, behind an extended CONNECT's 200

    def switch(self, user: TunnelUser) -> HeldTunnel | None:
        self.user = None
        self._tunnel = user
        return None

    def write(self, data: Piece) -> None:
        if self._tunnel is not None:
            self.send(None, [data], False)

    def write_eof(self) -> bool:
        if self._tunnel is not None:
            self.send(None, [], True)
        return True

    def close(self) -> None:
        stream, unsent = self._stream, self._unsent
        self._release()
        if stream is None or stream.gone:
            return
        for piece in unsent:
            stream.writer.append(piece)
        stream.stops_peer = True  # a reset follows the last byte
        stream.finish()
        if not stream.gone:
            asyncio.get_running_loop().call_later(self._source.limits.write_timeout_s, stream.reset)


class _Nowhere:
    """The connection of a stream that waits for another one."""

    heads = ResponseHeads()
    takes_connect = False
    is_closing = True
    failure = None

    def open(self, user: Http2TargetStream, fields: Headers, ended: bool) -> Http2Stream:
        raise StreamsExhausted

    def touched(self, stream: Http2TargetStream) -> None:
        pass

    def release(self) -> None:
        pass


_NOWHERE: TargetConnection = _Nowhere()
