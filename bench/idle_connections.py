"""Measures idle connections of a tunnel: memory of each, and CPU of packets on ten other connections.

    python -m bench.idle_connections PORT IDLE COUNT      the agent's end, at a hub that sends every packet back

Our hub and our agent's end run in separate processes, with a TCP connection between them. Each of IDLE connections
sends one packet, gets it back, and stays open with its queue and its window. Then COUNT packets of 256 B make the
round trip on ten more connections. The program prints a JSON object: `memory`, bytes of each idle connection, and
`CPU`, µs of each packet.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import psutil
import uvloop

from . import bench_tunnel
from .measuring import Case, Metric, Samples, Scale, Turn

__all__ = ["CASES"]

MEMORY = Metric("memory in the process", "bytes", resolution=128)  # as in resources.py
CPU = Metric("CPU per packet", "µs")
ACTIVE = 10
PACKET_BYTES = 256
OPEN = "10,000 open"
FEW = "10 open"


class Receiver:
    """Opens connections, sees that each packet comes back as it went, and sends the next of the active ones."""

    def __init__(self, tunnel: Any, run: bench_tunnel.Run, idle: int) -> None:
        self.tunnel, self.run = tunnel, run
        self.open: list[tuple[Any, Any]] = []
        self.awaited = idle
        self.first_active = idle + 1
        self.done = asyncio.Event()

    def connect(self, first_id: int, count: int) -> None:
        """Open connections and send a packet on each."""
        for conn_id in range(first_id, first_id + count):
            self.open.append((self.tunnel.outbound(conn_id, int, int), self.tunnel.receive_window(conn_id)))
            self.open[-1][0].write(self.run.payload)

    def start(self) -> None:
        self.run.sent = ACTIVE
        self.connect(self.first_active, ACTIVE)

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        assert code == 0, error_message
        out, window = self.open[conn_id - 1]
        bench_tunnel.read(window, data)
        if conn_id < self.first_active:
            assert data == self.run.payload
            self.awaited -= 1
            if not self.awaited:
                self.done.set()
        elif self.run.came(data):
            self.done.set()
        elif self.run.sent < self.run.count:
            self.run.sent += 1
            out.write(self.run.payload)

    def tunnel_lost(self, error: Exception | None) -> None:
        self.done.set()


def held_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().pss)


async def agents_end(port: int, idle: int, count: int) -> dict[str, float]:
    """Raises AssertionError where a packet came back changed, or the tunnel was lost."""
    from agent.tunnel.client import HubEndpoint, TunnelClient

    run = bench_tunnel.Run(PACKET_BYTES, count)
    ready: asyncio.Future[Receiver] = asyncio.get_running_loop().create_future()
    client = TunnelClient(
        HubEndpoint("127.0.0.1", port),
        cluster_name="bench",
        open_receiver=lambda tunnel: Receiver(tunnel, run, idle),
        on_ready=lambda tunnel: ready.set_result(cast(Receiver, tunnel.receiver)),
    )
    task = asyncio.ensure_future(client.run())
    receiver, found = await ready, {}
    if idle:
        before = held_bytes()
        receiver.connect(1, idle)
        await receiver.done.wait()
        receiver.done.clear()
        assert not receiver.awaited, "the tunnel was lost"
        found["memory"] = (held_bytes() - before) / idle
    receiver.start()
    await receiver.done.wait()
    task.cancel()
    await asyncio.wait([task])
    assert run.received == run.count, "the tunnel was lost"
    return found | {"CPU": run.result["CPU"]}


def measured_at(port: int, idle: int, count: int) -> Samples:
    command = [sys.executable, "-m", "bench.idle_connections", *map(str, (port, idle, count))]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=120).stdout)
    return {CPU: [found["CPU"]]} | ({MEMORY: [found["memory"]]} if idle else {})


@contextlib.contextmanager
def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    process, port = bench_tunnel.start_hub("compiled", "")
    try:
        count = scale.of(60_000, 20_000)
        yield {
            OPEN: functools.partial(measured_at, port, 10_000 - ACTIVE, count),
            FEW: functools.partial(measured_at, port, 0, count),
        }
    finally:
        process.terminate()
        process.communicate()


CASES: Sequence[Case] = (
    Case(
        "tunnel 10,000 open connections",
        "The tunnel's part of 10,000 open connections, and packets of 256 B on ten of them",
        open_case,
        [(OPEN, FEW)],
        rounds=(5, 3),
    ),
)

if __name__ == "__main__":
    print(json.dumps(uvloop.run(agents_end(*map(int, sys.argv[1:])))))
