"""The log's writer never blocks, bounds its memory, and counts the lines that it loses."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.telemetry.writing import LineWriter


class Pipe:
    """A pipe that the test itself reads."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()

    def read(self, until: bytes) -> bytes:
        data = b""
        while until not in data:
            piece = os.read(self.read_end, 65536)
            assert piece, data[-1000:]
            data += piece
        return data

    def close_reader(self) -> None:
        os.close(self.read_end)
        self.read_end = -1

    def close(self) -> None:
        for fd in (self.read_end, self.write_end):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    opened = Pipe()
    yield opened
    # A thread can be in a write to the test's pipe. Close the reader to end it, before the number is used again.
    if opened.read_end >= 0:
        opened.close_reader()
    opened.close()


def report(lines: int) -> bytes:
    return b"dropped %d\n" % lines


def until(reached: Callable[..., object]) -> None:
    deadline_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = LineWriter(fd)
    lines = [b"line %d\n" % number for number in range(9000)]
    for line in lines:
        assert writer.post(line)
    assert writer.flush(20)
    os.close(fd)
    assert path.read_bytes() == b"".join(lines)
    assert writer.dropped_lines == 0


@pytest.mark.parametrize(("limits", "size"), [({"limit_bytes": 300_000}, 100), ({"limit_lines": 500}, 5000)], ids=str)
def test_a_pipe_that_nobody_reads_blocks_nobody_and_costs_bounded_memory(
    pipe: Pipe, limits: dict[str, Any], size: int
) -> None:
    writer = LineWriter(pipe.write_end, report=report, **limits)
    posted = 20_000
    taken = sum(writer.post(b"%06d %s\n" % (number, b"x" * size)) for number in range(posted))
    assert writer.waiting_bytes <= limits.get("limit_bytes", 500 * (size + 8))
    assert not writer.flush(0.05)
    dropped = writer.dropped_lines
    assert dropped == posted - taken > 0
    data = pipe.read(b"dropped %d\n" % dropped)
    lines = data.splitlines()
    assert len(lines) == taken + 1  # the report is in place of the lost lines
    assert all(len(line) == size + 7 for line in lines[:-1])
    assert writer.post(b"after\n")
    assert pipe.read(b"after\n") == b"after\n"
    assert writer.flush(20)


def test_a_reader_that_has_gone_is_no_error_and_the_lines_are_counted(pipe: Pipe) -> None:
    failed: list[tuple[list[bytes], int | None]] = []
    writer = LineWriter(pipe.write_end, on_error=lambda lines, error: failed.append((lines, error.errno)))
    pipe.close_reader()
    writer.post(b"one\n")
    until(lambda: failed)
    assert failed == [([b"one\n"], errno.EPIPE)]
    assert writer.dropped_lines == 1
    assert writer.flush(20)
    writer.post(b"two\n")
    until(lambda: len(failed) == 2)
    assert writer.dropped_lines == 2


def test_a_full_disk_loses_lines_and_says_so_when_there_is_room(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    path = tmp_path / "log"
    room = os.open(path, os.O_WRONLY | os.O_CREAT)
    fd = os.dup(full)
    failed: list[int | None] = []
    writer = LineWriter(fd, report=report, on_error=lambda _, error: failed.append(error.errno))
    for number in range(3):
        writer.post(b"lost\n")
        until(lambda number=number: len(failed) == number + 1)
    assert set(failed) == {errno.ENOSPC}
    os.dup2(room, fd)
    writer.post(b"kept\n")
    assert writer.flush(20)
    assert path.read_bytes() == b"kept\ndropped 3\n"
    for each in (full, room, fd):
        os.close(each)


def test_a_descriptor_that_somebody_made_non_blocking_is_waited_for_and_left_so(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_end, False)
    writer = LineWriter(pipe.write_end, report=report)
    lines = [b"%06d %s\n" % (number, b"x" * 1000) for number in range(800)]
    for line in lines:
        assert writer.post(line)
    assert pipe.read(lines[-1]) == b"".join(lines)
    assert fcntl.fcntl(pipe.write_end, fcntl.F_GETFL) & os.O_NONBLOCK


def test_the_shared_descriptor_stays_blocking(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    writer.post(b"line\n")
    assert writer.flush(20)
    assert not fcntl.fcntl(pipe.write_end, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_terminal_gets_its_lines() -> None:
    master, slave = pty.openpty()
    writer = LineWriter(slave)
    writer.post(b"line\n")
    assert writer.flush(20)
    assert os.read(master, 100) == b"line\r\n"
    os.close(master)
    os.close(slave)


def test_a_line_that_is_too_long_is_cut_and_still_a_line(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    assert writer.post(b"x" * 10**6 + b"\n")
    data = pipe.read(b"\n")
    assert data.endswith(b"x ...\n")
    assert len(data) == 65536


def test_a_line_that_was_cut_by_an_error_is_not_joined_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    write, calls = os.write, []

    def half(to: int, data: memoryview) -> int:
        if to != fd:
            return write(to, data)
        calls.append(len(data))
        if len(calls) == 1:
            return write(to, data[:3])
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "no space")
        return write(to, data)

    monkeypatch.setattr(os, "write", half)
    writer = LineWriter(fd, report=report)
    writer.post(b"first\n")
    until(lambda: writer.dropped_lines)
    writer.post(b"second\n")
    assert writer.flush(20)
    os.close(fd)
    assert path.read_bytes() == b"fir\nsecond\ndropped 1\n"


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    writer = LineWriter(fd)

    def post(name: int) -> None:
        for number in range(500):
            assert writer.post(b"%d %d\n" % (name, number))

    threads = [threading.Thread(target=post, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush(20)
    os.close(fd)
    lines = path.read_bytes().splitlines()
    for name in range(8):
        assert [line for line in lines if line.startswith(b"%d " % name)] == [b"%d %d" % (name, n) for n in range(500)]


def test_the_thread_asks_for_what_is_due_without_a_line(pipe: Pipe) -> None:
    due: list[bytes] = []
    delays: list[float | None] = []

    def tick() -> float | None:
        if due:
            writer.post(due.pop())
        delays.append(0.01 if len(delays) < 3 else None)
        return delays[-1]

    writer = LineWriter(pipe.write_end, tick=tick)
    writer.wake()
    until(lambda: len(delays) >= 4)
    due.append(b"due\n")
    writer.wake()
    assert pipe.read(b"due\n") == b"due\n"


def test_a_writer_that_gets_no_thread_writes_once_it_gets_one(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    writer = LineWriter(pipe.write_end)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        assert writer.post(b"first\n")
        writer.wake()
        assert not writer.flush(5)
    assert writer.post(b"second\n")
    assert pipe.read(b"second\n") == b"first\nsecond\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_the_child_of_a_fork_writes_its_own_lines_whoever_held_the_lock(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    writer.post(b"parent\n")
    assert pipe.read(b"parent\n") == b"parent\n"
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with writer._changed:
            held.set()
            done.wait(20)

    holding = threading.Thread(target=hold)
    holding.start()
    held.wait(20)
    child = os.fork()
    if not child:
        try:
            signal.alarm(20)  # a child that waits for the lock ends
            writer.post(b"child\n")
            writer.flush(10)
        finally:
            os._exit(0)
    done.set()
    holding.join()
    assert os.waitpid(child, 0)[1] == 0
    writer.post(b"again\n")
    assert pipe.read(b"again\n") == b"child\nagain\n"
