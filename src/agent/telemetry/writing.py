"""Writes lines to a descriptor that may block for ever, without ever blocking the caller.

    post ──► queue, bounded in bytes and lines ──► a daemon thread ──► write(2), which may block
              full: the line is dropped and counted

Standard error may be a pipe that nobody reads. A write to it then blocks the whole process. There are three remedies,
and only the thread is safe:

- O_NONBLOCK belongs to the open file description, which the parent shell and other processes share. Set here, it makes
  their writes fail.
- poll(2) before each write reports the past. Another writer of the same pipe can fill it in between.
- A thread blocks alone. While it writes, lines gather in the queue, so a burst costs one wake-up and not one per line.

Invariants
  W1  `post` waits only for the lock, which no thread holds across a system call.
  W2  Lines leave in the order they were posted, whole or not at all.
  W3  Every dropped line is counted, and the count is written once the descriptor takes bytes again.
  W4  At most limit_bytes and limit_lines wait, including the lines being written.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

__all__ = ["LineWriter"]

QUEUE_BYTES = 1024 * 1024
QUEUE_LINES = 10_000
_BATCH_BYTES = 64 * 1024  # a pipe's capacity on Linux, since a larger write would only block longer
_LINE_BYTES = 64 * 1024  # a longer line is truncated, since one traceback must not fill the queue


_writers: weakref.WeakSet[LineWriter] = weakref.WeakSet()


def _drop_quietly(lines: list[bytes], error: OSError) -> None:
    pass


class LineWriter:
    """Writes to `fd` from a daemon thread, which starts with the first line.

    Args:
        report: makes the line with the number of dropped lines. Without it no such line is written.
        on_error: called in the thread for each failed write, with its lost lines.
        tick: called in the thread before each wait. It returns the seconds until its next call, or None to wait for a
            `wake`.
    """

    def __init__(
        self,
        fd: int,
        *,
        report: Callable[[int], bytes] | None = None,
        on_error: Callable[[list[bytes], OSError], None] = _drop_quietly,
        tick: Callable[[], float | None] | None = None,
        limit_bytes: int = QUEUE_BYTES,
        limit_lines: int = QUEUE_LINES,
        name: str = "log writer",
    ) -> None:
        self.fd = fd
        self.dropped_lines = 0
        """Lines dropped so far: the queue was full, or a write failed."""
        self._report = report
        self._on_error = on_error
        self._tick = tick
        self._limit_bytes = limit_bytes
        self._limit_lines = limit_lines
        self._name = name
        self._begin()
        _writers.add(self)

    def _begin(self) -> None:
        """Have nothing queued and no thread: at first, and in the child of a fork, whose parent writes what waits."""
        # Reentrant: a destructor that logs may run in the thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        self._waiting_bytes = 0  # of the queue and of what is being written
        self._writing = 0  # lines
        self._unreported = 0
        self._full = False  # from full until half empty: lines are dropped in one run, and reported once
        self._cut = False  # the last write ended inside a line
        self._woken = False
        self._thread: threading.Thread | None = None

    def post(self, line: bytes) -> bool:
        """Queue a line, its line end included. Returns whether there was room."""
        if len(line) > _LINE_BYTES:
            line = line[: _LINE_BYTES - 5] + b" ...\n"
        with self._changed:
            if (
                self._full
                or self._waiting_bytes + len(line) > self._limit_bytes
                or len(self._lines) + self._writing >= self._limit_lines
            ):
                self._full = True
                self._drop(1)
                return False
            self._put(line)
            if not self.alive:
                self._start()
            elif not self._writing:
                self._changed.notify_all()
        return True

    def wake(self) -> None:
        """Have `tick` called soon."""
        with self._changed:
            self._woken = True
            if not self.alive:
                self._start()
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was posted is written, at most timeout_s. Returns whether it is."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self._lines or self._writing:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not self.alive:
                    return False
                self._changed.wait(left_s)
        return True

    @property
    def alive(self) -> bool:
        """Whether the thread runs: not before the first line, and not in the child of a fork until its first."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that have not been written yet."""
        return self._waiting_bytes

    # ------------------------------------------------------------ with the lock

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread may be started now (ulimit -u): the next line tries again
            return
        self._thread = thread

    def _put(self, line: bytes) -> None:
        self._lines.append(line)
        self._waiting_bytes += len(line)

    def _drop(self, lines: int) -> None:
        self.dropped_lines += lines
        self._unreported += lines

    def _take(self) -> list[bytes]:
        """The next lines to write, at least one where any waits."""
        batch: list[bytes] = []
        size = 0
        while self._lines and (not batch or size + len(self._lines[0]) <= _BATCH_BYTES):
            batch.append(self._lines.popleft())
            size += len(batch[-1])
        self._writing = len(batch)
        return batch

    # ------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while True:
            delay_s = self._tick() if self._tick is not None else None
            with self._changed:
                if not self._lines and not self._woken:
                    self._changed.wait(delay_s)
                self._woken = False
                batch = self._take()
            if batch:
                self._write(batch)

    def _write(self, batch: list[bytes]) -> None:
        data = b"".join(batch)
        failed: OSError | None = None
        try:
            self._write_all(b"\n" + data if self._cut else data)
            self._cut = False
        except OSError as error:  # the reader has left (EPIPE), the disk is full (ENOSPC), …
            failed = error
        with self._changed:
            self._writing = 0
            self._waiting_bytes -= len(data)
            if failed is not None:
                self._drop(len(batch))
            if self._waiting_bytes * 2 <= self._limit_bytes and len(self._lines) * 2 <= self._limit_lines:
                self._full = False
            if self._unreported and failed is None and not self._full:
                if self._report is not None:
                    self._put(self._report(self._unreported))
                self._unreported = 0
            self._changed.notify_all()
        if failed is not None:
            self._on_error(batch, failed)

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.write(self.fd, view)
            except BlockingIOError:  # somebody else has made it non-blocking
                select.select((), (self.fd,), ())
                continue
            except OSError as error:
                # EPIPE and EBADF never get better, and what follows an incomplete line elsewhere must not join it.
                self._cut = len(view) < len(data) and error.errno not in (errno.EPIPE, errno.EBADF)
                raise
            view = view[written:]


def _begin_after_fork() -> None:
    for writer in list(_writers):
        writer._begin()


if hasattr(os, "register_at_fork"):  # not on Windows
    # The child has no such thread, and perhaps not the thread that held the lock.
    os.register_at_fork(after_in_child=_begin_after_fork)
