"""The path that every packet takes through a session, in both directions; what is rare stands in `http2` and `session`.

    transport ──► ConnectionFlow ──► FrameReader ──► TunnelFlow ──► receiver
                   a Chunk received       frames, packets     which connection it is for
    transport ◄── Sender ◄── FrameWriter ◄── TunnelFlow ◄── Scheduler ◄── outbounds
                   windows, one write       frames             whose turn it is

The classes whose names end in Flow are the hot halves of `Http2Connection` and `Tunnel`, which inherit from them.
Cython compiles this file as it stands, with the types of `flow.pxd` (agent/runtime/extensions.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import WireError
from .coalescing import ReceiveCoalescing
from .features import CLOSE, WINDOW
from .framing import DEFAULT_WINDOW, MAX_WINDOW, MIN_MAX_FRAME_SIZE, WINDOW_UPDATE, FrameReader, FrameWriter, frame
from .kernel import prepare
from .packet import ControlCode, PacketReceiver
from .receiving import ReceiveBuffer, ReceivePool, pool_of_thread
from .scheduler import Scheduler
from .sizes import FRAME_BYTES, RECEIVE_BYTES, RECEIVE_TURN_BYTES, UNSENT_BYTES

if TYPE_CHECKING:
    from .framing import MessageReader
    from .http2 import Http2Connection
    from .stream import Headers, StreamUser

__all__ = ["NOBODY", "ConnectionFlow", "Http2Stream", "Sender", "TunnelFlow"]

_COPIED_BYTES = 16 * 1024  # up to here a copy of what came costs less than waiting for its views
_HIGH_BYTES = UNSENT_BYTES
_PUMP_BYTES = 2**20  # written in one go before the event loop gets its turn
_JOIN_BYTES = 32 * 1024  # up to here one copy costs less than a gathered write
_LEAST_ROOM_BYTES = MIN_MAX_FRAME_SIZE
_UNREAD_ANSWER_BYTES = 2**20  # `http2`, I4
_TURN_BYTES = RECEIVE_TURN_BYTES
_MAX_WINDOW = MAX_WINDOW
_FLOW_CONTROL_ERROR, _CANCEL, _ENHANCE_YOUR_CALM = 0x3, 0x8, 0xB  # RFC 9113, section 7

logger = logging.getLogger("agent.tunnel.flow")


class Http2Stream:
    """One stream. `user` is whom it talks to."""

    __slots__ = (
        "answered",
        "connection",
        "finishing",
        "gone",
        "id",
        "local_ended",
        "queued",
        "reader",
        "remote_ended",
        "trailers",
        "user",
        "window",
        "writer",
    )

    user: StreamUser

    def __init__(self, connection: Http2Connection, stream_id: int, window: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.window = window  # bytes we may send; negative after the peer has shrunk it (section 6.9.2)
        self.writer = FrameWriter(stream_id)
        self.reader: MessageReader | None = None
        self.answered = False  # the peer's headers have come
        self.remote_ended = False
        self.local_ended = False
        self.finishing = False
        self.gone = False  # nothing of it goes out any more
        self.trailers: Headers | None = None
        self.queued = False  # in the sender's round

    def wake(self) -> None:
        """There is something to send."""
        self.connection.sender.wake(self)

    def send_headers(self, headers: Headers, *, end_stream: bool = False) -> None:
        """Send the response's head, or a response that is only a head."""
        self.connection.send_headers(self, headers, end_stream)

    def finish(self, trailers: Headers | None = None) -> None:
        """End our side, with trailers or without, once the message that has begun to go out is whole.

        The user isn't asked for another.
        """
        if not self.finishing:
            self.finishing = True
            self.trailers = trailers
            if self.writer.pending:
                self.wake()
            else:
                self.connection.finish(self)

    def reset(self, code: int = _CANCEL) -> None:
        """Give the stream up now. The user isn't told."""
        self.connection.reset(self, code)


