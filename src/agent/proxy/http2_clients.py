"""One client's HTTP/2 connection: its streams, its times, and its place among the proxy's connections.

                 first bytes, or ALPN                         a request
    ClientConnection ──────────► Http2ClientConnection ──────────────► Http2ClientStream, one for each

Invariants:
H1. The proxy counts the connection once, from its first byte on. `outcome` is called once, at its end.
H2. Without a stream, the connection closes: after `head_timeout_s` if none has come, else after `keep_alive_s`.
H3. A frame or header block that has begun is whole within `head_timeout_s`.
H4. A peer without a byte for PING_AFTER_S gets a PING. Without a byte for PING_DUE_S more, the connection closes.
"""

from __future__ import annotations

import logging
from typing import cast

from ..errors import WireError
from ..http2.connection import Http2Connection
from ..http2.errors import ErrorCode
from ..http2.head_rules import Headers
from ..http2.liveness import SilenceWatch
from ..http2.peer_limits import PeerLimits
from ..http2.stream import Http2Stream
from ..outcome import Kind, Outcome, Stage
from .clock import NEVER, Stall
from .context import ConnectionOwner
from .http2_client_stream import Http2ClientStream
from .http2_requests import Http2RequestReader
from .origin import Origin

__all__ = ["DECODED_HEAD_BYTES", "WINDOW_BYTES", "Http2ClientConnection"]

WINDOW_BYTES = 256 * 1024
"""The receive window of each stream, and so the most that a stream holds for a target that takes nothing."""

DECODED_HEAD_BYTES = 256 * 1024
"""A head that is larger, as HPACK counts it, closes the connection."""

FIELD_BYTES = 32
"""The size that HPACK adds for each field (RFC 7541, section 4.1)."""

SILENCE_S = 1.0
"""How long a client that has asked for nothing is left alone when others need its place."""

logger = logging.getLogger(__name__)


