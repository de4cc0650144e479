"""The peers at both ends of the whole path: nginx, curl, the base hub, an aiohttp origin, a cable.

Nothing here is the agent's own code.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import pytest
from aiohttp import ClientError, WSMsgType, web

from ..limits import scaled

BIG_BYTES = 10 * 1024 * 1024
BIG = random.Random(20).randbytes(BIG_BYTES)
BIG_SHA256 = hashlib.sha256(BIG).hexdigest()
START_TIMEOUT_S = scaled(20.0)
CUT = (ClientError, RuntimeError)
"""Errors of aiohttp's client for a body that breaks off. RuntimeError if a bad chunk and the end come together."""


def missing(what: str) -> NoReturn:
    """A real peer isn't on this machine: fails where FASTPIPE_REQUIRE_PEERS=1 (CI), else skips with the reason."""
    reason = f"{what} is not installed, and this test is about a real peer"
    if os.environ.get("FASTPIPE_REQUIRE_PEERS", "0") not in ("", "0"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program that the test needs."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin") or missing(name)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class BaseHubProcess:
    """`base_hub.py` as a child process. Clusters don't see each other, so tests share one.

    arguments: the script's own. One with `--go` freezes for all clusters, so it belongs to one test.
    """

    def __init__(self, *arguments: str) -> None:
        script = str(pathlib.Path(__file__).parent / "base_hub.py")
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.grpc_port = self._port("grpc")
        self.http_port = self._port("http")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the base hub ended: {self._process.poll()}"
        return line

    def _port(self, kind: str) -> int:
        found, _, port = self._line().partition(" ")
        assert found == kind
        return int(port)

    def command(self, line: str) -> Any:
        """Block until the hub has responded. That takes microseconds and needs nothing in this process."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        answer = json.loads(self._line())
        assert not (isinstance(answer, dict) and "failed" in answer), answer
        return answer

    def frozen(self) -> dict[str, Any]:
        """Whether a hub with `--go` is `frozen`, and which clusters are `stuck`."""
        found: dict[str, Any] = self.command("frozen")
        return found

    def stats(self, cluster: str) -> dict[str, Any]:
        found: dict[str, Any] = self.command(f"stats {cluster}")
        return found

    async def until(
        self, cluster: str, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 15.0
    ) -> dict[str, Any]:
        """The cluster's stats as soon as they meet the condition."""
        found: dict[str, Any] = await until(lambda: self.stats(cluster), condition, timeout_s)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


async def until(state: Callable[..., Any], condition: Callable[..., bool] = bool, timeout_s: float = 15.0) -> Any:
    """The state as soon as it meets the condition, checked every 5 ms."""
    deadline_s = time.monotonic() + scaled(timeout_s)
    while not condition(found := state()):
        assert time.monotonic() < deadline_s, f"not reached within {timeout_s} s: {found}"
        await asyncio.sleep(0.005)
    return found


