"""Users who close behind their request: hub, tunnel, agent and target notice, over both carriers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agent import LimitsConfig

from ..limits import scaled
from .whole_cluster import RunningAgent, running_hub
from .whole_peers import until

HALF_CLOSED_S = 0.5
MANY = 150


class Silent:
    """A target that responds to `/good/…` and `/stream` only. open: connections that wait for it."""

    def __init__(self) -> None:
        self.open = self.asked = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/good" in head:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
                    continue
                if b"/stream" in head:
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    for number in range(12):
                        await asyncio.sleep(HALF_CLOSED_S / 5)
                        writer.write(b"9\r\ndata: %x\n\n\r\n" % number)
                    writer.write(b"0\r\n\r\n")
                    continue
                self.asked += 1
                self.open += 1
                try:
                    await reader.read()
                finally:
                    self.open -= 1
                break
        writer.transport.abort()


@contextlib.asynccontextmanager
async def running(mode: str, **hub: object) -> AsyncIterator[tuple[Silent, int, RunningAgent]]:
    """(the target, the hub's port, the agent). `/c1/…` leads to the target."""
    target = Silent()
    server = await asyncio.start_server(target.serve, "127.0.0.1", 0, backlog=1024)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    config = {"limits": LimitsConfig(half_closed_s=HALF_CLOSED_S)} | hub
    async with running_hub(**config) as (grpc_port, http_port):
        agent = RunningAgent(
            hub_address=f"127.0.0.1:{grpc_port}",
            cluster_name="c1",
            insecure=True,
            routes=(f"/={url}",),
            use_memory_comm=mode == "memory",
            drain_grace_s=2.0,
        )
        try:
            await agent.wait_ready()
            yield target, http_port, agent
        finally:
            await agent.stop()
            server.close()


async def ask(port: int, path: str, *, then_leave: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /c1%b HTTP/1.1\r\nHost: hub\r\n\r\n" % path.encode())
    if then_leave:
        writer.write_eof()
    return reader, writer


async def test_everybody_on_the_way_hears_of_a_client_that_left(mode: str) -> None:
    async with running(mode) as (target, port, agent):
        reader, writer = await ask(port, "/silent", then_leave=False)
        await until(lambda: target.open == 1)
        writer.close()
        await until(lambda: target.open == 0)
        await until(lambda: agent.agent.proxy.requests_in_flight == 0)
        await until(lambda: all(not manager.open_connections for manager in agent.agent.managers.values()))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_a_crowd_of_leavers_makes_room_again(mode: str) -> None:
    async with running(mode, max_clients=MANY) as (target, port, _), contextlib.AsyncExitStack() as stack:
        for _ in range(MANY):
            _, writer = await ask(port, "/silent")
            stack.callback(writer.close)
        await until(lambda: target.asked > 0, timeout_s=60)

        async def status() -> bytes:
            reader, writer = await ask(port, "/good", then_leave=False)
            line = await reader.readline()
            writer.close()
            return line

        async with asyncio.timeout(scaled(60)):
            while (line := await status()) != b"HTTP/1.1 200 OK\r\n":
                assert line == b"HTTP/1.1 503 Service Unavailable\r\n"
        await until(lambda: target.open == 0, timeout_s=60)


async def test_events_reach_a_half_closed_client_to_the_last(mode: str) -> None:
    async with running(mode) as (_, port, _):
        reader, writer = await ask(port, "/stream")
        answer = await reader.read()
        assert answer.count(b"data: ") == 12
        assert answer.endswith(b"0\r\n\r\n")
        writer.close()
        await writer.wait_closed()
