"""The control plane: one HTTP/2 connection, either role, as an asyncio protocol.

The division of work (RFC 9113):

    h2             SETTINGS and their ACKs, with the errors of their values
    data_plane     DATA, WINDOW_UPDATE and all windows
    stream_plane   HEADERS, CONTINUATION, RST_STREAM and PRIORITY, the states and the number of streams
    here           PING, GOAWAY, and the life of the connection

h2 sees no stream. It would end the connection for faults that are a stream's, and for a graceful GOAWAY.

          connection_made           fail, close              connection_lost
    IDLE ───────────────► OPEN ─────────────────► CLOSING ─────────────────────► CLOSED
                           │                        ▲  a peer that won't read is    ▲
                           │ refuse_streams         │  aborted after LINGER_S       │
                           ▼                        │                               │
                        DRAINING ───────────────────┘ fail, close, the last stream  │
                           │ connection_lost, from OPEN too                         │
                           └────────────────────────────────────────────────────────┘

The closing side sends GOAWAY, forgets the streams, and sends the bytes that are queued below.

Invariants
  I1  h2's output is written whole, in the order of its calls, before any later frame.
  I2  A stream's user gets one `stream_lost` or one end of the stream, and nothing after it.
  I3  At most UNSENT_BYTES wait in the transport, and as many unsent in the kernel. So the next choice leaves next.
  I4  A peer that does not read can cause only bounded output (ACKs of SETTINGS and PING).
  I5  Frames that no window counts can cause only bounded work per second.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hyperframe.exceptions

from ..errors import WireError
from .coalescing import ReceiveCoalescing
from .control_frame_limiter import ControlFrameLimiter
from .errors import ErrorCode, GoAwayError, OtherProtocolError
from .frames import ACK, PING, PUSH_PROMISE, ByteSink
from .framing import (
    DEFAULT_WINDOW,
    GOAWAY,
    MAX_WINDOW,
    PREFACE,
    WINDOW_UPDATE,
    FrameReader,
    FrameWriter,
    StreamReader,
    frame,
)
from .peer_limits import DEFAULT_LIMITS, PeerLimits
from .sizes import FRAME_BYTES
from .socket_options import Link, size_receive_queue_freely
from .stream import Http2Stream, Sender
from .stream_plane import ConnectionUser, StreamPlane

__all__ = ["TRANSITIONS", "ConnectionUser", "Event", "Http2Connection", "State", "bytes_reader"]

LINGER_S = 2.0
"""How long a peer may take to read what is left when we close."""

_MAX_PINGS = 200
"""The most PINGs without an ACK: two for each of 100 streams. Each user has one PING at a time."""
_SETTINGS = h2.settings.SettingCodes
_SIGN, _MEASURE = b"liveness", b"fastpipe"
"""The payloads of PINGs: one for a mere sign of life, and one for a measurement."""

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """idle: there is no transport yet. draining: open, without new streams."""

    IDLE = enum.auto()
    OPEN = enum.auto()
    DRAINING = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class Event(enum.Enum):
    """made, lost: the transport's word. drain: new streams are refused from now on. close: by whichever side."""

    MADE = enum.auto()
    DRAIN = enum.auto()
    CLOSE = enum.auto()
    LOST = enum.auto()


TRANSITIONS: Final = {
    (State.IDLE, Event.MADE): State.OPEN,
    (State.IDLE, Event.DRAIN): State.DRAINING,  # and CLOSING at once: there is no stream
    (State.IDLE, Event.CLOSE): State.CLOSING,
    (State.OPEN, Event.DRAIN): State.DRAINING,
    (State.OPEN, Event.CLOSE): State.CLOSING,
    (State.OPEN, Event.LOST): State.CLOSED,
    (State.DRAINING, Event.CLOSE): State.CLOSING,
    (State.DRAINING, Event.LOST): State.CLOSED,
    (State.CLOSING, Event.MADE): State.CLOSING,  # given up while it was being dialled
    (State.CLOSING, Event.LOST): State.CLOSED,
}
"""All transitions there are."""


