"""CONNECT through hub and agent: curl and TLS, Redis, ssh, and many connections at once."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import random
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme

from agent import HubConfig
from agent.config.schema import TargetLimitsConfig
from agent.hub.hub import Hub
from agent.tunnel.features import FEATURES

from ..limits import scaled
from .whole_cluster import Cluster, RunningAgent, Whole, running_hub
from .whole_peers import free_port, missing, program, until

pytestmark = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NO_ROUTE = ("/=http://127.0.0.1:9",)


def credentials(cluster: str) -> str:
    return "Basic " + base64.b64encode(f"{cluster}:".encode()).decode()


@contextlib.asynccontextmanager
async def tcp_target(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server whose connections `serve` handles."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def connecting(cluster: Cluster, *entries: str, **config: Any) -> AsyncIterator[Whole]:
    """A hub, and an agent that allows these entries."""
    async with cluster.hub() as whole:
        await whole.start_agent(routes=() if entries else NO_ROUTE, connect_allow=entries, **config)
        yield whole


async def ask(whole: Whole, target: str, *fields: str, version: str = "1.1") -> tuple[str, Any, Any]:
    """Send a CONNECT. Returns (the response's head, reader, writer)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
    fields = fields or (f"Proxy-Authorization: {credentials(whole.cluster)}",)
    writer.write("\r\n".join((f"CONNECT {target} HTTP/{version}", "Host: another.example", *fields, "", "")).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return head, reader, writer


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


BYTES = 8 * 1024 * 1024
CONNECTIONS = 20


async def test_many_connections_carry_every_byte_both_ways_at_once(cluster: Cluster) -> None:
    async def swap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seed = int.from_bytes(await reader.readexactly(4), "big")
        sent = random.Random(seed + 1000).randbytes(BYTES)

        async def send() -> None:
            for start in range(0, BYTES, 65536):
                writer.write(sent[start : start + 65536])
                await writer.drain()

        sending = asyncio.ensure_future(send())
        digest = hashlib.sha256()
        while data := await reader.read(262144):
            digest.update(data)
        await sending
        writer.write(digest.digest())  # behind the client's half-close
        writer.write_eof()

    async def one(whole: Whole, port: int, seed: int) -> None:
        head, reader, writer = await ask(whole, f"127.0.0.1:{port}")
        assert head.startswith("HTTP/1.1 200 ")
        mine = random.Random(seed).randbytes(BYTES)
        writer.write(seed.to_bytes(4, "big"))

        async def send() -> None:
            for start in range(0, BYTES, 65536):
                writer.write(mine[start : start + 65536])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.ensure_future(send())
        received = await reader.read()
        await sending
        writer.close()
        theirs = random.Random(seed + 1000).randbytes(BYTES)
        assert hashlib.sha256(received[:-32]).digest() == hashlib.sha256(theirs).digest()
        assert received[-32:] == hashlib.sha256(mine).digest()

    async with tcp_target(swap) as port, connecting(cluster, f"127.0.0.1:{port}") as whole:
        async with asyncio.timeout(scaled(120)):
            await asyncio.gather(*(one(whole, port, seed) for seed in range(CONNECTIONS)))
            await until(lambda: whole.agent.agent.open_connections == 0)
            assert whole.agent.agent.upstreams.open_connections == 0


# -- real peers


async def run(*command: str, timeout_s: float = 20.0, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    given = subprocess.PIPE if stdin else subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(scaled(timeout_s)):
            out, error = await process.communicate(stdin or None)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out, error


async def test_curl_reaches_a_tls_target_by_connect(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    code, _, error = await run(program("openssl"), *make, *names, "-keyout", str(key), "-out", str(cert))
    assert code == 0, error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    body = random.Random(2).randbytes(1_000_000)

    async def https(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with tcp_target(https, context) as port:
        entries = (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}")
        async with connecting(cluster, *entries) as whole:
            proxy = f"http://{whole.cluster}:@127.0.0.1:{whole.http_port}"
            url = f"https://localhost:{port}/file"
            code, out, error = await run(program("curl"), "-sS", "--cacert", str(cert), "-x", proxy, url)
            assert code == 0, error
            assert out == body
            code, _, error = await run(program("curl"), "-sS", "-k", "-x", proxy, "https://127.0.0.2:1/")
            assert code == 56  # the proxy refused CONNECT
            assert b"403" in error


async def test_curl_reaches_a_target_by_a_hub_with_tls(mode: str, hub_kind: str, tmp_path: pathlib.Path) -> None:
    authority, pem = trustme.CA(), tmp_path / "hub.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    body = random.Random(5).randbytes(1_000_000)

    async def until_closed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)

    async with tcp_target(until_closed) as port, running_hub(http_cert_file=str(pem)) as (grpc_port, http_port):
        agent = RunningAgent(
            hub_address=f"127.0.0.1:{grpc_port}",
            cluster_name="c1",
            insecure=True,
            use_memory_comm=mode == "memory",
            connect_allow=f"127.0.0.1:{port}",
        )
        await agent.wait_ready()
        options = ("-sS", "--proxy-cacert", str(tmp_path / "ca.pem"), "-p", "-x", f"https://c1:@127.0.0.1:{http_port}")
        code, out, error = await run(program("curl"), *options, f"http://127.0.0.1:{port}/")
        assert (code, error) == (0, b"")
        assert out == body
        await agent.stop()


@contextlib.asynccontextmanager
async def forwarder(whole: Whole, target: str) -> AsyncIterator[int]:
    """A local port whose connections go to the target by CONNECT, for clients that know no proxies."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, far_reader, far_writer = await ask(whole, target)
        assert head.startswith("HTTP/1.1 200 "), head
        with contextlib.suppress(OSError):
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        far_writer.close()

    async with tcp_target(forward) as port:
        yield port


@contextlib.asynccontextmanager
async def redis(directory: pathlib.Path) -> AsyncIterator[int]:
    port = free_port()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", "", "--appendonly", "no")
    server = await asyncio.create_subprocess_exec(program("redis-server"), *options, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                break
        yield port
    finally:
        server.terminate()
        await server.wait()


async def test_redis_cli_speaks_with_a_redis_server(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    cli = program("redis-cli")
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(redis(tmp_path))
        whole = await stack.enter_async_context(connecting(cluster, f"127.0.0.1:{port}"))
        local = await stack.enter_async_context(forwarder(whole, f"127.0.0.1:{port}"))
        assert (await run(cli, "-p", str(local), "PING"))[1] == b"PONG\n"
        value = random.Random(3).randbytes(500_000).hex().encode()
        assert (await run(cli, "-p", str(local), "-x", "SET", "big", stdin=value))[1] == b"OK\n"
        assert (await run(cli, "-p", str(local), "GET", "big"))[1] == value + b"\n"
        lines = b"".join(b"INCR n\n" for _ in range(1000))
        code, out, _ = await run(cli, "-p", str(local), stdin=lines)
        assert (code, out.split()[-1]) == (0, b"1000")


def postgres_program(name: str) -> str:
    """A server program of PostgreSQL. Debian keeps them outside of PATH."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else program(name)


@contextlib.contextmanager
def postgres(directory: pathlib.Path) -> Iterator[int]:
    """The port of a PostgreSQL of its own. The server refuses to run as root."""
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    data, port = directory / "data", free_port()
    data.mkdir()
    user = None
    if os.getuid() == 0:
        user = "postgres"
        for parent in (*directory.parents[:2], directory):
            parent.chmod(0o755)
        shutil.chown(data, user)
    command = [initdb, "-D", str(data), "-A", "trust", "-U", "me", "--no-sync"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", user=user)
    options = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
    command = [server, "-D", str(data), "-p", str(port), *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/", user=user) as running:
        try:
            yield port
        finally:
            running.send_signal(signal.SIGINT)  # a fast shutdown


@pytest.mark.loops("uvloop")
async def test_psql_speaks_with_a_postgresql(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    psql = program("psql")
    with postgres(tmp_path) as port:
        async with connecting(cluster, f"127.0.0.1:{port}") as whole, forwarder(whole, f"127.0.0.1:{port}") as local:
            url = f"postgresql://me@127.0.0.1:{local}/postgres"

            async def ask_psql(query: str, stdin: bytes = b"") -> bytes:
                code, out, error = await run(psql, "-X", "-q", "-A", "-t", "-d", url, "-c", query, stdin=stdin)
                assert code == 0, error
                return out

            ready = postgres_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)
            async with asyncio.timeout(scaled(20)):
                while (await run(*ready))[0]:
                    pass
            await ask_psql("CREATE TABLE rows (n int, t text)")
            rows = b"".join(b"%d\t%064x\n" % (number, number) for number in range(50_000))
            await ask_psql("COPY rows FROM STDIN", rows)
            assert await ask_psql("SELECT count(*), sum(n) FROM rows") == b"50000|1249975000\n"
            assert await ask_psql("COPY (SELECT * FROM rows ORDER BY n) TO STDOUT") == rows


def need_run_directory() -> None:
    """sshd of root needs this directory, which the system's own service makes."""
    if os.getuid() == 0 and not os.path.isdir("/run/sshd"):
        missing("/run/sshd")


async def test_ssh_by_a_proxy_command_and_git_over_it(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    sshd, ssh, clone = program("sshd"), program("ssh"), str(tmp_path / "clone")
    need_run_directory()
    for name in ("host", "user"):
        code, _, error = await run(program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name))
        assert code == 0, error
    (tmp_path / "authorized_keys").write_text((tmp_path / "user.pub").read_text())
    port = free_port()
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nPidFile {tmp_path}/pid\nStrictModes no\n"
        f"AuthorizedKeysFile {tmp_path}/authorized_keys\nUsePAM no\nPasswordAuthentication no\n"
    )
    server = await asyncio.create_subprocess_exec(sshd, "-D", "-e", "-f", str(config), stderr=subprocess.DEVNULL)
    try:
        async with connecting(cluster, f"127.0.0.1:{port}") as whole:
            await until((tmp_path / "pid").exists)
            script = pathlib.Path(__file__).parent / "connect_stdio.py"
            command = f"{sys.executable} {script} {whole.http_port} {whole.cluster} %h:%p"
            options = (
                *("-F", "none", "-i", str(tmp_path / "user"), "-p", str(port), "-o", f"ProxyCommand={command}"),
                *(
                    "-o",
                    "StrictHostKeyChecking=no",
                    "-o",
                    f"UserKnownHostsFile={tmp_path}/known",
                    "-o",
                    "BatchMode=yes",
                ),
            )
            data = random.Random(4).randbytes(1_000_000)
            code, out, error = await run(ssh, *options, "127.0.0.1", "sha256sum", stdin=data)
            assert code == 0, error
            assert out.split()[0].decode() == hashlib.sha256(data).hexdigest()

            git, work = program("git"), tmp_path / "work"
            work.mkdir()
            (work / "file").write_bytes(data)
            author = ("-c", "user.name=a", "-c", "user.email=a@example.com")
            for arguments in (
                ("init", "-q", str(work)),
                ("-C", str(work), "add", "file"),
                ("-C", str(work), *author, "commit", "-q", "-m", "one"),
                (
                    "-c",
                    f"core.sshCommand={shlex.join((ssh, *options))}",
                    "clone",
                    "-q",
                    f"ssh://127.0.0.1{work}",
                    clone,
                ),
            ):
                code, _, error = await run(git, *arguments)
                assert code == 0, error
            assert (tmp_path / "clone" / "file").read_bytes() == data
    finally:
        server.terminate()
        await server.wait()
