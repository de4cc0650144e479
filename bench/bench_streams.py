"""Streams, Listener and uvicorn on pipes against the same on a Unix socket, all on uvloop: medians, p99, ratios.

    python bench/bench_streams.py

Each run moves a fixed amount and checks what arrived; rivals take turns. Take the ratios, not the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

import fastpipe
from fastpipe import Listener

now = time.perf_counter_ns
ROUNDS = 3

Pairs = tuple[tuple[Any, Any], tuple[Any, Any]]


async def over_uds() -> Pairs:
    near, far = socket.socketpair()
    return await asyncio.open_unix_connection(sock=near), await asyncio.open_unix_connection(sock=far)


def over(twin: str) -> Callable[[], Awaitable[Pairs]]:
    """What open_pipe_streams does, with one twin of pipe and streams."""
    pipe = importlib.import_module(f"fastpipe._pipe_{twin}")
    streams = importlib.import_module(f"fastpipe._streams_{twin}")

    async def connect() -> Pairs:
        def wrap(end: Any) -> tuple[Any, Any]:
            reader = streams.PipeReader(65536, asyncio.get_running_loop(), True)
            end.set_protocol(reader)
            return reader, streams.PipeWriter(end, reader)

        first, second = pipe.create_pipe(max_chunk=None)
        return wrap(first), wrap(second)

    return connect


RIVALS: dict[str, Callable[[], Awaitable[Pairs]]] = {"UDS": over_uds, "pipe": over("c"), "Python twin": over("py")}


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def close(*writers: Any) -> None:
    for writer in writers:
        writer.close()
    for writer in writers:
        await writer.wait_closed()


async def round_trips(connect: Callable[[], Awaitable[Pairs]], n: int, size: int = 64) -> list[float]:
    """µs of each of n: write, drain, and read what came back."""
    (reader, writer), (their_reader, their_writer) = await connect()

    async def echo() -> None:
        while data := await their_reader.read(65536):
            their_writer.write(data)
            await their_writer.drain()

    echoing = asyncio.ensure_future(echo())
    data, samples = b"x" * size, []
    with no_collection():
        for _ in range(n):
            start = now()
            writer.write(data)
            await writer.drain()
            got = await reader.readexactly(size)
            samples.append((now() - start) / 1000)
            assert got == data
    writer.close()
    await echoing
    await close(writer, their_writer)
    return samples


async def one_way(connect: Callable[[], Awaitable[Pairs]], n: int, size: int = 65536) -> list[float]:
    """µs for each write of 64 KiB, drained and read: their mean, once."""
    (_, writer), (reader, other) = await connect()

    async def send() -> None:
        for _ in range(n):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    data, left = b"x" * size, n * size
    with no_collection():
        start = now()
        sending = asyncio.ensure_future(send())
        while got := await reader.read(262144):
            left -= len(got)
        took = (now() - start) / 1000
    assert left == 0
    await sending
    await close(writer, other)
    return [took / n]


async def lines(connect: Callable[[], Awaitable[Pairs]], n: int) -> list[float]:
    """µs a line of 61 bytes, by `async for`, a hundred to a write: their mean, once."""
    (_, writer), (reader, other) = await connect()

    async def send() -> None:
        for _ in range(n // 100):
            writer.write(block)
            await writer.drain()
        writer.write_eof()

    block, count = (b"x" * 60 + b"\n") * 100, 0
    with no_collection():
        start = now()
        sending = asyncio.ensure_future(send())
        async for _ in reader:
            count += 1
        took = (now() - start) / 1000
    assert count == n
    await sending
    await close(writer, other)
    return [took / n]


async def connections(name: str, n: int) -> list[float]:
    """µs to connect streams to a server, read the end, and close."""

    async def serve(_: Any, writer: Any) -> None:
        writer.close()

    server: Any
    if name == "UDS":
        path = os.path.join(tempfile.mkdtemp(), "socket")
        server = await asyncio.start_unix_server(serve, path)

        async def connect() -> Any:
            return await asyncio.open_unix_connection(path)
    else:
        server = await Listener().start_server(serve)
        connect = server.open_connection
    samples = []
    for _ in range(n):
        start = now()
        reader, writer = await connect()
        assert await reader.read() == b""
        await close(writer)
        samples.append((now() - start) / 1000)
    server.close()
    await server.wait_closed()
    return samples


class Client(asyncio.Protocol):
    """Sends a GET when the answer to the last one is there."""

    def start(self, n: int) -> asyncio.Future[None]:
        self.left, self.samples = n, []
        self.done = asyncio.get_running_loop().create_future()
        self._send()
        return self.done

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def _send(self) -> None:
        self.sent = now()
        self.got = b""
        self.transport.write(b"GET /hello HTTP/1.1\r\nHost: app\r\nAccept: */*\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.got.endswith(b"hello"):
            self.samples.append((now() - self.sent) / 1000)
            self.left -= 1
            if self.left:
                self._send()
            else:
                self.done.set_result(None)


async def requests(name: str, n: int) -> list[float]:
    """µs of one small kept-alive request through uvicorn's HttpToolsProtocol."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    config = uvicorn.Config(app, log_config=None, lifespan="off", access_log=False, proxy_headers=False)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()

    def protocol() -> HttpToolsProtocol:
        return HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=loop)

    if name == "UDS":
        path = os.path.join(tempfile.mkdtemp(), "socket")
        server: Any = await loop.create_unix_server(protocol, path)
        transport, client = await loop.create_unix_connection(Client, path)
    else:
        server = await Listener().create_server(protocol)
        transport, client = await server.connect(Client)
    await client.start(n // 10)
    with no_collection():
        await client.start(n)
    transport.close()
    server.close()
    await server.wait_closed()
    return client.samples


def at(samples: list[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


async def row(what: str, measures: dict[str, Callable[[], Awaitable[list[float]]]]) -> None:
    """The best of ROUNDS for each rival, in turns; the first rival is what the others are compared with."""
    best: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for who, measure in measures.items():
            samples = await measure()
            if who not in best or at(samples, 0.5) < at(best[who], 0.5):
                best[who] = samples
    base = next(iter(best.values()))
    for who, samples in best.items():
        ratios = f"{at(base, 0.5) / at(samples, 0.5):.1f}x, p99 {at(base, 0.99) / at(samples, 0.99):.1f}x"
        print(f"{what:34} {who:12} {at(samples, 0.5):9.3f} {at(samples, 0.99):9.3f}  {ratios}", flush=True)


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


async def table() -> None:
    print(f"Python {platform.python_version()}, {platform.machine()}, {fastpipe.IMPLEMENTATION}, commit {commit()}")
    print(f"{'measured, µs':34} {'who':12} {'p50':>9} {'p99':>9}  against asyncio's over UDS on uvloop")
    for what, measure, n in (
        ("streams: round trip, 64 B", round_trips, 10_000),
        ("streams: one way, 64 KiB", one_way, 5_000),
        ("streams: a line, async for", lines, 100_000),
    ):
        await row(what, {who: lambda c=connect, m=measure, n=n: m(c, n) for who, connect in RIVALS.items()})
    both = ("UDS", "listener")
    await row("connect, read EOF, close", {who: lambda who=who: connections(who, 1_000) for who in both})
    await row("HTTP request through uvicorn", {who: lambda who=who: requests(who, 5_000) for who in both})


if __name__ == "__main__":
    sys.exit(uvloop.run(table()))
