"""The checks of other projects for a pipe: Go's nettest, tokio's duplex and trio's stream check.

The first two are functions that also run on sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from fastpipe import PipeBrokenError, PipeClosedError

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
MakePair = Callable[[], Awaitable[tuple[Streams, Streams]]]  # two connected transports under asyncio's own streams


def streams_over(connect: Callable[[asyncio.Protocol], Any]) -> Streams:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = connect(protocol)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def closed(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(writer.wait_closed(), 5)


# ---- the checks: after golang.org/x/net/nettest's TestConn, without deadlines (which asyncio leaves to its callers)


async def check_basic_io(make_pair: MakePair) -> None:
    """A megabyte there and back in writes of all sizes: the same bytes, then EOF."""
    (ra, wa), (rb, wb) = await make_pair()
    numbers = random.Random(1)
    blob = numbers.randbytes(1 << 20)

    async def send() -> None:
        start = 0
        while start < len(blob):
            n = numbers.choice((0, 1, 100, 4096, 70_000))
            wa.write(blob[start : start + n])
            start += n
            await wa.drain()
        wa.write_eof()

    async def echo() -> None:
        while data := await rb.read(numbers.choice((1000, 65536))):
            wb.write(data)
            await wb.drain()
        wb.write_eof()

    _, _, back = await asyncio.gather(send(), echo(), ra.read())
    assert back == blob
    await closed(wa, wb)


async def check_ping_pong(make_pair: MakePair) -> None:
    (ra, wa), (rb, wb) = await make_pair()

    async def side(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: int) -> None:
        for number in range(first, 200, 2):
            if number:
                assert int.from_bytes(await reader.readexactly(8), "big") == number - 1
            writer.write(number.to_bytes(8, "big"))
            await writer.drain()

    await asyncio.gather(side(ra, wa, 0), side(rb, wb, 1))
    await closed(wa, wb)


async def check_racy_reads(make_pair: MakePair) -> None:
    """Pauses and resumes of reading at any time lose, double or reorder nothing."""
    (_, wa), (rb, wb) = await make_pair()
    numbers = random.Random(2)
    blob = numbers.randbytes(300_000)
    done = asyncio.Event()

    async def meddle() -> None:
        while not done.is_set():
            with contextlib.suppress(RuntimeError):  # a socket raises if it isn't paused
                numbers.choice((wb.transport.pause_reading, wb.transport.resume_reading))()
            await asyncio.sleep(0)
        wb.transport.resume_reading()

    meddling = asyncio.create_task(meddle())
    for start in range(0, len(blob), 3000):
        wa.write(blob[start : start + 3000])
        if numbers.random() < 0.2:
            await asyncio.sleep(0)
    wa.write_eof()
    done.set()
    await meddling
    assert await rb.read() == blob
    await closed(wa, wb)


async def check_racy_writes(make_pair: MakePair) -> None:
    """Many tasks write: each write arrives in one piece of the stream, each task's in its order."""
    (_, wa), (rb, wb) = await make_pair()

    async def write(name: int) -> None:
        for number in range(50):
            wa.write(bytes([name, number]) * 50)
            await wa.drain()
            if number % 7 == name % 7:
                await asyncio.sleep(0)

    async def read() -> None:
        seen = [0] * 10
        for _ in range(500):
            record = await rb.readexactly(100)
            assert record == record[:2] * 50
            assert seen[record[0]] == record[1]
            seen[record[0]] += 1

    await asyncio.gather(read(), *(write(name) for name in range(10)))
    await closed(wa, wb)


async def check_close_while_reading(make_pair: MakePair) -> None:
    (_, wa), (rb, wb) = await make_pair()
    reading = asyncio.create_task(rb.read(1))
    await asyncio.sleep(0)
    wa.close()
    assert await asyncio.wait_for(reading, 5) == b""
    await closed(wa, wb)


async def check_close_while_writing(make_pair: MakePair) -> None:
    """A writer that waits for room is woken when the reader goes away."""
    (_, wa), (_, wb) = await make_pair()
    wb.transport.pause_reading()
    for _ in range(100):
        wa.write(bytes(65536))
    draining = asyncio.create_task(wa.drain())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not draining.done()
    wb.transport.abort()
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(draining, 5)
    await closed(wa, wb)


