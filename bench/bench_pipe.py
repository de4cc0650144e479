"""The pipe against a Unix socket on uvloop, its own Python twin and a plain copy: medians, 99th percentiles, ratios.

    python bench/bench_pipe.py              the table, rivals in the same run
    pytest bench/bench_pipe.py              the same amounts of work under pytest-benchmark

Each run moves a fixed amount and checks what arrived. Take the ratios, not the figures: those are the machine's, and
its load's, of that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import platform
import socket
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

C = importlib.import_module("fastpipe._pipe_c")
PYTHON = importlib.import_module("fastpipe._pipe_py")
now = time.perf_counter_ns

Connect = Callable[[asyncio.BaseProtocol, asyncio.BaseProtocol], Awaitable[tuple[Any, Any]]]


def over_pipe(twin: Any, **options: Any) -> Connect:
    async def connect(left: asyncio.BaseProtocol, right: asyncio.BaseProtocol) -> tuple[Any, Any]:
        a, b = twin.create_pipe(**options)
        a.set_protocol(left)
        b.set_protocol(right)
        await asyncio.sleep(0)
        return a, b

    return connect


async def over_uds(left: asyncio.BaseProtocol, right: asyncio.BaseProtocol) -> tuple[Any, Any]:
    loop = asyncio.get_running_loop()
    made = []
    for side, protocol in zip(socket.socketpair(), (left, right), strict=True):
        side.setblocking(False)
        transport, _ = await loop.create_connection(lambda protocol=protocol: protocol, sock=side)
        made.append(transport)
    return made[0], made[1]


RIVALS: dict[str, Connect] = {
    "UDS, uvloop": over_uds,
    "pipe": over_pipe(C),
    "pipe, inline": over_pipe(C, inline=True),
    "Python twin": over_pipe(PYTHON),
    "Python twin, inline": over_pipe(PYTHON, inline=True),
}


class Ping(asyncio.Protocol):
    """Sends what came back, n times, and notes when."""

    def start(self, transport: Any, data: bytes, n: int) -> asyncio.Future[None]:
        self.transport, self.data, self.left = transport, data, n
        self.stamps = [0] * (n + 1)
        self.done = asyncio.get_running_loop().create_future()
        self.stamps[n] = now()
        transport.write(data)
        return self.done

    def data_received(self, data: bytes) -> None:
        if len(data) != len(self.data):  # a socket brings it in parts
            self.got = getattr(self, "got", 0) + len(data)
            if self.got < len(self.data):
                return
            self.got = 0
        self.left -= 1
        self.stamps[self.left] = now()
        if self.left:
            self.transport.write(self.data)
        else:
            self.done.set_result(None)


class Pong(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def round_trips(connect: Connect, size: int, n: int) -> list[float]:
    """µs of each of n round trips of `size` bytes."""
    ping, pong = Ping(), Pong()
    a, b = await connect(ping, pong)
    await asyncio.sleep(0.01)
    await ping.start(a, b"w" * size, n // 10)
    with no_collection():
        await ping.start(a, b"x" * size, n)
    a.abort()
    b.abort()
    await asyncio.sleep(0)
    return [(early - late) / 1000 for late, early in zip(ping.stamps[1:], ping.stamps[:-1], strict=True)]


async def isolated_hops(connect: Connect, n: int) -> list[float]:
    """µs from a write to the peer's data_received with the loop otherwise idle."""
    samples = []
    arrived: asyncio.Future[None]

    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            samples.append((now() - sent) / 1000)
            arrived.set_result(None)

    a, b = await connect(asyncio.Protocol(), Receiver())
    for _ in range(n):
        await asyncio.sleep(0.0002)
        arrived = asyncio.get_running_loop().create_future()
        sent = now()
        a.write(b"x" * 64)
        await arrived
    a.abort()
    b.abort()
    await asyncio.sleep(0)
    return samples


class Sink(asyncio.Protocol):
    def __init__(self, total: int) -> None:
        self.left = total
        self.done = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left <= 0:
            self.done.set_result(self.left)


class BufferSink(asyncio.BufferedProtocol):
    def __init__(self, total: int) -> None:
        self.buffer = bytearray(65536)
        self.left = total
        self.done = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.left -= nbytes
        if self.left <= 0:
            self.done.set_result(self.left)


class Source(asyncio.Protocol):
    """Writes whenever there is room, as a proxy's relay does."""

    def start(self, transport: Any, data: bytes, writes: int) -> None:
        self.transport, self.data, self.left, self.paused = transport, data, writes, False
        self.resume_writing()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while self.left and not self.paused:
            self.left -= 1
            self.transport.write(self.data)