class Sender:
    """Writes DATA of one connection's streams, in turn.

    flush: writes what the control plane has to say to what it was fed; called before DATA where `answering` is set.
    finish: ends a stream whose last message has gone. `window` and each stream's are the peer's credit, and may be
    negative (RFC 9113, section 6.9.2).
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
        self.answering = False  # the control plane was fed: it may have something to say
        self.corked = False  # set while bytes are received: `uncork` then sends the answers to them in one go
        self._paused = False

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

    def uncork(self) -> None:
        """Send what came up while this was corked, without another turn of the event loop."""
        self.corked = False
        if self._round and not self._due and not self._paused:
            self._pump()

    def pause(self) -> None:
        """The transport is full."""
        self._paused = True

    def resume(self) -> None:
        """The transport takes more."""
        self._paused = False
        self._pump()

    def credit(self, increment: int) -> None:
        """The peer gave credit for the connection. Raises WireError where it is too much."""
        if self.window + increment > _MAX_WINDOW:
            rule = "WINDOW_UPDATE frame overflows the connection's window"
            raise WireError(f"HTTP/2: {rule}", http2_code=_FLOW_CONTROL_ERROR)
        self.window += increment
        self._schedule()

    def set_initial_window(self, size: int, streams: list[Http2Stream]) -> None:
        """The peer changed SETTINGS_INITIAL_WINDOW_SIZE: so does every stream's window. Raises WireError."""
        delta = size - self.initial_window
        self.initial_window = size
        for stream in streams:
            if stream.window + delta > MAX_WINDOW:
                rule = f"SETTINGS_INITIAL_WINDOW_SIZE overflows the window of stream {stream.id}"
                raise WireError(f"HTTP/2: {rule}", http2_code=_FLOW_CONTROL_ERROR)
            stream.window += delta
            self.wake(stream)

    def set_frame_size(self, size: int) -> None:
        """The peer changed SETTINGS_MAX_FRAME_SIZE."""
        self._frame_bytes = min(size, FRAME_BYTES)

    def _schedule(self) -> None:
        if self._due or self.corked or self._paused:
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
        while self._round and not self._paused and self.window > 0:
            transport = self._transport
            if transport is None or transport.is_closing():
                return
            if budget <= 0:
                self._schedule()
                return
            stream = self._round.popleft()
            writer = stream.writer
            # One byte over the mark, so that a full transport has called `pause`.
            room = max(_HIGH_BYTES + 1 - transport.get_write_buffer_size(), _LEAST_ROOM_BYTES)
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


