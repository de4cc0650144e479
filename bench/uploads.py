"""1 GiB through the agent's hop to a target: DATA packets, as credit allows, beside a relay of a few lines.

    Upload ──packet_received──► ConnManager ──pipe or Unix socket──► Proxy ──► bench.upload_target, another process
       ▲                            │
       └── credit ◄── ReceiveWindow ┘

All rivals use the tunnel's own windows. The baseline takes the next packets when its target takes bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from agent.cli.allocator import keep_freed_memory
from agent.policy.router import StaticRouter
from agent.proxy import ProxyLimits
from agent.tunnel.window import INITIAL_WINDOW_BYTES, ReceiveWindow, WindowBudget

from .hop import (
    DATA,
    MODES,
    RATIOS,
    SPEED,
    Baseline,
    BaselineConnection,
    BaselineTarget,
    Packets,
    Receiver,
    stack,
    turns,
)
from .measuring import Case, Metric, Samples, Scale, Turn
from .processes import Program
from .resources import GROWTH, growing

__all__ = ["CASES", "sink", "upload"]

PACKET_BYTES = 32 * 1024
READ_BYTES = 256 * 1024  # what one read of the tunnel's socket brings: packets are views of it
HEAD = b"POST /c1/ HTTP/1.1\r\nHost: hub.example.com\r\nUser-Agent: bench\r\nContent-Length: %d\r\n\r\n"


class CreditedPackets(Packets):
    """Packets of a hub that counts credit."""

    features = frozenset({"close", "window"})

    def receive_window(self, conn_id: int) -> ReceiveWindow:
        client: Any = self.clients[conn_id]
        return ReceiveWindow(client.credited, WindowBudget(), lambda: 0.0)


class Upload:
    """One client that sends `size` bytes as fast as it gets credit."""

    def __init__(self, receiver: Receiver, size: int) -> None:
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._size = self._left = size
        self._source = memoryview(bytes(range(256)) * (READ_BYTES // 256))
        self._credit = INITIAL_WINDOW_BYTES
        self._waits = False  # for credit
        self._whole = False
        self._answer = b""
        self.done: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Raises AssertionError if the target reports fewer bytes than were sent."""
        self._send(HEAD % self._size)
        self._read()
        await self.done

    def _send(self, data: bytes | memoryview) -> None:
        self._credit -= len(data)
        self._receiver.packet_received(1, DATA, data, "")

    def _read(self) -> None:
        """Send the bytes of one read. They are new memory each time, so a kept copy shows in the peak."""
        if not self._left:
            return
        size = min(READ_BYTES, self._left, self._credit)
        if not size:
            self._waits = True
            return
        self._left -= size
        read = memoryview(bytes(self._source[:size]))
        for start in range(0, size, PACKET_BYTES):
            self._send(read[start : start + PACKET_BYTES])
        self._loop.call_soon(self._read)

    def credited(self, size: int) -> None:
        self._credit += size
        if self._waits:
            self._waits = False
            self._loop.call_soon(self._read)

    def received(self, data: bytes | memoryview) -> None:
        self._answer += data
        head, _, body = self._answer.partition(b"\r\n\r\n")
        if len(body) < len(b"%d" % self._size) or self.done.done():
            return
        self._whole = True
        if head.startswith(b"HTTP/1.1 200 ") and body == b"%d" % self._size:
            self.done.set_result(None)
        else:
            self.done.set_exception(AssertionError(self._answer))

    def ended(self) -> None:
        if not self._whole and not self.done.done():
            self.done.set_exception(AssertionError(f"the connection ended after {self._answer!r}"))


# -- the baseline


class UploadBaseline(Baseline):
    packets: CreditedPackets

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        connection: Any = self.open.get(conn_id)
        if connection is None:
            connection = self.open[conn_id] = UploadConnection(self, conn_id)
        connection.window.arrived(len(data))
        connection.parser.feed_data(data)
        connection.return_credit()

    async def dial(self, connection: Any, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, target = await loop.create_connection(lambda: UploadTarget(self), "127.0.0.1", self.port)
        self.every.add(target)
        high = ProxyLimits().buffer_bytes
        target.transport.set_write_buffer_limits(high=high, low=high // 4)
        target.send(connection, request)
        connection.target = target
        for body in connection.waiting:
            target.transport.write(body)
        connection.waiting.clear()
        connection.return_credit()


class UploadConnection(BaselineConnection):
    """Forwards each piece of the body as it arrives."""

    def __init__(self, relay: UploadBaseline, conn_id: int) -> None:
        super().__init__(relay, conn_id)
        self.window = relay.packets.receive_window(conn_id)
        self.target: UploadTarget | None = None
        self.waiting: list[bytes] = []  # what comes before the target is there
        self.keeps = True

    def on_headers_complete(self) -> None:
        fields = b"".join(self.fields)
        request = b"POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n" % (self.url[3:], self.relay.port, fields)
        task = asyncio.ensure_future(self.relay.dial(self, request))
        self.relay.dials.add(task)
        task.add_done_callback(self.relay.dials.discard)

    def on_body(self, body: bytes) -> None:
        if self.target is None:
            self.waiting.append(body)
        else:
            self.target.transport.write(body)

    def on_message_complete(self) -> None:
        pass

    def return_credit(self) -> None:
        if self.target is None:
            self.window.unread(sum(map(len, self.waiting)))
        else:
            self.window.unread(self.target.transport.get_write_buffer_size() if self.target.paused else 0)


class UploadTarget(BaselineTarget):
    paused = False

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        connection: Any = self.connection
        connection.return_credit()


# -- the case


@contextlib.contextmanager
def sink() -> Iterator[int]:
    """Run the target in another process. Returns its port."""
    with contextlib.closing(Program([sys.executable, "-m", "bench.upload_target"])) as running:
        yield int(running.wait_for("listening "))


@contextlib.asynccontextmanager
async def receiver(mode: str, port: int) -> AsyncIterator[tuple[Receiver, Packets]]:
    packets = CreditedPackets()
    if mode == "baseline":
        relay = UploadBaseline(packets, port)
        try:
            yield relay, packets
        finally:
            relay.close()
            await asyncio.sleep(0)
        return
    router = StaticRouter([("/", f"http://127.0.0.1:{port}")], "c1")
    async with stack(mode, router.route, packets=packets) as made:
        yield made.manager, packets


async def upload(mode: str, port: int, size: int) -> Samples:
    """`size` bytes at once, with the allocator as the command line has it."""
    keep_freed_memory()
    async with receiver(mode, port) as (takes, packets):
        client: Any = Upload(takes, size)
        packets.clients[1] = client
        with growing() as growth:
            cpu, began = time.process_time(), time.perf_counter()
            await client.run()
            cpu, took = time.process_time() - cpu, time.perf_counter() - began
        return {SPEED: [size / took / 1e6], Metric("CPU", "ms"): [cpu * 1e3], GROWTH: growth}


@contextlib.contextmanager
def open_upload(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    with sink() as port:
        yield turns(MODES, lambda mode: upload(mode, port, 1 << 30))


CASES: Sequence[Case] = (
    Case("hop 1 GiB upload", "1 GiB through the hop to a target that counts it", open_upload, RATIOS, rounds=(3, 1)),
)
