"""Awaitable reader and writer over a pipe's end. Cython compiles this file with the types of `_streams.pxd`.

asyncio's StreamReader copies arriving bytes into one bytearray, and copies them out again. PipeReader keeps the pieces
and counts bytes. A read takes from the front. A `bytes` that is written and read whole is the same object.

A waiting task is woken in the turn that brings the bytes. A pipe's turn calls `data_received`, which immediately takes
one step of the waiting task. asyncio's Future would need another turn of the loop. So tasks get the pipe's same-turn
delivery, within the pipe's budget. Every STEPS_IN_A_ROW-th step goes through the loop anyway.

      task A                      the pipe's turn                          task B
      writer.write(data) ───────► reader.data_received(data)
                                    Arrival.wake() ──────────────────────► `await reader.read()` returns

Semantics are asyncio's (`IncompleteReadError`, `LimitOverrunError`, texts, limits, pauses of reading), except for:

- A cancelled read takes nothing. This includes `read(-1)`, whose bytes asyncio drops with the task.
- Two reads at once raise PipeBusyError. asyncio raises a RuntimeError.
- A cancelled `wait_closed` does not affect another one.
- `readinto` exists, and every Python version accepts tuples of separators.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from asyncio import CancelledError, IncompleteReadError, LimitOverrunError, current_task
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastpipe._errors import PipeBusyError

if TYPE_CHECKING:
    from fastpipe._pipe_c import PipeEnd

# Arrivals shorter than SMALL_BYTES are joined if others wait before them. So 64 KiB that arrived byte by byte are not
# 65,536 objects. A joined arrival of JOINED_BYTES or more grows no further, so that its memory is freed once read.
SMALL_BYTES = 256
JOINED_BYTES = 16384
MOST_BYTES = sys.maxsize // 4  # of a limit, so that sums with it stay within a C integer

# A step of a task is user code of any length. So the loop gets a turn after this many steps of one reader. A turn
# costs about as much as two short steps, which is negligible.
STEPS_IN_A_ROW = 32

FRESH, WAITING, WOKEN, SPENT, CANCELLED = range(5)


class Arrival:
    """The awaitable of a waiting read. It looks like a future to a Task, but steps the task without the loop.

    FRESH ── awaited ──► WAITING ── wake() ──► WOKEN ── resumed ──► SPENT: the reader may use it again, as FRESH.
                            └────── cancel() ──► CANCELLED
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_error", "_loop", "_message", "_state")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False  # Task's handshake: True while it is yielded and not yet seen
        self._loop = loop
        self._callback: Any = None
        self._context: Any = None
        self._state = FRESH
        self._error: BaseException | None = None
        self._message: Any = None

    def __await__(self) -> Any:
        return self

    def __iter__(self) -> Arrival:
        return self

    def __next__(self) -> Arrival:
        if self._state != FRESH:
            self._state = SPENT
            raise StopIteration
        self._state = WAITING
        self._asyncio_future_blocking = True
        return self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the reader's loop. Task rejects an Arrival of another loop."""
        return self._loop

    def add_done_callback(self, callback: Any, *, context: Any = None) -> None:
        """Task's wakeup and its context."""
        if self._state == WAITING:
            self._callback, self._context = callback, context
        else:
            self._loop.call_soon(callback, self, context=context)

    def done(self) -> bool:
        """Whether it was woken or cancelled."""
        return self._state >= WOKEN

    def result(self) -> None:
        """None; raises the error it was woken with, or CancelledError."""
        if self._state == CANCELLED:
            raise CancelledError() if self._message is None else CancelledError(self._message)
        if self._error is not None:
            raise self._error

    def cancel(self, msg: Any = None) -> bool:
        """Raise CancelledError in the task in the loop's next turn. Return False if it was already woken."""
        if self._state >= WOKEN:
            return False
        self._state = CANCELLED
        self._message = msg
        if self._callback is not None:
            self._loop.call_soon(self._callback, self, context=self._context)
            self._callback = self._context = None
        return True

    def wake(self, error: BaseException | None, now: bool) -> None:
        """Continue the task: here if `now`, otherwise through the loop.

        This may call user code, so it must be the caller's last step.
        """
        if self._state >= WOKEN:
            return
        self._state = WOKEN
        self._error = error
        callback, context = self._callback, self._context
        if callback is None:
            return
        self._callback = self._context = None  # the task is not kept by its reader
        if now:
            context.run(callback, self)
        else:
            self._loop.call_soon(callback, self, context=context)


