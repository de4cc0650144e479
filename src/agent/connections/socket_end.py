"""The manager's end of a Unix socket. If its writes fail, this transport still reads the bytes in transit to it.

asyncio's own transports close in both directions if a write fails. A proxy may respond early and close while the rest
of an upload is in transit. Its response would then be lost. Over a pipe the response arrives, and the two modes may not
differ. Here a failed write ends only the writing. All bytes that the peer wrote before it closed are read.

The socket connects at once. If the listener's backlog is full (EAGAIN), the socket tries again. For AF_UNIX there is no
"in progress", so a socket that got EAGAIN never connects by waiting. Bytes written meanwhile wait in order.

            connected               end of stream or error
    DIALLING ────────► CONNECTED ────────────────────────► LOST   (`connection_lost` is scheduled, once)
        └──────────────── error, close ─────────────────────┘

               write_eof               queue is empty
    SENDING ────────► FINISHING ──────────────────────────► ENDED   (nothing more is sent)
        └──────────────── failed write, stop_writing ───────┘

If a peer closes before it has read all our bytes, the socket gets an error. libuv reports such a socket once and then
stops watching it. So the code that finds the error reads to the end at once, even if reading is paused. The rest is at
most the contents of a socket buffer.
"""

from __future__ import annotations

import asyncio
import enum
import select
import socket
from collections import deque
from typing import Protocol

__all__ = ["SocketEnd", "SocketEndProtocol"]

_READ_MIN_BYTES, _READ_MAX_BYTES = 16 * 1024, 256 * 1024  # small for short responses, large for bulk
_DIAL_RETRY_MIN_S, _DIAL_RETRY_MAX_S = 0.001, 0.05
_SEND_PIECES = 64  # well below IOV_MAX (1,024)


class State(enum.Enum):
    DIALLING = "dialling"
    CONNECTED = "connected"
    LOST = "lost"


class Output(enum.Enum):
    """The state of the sending direction."""

    SENDING = "sending"
    FINISHING = "finishing"
    """The end of stream follows what is queued."""
    ENDED = "ended"
    """Shut down, stopped or failed."""


DIALLING, CONNECTED, LOST = State  # looked up once: until Python 3.12 an enum's attribute costs a call
SENDING, FINISHING, ENDED = Output


