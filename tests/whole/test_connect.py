"""CONNECT through hub and agent: responses, half-closes, drains, and many connections at once."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import random

import pytest

from agent import HubConfig
from agent.config.schema import TargetLimitsConfig
from agent.hub.hub import Hub
from agent.tunnel.features import FEATURES

from ..limits import scaled
from .whole_cluster import Cluster, RunningAgent, Whole
from .whole_connect import (
    NO_ROUTE,
    SWAP_TIMEOUT_S,
    SWAPS,
    ask,
    connecting,
    credentials,
    swap_as_client,
    swap_as_target,
    tcp_target,
)
from .whole_peers import until

pytestmark = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)


async def refused(whole: Whole, target: str, *fields: str) -> tuple[int, str]:
    """(the status, the head and the body) of a CONNECT that is refused. The connection closes."""
    head, reader, writer = await ask(whole, target, *fields)
    body = await reader.read()
    writer.close()
    assert "\r\nConnection: close\r\n" in head
    return int(head.split(" ")[1]), head + body.decode()


async def echo_upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    whole = await reader.read()
    writer.write(whole.upper())
    writer.write_eof()


async def test_a_200_has_no_framing_and_a_half_close_goes_both_ways(cluster: Cluster) -> None:
    async with tcp_target(echo_upper) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(scaled(20)):
            head, reader, writer = await ask(whole, f"127.0.0.1:{port}")
            assert head == "HTTP/1.1 200 Connection established\r\n\r\n"
            writer.write(b"once more")
            writer.write_eof()
            assert await reader.read() == b"ONCE MORE"
            writer.close()
            await until(lambda: whole.agent.agent.open_connections == 0)
            assert whole.agent.agent.upstreams.open_connections == 0


async def test_a_target_that_speaks_first_is_heard_whole(cluster: Cluster) -> None:
    banner = random.Random(1).randbytes(3_000_000)

    async def speaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        writer.write_eof()

    async with tcp_target(speaks) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(scaled(20)):
            for _ in range(20):
                head, reader, writer = await ask(whole, f"127.0.0.1:{port}")
                assert head.startswith("HTTP/1.1 200 ")
                assert hashlib.sha256(await reader.read()).digest() == hashlib.sha256(banner).digest()
                writer.close()


async def test_bytes_right_behind_the_head_are_the_target_s(cluster: Cluster) -> None:
    async with tcp_target(echo_upper) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(scaled(20)):
            reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
            head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\nTunnel-Cluster: {whole.cluster}\r\n\r\n"
            writer.write(head.encode() + b"GET / HTTP/1.1\r\n\r\n")
            writer.write_eof()
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.read() == b"GET / HTTP/1.1\r\n\r\n"
            writer.close()


async def test_bytes_behind_a_refused_connect_are_no_request(cluster: Cluster) -> None:
    async with connecting(cluster) as whole, asyncio.timeout(scaled(20)):
        reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
        head = f"CONNECT db:5432 HTTP/1.1\r\nHost: x\r\nTunnel-Cluster: {whole.cluster}\r\n\r\n"
        smuggled = f"GET /{whole.cluster}/ HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write((head + smuggled).encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_the_cluster_is_named_by_credentials_or_by_a_field(cluster: Cluster, version: str) -> None:
    async with tcp_target(echo_upper) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(scaled(20)):
            basic, field = f"Proxy-Authorization: {credentials(whole.cluster)}", f"Tunnel-Cluster: {whole.cluster}"
            for fields in ((basic,), (field,), (basic, field)):
                head, _, writer = await ask(whole, f"127.0.0.1:{port}", *fields, version=version)
                assert head.startswith("HTTP/1.1 200 "), fields
                writer.close()


async def test_a_connect_without_one_cluster_is_400_or_407(cluster: Cluster) -> None:
    async with connecting(cluster) as whole, asyncio.timeout(scaled(20)):
        basic = f"Proxy-Authorization: {credentials(whole.cluster)}"
        for fields, status in (
            (("X-Nothing: 1",), 407),
            (("Proxy-Authorization: Basic !!!",), 407),
            (("Proxy-Authorization: Bearer abc",), 407),
            ((f"Proxy-Authorization: {credentials('not a label')}",), 407),
            ((basic, "Tunnel-Cluster: other"), 400),
            (("Tunnel-Cluster: a", "Tunnel-Cluster: b"), 400),
            (("Tunnel-Cluster: Not-A-Label",), 400),
            (("Tunnel-Cluster: unknown",), 503),  # within a minute of the hub's start
            ((basic, "Content-Length: 3"), 400),
            ((basic, "Transfer-Encoding: chunked"), 400),
        ):
            found, text = await refused(whole, "db:5432", *fields)
            assert found == status, (fields, text)
            assert ("\r\nProxy-Authenticate: Basic realm=" in text) == (status == 407)
        for target in ("db", "db:", "db:0", "db:65536", "/db", "http://db:80/", "u@db:80", "[::1%25lo]:80", "[::1:80"):
            assert (await refused(whole, target, basic))[0] == 400, target


async def test_the_agent_refuses_what_no_entry_allows_and_names_the_entry(cluster: Cluster) -> None:
    async with connecting(cluster, "10.0.0.0/8:1-65535", "localhost:1-1000") as whole, asyncio.timeout(scaled(20)):
        for target, entry in (
            ("db.prod.svc:5432", "db.prod.svc:5432"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("169.254.169.254:80", "169.254.169.254:80"),
            ("localhost:80", ":80"),
        ):
            status, text = await refused(whole, target)
            assert status == 403, text
            assert entry in text
            assert "connect_allow" in text


async def test_failures_of_the_target_are_502_with_its_fault(cluster: Cluster, unused_port: int) -> None:
    entries = (f"127.0.0.1:{unused_port}", "no-such-name.invalid:80")
    async with connecting(cluster, *entries) as whole, asyncio.timeout(scaled(40)):
        status, text = await refused(whole, f"127.0.0.1:{unused_port}")
        assert status == 502
        assert "target" in text
        status, text = await refused(whole, "no-such-name.invalid:80")
        assert status == 502
        assert "resolve" in text


async def test_the_agent_s_own_health_address_is_never_dialled(cluster: Cluster, unused_port: int) -> None:
    entries = (f"127.0.0.0/8:{unused_port}", f"0.0.0.0:{unused_port}", f"localhost:{unused_port}")
    for address in (f"127.0.0.1:{unused_port}", f"0.0.0.0:{unused_port}"):
        async with connecting(cluster, *entries, health_address=address) as whole, asyncio.timeout(scaled(20)):
            for host in ("127.0.0.1", "0.0.0.0"):
                status, text = await refused(whole, f"{host}:{unused_port}")
                assert status == 403
                assert "health_address" in text


async def test_an_agent_without_the_feature_is_501(cluster: Cluster) -> None:
    async with cluster.hub() as whole, asyncio.timeout(scaled(20)):
        whole.agent_config |= {"routes": NO_ROUTE, "connect_allow": ("db:5432",)}
        agent = await whole.start_agent()
        await agent.stop()
        old = RunningAgent(**whole.agent_config)
        old.agent.tunnel_features = FEATURES - {"connect"}
        whole.agents.append(old)
        await old.wait_ready()
        status, text = await refused(whole, "db:5432")
        assert status == 501
        assert "agent" in text


async def test_a_reload_changes_what_is_allowed(cluster: Cluster) -> None:
    async with tcp_target(echo_upper) as port, connecting(cluster) as whole, asyncio.timeout(scaled(20)):
        assert (await refused(whole, f"127.0.0.1:{port}"))[0] == 403
        running = whole.agent.agent
        await running.reload(dataclasses.replace(running.config, connect_allow=(f"127.0.0.1:{port}",)))
        head, _, writer = await ask(whole, f"127.0.0.1:{port}")
        assert head.startswith("HTTP/1.1 200 ")
        await running.reload(dataclasses.replace(running.config, connect_allow=()))
        assert (await refused(whole, f"127.0.0.1:{port}"))[0] == 403
        writer.close()


async def test_a_silent_tunnel_closes_at_connect_idle_s_and_not_before(cluster: Cluster) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(10):
            writer.write(data)

    limits = TargetLimitsConfig(connect_idle_s=1.0)
    async with tcp_target(silent) as port, connecting(cluster, f"127.0.0.1:{port}", limits=limits) as whole:
        async with asyncio.timeout(scaled(20)):
            _, reader, writer = await ask(whole, f"127.0.0.1:{port}")
            for _ in range(4):
                writer.write(b"x")
                assert await reader.read(1) == b"x"
                await asyncio.sleep(0.5)
            assert await reader.read() == b""
            writer.close()


async def test_a_drain_of_the_agent_lets_an_open_tunnel_finish_and_refuses_new_ones(cluster: Cluster) -> None:
    async with tcp_target(echo_upper) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(scaled(20)):
            _, reader, writer = await ask(whole, f"127.0.0.1:{port}")
            writer.write(b"before, ")
            stopping = asyncio.ensure_future(whole.agent.stop())
            await until(lambda: not whole.agent.agent.ready)
            await until(lambda: all(tunnel.opens_no_more for tunnel in whole.agent.agent.managers))
            assert (await refused(whole, f"127.0.0.1:{port}"))[0] == 503
            writer.write(b"and behind")
            writer.write_eof()
            assert await reader.read() == b"BEFORE, AND BEHIND"
            writer.close()
            await stopping


async def test_a_drain_of_the_hub_lets_an_open_tunnel_finish_and_refuses_new_ones(mode: str, hub_kind: str) -> None:
    ports: dict[str, int] = {}
    config = HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0", drain_grace_s=10.0)
    hub = Hub(config, on_listening=lambda kind, _, port: ports.update({kind: port}))
    task = asyncio.ensure_future(hub.run())
    await until(lambda: len(ports) == 2)
    async with tcp_target(echo_upper) as port, asyncio.timeout(scaled(30)):
        agent = RunningAgent(
            hub_address=f"127.0.0.1:{ports['grpc']}",
            cluster_name="c1",
            insecure=True,
            use_memory_comm=mode == "memory",
            connect_allow=f"127.0.0.1:{port}",
        )
        await agent.wait_ready()
        head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\nTunnel-Cluster: c1\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", ports["http"])
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", ports["http"])
        late_writer.write(head[:20])
        writer.write(head + b"before, ")
        await reader.readuntil(b"\r\n\r\n")
        task.cancel()
        await until(lambda: hub.proxy is not None and hub.proxy.draining)
        late_writer.write(head[20:])
        assert (await late_reader.read()).startswith(b"HTTP/1.1 503 ")
        writer.write(b"and behind")
        writer.write_eof()
        assert await reader.read() == b"BEFORE, AND BEHIND"
        writer.close()
        late_writer.close()
        await asyncio.wait([task])
        await agent.stop()


async def test_a_cut_tunnel_is_a_reset_and_never_looks_like_an_end(cluster: Cluster) -> None:
    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()

    async with tcp_target(hold) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(scaled(20)):
            _, reader, writer = await ask(whole, f"127.0.0.1:{port}")
            assert await reader.readexactly(1) == b"x"
            whole.agent.task.cancel()
            await until(lambda: not whole.agent.agent.ready)
            whole.agent.task.cancel()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()


@pytest.mark.timeout(SWAP_TIMEOUT_S + 20)
async def test_many_connections_carry_every_byte_both_ways_at_once(cluster: Cluster) -> None:
    async def one(whole: Whole, port: int, seed: int) -> None:
        head, reader, writer = await ask(whole, f"127.0.0.1:{port}")
        assert head.startswith("HTTP/1.1 200 ")
        await swap_as_client(reader, writer, seed)

    async with tcp_target(swap_as_target) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(SWAP_TIMEOUT_S):
            await asyncio.gather(*(one(whole, port, seed) for seed in range(SWAPS)))
            await until(lambda: whole.agent.agent.open_connections == 0)
            assert whole.agent.agent.upstreams.open_connections == 0