async def check_own_close_while_reading(make_pair: MakePair) -> None:
    (ra, wa), (_, wb) = await make_pair()
    reading = asyncio.create_task(ra.read(1))
    await asyncio.sleep(0)
    wa.close()
    assert await asyncio.wait_for(reading, 5) == b""
    await closed(wa, wb)


async def check_half_close(make_pair: MakePair) -> None:
    (ra, wa), (rb, wb) = await make_pair()
    wa.write(b"question")
    wa.write_eof()
    assert await rb.read() == b"question"
    wb.write(b"answer")
    await wb.drain()
    wb.close()
    assert await ra.read() == b"answer"
    await closed(wa, wb)


async def check_concurrent_methods(make_pair: MakePair) -> None:
    """Everything at once, from many tasks: no error but those of an ended connection."""
    (ra, wa), (rb, wb) = await make_pair()
    numbers = random.Random(4)

    async def use(writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        for _ in range(100):
            calls: list[Callable[[], Any]] = [
                functools.partial(transport.write, b"x" * numbers.randrange(2000)),
                transport.is_closing,
                transport.get_write_buffer_size,
                functools.partial(transport.get_extra_info, "peername"),
                functools.partial(transport.set_write_buffer_limits, numbers.randrange(1000)),
                transport.is_reading,
            ]
            numbers.choice(calls)()
            await asyncio.sleep(0)

    readers = [asyncio.create_task(reader.read()) for reader in (ra, rb)]
    await asyncio.gather(*(use(writer) for writer in (wa, wb) for _ in range(10)))
    wa.close()
    wb.close()
    await asyncio.gather(*readers, return_exceptions=True)
    await closed(wa, wb)


# ---- after tokio's io_mem_stream tests of io::duplex


async def check_disconnect(make_pair: MakePair) -> None:
    """The reader gets all bytes written before the end, then EOF for ever."""
    (_, wa), (rb, wb) = await make_pair()
    wa.write(b"ping")
    wa.close()
    assert await rb.readexactly(4) == b"ping"
    assert await rb.read(1) == b""
    assert await rb.read(1) == b""
    await closed(wa, wb)


async def check_disconnect_reader(make_pair: MakePair) -> None:
    """A writer gets an error if its reader has closed."""
    (_, wa), (_, wb) = await make_pair()
    wb.transport.abort()

    async def write_on() -> None:
        for _ in range(100):
            wa.write(b"x")
            await wa.drain()
            await asyncio.sleep(0.001)

    with pytest.raises((ConnectionError, RuntimeError)):  # uvloop's own "the handler is closed"
        await write_on()
    await closed(wa, wb)


async def check_max_write_size(make_pair: MakePair) -> None:
    """`drain` waits while more than the limit is unread, and returns after the other end has read."""
    (_, wa), (rb, wb) = await make_pair()
    wb.transport.pause_reading()
    wa.transport.set_write_buffer_limits(5)
    for _ in range(50):
        wa.write(bytes(65536))
    draining = asyncio.create_task(wa.drain())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not draining.done()
    assert wa.transport.get_write_buffer_size() > 5
    wb.transport.resume_reading()
    assert len(await rb.readexactly(50 * 65536)) == 50 * 65536
    await asyncio.wait_for(draining, 5)
    await closed(wa, wb)


async def check_zero_length_operations(make_pair: MakePair) -> None:
    (_, wa), (rb, wb) = await make_pair()
    wa.write(b"")
    wa.writelines([b"", b""])
    await wa.drain()
    assert await rb.read(0) == b""
    wa.write(b"x")
    assert await rb.read(1) == b"x"
    await closed(wa, wb)


async def check_cooperative(make_pair: MakePair) -> None:
    """A pair that is always ready doesn't keep others from running."""
    (ra, wa), (rb, wb) = await make_pair()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(500):
            writer.write(await reader.readexactly(1))

    ticking = asyncio.create_task(tick())
    wa.write(b"x")
    await asyncio.gather(relay(rb, wb), relay(ra, wa))
    assert ticks > 20
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking
    await closed(wa, wb)


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]