class ConnectionFlow:
    """The hot half of an HTTP/2 connection, which is a subclass: what is received, and the windows of what is sent.

    window_bytes: receive window of each stream and of the connection.
    """

    def __init__(self, window_bytes: int, frames: FrameReader, sender: Sender) -> None:
        self.sender = sender
        self.streams: dict[int, Http2Stream] = {}
        self.closing = False
        self.heard = False  # a byte of the peer's has come
        self.heard_s = 0.0  # when the last one came, by the loop's clock; at first when the connection was made
        self._window_bytes = window_bytes
        self._frames = frames
        self._transport: asyncio.Transport | None = None
        self._buffers: ReceivePool = pool_of_thread()
        self._buffer: ReceiveBuffer | None = None  # ours, from `get_buffer` on
        self._coalescing: ReceiveCoalescing | None = None
        self._turn_bytes = 0  # received since the transport was last asked to wait

    # ------------------------------------------------------------ what its subclass has besides

    def fail(self, error: Exception) -> None:
        """End the connection for this error."""
        raise NotImplementedError

    def stream_error(self, stream_id: int, error: WireError) -> None:
        """End a stream for this error."""
        raise NotImplementedError

    def send_headers(self, stream: Http2Stream, headers: Headers, end_stream: bool) -> None:
        """Send a head on this stream, where its side is still open."""
        raise NotImplementedError

    def finish(self, stream: Http2Stream) -> None:
        """End our side: what was begun has gone out."""
        raise NotImplementedError

    def reset(self, stream: Http2Stream, code: int) -> None:
        """Give this stream up, where it isn't already."""
        raise NotImplementedError

    def _is_idle(self, stream_id: int) -> bool:
        raise NotImplementedError

    def _flush(self) -> None:
        """Write what the control plane has to say."""
        raise NotImplementedError

    # ------------------------------------------------------------ in

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport receives next: asyncio's BufferedProtocol. sizehint: of no consequence."""
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = self._buffers.take()
        assert buffer.room is not None
        return buffer.room

    def buffer_updated(self, nbytes: int) -> None:
        """nbytes were received into the buffer."""
        buffer = self._buffer
        assert buffer is not None
        assert buffer.room is not None
        self._buffer = None
        self.heard = True
        if self.sender.loop is not None:
            self.heard_s = self.sender.loop.time()
        self.sender.corked = True
        try:
            if nbytes <= _COPIED_BYTES:
                self._frames.feed_part(buffer.room, nbytes)
            else:
                self._frames.feed(buffer.keep(nbytes), RECEIVE_BYTES)
        except WireError as error:
            self.fail(error)
        except Exception as error:
            logger.exception("a receiver failed; the connection ends")
            self.fail(error)
        self._buffers.give_back(buffer)
        if self.sender.answering:
            self._flush()
        self._return_credit()
        self.sender.uncork()
        if self._coalescing is not None:
            self._coalescing.received(nbytes)
        self._turn_bytes += nbytes
        if self._turn_bytes >= _TURN_BYTES:
            self._turn_bytes = 0
            self._let_others_turn()

    def _let_others_turn(self) -> None:
        """Receive nothing more before the event loop has been to its other sockets."""
        transport, loop = self._transport, self.sender.loop
        if transport is not None and loop is not None and not transport.is_closing():
            transport.pause_reading()
            loop.call_soon(self._receive_on)

    def _receive_on(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def _drop_buffer(self) -> None:
        """Nothing more is received."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            self._buffers.give_back(buffer)

    def window_update(self, stream_id: int, increment: int) -> None:
        """The peer gave credit. Raises WireError where that breaks a rule (RFC 9113, section 6.9)."""
        self._credited(stream_id, increment)

    def _credited(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            if not increment:
                raise WireError("HTTP/2: WINDOW_UPDATE frame with an increment of 0")
            self.sender.credit(increment)
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise WireError(f"HTTP/2: WINDOW_UPDATE frame on idle stream {stream_id}")
        elif not increment:
            self.stream_error(stream_id, WireError("HTTP/2: WINDOW_UPDATE frame with an increment of 0"))
        elif stream.window + increment > _MAX_WINDOW:
            rule = f"WINDOW_UPDATE frame overflows the window of stream {stream_id}"
            self.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=_FLOW_CONTROL_ERROR))
        else:
            waited = stream.window <= 0
            stream.window += increment
            if waited:
                self.sender.wake(stream)

    def return_credit(self) -> None:
        """Give back what was received, in few and large steps; not that of readers which hold it."""
        self._return_credit()

    def _return_credit(self) -> None:
        if self.closing:
            return
        frames = self._frames
        out = b""
        for stream_id, reader in frames.streams.items():
            if reader.held:
                continue
            if reader.unreturned * 4 >= self._window_bytes or reader.unreturned > reader.window:
                if not reader.ended:
                    out += frame(WINDOW_UPDATE, 0, stream_id, reader.unreturned.to_bytes(4, "big"))
                    reader.window += reader.unreturned
                reader.unreturned = 0
        if frames.unreturned * 4 >= self._window_bytes or frames.unreturned > frames.window:
            out += frame(WINDOW_UPDATE, 0, 0, frames.unreturned.to_bytes(4, "big"))
            frames.window += frames.unreturned
            frames.unreturned = 0
        if out:
            self._flush()  # `http2`, I1
            self._write(out)

    # ------------------------------------------------------------ out

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > UNSENT_BYTES * 2 + _UNREAD_ANSWER_BYTES and not self.closing:
            rule = "the peer does not read the answers it asks for"  # `http2`, I4
            self.fail(WireError(f"HTTP/2: {rule}", http2_code=_ENHANCE_YOUR_CALM))


class _Nobody:
    """The receiver before there is one, and after the session is lost."""

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        pass

    def tunnel_lost(self, error: Exception | None) -> None:
        pass


NOBODY: PacketReceiver = _Nobody()


class TunnelFlow:
    """The hot half of a tunnel, which is a subclass: a stream's packets in, and the scheduler's out."""

    def __init__(self) -> None:
        self.features: frozenset[str] = frozenset()
        self.packets_received = 0
        self.packets_sent = 0
        self.unknown_packets = 0  # of a code not known here: ignored (wire.md, "unknown code")
        self.receiver: PacketReceiver = NOBODY
        self._stream: Http2Stream | None = None
        self._scheduler = Scheduler(self._wake)
        self._afterwards: Callable[[], None] | None = None

    # ------------------------------------------------------------ what its subclass has besides

    def fail(self, conn_id: int, error: WireError) -> None:
        """End one connection because the peer broke a rule."""
        raise NotImplementedError

    def _tunnel_packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        """A packet that belongs to no connection: an id of 0 or less."""
        raise NotImplementedError

    # ------------------------------------------------------------ what the stream calls

    def packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        self.packets_received += 1
        number, kind = conn_id, code  # as C integers
        if number > 0 and (0 <= kind <= 1 or (kind == 3 and CLOSE in self.features)):
            self.receiver.packet_received(conn_id, code, data, error_message)
            if kind == 1:
                self._scheduler.drop(number)  # whoever it was for
        elif number <= 0 and 0 <= kind <= 2:
            self._tunnel_packet(conn_id, code, data, error_message)
        else:
            self._ignore(conn_id, code)

    def credit(self, conn_id: int, increment_bytes: int) -> None:
        self.packets_received += 1
        if conn_id <= 0 or WINDOW not in self.features:
            self._ignore(conn_id, ControlCode.WINDOW)
        elif not self._scheduler.take_credit(conn_id, increment_bytes):
            self.fail(conn_id, WireError(f"window: an increment of {increment_bytes} bytes is none, or too much"))

    def fill(self, writer: FrameWriter) -> bool:
        if not self._scheduler.fill(writer):
            if self._afterwards is None:
                return False
            action, self._afterwards = self._afterwards, None
            action()
            if not self._scheduler.fill(writer):
                return False
        self.packets_sent += 1
        return True

    def _ignore(self, conn_id: int, code: int) -> None:
        self.unknown_packets += 1
        logger.debug("a packet of a code not known here was ignored", extra={"conn_id": conn_id, "code": code})

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.wake()
