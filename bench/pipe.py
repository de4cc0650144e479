"""The pipe against sockets, its own Python twin and a plain copy: round trips, hops, one way, lives, memory.

Each function moves a fixed amount and checks what arrived. `python -m bench` and `pytest bench` run the same ones.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import importlib
import os
import socket
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

import uvloop

from .measuring import Case, Metric, Samples, Scale, Turn, latency, no_collection, one, percentile

C = importlib.import_module("fastpipe._pipe_c")
PYTHON = importlib.import_module("fastpipe._pipe_py")
now = time.perf_counter_ns

Connect = Callable[[asyncio.BaseProtocol, asyncio.BaseProtocol], Coroutine[Any, Any, tuple[Any, Any]]]


def over_pipe(twin: Any, **options: Any) -> Connect:
    async def connect(left: asyncio.BaseProtocol, right: asyncio.BaseProtocol) -> tuple[Any, Any]:
        a, b = twin.create_pipe(**options)
        a.set_protocol(left)
        b.set_protocol(right)
        await asyncio.sleep(0)
        return a, b

    return connect


def _same(protocol: asyncio.BaseProtocol) -> asyncio.BaseProtocol:
    return protocol


async def over_socketpair(left: asyncio.BaseProtocol, right: asyncio.BaseProtocol) -> tuple[Any, Any]:
    loop = asyncio.get_running_loop()
    made = []
    for side, protocol in zip(socket.socketpair(), (left, right), strict=True):
        side.setblocking(False)
        transport, _ = await loop.create_connection(functools.partial(_same, protocol), sock=side)
        made.append(transport)
    return made[0], made[1]


def over_listening(kind: str) -> Connect:
    """kind: "unix" or "tcp", a listening socket that is dialled."""

    async def connect(left: asyncio.BaseProtocol, right: asyncio.BaseProtocol) -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        accepted: asyncio.Future[Any] = loop.create_future()

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                transport.set_protocol(right)
                right.connection_made(transport)
                accepted.set_result(transport)

        if kind == "unix":
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "s")
                server: Any = await loop.create_unix_server(Accepting, path)
                near, _ = await loop.create_unix_connection(lambda: left, path)
        else:
            server = await loop.create_server(Accepting, "127.0.0.1", 0)
            near, _ = await loop.create_connection(lambda: left, *server.sockets[0].getsockname())
        far = await accepted
        server.close()
        return near, far

    return connect


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}

RIVALS: dict[str, tuple[str, Connect]] = {
    "pipe": ("uvloop", over_pipe(C)),
    "UDS": ("uvloop", over_listening("unix")),
    "pipe, inline": ("uvloop", over_pipe(C, inline=True)),
    "Python twin": ("uvloop", over_pipe(PYTHON)),
    "Python twin, inline": ("uvloop", over_pipe(PYTHON, inline=True)),
    "socketpair": ("uvloop", over_socketpair),
    "TCP": ("uvloop", over_listening("tcp")),
    "pipe, asyncio": ("asyncio", over_pipe(C)),
    "UDS, asyncio": ("asyncio", over_listening("unix")),
}
"""By variant: the event loop, and what connects two protocols on it."""


def on_loop(loop: str, work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a new loop. Returns its result."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(work)


BATCH = 100  # round trips between two looks at the clock, which costs about as much as one of them


class Ping(asyncio.Protocol):
    """Sends what came back, and looks at the clock between batches of round trips, not within."""

    def start(self, transport: Any, data: bytes, batches: int) -> asyncio.Future[None]:
        self.transport, self.data, self.size, self.got = transport, data, len(data), 0
        self.batches, self.left = batches, BATCH
        self.samples: list[float] = []  # µs of a round trip, mean of each batch
        self.done = asyncio.get_running_loop().create_future()
        self.began = now()
        transport.write(data)
        return self.done

    def data_received(self, data: bytes) -> None:
        if len(data) != self.size:  # a socket brings it in parts
            self.got += len(data)
            if self.got < self.size:
                return
            self.got = 0
        self.left -= 1
        if self.left:
            self.transport.write(self.data)
        else:
            self.batch_done()

    def batch_done(self) -> None:
        ended = now()
        self.samples.append((ended - self.began) / BATCH / 1000)
        if len(self.samples) == self.batches:
            self.done.set_result(None)
        else:
            self.left = BATCH
            self.began = now()
            self.transport.write(self.data)


class StampingPing(Ping):
    """Looks at the clock after each round trip: for the 99th percentile. The stamps' memory is there beforehand."""

    def start(self, transport: Any, data: bytes, batches: int) -> asyncio.Future[None]:
        self.left = trips = batches * BATCH
        self.transport, self.data, self.size, self.got = transport, data, len(data), 0
        self.stamps = array.array("q", bytes(8 * (trips + 1)))
        self.done = asyncio.get_running_loop().create_future()
        self.stamps[trips] = now()
        transport.write(data)
        return self.done

    def data_received(self, data: bytes) -> None:
        if len(data) != self.size:
            self.got += len(data)
            if self.got < self.size:
                return
            self.got = 0
        self.left -= 1
        self.stamps[self.left] = now()
        if self.left:
            self.transport.write(self.data)
        else:
            self.done.set_result(None)

    def micros(self) -> list[float]:
        """Each round trip, its stamp included."""
        return [(later - earlier) / 1000 for later, earlier in zip(self.stamps[:-1], self.stamps[1:], strict=True)]

    def stamp_cost(self) -> float:
        """µs that one stamp takes: what StampingPing's round trip has and Ping's has not."""
        costs = []
        for _ in range(50):
            began = now()
            for _ in range(BATCH):
                self.stamps[self.left] = now()
            with_stamps = now() - began
            began = now()
            for _ in range(BATCH):
                pass
            costs.append((with_stamps - (now() - began)) / BATCH / 1000)
        return statistics.median(costs)


