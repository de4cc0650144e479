"""The extensions, end to end: our hub, our agent, real clients and targets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pathlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import agent.hub.session
from agent import HubConfig
from agent.hub.hub import Hub
from agent.hub.session import AgentSession

from ..limits import scaled
from .whole_cluster import RunningAgent
from .whole_peers import START_TIMEOUT_S, running_origin, until

NONE: frozenset[str] = frozenset()


class Line:
    """Our hub with one agent of cluster c1, in this process."""

    def __init__(self, hub: Hub, agent: RunningAgent, http_port: int, config: dict[str, Any], task: Any) -> None:
        self.hub = hub
        self.task = task
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
        "hub_address": f"127.0.0.1:{ports['grpc']}",
        "cluster_name": "c1",
        "insecure": True,
        "use_memory_comm": mode == "memory",
        "drain_grace_s": 5.0,
        "routes": (f"/={target_url}",),
    } | config
    running = RunningAgent(**config)
    try:
        await running.wait_ready()
        yield Line(hub, running, ports["http"], config, task)
    finally:
        if not running.task.done():
            await running.stop()
        task.cancel()
        await asyncio.wait([task], timeout=15)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def target(serve: Serve) -> AsyncIterator[str]:
    """URL of a target whose connections `serve` handles, one call each."""

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

    async with target(count) as url, line(url, mode) as found, asyncio.timeout(scaled(20)):
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

    async with target(ends_first) as url, line(url, mode) as found, asyncio.timeout(scaled(20)):
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

    async with target(never_answers) as url, line(url, mode) as found, asyncio.timeout(scaled(5)):
        _, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"GET /c1/x HTTP/1.1\r\nHost: hub\r\n\r\n")
        await arrived.wait()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()  # by a reset: after a mere end of stream a client may still be listening
        await gone.wait()
        await until(lambda: found.agent.agent.open_connections == 0)


async def test_pooled_connections_that_the_agent_ends_are_gone_from_the_hub_at_once(mode: str) -> None:
    async with running_origin() as origin, line(origin.url, mode) as found, asyncio.timeout(scaled(20)):
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
        running_origin() as origin,
        line(origin.url, mode, hub_features=features) as found,
        asyncio.timeout(scaled(20)),
    ):
        assert ("close" in found.session.tunnel.features) is closes
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"GET /c1/hold HTTP/1.1\r\nHost: hub\r\n\r\n")
        await origin.arrived.acquire()
        tunnel = found.session.tunnel
        before = tunnel.packets_sent
        if closes:
            await asyncio.sleep(0.2)
            assert tunnel.packets_sent <= before + 2
        else:
            await until(lambda: tunnel.packets_sent > before + 2)
        origin.go_on.release()
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()


# ---------------------------------------------------------------- window


MIB = 2**20
BLOCK = random.Random(7).randbytes(MIB)


def resident_bytes() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


linux = pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="memory is read from /proc")


@linux
@pytest.mark.loops("uvloop")
async def test_a_large_upload_to_a_slow_target_arrives_whole_and_waits_nowhere(mode: str) -> None:
    blocks = 200
    seen = hashlib.sha256()
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        began.set()
        await go_on.wait()
        left = blocks * MIB
        while left:
            data = await reader.read(65536)
            seen.update(data)
            left -= len(data)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with target(slow) as url, line(url, mode) as found, asyncio.timeout(scaled(60)):
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"PUT /c1/x HTTP/1.1\r\nHost: hub\r\nContent-Length: %d\r\n\r\n" % (blocks * MIB))
        expected, peak_bytes, before_bytes = hashlib.sha256(), 0, resident_bytes()

        async def upload() -> None:
            nonlocal peak_bytes
            for _ in range(blocks):
                writer.write(BLOCK)
                expected.update(BLOCK)
                await writer.drain()
                peak_bytes = max(peak_bytes, resident_bytes())

        uploading = asyncio.ensure_future(upload())
        await began.wait()
        await asyncio.sleep(0.3)  # while nobody reads, the upload must stall
        assert not uploading.done()
        assert await other_answers(found)
        go_on.set()
        await uploading
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert seen.digest() == expected.digest()
        assert found.agent.agent.counters.failed_inbound == 0
        assert peak_bytes - before_bytes < 64 * MIB


async def other_answers(found: Line) -> bool:
    """Whether a request without a target gets its response at once: 421 for another cluster's path."""
    async with asyncio.timeout(3):
        opened = asyncio.get_running_loop().create_future()

        class Client(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport
                transport.write(b"GET /other/x HTTP/1.1\r\nHost: hub\r\n\r\n")

            def data_received(self, data: bytes) -> None:
                if not opened.done():
                    opened.set_result(data)
                self.transport.close()

        await found.session.connect(Client())
        return bool((await opened).startswith(b"HTTP/1.1 421 "))


@linux
@pytest.mark.loops("uvloop")
async def test_twenty_stalled_readers_hold_up_nobody_and_lose_nothing(mode: str) -> None:
    readers, blocks = 20, 8

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/small" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsmall")
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (blocks * MIB))
            for _ in range(blocks):
                writer.write(BLOCK)
                await writer.drain()

    async with target(endless) as url, line(url, mode) as found, asyncio.timeout(scaled(60)):
        before_bytes = resident_bytes()
        clients = []
        for _ in range(readers):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", found.http_port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=65536)
            writer.write(b"GET /c1/big HTTP/1.1\r\nHost: hub\r\n\r\n")
            clients.append((reader, writer))
        await until(lambda: sum(each.inbound.held_bytes > 0 for each in found.session._connections.values()) == readers)
        small_reader, small_writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        for _ in range(50):
            async with asyncio.timeout(2):
                small_writer.write(b"GET /c1/small HTTP/1.1\r\nHost: hub\r\n\r\n")
                assert (await small_reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                assert await small_reader.readexactly(5) == b"small"
        small_writer.close()
        assert not found.session._behind
        assert resident_bytes() - before_bytes < 96 * MIB
        for reader, writer in clients:
            await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(blocks * MIB)
            assert hashlib.sha256(body).digest() == hashlib.sha256(BLOCK * blocks).digest()
            writer.close()
        await until(lambda: found.session.open_connections <= 1 + readers)


async def test_a_base_agent_s_slow_client_is_given_up_before_the_agent_gives_up_the_hub() -> None:
    assert agent.hub.session.BEHIND_TIMEOUT_S < 5.0


async def test_a_hub_that_sends_beyond_its_credit_loses_that_connection(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_origin() as origin, line(origin.url, mode) as found, asyncio.timeout(scaled(20)):
        found.session.tunnel.send(99, 0, bytes(256 * 1024 + 1))
        reason = "window: DATA beyond the connection's credit"
        await until(lambda: [each for each in caplog.records if getattr(each, "reason", "") == reason])
        await until(lambda: found.agent.agent.open_connections == 0)
        assert await other_answers(found)
        await until(lambda: found.agent.agent.windows.granted_bytes <= 256 * 1024)


async def test_an_agent_that_sends_beyond_its_credit_loses_that_connection(mode: str) -> None:
    async with running_origin() as origin, line(origin.url, mode) as found, asyncio.timeout(scaled(20)):
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"GET /c1/hold HTTP/1.1\r\nHost: hub\r\n\r\n")
        await origin.arrived.acquire()
        tunnel = next(iter(found.agent.agent.managers))
        tunnel.send(1, 0, b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + bytes(256 * 1024))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 502 ")
        await until(lambda: found.agent.agent.open_connections == 0)
        origin.go_on.release()
        writer.close()
        assert await other_answers(found)


class Reader(asyncio.Protocol):
    """Reads nothing until the test starts it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()


@pytest.mark.parametrize("code", [1, 3], ids=["error", "close"])
async def test_what_an_agent_sends_behind_its_end_never_reaches_a_client(mode: str, code: int) -> None:
    async with running_origin() as origin, line(origin.url, mode) as found, asyncio.timeout(scaled(20)):
        reader = Reader()
        transport = await found.session.connect(reader)
        [conn_id] = found.session._connections
        tunnel = next(iter(found.agent.agent.managers))
        body = bytes(range(256)) * 1024
        for start in range(0, len(body), 65536):  # more than the pipe takes, so the hub holds the rest
            tunnel.send(conn_id, 0, body[start : start + 65536])
        tunnel.send(conn_id, code, b"", "over" if code == 1 else "")
        tunnel.send(conn_id, 0, b"late")
        seen = tunnel.packets_received
        tunnel.send(-1, 0)
        await until(lambda: tunnel.packets_received > seen)  # the hub has them all
        transport.resume_reading()
        if code == 1:
            await reader.ended.wait()
        await until(lambda: len(reader.received) >= len(body))
        assert reader.received == body
        transport.abort()
        await reader.ended.wait()
        assert await other_answers(found)


@pytest.mark.parametrize("features", [None, NONE], ids=["extended", "base"])
async def test_expect_is_the_target_s_to_answer_but_a_base_agent_s_hub_answers_itself(mode: str, features: Any) -> None:
    heads: list[bytes] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if features is not None:
            await reader.readexactly(5)
        writer.write(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with target(refuse) as url, line(url, mode, hub_features=features) as found, asyncio.timeout(scaled(20)):
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"POST /c1/x HTTP/1.1\r\nHost: hub\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        status = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        if features is None:
            assert status == b"417"  # and not a byte of the body has been sent
        else:
            assert status == b"100"
            writer.write(b"hello")
            assert (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1] == b"417"
        assert (b"\r\nexpect: 100-continue\r\n" in heads[0].lower()) is (features is None)
        writer.close()
        await writer.wait_closed()


DOCKER = (
    b"POST /c1/./exec/0123/start HTTP/1.1\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"
    b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n{}"
)


@pytest.mark.parametrize("later", [False, True], ids=["with the head", "later"])
async def test_docker_exec_works_through_hub_and_agent(mode: str, later: bool) -> None:
    """A body first, then the 101 as dockerd sends it, then raw bytes both ways. The path loses a plain `.` segment."""
    heads: list[bytes] = []

    async def dockerd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        assert await reader.readexactly(2) == b"{}"
        writer.write(
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\n"
            b"Upgrade: tcp\r\n\r\n$ "
        )
        while data := await reader.read(65536):
            writer.write(data.upper())
        writer.write(b"exit")

    async with target(dockerd) as url, line(url, mode) as found, asyncio.timeout(scaled(30)):
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(DOCKER if later else DOCKER + b"ls\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nUpgrade: tcp\r\n" in head
        if later:
            writer.write(b"ls\n")
        assert await reader.readexactly(5) == b"$ LS\n"
        writer.write(bytes(1_000_000))
        writer.write_eof()
        assert await reader.read() == bytes(1_000_000) + b"exit"
        writer.close()
        assert heads[0].startswith(b"POST /exec/0123/start HTTP/1.1\r\n")
        assert b"\r\nUpgrade: tcp\r\n" in heads[0]
        await until(lambda: found.session.open_connections == 0)


async def test_a_targets_malformed_head_is_told_by_rule_through_the_hub(mode: str) -> None:
    async def lines_without_cr(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nOK")
        await reader.read()

    async with target(lines_without_cr) as url, line(url, mode) as found, asyncio.timeout(scaled(30)):
        reader, writer = await asyncio.open_connection("127.0.0.1", found.http_port)
        writer.write(b"GET /c1/ HTTP/1.1\r\nHost: hub\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 502 ")
        assert await reader.readline() == b"the target sent a malformed response head: a line ends without CR\n"
        writer.close()