class PipeReader:
    """The reading half, and the protocol of its end. Made by `open_pipe_streams`, `open_streams` and the Listener.

    Its methods are asyncio.StreamReader's. Each coroutine may be cancelled and has then taken nothing.
    """

    __slots__ = (
        "__weakref__",
        "_drainers",
        "_eof",
        "_error",
        "_farewells",
        "_in_turn",
        "_length",
        "_limit",
        "_loop",
        "_lost",
        "_paused",
        "_pieces",
        "_spare",
        "_start",
        "_steps",
        "_transport",
        "_waiter",
        "_writing_paused",
    )

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop, in_turn: bool = False) -> None:
        """limit: bytes, at least 1. in_turn: the end is not `inline`, so its callbacks are made by the loop alone."""
        if limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = min(limit, MOST_BYTES)
        self._loop = loop
        self._pieces: deque[bytes | bytearray] = deque()  # bytearray: small arrivals, joined here
        self._start = 0  # bytes of the first piece that were taken
        self._length = 0  # bytes to be read
        self._eof = False
        self._error: BaseException | None = None
        self._waiter: Arrival | None = None
        self._spare: Arrival | None = None  # the last one, for the next time
        self._in_turn = in_turn
        self._steps = 0  # of tasks, taken within the pipe's turn
        self._transport: Any = None
        self._paused = False
        self._lost = False
        self._writing_paused = False
        self._drainers: list[asyncio.Future[None]] = []
        self._farewells: list[asyncio.Future[None]] = []

    # ---- the protocol of its end

    def connection_made(self, transport: Any) -> None:
        """Reading may be paused from here on."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Keep the data and wake the read that waits."""
        pieces = self._pieces
        if pieces and len(data) < SMALL_BYTES:
            last = pieces[-1]
            if type(last) is bytearray and len(last) < JOINED_BYTES:
                last += data
            elif len(last) < SMALL_BYTES:
                pieces[-1] = bytearray(last) + data
            else:
                pieces.append(data)
        else:
            pieces.append(data)
        self._length += len(data)
        if self._length > 2 * self._limit and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        if self._waiter is not None:
            self._wake(None)

    def eof_received(self) -> bool:
        """Nothing follows; this side may still write."""
        self._eof = True
        self._wake(None)
        return True

    def connection_lost(self, error: Exception | None) -> None:
        """Wake the calls that wait. They return, or raise `error`.

        Later reads see EOF or the error. Later drains raise the error or ConnectionResetError.
        """
        self._lost = True
        if error is None:
            self._eof = True
        else:
            self._error = error
        for waiter in self._drainers + self._farewells:
            if not waiter.done():
                if error is None:
                    waiter.set_result(None)
                else:
                    waiter.set_exception(error)
        self._wake(error)

    def pause_writing(self) -> None:
        """From now on `drain` waits."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """Wake each waiting `drain`."""
        self._writing_paused = False
        for drainer in self._drainers:
            if not drainer.done():
                drainer.set_result(None)

    def _wake(self, error: BaseException | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._steps += 1
            now = self._steps % STEPS_IN_A_ROW != 0
            waiter.wake(error, now and (self._in_turn or current_task(self._loop) is None))

    # ---- reading

    async def read(self, n: int = -1) -> bytes:
        """Up to n bytes, at least one: what is there, once it is. n < 0: all until EOF. b"" at EOF and for n = 0.

        Raises PipeBusyError while another read waits, and what ended the connection (PipeBrokenError).
        """
        if self._error is not None:
            raise self._error
        if n == 0:
            return b""
        if n < 0:
            while not self._eof:
                await self._more("read")
            return self._take(self._length)
        while not self._length and not self._eof:
            await self._more("read")
        length = self._length
        return self._take(n if n < length else length)

    async def readinto(self, buffer: Any) -> int:
        """Fill a writable bytes-like buffer with what is there, once something is. The count: 0 at EOF or for no room.

        One copy for each byte. Raises TypeError for another buffer, else as `read`.
        """
        view = memoryview(buffer)
        if view.readonly or not view.c_contiguous:
            raise TypeError(f"buffer must be a writable C-contiguous bytes-like object, not {type(buffer).__name__!r}")
        if self._error is not None:
            raise self._error
        if not view.nbytes:
            return 0
        while not self._length and not self._eof:
            await self._more("readinto")
        with view, view.cast("B") as flat:
            return self._fill(flat)

    async def readexactly(self, n: int) -> bytes:
        """n bytes, n >= 0, whatever the limit. Raises IncompleteReadError, with the rest, where EOF comes first."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if self._error is not None:
            raise self._error
        if n == 0:
            return b""
        while self._length < n:
            if self._eof:
                raise IncompleteReadError(self._take(self._length), n)
            await self._more("readexactly")
        return self._take(n)

    async def readline(self) -> bytes:
        r"""Read up to and with the next b"\n", or up to EOF. Return b"" at EOF.

        Raises:
            ValueError: for a line longer than the limit. The part that has arrived is dropped.
        """
        line = self._at_hand(b"\n")
        if line is not None:
            return line
        try:
            return await self.readuntil(b"\n")
        except IncompleteReadError as error:
            return error.partial
        except LimitOverrunError as error:
            found = error.consumed < self._length  # then the newline is there
            self._drop(error.consumed + 1 if found else self._length)
            raise ValueError(error.args[0]) from None

    async def readuntil(self, separator: bytes | tuple[bytes, ...] = b"\n") -> bytes:
        """Read up to and with the separator. Of several separators, the one that ends first counts.

        Args:
            separator: bytes, or a tuple of them.

        Raises:
            IncompleteReadError: if EOF arrives first.
            LimitOverrunError: if more bytes than the limit precede the separator. Nothing was taken. The first
                `consumed` bytes are certainly no part of the separator.
            ValueError: for an empty separator.
        """
        if type(separator) is bytes and separator:
            found = self._at_hand(separator)
            if found is not None:
                return found
        separators = sorted(separator, key=len) if isinstance(separator, tuple) else [separator]
        if not separators:
            raise ValueError("Separator should contain at least one element")
        shortest, longest = len(separators[0]), len(separators[-1])
        if shortest == 0:
            raise ValueError("Separator should be at least one-byte string")
        if self._error is not None:
            raise self._error
        searched = 0  # no separator begins before this
        while True:
            if self._length - searched >= shortest:
                begin, end = self._find(separators, searched)
                if end:
                    if begin > self._limit:
                        raise LimitOverrunError("Separator is found, but chunk is longer than limit", begin)
                    return self._take(end)
                searched = max(0, self._length + 1 - longest)
                if searched > self._limit:
                    raise LimitOverrunError("Separator is not found, and chunk exceed the limit", searched)
            if self._eof:
                raise IncompleteReadError(self._take(self._length), None)
            await self._more("readuntil")

    def at_eof(self) -> bool:
        """Whether all was read and nothing follows."""
        return self._eof and not self._length

    def exception(self) -> BaseException | None:
        """Return the error that ended the connection, or None. Every later read raises this error.

        None: the connection is open, or was closed without an error.
        """
        return self._error

    def __aiter__(self) -> PipeReader:
        """Lines."""
        return self

    async def __anext__(self) -> bytes:
        line = self._at_hand(b"\n") or await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    def __repr__(self) -> str:
        state = " eof" if self._eof else ""
        return f"<fastpipe.PipeReader {self._length} bytes{state}>"

    # ---- what waits

    def _more(self, name: str) -> Arrival:
        """The next arrival, EOF or error, to be awaited."""
        if self._waiter is not None and not self._waiter.done():
            raise PipeBusyError(f"{name}() called while another coroutine is already waiting for incoming data")
        if self._error is not None:
            raise self._error
        if self._paused:  # the read needs more than the limits
            self._paused = False
            self._transport.resume_reading()
        waiter = self._spare
        if waiter is None or waiter._state != SPENT:
            waiter = self._spare = Arrival(self._loop)
        else:
            waiter._state, waiter._error = FRESH, None
        self._waiter = waiter
        return waiter

    def _at_hand(self, separator: bytes) -> bytes | None:
        """Take up to and with the separator, if the first piece has all of it within the limit. Otherwise: None."""
        if not self._length or self._error is not None:
            return None
        start = self._start
        at = self._pieces[0].find(separator, start, start + self._limit + len(separator))
        return None if at < 0 else self._take(at + len(separator) - start)

    def _took(self, n: int) -> None:
        self._length -= n
        if self._paused and self._length <= self._limit:
            self._paused = False
            self._transport.resume_reading()

    def _take(self, n: int) -> bytes:
        """Take the first n bytes, all of which are there."""
        if not n:
            return b""
        pieces, start = self._pieces, self._start
        head = pieces[0]
        there = len(head) - start
        data: bytes
        if n < there:
            data = head[start : start + n] if type(head) is bytes else bytes(memoryview(head)[start : start + n])
            self._start = start + n
        elif n == there:
            data = head if type(head) is bytes and not start else bytes(memoryview(head)[start:])
            pieces.popleft()
            self._start = 0
        else:
            parts: list[bytes | bytearray | memoryview] = [memoryview(head)[start:] if start else head]
            pieces.popleft()
            missing = n - there
            while missing and missing >= len(pieces[0]):
                parts.append(pieces.popleft())
                missing -= len(parts[-1])
            if missing:
                parts.append(memoryview(pieces[0])[:missing])
            self._start = missing
            data = b"".join(parts)
        self._took(n)
        return data

    def _fill(self, view: memoryview) -> int:
        """Take what fits into a flat writable view."""
        n = min(len(view), self._length)
        filled, pieces, start = 0, self._pieces, self._start
        while filled < n:
            head = pieces[0]
            part = min(len(head) - start, n - filled)
            view[filled : filled + part] = memoryview(head)[start : start + part]
            filled += part
            start += part
            if start == len(head):
                pieces.popleft()
                start = 0
        self._start = start
        self._took(n)
        return n

    def _drop(self, n: int) -> None:
        """Take the first n bytes for nobody."""
        left, pieces, start = n, self._pieces, self._start
        while left:
            part = min(len(pieces[0]) - start, left)
            left -= part
            start += part
            if start == len(pieces[0]):
                pieces.popleft()
                start = 0
        self._start = start
        self._took(n)

    def _find(self, separators: list[bytes], searched: int) -> tuple[int, int]:
        """Return (begin, end) of the separator that ends first, or (0, 0) if there is none.

        Both count from the first byte that waits. Each piece is searched alone, and each border of two pieces in a
        window of both. So a match ends in the current piece, and all pieces before were searched.

        Args:
            separators: shortest first.
            searched: no separator begins before this offset.
        """
        overlap = len(separators[-1]) - 1
        base = -self._start  # where the piece begins
        tail = b""  # the last `overlap` bytes before it that may begin a separator
        for piece in self._pieces:
            after = base + len(piece)
            if after > searched:
                begin = end = 0
                window = tail + piece[:overlap] if tail else b""
                low = max(searched, 0) - base
                for separator in separators:
                    if window:
                        at = window.find(separator)
                        if at >= 0 and (not end or base - len(tail) + at + len(separator) < end):
                            begin = base - len(tail) + at
                            end = begin + len(separator)
                    at = piece.find(separator, max(low, 0))
                    if at >= 0 and (not end or base + at + len(separator) < end):
                        begin = base + at
                        end = begin + len(separator)
                if end:
                    return begin, end
                if overlap:
                    known = max(low, 0)
                    tail = bytes((tail + piece[known:])[-overlap:])
            base = after
        return 0, 0


