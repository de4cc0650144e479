"""The hub's listeners for CONNECT: fixed ports and CONNECT ports, by TCP, TLS and Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import os
import pathlib
import random
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import trustme

from agent import HubConfig
from agent.config.schema import LimitsConfig
from agent.errors import ListenError
from agent.hub.hub import Hub

from ..limits import scaled
from .whole_cluster import RunningAgent
from .whole_connect import Serve, credentials, tcp_target
from .whole_peers import until


@dataclasses.dataclass
class Listening:
    """A hub with listeners, and its agent. ports: of the listeners, in their order."""

    hub: Hub
    task: asyncio.Task[None]
    ports: list[int]
    http_port: int
    agents: list[RunningAgent]

    @property
    def agent(self) -> RunningAgent:
        return self.agents[0]


@contextlib.asynccontextmanager
async def listening(
    mode: str, listeners: Sequence[Any], allow: Sequence[str] = (), **config: Any
) -> AsyncIterator[Listening]:
    ports: dict[str, int] = {}
    found: list[int] = []

    def on_listening(kind: str, _host: str, port: int) -> None:
        ports[kind] = port
        if kind == "listener":
            found.append(port)

    defaults: dict[str, Any] = {"grpc_address": "127.0.0.1:0", "http_address": "127.0.0.1:0", "drain_grace_s": 5.0}
    hub = Hub(HubConfig(**defaults | config, listeners=listeners), on_listening=on_listening)
    task = asyncio.ensure_future(hub.run())
    await until(lambda: task.done() or len(found) == len(listeners))
    if task.done():
        task.result()
    agent = RunningAgent(
        hub_address=f"127.0.0.1:{ports['grpc']}",
        cluster_name="c1",
        insecure=True,
        use_memory_comm=mode == "memory",
        routes=() if allow else ("/=http://127.0.0.1:9",),
        connect_allow=tuple(allow),
    )
    try:
        await agent.wait_ready()
        async with asyncio.timeout(scaled(60)):
            yield Listening(hub, task, found, ports["http"], [agent])
    finally:
        if not agent.task.done():
            await agent.stop()
        task.cancel()
        await asyncio.wait([task])
        assert hub.proxy is not None
        assert hub.proxy.open_connections == 0
        assert hub.proxy.requests_in_flight == 0
        if not task.cancelled():
            task.result()


@contextlib.asynccontextmanager
async def fixed_port(mode: str, serve: Serve, **config: Any) -> AsyncIterator[Listening]:
    """A listener for one target, whose connections `serve` handles."""
    async with tcp_target(serve) as port:
        target = f"127.0.0.1:{port}"
        async with listening(mode, [f"127.0.0.1:0=c1/{target}"], [target], **config) as running:
            yield running


async def echo_upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    writer.write_eof()


async def exchange(opened: tuple[asyncio.StreamReader, asyncio.StreamWriter], data: bytes) -> bytes:
    reader, writer = opened
    writer.write(data)
    writer.write_eof()
    received = await reader.read()
    writer.close()
    return received


async def is_reset(port: int, data: bytes = b"", tls: ssl.SSLContext | None = None) -> bool:
    """Whether a fixed port resets a connection without a byte. An orderly end would look like an empty response."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    except ConnectionError:
        return True
    try:
        writer.write(data)
        assert await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.transport.abort()
    return False


async def test_a_fixed_port_carries_bytes_and_both_half_closes(mode: str) -> None:
    async with fixed_port(mode, echo_upper) as running:
        for data in (b"", b"once more", b"GET / HTTP/1.1\r\n\r\n", random.Random(1).randbytes(1_000_000).lower()):
            opened = await asyncio.open_connection("127.0.0.1", running.ports[0])
            assert await exchange(opened, data) == data.upper()
        agent = running.agent.agent
        await until(lambda: agent.open_connections == 0)
        assert agent.upstreams.open_connections == 0


async def test_a_target_that_speaks_first_needs_no_byte_of_the_client(mode: str) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 ready\r\n")
        writer.write(await reader.readline())

    async with fixed_port(mode, greet) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports[0])
        assert await reader.readline() == b"220 ready\r\n"
        writer.write(b"QUIT\r\n")
        assert await reader.read() == b"QUIT\r\n"
        writer.close()


