"""What goes out on a connection: DATA, as far as the windows, the peer's frame size and the transport take it."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from ..errors import WireError
from .framing import DEFAULT_WINDOW, MAX_WINDOW, MIN_MAX_FRAME_SIZE
from .stream import Http2Stream

__all__ = ["FRAME_BYTES", "UNSENT_BYTES", "Sender"]

UNSENT_BYTES = 128 * 1024
"""What may wait in the transport, and as much again unsent in the kernel: what is chosen next then goes out next."""

FRAME_BYTES = 256 * 1024
"""The largest frame that is sent, however large a one the peer takes: an answer to a PING waits no longer than that."""

_PUMP_BYTES = 2**20  # written in one go before the event loop gets its turn
_JOIN_BYTES = 32 * 1024  # up to here one copy costs less than a gathered write
_FLOW_CONTROL_ERROR = 0x3
_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class Sender:
    """Writes DATA of one connection's streams, in turn.

    flush: writes what the control plane has to say; called before DATA. finish: ends a stream whose last message has
    gone. `window` and each stream's are the peer's credit, and may be negative (RFC 9113, section 6.9.2).
    """

    def __init__(self, flush: Callable[[], None], finish: Callable[[Http2Stream], None]) -> None:
        self.window = DEFAULT_WINDOW
        self.initial_window = DEFAULT_WINDOW  # of each new stream
        self.sent_bytes = 0  # given to the transport
        self._frame_bytes = MIN_MAX_FRAME_SIZE
        self._flush = flush
        self._finish = finish
        self._transport: asyncio.Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._round: deque[Http2Stream] = deque()  # streams with something to send
        self._due = False  # `_pump` is scheduled
        self.corked = False  # set while bytes are received: `uncork` then sends the answers to them in one go
        self._paused = False

    def start(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Write to this transport from now on, and keep its buffers and the kernel's small."""
        self._transport = transport
        self._loop = loop
        transport.set_write_buffer_limits(high=UNSENT_BYTES, low=UNSENT_BYTES // 4)  # uvloop's default low is 16
        sock = transport.get_extra_info("socket")
        if sock is not None and _TCP_NOTSENT_LOWAT is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT_BYTES)
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
        if self.window + increment > MAX_WINDOW:
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
            assert self._loop is not None
            self._due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Write a part of each stream that has something, in turn, as long as window, transport and budget allow."""
        self._due = False
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
            room = max(UNSENT_BYTES + 1 - transport.get_write_buffer_size(), MIN_MAX_FRAME_SIZE)
            room = min(room, stream.window, self.window)
            more = True
            while more and writer.pending < room and not stream.finishing:
                more = stream.user.fill(writer)
            if room <= 0 or not writer.pending or stream.gone:
                stream.queued = False  # its credit, or its user, wakes it
                continue
            before = writer.pending
            buffers = writer.take(room, self._frame_bytes)
            sent = before - writer.pending
            if more or writer.pending:
                self._round.append(stream)
            else:
                stream.queued = False  # nothing left: not asked again until it wakes
            stream.window -= sent
            self.window -= sent
            self.sent_bytes += sent
            budget -= sent
            if sent <= _JOIN_BYTES:
                transport.write(b"".join(buffers))
            else:
                transport.writelines(buffers)
            if stream.finishing and not writer.pending:
                self._finish(stream)
