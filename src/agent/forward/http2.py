"""The carrier for HTTP/2 over TLS. All tunnels share a connection to the hub, and each has a stream.

    connect ──► a connection with room? ──no──► dial ──ALPN──► h2 ──SETTINGS──► connection
                      │ yes                                └──► http/1.1 ──► the HTTP/1.1 carrier, from now on
                      ▼
                CONNECT on a new stream ──2xx──► tunnel: END_STREAM is a half-close, RST_STREAM a cut
                      ├──► refused by the connection's end ──► another connection, once
                      └──► any other status: its reason is read ──► ForwardError

A connection without a byte for 20 s gets a PING, and closes 10 s later without a reply. A lost connection ends its
tunnels. The next tunnel dials again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from ..errors import AgentError, ForwardError, WireError
from ..http2.connection import Http2Connection
from ..http2.errors import ErrorCode, GoAwayError, StreamReset, StreamsExhausted
from ..http2.framing import FrameWriter
from ..http2.head_rules import Headers
from ..http2.liveness import SilenceWatch
from ..http2.peer_limits import PeerLimits
from ..http2.stream import Http2Stream
from ..syntax import Address, readable
from .carrier import HubAddress, HubEnd, credentials
from .http1 import REASON_BYTES, Http1Carrier, dial

__all__ = ["Http2Carrier"]

WINDOW_BYTES = 256 * 1024
"""Of each stream, and so the most that a slow local client holds."""

HIGH_WATER_BYTES, LOW_WATER_BYTES = 256 * 1024, 64 * 1024
"""Unsent bytes of a stream at which its writer pauses and resumes."""

MOST_STREAMS = 1000
LOOK_S = 1.0


class Http2Carrier:
    """Opens tunnels as streams.

    Args:
        hub: where to dial, with TLS that offers h2 and http/1.1.
        cluster, token, timeout_s: as for `Http1Carrier`.
        http1: the carrier for a hub without HTTP/2.
    """

    def __init__(
        self, hub: HubAddress, cluster: str, token: Callable[[], str], timeout_s: float, http1: Http1Carrier
    ) -> None:
        self._hub = hub
        self._cluster = cluster
        self._token = token
        self._timeout_s = timeout_s
        self._http1 = http1
        self._has_http2 = True
        self._sessions: list[_Session] = []
        self._dialling = asyncio.Lock()

    async def connect(self, target: Address) -> HubEnd:
        """Open a tunnel to a target. Raises ForwardError. If cancelled, nothing stays open."""
        authorization = credentials(self._cluster, self._token())
        fields = [
            (b":method", b"CONNECT"),
            (b":authority", str(target).encode("ascii")),
            (b"proxy-authorization", authorization.encode("ascii")),
        ]
        try:
            async with asyncio.timeout(self._timeout_s):
                for is_last in (False, True):
                    tunnel = await self._open(fields)
                    if tunnel is None:
                        break
                    try:
                        await tunnel.opened
                    except _NotProcessedError as error:
                        if is_last:
                            raise ForwardError("the hub refused the stream, twice", fault="hub") from error
                    except BaseException:
                        tunnel.abort()
                        raise
                    else:
                        return tunnel
        except TimeoutError as error:
            reason = f"the hub {self._hub.address} did not respond within {self._timeout_s:g} s (connect_timeout_s)"
            raise ForwardError(reason, fault="hub") from error
        return await self._http1.connect(target)

    async def _open(self, fields: Headers) -> _Tunnel | None:
        """A tunnel whose CONNECT is sent. None: the hub has no HTTP/2. Raises ForwardError."""
        while self._has_http2:
            for session in self._sessions:
                if session.room > 0:
                    return session.open(fields)
            async with self._dialling:
                if not any(session.room > 0 for session in self._sessions):
                    await self._dial()
        return None

    async def _dial(self) -> None:
        """Add a connection. Raises ForwardError. If cancelled, nothing stays open."""
        session = _Session(self._sessions)
        negotiation = _Negotiation(session.connection)
        try:
            await dial(self._hub, negotiation, self._timeout_s)
            if negotiation.is_http2:
                await session.ready
                self._sessions.append(session)
            else:
                self._has_http2 = False
        except BaseException:
            negotiation.abort()
            session.connection.abort()
            raise

    async def close(self) -> None:
        """Close all connections. Their tunnels end."""
        for session in list(self._sessions):
            session.connection.fail(ConnectionAbortedError("the command ends"))
        self._sessions.clear()
        await self._http1.close()


class _NotProcessedError(AgentError):
    """The hub has not looked at the stream, so another connection may carry it (RFC 9113, section 8.7)."""


class _Negotiation(asyncio.Protocol):
    """The protocol of a new connection until its TLS has chosen one."""

    def __init__(self, connection: Http2Connection) -> None:
        self.is_http2 = False
        self._connection = connection
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = self._transport = cast(asyncio.Transport, transport)
        tls = made.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self.is_http2 = True
            made.set_protocol(self._connection)
            self._connection.connection_made(made)
        else:
            made.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Session:
    """One connection, as the user of its `Http2Connection`. sessions: it leaves them at its end."""

    def __init__(self, sessions: list[_Session]) -> None:
        self.connection = Http2Connection(
            self,
            client=True,
            window_bytes=WINDOW_BYTES,
            checks_alpn=False,
            peer_limits=PeerLimits(max_streams=0, counts_streams=False),
            input_ended=self._deliver,
            settings_changed=self._settings_changed,
        )
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.touched: list[_Tunnel] = []
        self._sessions = sessions
        self._takes_streams = True
        self._watch = SilenceWatch(self.connection)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def room(self) -> int:
        """How many further streams it takes now."""
        if not self._takes_streams or self.connection.closing:
            return 0
        return min(self.connection.peer_streams, MOST_STREAMS) - len(self.connection.streams)

    def open(self, fields: Headers) -> _Tunnel:
        """Send a CONNECT on a new stream. There is room."""
        tunnel = _Tunnel(self)
        try:
            tunnel.stream = self.connection.open_stream(tunnel, fields)
        except StreamsExhausted:  # all ids are used
            self._takes_streams = False
            tunnel.fail(_NotProcessedError())
        return tunnel

    def _deliver(self) -> None:
        while self.touched:
            touched, self.touched = self.touched, []
            for tunnel in touched:
                tunnel.deliver()

    def _settings_changed(self) -> None:
        if not self.ready.done():
            self.ready.set_result(None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOOK_S, self._look)
        if not self._watch.look(loop.time()):
            self.connection.fail(TimeoutError("the hub did not reply to a PING"))

    # -- the connection's calls

    def connected(self, connection: Http2Connection) -> None:
        self._look()

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        raise WireError("HTTP/2: the hub opened a stream")

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        """A hub opens no stream."""

    def goaway_received(self, connection: Http2Connection) -> None:
        """The hub drains. Open tunnels stay."""
        self._leave()

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._leave()
        if not self.ready.done():
            self.ready.set_exception(ForwardError("the hub closed the connection before its SETTINGS", fault="hub"))
            self.ready.exception()  # its waiter may have left

    def _leave(self) -> None:
        self._takes_streams = False
        if self in self._sessions:
            self._sessions.remove(self)


class _Tunnel(asyncio.Transport):
    """One stream: its user, the transport of a joint's side, and what arrives before the local end is there.

    opened: done with the 2xx, or failed.
    """

    can_half_close = True

    def __init__(self, session: _Session) -> None:
        super().__init__()
        self.transport: asyncio.Transport = self
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stream: Http2Stream | None = None
        self._session = session
        self._protocol: asyncio.Protocol | None = None
        self._pieces: list[bytes | memoryview] = []
        self._unread_bytes = 0
        self._has_ended = False  # the target
        self._tells_end = False  # and the protocol does not know it yet
        self._is_paused = False
        self._unsent: list[bytes | memoryview] = []
        self._unsent_bytes = 0
        self._finishes = False
        self._writing_paused = False
        self._is_closing = self._is_lost = False
        self._loss: Exception | None = None
        self._status = 0
        self._request_id = ""

    # -- the opening

    def headers_received(self, headers: Headers, ended: bool) -> None:
        fields = dict(headers)
        status = fields[b":status"]
        if not (len(status) == 3 and status.isdigit()):
            self.fail(ForwardError("the head of the response is malformed, so this is no hub", fault="hub"))
            self.abort()
            return
        self._status = int(status)
        self._request_id = readable(fields.get(b"x-request-id", b""), 128)
        self._has_ended = self._tells_end = ended
        if self._status < 300:
            if not self.opened.done():
                self.opened.set_result(None)
        elif ended:
            self._refused()

    def informational_received(self, headers: Headers) -> None:
        """A 1xx has no meaning here."""

    def fail(self, error: Exception) -> None:
        """The tunnel is not opened."""
        if not self.opened.done():
            self.opened.set_exception(error)
            self.opened.exception()  # its waiter may have left

    def _refused(self) -> None:
        text = b"".join(self._pieces)[:REASON_BYTES].partition(b"\n")[0].decode("utf-8", "replace")
        self.fail(ForwardError.of_response(self._status, readable(text), self._request_id))
        self.abort()

    def give_to(self, protocol: asyncio.Protocol) -> None:
        """Pass the tunnel's bytes and events to `protocol`, those of the past included."""
        self._protocol = protocol
        self.deliver()
        if self._is_lost:
            self._lose(self._loss)

    # -- what has arrived

    def data_received(self, data: bytes | memoryview) -> None:
        self._pieces.append(data)
        self._unread_bytes += len(data)
        self._touch()

    def trailers_received(self, headers: Headers) -> None:
        self.stream_ended()

    def stream_ended(self) -> None:
        self._has_ended = self._tells_end = True
        self._touch()

    def _touch(self) -> None:
        if self not in self._session.touched:
            self._session.touched.append(self)

    def deliver(self) -> None:
        """Pass on the bytes of one arrival."""
        if self._status >= 300:
            if self.opened.done():
                return
            if self._has_ended or self._unread_bytes >= REASON_BYTES:
                self._refused()
            return
        protocol = self._protocol
        if protocol is None:
            return
        pieces, self._pieces = self._pieces, []
        for piece in pieces:
            protocol.data_received(cast(bytes, piece))
        if not self._is_paused:
            self._return_credit()
        if self._tells_end:
            self._tells_end = False
            protocol.eof_received()

    def _return_credit(self) -> None:
        unread, self._unread_bytes = self._unread_bytes, 0
        if unread and self.stream is not None and not self.stream.gone:
            self.stream.consumed(unread)

    def stream_lost(self, error: Exception) -> None:
        stream_id = self.stream.id if self.stream is not None else 0
        is_refused = isinstance(error, StreamReset) and error.code == ErrorCode.REFUSED_STREAM
        if is_refused or (isinstance(error, GoAwayError) and stream_id > error.last_stream_id):
            self.fail(_NotProcessedError())
        elif self._status >= 300:  # the reset follows the whole response, since our side is open
            self._refused()
        else:
            self.fail(ForwardError("the connection to the hub was lost", fault="hub"))
        self.deliver()
        in_order = self._has_ended and isinstance(error, StreamReset) and error.code == ErrorCode.NO_ERROR
        self._lose(None if in_order else error)

    # -- what is to be sent

    def fill(self, writer: FrameWriter) -> bool:
        """Give the connection the next bytes."""
        unsent, self._unsent = self._unsent, []
        for piece in unsent:
            writer.append(piece)
        self._unsent_bytes = 0
        if self._finishes and self.stream is not None:
            self.stream.finish()
        if self._writing_paused:
            asyncio.get_running_loop().call_soon(self._look_at_writing)
        return False

    def _look_at_writing(self) -> None:
        if self._writing_paused and self._protocol is not None and not self._is_lost:
            if self.get_write_buffer_size() > LOW_WATER_BYTES:
                asyncio.get_running_loop().call_later(0.001, self._look_at_writing)
                return
            self._writing_paused = False
            self._protocol.resume_writing()

    # -- the transport, as the joint calls it

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes + (self.stream.writer.pending if self.stream is not None else 0)

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._finishes or self._is_closing or self.stream is None:
            return
        self._unsent.append(data if isinstance(data, bytes) else bytes(data))
        self._unsent_bytes += len(data)
        self.stream.wake()
        if not self._writing_paused and self.get_write_buffer_size() > HIGH_WATER_BYTES:
            self._writing_paused = True
            if self._protocol is not None:
                self._protocol.pause_writing()

    def write_eof(self) -> None:
        if not self._finishes and self.stream is not None:
            self._finishes = True
            if self._unsent:
                self.stream.wake()
            else:
                self.stream.finish()

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._return_credit()

    def close(self) -> None:
        if self._is_closing:
            return
        stream = self.stream
        if stream is not None and not stream.gone:
            for piece in self._unsent:
                stream.writer.append(piece)
            stream.stops_peer = True  # a reset follows the last byte, if the target has not ended
            self._finishes = True
            stream.finish()
        self._unsent = []
        self._is_closing = True
        asyncio.get_running_loop().call_soon(self._lose, None)

    def abort(self) -> None:
        if self.stream is not None and not self.stream.gone:
            self.stream.reset(ErrorCode.CANCEL)
        self._is_closing = True
        asyncio.get_running_loop().call_soon(self._lose, None)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_lost:
            self._is_closing = self._is_lost = True
            self._loss = error
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            self._pieces = []
            protocol.connection_lost(error)
