"""The half of a connection that every byte of DATA passes. The heads are `stream_plane`'s.

    transport ──► DataPlane ──► FrameReader ──► StreamReader ──► user
                   a Chunk received    frames          bytes of DATA, and the windows they are counted against

Cython compiles this file as it is, with the types of `data_plane.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ..errors import WireError
from .coalescing import ReceiveCoalescing
from .errors import ErrorCode
from .framing import MAX_WINDOW, WINDOW_UPDATE, FrameReader, StreamReader, frame
from .receiving import ReceiveBuffer, ReceivePool, pool_of_thread
from .sizes import RECEIVE_BYTES, RECEIVE_TURN_BYTES, UNSENT_BYTES
from .stream import Http2Stream, Sender

__all__ = ["ControlPlane", "DataPlane"]

_COPIED_BYTES = 16 * 1024  # up to here a copy of the bytes costs less than a buffer held by views
_UNREAD_ANSWER_BYTES = 2**20  # `connection`, I4
# C globals (data_plane.pxd), since an imported name is a Python number in a dictionary.
_RECEIVE_TURN_BYTES = RECEIVE_TURN_BYTES
_MAX_WINDOW = MAX_WINDOW

logger = logging.getLogger(__name__)


class ControlPlane(Protocol):
    """The calls of the data plane to the other half."""

    def fail(self, error: Exception) -> None:
        """End the connection for this error."""

    def stream_error(self, stream_id: int, error: WireError) -> None:
        """End a stream for this error."""

    def is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened this stream yet."""

    def flush(self) -> None:
        """Write the control plane's output."""


class DataPlane:
    """The receiving half of `Http2Connection`, with its windows.

    The transport calls `get_buffer` and `buffer_updated` here, and everything else in the other half. The other half is
    a subclass, since a `cdef class` can't inherit from asyncio.BufferedProtocol.

    control: the other half.
    window_bytes: receive window of each stream and of the connection.
    input_ended: called when the bytes of one arrival were all passed on.
    """

    def __init__(
        self,
        control: ControlPlane,
        window_bytes: int,
        frames: FrameReader,
        sender: Sender,
        input_ended: Callable[[], None] | None = None,
    ) -> None:
        self._control = control
        self.sender = sender
        self.streams: dict[int, Http2Stream] = {}
        self.closing = False
        self.heard = False  # a byte of the peer has arrived
        self.heard_s = 0.0  # when the last byte arrived, by the loop's clock, at first when the connection was made
        self._window_bytes = window_bytes
        self._frames = frames
        self._transport: asyncio.Transport | None = None
        self._buffers: ReceivePool = pool_of_thread()
        self._buffer: ReceiveBuffer | None = None  # ours, from `get_buffer` on
        self._coalescing: ReceiveCoalescing | None = None
        self._turn_bytes = 0  # received since the transport was last asked to wait
        self._input_ended = input_ended

    # ------------------------------------------------------------ in

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the transport receives next: asyncio's BufferedProtocol. sizehint: of no consequence."""
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = self._buffers.take()
        assert buffer.room is not None
        return buffer.room

    def receive(self, data: bytes) -> None:
        """Take bytes that another protocol received, before this one had the transport."""
        for start in range(0, len(data), RECEIVE_BYTES):
            part = data[start : start + RECEIVE_BYTES]
            self.get_buffer(len(part))[: len(part)] = part
            self.buffer_updated(len(part))

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
            self._control.fail(error)
        except Exception as error:
            logger.exception("a receiver failed, so the connection closes")
            self._control.fail(error)
        self._buffers.give_back(buffer)
        if self._input_ended is not None:
            self._input_ended()
        if self.sender.answering:
            self._control.flush()
        self._return_credit()
        self.sender.uncork()
        if self._coalescing is not None:
            self._coalescing.received(nbytes)
        self._turn_bytes += nbytes
        if self._turn_bytes >= _RECEIVE_TURN_BYTES:
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
            if self._control.is_idle(stream_id):
                raise WireError(f"HTTP/2: WINDOW_UPDATE frame on idle stream {stream_id}")
        elif not increment:
            self._control.stream_error(stream_id, WireError("HTTP/2: WINDOW_UPDATE frame with an increment of 0"))
        elif stream.window + increment > _MAX_WINDOW:
            rule = f"WINDOW_UPDATE frame overflows the window of stream {stream_id}"
            self._control.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FLOW_CONTROL_ERROR))
        else:
            waited = stream.window <= 0
            stream.window += increment
            if waited:
                self.sender.wake(stream)

    def return_credit(self) -> None:
        """Return the credit of received bytes, in few and large steps. Readers may hold theirs."""
        self._return_credit()

    def return_credit_of(self, stream: Http2Stream) -> None:
        """Return one stream's credit. The connection's credit returns on arrival, so no stream can starve others."""
        reader = self._frames.streams.get(stream.id)
        if reader is None or self.closing:
            return
        if reader.unreturned * 4 >= self._window_bytes or reader.unreturned > reader.window:
            out = self._credit_for(stream.id, reader)
            if out:
                self._control.flush()  # `connection`, I1
                self._write(out)

    def _credit_for(self, stream_id: int, reader: StreamReader) -> bytes:
        """The frame that returns a stream's credit. Empty if the credit is held, or the peer has ended its side."""
        if reader.held:
            return b""
        size, reader.unreturned = reader.unreturned, 0
        if reader.ended:
            return b""
        reader.window += size
        return frame(WINDOW_UPDATE, 0, stream_id, size.to_bytes(4, "big"))

    def _return_credit(self) -> None:
        if self.closing:
            return
        frames = self._frames
        out = b""
        for stream_id, reader in frames.streams.items():
            if reader.unreturned * 4 >= self._window_bytes or reader.unreturned > reader.window:
                out += self._credit_for(stream_id, reader)
        if frames.unreturned * 4 >= self._window_bytes or frames.unreturned > frames.window:
            out += frame(WINDOW_UPDATE, 0, 0, frames.unreturned.to_bytes(4, "big"))
            frames.window += frames.unreturned
            frames.unreturned = 0
        if out:
            self._control.flush()  # `connection`, I1
            self._write(out)

    # ------------------------------------------------------------ out

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > UNSENT_BYTES * 2 + _UNREAD_ANSWER_BYTES and not self.closing:
            rule = "the peer does not read the replies to its frames"  # `connection`, I4
            self._control.fail(WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.ENHANCE_YOUR_CALM))