class NginxServer:
    """Debian's nginx on a free port.

    directives: of its `server` block. listening: options of its `listen`. beside: blocks beside that one.
    """

    def __init__(self, directory: pathlib.Path, directives: str, listening: str = "", *, beside: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        temporary = "".join(
            f"{name}_temp_path {directory}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = directory / "nginx.conf"
        config.write_text(
            f"""
            daemon off; master_process off; pid {directory}/pid; error_log {directory}/error.log;
            events {{ worker_connections 1024; }}
            http {{
              {temporary}
              access_log {directory}/access.log;
              client_max_body_size 0;
              default_type text/plain;
              server {{ listen 127.0.0.1:{self.port} {listening}; {directives} }}
              {beside}
            }}
            """
        )
        self._process = subprocess.Popen(
            [program("nginx"), "-c", str(config), "-e", f"{directory}/error.log"], stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline_s, (directory / "error.log").read_text()
            assert self._process.poll() is None, (directory / "error.log").read_text()
            time.sleep(0.01)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Nginx(NginxServer):
    """Serves `/hello`, `/big` (10 MiB), and PUT below `/up/` into `directory`/www."""

    def __init__(self, directory: pathlib.Path) -> None:
        (directory / "www").mkdir()
        (directory / "www" / "hello").write_text("hello from nginx\n")
        (directory / "www" / "big").write_bytes(BIG)
        super().__init__(
            directory,
            f"root {directory}/www; location /up/ {{ dav_methods PUT DELETE; create_full_put_path on; }}",
        )


@contextlib.asynccontextmanager
async def nginx_before(hub_port: int, directory: pathlib.Path, *directives: str) -> AsyncIterator[str]:
    """nginx with `proxy_pass`, which speaks HTTP/1.0, and these directives before the hub; its URL."""
    passing = f"proxy_pass http://127.0.0.1:{hub_port};"
    location = f"location / {{ {' '.join((passing, *directives))} }}"
    server = await asyncio.to_thread(NginxServer, directory, location)
    try:
        yield server.url
    finally:
        await asyncio.to_thread(server.close)


class Origin:
    """An aiohttp.web server on the test's own loop, whose slow responses the test itself releases."""

    def __init__(self) -> None:
        self.port = 0
        self.arrived = asyncio.Semaphore(0)  # released as a /hold, /drip or /swallow request comes in
        self.go_on = asyncio.Semaphore(0)  # each /hold, and each further piece of a /drip, takes one
        self.broken = asyncio.Semaphore(0)  # released if a /drip finds that its reader has left
        self.seen: list[str] = []  # METHOD target, in order
        self.headers: dict[str, str] = {}  # of the last request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(f"{request.method} {request.raw_path}")
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        name = request.path.strip("/").split("/")[-1]
        handler = getattr(self, f"_do_{name}", None)
        return await handler(request) if handler else web.Response(text="hello from the origin\n")

    async def _do_digest(self, request: web.Request) -> web.Response:
        digest, length = hashlib.sha256(), 0
        async for piece in request.content.iter_any():
            digest.update(piece)
            length += len(piece)
        return web.json_response({"sha256": digest.hexdigest(), "length": length})

    async def _do_echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def _do_big(self, _request: web.Request) -> web.Response:
        return web.Response(body=BIG)

    async def _do_chunked(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, BIG_BYTES, 65536):
            await response.write(BIG[start : start + 65536])
        await response.write_eof()
        return response

    async def _do_hold(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.arrived.release()
        await self.go_on.acquire()
        return web.Response(body=body or b"held and let go\n")

    async def _do_drip(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(int(request.query.get("pieces", "3"))):
            try:
                await response.write(b"data: %d\n\n" % number)
            except ConnectionError:
                self.broken.release()
                raise
            self.arrived.release()
            await self.go_on.acquire()
        await response.write_eof()
        return response

    async def _do_ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(f"echo {message.data}")
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket


@contextlib.asynccontextmanager
async def running_origin() -> AsyncIterator[Origin]:
    origin = Origin()
    application = web.Application(client_max_size=0)
    application.router.add_route("*", "/{path:.*}", origin._handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    origin.port = runner.addresses[0][1]
    try:
        yield origin
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def running_rude_origin(answer: bytes) -> AsyncIterator[str]:
    """URL of a target that sends these bytes for the first request of a connection, and closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()  # over loopback the bytes are with their reader by now, and so is the end

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class Cable:
    """A TCP relay before a port, which can be cut, unplugged and held: what networks do to a tunnel."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.port = 0
        self.plugged = True
        self.connections = 0
        self.bytes_carried = 0
        self.cut_after_bytes: int | None = None
        self.holding = False  # what the dialling side sends stays in `held` until `let_go`
        self.held = bytearray()
        self._writers: set[asyncio.StreamWriter] = set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.plugged:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, outbound=True), self._carry(far_reader, writer, outbound=False)
            )
        finally:
            self._writers -= {writer, far_writer}
            writer.transport.abort()
            far_writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, outbound: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                self.bytes_carried += len(data)
                if self.cut_after_bytes is not None and self.bytes_carried >= self.cut_after_bytes:
                    self.cut_after_bytes = None
                    self.cut()
                    return
                if outbound and self.holding:
                    self.held += data
                    self._held_for = writer
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def let_go(self) -> None:
        """Carry what was held, all of it at once, and hold no more."""
        self.holding = False
        self._held_for.write(bytes(self.held))
        self.held.clear()

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def running_cable(port: int) -> AsyncIterator[Cable]:
    cable = Cable(port)
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await cable._accept(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    cable.port = server.sockets[0].getsockname()[1]
    try:
        yield cable
    finally:
        cable.plugged = False
        server.close()
        cable.cut()
        if tasks:
            await asyncio.wait(tasks, timeout=5)


async def curl(*arguments: str, stdin: bytes | None = None) -> tuple[int, bytes, bytes]:
    """(exit code, standard output, standard error) of the curl program."""
    process = await asyncio.create_subprocess_exec(
        program("curl"),
        "-sS",
        "--max-time",
        "20",
        "--noproxy",
        "*",
        *arguments,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, output, errors