async def one_way(connect: Connect, make_sink: Callable[[int], Any], total: int, size: int = 65536) -> float:
    """GB/s of `size`-byte writes of one bytes object, with backpressure."""
    source, sink = Source(), make_sink(total)
    a, b = await connect(source, sink)
    a.set_write_buffer_limits(65536)
    with no_collection():
        start = now()
        source.start(a, b"x" * size, total // size)
        assert await sink.done == 0
        took = now() - start
    a.abort()
    b.abort()
    await asyncio.sleep(0)
    return total / took


def copying(total: int, size: int = 65536) -> float:
    """GB/s of memoryview slice copies of the same sizes: what one copy costs."""
    source, target = memoryview(b"x" * size), memoryview(bytearray(size))
    start = now()
    for _ in range(total // size):
        target[:] = source
    return total / (now() - start)


def by_hand(total: int, size: int = 65536) -> float:
    """GB/s of write and readinto."""
    a, b = C.create_pipe()
    data, target = b"x" * size, bytearray(size)
    start = now()
    for _ in range(total // size):
        a.write(data)
        b.readinto(target)
    took = now() - start
    a.close()
    b.close()
    return total / took


class Lost(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.set_result(error)


async def pipe_lives(twin: Any, n: int) -> list[float]:
    """µs to make and connect a pair, close it and hear of it on both sides."""
    samples = []
    for _ in range(n):
        start = now()
        left, right = Lost(), Lost()
        a, b = twin.create_pipe()
        a.set_protocol(left)
        b.set_protocol(right)
        a.close()
        await left.lost
        await right.lost
        samples.append((now() - start) / 1000)
    return samples


async def uds_lives(n: int) -> list[float]:
    """The same by connect and accept on a Unix socket."""
    loop = asyncio.get_running_loop()
    accepted: list[Lost] = []

    def accept() -> Lost:
        accepted.append(Lost())
        return accepted[-1]

    path = f"/tmp/bench-{now()}.sock"
    server = await loop.create_unix_server(accept, path)
    samples = []
    for _ in range(n):
        start = now()
        transport, left = await loop.create_unix_connection(Lost, path)
        transport.close()
        await left.lost
        while not accepted:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await accepted.pop().lost
        samples.append((now() - start) / 1000)
    server.close()
    return samples


async def idle_bytes(twin: Any, n: int = 5000) -> float:
    """Bytes of an idle pair with two protocols that know their transports."""

    class Idle(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

    kept: list[Any] = [None] * n
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(n):
        a, b = twin.create_pipe()
        a.set_protocol(Idle())
        b.set_protocol(Idle())
        kept[number] = a
    await asyncio.sleep(0.05)
    took = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    for end in kept:
        end.abort()
    await asyncio.sleep(0.05)
    return took / n


def p(samples: list[float], share: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * share))]


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


async def table() -> None:
    lines: list[tuple[str, str, float, float, str]] = []

    def add(what: str, who: str, median: float, tail: float, note: str) -> None:
        print(f"{what:34} {who:20} {median:9.3f} {tail:9.3f}  {note}", flush=True)
        lines.append((what, who, median, tail, note))

    print(f"Python {platform.python_version()}, {platform.machine()}, commit {commit()}")
    print(f"{'measured':34} {'who':20} {'p50':>9} {'p99':>9}  against UDS on uvloop")
    for size, n in ((64, 30_000), (65536, 10_000)):
        base: list[float] = []
        for who, connect in RIVALS.items():
            rounds = [await round_trips(connect, size, n) for _ in range(3)]
            samples = min(rounds, key=statistics.median)
            base = base or samples
            ratios = f"{p(base, 0.5) / p(samples, 0.5):.1f}x, p99 {p(base, 0.99) / p(samples, 0.99):.1f}x"
            add(f"round trip {size} B, µs", who, p(samples, 0.5), p(samples, 0.99), ratios)
    base = []
    for who, connect in RIVALS.items():
        samples = await isolated_hops(connect, 1000)
        base = base or samples
        add("isolated hop, µs", who, p(samples, 0.5), p(samples, 0.99), f"{p(base, 0.5) / p(samples, 0.5):.1f}x")
    total = 1 << 29
    rate = 0.0
    for who, connect in RIVALS.items():
        speed = max([await one_way(connect, Sink, total) for _ in range(3)])
        rate = rate or speed
        add("one way, 64 KiB writes, GB/s", who, speed, 0, f"{speed / rate:.1f}x")
    copy = max(copying(total) for _ in range(3))
    add("one copy of 64 KiB, GB/s", "memoryview", copy, 0, "")
    speed = max([await one_way(RIVALS["pipe"], BufferSink, total) for _ in range(3)])
    add("into BufferedProtocol, GB/s", "pipe", speed, 0, f"{speed / copy:.2f}x of a copy")
    speed = max(by_hand(total) for _ in range(3))
    add("readinto, GB/s", "pipe", speed, 0, f"{speed / copy:.2f}x of a copy")
    base = await uds_lives(1000)
    add("make, connect, close, µs", "UDS, uvloop", p(base, 0.5), p(base, 0.99), "")
    for who, twin in (("pipe", C), ("Python twin", PYTHON)):
        samples = await pipe_lives(twin, 5000)
        ratio = f"{p(base, 0.5) / p(samples, 0.5):.1f}x"
        add("make, connect, close, µs", who, p(samples, 0.5), p(samples, 0.99), ratio)
    for who, twin in (("pipe", C), ("Python twin", PYTHON)):
        add("idle pair with protocols, bytes", who, await idle_bytes(twin), 0, "")


@pytest.mark.parametrize("who", RIVALS)
@pytest.mark.parametrize("size", [64, 65536])
def test_round_trips(benchmark: Any, who: str, size: int) -> None:
    """1,000 round trips."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        ping, pong = Ping(), Pong()
        a, b = runner.run(RIVALS[who](ping, pong))

        async def trips() -> None:
            await ping.start(a, b"x" * size, 1000)

        benchmark(lambda: runner.run(trips()))

        async def end() -> None:
            a.abort()
            b.abort()
            await asyncio.sleep(0)

        runner.run(end())


if __name__ == "__main__":
    sys.exit(uvloop.run(table()))
