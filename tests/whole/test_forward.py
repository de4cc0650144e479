"""`fastpipe-agent forward` through hub and agent: local ports and standard streams."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import pathlib
import random
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trustme

from agent.forward import joining
from agent.forward.http1 import dial

from ..limits import scaled
from .whole_cluster import Cluster, RunningAgent, Whole, running_hub
from .whole_connect import (
    SWAP_TIMEOUT_S,
    SWAPS,
    connecting,
    forwarding,
    swap_as_client,
    swap_as_target,
    tcp_target,
)
from .whole_peers import free_port, until

PIPE = asyncio.subprocess.PIPE

pytestmark = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)


def url(whole: Whole) -> str:
    return f"http://127.0.0.1:{whole.http_port}"


async def echo_upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    writer.write_eof()


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"x")
    await reader.read()


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    received = await reader.read()
    writer.close()
    return received


@pytest.mark.timeout(SWAP_TIMEOUT_S + 20)
async def test_many_local_connections_carry_every_byte_both_ways(cluster: Cluster) -> None:
    async def one(port: int, seed: int) -> None:
        await swap_as_client(*await asyncio.open_connection("127.0.0.1", port), seed)

    async with contextlib.AsyncExitStack() as stack:
        target = await stack.enter_async_context(tcp_target(swap_as_target))
        whole = await stack.enter_async_context(connecting(cluster, f"127.0.0.1:{target}"))
        (port,) = await stack.enter_async_context(forwarding(url(whole), whole.cluster, f"127.0.0.1:{target}"))
        async with asyncio.timeout(SWAP_TIMEOUT_S):
            await asyncio.gather(*(one(port, seed) for seed in range(SWAPS)))
        await until(lambda: whole.agent.agent.open_connections == 0)
        assert whole.agent.agent.upstreams.open_connections == 0


async def test_failures_reset_the_local_client_and_name_the_rule(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with connecting(cluster, "127.0.0.1:1") as whole, asyncio.timeout(scaled(40)):
        for hub, name, target, fault, reason in (
            (url(whole), whole.cluster, "db:5432", "policy", "connect_allow has no entry db:5432"),
            (url(whole), whole.cluster, "127.0.0.1:1", "target", "502"),
            (url(whole), "unknown", "db:1", "agent", "no agent"),
            ("http://127.0.0.1:1", whole.cluster, "db:1", "hub", "can't be reached"),
            (f"https://127.0.0.1:{whole.http_port}", whole.cluster, "db:1", "hub", "TLS handshake"),
        ):
            caplog.clear()
            async with forwarding(hub, name, target, token="s3cret") as (port,):
                with pytest.raises(ConnectionResetError):
                    await exchange(port, b"hello")
            (line,) = [each for each in caplog.records if each.name == "agent.forward.local_ports"]
            assert vars(line)["fault"] == fault
            assert reason in vars(line)["reason"]
            assert "s3cret" not in str(vars(line))


async def test_the_local_limit_resets_the_next_connection(cluster: Cluster) -> None:
    async with contextlib.AsyncExitStack() as stack:
        target = await stack.enter_async_context(tcp_target(hold))
        whole = await stack.enter_async_context(connecting(cluster, f"127.0.0.1:{target}"))
        forward = forwarding(url(whole), whole.cluster, f"127.0.0.1:{target}", max_connections=1, drain_grace_s=0.0)
        (port,) = await stack.enter_async_context(forward)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.readexactly(1) == b"x"
        with pytest.raises(ConnectionResetError):
            await exchange(port, b"")
        writer.close()


class Watched:
    """A target that sends a byte and then notes how each of its connections ends."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            self.ends.append("end" if await reader.read() == b"" else "bytes")
        except ConnectionResetError:
            self.ends.append("reset")


