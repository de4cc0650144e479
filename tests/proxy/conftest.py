"""A proxy on each kind of carrier, clients that read responses strictly (h11), and scripted targets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import h11
import pytest
import trustme

from agent.messages import RequestHead, Target
from agent.outcome import Kind, Stage
from agent.proxy import ClientOrigin, HubOrigin, Proxy, ProxyLimits, Upstreams
from fastpipe import create_pipe

from ..limits import scaled

TIMEOUT_S = scaled(30.0)  # for machines that do much else besides
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclasses.dataclass
class Answer:
    """A response as h11 read it. complete: its framing was kept to the end. rest: bytes behind it."""

    status: int
    headers: dict[bytes, bytes]
    fields: list[tuple[bytes, bytes]]
    body: bytes
    complete: bool
    informational: list[h11.InformationalResponse]
    trailers: list[tuple[bytes, bytes]]


class Client:
    """One client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.unread = b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self, size: int = 65536) -> bytes:
        if self.unread:
            data, self.unread = self.unread, b""
            return data
        return await asyncio.wait_for(self.reader.read(size), TIMEOUT_S)

    async def read_until(self, wanted: bytes) -> bytes:
        got = b""
        while wanted not in got:
            data = await self.read()
            assert data, f"the end came before {wanted!r}: {got!r}"
            got += data
        end = got.index(wanted) + len(wanted)
        self.unread = got[end:]
        return got[:end]

    async def read_all(self) -> bytes:
        """All until the proxy's end of the connection, or its loss."""
        got = b""
        with contextlib.suppress(ConnectionError):
            while data := await self.read():
                got += data
        return got

    async def switched(self) -> Answer:
        """Read the response to an upgrade request."""
        return await self.answer("GET", [("Connection", "upgrade"), ("Upgrade", "x")])

    async def answer(self, method: str = "GET", asked: list[tuple[str, str]] | None = None) -> Answer:
        """Read one response strictly."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "a"), *(asked or [])]))
        if asked:
            parser.send(h11.EndOfMessage())
        informational: list[h11.InformationalResponse] = []
        response: h11.Response | None = None
        body: list[bytes] = []
        while True:
            try:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    parser.receive_data(await self.read())
                    continue
            except h11.RemoteProtocolError:
                if response is None:
                    raise
                return self._answer(response, body, False, informational, [])
            except ConnectionError:
                assert response is not None
                return self._answer(response, body, False, informational, [])
            match event:
                case h11.InformationalResponse():
                    informational.append(event)
                    if event.status_code == 101:
                        self.unread = parser.trailing_data[0]
                        return self._answer(event, [], True, [], [])
                case h11.Response():
                    response = event
                case h11.Data():
                    body.append(bytes(event.data))
                case h11.EndOfMessage():
                    assert response is not None
                    self.unread = parser.trailing_data[0]
                    return self._answer(response, body, True, informational, list(event.headers))
                case _:
                    raise AssertionError(f"{event!r} while waiting for a response")

    @staticmethod
    def _answer(response: Any, body: list[bytes], complete: bool, informational: Any, trailers: Any) -> Answer:
        fields = list(response.headers)
        return Answer(response.status_code, dict(fields), fields, b"".join(body), complete, informational, trailers)

    async def get(self, target: str = "/", *, method: str = "GET", more: str = "") -> Answer:
        self.send(f"{method} {target} HTTP/1.1\r\nHost: client\r\n{more}\r\n".encode())
        return await self.answer(method)

    async def closed(self) -> bool:
        """Whether the proxy ends the connection now, without another byte."""
        return await self.read_all() == b""


class Stack:
    """A proxy on one kind of carrier."""

    def __init__(self, carrier: str, proxy: Proxy, upstreams: Upstreams) -> None:
        self.carrier, self.proxy, self.upstreams = carrier, proxy, upstreams
        self.outcomes: list[tuple[int, Kind, Stage]] = []
        self.told = asyncio.Event()
        self.heads: list[RequestHead] = []
        self._conn_id = 0
        self._clients: list[Client] = []
        self._server: asyncio.Server | None = None
        self._directory: str | None = None
        self.port = 0
        self.client_origin: ClientOrigin | HubOrigin = HubOrigin()

    def _outcome(self, conn_id: int, kind: Kind, stage: Stage) -> None:
        self.outcomes.append((conn_id, kind, stage))
        self.told.set()

    async def outcome(self) -> tuple[Kind, Stage]:
        """How the (only) connection ended."""
        await asyncio.wait_for(self.told.wait(), TIMEOUT_S)
        assert len(self.outcomes) == 1
        return self.outcomes[0][1:]

    def connection(self) -> asyncio.Protocol:
        self._conn_id += 1
        return self.proxy.connection(self._conn_id, self._outcome, origin=self.client_origin)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        if self.carrier == "tcp":
            self._server = await loop.create_server(self.connection, "127.0.0.1", 0, backlog=1024)
            self.port = self._server.sockets[0].getsockname()[1]
        elif self.carrier == "unix":
            self._directory = tempfile.mkdtemp()
            self._server = await loop.create_unix_server(self.connection, f"{self._directory}/s", backlog=1024)

    async def open(self, limit: int = 1 << 20) -> Client:
        loop = asyncio.get_running_loop()
        if self.carrier == "tcp":
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        elif self.carrier == "unix":
            reader, writer = await asyncio.open_unix_connection(f"{self._directory}/s", limit=limit)
        else:
            ours, theirs = create_pipe()
            theirs.set_protocol(self.connection())
            reader = asyncio.StreamReader(limit=limit)
            protocol = asyncio.StreamReaderProtocol(reader)
            ours.set_protocol(protocol)
            writer = asyncio.StreamWriter(ours, protocol, reader, loop)
        client = Client(reader, writer)
        self._clients.append(client)
        return client

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.proxy.close()
        for client in self._clients:
            client.writer.transport.abort()
        assert await self.proxy.wait_drained(TIMEOUT_S)
        assert self.proxy.requests_in_flight == 0
        await self.upstreams.close()
        assert self.upstreams.open_connections == 0
        if self._server is not None:
            await self._server.wait_closed()
        if self._directory is not None:
            shutil.rmtree(self._directory)
        await asyncio.sleep(0)
        ids = [conn_id for conn_id, _, _ in self.outcomes]
        assert len(ids) == len(set(ids)), "an outcome was reported twice"


async def eventually(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Wait for a state."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the state did not come"
        await asyncio.sleep(0.002)


@pytest.fixture(name="eventually")
def give_eventually() -> Callable[..., Awaitable[None]]:
    return eventually


@pytest.fixture(params=["tcp", "unix", "pipe"])
def carrier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def stack(carrier: str) -> Callable[..., contextlib.AbstractAsyncContextManager[Stack]]:
    """`async with stack(target_url_or_route, **proxy_arguments) as h`: a proxy on the carrier under test."""

    @contextlib.asynccontextmanager
    async def opened(
        to: str | Callable[[RequestHead], Any],
        *,
        limits: dict[str, Any] | None = None,
        ssl_context: Callable[[Target], ssl.SSLContext] | None = None,
        generation: Callable[[], int] = int,
        **arguments: Any,
    ) -> AsyncIterator[Stack]:
        bounds = ProxyLimits(**(limits or {}))
        upstreams = Upstreams(ssl_context=ssl_context, generation=generation, limits=bounds)

        def route(head: RequestHead) -> Any:
            running.heads.append(head)
            return Target(to + head.target.decode()) if isinstance(to, str) else to(head)

        proxy = Proxy(route=route, upstreams=upstreams, limits=bounds, **arguments)
        running = Stack(carrier, proxy, upstreams)
        await running.start()
        try:
            yield running
        finally:
            await running.stop()

    return opened


class Origin:
    """A target. requests: what each accepted connection sent, h11's events or raw, as its handler records them."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.connections = 0
        self.url = ""
        self.lost = 0
        self.open = 0