class SocketEndProtocol(Protocol):
    """asyncio's Protocol, without the transport being handed over: its owner made it."""

    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class SocketEnd:
    """One end of a Unix stream socket, on asyncio and on uvloop alike.

    sock: non-blocking, AF_UNIX, bound to the name that the acceptor will look up. This object owns it from now on.
    limit_bytes: the high-water mark of the bytes that wait to be sent. The low-water mark is a quarter of it.
    dial_timeout_s: how long the socket tries to connect while the backlog is full.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: SocketEndProtocol,
        *,
        limit_bytes: int,
        dial_timeout_s: float,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._protocol = protocol
        self._high_bytes = limit_bytes
        self._low_bytes = limit_bytes // 4
        self._dial_timeout_s = dial_timeout_s
        self._dial_retry: asyncio.TimerHandle | None = None
        self.connected = False
        """Whether it has reached the listener, which may not have accepted it yet. Stays so when it is lost."""
        self._state = DIALLING
        self._output = SENDING
        self._queue: deque[bytes | memoryview] = deque()
        self._queued_bytes = 0
        self._read_bytes = _READ_MIN_BYTES
        self._reading = False  # a reader is registered
        self._writing = False  # a writer is registered
        self._reading_paused = False
        self._writing_paused = False
        self._eof_seen = False

    # -- connecting

    def dial(self, path: str) -> None:
        """Connect to the listener at `path`, now or as soon as its backlog has room."""
        self._dial(path, self._loop.time() + self._dial_timeout_s, _DIAL_RETRY_MIN_S)

    def _dial(self, path: str, deadline_s: float, retry_s: float) -> None:
        self._dial_retry = None
        try:
            self._sock.connect(path)
        except BlockingIOError:
            if self._loop.time() >= deadline_s:
                self._lose(TimeoutError("the proxy's socket accepts no connections"))
                return
            again_s = min(retry_s * 2, _DIAL_RETRY_MAX_S)
            self._dial_retry = self._loop.call_later(retry_s, self._dial, path, deadline_s, again_s)
            return
        except OSError as error:
            self._lose(error)
            return
        self._state = CONNECTED
        self.connected = True
        self._watch_reading()
        if self._queue or self._output is FINISHING:
            self._on_writable()

    # -- reading

    def pause_reading(self) -> None:
        self._reading_paused = True
        self._watch_reading()

    def resume_reading(self) -> None:
        self._reading_paused = False
        self._watch_reading()

    def _watch_reading(self) -> None:
        wanted = self._state is CONNECTED and not (self._reading_paused or self._eof_seen)
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._loop.add_reader(self._sock, self._on_readable)
            else:
                self._loop.remove_reader(self._sock)

    def _on_readable(self) -> None:
        if not self._reading:  # paused by a callback of the same turn
            return
        try:
            data = self._sock.recv(self._read_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:  # ECONNRESET: our bytes were unread at the peer's close, its bytes were read
            self._lose(error)
            return
        if not data:
            self._end_of_stream()
            return
        if len(data) == self._read_bytes:
            self._read_bytes = min(self._read_bytes * 4, _READ_MAX_BYTES)
        elif len(data) * 4 < self._read_bytes:
            self._read_bytes = max(self._read_bytes // 4, _READ_MIN_BYTES)
        self._protocol.data_received(data)
        if self._state is CONNECTED and self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._read_to_the_end()

    def _read_to_the_end(self) -> None:
        """The peer is closed in both directions: take what it had written before, and be done."""
        while self._state is CONNECTED:
            try:
                data = self._sock.recv(_READ_MAX_BYTES)
            except (BlockingIOError, InterruptedError):  # not closed after all
                return
            except OSError:
                data = b""
            if not data:
                self._eof_seen = True
                self._lose(None)
                return
            self._protocol.data_received(data)

    def _end_of_stream(self) -> None:
        self._eof_seen = True
        self._watch_reading()
        if self.peer_closed():
            self._lose(None)
        elif not self._protocol.eof_received():
            self.close()

    def peer_closed(self) -> bool:
        """Whether the peer is closed in both directions. False before its end of stream."""
        if self._state is LOST or not self._eof_seen:
            return False
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(self._sock, 0)  # POLLHUP is always reported, and a half-close does not set it
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))

    # -- writing

    def write(self, data: bytes | memoryview) -> None:
        """Send, now or later. data: immutable, n >= 1 bytes, kept by reference. Dropped once nothing can be sent."""
        if self._state is LOST or self._output is not SENDING:
            return
        if self._state is CONNECTED and not self._queue:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._write_failed()
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._queue.append(data)
        self._queued_bytes += len(data)
        self._watch_writing()
        if self._queued_bytes > self._high_bytes and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        """Half-close, after what is queued."""
        if self._output is SENDING:
            self._output = FINISHING
            if self._state is CONNECTED and not self._queue:
                self._shut_down_writing()

    def stop_writing(self) -> None:
        """Send nothing more, and drop the queued bytes. Reading continues."""
        self._output = ENDED
        self._queue.clear()
        self._queued_bytes = 0
        self._watch_writing()
        if self._eof_seen:  # neither direction is left
            self._lose(None)

    def _write_failed(self) -> None:
        self.stop_writing()
        self._loop.call_soon(self._read_to_the_end)  # not within the write: its caller may be in the middle of things

    def get_write_buffer_size(self) -> int:
        return self._queued_bytes

    def _watch_writing(self) -> None:
        wanted = self._state is CONNECTED and bool(self._queue)
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._sock, self._on_writable)
            else:
                self._loop.remove_writer(self._sock)

    def _on_writable(self) -> None:
        queue = self._queue
        if queue:
            try:
                sent = self._sock.sendmsg([queue[i] for i in range(min(len(queue), _SEND_PIECES))])
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self._write_failed()
                return
            self._queued_bytes -= sent
            while sent:
                first = queue[0]
                if sent < len(first):
                    queue[0] = memoryview(first)[sent:]
                    break
                sent -= len(first)
                queue.popleft()
        self._watch_writing()
        if self._writing_paused and self._queued_bytes <= self._low_bytes:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._output is FINISHING and not self._queue:
            self._shut_down_writing()

    def _shut_down_writing(self) -> None:
        if self._state is LOST:
            return
        self._output = ENDED
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:  # the peer has closed, and reading finds its end
            return

    # -- the end

    def close(self) -> None:
        """Close now: what is queued is dropped, `connection_lost(None)` is scheduled. Again is no error."""
        self._lose(None)

    abort = close

    def _lose(self, error: Exception | None) -> None:
        if self._state is LOST:
            return
        self._state = LOST
        if self._dial_retry is not None:
            self._dial_retry.cancel()
            self._dial_retry = None
        self._queue.clear()
        self._queued_bytes = 0
        self._watch_reading()
        self._watch_writing()
        self._sock.close()
        self._loop.call_soon(self._protocol.connection_lost, error)