def bytes_reader(stream: Http2Stream, window_bytes: int) -> StreamReader:
    """A reader that hands the stream's bytes to its user, a ByteSink too, and returns credit as the user consumes."""
    return StreamReader(cast(ByteSink, stream.user), window=window_bytes)


class Http2Connection(StreamPlane, asyncio.BufferedProtocol):
    """One HTTP/2 connection.

    The user of a stream returns its credit (`Http2Stream.consumed`), so a stream holds at most its window. The
    connection's credit returns on arrival.

    Args:
        client: whether this side opens the streams.
        window_bytes: receive window of each stream and of the connection, 65,535 to 2^31-1.
        checks_alpn: whether a transport with TLS must have chosen h2. False if the TLS is a proxy's.
        make_reader: makes a stream's reader after its head, from the stream and the peer's first credit in bytes.
        make_writer: makes a stream's writer from its id. By default both carry plain bytes.
        peer_limits: what the peer may do.
        input_ended: called when the bytes of one arrival were all passed on.
        settings_changed: called after each SETTINGS frame of the peer.
    """

    def __init__(
        self,
        user: ConnectionUser,
        *,
        client: bool,
        window_bytes: int = DEFAULT_WINDOW,
        checks_alpn: bool = True,
        make_reader: Callable[[Http2Stream, int], StreamReader] = bytes_reader,
        make_writer: Callable[[int], FrameWriter] = FrameWriter,
        peer_limits: PeerLimits = DEFAULT_LIMITS,
        input_ended: Callable[[], None] | None = None,
        settings_changed: Callable[[], None] | None = None,
    ) -> None:
        if not DEFAULT_WINDOW <= window_bytes <= MAX_WINDOW:
            raise ValueError(f"window_bytes must be from {DEFAULT_WINDOW} to {MAX_WINDOW}, not {window_bytes}")
        super().__init__(
            self,
            user,
            client,
            window_bytes,
            FrameReader(self, expect_preface=not client),
            Sender(self.flush, self.finish),
            peer_limits,
            make_reader,
            make_writer,
            input_ended,
        )
        self.state = State.IDLE
        self._checks_alpn = checks_alpn
        self._limits = peer_limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tell_settings = settings_changed
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self._h2 = h2.connection.H2Connection(config)
        self._h2.local_settings = self._settings()
        self._h2.max_inbound_frame_size = FRAME_BYTES  # the reader holds the peer to it, from the ACK on
        self._says_goaway = True  # when it closes: not to a peer that would not hear it, nor twice
        self._error: Exception | None = None
        self._pings: deque[Callable[[], None]] = deque()
        self._taken_bytes = 0
        self._linger: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ what the users call

    @property
    def peer_takes_connect(self) -> bool:
        """Whether the peer takes extended CONNECT requests (RFC 8441)."""
        return bool(self._h2.remote_settings.enable_connect_protocol)

    def ping(self, answered: Callable[[], None] | None = None) -> None:
        """Send a PING. `answered` is called when its ACK arrives.

        With _MAX_PINGS missing ACKs, nothing is sent. So short-lived calls can't pile up PINGs.
        """
        if self.closing:
            return
        if answered is not None:
            if len(self._pings) >= _MAX_PINGS:
                return
            self._pings.append(answered)
        self.flush()  # I1
        self._write(frame(PING, 0, 0, _SIGN if answered is None else _MEASURE))

    def refuse_streams(self) -> None:
        """Send GOAWAY NO_ERROR. Open streams finish, new ones are refused, and the last one closes the connection."""
        if not self.closing and self.state is not State.DRAINING:
            self._move(Event.DRAIN)
            self._write_goaway(ErrorCode.NO_ERROR)
            if not self.streams:
                self.close()

    def close(self, code: int = ErrorCode.NO_ERROR) -> None:
        """Send GOAWAY and the queued bytes below, and close. Open streams are forgotten, as their users know."""
        if self.closing:
            return
        self._move(Event.CLOSE)
        self._frames.stop()
        self.streams.clear()
        self._frames.streams.clear()
        self.sender.stop()
        transport = self._transport
        if transport is None:
            return
        self.flush()
        if self._says_goaway:
            self._says_goaway = False
            self._write_goaway(code)
        transport.close()
        assert self._loop is not None
        self._linger = self._loop.call_later(LINGER_S, transport.abort)

    def _write_goaway(self, code: int) -> None:
        self.flush()  # I1
        self._write(frame(GOAWAY, 0, 0, self.last_peer_id.to_bytes(4, "big") + code.to_bytes(4, "big")))

    def streams_ended(self) -> None:
        """The last stream has ended, and no new ones are served."""
        self.close()

    def fail(self, error: Exception) -> None:
        """Close the connection for this error, and report it to every stream's user."""
        if self.closing:
            return
        self._error = error
        lost = list(self.streams.values())
        code = error.http2_code if isinstance(error, WireError) else ErrorCode.INTERNAL_ERROR
        self.close(ErrorCode.NO_ERROR if isinstance(error, GoAwayError) else code)
        for stream in lost:
            stream.user.stream_lost(error)

    def abort(self) -> None:
        """Abort the connection and its queued bytes. The streams' users get no call."""
        self._says_goaway = False
        self.close()
        if self._transport is not None:
            self._transport.abort()

    def extra_info(self, name: str, default: Any = None) -> Any:
        """The transport's `get_extra_info`."""
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    @property
    def was_made(self) -> bool:
        """Whether a transport exists or existed. Then `connection_ended` is called."""
        return self._transport is not None

    @property
    def has_begun_frame(self) -> bool:
        """Whether a frame other than DATA, or a header block, has come in part."""
        return self._frames.has_begun

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait in the transport."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def outgoing(self) -> tuple[int, bool]:
        """Return (the bytes that the peer's TCP has acknowledged, whether more are in flight).

        The number never falls. If the system does not report it, it is the most bytes that have left the transport.
        """
        link = None if self._transport is None else Link.of(self._transport)
        buffered_bytes = self.buffered_bytes
        taken_bytes = self.sender.sent_bytes - buffered_bytes if link is None else link.acknowledged_bytes
        self._taken_bytes = max(self._taken_bytes, taken_bytes)
        return self._taken_bytes, buffered_bytes > 0 or (link is not None and link.waiting)

    def receive_from_afar(self) -> bool:
        """Let the kernel hold what a long round trip brings, if the kernel measures a long one too. Returns whether."""
        return self._transport is None or size_receive_queue_freely(self._transport)

    # ------------------------------------------------------------ what the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's class is not one
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._limiter = ControlFrameLimiter(
            self._loop.time, lambda: self.sender.sent_bytes, counts_streams=self._limits.counts_streams
        )
        self._move(Event.MADE)
        if self.closing:
            transport.abort()
            return
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and self._checks_alpn and tls.selected_alpn_protocol() != "h2":
            self._error = OtherProtocolError("TLS: the peer did not choose h2 by ALPN")
            self._says_goaway = False  # it would not understand one
            self.close()
            return
        self.heard_s = self._loop.time()
        self.sender.start(transport, self._loop)  # I3
        self._coalescing = ReceiveCoalescing(transport, self._loop)
        self._h2.initiate_connection()
        if not self.client:
            self._h2.receive_data(PREFACE)  # the reader takes the client's
        self.flush()
        grow = self._window_bytes - DEFAULT_WINDOW
        if grow:
            self._frames.window += grow
            self._write(frame(WINDOW_UPDATE, 0, 0, grow.to_bytes(4, "big")))
        self.user.connected(self)

    def eof_received(self) -> bool:
        return False  # HTTP/2 has no half-closed connections

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        lost = list(self.streams.values())
        error = self._error
        if not self.closing:
            error = exc or ConnectionResetError("closed by the peer")
        self._move(Event.LOST)
        self._frames.stop()
        self._drop_buffer()
        if self._coalescing is not None:
            self._coalescing.stop()
        self.streams.clear()
        self.sender.stop()
        for stream in lost:
            assert error is not None
            stream.user.stream_lost(error)
        self.user.connection_ended(self, error)

    def pause_writing(self) -> None:
        self.sender.pause()

    def resume_writing(self) -> None:
        self.sender.resume()

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]
        self.closing = self.state in (State.CLOSING, State.CLOSED)  # the data plane reads it for every packet
        self.draining = self.state is State.DRAINING

    # ------------------------------------------------------------ frames of the connection

    def connection_frame(self, kind: int, flags: int, whole: bytes) -> None:
        """Take a frame of the connection, from the streams' half."""
        if kind == GOAWAY:
            self._goaway(whole[9:])
        elif kind == PUSH_PROMISE:  # our SETTINGS allow none, and no client may send one
            raise WireError("HTTP/2: PUSH_PROMISE frame, which nobody has allowed")
        elif kind != PING:
            self._feed_h2(whole)
        elif not flags & ACK:
            self._send(frame(PING, ACK, 0, whole[9:]))
        elif whole[9:] == _MEASURE and self._pings:
            self._pings.popleft()()

    # ------------------------------------------------------------ h2

    def _settings(self) -> h2.settings.Settings:
        values = {
            _SETTINGS.INITIAL_WINDOW_SIZE: self._window_bytes,
            _SETTINGS.MAX_FRAME_SIZE: FRAME_BYTES,
            _SETTINGS.MAX_CONCURRENT_STREAMS: self._limits.max_streams,
            _SETTINGS.MAX_HEADER_LIST_SIZE: self._limits.announced_head_bytes,
            _SETTINGS.ENABLE_PUSH: 0,
        }
        if self._limits.extended_connect:
            values[_SETTINGS.ENABLE_CONNECT_PROTOCOL] = 1
        return h2.settings.Settings(client=self.client, initial_values=values)

    def _feed_h2(self, whole: bytes) -> None:
        self.flush()
        self.sender.answering = True
        try:
            events = self._h2.receive_data(whole)
        except (h2.exceptions.H2Error, hyperframe.exceptions.HyperframeError) as error:
            self._h2.clear_outbound_data_buffer()  # its GOAWAY names no stream
            code = error.error_code if isinstance(error, h2.exceptions.ProtocolError) else ErrorCode.PROTOCOL_ERROR
            raise WireError(f"HTTP/2: {error}", http2_code=int(code)) from error
        for event in events:
            if isinstance(event, h2.events.RemoteSettingsChanged):
                self._settings_changed(event)
            elif isinstance(event, h2.events.SettingsAcknowledged) and not self._settings_acked:
                self._settings_acked = True
                self._frames.max_frame_size = FRAME_BYTES
                for reader in self._frames.streams.values():
                    reader.window += self._window_bytes - DEFAULT_WINDOW

    def _settings_changed(self, event: h2.events.RemoteSettingsChanged) -> None:
        window = event.changed_settings.get(_SETTINGS.INITIAL_WINDOW_SIZE)
        if window is not None:
            self.sender.set_initial_window(window.new_value, list(self.streams.values()))
        size = event.changed_settings.get(_SETTINGS.MAX_FRAME_SIZE)
        if size is not None:
            self.sender.set_frame_size(size.new_value)
        size = event.changed_settings.get(_SETTINGS.HEADER_TABLE_SIZE)
        if size is not None:
            self._encoder.set_table_bytes(size.new_value)
        self.peer_streams = self._h2.remote_settings.max_concurrent_streams
        if self._tell_settings is not None:
            self._tell_settings()

    def _goaway(self, payload: bytes) -> None:
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        code = int.from_bytes(payload[4:8], "big")
        unprocessed = [stream for stream in self.streams.values() if stream.id > last] if self.client else []
        if code == ErrorCode.NO_ERROR and (not unprocessed or len(unprocessed) < len(self.streams)):
            # Graceful: a Go server sends two, the first with 2^31-1, then waits for its streams to end.
            self.user.goaway_received(self)
            for stream in unprocessed:
                user = stream.user
                self.take_back(stream)
                user.stream_lost(GoAwayError(code, last, payload[8:]))
            return
        self._says_goaway = False  # there is nobody to hear one
        self.fail(GoAwayError(code, last, payload[8:]))

    def flush(self) -> None:
        """Write h2's output."""
        self.sender.answering = False
        data = self._h2.data_to_send()
        if data:
            self._write(data)