@pytest.fixture
def origin() -> Callable[..., contextlib.AbstractAsyncContextManager[Origin]]:
    """`async with origin(handler, ssl=...) as o`: a target whose connections each run `handler(reader, writer)`.

    size: how much a handler's reader may hold.
    """

    @contextlib.asynccontextmanager
    async def opened(handler: Handler | None = None, size: int = 1 << 20, **arguments: Any) -> AsyncIterator[Origin]:
        here = Origin()
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            here.connections += 1
            here.open += 1
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                    await (handler or strict_echo(here))(reader, writer)
            finally:
                here.open -= 1
                tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=size, backlog=1024, **arguments)
        scheme = "https" if "ssl" in arguments else "http"
        here.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield here
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await eventually(lambda: not tasks)
            await server.wait_closed()
            await asyncio.sleep(0)

    return opened


def strict_echo(here: Origin) -> Handler:
    """Reads requests with h11, which is strict.

    The response to a GET is OK. The response to a request with a body is that body.
    """

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        while True:
            request: h11.Request | None = None
            body = b""
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    data = await reader.read(65536)
                    if not data and request is None:
                        return
                    parser.receive_data(data)
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            assert request is not None
            here.requests.append((request, body))
            content = body if request.method not in (b"GET", b"HEAD") else b"OK"
            head = h11.Response(status_code=200, headers=[("Content-Length", str(len(content)))])
            out = parser.send(head) or b""
            if request.method != b"HEAD":
                out += parser.send(h11.Data(data=content)) or b""
            out += parser.send(h11.EndOfMessage()) or b""
            writer.write(out)
            await writer.drain()
            if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
                return
            parser.start_next_cycle()

    return handler