class PipeWriter:
    """The writing half, with the methods of asyncio.StreamWriter. `bytes` pass through by reference."""

    __slots__ = ("__weakref__", "_reader", "_transport")

    def __init__(self, transport: PipeEnd, reader: PipeReader) -> None:
        self._transport = transport
        self._reader = reader

    @property
    def transport(self) -> PipeEnd:
        """The pipe's end."""
        return self._transport

    def write(self, data: Any) -> None:
        """Send bytes; the errors of PipeEnd.write. Await `drain` now and then, or what nobody reads piles up."""
        self._transport.write(data)

    def writelines(self, data: Iterable[Any]) -> None:
        """`write` for each item, all or nothing."""
        self._transport.writelines(data)

    async def drain(self) -> None:
        """Wait while more than the high-water mark is unread, until a quarter of it is left. Harmless to cancel.

        Raises the error that ended the connection, or ConnectionResetError if the connection was closed.
        """
        reader = self._reader
        if reader._error is not None:
            raise reader._error
        if self._transport.is_closing():
            await asyncio.sleep(0)  # as asyncio: lets connection_lost run during a loop of writes and drains
        if reader._lost:
            raise ConnectionResetError("Connection lost")
        if reader._writing_paused:
            waiter = reader._loop.create_future()
            reader._drainers.append(waiter)
            try:
                await waiter
            finally:
                reader._drainers.remove(waiter)

    def can_write_eof(self) -> bool:
        """True."""
        return True

    def write_eof(self) -> None:
        """Half-close. The peer reads EOF after all bytes. This side can still read."""
        self._transport.write_eof()

    def close(self) -> None:
        """Close both directions. The written bytes arrive."""
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether this end was closed, aborted or broken."""
        return self._transport.is_closing()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed by `close` or by the peer's abort. Raises the error that broke it."""
        reader = self._reader
        if reader._lost:
            if reader._error is not None:
                raise reader._error
            return
        waiter = reader._loop.create_future()
        reader._farewells.append(waiter)
        try:
            await waiter
        finally:
            reader._farewells.remove(waiter)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The transport's."""
        return self._transport.get_extra_info(name, default)

    def __del__(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._reader._loop.is_closed():
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1, source=self)
        self._reader._loop.call_soon_threadsafe(transport.close)  # the garbage collector runs in any thread

    def __repr__(self) -> str:
        return f"<fastpipe.PipeWriter transport={self._transport!r}>"