async def test_a_refusal_is_a_reset_and_one_line_that_names_the_rule(
    mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    listeners = ["127.0.0.1:0=c1/db.prod.svc:5432", "127.0.0.1:0=none/db:1", "127.0.0.1:0=c1/no-such.invalid:80"]
    async with listening(mode, listeners, ["no-such.invalid:80"]) as running:
        for port, fault, reason in zip(
            running.ports, ("client", "agent", "target"), ("db.prod.svc:5432", "no agent", "resolve"), strict=True
        ):
            caplog.clear()
            assert await is_reset(port, b"hello")
            lines = [each for each in caplog.records if vars(each).get("listener")]
            assert len(lines) == 1, [vars(each) for each in lines]
            found = vars(lines[0])
            assert found["fault"] == fault, found
            assert reason in f"{lines[0].getMessage()} {found.get('reason', '')}", found
        ports = running.hub.connect_ports
        assert ports is not None
        assert [each.refused["connect"] for each in ports.ports] == [1, 1, 1]


async def test_a_target_that_resets_is_a_reset_and_not_an_end(mode: str) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with fixed_port(mode, cut) as running:
        assert await is_reset(running.ports[0], b"x")


async def test_a_lost_agent_resets_the_clients(mode: str) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()

    async with fixed_port(mode, hold) as running:
        opened = [await asyncio.open_connection("127.0.0.1", running.ports[0]) for _ in range(10)]
        for reader, _ in opened:
            assert await reader.readexactly(1) == b"x"
        running.agent.task.cancel()
        await until(lambda: not running.agent.agent.ready)
        running.agent.task.cancel()
        for reader, writer in opened:
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()


async def test_a_connect_listener_needs_no_cluster_and_serves_nothing_else(mode: str) -> None:
    async def ask(port: int, head: str) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        return (await reader.readuntil(b"\r\n\r\n")).decode(), reader, writer

    async with tcp_target(echo_upper) as target:
        listeners = ["127.0.0.1:0=c1"]
        async with listening(mode, listeners, [f"127.0.0.1:{target}"]) as running:
            connect = f"CONNECT 127.0.0.1:{target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            head, reader, writer = await ask(running.ports[0], f"{connect}\r\n")
            assert head == "HTTP/1.1 200 Connection established\r\n\r\n"
            assert await exchange((reader, writer), b"hello") == b"HELLO"
            for fields, status in (
                (f"Proxy-Authorization: {credentials('c1')}\r\n", 200),
                (f"Proxy-Authorization: {credentials('c2')}\r\n", 400),
                ("Tunnel-Cluster: c2\r\n", 400),
                ("Proxy-Authorization: Bearer x\r\n", 407),
            ):
                head, _, writer = await ask(running.ports[0], f"{connect}{fields}\r\n")
                assert head.startswith(f"HTTP/1.1 {status} "), (fields, head)
                writer.close()
            for request in ("GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n", "POST / HTTP/1.1\r\nHost: c1.x\r\n\r\n"):
                head, _, writer = await ask(running.ports[0], request)
                assert head.startswith("HTTP/1.1 404 ")
                writer.close()


async def test_a_unix_socket_is_for_its_owner_and_replaces_a_dead_one(mode: str, tmp_path: pathlib.Path) -> None:
    fixed, connect = str(tmp_path / "fixed"), str(tmp_path / "connect")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(fixed)
    async with tcp_target(echo_upper) as target:
        listeners = [f"unix:{fixed}=c1/127.0.0.1:{target}", f"unix:{connect}=c1"]
        async with listening(mode, listeners, [f"127.0.0.1:{target}"]) as running:
            assert running.ports == [0, 0]
            for path in (fixed, connect):
                assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert await exchange(await asyncio.open_unix_connection(fixed), b"hello") == b"HELLO"
            reader, writer = await asyncio.open_unix_connection(connect)
            writer.write(f"CONNECT 127.0.0.1:{target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            assert await exchange((reader, writer), b"hello") == b"HELLO"
            with pytest.raises(ListenError, match="in use"):
                async with listening(mode, listeners):
                    pass
        assert os.listdir(tmp_path) == []
        (tmp_path / "fixed").write_text("a file of somebody")
        with pytest.raises(ListenError, match="in use"):
            async with listening(mode, listeners):
                pass
        assert (tmp_path / "fixed").read_text() == "a file of somebody"
        assert os.listdir(tmp_path) == ["fixed"]


class Certificates:
    """A listener's certificate, and clients' of the CA that it asks for, and of another."""

    def __init__(self, folder: pathlib.Path) -> None:
        ours, theirs = trustme.CA(), trustme.CA()
        self.ca, self.server = str(folder / "ca.pem"), str(folder / "server.pem")
        ours.cert_pem.write_to_path(self.ca)
        ours.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.server)
        self.client, self.stranger = str(folder / "client.pem"), str(folder / "stranger.pem")
        ours.issue_cert("a@ours.test").private_key_and_cert_chain_pem.write_to_path(self.client)
        theirs.issue_cert("e@theirs.test").private_key_and_cert_chain_pem.write_to_path(self.stranger)

    def context(self, shown: str = "") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        if shown:
            context.load_cert_chain(shown)
        return context


async def test_tls_with_client_certificates_on_both_kinds_of_listener(
    mode: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    certificates = Certificates(tmp_path)

    async def until_newline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())

    async with tcp_target(until_newline) as target:
        tls = {"cert_file": certificates.server, "client_ca_file": certificates.ca}
        fixed = {"address": "127.0.0.1:0", "cluster": "c1", "target": f"127.0.0.1:{target}", **tls}
        connect = {"address": "127.0.0.1:0", "cluster": "c1", **tls}
        anyone = {**fixed, "allow_any_user": True}
        async with listening(mode, [fixed, connect, anyone], [f"127.0.0.1:{target}"]) as running:
            for port, shown in (
                (running.ports[0], certificates.client),
                (running.ports[2], certificates.client),
                (running.ports[2], ""),
            ):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=certificates.context(shown))
                writer.write(b"hello\n")
                assert await reader.read() == b"HELLO\n"
                writer.close()
            caplog.clear()
            for shown in ("", certificates.stranger):
                with contextlib.suppress(ssl.SSLError):  # or an end, since TLS has its own alert
                    await is_reset(running.ports[0], b"hello\n", certificates.context(shown))
            assert await is_reset(running.ports[0], b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: len([each for each in caplog.records if vars(each).get("listener")]) == 3)
            request = f"CONNECT 127.0.0.1:{target} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
            for shown, status in ((certificates.client, b"200"), ("", b"400")):
                context = certificates.context(shown)
                reader, writer = await asyncio.open_connection("127.0.0.1", running.ports[1], ssl=context)
                writer.write(request)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
                writer.close()


