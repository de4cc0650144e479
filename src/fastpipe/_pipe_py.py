"""An in-memory pipe for asyncio: the reference twin. It is the specification. `_pipe_c` is only faster.

A pipe is two ends, and each end is a transport. There is no object between the ends. An end keeps the bytes that its
peer wrote and nobody took yet. So a write puts the bytes at the place where they are read.

        a.write(data) ──► [ b's waiting pieces ] ──► b's protocol, or b.read() by hand
        a's protocol, or a.read() by hand ◄── [ a's waiting pieces ] ◄── b.write(data)

States of one end and their transitions:

                 close(), abort(), collected as garbage          connection_lost(None) made,
        OPEN ───────────────────────────────────────► CLOSING ─────────────────────────────► LOST
          │                                                      or no protocol is set         ▲
          │  the peer aborts; a write into a closed peer;                                      │
          └───────────────────────────────────────────► BROKEN ────────────────────────────────┘
             a callback of its protocol raises                    connection_lost(error) made

An end has these flags beside its state:

    made              connection_made was called
    eof_sent          write_eof was called
    eof_in            the peer will write no more
    eof_delivered     eof_received was called
    paused            pause_reading was called
    protocol_paused   the protocol had pause_writing

The effect of each call in each state (nothing: returns and changes nothing):

    call               OPEN                           BROKEN                        CLOSING        LOST
    write, writelines  queued at the peer;            dropped                       dropped        dropped
                       peer closed: → BROKEN
      after write_eof  RuntimeError in every state
    write_eof          peer gets EOF; twice: nothing  nothing                       nothing        nothing
    close              peer: bytes, then EOF;         nothing                       nothing        nothing
                       → CLOSING
    abort              peer → BROKEN, untaken bytes   nothing                       where the peer nothing
                       dropped; → CLOSING                                           has untaken bytes:
                                                                                    as in OPEN
    pause_/resume_     stops and restarts data and    nothing                       nothing        nothing
      reading          EOF; twice: nothing
    set_protocol       takes over from here; first:   as OPEN                       as OPEN        nothing
                       connection_made follows
    peek, read,        what waits; nothing at EOF     what waits, then              PipeClosedError
      readinto,                                       PipeBrokenError               (PipeBrokenError, if it broke)
      consume          with a protocol set: PipeBusyError, in every state
    at_eof             whether all was taken and      False                         False          False
                       nothing can follow
    get_… , is_…       return in every state; is_closing() is `state is not OPEN`

The queue (`_queue_py`) makes one callback of an end at a time, the first that is due (`_next`):

    connection_made    a protocol is set and has not had it
    resume_writing     it had pause_writing, and the peer has taken the rest down to the low-water mark
    data_received /    pieces wait, reading is not paused; OPEN or BROKEN
      buffer_updated
    eof_received       the peer writes no more, nothing waits, reading is not paused; a false result closes the end
    connection_lost    BROKEN or CLOSING: the last callback

Two callbacks are made inside a call. pause_writing is made inside the call that passes the mark, as in all of asyncio.
Data of an `inline` pipe is delivered inside the write that brings it. If a callback of the receiver is on the stack,
that callback returns first.

Invariants, named where the code keeps them:

    I1  `size` is the sum of the lengths of the waiting pieces. No piece is empty. Without pieces none is allocated.
    I2  A piece never changes. It is exact bytes, or a view of bytes or of a Chunk, which keeps them for its views.
    I3  After connection_lost, and without a protocol, no callback is made. connection_made is the first, made once.
    I4  An end is in its queue at most once. If a callback is due, the end is in the queue, or reading is by hand or
        paused.
    I5  Only pause_writing and inline data are delivered inside a call of the same pipe.
    I6  All state is updated before a callback is made, because the callback may call anything.
    I7  An end with a protocol lives as long as its peer is open. An end that is read by hand belongs to its holder.
    I8  The link from a to b exists until a is LOST or b has finished. Without a link, nobody takes what a writes.
    I9  An end with a fast path is open, made, linked and has a plain Protocol. Neither the end nor its peer is paused,
        at EOF or counting. Only bytes can be due, so they are delivered without further checks. One whole `bytes` that
        max_chunk allows waits there, or nothing. A call that changes one of these facts ends the fast path. A delivery
        with all checks begins it.
    I10 If a turn has brought bytes or an EOF, eof_received and connection_lost wait for the next turn. So a task that
        this turn woke runs first. A socket does the same, because its EOF is another event of the loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import warnings
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, final
from weakref import ref

from fastpipe import _errors
from fastpipe._chunk_py import Chunk, ChunkPool, exact_bytes, immutable
from fastpipe._errors import PipeBrokenError
from fastpipe._limits import DEFAULT_LIMIT, DEFAULT_MAX_CHUNK, checked_limit, checked_max_chunk, water_marks
from fastpipe._queue_py import DeliveryQueue, queue_of
from fastpipe._socket import SENDFILE_FALLBACK, PipeSocket
from fastpipe._statistics_py import PipeStatistics
from fastpipe._waiting_py import BROKEN, CLOSING, LOST, OPEN, Waiting, writable

__all__ = ["Chunk", "ChunkPool", "PipeEnd", "PipeStatistics", "create_pipe"]

STATE_NAMES = ("open", "broken", "closing", "lost")


def create_pipe(
    *,
    limit: int = DEFAULT_LIMIT,
    inline: bool = False,
    max_chunk: int | None = DEFAULT_MAX_CHUNK,
    loop: asyncio.AbstractEventLoop | None = None,
) -> tuple[PipeEnd, PipeEnd]:
    """Create two connected transports in memory. Bytes written to one arrive at the other.

    The pipe belongs to this thread, or to the loop's thread once the loop runs.

    Args:
        limit: high-water mark of each direction in bytes, 0 to `sys.maxsize`. The low-water mark is a quarter of it.
        inline: deliver data within `write`.
        max_chunk: the most bytes of one `data_received`, at least 1. None: every write whole.
        loop: the loop that calls protocols. None: the running loop, or no loop until `set_protocol`.

    Raises:
        TypeError: for a value of the wrong type.
        ValueError: for a value out of range.
        RuntimeError: if the loop is closed.
    """
    high = checked_limit(limit)
    chunk = checked_max_chunk(max_chunk)
    if loop is None:
        loop = asyncio._get_running_loop()
    elif loop.is_closed():
        raise RuntimeError(_errors.LOOP_CLOSED)
    queue = DeliveryQueue() if loop is None else queue_of(loop)
    first, second = object.__new__(PipeEnd), object.__new__(PipeEnd)
    for end, peer in ((first, second), (second, first)):
        end._start(queue, loop, peer, high, bool(inline), chunk)
    return first, second


@final
class PipeEnd(Waiting):
    """One end of a pipe: an asyncio.Transport, or without a protocol a byte stream that is read by hand. See above."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_accepts_views",
        "_buffered",
        "_busy",
        "_context",
        "_deferred",
        "_detach",
        "_eof_delivered",
        "_eof_sent",
        "_fast_path",
        "_inline",
        "_made",
        "_max_chunk",
        "_paused",
        "_queued",
        "_receive",
        "_strong_peer",
        "_weak_peer",
    )

    _start_tls_compatible = True  # loop.start_tls asks for it
    _sendfile_compatible = SENDFILE_FALLBACK  # loop.sendfile asks for it: it reads the file and writes it here

    def __new__(cls, *_: object, **__: object) -> PipeEnd:
        raise TypeError(_errors.MADE_ELSEWHERE)

    def __init__(self) -> None:
        """Never reached: create_pipe makes the ends."""

    def _start(
        self,
        queue: DeliveryQueue,
        loop: asyncio.AbstractEventLoop | None,
        peer: PipeEnd,
        high: int,
        inline: bool,
        max_chunk: int,
    ) -> None:
        self._queue, self._loop = queue, loop
        self._strong_peer: PipeEnd | None = None  # I7
        self._weak_peer: Callable[[], PipeEnd | None] = ref(peer)
        self._head = self._rest = None
        self._size = 0
        self._high_water, self._low_water = high, high // 4
        self._inline, self._max_chunk = inline, max_chunk
        self._protocol: Any = None
        self._receive: Callable[[bytes | memoryview], object] | None = None  # its data_received
        self._fast_path: Callable[[bytes | memoryview], object] | None = None  # the same, where I9 holds
        self._context: contextvars.Context | None = None
        self._buffered = self._accepts_views = False
        self._state = OPEN
        self._error: BaseException | None = None
        self._made = self._eof_sent = self._eof_in = self._eof_delivered = False
        self._paused = self._protocol_paused = self._queued = self._busy = self._deferred = False
        self._extra: dict[str, Any] | None = None
        self._stats: PipeStatistics | None = None
        self._detach: Callable[[PipeEnd], None] | None = None

    # ---- writing

    def write(self, data: Any, /) -> None:
        """Send bytes. data: bytes-like; `bytes` and views of them or of a Chunk are kept by reference, else copied now.

        Never blocks and never refuses: past the high-water mark it calls pause_writing. Raises TypeError without a
        buffer, RuntimeError after write_eof, from another thread, and where the loop is closed.
        """
        queue = self._queue
        if get_ident() != queue.thread:
            raise RuntimeError(_errors.WRONG_THREAD)
        if type(data) is bytes:
            peer = self._strong_peer
            if peer is not None and peer._fast_path is not None and peer._head is None:  # I9: the common case
                size = len(data)
                if size and size <= self._high_water:
                    peer._head = data
                    peer._size = size
                    if not peer._queued:
                        peer._queued = True
                        queue.due.append(peer)
                        if not queue.draining and not queue.scheduled:
                            queue.schedule(self._loop)
                    return
        else:
            data = immutable(data)  # I2
        if self._eof_sent:
            raise RuntimeError(_errors.WRITE_AFTER_EOF)
        if not data or self._state != OPEN:
            return
        peer = self._strong_peer or self._weak_peer()
        if peer is None:  # I8
            self._break(PipeBrokenError(_errors.PEER_GONE))
            return
        self._put(peer, data)
        self._sent(peer)

    def writelines(self, list_of_data: Iterable[Any], /) -> None:
        """`write` for each item, all or nothing: an item without a buffer raises before any is sent."""
        self._check_thread()
        pieces = [piece for piece in map(immutable, list_of_data) if piece]
        if self._eof_sent:
            raise RuntimeError(_errors.WRITE_AFTER_EOF)
        if not pieces or self._state != OPEN:
            return
        peer = self._strong_peer or self._weak_peer()
        if peer is None:
            self._break(PipeBrokenError(_errors.PEER_GONE))
            return
        for piece in pieces:
            self._put(peer, piece)
        self._sent(peer)

    def _put(self, peer: PipeEnd, piece: bytes | memoryview) -> None:
        peer._fast_path = None  # I9
        peer._add(piece)
        if self._stats is not None:
            self._stats.chunks_written += 1
            self._stats.bytes_written += len(piece)

    def _sent(self, peer: PipeEnd) -> None:
        if peer._protocol is not None and not peer._paused:
            if peer._inline:
                peer._deliver_inline()
            elif not peer._queued:
                self._queue.wake(peer, self._loop)
        if not self._protocol_paused and self.get_write_buffer_size() > self._high_water:
            self._pause_protocol()

    def can_write_eof(self) -> bool:
        """True."""
        return True

    def write_eof(self) -> None:
        """Half-close. The peer gets eof_received after all bytes. This end can still read. Raises RuntimeError."""
        self._check_thread()
        if self._state != OPEN or self._eof_sent:
            return
        self._eof_sent = True
        peer = self._peer()
        if peer is not None:
            peer._eof_in = True
            peer._fast_path = None  # I9
            peer._wake()

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken yet."""
        peer = self._strong_peer or self._weak_peer()
        return 0 if peer is None else peer._size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """(low, high) water marks in bytes."""
        return self._low_water, self._high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks in bytes. Defaults of asyncio: 64 KiB, a quarter of high. Raises ValueError, RuntimeError."""
        self._check_thread()
        self._high_water, self._low_water = water_marks(high, low)
        self._leave_fast_path()
        if not self._protocol_paused and self.get_write_buffer_size() > self._high_water:
            self._pause_protocol()
        elif self._state == OPEN:
            self._wake()  # the low mark may have risen above what waits

    def _pause_protocol(self) -> None:
        if self._state != OPEN or self._protocol is None or not self._made:
            return
        self._protocol_paused = True
        self._leave_fast_path()
        if self._stats is not None:
            self._stats._pause()
        try:
            self._call(self._protocol, "pause_writing")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error, "protocol.pause_writing() failed")
        if self._inline:
            self._wake()  # bytes that came for us while the callback was on the stack

    # ---- ending

    def is_closing(self) -> bool:
        """Whether this end was closed, aborted or broken."""
        return self._state != OPEN

    def close(self) -> None:
        """Close both directions. The peer gets the written bytes, then EOF. Bytes that wait here are dropped."""
        self._check_thread()
        if self._state == OPEN:
            self._finish(CLOSING, None, aborting=False)

    def abort(self) -> None:
        """End both directions at once: untaken bytes are dropped and the peer gets PipeBrokenError."""
        self._check_thread()
        if self._state == OPEN:
            self._finish(CLOSING, None, aborting=True)
        elif self._state == CLOSING and self.get_write_buffer_size():
            peer = self._peer()
            self._unlink()
            if peer is not None:
                peer._break(PipeBrokenError(_errors.PEER_ABORTED), drop=True)

    def _finish(self, state: int, error: BaseException | None, *, aborting: bool) -> None:
        """Leave OPEN by our own doing, and let the peer know: EOF, or that the pipe broke."""
        self._state, self._error, self._fast_path = state, error, None  # I9
        self._drop_waiting()
        peer = self._peer()
        if aborting:
            self._unlink()
        if peer is not None:
            peer._unlink()  # I8
            if aborting:
                peer._break(PipeBrokenError(_errors.PEER_ABORTED), drop=True)
            else:
                peer._eof_in = True
                peer._fast_path = None  # I9
                peer._wake_quietly()
        if self._protocol is None and state == CLOSING:
            self._state = LOST
            self._unlink()
            self._tell_server()
        self._wake_quietly()

    def _break(self, error: BaseException, *, drop: bool = False) -> None:
        """Leave OPEN by the peer's doing. drop: what waits here as well."""
        if self._state == OPEN:
            self._state, self._error, self._fast_path = BROKEN, error, None  # I9
            self._unlink()
        if drop:
            self._drop_waiting()
        self._wake_quietly()

    def _space_freed(self) -> None:
        """Let a paused writer know if few enough bytes wait here."""
        writer = self._strong_peer or self._weak_peer()
        if writer is not None and writer._protocol_paused and self._size <= writer._low_water:
            writer._wake_quietly()

    def _peer(self) -> PipeEnd | None:
        return self._strong_peer or self._weak_peer()

    def _unlink(self) -> None:
        self._strong_peer, self._weak_peer = None, _nobody

    def __del__(self) -> None:
        if self._state != OPEN:
            return
        warnings.warn(f"unclosed transport {self!r}", ResourceWarning, stacklevel=1, source=self)
        queue = self._queue
        if queue.thread == get_ident() or self._loop is None:
            self._abandon()
        elif not self._loop.is_closed():  # the garbage collector runs in any thread
            self._loop.call_soon_threadsafe(self._abandon)

    def _abandon(self) -> None:
        """Close an end without a holder. The peer gets the written bytes, then EOF. This end makes no callback."""
        self._protocol = self._receive = self._fast_path = self._context = None
        if self._state == OPEN:
            self._finish(CLOSING, None, aborting=False)

    # ---- protocol

    def set_protocol(self, protocol: Any, /) -> None:
        """Call `protocol` from now on, in a copy of this context. The first protocol gets connection_made.

        Bytes that wait go to the new protocol.

        Args:
            protocol: Protocol, BufferedProtocol, or None to read by hand again.

        Raises:
            RuntimeError: from another thread, without any loop, or if the loop is closed.
        """
        if self._loop is None:
            self._move_in(asyncio.get_running_loop())
        elif get_ident() != self._queue.thread:
            raise RuntimeError(_errors.WRONG_THREAD)
        elif not self._queue.scheduled and not self._queue.draining and self._loop.is_closed():  # with a turn, it isn't
            raise RuntimeError(_errors.LOOP_CLOSED)
        if self._state == LOST:
            return
        self._protocol, self._receive, self._fast_path = protocol, None, None
        self._context = None if protocol is None else contextvars.copy_context()
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)
        self._accepts_views = bool(getattr(protocol, "accepts_views", False))
        peer = self._peer()
        if peer is not None and self._state == OPEN:
            peer._strong_peer = None if protocol is None else self  # I7
        self._wake()

    def _move_in(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the pipe its loop."""
        self._queue, self._loop = queue_of(loop), loop
        peer = self._peer()
        if peer is not None:
            peer._queue, peer._loop = self._queue, loop

    def get_protocol(self) -> Any:
        """The protocol; None before the first and after connection_lost."""
        return self._protocol

    def pause_reading(self) -> None:
        """No data and no EOF for the protocol until resume_reading. Raises RuntimeError from another thread."""
        self._check_thread()
        if self._state == OPEN:
            self._paused = True
            self._fast_path = None  # I9

    def resume_reading(self) -> None:
        """Deliver again, from the loop. Raises RuntimeError from another thread and where the loop is closed."""
        self._check_thread()
        if self._state == OPEN and self._paused:
            self._paused = False
            self._wake()

    def is_reading(self) -> bool:
        """Whether this end is open and reading is not paused."""
        return self._state == OPEN and not self._paused

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`socket` (a stand-in without a descriptor), `peername`, `sockname` ('' unless set), and what was set."""
        extra = self._extra
        if extra is not None and name in extra:
            return extra[name]
        if name in ("peername", "sockname"):
            return ""
        if name == "socket":
            return PipeSocket(self.get_extra_info("sockname"), self.get_extra_info("peername"))
        return default

    def set_extra_info(self, name: str, value: Any, /) -> None:
        """Set the value that `get_extra_info(name)` returns. For the creator of the pipe."""
        if self._extra is None:
            self._extra = {}
        self._extra[name] = value

    def collect_statistics(self) -> PipeStatistics:
        """The counts of this end, which begin with the first such call. Costs nothing until then."""
        if self._stats is None:
            self._leave_fast_path()
            self._stats = PipeStatistics()
            if self._protocol_paused:
                self._stats._pause()
        return self._stats

    # ---- callbacks

    def _next(self) -> Callable[[], None] | None:
        """The callback that is due, as a method that makes it."""
        if self._protocol is None:
            return self._lost_unheard if self._state == CLOSING else None
        if not self._made:
            return self._connect
        state = self._state
        if state == OPEN:
            if self._protocol_paused and self.get_write_buffer_size() <= self._low_water:
                return self._resume_protocol
            if not self._paused:
                if self._head is not None:
                    return self._deliver if self._inline or self._buffered else self._deliver_data
                if self._eof_in and not self._eof_delivered:
                    return self._deliver_eof
            return None
        if state == BROKEN and self._head is not None and not self._paused:
            return self._deliver
        return None if state == LOST else self._tell_lost

    def _wake(self) -> None:
        """Join the queue if a callback is due. Raises RuntimeError where the loop is closed."""
        if not self._queued and self._loop is not None and self._next() is not None:  # I4
            self._queue.wake(self, self._loop)

    def _wake_quietly(self) -> None:
        """Like `_wake`, for a call with another purpose than the callback. Ignore a closed loop."""
        try:
            self._wake()
        except RuntimeError:
            self._lost_unheard()
            if self._state == LOST:
                self._protocol = self._receive = self._context = None

    def _step(self) -> None:
        """Make the callback that is due first, or defer it. Join the queue again if another is due."""
        queue, fast_path, data = self._queue, self._fast_path, self._head
        if fast_path is not None and data is not None:  # I9: _deliver_data, and nothing is left for it to ask
            self._head = None
            queue.bytes += self._size
            self._size = 0
            self._busy = True
            try:
                try:
                    self._context.run(fast_path, data)  # type: ignore[union-attr]  # it is there with a protocol
                finally:
                    self._busy = False
            except BaseException as error:
                self._receiving_failed(error)
            return
        callback = self._next()
        is_end = callback in (self._deliver_eof, self._tell_lost)
        if is_end and (queue.bytes or queue.eof_delivered) and not self._deferred:  # I10
            self._deferred = True
            queue.defer(self)
            return
        self._deferred = False
        if callback is None:
            return
        try:
            callback()
        finally:
            idle = self._head is None and not self._eof_in and not self._state and not self._protocol_paused
            if not idle and not self._queued and self._next() is not None:
                queue.wake(self, self._loop)

    def _call(self, protocol: Any, name: str, *args: Any) -> Any:
        """Make a callback in the protocol's context. (Inside another of this end the context is entered already.)"""
        callback = getattr(protocol, name)
        if self._busy:
            return callback(*args)
        self._busy = True
        try:
            assert self._context is not None
            return self._context.run(callback, *args)
        finally:
            self._busy = False

    def _connect(self) -> None:
        self._made = True  # I3
        try:
            self._call(self._protocol, "connection_made", self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "Fatal error: protocol.connection_made() call failed.")
        if not self._protocol_paused and self.get_write_buffer_size() > self._high_water:
            self._pause_protocol()  # it was written to before it had a protocol

    def _resume_protocol(self) -> None:
        self._protocol_paused = False
        if self._stats is not None:
            self._stats._resume()
        try:
            self._call(self._protocol, "resume_writing")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error, "protocol.resume_writing() failed")

    def _deliver_inline(self) -> None:
        """Deliver what waits now, within the peer's write, or leave it to the loop's turn if now it can't be."""
        queue = self._queue
        if self._busy or self._queued:  # its callback or the due turn delivers the data, in order
            return
        if not queue.draining and not queue.depth:
            queue.calls = queue.bytes = 0
        queue.depth += 1
        try:
            while self._made and self._delivering() and not queue.budget_spent():
                queue.calls += 1
                self._deliver()
        finally:
            queue.depth -= 1
            self._wake()

    def _delivering(self) -> bool:
        """Whether the next callback brings bytes."""
        return self._head is not None and self._next() == self._deliver

    def _deliver(self) -> None:
        while True:
            if self._buffered:
                self._deliver_buffer()
            else:
                self._deliver_data()
            if not self._inline or self._queued or self._head is None or self._queue.budget_spent():
                return
            if not self._delivering():
                return
            self._queue.calls += 1  # inline: what came while the callback was on the stack

    def _deliver_data(self) -> None:
        data: Any = self._head
        n = len(data)
        if n > self._max_chunk:
            data, n = memoryview(data)[: self._max_chunk], self._max_chunk
        self._taken(n)  # I6
        if self._accepts_views:
            data = memoryview(data)
        elif type(data) is not bytes:
            data = exact_bytes(data)
        self._queue.bytes += n
        try:
            if self._receive is None:
                self._receive = self._protocol.data_received  # looked up once, as uvloop does
            self._fast_path = self._receive if self._may_take_fast_path() else None
            if self._busy:
                self._receive(data)
            else:
                self._busy = True
                try:
                    self._context.run(self._receive, data)  # type: ignore[union-attr]
                finally:
                    self._busy = False
        except BaseException as error:
            self._receiving_failed(error)

    def _receiving_failed(self, error: BaseException) -> None:
        """data_received raised, and this is called where it is handled."""
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise error
        self._fatal(error, "Fatal error: protocol.data_received() call failed.")

    def _may_take_fast_path(self) -> bool:
        """Whether I9 holds from here on."""
        writer = self._strong_peer
        return (
            writer is not None
            and self._state == OPEN
            and self._made
            and self._head is None
            and not (self._inline or self._accepts_views or self._paused or self._eof_in or self._protocol_paused)
            and self._stats is writer._stats is None
            and not writer._protocol_paused
            and writer._high_water <= self._max_chunk
        )

    def _leave_fast_path(self) -> None:
        """This end, and what it writes, are to be looked at more closely: I9."""
        self._fast_path = None
        peer = self._peer()
        if peer is not None:
            peer._fast_path = None

    def _deliver_buffer(self) -> None:
        protocol = self._protocol
        try:
            buffer = self._call(protocol, "get_buffer", min(self._size, self._max_chunk))
            view = writable(buffer)
            if not view:
                raise RuntimeError(_errors.EMPTY_BUFFER)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "Fatal error: protocol.get_buffer() call failed.")
            return
        n = self._fill(view[: self._max_chunk]) if self._protocol is protocol else 0
        view.release()
        if not n:  # get_buffer ended this end, or handed it to another protocol
            return
        self._queue.bytes += n
        try:
            self._call(protocol, "buffer_updated", n)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "Fatal error: protocol.buffer_updated() call failed.")

    def _deliver_eof(self) -> None:
        self._eof_delivered = self._queue.eof_delivered = True
        try:
            keep_open = bool(self._call(self._protocol, "eof_received"))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open and self._state == OPEN:
            self._finish(CLOSING, None, aborting=False)

    def _tell_lost(self) -> None:
        error, protocol = self._error, self._protocol
        self._lost_unheard()
        try:
            self._call(protocol, "connection_lost", error)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as raised:
            self._report(raised, "protocol.connection_lost() failed")
        finally:
            self._protocol = self._receive = self._context = None

    def _lost_unheard(self) -> None:
        if self._state != OPEN:
            self._state = LOST  # I3
            self._drop_waiting()
            self._unlink()
            if self._stats is not None and self._protocol_paused:
                self._stats._resume()
            self._tell_server()

    def _attach(self, detach: Callable[[PipeEnd], None]) -> None:
        """Set the callback of the server that owns this connection.

        Args:
            detach: called once with this end when it is LOST. Must not raise.
        """
        self._detach = detach

    def _tell_server(self) -> None:
        detach, self._detach = self._detach, None
        if detach is not None:
            detach(self)

    def _report(self, error: BaseException, message: str) -> None:
        context = {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        assert self._loop is not None
        self._loop.call_exception_handler(context)

    def _fatal(self, error: BaseException, message: str) -> None:
        """Report the error that a callback raised, and break this end. The peer sees an abort."""
        self._report(error, message)
        if self._state == OPEN:
            self._finish(BROKEN, error, aborting=True)
        else:
            self._drop_waiting()

    def __repr__(self) -> str:
        waiting, unread = self._size, self.get_write_buffer_size()
        return f"<fastpipe.PipeEnd {STATE_NAMES[self._state]} waiting={waiting} unread={unread}>"


def _nobody() -> None:
    """The reference to a peer that is no more."""