class Http2ClientConnection:
    """One client's connection, as the user of its `Http2Connection`.

    Args:
        owner: the proxy.
        is_served: its requests are served. Otherwise the first one gets a 503, and the connection drains.
        max_streams: requests at once.

    Attributes:
        protocol: for the transport.
        corked: streams whose request's head waits for the first DATA.
        carrier, metrics, requests_left: as of `server.ClientConnection`.
    """

    def __init__(
        self,
        owner: ConnectionOwner,
        conn_id: int,
        outcome: Outcome | None,
        carrier: str,
        origin: Origin,
        *,
        is_served: bool,
        max_streams: int,
    ) -> None:
        self.owner = owner
        self.conn_id = conn_id
        self.carrier = carrier
        self.metrics = owner.metrics.get(carrier)
        self.requests_left = owner.requests_per_connection
        self.is_served = is_served
        self.corked: list[Http2ClientStream] = []
        self._outcome = outcome
        self._requests = Http2RequestReader(origin, owner.connect_route is not None)
        self._deadline = owner.clock.later(owner.limits.head_timeout_s)
        self._heads = 0  # requests so far
        self._begun_heads = -1  # `_heads` when the frame in hand was first seen unfinished
        self._begun_deadline = NEVER
        self._explained = False  # a log line has the reason that the connection ends
        self._stall = Stall()
        limits = owner.limits
        self.protocol = Http2Connection(
            self,
            client=False,
            window_bytes=WINDOW_BYTES,
            peer_limits=PeerLimits(
                max_streams=max_streams,
                head_bytes=DECODED_HEAD_BYTES,
                announced_head_bytes=min(
                    DECODED_HEAD_BYTES, limits.request_head_bytes + FIELD_BYTES * limits.request_fields
                ),
                counts_streams=False,
                extended_connect=True,
            ),
            input_ended=self._input_ended,
        )
        self._silence = SilenceWatch(self.protocol)

    # -- what the HTTP/2 connection calls

    def connected(self, connection: Http2Connection) -> None:
        """The proxy counts the connection already (H1)."""

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        """Begin the exchange of a request."""
        self._heads += 1
        self._deadline = NEVER
        stream.user = user = Http2ClientStream(self, self.owner, stream)
        user.begin(self._requests, headers, ended)

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        """The client has opened a stream with a malformed head."""
        self._heads += 1
        self.log_malformed(b"", fault, "request head")

    def _input_ended(self) -> None:
        if self.corked:
            corked, self.corked = self.corked, []
            for stream in corked:
                stream.uncork()

    def goaway_received(self, connection: Http2Connection) -> None:
        """The client opens no further stream, and closes the connection itself."""

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        """The transport is closed."""
        if isinstance(error, WireError) and not self._explained:
            extra = {"conn_id": self.conn_id, "stage": "connection", "fault": "client"}
            logger.info(f"the client's connection ends: {error}", extra=extra)
        self._tell(Kind.COMPLETE if error is None else Kind.CLIENT_GONE)
        self.owner.forget(self)

    # -- what the streams call

    def log_malformed(self, request_id: bytes, reason: str, stage: str) -> None:
        """Log why a stream ends by PROTOCOL_ERROR."""
        extra: dict[str, object] = {"request_id": request_id.decode()} if request_id else {}
        extra |= {"conn_id": self.conn_id, "stage": stage, "fault": "client", "rule": "http2"}
        logger.info(f"malformed request: {reason}", extra=extra)

    def turn_away(self, stream: Http2ClientStream) -> None:
        """Respond to a request of a connection that is one too many, and let the connection end."""
        party, limit = self.owner.party, self.owner.connections_limit
        extra: dict[str, object] = {**stream.log_fields(), "stage": "connection", "status": 503, "fault": party}
        if self.owner.draining:
            reason, limit = f"the {party} is being stopped", ""
        else:
            reason = "too many connections"
            extra["limit"] = limit
        logger.info(reason, extra=extra)
        stream.respond_with(503, reason, close=True, fault=party, limit=limit)
        self.protocol.refuse_streams()

    def responds(self) -> None:
        """A response begins. Where it is the last one that the connection serves, the client gets GOAWAY."""
        if self.requests_left:
            self.requests_left -= 1
            if not self.requests_left:
                self.protocol.refuse_streams()
        if self.owner.leaving:
            self.protocol.refuse_streams()

    # -- what the proxy calls

    def is_silent(self) -> bool:
        """Whether the client has been connected for a second without any request."""
        if self._heads:
            return False
        return self.owner.clock.later(self.owner.limits.head_timeout_s) - self._deadline >= SILENCE_S

    def close_if_idle(self) -> None:
        """Let open streams finish, and close then."""
        for stream in list(self.protocol.streams.values()):
            cast(Http2ClientStream, stream.user).close_if_idle()
        self.protocol.refuse_streams()

    def abort(self) -> None:
        """End the connection at once, with what is in flight."""
        streams = [stream.user for stream in self.protocol.streams.values()]
        self._tell(Kind.FAILED if streams else Kind.COMPLETE)
        self.protocol.abort()
        for stream in streams:
            stream.stream_lost(ConnectionAbortedError("the proxy has closed the connection"))

    def _tell(self, kind: Kind) -> None:  # H1
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome(self.conn_id, kind, Stage.IDLE)

    # -- time

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the clock's time."""
        protocol, limits = self.protocol, self.owner.limits
        if protocol.closing:
            return
        for stream in list(protocol.streams.values()):
            cast(Http2ClientStream, stream.user).look_at_deadlines(now)
        if protocol.streams:
            self._deadline = NEVER
        elif self._deadline == NEVER:
            self._deadline = self.owner.clock.later(limits.keep_alive_s)  # H2
        elif now >= self._deadline and (self._heads or not protocol.has_begun_frame):
            protocol.close()
            return
        self._look_at_begun(now)
        buffered_bytes = protocol.buffered_bytes
        if not buffered_bytes:
            self._stall.reset()
        elif self._stall.is_longer_than(limits.write_timeout_s, buffered_bytes, now):
            self._end(logging.WARNING, "the client takes nothing", "write", "limits.write_timeout_s")
            return
        if not self._silence.look(now):
            self._end(logging.INFO, "the client did not reply to a PING", "connection", "")

    def _look_at_begun(self, now: float) -> None:
        """Close a connection whose frame or header block stays unfinished (H3)."""
        if not self.protocol.has_begun_frame:
            self._begun_deadline, self._begun_heads = NEVER, -1
        elif self._begun_heads != self._heads:
            self._begun_heads = self._heads
            self._begun_deadline = self.owner.clock.later(self.owner.limits.head_timeout_s)
        elif now >= self._begun_deadline:
            reason = "the request's head did not come in time"
            self._end(logging.INFO, reason, "request head", "limits.head_timeout_s")

    def _end(self, level: int, reason: str, stage: str, limit: str) -> None:
        """Close the connection, because the client does not keep up its side."""
        extra = {"conn_id": self.conn_id, "stage": stage, "fault": "client"}
        if limit:
            extra["limit"] = limit
        logger.log(level, reason, extra=extra)
        self._explained = True
        self._tell(Kind.FAILED)
        self.protocol.fail(WireError(reason, http2_code=ErrorCode.ENHANCE_YOUR_CALM))
