"""Keeps the pieces that wait at an end, until they are taken by hand or for a protocol.

This module keeps I1 and I2. `size` is the sum of the pieces. Without pieces nothing is allocated. No piece changes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from operator import index
from threading import get_ident
from typing import Any

from fastpipe import _errors
from fastpipe._chunk_py import exact_bytes
from fastpipe._errors import PipeBrokenError, PipeBusyError, PipeClosedError
from fastpipe._queue_py import DeliveryQueue
from fastpipe._statistics_py import PipeStatistics

OPEN, BROKEN, CLOSING, LOST = range(4)  # the states of an end


class Waiting(asyncio.transports._FlowControlMixin):  # a Transport; the mixin is what loop.sendfile asks for
    """The reading half of an end. Most ends have one waiting piece (`_head`) or none. `_rest` is rarely made."""

    __slots__ = ("_eof_in", "_error", "_head", "_protocol", "_queue", "_rest", "_size", "_state", "_stats")

    _head: bytes | memoryview | None  # the next piece
    _rest: deque[bytes | memoryview] | None  # those behind it
    _size: int
    _state: int
    _eof_in: bool
    _error: BaseException | None
    _protocol: Any
    _queue: DeliveryQueue
    _stats: PipeStatistics | None

    def _space_freed(self) -> None:
        """React to taken bytes. An end overrides this to wake the writer that waits for space."""

    def _check_thread(self) -> None:
        if get_ident() != self._queue.thread:
            raise RuntimeError(_errors.WRONG_THREAD)

    def _add(self, piece: bytes | memoryview) -> None:
        """Have a piece, not empty, wait behind the others."""
        if self._head is None:
            self._head = piece
        elif self._rest is None:
            self._rest = deque((piece,))
        else:
            self._rest.append(piece)
        self._size += len(piece)

    def _drop_waiting(self) -> None:
        self._head = self._rest = None  # I1
        self._size = 0

    def peek(self) -> memoryview:
        """Return a view of the next bytes, in place. The view is valid and unchanged until released.

        The view is empty if nothing waits. The bytes behind it appear after `consume`. All reads by hand raise the same
        errors.

        Raises:
            PipeBusyError: with a protocol set.
            PipeClosedError: if this end was closed.
            PipeBrokenError: if this end broke.
            RuntimeError: from another thread.
        """
        self._check_reader()
        return memoryview(self._head or b"")

    def consume(self, n: int, /) -> None:
        """Take n bytes, 0 to all that wait. Raises ValueError for another count, and the errors of `peek`."""
        n = index(n)
        self._check_reader()
        if not 0 <= n <= self._size:
            raise _errors.past_the_end(n, self._size)
        if n:
            self._taken(n)

    def read(self, n: int = -1, /) -> bytes:
        """Take and return up to n bytes. -1: all that wait. Return b"" if nothing waits.

        A read of exactly one whole written `bytes` returns that object. Raises the errors of `peek`.
        """
        n = index(n)
        self._check_reader()
        n = self._size if n < 0 else min(n, self._size)
        if not n:
            return b""
        head = self._head
        assert head is not None
        if n == len(head):
            self._taken(n)
            return exact_bytes(head)
        data = bytearray(n)
        self._fill(memoryview(data))
        return bytes(data)

    def readinto(self, buffer: Any, /) -> int:
        """Take as many bytes as wait and fit into `buffer`. Return their count, 0 if nothing waits.

        Args:
            buffer: writable and C-contiguous. The caller keeps it.

        Raises:
            TypeError: for another buffer. The errors of `peek` apply too.
        """
        view = writable(buffer)
        self._check_reader()
        return self._fill(view)

    def at_eof(self) -> bool:
        """Whether all was taken and the peer writes no more. False once this end is closed or broken: reads raise."""
        return self._state == OPEN and self._eof_in and self._head is None

    def _check_reader(self) -> None:
        self._check_thread()
        if self._protocol is not None:
            raise PipeBusyError(_errors.READ_BUSY)
        if self._head is None and self._state != OPEN:
            if isinstance(self._error, PipeBrokenError):
                raise PipeBrokenError(*self._error.args)
            raise PipeClosedError(_errors.READ_CLOSED)

    def _fill(self, view: memoryview) -> int:
        """Copy what waits into a flat writable view and take it: as much as fits."""
        filled = 0
        while self._head is not None and filled < len(view):
            piece = memoryview(self._head)[: len(view) - filled]
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
            self._taken(len(piece), 0)
        if filled and self._stats is not None:
            self._stats.chunks_read += 1
        return filled

    def _taken(self, n: int, deliveries: int = 1) -> None:
        """n bytes have left the pipe: keep the books, and let a paused writer know."""
        if self._stats is not None:
            self._stats.bytes_read += n
            self._stats.chunks_read += deliveries
        self._size -= n  # I1
        if not self._size:
            self._head = self._rest = None
        else:
            self._forget(n)
        self._space_freed()

    def _forget(self, n: int) -> None:
        """Take n bytes, fewer than wait, off the pieces."""
        head = self._head
        assert head is not None
        while n >= len(head):
            n -= len(head)
            assert self._rest is not None
            head = self._head = self._rest.popleft()
            self._rest = self._rest or None
        if n:
            self._head = memoryview(head)[n:]


def writable(buffer: Any) -> memoryview:
    """A flat view of a writable buffer. Raises TypeError."""
    try:
        view = memoryview(buffer)
    except TypeError:
        raise _errors.not_writable(buffer) from None
    if view.readonly:
        raise _errors.not_writable(buffer)
    if not view.c_contiguous:
        raise TypeError(_errors.NOT_CONTIGUOUS)
    return view.cast("B") if view.nbytes else memoryview(bytearray())
