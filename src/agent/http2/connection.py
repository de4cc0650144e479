"""The control plane: one HTTP/2 connection, either role, as an asyncio protocol. The h2 library speaks all but DATA.

The division of work (RFC 9113), from experiments with h2 4.4:

    h2    the connection preface, SETTINGS and their ACKs, HPACK, the state of streams, PING, RST_STREAM, trailers
    here  the cutting of frames (framing), DATA, WINDOW_UPDATE and all windows (data_plane, stream), GOAWAY, PRIORITY,
          unknown frame types, the number of streams, and the fields of a head (heads)

h2 sees neither DATA nor WINDOW_UPDATE. With only one of them, its windows would overflow after 2 GiB. h2 sees no
graceful GOAWAY. On any GOAWAY it closes the connection and drops its output. But NO_ERROR lets open streams finish, and
its sender expects ACKs of PINGs. If DATA ends a stream, h2 gets an empty DATA frame with END_STREAM.

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
  I1  h2's output is written whole, in the order of its calls, before any later DATA.
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
from typing import Any, Final, Protocol, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hyperframe.exceptions

from ..errors import WireError
from .coalescing import ReceiveCoalescing
from .control_frame_limiter import ControlFrameLimiter
from .data_plane import DataPlane
from .errors import ErrorCode, GoAwayError, OtherProtocolError, StreamReset, StreamsExhausted
from .frames import ACK, END_STREAM, HEADERS, PING, PRIORITY, ByteSink, bare_headers
from .framing import (
    DATA,
    DEFAULT_WINDOW,
    GOAWAY,
    MAX_WINDOW,
    PREFACE,
    RST_STREAM,
    WINDOW_UPDATE,
    FrameReader,
    FrameWriter,
    StreamReader,
    frame,
)
from .heads import Decoder, Headers, HeadKind, fault_of
from .peer_limits import DEFAULT_LIMITS, PeerLimits
from .sizes import FRAME_BYTES
from .socket_options import Link, size_receive_queue_freely
from .stream import Http2Stream, Sender, StreamUser

__all__ = ["TRANSITIONS", "ConnectionUser", "Event", "Http2Connection", "State", "bytes_reader"]

LINGER_S = 2.0
"""How long a peer may take to read what is left when we close."""

_MAX_PINGS = 200
"""The most PINGs without an ACK: two for each of 100 streams. Each user has one PING at a time."""
_SETTINGS = h2.settings.SettingCodes
_MOST_STREAMS = 2**32 - 1  # h2's limit, which it never reaches, since it would close the connection
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


class ConnectionUser(Protocol):
    """The owner of a connection."""

    def connected(self, connection: Http2Connection) -> None:
        """Streams can be opened from now on."""

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        """The peer opened a stream (the server's role): set `stream.user` before returning."""

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        """The peer opened a stream with a malformed head, and the stream was reset. fault: the broken rule."""

    def goaway_received(self, connection: Http2Connection) -> None:
        """The peer wants no new streams here. Those that are open stay so."""

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        """The transport is closed. This is the last call. error: the reason, None if this side closed it."""


def bytes_reader(stream: Http2Stream, window_bytes: int) -> StreamReader:
    """A reader that hands the stream's bytes to its user, a ByteSink too, and returns credit as the user consumes."""
    return StreamReader(cast(ByteSink, stream.user), window=window_bytes)


class Http2Connection(DataPlane, asyncio.BufferedProtocol):
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
        checks_own_heads: h2 checks the heads that are sent. If false, the user has done so.
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
        checks_own_heads: bool = True,
    ) -> None:
        if not DEFAULT_WINDOW <= window_bytes <= MAX_WINDOW:
            raise ValueError(f"window_bytes must be from {DEFAULT_WINDOW} to {MAX_WINDOW}, not {window_bytes}")
        frames = FrameReader(self, expect_preface=not client)
        super().__init__(self, window_bytes, frames, Sender(self.flush, self.finish), input_ended)
        self.user = user
        self.client = client
        self.state = State.IDLE
        self._checks_alpn = checks_alpn
        self._limits = peer_limits
        self._head_kind: HeadKind = "extended request" if peer_limits.extended_connect else "request"
        self._make_reader = make_reader
        self._make_writer = make_writer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter: ControlFrameLimiter | None = None
        self._tell_settings = settings_changed
        config = h2.config.H2Configuration(
            client_side=client,
            header_encoding=None,
            validate_inbound_headers=False,
            validate_outbound_headers=checks_own_heads,
            normalize_outbound_headers=checks_own_heads,
        )
        self._h2 = h2.connection.H2Connection(config)
        self._decoder = Decoder()
        self._decoder.max_header_list_size = peer_limits.head_bytes
        self._h2.decoder = self._decoder
        self._h2.local_settings = self._settings(peer_limits.max_streams)
        self._h2.max_inbound_frame_size = FRAME_BYTES  # the reader holds the peer to it, from the ACK on
        self._malformed = ""  # the rule that a HEADERS frame has broken whose block isn't whole yet
        self._settings_acked = False  # whether the peer has our SETTINGS
        self._says_goaway = True  # when it closes: not to a peer that would not hear it, nor twice
        self._last_ours = 0
        self._error: Exception | None = None
        self._pings: deque[Callable[[], None]] = deque()
        self._taken_bytes = 0
        self._linger: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------ what the users call

    def open_stream(self, user: StreamUser[Any], headers: Headers, *, ended: bool = False) -> Http2Stream:
        """Open a stream (the client's role). The request's head goes out at once, even before the peer's SETTINGS.

        ended: no DATA follows.

        Raises StreamsExhausted if the peer allows no further stream, or the connection has used all ids.
        """
        try:
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers, end_stream=ended)
        except (h2.exceptions.TooManyStreamsError, h2.exceptions.NoAvailableStreamIDError) as error:
            raise StreamsExhausted from error
        stream = self._add_stream(stream_id)
        stream.user = user
        stream.local_ended = ended
        stream.responded = True  # a reset of it is no flood
        self._last_ours = stream_id
        self.flush()
        return stream

    @property
    def peer_streams(self) -> int:
        """How many streams the peer allows at once, by its latest SETTINGS. Without any, the number is huge."""
        return self._h2.remote_settings.max_concurrent_streams

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
            last = self._last_opened
            self.flush()  # I1
            # Not by h2, which would then close the connection and its open streams.
            self._write(frame(GOAWAY, 0, 0, last.to_bytes(4, "big") + bytes(4)))
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
        if self._says_goaway:
            self._says_goaway = False
            self._say_goaway(code)
        self.flush()
        transport.close()
        assert self._loop is not None
        self._linger = self._loop.call_later(LINGER_S, transport.abort)

    def _say_goaway(self, code: int) -> None:
        """Write a GOAWAY, before the connection closes."""
        try:
            self._h2.close_connection(code)
        except h2.exceptions.ProtocolError:  # h2 has written a GOAWAY itself
            pass

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
        self._h2.local_settings = self._settings(_MOST_STREAMS)  # `_request` counts them
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

    # ------------------------------------------------------------ what the frame reader calls

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        assert self._limiter is not None
        self._limiter.frame(kind, flags)  # I5
        if kind == GOAWAY:
            self._goaway(whole[9:], whole)
        elif kind == PING and flags & ACK and whole[9:] in (_SIGN, _MEASURE):
            if whole[9:] == _MEASURE and self._pings:
                self._pings.popleft()()
        elif kind == RST_STREAM and stream_id not in self.streams:
            # h2 would end the connection for one that crosses the end of the stream.
            if self.is_idle(stream_id):
                raise WireError(f"HTTP/2: RST_STREAM frame on idle stream {stream_id}")
            self._limiter.closed_stream_reset()
        elif kind == PRIORITY:  # of which nobody takes notice (section 5.3.2)
            if len(whole) != 14:
                rule = f"PRIORITY frame of {len(whole) - 9} bytes, not 5"
                self.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FRAME_SIZE_ERROR))
        elif kind == HEADERS:
            self._headers(flags, stream_id, bare_headers(whole))
        else:
            self._feed_h2(whole)

    def data_ended(self, stream_id: int) -> None:
        self._feed_h2(frame(DATA, END_STREAM, stream_id))

    def stray_data(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.is_idle(stream_id):
                raise WireError(f"HTTP/2: DATA frame on idle stream {stream_id}")
        elif not stream.head_received:
            self.stream_error(stream_id, WireError("HTTP/2: DATA frame before the response's headers"))
        elif stream.remote_ended:
            rule = f"DATA frame after the end of stream {stream_id}"
            self.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.STREAM_CLOSED))

    def stream_error(self, stream_id: int, error: WireError) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        user = stream.user
        self.reset(stream, error.http2_code)
        user.stream_lost(error)

    def _headers(self, flags: int, stream_id: int, whole: bytes) -> None:
        """A HEADERS frame without padding and priority. CONTINUATION frames may follow."""
        self._malformed = ""
        stream = self.streams.get(stream_id)
        if self.client and stream is None and self.is_idle(stream_id):
            raise WireError(f"HTTP/2: HEADERS frame on stream {stream_id}, which nobody has opened")
        if stream is not None and stream.head_received and not flags & END_STREAM:
            # Malformed: an error of the stream (sections 8.1, 8.1.1). h2 would end the connection, so it sees an end.
            self._malformed = "trailers don't end the stream (section 8.1)"
            whole = whole[:4] + bytes((whole[4] | END_STREAM,)) + whole[5:]
        self._feed_h2(whole)

    # ------------------------------------------------------------ h2

    def _settings(self, most_streams: int) -> h2.settings.Settings:
        """Our settings, with so many streams."""
        values = {
            _SETTINGS.INITIAL_WINDOW_SIZE: self._window_bytes,
            _SETTINGS.MAX_FRAME_SIZE: FRAME_BYTES,
            _SETTINGS.MAX_CONCURRENT_STREAMS: most_streams,
            _SETTINGS.MAX_HEADER_LIST_SIZE: self._limits.announced_head_bytes,
            _SETTINGS.ENABLE_PUSH: 0,
        }
        if self._limits.extended_connect:
            values[_SETTINGS.ENABLE_CONNECT_PROTOCOL] = 1
        return h2.settings.Settings(client=self.client, initial_values=values)

    def _feed_h2(self, whole: bytes) -> None:
        self.sender.answering = True
        try:
            events = self._h2.receive_data(whole)
        except h2.exceptions.ProtocolError as error:
            self._says_goaway = False  # h2 has written one
            raise WireError(f"HTTP/2: {error}", http2_code=int(error.error_code)) from error
        except (h2.exceptions.H2Error, hyperframe.exceptions.HyperframeError) as error:
            raise WireError(f"HTTP/2: {error}") from error
        for event in events:
            if self.closing:
                return
            self._handle(event)

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RemoteSettingsChanged():
                self._settings_changed(event)
            case h2.events.SettingsAcknowledged():
                if not self._settings_acked:
                    self._settings_acked = True
                    self._frames.max_frame_size = FRAME_BYTES
                    for reader in self._frames.streams.values():
                        reader.window += self._window_bytes - DEFAULT_WINDOW
            case h2.events.RequestReceived():
                self._request(event.stream_id, self._decoder.fields, event.stream_ended is not None)
            case h2.events.ResponseReceived():
                stream = self.streams.get(event.stream_id)
                if stream is not None and self._well_formed(stream, "response"):
                    stream.head_received = True
                    self._read(stream)
                    self._ended_remotely(stream, event.stream_ended is not None)
                    stream.user.headers_received(self._decoder.fields, event.stream_ended is not None)
            case h2.events.InformationalResponseReceived():
                stream = self.streams.get(event.stream_id)
                if stream is not None and self._well_formed(stream, "response"):
                    stream.user.informational_received(self._decoder.fields)
            case h2.events.TrailersReceived():
                stream = self.streams.get(event.stream_id)
                if stream is not None and self._well_formed(stream, "trailers"):
                    self._ended_remotely(stream, True)
                    stream.user.trailers_received(self._decoder.fields)
            case h2.events.DataReceived():  # the mirror of an END_STREAM
                stream = self.streams.get(event.stream_id)
                if stream is not None:
                    self._ended_remotely(stream, True)
                    stream.user.stream_ended()
            case h2.events.StreamReset():
                stream = self.streams.get(event.stream_id)
                if stream is not None:
                    assert self._limiter is not None
                    self._forget(stream)
                    stream.user.stream_lost(StreamReset(int(event.error_code)))
                    self._limiter.stream_reset(responded=stream.responded)

    def _settings_changed(self, event: h2.events.RemoteSettingsChanged) -> None:
        window = event.changed_settings.get(_SETTINGS.INITIAL_WINDOW_SIZE)
        if window is not None:
            self.sender.set_initial_window(window.new_value, list(self.streams.values()))
        size = event.changed_settings.get(_SETTINGS.MAX_FRAME_SIZE)
        if size is not None:
            self.sender.set_frame_size(size.new_value)
        if self._tell_settings is not None:
            self._tell_settings()

    def _request(self, stream_id: int, headers: Headers, ended: bool) -> None:
        assert self._limiter is not None
        stream = self._add_stream(stream_id)
        fault = fault_of(headers, self._head_kind)
        if fault:
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
            self.user.stream_refused(self, fault)
            self._limiter.stream_refused()
            return
        if self.state is State.DRAINING or len(self.streams) > self._limits.max_streams:  # section 5.1.2
            self.reset(stream, ErrorCode.REFUSED_STREAM)
            self._limiter.stream_refused()
            return
        stream.head_received = True
        stream.remote_ended = ended
        self.user.stream_opened(stream, headers, ended)
        if self.streams.get(stream_id) is stream:
            self._read(stream)

    def _well_formed(self, stream: Http2Stream, kind: HeadKind) -> bool:
        """Whether the last decoded head breaks no rule. Otherwise this has closed the stream."""
        fault = self._malformed or fault_of(self._decoder.fields, kind)
        if fault:
            self.stream_error(stream.id, WireError(f"HTTP/2: malformed {kind}: {fault}"))
        return not fault

    def send_headers(self, stream: Http2Stream, headers: Headers, end_stream: bool) -> None:
        """Send a head on this stream, where its side is still open."""
        if self.streams.get(stream.id) is stream and not stream.local_ended:
            self._h2.send_headers(stream.id, headers, end_stream=end_stream)
            self.flush()
            if end_stream:
                self._ended_locally(stream)

    def _goaway(self, payload: bytes, whole: bytes) -> None:
        last = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
        code = int.from_bytes(payload[4:8], "big")
        unprocessed = [stream for stream in self.streams.values() if stream.id > last] if self.client else []
        if code == ErrorCode.NO_ERROR and (not unprocessed or len(unprocessed) < len(self.streams)):
            # Graceful: a Go server sends two, the first with 2^31-1, then waits for its streams to end.
            self.user.goaway_received(self)
            for stream in unprocessed:
                user = stream.user
                self._take_back(stream)
                user.stream_lost(GoAwayError(code, last, payload[8:]))
            return
        self.flush()
        try:
            self._h2.receive_data(whole)
        except h2.exceptions.H2Error:  # it only has to know
            pass
        self._says_goaway = False  # there is nobody to hear one
        self.fail(GoAwayError(code, last, payload[8:]))

    # ------------------------------------------------------------ streams

    def _add_stream(self, stream_id: int) -> Http2Stream:
        writer = self._make_writer(stream_id)
        stream = self.streams[stream_id] = Http2Stream(self, self.sender, stream_id, writer)
        return stream

    def _read(self, stream: Http2Stream) -> None:
        """Start reading the stream's DATA, after the peer's headers."""
        if stream.reader is None:
            window = self._window_bytes if self._settings_acked else DEFAULT_WINDOW
            stream.reader = self._make_reader(stream, window)
            stream.reader.ended = stream.remote_ended
            self._frames.streams[stream.id] = stream.reader

    def is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened this stream yet."""
        if stream_id % 2 == 0:
            return True  # neither side pushes
        return stream_id > (self._last_ours if self.client else self._last_opened)

    @property
    def _last_opened(self) -> int:
        """The highest stream that the peer has opened."""
        found: int = self._h2.highest_inbound_stream_id
        return found

    def _ended_remotely(self, stream: Http2Stream, ended: bool) -> None:
        if ended:
            stream.remote_ended = True
            if stream.reader is not None:
                stream.reader.ended = True
            if stream.local_ended:
                self._forget(stream)

    def _ended_locally(self, stream: Http2Stream) -> None:
        stream.local_ended = True
        if stream.remote_ended:
            self._forget(stream)
        elif stream.stops_peer:
            self.reset(stream, ErrorCode.NO_ERROR)  # section 8.1

    def reset(self, stream: Http2Stream, code: int) -> None:
        """Give this stream up, where it isn't already."""
        if self.streams.get(stream.id) is not stream or self.closing:
            return
        try:
            self._h2.reset_stream(stream.id, code)
        except h2.exceptions.ProtocolError:  # h2 has closed it already
            pass
        self.flush()
        self._forget(stream)

    def _take_back(self, stream: Http2Stream) -> None:
        """Forget a stream of which the peer knows nothing. So a RST_STREAM frame would be an error to some peers."""
        self.flush()
        try:
            self._h2.reset_stream(stream.id)
        except h2.exceptions.ProtocolError:  # h2 has closed it already
            pass
        self._h2.clear_outbound_data_buffer()
        self._forget(stream)

    def _forget(self, stream: Http2Stream) -> None:
        self.streams.pop(stream.id, None)
        if stream.local_ended and self._limiter is not None:
            self._limiter.stream_completed()
        self._frames.streams.pop(stream.id, None)
        if stream.reader is not None:
            stream.reader.close()
        stream.gone = True
        stream.writer.clear()
        if self.state is State.DRAINING and not self.streams:
            self.close()

    # ------------------------------------------------------------ out

    def finish(self, stream: Http2Stream) -> None:
        """End this side of the stream, after its last byte."""
        if stream.local_ended or self.streams.get(stream.id) is not stream:
            return
        if stream.trailers is not None:
            self.send_headers(stream, stream.trailers, True)
            if not stream.remote_ended:
                self.reset(stream, ErrorCode.NO_ERROR)  # the response is complete (section 8.1)
            return
        self._h2.end_stream(stream.id)
        self.flush()
        self._ended_locally(stream)

    def flush(self) -> None:
        """Write h2's output."""
        self.sender.answering = False
        data = self._h2.data_to_send()
        if data:
            self._write(data)