async def test_all_ports_share_the_limit_of_clients(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()

    caplog.set_level(logging.INFO)
    async with tcp_target(hold) as target:
        listeners = [f"127.0.0.1:0=c1/127.0.0.1:{target}", f"127.0.0.1:0=c1/127.0.0.1:{target}"]
        async with listening(mode, listeners, [f"127.0.0.1:{target}"], max_clients=3) as running:
            opened = [await asyncio.open_connection("127.0.0.1", running.ports[n % 2]) for n in range(3)]
            for reader, _ in opened:
                assert await reader.readexactly(1) == b"x"
            assert await is_reset(running.ports[0])
            (line,) = [each for each in caplog.records if each.getMessage() == "too many connections"]
            assert vars(line)["limit"] == "max_clients"
            reader, writer = await asyncio.open_connection("127.0.0.1", running.http_port)
            writer.write(b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
            for _, each in [*opened, (reader, writer)]:
                each.close()
            proxy = running.hub.proxy
            assert proxy is not None
            await until(lambda: proxy.open_connections == 0)


async def test_a_drain_closes_the_listener_first_and_lets_a_tunnel_finish(mode: str) -> None:
    async with fixed_port(mode, echo_upper) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports[0])
        writer.write(b"before, ")
        proxy = running.hub.proxy
        assert proxy is not None
        await until(lambda: proxy.requests_in_flight == 1)
        await until(lambda: running.agent.agent.upstreams.open_connections == 1)
        running.task.cancel()
        await until(lambda: proxy.draining)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", running.ports[0])
        assert await exchange((reader, writer), b"and behind") == b"BEFORE, AND BEHIND"


async def test_a_silent_connection_closes_at_connect_idle_s(mode: str) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()

    async with fixed_port(mode, hold, limits=LimitsConfig(connect_idle_s=0.3)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports[0])
        assert await reader.readexactly(1) == b"x"
        assert await reader.read() == b""
        writer.close()


async def test_a_client_that_takes_nothing_pauses_its_target(mode: str) -> None:
    sent_bytes = 0
    whole = 64 * 1024 * 1024

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        while sent_bytes < whole:
            writer.write(bytes(65536))
            await writer.drain()
            sent_bytes += 65536

    async with fixed_port(mode, pour) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports[0])
        await until(lambda: sent_bytes > 0)
        before = -1
        while before != sent_bytes:
            before = sent_bytes
            await asyncio.sleep(0.2)
        assert sent_bytes < whole // 2
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
        assert received == whole
        writer.close()


async def test_bytes_before_the_tunnel_is_open_are_bounded_and_arrive_whole(mode: str) -> None:
    data = random.Random(7).randbytes(4_000_000)

    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest())

    async with fixed_port(mode, digest) as running:
        for _ in range(5):
            opened = await asyncio.open_connection("127.0.0.1", running.ports[0])
            assert await exchange(opened, data) == hashlib.sha256(data).digest()


async def test_a_client_that_leaves_before_the_tunnel_is_open_leaves_nothing(mode: str) -> None:
    async with fixed_port(mode, echo_upper) as running:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", running.ports[0])) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        proxy, agent = running.hub.proxy, running.agent.agent
        assert proxy is not None
        ports = running.hub.connect_ports
        assert ports is not None
        await until(lambda: ports.ports[0].port.opened_connections == 20)
        await until(lambda: proxy.open_connections == 0)
        await until(lambda: agent.open_connections == 0 and agent.upstreams.open_connections == 0)