class Pong(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


TRIP = Metric("round trip", "µs")
TRIP_P99 = Metric("round trip p99", "µs")
STAMP = Metric("a stamp, taken off that", "µs")


async def round_trips(connect: Connect, size: int, n: int) -> Samples:
    """n round trips of `size` bytes: their time, by batches, and the 99th percentile of single ones, less a stamp."""
    found: dict[Metric, list[float]] = {}
    for ping in (Ping(), StampingPing()):
        a, b = await connect(ping, Pong())
        await asyncio.sleep(0.01)
        await ping.start(a, b"w" * size, max(1, n // BATCH // 10))
        with no_collection():
            await ping.start(a, b"x" * size, n // BATCH)
        a.abort()
        b.abort()
        await asyncio.sleep(0)
        if isinstance(ping, StampingPing):
            cost = ping.stamp_cost()
            found |= {TRIP_P99: [percentile(ping.micros(), 0.99) - cost], STAMP: [cost]}
        else:
            found[TRIP] = ping.samples
    return found


async def isolated_hops(connect: Connect, n: int, *, mere_call_soon: bool = False) -> list[float]:
    """µs from a write to the peer's data_received with the loop otherwise idle.

    mere_call_soon: in place of the pipe the loop calls data_received: what its own turn takes, and a pipe needs one.
    """
    samples = []
    arrived: asyncio.Future[None]

    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            samples.append((now() - sent) / 1000)
            arrived.set_result(None)

    a, b = await connect(asyncio.Protocol(), Receiver())
    if mere_call_soon:
        loop = asyncio.get_running_loop()
        receive = b.get_protocol().data_received

        class Mere:
            abort = a.abort

            def write(self, data: bytes) -> None:
                loop.call_soon(receive, data)

        a = Mere()
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


async def pipe_lives(twin: Any, n: int, together: int = 1) -> list[float]:
    """µs to make, connect and close a pair, until both sides know it. together: pairs at a time, 1 or more."""
    samples = []
    for _ in range(n // together):
        start = now()
        lost: list[asyncio.Future[BaseException | None]] = []
        for _ in range(together):
            left, right = Lost(), Lost()
            a, b = twin.create_pipe()
            a.set_protocol(left)
            b.set_protocol(right)
            a.close()
            lost += (left.lost, right.lost)
        for future in lost:
            await future
        samples.append((now() - start) / 1000 / together)
    return samples


async def uds_lives(n: int, together: int = 1) -> list[float]:
    """The same by connect and accept on a Unix socket."""
    loop = asyncio.get_running_loop()
    accepted: list[Lost] = []

    def accept() -> Lost:
        accepted.append(Lost())
        return accepted[-1]

    async def live() -> None:
        transport, left = await loop.create_unix_connection(Lost, path)
        transport.close()
        await left.lost

    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "s")
    server = await loop.create_unix_server(accept, path)
    samples = []
    for _ in range(n // together):
        start = now()
        if together == 1:
            await live()
        else:
            await asyncio.gather(*(live() for _ in range(together)))
        while len(accepted) < together:  # noqa: ASYNC110 - no Event: setting one would be measured, too
            await asyncio.sleep(0)
        while accepted:
            await accepted.pop().lost
        samples.append((now() - start) / 1000 / together)
    server.close()
    folder.cleanup()
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


# -- the cases

RATIOS = [
    ("pipe", "UDS"),
    ("pipe, inline", "UDS"),
    ("Python twin", "UDS"),
    ("Python twin, inline", "UDS"),
    ("pipe", "Python twin"),
    ("pipe", "socketpair"),
    ("pipe", "TCP"),
    ("pipe, asyncio", "UDS, asyncio"),
]
FEW = ("pipe", "UDS", "pipe, inline", "Python twin")  # of a quick run
SPEED = Metric("throughput", "GB/s", more_is_better=True)
MEMORY = Metric("memory", "bytes")


def _turn(loop: str, measure: Callable[[Connect], Coroutine[Any, Any, Samples]], connect: Connect) -> Samples:
    found: Samples = on_loop(loop, measure(connect))
    return found


def turns_of(scale: Scale, measure: Callable[[Connect], Coroutine[Any, Any, Samples]]) -> Iterator[tuple[str, Turn]]:
    for name, (loop, connect) in RIVALS.items():
        if not scale.quick or name in FEW:
            yield name, functools.partial(_turn, loop, measure, connect)


def round_trip_case(size: int, whole: int, quick: int) -> Case:
    @contextlib.contextmanager
    def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
        n = scale.of(whole, quick)
        yield dict(turns_of(scale, lambda connect: round_trips(connect, size, n)))

    amount = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
    title = f"Round trip of {amount} between two `data_received`"
    return Case(f"pipe round trip {amount}", title, open_case, RATIOS, quick=size == 64)


@contextlib.contextmanager
def open_hops(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    async def measure(connect: Connect) -> Samples:
        return latency("hop", await isolated_hops(connect, scale.of(1000, 300)))

    async def mere() -> Samples:
        return latency("hop", await isolated_hops(over_pipe(C), scale.of(1000, 300), mere_call_soon=True))

    yield dict(turns_of(scale, measure)) | {"call_soon alone": lambda: on_loop("uvloop", mere())}


@contextlib.contextmanager
def open_one_way(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    async def measure(connect: Connect) -> Samples:
        return one(SPEED, await one_way(connect, Sink, scale.of(1 << 28, 1 << 26)))

    yield dict(turns_of(scale, measure))


@contextlib.contextmanager
def open_one_copy(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    total = scale.of(1 << 28, 1 << 26)
    yield {
        "BufferedProtocol": lambda: one(SPEED, on_loop("uvloop", one_way(over_pipe(C), BufferSink, total))),
        "readinto": lambda: one(SPEED, by_hand(total)),
        "memoryview copy": lambda: one(SPEED, copying(total)),
    }


def lives_case(name: str, title: str, together: int) -> Case:
    def open_lives(scale: Scale) -> contextlib.AbstractContextManager[Mapping[str, Turn]]:
        n = scale.of(4000, 800)
        return contextlib.nullcontext(
            {
                "pipe": lambda: latency("life", on_loop("uvloop", pipe_lives(C, n, together))),
                "UDS": lambda: latency("life", on_loop("uvloop", uds_lives(n // 4, together))),
                "Python twin": lambda: latency("life", on_loop("uvloop", pipe_lives(PYTHON, n, together))),
            }
        )

    return Case(
        name, title, open_lives, [("pipe", "UDS"), ("Python twin", "UDS"), ("pipe", "Python twin")], rounds=(3, 2)
    )


def open_idle(scale: Scale) -> contextlib.AbstractContextManager[Mapping[str, Turn]]:
    return contextlib.nullcontext(
        {
            "pipe": lambda: one(MEMORY, on_loop("uvloop", idle_bytes(C))),
            "Python twin": lambda: one(MEMORY, on_loop("uvloop", idle_bytes(PYTHON))),
        }
    )


CASES: Sequence[Case] = (
    round_trip_case(64, 10_000, 4_000),
    round_trip_case(65536, 5_000, 1_000),
    Case(
        "pipe hop",
        "One write with the loop otherwise idle, until `data_received`",
        open_hops,
        [*RATIOS, ("call_soon alone", "UDS")],
        rounds=(3, 2),
    ),
    Case("pipe one way", "64 KiB writes of `bytes` with backpressure", open_one_way, RATIOS),
    Case(
        "pipe one copy",
        "Into the reader's own buffer, against a plain copy of the same sizes",
        open_one_copy,
        [("BufferedProtocol", "memoryview copy"), ("readinto", "memoryview copy")],
    ),
    lives_case("pipe life", "Make, connect and close a pair until both sides know it, one after another", 1),
    lives_case("pipe lives", "The same, 100 at a time", 100),
    Case("pipe idle", "Memory of an idle pair with two protocols", open_idle, rounds=(2, 1)),
)
