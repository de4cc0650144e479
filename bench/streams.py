"""Streams, Listener and uvicorn on pipes against the same on Unix sockets, and anyio's and trio's memory streams.

Each function moves a fixed amount and checks what arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import os
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

import fastpipe
from fastpipe import Listener

from .measuring import Case, Metric, Samples, Scale, Turn, latency, no_collection, one
from .pipe import on_loop

now = time.perf_counter_ns

Pairs = tuple[tuple[Any, Any], tuple[Any, Any]]


async def over_uds() -> Pairs:
    near, far = socket.socketpair()
    return await asyncio.open_unix_connection(sock=near), await asyncio.open_unix_connection(sock=far)


def load_streams(twin: str) -> ModuleType:
    """Load one twin of the streams: the extension under its own name, or the source beside it under another."""
    compiled = importlib.import_module("fastpipe._streams")
    if twin == "c":
        return compiled
    spec = importlib.util.spec_from_file_location("streams_source", Path(fastpipe.__file__).with_name("_streams.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def over(twin: str) -> Callable[[], Awaitable[Pairs]]:
    """Do the work of `open_pipe_streams` with one twin of pipe and streams."""
    pipe = importlib.import_module(f"fastpipe._pipe_{twin}")
    streams = load_streams(twin)

    async def connect() -> Pairs:
        def wrap(end: Any) -> tuple[Any, Any]:
            reader = streams.PipeReader(65536, asyncio.get_running_loop(), True)
            end.set_protocol(reader)
            return reader, streams.PipeWriter(end, reader)

        first, second = pipe.create_pipe(max_chunk=None)
        return wrap(first), wrap(second)

    return connect


RIVALS: dict[str, Callable[[], Awaitable[Pairs]]] = {"UDS": over_uds, "pipe": over("c"), "Python twin": over("py")}


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


async def anyio_round_trips(n: int, size: int = 64) -> list[float]:
    """The same over two of anyio's memory object streams, by reference."""
    import anyio

    there, from_there = anyio.create_memory_object_stream[bytes](1)
    back, from_back = anyio.create_memory_object_stream[bytes](1)
    data, samples = b"x" * size, []

    async def echo() -> None:
        async for item in from_there:
            await back.send(item)

    async with anyio.create_task_group() as group:
        group.start_soon(echo)
        with no_collection():
            for _ in range(n):
                start = now()
                await there.send(data)
                got = await from_back.receive()
                samples.append((now() - start) / 1000)
                assert got == data
        there.close()
    for stream in (from_there, back, from_back):
        stream.close()
    return samples


async def trio_round_trips(n: int, size: int = 64) -> list[float]:
    """The same over trio's pair of memory streams, on trio's loop."""
    import trio
    import trio.testing

    near, far = trio.testing.memory_stream_pair()
    data, samples = b"x" * size, []

    async def echo() -> None:
        while item := await far.receive_some():
            await far.send_all(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo)
        with no_collection():
            for _ in range(n):
                start = now()
                await near.send_all(data)
                got = await near.receive_some()
                samples.append((now() - start) / 1000)
                assert got == data
        await near.aclose()
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
    """Sends a GET after each response."""

    def start(self, n: int) -> asyncio.Future[None]:
        self.left = n
        self.samples: list[float] = []
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


# -- the cases

RATIOS = [("pipe", "UDS"), ("Python twin", "UDS"), ("pipe", "Python twin")]
Measure = Callable[[Callable[[], Awaitable[Pairs]], int], Coroutine[Any, Any, list[float]]]


def streams_case(name: str, title: str, measure: Measure, n: int, *, whole_latencies: bool = False) -> Case:
    """whole_latencies: `measure` gives single latencies, rather than one mean."""

    def samples_of(connect: Callable[[], Awaitable[Pairs]], scale: Scale) -> Samples:
        found = on_loop("uvloop", measure(connect, scale.of(n, n // 4)))
        return latency("round trip", found) if whole_latencies else one(Metric("time", "µs"), found[0])

    def open_case(scale: Scale) -> contextlib.AbstractContextManager[Mapping[str, Turn]]:
        turns: dict[str, Turn] = {who: functools.partial(samples_of, connect, scale) for who, connect in RIVALS.items()}
        if whole_latencies:
            turns["anyio memory stream"] = lambda: latency("round trip", on_loop("uvloop", anyio_round_trips(n // 4)))
            turns["trio memory stream"] = lambda: latency("round trip", on_trio(n // 4))
        return contextlib.nullcontext(turns)

    more = [("pipe", "anyio memory stream"), ("pipe", "trio memory stream")] if whole_latencies else []
    return Case(name, title, open_case, RATIOS + more, rounds=(3, 2))


def on_trio(n: int) -> list[float]:
    import trio

    samples: list[float] = trio.run(trio_round_trips, n)
    return samples


def both_case(name: str, title: str, measure: Callable[[str, int], Coroutine[Any, Any, list[float]]], n: int) -> Case:
    def open_case(scale: Scale) -> contextlib.AbstractContextManager[Mapping[str, Turn]]:
        amount = scale.of(n, n // 4)
        return contextlib.nullcontext(
            {
                "pipe": lambda: latency("time", on_loop("uvloop", measure("listener", amount))),
                "UDS": lambda: latency("time", on_loop("uvloop", measure("UDS", amount))),
            }
        )

    return Case(name, title, open_case, [("pipe", "UDS")], rounds=(3, 2))


CASES: Sequence[Case] = (
    streams_case("streams round trip", "64 B there and back, awaited", round_trips, 8_000, whole_latencies=True),
    streams_case("streams one way", "64 KiB written, drained and read", one_way, 4_000),
    streams_case("streams lines", "A line of 61 bytes by `async for`", lines, 100_000),
    both_case("streams life", "Connect to a server, read the end, close", connections, 800),
    both_case("uvicorn request", "A small kept-alive request through uvicorn's own protocol", requests, 4_000),
)
