"""A hub, an agent and a target in one process, and real requests through the whole path.

Each mode (Unix socket, memory) gets its own hub and agent on free loopback ports, and the same work. 50 keep-alive
clients send small GETs at once, and one client uploads and downloads 10 MiB. The SHA-256 of both must match.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import httptools

from ..config.schema import AgentConfig, HubConfig
from ..hub.hub import Hub
from ..spoke.agent import Agent

__all__ = ["run_demo"]

CLIENTS = 50
REQUESTS_PER_CLIENT = 20
BODY_BYTES = 10 * 1024 * 1024
START_TIMEOUT_S = 10.0
WORK_TIMEOUT_S = 60.0


class _Target(asyncio.Protocol):
    """The service behind the agent. GET returns a small text or 10 MiB, POST the SHA-256 of its body."""

    def __init__(self, download: bytes) -> None:
        self._download = download
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._digest = hashlib.sha256()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._digest = b"", hashlib.sha256()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._digest.update(body)

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"POST":
            body = self._digest.hexdigest().encode()
        else:
            body = self._download if self._url.endswith(b"/download") else b"hello from the target\n"
        assert self._transport is not None
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        self._transport.write(body)


@dataclasses.dataclass(slots=True)
class Result:
    """The result of one mode. Latencies in seconds, rates in MB/s (10^6 bytes)."""

    mode: str
    latencies_s: list[float] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    upload_mb_s: float = 0.0
    download_mb_s: float = 0.0

    def row(self) -> str:
        cuts = statistics.quantiles(self.latencies_s, n=100) if len(self.latencies_s) > 1 else [float("nan")] * 99
        return (
            f"{self.mode:<8}{len(self.latencies_s) + 2:>10}{len(self.failures):>10}{cuts[49] * 1e3:>10.2f}"
            f"{cuts[98] * 1e3:>10.2f}{self.upload_mb_s:>13.0f}{self.download_mb_s:>15.0f}"
        )


HEADING = (
    f"{'mode':<8}{'requests':>10}{'failures':>10}{'p50 ms':>10}{'p99 ms':>10}{'upload MB/s':>13}{'download MB/s':>15}"
)


class _Client:
    """One keep-alive HTTP/1.1 connection to the hub."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(cls, port: int) -> AsyncIterator[_Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):  # the hub closed first
                await writer.wait_closed()

    async def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Send one request, return the body of its response. Raises RuntimeError for a response other than 200."""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: demo\r\n{length}\r\n".encode())
        if body:
            self._writer.write(body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *fields = head.split("\r\n")
        lengths = [int(f.partition(":")[2]) for f in fields if f.lower().startswith("content-length:")]
        if not lengths:
            raise RuntimeError(f"response without Content-Length: {status}")
        answer = await self._reader.readexactly(lengths[0])
        if status.split(" ")[1] != "200":
            raise RuntimeError(f"{status}: {answer[:200].decode('latin-1')}")
        return answer


async def _small_requests(port: int, result: Result) -> None:
    async def one_client() -> None:
        async with _Client.connect(port) as client:
            for _ in range(REQUESTS_PER_CLIENT):
                began = time.perf_counter()
                answer = await client.request("GET", "/demo/hello")
                result.latencies_s.append(time.perf_counter() - began)
                if answer != b"hello from the target\n":
                    result.failures.append(f"a small GET returned {answer[:80]!r}")

    outcomes = await asyncio.gather(*(one_client() for _ in range(CLIENTS)), return_exceptions=True)
    result.failures += [f"a client failed: {error!r}" for error in outcomes if error is not None]


async def _bulk(port: int, payload: bytes, result: Result) -> None:
    digest = hashlib.sha256(payload).hexdigest().encode()

    async def timed(what: str, work: Callable[[_Client], Awaitable[bytes]]) -> float:
        began = time.perf_counter()
        try:
            async with _Client.connect(port) as client:
                answer = await work(client)
        except (OSError, EOFError, RuntimeError) as error:
            result.failures.append(f"the {what} failed: {error!r}")
            return 0.0
        rate = len(payload) / (time.perf_counter() - began) / 1e6
        if digest not in (answer, hashlib.sha256(answer).hexdigest().encode()):
            result.failures.append(f"the {what}'s SHA-256 differs")
        return rate

    result.upload_mb_s = await timed("upload", lambda client: client.request("POST", "/demo/upload", payload))
    result.download_mb_s = await timed("download", lambda client: client.request("GET", "/demo/download"))


@contextlib.asynccontextmanager
async def _path(use_memory_comm: bool, target_port: int) -> AsyncIterator[int]:
    """Run a hub and a ready agent. Yields the hub's HTTP port. Both are stopped, agent first, behind the block."""
    ports: dict[str, int] = {}
    listening, ready = asyncio.Event(), asyncio.Event()

    def on_listening(kind: str, _host: str, port: int) -> None:
        ports[kind] = port
        if kind == "http":
            listening.set()

    hub = Hub(HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0"), on_listening=on_listening)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hub.run())]
        async with asyncio.timeout(START_TIMEOUT_S):
            await listening.wait()
        config = AgentConfig(
            hub_address=f"127.0.0.1:{ports['grpc']}",
            cluster_name="demo",
            insecure=True,
            use_memory_comm=use_memory_comm,
            routes={"/": f"http://127.0.0.1:{target_port}"},
        )
        tasks.append(group.create_task(Agent(config, on_ready=ready.set).run()))
        async with asyncio.timeout(START_TIMEOUT_S):
            await ready.wait()
        yield ports["http"]
        for task in reversed(tasks):
            task.cancel()
            await asyncio.wait([task])


async def _one_mode(use_memory_comm: bool, target_port: int, payload: bytes) -> Result:
    result = Result("memory" if use_memory_comm else "uds")
    async with _path(use_memory_comm, target_port) as port, asyncio.timeout(WORK_TIMEOUT_S):
        await _small_requests(port, result)
        await _bulk(port, payload, result)
    return result


async def _run() -> int:
    """Do the work in both modes and print the table. Returns the exit code: 0, or 1 if anything failed."""
    payload = os.urandom(BODY_BYTES)
    target = await asyncio.get_running_loop().create_server(lambda: _Target(payload), "127.0.0.1", 0)
    failures: list[str] = []
    async with target:
        print(HEADING, flush=True)
        # On Windows asyncio has no Unix sockets, and an agent in that mode fails.
        for use_memory_comm in (True,) if sys.platform == "win32" else (False, True):
            result = await _one_mode(use_memory_comm, target.sockets[0].getsockname()[1], payload)
            print(result.row(), flush=True)
            failures += [f"{result.mode}: {failure}" for failure in result.failures]
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def run_demo(factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> int:
    """Run the demo on a new event loop. Returns the exit code. Errors go to standard error."""
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(_run())
    except Exception as error:  # whatever it was, it is the demo's result
        print(f"the demo failed: {error!r}", file=sys.stderr)
        return 1
