"""Clients and servers that nobody here wrote, joined by CONNECT: curl, Redis, PostgreSQL, ssh and git."""

from __future__ import annotations

import asyncio
import contextlib
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
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest
import trustme

from ..limits import scaled
from .whole_cluster import Cluster, RunningAgent, Whole, running_hub
from .whole_connect import connecting, forwarding, tcp_target
from .whole_peers import free_port, missing, program, until

pytestmark = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)


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
    """A local port of `forward`, for clients that know no proxies."""
    async with forwarding(f"http://127.0.0.1:{whole.http_port}", whole.cluster, target) as (port,):
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
        benchmark = program("redis-benchmark"), "-p", str(local), "-q", "-n", "2000", "-c", "50"
        code, out, error = await run(*benchmark, "-P", "4", "-d", "1000", "-t", "set,get,lrange_100")
        assert (code, error) == (0, b"")
        assert out.count(b"requests per second") == 4


def postgres_program(name: str) -> str:
    """A server program of PostgreSQL. Debian keeps them outside of PATH."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else program(name)


@contextlib.contextmanager
def postgres() -> Iterator[int]:
    """The port of a new PostgreSQL. The server refuses to run as root, and other users can't enter `tmp_path`."""
    initdb, server = postgres_program("initdb"), postgres_program("postgres")
    port, user = free_port(), None
    with tempfile.TemporaryDirectory() as data:
        if os.getuid() == 0:
            user = "postgres"
            shutil.chown(data, user)
        command = [initdb, "-D", data, "-A", "trust", "-U", "me", "--no-sync"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", user=user)
        options = ("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off")
        command = [server, "-D", data, "-p", str(port), *options]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd="/", user=user) as running:
            try:
                yield port
            finally:
                running.send_signal(signal.SIGINT)  # a fast shutdown


@pytest.mark.loops("uvloop")
async def test_psql_speaks_with_a_postgresql(cluster: Cluster) -> None:
    psql = program("psql")
    with postgres() as port:
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
            hub = f"--hub http://127.0.0.1:{whole.http_port} --cluster {whole.cluster}"
            command = f"{sys.executable} -m agent forward {hub} --stdio %h:%p"
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
