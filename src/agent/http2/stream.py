"""Streams, and the sender that gives each its turn to send DATA, within the peer's windows.

    transport ◄── Sender ◄── FrameWriter ◄── user.fill
                   one write, windows    frames

A stream with bytes to send wakes its sender, and the sender pulls from its user in turn. So bytes for a slow peer stay
with the user. Cython compiles this file as it is, with the types of `stream.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from ..errors import WireError
from .errors import ErrorCode
from .framing import DEFAULT_WINDOW, MAX_WINDOW, MIN_MAX_FRAME_SIZE, FrameWriter, StreamReader
from .head_rules import Headers
from .sizes import FRAME_BYTES, UNSENT_BYTES
from .socket_options import prepare

__all__ = ["Http2Stream", "Sender", "StreamConnection", "StreamUser"]

_PUMP_BYTES = 2**20  # the most bytes written before the event loop gets its turn
_JOIN_BYTES = 32 * 1024  # up to here one copy costs less than a gathered write
# C globals (stream.pxd), since an imported name is a Python number in a dictionary.
_UNSENT_BYTES = UNSENT_BYTES
_LEAST_ROOM_BYTES = MIN_MAX_FRAME_SIZE
_MAX_WINDOW = MAX_WINDOW


Writer_contra = TypeVar("Writer_contra", bound=FrameWriter, contravariant=True)


class StreamUser(Protocol[Writer_contra]):
    """The user of a stream. It gets the stream's head and end, and supplies the bytes to send.

    The bytes between head and end go to the stream's reader, and a plain reader passes them to a `frames.ByteSink`.
    Writer_contra: the type of the connection's writers.
    """

    def headers_received(self, headers: Headers, ended: bool) -> None:
        """The response's head (the client's role). ended: the stream ended with it."""

    def informational_received(self, headers: Headers) -> None:
        """A 1xx before the response's head (the client's role)."""

    def trailers_received(self, headers: Headers) -> None:
        """The peer ended its side, with these trailers."""

    def stream_ended(self) -> None:
        """The peer ended its side without trailers."""

    def stream_lost(self, error: Exception) -> None:
        """The stream was closed by a reset, or with its connection."""

    def fill(self, writer: Writer_contra) -> bool:
        """Give the writer the next bytes. Returns False without any, and the next call follows `Http2Stream.wake`."""


class StreamConnection(Protocol):
    """The calls of a stream and its user to the connection."""

    def send_headers(self, stream: Http2Stream, headers: Headers, end_stream: bool) -> None:
        """Send a head on this stream, if our side is still open."""

    def send_whole(self, stream: Http2Stream, headers: Headers, body: bytes) -> bool:
        """Send a head with all of its DATA and END_STREAM at once. Returns False if that is not possible now."""

    def finish(self, stream: Http2Stream) -> None:
        """End this side of the stream, after its last byte."""

    def reset(self, stream: Http2Stream, code: int) -> None:
        """Reset this stream, unless it has ended. Its user gets no call."""

    def return_credit(self) -> None:
        """Return the credit of received bytes, in few and large steps. Readers may hold theirs."""

    def return_credit_of(self, stream: Http2Stream) -> None:
        """The same for one stream."""

    def fail(self, error: Exception) -> None:
        """Close the connection for this error, and report it to every stream's user."""

    def ping(self, answered: Callable[[], None] | None = None) -> None:
        """Send a PING. `answered` is called when its ACK arrives."""

    def extra_info(self, name: str, default: Any = None) -> Any:
        """The transport's `get_extra_info`."""

    def receive_from_afar(self) -> bool:
        """Let the kernel hold what a long round trip brings, if the kernel measures a long one too. Returns whether."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes that wait in the transport."""


class Http2Stream:
    """One stream of a connection. user: set before its first call."""

    __slots__ = (
        "connection",
        "finishing",
        "gone",
        "head_received",
        "id",
        "local_ended",
        "queued",
        "reader",
        "remote_ended",
        "responded",
        "sender",
        "stops_peer",
        "trailers",
        "user",
        "window",
        "writer",
    )

    user: StreamUser[Any]

    def __init__(self, connection: StreamConnection, sender: Sender, stream_id: int, writer: FrameWriter) -> None:
        self.connection = connection
        self.sender = sender
        self.id = stream_id
        self.window = sender.initial_window  # our credit, negative after the peer has shrunk it (section 6.9.2)
        self.writer = writer
        self.reader: StreamReader | None = None  # there is one once the peer's headers have come
        self.head_received = False  # the peer's headers have come
        self.remote_ended = False
        self.local_ended = False
        self.finishing = False
        self.gone = False  # it sends nothing further
        self.trailers: Headers | None = None
        self.responded = False  # the user has sent the head of the final response
        self.stops_peer = False  # the response is complete with our end, so the peer stops sending then
        self.queued = False  # in the sender's round

    def wake(self) -> None:
        """There is something to send."""
        self.sender.wake(self)

    def send_headers(self, headers: Headers, *, end_stream: bool = False) -> None:
        """Send the response's head, or a response that is only a head (the server's role)."""
        self.connection.send_headers(self, headers, end_stream)

    def send_whole(self, headers: Headers, body: bytes) -> bool:
        """Send a small and whole response in one write. Returns False if windows or transport have no room now."""
        return self.connection.send_whole(self, headers, body)

    def finish(self, trailers: Headers | None = None) -> None:
        """End our side, with trailers or without, once what the writer has been given is out.

        The user isn't asked for more.
        """
        if not self.finishing:
            self.finishing = True
            self.trailers = trailers
            if self.writer.pending:
                self.wake()
            else:
                self.connection.finish(self)

    def consumed(self, size_bytes: int) -> None:
        """Report bytes that the user has used, so that the peer gets credit for as many more.

        Raises ValueError if fewer are unread. It serves streams with a plain reader (`framing.StreamReader`).
        """
        if self.reader is not None:
            self.reader.consumed(size_bytes)
            self.connection.return_credit_of(self)

    def reset(self, code: int = ErrorCode.CANCEL) -> None:
        """Reset the stream now. The user gets no call."""
        self.connection.reset(self, code)


