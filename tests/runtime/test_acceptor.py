"""Accepting: every address, and a process without descriptors that reports it and responds."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from agent.runtime.acceptor import Acceptor, RateLimitedLog, listening_sockets

from ..limits import scaled

pytestmark = pytest.mark.skipif(os.name != "posix", reason="add_reader needs a selector loop")


class FullListener(socket.socket):
    """A listening socket of a process that has `free` descriptors left, beside what the acceptor keeps in reserve."""

    acceptor: Acceptor | None = None
    free = 0

    def accept(self) -> Any:
        if self.free == 0 and self.acceptor is not None and self.acceptor._reserve >= 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.free = max(0, self.free - 1)
        return super().accept()


async def until(reached: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def test_every_connection_is_handed_over_with_its_peer() -> None:
    taken: list[tuple[socket.socket, Any]] = []
    acceptor = Acceptor(
        await listening_sockets("127.0.0.1", 0, backlog=128),
        lambda sock, peer: taken.append((sock, peer)),
        lambda sock: None,
        name="test",
    )
    acceptor.start()
    clients = [await connected(acceptor.port) for _ in range(100)]
    await until(lambda: not (len(taken) < 100))
    assert {peer for _, peer in taken} == {writer.get_extra_info("sockname") for _, writer in clients}
    acceptor.close()
    acceptor.close()
    for sock, _ in taken:
        sock.close()
    for _, writer in clients:
        writer.close()
        await writer.wait_closed()


async def test_without_a_descriptor_each_connection_is_refused_with_a_word_and_one_line_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[socket.socket] = []
    listener = FullListener(socket.AF_INET, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    acceptor = Acceptor(
        [listener], lambda sock, peer: taken.append(sock), lambda sock: sock.sendall(b"full"), name="test"
    )
    listener.acceptor = acceptor
    acceptor.start()
    async with asyncio.timeout(scaled(20)):
        clients = [await connected(acceptor.port) for _ in range(20)]
        assert [await reader.read() for reader, _ in clients] == [b"full"] * 20
    assert acceptor.refused == 20
    listener.free = 1  # somebody has closed something
    clients.append(await connected(acceptor.port))
    await until(lambda: taken)
    acceptor.close()  # and with it what was not written yet
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert 1 <= len(errors) < 20
    assert sum(vars(record)["count"] for record in errors) == 20
    assert "no file descriptor is left" in errors[0].getMessage()
    taken[0].close()
    for _, writer in clients:
        writer.close()


async def test_a_port_that_fails_to_accept_is_tried_again_and_keeps_no_loop_busy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = 0

    class Failing(socket.socket):
        def accept(self) -> Any:
            nonlocal calls
            calls += 1
            if calls <= 2:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            return super().accept()

    listener = Failing(socket.AF_INET, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    taken: list[socket.socket] = []
    acceptor = Acceptor([listener], lambda sock, peer: taken.append(sock), lambda sock: None, name="test")
    acceptor.start()
    _, writer = await connected(acceptor.port)
    await until(lambda: taken)
    assert calls <= 5
    assert "the system fails to accept connections" in caplog.text
    acceptor.close()
    taken[0].close()
    writer.close()


async def test_closed_while_it_waits_it_leaves_nothing() -> None:
    listener = FullListener(socket.AF_INET, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    acceptor = Acceptor([listener], lambda sock, peer: None, lambda sock: None, name="test")
    acceptor.start()
    acceptor._pause(listener, OSError(errno.ENOMEM, "none"))
    acceptor.close()


async def test_an_empty_host_is_every_interface_and_a_taken_port_is_an_error() -> None:
    sockets = await listening_sockets("", 0, backlog=1)
    try:
        port = next(sock for sock in sockets if sock.family == socket.AF_INET).getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            await listening_sockets("127.0.0.1", port, backlog=1)
    finally:
        for sock in sockets:
            sock.close()


async def test_a_line_is_written_at_once_and_then_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    line = RateLimitedLog(logging.getLogger("test"), logging.WARNING, "full", interval_s=0.05)
    for number in range(10):
        line(number=number)
    assert [vars(record)["count"] for record in caplog.records] == [1]
    await until(lambda: not (len(caplog.records) < 2))
    assert (vars(caplog.records[1])["count"], vars(caplog.records[1])["number"]) == (9, 9)
    line.close()
    assert len(caplog.records) == 2
