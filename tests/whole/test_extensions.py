"""The extensions, end to end: our hub, our agent, real clients and targets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from whole_peers import START_TIMEOUT_S, running_origin, until
from whole_rig import RunningAgent

import agent.hub.session
from agent import HubConfig
from agent.hub.hub import Hub
from agent.hub.session import AgentSession

NONE: frozenset[str] = frozenset()


class Line:
    """Our hub with one agent of cluster c1, in this process."""

    def __init__(self, hub: Hub, agent: RunningAgent, http_port: int, config: dict[str, Any]) -> None:
        self.hub = hub
        self.agent = agent
        self.http_port = http_port
        self.config = config

    @property
    def session(self) -> AgentSession:
        return self.hub._sessions["c1"][-1]


@contextlib.asynccontextmanager
async def line(
    target_url: str, mode: str, *, hub_features: frozenset[str] | None = None, **config: Any
) -> AsyncIterator[Line]:
    ports: dict[str, int] = {}
    hub = Hub(
        HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0", drain_grace_s=2.0),
        on_listening=lambda kind, _, port: ports.update({kind: port}),
    )
    if hub_features is not None:
        hub.tunnel_features = hub_features
    task = asyncio.ensure_future(hub.run())
    await until(lambda: len(ports) == 2, timeout_s=START_TIMEOUT_S)
    config = {
        "hub_address": f"127.0.0.1:{ports['grpc']}", "cluster_name": "c1", "insecure": True,
        "use_memory_comm": mode == "memory", "drain_grace_s": 5.0, "routes": (f"/={target_url}",),
    } | config  # fmt: skip
    running = RunningAgent(**config)
    try:
        await running.wait_ready()
        yield Line(hub, running, ports["http"], config)
    finally:
        if not running.task.done():
            await running.stop()
        task.cancel()
        await asyncio.wait([task], timeout=15)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def target(serve: Serve) -> AsyncIterator[str]:
    """URL of a target that `serve` answers for, connection by connection."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


UPGRADE = b"GET /c1/x HTTP/1.1\r\nHost: hub\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"


async def upgraded(http_port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(UPGRADE)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    return reader, writer


async def test_a_client_s_half_close_reaches_its_target_and_the_answer_its_client(mode: str) -> None:
    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHING)
        whole = await reader.read()
        writer.write(b"%d bytes, and then the end" % len(whole))

    async with target(count) as url, line(url, mode) as found, asyncio.timeout(20):
        reader, writer = await upgraded(found.http_port)
        writer.write(bytes(3_000_000))
        writer.write_eof()
        assert await reader.read() == b"3000000 bytes, and then the end"
        writer.close()
        await until(lambda: found.session.open_connections == 0)
        await until(lambda: found.agent.agent.open_connections == 0)
        assert found.session.tunnel.open_outbounds == 0


async def test_a_target_s_half_close_reaches_its_client_which_may_go_on(mode: str) -> None:
    heard: list[bytes] = []

    async def ends_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCHING + b"all I have to say")
        writer.write_eof()
        heard.append(await reader.read())

    async with target(ends_first) as url, line(url, mode) as found, asyncio.timeout(20):
        reader, writer = await upgraded(found.http_port)
        assert await reader.read() == b"all I have to say"
        writer.write(bytes(1_000_000))
        writer.write_eof()
        await until(lambda: heard)
        assert len(heard[0]) == 1_000_000
        writer.close()
        await until(lambda: found.session.open_connections == 0)
        await until(lambda: found.agent.agent.open_connections == 0)


async def test_the_target_hears_at_once_that_a_client_has_gone(mode: str) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            arrived.set()
            await reader.read()
        finally:
            gone.set()

    async with target(never_answers) as url, line(url, mode) as found, asyncio.timeout(5):
        _, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"GET /c1/x HTTP/1.1\r\nHost: hub\r\n\r\n")
        await arrived.wait()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()  # by a reset: after a mere end of stream a client may still be listening
        await gone.wait()
        await until(lambda: found.agent.agent.open_connections == 0)


async def test_pooled_connections_that_the_agent_ends_are_gone_from_the_hub_at_once(mode: str) -> None:
    async with running_origin() as origin, line(origin.url, mode) as found, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"GET /c1/x HTTP/1.1\r\nHost: hub\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: found.agent.agent.proxy.requests_in_flight == 0)
        assert found.session.open_connections == 1
        found.agent.agent.proxy.start_draining()
        await until(lambda: found.session.open_connections == 0, timeout_s=2)
        writer.close()


@pytest.mark.parametrize("closes", [True, False])
async def test_connections_are_probed_only_without_close(
    mode: str, closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.hub.session, "PROBE_INTERVAL_S", 0.02)
    features = None if closes else NONE
    async with (
        running_origin() as origin, line(origin.url, mode, hub_features=features) as found, asyncio.timeout(20),
    ):
        assert ("close" in found.session.tunnel.features) is closes
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"GET /c1/hold HTTP/1.1\r\nHost: hub\r\n\r\n")
        await origin.arrived.acquire()
        before = found.session.tunnel.packets_sent
        await asyncio.sleep(0.2)
        assert (found.session.tunnel.packets_sent > before + 2) is not closes
        origin.go_on.release()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