class Sender:
    """Writes DATA of one connection's streams, in turn.

    `window` and each stream's window are the peer's credit, and may be negative (RFC 9113, section 6.9.2).

    flush: writes the control plane's output, called before DATA while `answering` is set.
    finish: ends a stream after its last byte.
    """

    def __init__(self, flush: Callable[[], None], finish: Callable[[Http2Stream], None]) -> None:
        self.window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW  # of each new stream
        self.sent_bytes = 0  # given to the transport
        self._frame_bytes = MIN_MAX_FRAME_SIZE
        self._flush = flush
        self._finish = finish
        self._transport: asyncio.Transport | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._round: deque[Http2Stream] = deque()  # streams with something to send
        self._due = False  # `_pump` is scheduled
        self.answering = False  # the control plane has read a frame and may have output
        self.corked = False  # set while bytes are received, so that `uncork` sends all replies together
        self.is_paused = False  # the transport is full

    def start(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Write to this transport from now on, and keep its buffers and the kernel's small."""
        self._transport = transport
        self.loop = loop
        transport.set_write_buffer_limits(high=UNSENT_BYTES, low=UNSENT_BYTES // 4)  # uvloop's default low is 16
        prepare(transport)
        self._schedule()

    def stop(self) -> None:
        """Write nothing more."""
        self._transport = None
        self._round.clear()

    def wake(self, stream: Http2Stream) -> None:
        """This stream has something to send, or more room."""
        if not stream.queued:
            stream.queued = True
            self._round.append(stream)
        self._schedule()

    def charge(self, stream: Http2Stream, size_bytes: int) -> None:
        """Count DATA that was written beside the streams' turns, within both windows."""
        stream.window -= size_bytes
        self.window -= size_bytes
        self.sent_bytes += size_bytes

    def uncork(self) -> None:
        """Send what came up while this was corked, without another turn of the event loop."""
        self.corked = False
        if self._round and not self._due and not self.is_paused:
            self._pump()

    def pause(self) -> None:
        """The transport is full."""
        self.is_paused = True

    def resume(self) -> None:
        """The transport takes more."""
        self.is_paused = False
        self._pump()

    def credit(self, increment: int) -> None:
        """The peer gave credit for the connection. Raises WireError where it is too much."""
        if self.window + increment > _MAX_WINDOW:
            rule = "WINDOW_UPDATE frame overflows the connection's window"
            raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FLOW_CONTROL_ERROR)
        self.window += increment
        self._schedule()

    def set_initial_window(self, size: int, streams: list[Http2Stream]) -> None:
        """The peer changed SETTINGS_INITIAL_WINDOW_SIZE: so does every stream's window. Raises WireError."""
        delta = size - self.initial_window
        self.initial_window = size
        for stream in streams:
            if stream.window + delta > MAX_WINDOW:
                rule = f"SETTINGS_INITIAL_WINDOW_SIZE overflows the window of stream {stream.id}"
                raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FLOW_CONTROL_ERROR)
            stream.window += delta
            self.wake(stream)

    def set_frame_size(self, size: int) -> None:
        """The peer changed SETTINGS_MAX_FRAME_SIZE."""
        self._frame_bytes = min(size, FRAME_BYTES)

    def _schedule(self) -> None:
        if self._due or self.corked or self.is_paused:
            return
        if self._round and self._transport is not None:
            assert self.loop is not None
            self._due = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Write a part of each stream that has something, in turn, as long as window, transport and budget allow."""
        self._due = False
        if self.answering:
            self._flush()
        budget = _PUMP_BYTES
        while self._round and not self.is_paused and self.window > 0:
            transport = self._transport
            if transport is None or transport.is_closing():
                return
            if budget <= 0:
                self._schedule()
                return
            stream = self._round.popleft()
            writer = stream.writer
            # One byte over the mark, so that a full transport has called `pause`.
            room = max(_UNSENT_BYTES + 1 - transport.get_write_buffer_size(), _LEAST_ROOM_BYTES)
            room = min(room, stream.window, self.window)
            more = True
            while more and writer.pending < room and not stream.finishing:
                more = stream.user.fill(writer)
            if room <= 0 or not writer.pending or stream.gone:
                stream.queued = False  # its credit, or its user, wakes it
                continue
            sent = min(room, writer.pending)
            pieces: list[bytes | memoryview] | None = None
            joined = b""
            if sent <= _JOIN_BYTES:
                joined = writer.take_joined(sent, self._frame_bytes)
            else:
                pieces = writer.take(sent, self._frame_bytes)
            if more or writer.pending:
                self._round.append(stream)
            else:
                stream.queued = False  # nothing left: not asked again until it wakes
            stream.window -= sent
            self.window -= sent
            self.sent_bytes += sent
            budget -= sent
            if pieces is None:
                transport.write(joined)
            else:
                transport.writelines(pieces)
            if stream.finishing and not writer.pending:
                self._finish(stream)