@pytest.fixture
def answering() -> Callable[..., Handler]:
    """`answering(b"HTTP/1.1 200 OK…", …)`: the next response for each request head on a connection.

    None closes the connection.
    """

    def scripted(*answers: bytes | None, then_close: bool = False, seen: list[bytes] | None = None) -> Handler:
        async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                head = await reader.readuntil(b"\r\n\r\n")
                if seen is not None:
                    seen.append(head)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
            if not then_close:
                await reader.read()
            else:
                writer.close()
                await writer.wait_closed()

        return handler

    return scripted


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Debian's nginx as an origin on a free port: `/1k`, `/big` (64 MiB), `/` → OK, `/upload` takes bodies."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not pathlib.Path(program).exists():
        pytest.fail("nginx is missing: apt-get install nginx-light")
    root = tmp_path_factory.mktemp("nginx")
    files = root / "files"
    files.mkdir()
    (files / "1k").write_bytes(b"x" * 1024)
    with open(files / "big", "wb") as big:
        block = bytes(range(256)) * 4096
        for _ in range(64):
            big.write(block)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (root / "nginx.conf").write_text(f"""
        daemon off; master_process off; pid {root}/pid; error_log {root}/error.log;
        events {{ worker_connections 512; }}
        http {{
            access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
            uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; client_max_body_size 0; keepalive_requests 1000000;
            server {{
                listen 127.0.0.1:{port};
                location = / {{ default_type text/plain; return 200 "OK"; }}
                location = /missing {{ return 404; }}
                location /upload {{ dav_methods PUT; root {root}/put; create_full_put_path on; }}
                location / {{ root {files}; }}
            }}
        }}""")
    (root / "put").mkdir()
    process = subprocess.Popen([program, "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")])
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (root / "error.log").read_text()
            time.sleep(0.01)
        yield {"url": f"http://127.0.0.1:{port}", "root": root}
    finally:
        process.terminate()
        process.wait(10)