async def check_pipe(make_pair: MakePair) -> None:
    """Runs all checks, each on its own pair."""
    for check in CHECKS:
        await check(make_pair)


# ---- what they run on


def pipe_pairs(twin: Any, **options: Any) -> MakePair:
    async def make() -> tuple[Streams, Streams]:
        ends = twin.create_pipe(**options)

        def connect(end: Any, protocol: asyncio.Protocol) -> Any:
            end.set_protocol(protocol)
            return end

        made = tuple(streams_over(functools.partial(connect, end)) for end in ends)
        await asyncio.sleep(0)
        return made

    return make


async def socket_pair() -> tuple[Streams, Streams]:
    made = []
    for side in socket.socketpair():
        side.setblocking(False)
        made.append(await asyncio.open_connection(sock=side))
    return tuple(made)


@pytest.mark.parametrize("inline", [False, True], ids=["default", "inline"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_the_pipe_conforms(twin, check, inline):
    await check(pipe_pairs(twin, inline=inline))


async def test_the_pipe_conforms_with_small_limits(twin):
    await check_pipe(pipe_pairs(twin, limit=10, max_chunk=1000))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_a_socket_conforms(check):
    await check(socket_pair)


# ---- trio's own check, on a thin adapter that reads and writes by hand


class TrioStream(trio.abc.HalfCloseableStream):
    """One end as a trio stream, driven by hand. There is no event loop, so the two adapters wake each other."""

    def __init__(self, end: Any, lot: trio.lowlevel.ParkingLot, limit: int) -> None:
        self.end = end
        self.lot = lot
        self.limit = limit
        self.peer: TrioStream
        self.closed = self.eof_sent = False
        self.sending = trio._util.ConflictDetector("another task is sending")
        self.receiving = trio._util.ConflictDetector("another task is receiving")

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        if self.peer.closed or self.end.is_closing():
            raise trio.BrokenResourceError

    async def _room(self) -> None:
        await trio.lowlevel.checkpoint()
        while not self.closed and not self.peer.closed and self.end.get_write_buffer_size() > self.limit:
            await self.lot.park()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with self.sending:
            if self.closed or self.eof_sent:
                raise trio.ClosedResourceError
            self._check()
            self.end.write(data)
            self.lot.unpark_all()
            await self._room()
            if data:
                self._check()

    async def wait_send_all_might_not_block(self) -> None:
        with self.sending:
            if self.closed or self.eof_sent:
                raise trio.ClosedResourceError
            await self._room()
            if self.closed:
                raise trio.ClosedResourceError

    async def send_eof(self) -> None:
        with self.sending:
            if self.closed:
                raise trio.ClosedResourceError
            self.eof_sent = True
            self.end.write_eof()
            self.lot.unpark_all()
            await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with self.receiving:
            await trio.lowlevel.checkpoint()
            if max_bytes is not None and max_bytes < 1:
                raise ValueError("max_bytes must be >= 1")
            while True:
                try:
                    data = self.end.read(-1 if max_bytes is None else max_bytes)
                except PipeClosedError:
                    raise trio.ClosedResourceError from None
                except PipeBrokenError:
                    raise trio.BrokenResourceError from None
                self.lot.unpark_all()
                if data or self.end.at_eof():
                    return data
                await self.lot.park()

    async def aclose(self) -> None:
        self.closed = True
        self.end.close()
        self.lot.unpark_all()
        await trio.lowlevel.checkpoint()


def test_trios_check_of_half_closeable_streams_passes(twin):
    async def make(limit: int = 1000) -> tuple[TrioStream, TrioStream]:
        lot = trio.lowlevel.ParkingLot()
        left, right = (TrioStream(end, lot, limit) for end in twin.create_pipe(limit=limit))
        left.peer, right.peer = right, left
        return left, right

    async def clogged() -> tuple[TrioStream, TrioStream]:
        left, right = await make(0)
        left.end.write(b"x")
        right.end.write(b"x")
        return left, right

    async def main() -> None:
        with trio.fail_after(30):
            await trio.testing.check_half_closeable_stream(make, clogged)

    trio.run(main)
