"""The hub's side: accepts agents' calls, replies to their probes, and passes each session to its owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from ..errors import AgentError, WireError
from ..http2.connection import Http2Connection
from ..http2.errors import ErrorCode
from ..http2.head_rules import Headers
from ..http2.stream import Http2Stream
from ..runtime.deadlines import CATCH_UP_S, LATE_S
from ..syntax import readable
from .budget import MessageBudget
from .features import FEATURES, GOAWAY, WINDOW, read_features, write_features
from .grpc import PATH, GrpcStatus, Status, is_grpc, metadata_of, response_headers, trailers
from .liveness import Liveness, LivenessTimes
from .messages import MessageReader, MessageRefused, MessageSink, PacketWriter
from .packet import MAX_SENT_MESSAGE_BYTES, ControlCode, PacketReceiver
from .session import Tunnel
from .sizes import WINDOW_BYTES
from .window import WindowBudget

__all__ = ["ConnectionWatch", "GrpcStatus", "OpenTunnel", "TunnelServer"]

OpenTunnel = Callable[[Tunnel, Headers], PacketReceiver]
"""`open_tunnel(tunnel, metadata)`: the receiver of an agent's packets. metadata: (name, value) in the order received,
names in lower case. Raises GrpcStatus to refuse the call."""

CALL_TIMEOUT_S = 10.0
"""Seconds that a connection may have no accepted call, since only a call identifies the peer."""

_HTTP_METHOD_NOT_ALLOWED, _HTTP_UNSUPPORTED_MEDIA_TYPE = b"405", b"415"

logger = logging.getLogger(__name__)


class ConnectionWatch(Protocol):
    """The observer of a connection."""

    def call_accepted(self) -> None:
        """A call of the connection was accepted. Called for each."""

    def calls_ended(self) -> None:
        """All accepted calls of the connection have ended. Another may follow."""

    def connection_ended(self) -> None:
        """The connection is closed. This is the last call."""


class TunnelServer:
    """Takes agents' connections, each of which may carry several calls (gRPC libraries share one among channels).

    Args:
        open_tunnel: called for each call, before its first packet.
        window_bytes: receive window of each stream and connection, 65,535 to 2^31-1.
        message_bytes: the longest accepted message. Like base hubs, no more than agents send (wire.md, "agent → hub,
            DATA").
        messages: the budget of unfinished messages over all calls of all connections.
        liveness: the times until a silent agent is asked, suspected and closed (`liveness`).
        call_timeout_s: a connection without an accepted call for this long is closed.
        features: the extensions for agents that offer them.
        windows: the budget of all connections' windows.
    """

    def __init__(
        self,
        *,
        open_tunnel: OpenTunnel,
        window_bytes: int = WINDOW_BYTES,
        message_bytes: int = MAX_SENT_MESSAGE_BYTES,
        liveness: LivenessTimes | None = None,
        call_timeout_s: float = CALL_TIMEOUT_S,
        features: frozenset[str] = FEATURES,
        windows: WindowBudget | None = None,
        messages: MessageBudget | None = None,
    ) -> None:
        self.open_tunnel = open_tunnel
        self.features = features
        self.windows = windows or WindowBudget()
        self.messages = messages or MessageBudget()
        self.liveness = liveness or LivenessTimes()
        self.call_timeout_s = call_timeout_s
        self._window_bytes = window_bytes
        self._message_bytes = message_bytes
        self._peers: set[_Peer] = set()
        self._closing = False
        self._empty: asyncio.Event | None = None

    def protocol(self, watch: ConnectionWatch | None = None) -> Http2Connection:
        """A protocol for one connection: the factory for `loop.create_server`."""
        peer = _Peer(self, watch)
        peer.connection = Http2Connection(
            peer,
            client=False,
            window_bytes=self._window_bytes,
            make_reader=self._make_reader,
            make_writer=PacketWriter,
        )
        return peer.connection

    def _make_reader(self, stream: Http2Stream, window_bytes: int) -> MessageReader:
        return MessageReader(
            cast(MessageSink, stream.user),  # `_Peer.stream_opened` sets a Tunnel
            window=window_bytes,
            max_message_bytes=self._message_bytes,
            account=self.messages.account(stream),
            ends=True,
        )

    async def close(self, timeout_s: float = 5.0) -> None:
        """End every tunnel with UNAVAILABLE and close its connection. The agents reconnect with their back-off.

        Connections whose peer doesn't read are aborted after timeout_s. If cancelled, all are aborted at once.
        """
        self._closing = True
        self._empty = asyncio.Event()
        for peer in list(self._peers):
            peer.close()
        if self._peers:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            except TimeoutError:
                logger.warning("%d agents' connections did not close in time", len(self._peers))
            finally:
                for peer in list(self._peers):
                    peer.connection.abort()

    def _connected(self, peer: _Peer) -> None:
        self._peers.add(peer)
        if self._closing:
            peer.close()

    def _ended(self, peer: _Peer) -> None:
        self._peers.discard(peer)
        if not self._peers and self._empty is not None:
            self._empty.set()


class _Peer:
    """One connection from an agent."""

    connection: Http2Connection

    def __init__(self, server: TunnelServer, watch: ConnectionWatch | None) -> None:
        self._server = server
        self._watch = watch
        self._calls: set[_Call] = set()
        self._accepted: set[_Call] = set()  # those of them that were not refused
        self._no_call: asyncio.TimerHandle | None = None
        self._no_call_s = 0.0  # when it is due
        self._liveness: Liveness | None = None

    def connected(self, connection: Http2Connection) -> None:
        self._liveness = Liveness(connection, self._server.liveness)
        self._server._connected(self)
        if not connection.closing:
            self._liveness.start()
            self._await_call(self._server.call_timeout_s)

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        call = _Call(self._server)
        call.tunnel.liveness = self._liveness
        stream.user = call.tunnel
        self._calls.add(call)
        call.ended.append(lambda: self._call_ended(call))
        if not call.begin(stream, headers, ended):
            return
        if not call.tunnel.lost:
            self._accepted.add(call)
            if self._no_call is not None:
                self._no_call.cancel()
                self._no_call = None
            if self._watch is not None:
                self._watch.call_accepted()

    def _await_call(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._no_call_s = loop.time() + timeout_s
        self._no_call = loop.call_at(self._no_call_s, self._without_call)

    def _without_call(self) -> None:
        if asyncio.get_running_loop().time() - self._no_call_s > LATE_S:
            self._await_call(CATCH_UP_S)  # the process was stopped, so waiting bytes are read first
        else:
            self.connection.close()

    def _call_ended(self, call: _Call) -> None:
        self._calls.discard(call)
        if call in self._accepted:
            self._accepted.discard(call)
            if not self._accepted and not self.connection.closing:
                self._await_call(self._server.call_timeout_s)
                if self._watch is not None:
                    self._watch.calls_ended()

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        logger.info("a request is malformed", extra={"peer": connection.extra_info("peername"), "reason": fault})

    def goaway_received(self, connection: Http2Connection) -> None:
        pass  # the agent opens nothing further, and its calls continue

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        if self._liveness is not None:
            self._liveness.stop()
        if self._no_call is not None:
            self._no_call.cancel()
            self._no_call = None
        if self._watch is not None:
            self._watch.connection_ended()
        if isinstance(error, WireError):
            peer = connection.extra_info("peername")
            logger.warning("an agent's connection ends: %s", error, extra={"peer": peer})
        self._server._ended(self)

    def close(self) -> None:
        """End all calls, then the connection."""
        self.connection.refuse_streams()
        for call in list(self._calls):
            agreed = call.tunnel.drain_sent and call.tunnel.drain_received
            call.end(GrpcStatus(Status.OK) if agreed else GrpcStatus(Status.UNAVAILABLE, "the hub is shutting down"))


class _Call:
    """One call of an agent's."""

    def __init__(self, server: TunnelServer) -> None:
        self.tunnel = Tunnel("hub", self, server.windows)
        self.ended: list[Callable[[], None]] = []
        self._server = server
        self._stream: Http2Stream | None = None

    def begin(self, stream: Http2Stream, headers: Headers, ended: bool) -> bool:
        """Check the call, and open the tunnel or refuse. Returns whether it was accepted."""
        self._stream = stream
        self.tunnel.attach(stream)
        fields = dict(headers)
        if fields.get(b":method") != b"POST":
            self._refuse([(b":status", _HTTP_METHOD_NOT_ALLOWED), (b"allow", b"POST")])
            return False
        if not is_grpc(headers):
            self._refuse([(b":status", _HTTP_UNSUPPORTED_MEDIA_TYPE)])
            return False
        try:
            if fields.get(b":path") != PATH:
                path = readable(fields.get(b":path", b""))
                raise GrpcStatus(Status.UNIMPLEMENTED, f"there is no method {path}")
            if b"content-length" in fields:
                # Nobody would hold the call's DATA against it (RFC 9113, section 8.1.1).
                raise GrpcStatus(Status.INVALID_ARGUMENT, "a tunnel's call has no content-length")
            if not fields.get(b"cluster-name"):
                raise GrpcStatus(Status.UNKNOWN, "the metadata cluster-name is missing")  # as a base hub (wire.md)
            if ended:
                raise GrpcStatus(Status.INVALID_ARGUMENT, "the call ended with its head")
            self.tunnel.negotiated(read_features(headers) & self._server.features)
            receiver = self._server.open_tunnel(self.tunnel, metadata_of(headers))
        except GrpcStatus as status:
            if not status.logged:
                peer = stream.connection.extra_info("peername")
                logger.info("an agent's call was refused: %s", status, extra={"peer": peer})
            head = response_headers()[:2] + trailers(status.code, status.message)
            if status.pushback_s is not None:
                head.append((b"grpc-retry-pushback-ms", b"%d" % (status.pushback_s * 1000)))
            self._refuse(head)
            return False
        self.tunnel.open(receiver)
        # At once, before any packet, since it decides how the agent reads packets (wire.md, "Extensions").
        if WINDOW in self.tunnel.features:
            self.tunnel.measure()
        stream.send_headers(response_headers() + write_features(self.tunnel.features))
        return True

    def end(self, status: GrpcStatus, error: Exception | None = None) -> None:
        """End the call with this status, and report it to the receiver. A second call has no effect."""
        if not self.tunnel.lost:
            self.tunnel.end(trailers(status.code, status.message))
            self._lost(error)

    # -- what the tunnel calls

    def tunnel_packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        if code == ControlCode.DATA:
            # For -1 this is the reply to the agent's probe (wire.md, "connected").
            self.tunnel.send(conn_id, ControlCode.ERROR, b"", f"unknown packet connection {conn_id}")
        elif code == ControlCode.DRAIN and conn_id == 0:
            if GOAWAY not in self.tunnel.features:
                self.tunnel.receiver.packet_received(0, code, b"", error_message)
                self.end(GrpcStatus(Status.OK))
            elif not self.tunnel.drain_received:
                self.tunnel.drain_received = True
                self.tunnel.receiver.packet_received(0, code, b"", error_message)  # it announces what it has opened
                self.tunnel.say_drain()

    def end_call(self) -> None:
        self.end(GrpcStatus(Status.OK))

    def headers_received(self, headers: Headers, ended: bool) -> None:
        pass  # an agent's head comes with the call itself

    def trailers_received(self, headers: Headers) -> None:  # which no gRPC client sends
        self.stream_ended(self.tunnel.in_message)

    def stream_ended(self, in_message: bool) -> None:
        if in_message:
            reason = "the stream ended in the middle of a message"
            self.end(GrpcStatus(Status.INTERNAL, reason), AgentError(reason))
        else:
            self.end(GrpcStatus(Status.OK))

    def message_refused(self, error: MessageRefused) -> None:
        peer = self.tunnel.peername
        logger.warning("an agent's call ends: %s", error, extra={"peer": peer})
        self.end(GrpcStatus(Status.RESOURCE_EXHAUSTED, error.rule), error)

    def stream_lost(self, error: Exception) -> None:
        if isinstance(error, WireError):
            logger.warning("an agent's call ends: %s", error)
        self._lost(error)

    def _lost(self, error: Exception | None) -> None:
        for ended in self.ended:
            ended()
        self.ended.clear()
        self.tunnel.set_lost(error)

    def _refuse(self, head: Headers) -> None:
        assert self._stream is not None
        self._stream.send_headers(head, end_stream=True)
        self._stream.reset(ErrorCode.NO_ERROR)  # the response is complete (RFC 9113, section 8.1)
        self._lost(None)