async def open_some(port: int, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for reader, _ in opened:
        assert await reader.readexactly(1) == b"x"
    return opened


async def are_reset(opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    for reader, writer in opened:
        async with asyncio.timeout(scaled(10)):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        writer.close()


@pytest.mark.parametrize("lost", ["agent", "forward"])
async def test_what_is_lost_in_the_middle_resets_the_client_and_ends_the_target(cluster: Cluster, lost: str) -> None:
    watched = Watched()
    async with contextlib.AsyncExitStack() as stack:
        target = await stack.enter_async_context(tcp_target(watched.serve))
        whole = await stack.enter_async_context(connecting(cluster, f"127.0.0.1:{target}"))
        async with forwarding(url(whole), whole.cluster, f"127.0.0.1:{target}", drain_grace_s=0.0) as (port,):
            opened = await open_some(port, 5)
            if lost == "agent":
                whole.agent.task.cancel()
                await until(lambda: not whole.agent.agent.ready)
                whole.agent.task.cancel()
                await are_reset(opened)
        await are_reset([] if lost == "agent" else opened)
        await until(lambda: len(watched.ends) == 5)


@pytest.mark.loops("uvloop")
async def test_a_killed_hub_resets_the_clients_of_every_port(mode: str, hub_kind: str) -> None:
    watched = Watched()
    async with tcp_target(watched.serve) as target:
        where = f"127.0.0.1:{target}"
        command = (sys.executable, "-m", "agent", "hub", "--grpc-address", "127.0.0.1:0", "--http-address")
        listener = ("--listener", f"127.0.0.1:0=c1/{where}", "--log-level", "error")
        hub = await asyncio.create_subprocess_exec(*command, "127.0.0.1:0", *listener, stdout=PIPE)
        try:
            assert hub.stdout is not None
            ports = [int((await hub.stdout.readline()).rpartition(b":")[2]) for _ in range(3)]
            agent = RunningAgent(
                hub_address=f"127.0.0.1:{ports[0]}",
                cluster_name="c1",
                insecure=True,
                use_memory_comm=mode == "memory",
                connect_allow=where,
            )
            await agent.wait_ready()
            async with forwarding(f"http://127.0.0.1:{ports[1]}", "c1", where) as (local,):
                opened = [*await open_some(local, 3), *await open_some(ports[2], 3)]
                hub.kill()
                await are_reset(opened)
            await until(lambda: len(watched.ends) == 6)
            assert agent.agent.upstreams.open_connections == 0
            await agent.stop()
        finally:
            if hub.returncode is None:
                hub.kill()
            await hub.wait()


@contextlib.asynccontextmanager
async def tls_hub(mode: str, folder: pathlib.Path, **config: Any) -> AsyncIterator[tuple[int, trustme.CA]]:
    """The HTTP port of a hub with TLS, whose agent allows every port of 127.0.0.1."""
    authority, pem = trustme.CA(), folder / "hub.pem"
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    async with running_hub(http_cert_file=str(pem), **config) as (grpc_port, http_port):
        agent = RunningAgent(
            hub_address=f"127.0.0.1:{grpc_port}",
            cluster_name="c1",
            insecure=True,
            use_memory_comm=mode == "memory",
            connect_allow="127.0.0.1:1-65535",
            drain_grace_s=0.1,
        )
        try:
            await agent.wait_ready()
            yield http_port, authority
        finally:
            await agent.stop()


async def test_tls_with_a_client_certificate_and_its_half_close(
    mode: str, hub_kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        with contextlib.suppress(OSError):
            await reader.read()

    ca = str(tmp_path / "ca.pem")
    caplog.set_level(logging.WARNING)
    users = trustme.CA()
    users.cert_pem.write_to_path(str(tmp_path / "users.pem"))
    user = str(tmp_path / "user.pem")
    users.issue_cert("a@users.test").private_key_and_cert_chain_pem.write_to_path(user)
    monkeypatch.setattr(joining, "HALF_CLOSED_IDLE_S", 0.3)
    async with tcp_target(greet) as target:
        roots = str(tmp_path / "users.pem")
        async with tls_hub(mode, tmp_path, user_ca_file=roots, http2=False) as (http_port, _):
            hub, where = f"https://127.0.0.1:{http_port}", f"127.0.0.1:{target}"
            async with forwarding(hub, "c1", where, ca_file=ca, client_cert_file=user) as (port,):
                async with asyncio.timeout(scaled(10)):
                    assert await exchange(port, b"hello\n") == b"hello\n"  # its end comes by the time limit
            for config, reason in (
                ({"ca_file": ca}, "400 the client sent no certificate"),
                ({}, "was not accepted (ca_file)"),
                ({"ca_file": ca, "client_cert_file": user, "server_name": "other.test"}, "Hostname mismatch"),
            ):
                caplog.clear()
                async with forwarding(hub, "c1", where, **config) as (port,):
                    with pytest.raises(ConnectionResetError):
                        await exchange(port, b"hello\n")
                (line,) = [each for each in caplog.records if each.name == "agent.forward.local_ports"]
                assert reason in vars(line)["reason"]


async def test_http2_shares_one_connection_and_has_half_closes(
    mode: str, hub_kind: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[int] = []

    async def counted(*given: Any) -> None:
        dialled.append(1)
        await dial(*given)

    monkeypatch.setattr("agent.forward.http2.dial", counted)
    ca = str(tmp_path / "ca.pem")
    async with tcp_target(swap_as_target) as target, tls_hub(mode, tmp_path) as (http_port, _):
        where = f"127.0.0.1:{target}"
        async with forwarding(f"https://127.0.0.1:{http_port}", "c1", where, ca_file=ca) as (port,):
            async with asyncio.timeout(scaled(60)):
                for _ in range(2):
                    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
                    swaps = (swap_as_client(*each, seed) for seed, each in enumerate(opened))
                    await asyncio.gather(*swaps)
                assert dialled == [1]


async def test_more_tunnels_than_streams_take_another_connection(
    mode: str, hub_kind: str, tmp_path: pathlib.Path
) -> None:
    watched, ca = Watched(), str(tmp_path / "ca.pem")
    async with tcp_target(watched.serve) as target, tls_hub(mode, tmp_path, http2_max_streams=2) as (http_port, _):
        where = f"127.0.0.1:{target}"
        config: dict[str, Any] = {"ca_file": ca, "drain_grace_s": 0.0}
        async with forwarding(f"https://127.0.0.1:{http_port}", "c1", where, **config) as (port,):
            opened = await open_some(port, 5)
        await are_reset(opened)
        await until(lambda: len(watched.ends) == 5)


async def test_http2_refusals_losses_and_a_restart_of_the_hub(
    mode: str, hub_kind: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    watched, ca = Watched(), str(tmp_path / "ca.pem")
    hub_port = free_port()
    trustme.CA().cert_pem.write_to_path(ca)  # each hub has another one, and the changed file applies
    async with tcp_target(watched.serve) as target:
        where, hub = f"127.0.0.1:{target}", f"https://127.0.0.1:{hub_port}"
        async with forwarding(hub, "c1", where, "db:5432", ca_file=ca) as (port, refused):
            for _ in range(2):  # the second hub is another process to `forward`
                async with tls_hub(mode, tmp_path, http_address=f"127.0.0.1:{hub_port}", drain_grace_s=0.1):
                    opened = await open_some(port, 2)
                    caplog.clear()
                    with pytest.raises(ConnectionResetError):
                        await exchange(refused, b"")
                    (line,) = [each for each in caplog.records if each.name == "agent.forward.local_ports"]
                    assert "403 the agent does not allow" in vars(line)["reason"]
                    assert vars(line)["request_id"]
                await are_reset(opened)
                await until(lambda: len(watched.ends) % 2 == 0)


async def test_a_hub_without_http2_is_spoken_to_by_http1(mode: str, hub_kind: str, tmp_path: pathlib.Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())

    ca = str(tmp_path / "ca.pem")
    async with tcp_target(greet) as target, tls_hub(mode, tmp_path, http2=False) as (http_port, _):
        hub, where = f"https://127.0.0.1:{http_port}", f"127.0.0.1:{target}"
        async with forwarding(hub, "c1", where, ca_file=ca) as (port,):
            for _ in range(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"hello\n")
                assert await reader.read() == b"HELLO\n"
                writer.close()


# -- standard streams


@contextlib.asynccontextmanager
async def stdio(whole: Whole, target: str, stdin: Any, stdout: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    command = (sys.executable, "-m", "agent", "forward", "--hub", url(whole), "--cluster", whole.cluster)
    process = await asyncio.create_subprocess_exec(
        *command, "--stdio", target, stdin=stdin, stdout=stdout, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(scaled(30)):
            yield process
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


DATA = random.Random(1).randbytes(5_000_000).lower()


@pytest.mark.loops("uvloop")
async def test_pipes_files_and_sockets_are_joined_with_the_target(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    wanted = hashlib.sha256(DATA.upper()).digest()
    given, written = tmp_path / "in", tmp_path / "out"
    given.write_bytes(DATA)
    async with tcp_target(echo_upper) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        where = f"127.0.0.1:{port}"
        async with stdio(whole, where, PIPE, PIPE) as process:
            out, error = await process.communicate(DATA)
        assert (process.returncode, error) == (0, b"")
        assert hashlib.sha256(out).digest() == wanted
        with given.open("rb") as source, written.open("wb") as sink:
            async with stdio(whole, where, source, sink) as process:
                pass
        assert process.returncode == 0
        assert hashlib.sha256(written.read_bytes()).digest() == wanted
        ours, theirs = socket.socketpair()
        with theirs:
            async with stdio(whole, where, theirs, theirs) as process:
                theirs.close()
                reader, writer = await asyncio.open_connection(sock=ours)
                writer.write(DATA)
                writer.write_eof()
                assert hashlib.sha256(await reader.read()).digest() == wanted
                writer.close()
        assert process.returncode == 0
        async with stdio(whole, where, asyncio.subprocess.DEVNULL, PIPE) as process:
            out, _ = await process.communicate()
        assert (process.returncode, out) == (0, b"")


@pytest.mark.loops("uvloop")
async def test_the_exit_code_and_one_line_tell_a_failure(cluster: Cluster, unused_port: int) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(65536))
            await writer.drain()

    async with tcp_target(speak) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with stdio(whole, "db:5432", PIPE, PIPE) as process:
            _, error = await process.communicate()
        assert process.returncode == 1
        assert error.count(b"\n") == 1
        assert b"connect_allow has no entry db:5432" in error
        async with stdio(whole, "db", PIPE, PIPE) as process:
            _, error = await process.communicate()
        assert process.returncode == 2
        assert b"--stdio: the target must be HOST:PORT" in error
        async with stdio(whole, f"127.0.0.1:{port}", PIPE, PIPE) as process:  # its reader leaves
            assert process.stdout is not None
            await process.stdout.read(1)
            process.stdout._transport.close()  # type: ignore[attr-defined]
        assert process.returncode == 1
        async with stdio(whole, f"127.0.0.1:{port}", PIPE, PIPE) as process:  # its agent is lost
            assert process.stdout is not None
            await process.stdout.read(1)
            whole.agent.task.cancel()
            await until(lambda: not whole.agent.agent.ready)
            whole.agent.task.cancel()
            _, error = await process.communicate()
        assert process.returncode == 1
        assert b"was lost" in error


@pytest.mark.loops("uvloop")
async def test_a_signal_ends_the_command_at_once(cluster: Cluster) -> None:
    async with tcp_target(hold) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with stdio(whole, f"127.0.0.1:{port}", PIPE, PIPE) as process:
            assert process.stdout is not None
            assert await process.stdout.readexactly(1) == b"x"
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 0


@pytest.mark.loops("uvloop")
async def test_the_command_opens_ports_and_drains(cluster: Cluster) -> None:
    async with tcp_target(echo_upper) as target, connecting(cluster, f"127.0.0.1:{target}") as whole:
        command = (sys.executable, "-m", "agent", "forward", "--hub", url(whole), f"0=127.0.0.1:{target}")
        environ = {**os.environ, "FORWARD_CLUSTER": whole.cluster, "FORWARD_TOKEN": "s3cret"}
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environ)
        try:
            async with asyncio.timeout(scaled(20)):
                assert process.stdout is not None
                line = (await process.stdout.readline()).decode()
                assert line.startswith("listening forward 127.0.0.1:")
                port = int(line.rpartition(":")[2])
                assert await exchange(port, b"hello") == b"HELLO"
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"before, ")
                await until(lambda: whole.agent.agent.upstreams.open_connections == 1)
                process.send_signal(signal.SIGTERM)
                writer.write(b"and behind")
                writer.write_eof()
                assert await reader.read() == b"BEFORE, AND BEHIND"
                writer.close()
                assert await process.wait() == 0
                assert process.stderr is not None
                assert b"s3cret" not in await process.stderr.read()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_tls_clients_of_a_target_pass_untouched(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("db.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())

    async with contextlib.AsyncExitStack() as stack:
        target = await stack.enter_async_context(tcp_target(greet, server))
        whole = await stack.enter_async_context(connecting(cluster, f"127.0.0.1:{target}"))
        (port,) = await stack.enter_async_context(forwarding(url(whole), whole.cluster, f"127.0.0.1:{target}"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="db.test")
        writer.write(b"hello\n")
        assert await reader.read() == b"hello\n"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
