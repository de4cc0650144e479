"""Both ends of a tunnel on a loopback socket, and receivers that remember what they were told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent.backoff import BackOff
from agent.tunnel.client import HubEndpoint, TunnelClient
from agent.tunnel.server import TunnelServer
from agent.tunnel.session import Tunnel

DATA, ERROR, DRAIN = 0, 1, 2


class Recorder:
    """A receiver that keeps everything, and can be waited on."""

    def __init__(self, tunnel: Tunnel | None = None, metadata: Any = None) -> None:
        self.tunnel = tunnel
        self.metadata = metadata
        self.packets: list[tuple[int, int, bytes, str]] = []
        self.lost: list[Exception | None] = []
        self.changed = asyncio.Event()
        self.on_packet: Callable[[int, int, Any, str], None] = lambda *packet: None

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        assert isinstance(data, (bytes, memoryview))
        if isinstance(data, memoryview):
            assert data.readonly
            assert type(data.obj) is bytes
        self.packets.append((conn_id, code, bytes(data), error_message))
        self.on_packet(conn_id, code, data, error_message)
        self.changed.set()

    def tunnel_lost(self, error: Exception | None) -> None:
        self.lost.append(error)
        self.changed.set()

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not reached():
                self.changed.clear()
                await self.changed.wait()

    def bytes_of(self, conn_id: int) -> bytes:
        return b"".join(data for one, code, data, _ in self.packets if one == conn_id and code == DATA)


class Ends:
    """A server of ours with the sessions it has seen, and clients of ours that end with it."""

    def __init__(self) -> None:
        self.server: TunnelServer
        self.port = 0
        self.hub_sessions: list[Recorder] = []
        self.agent_sessions: list[Recorder] = []
        self.changed = asyncio.Event()
        self.ready: list[Tunnel] = []
        self.lost: list[tuple[Tunnel, Any]] = []
        self.refuse: Exception | None = None
        self.delays_s: list[float] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.clients: list[TunnelClient] = []

    def open_tunnel(self, tunnel: Tunnel, metadata: Any) -> Recorder:
        if self.refuse is not None:
            raise self.refuse
        self.hub_sessions.append(Recorder(tunnel, metadata))
        self.changed.set()
        return self.hub_sessions[-1]

    def open_receiver(self, tunnel: Tunnel) -> Recorder:
        self.agent_sessions.append(Recorder(tunnel))
        return self.agent_sessions[-1]

    def client(self, port: int | None = None, **options: Any) -> TunnelClient:
        def on_ready(tunnel: Tunnel) -> None:
            self.ready.append(tunnel)
            self.changed.set()

        def on_lost(tunnel: Tunnel, error: Any) -> None:
            self.lost.append((tunnel, error))
            self.changed.set()

        async def wait(delay_s: float) -> None:
            self.delays_s.append(delay_s)
            self.changed.set()
            await asyncio.sleep(0.01)

        options.setdefault("cluster_name", "c1")
        options.setdefault("wait", wait)
        options.setdefault("backoff", BackOff(random=lambda: 0.5))
        endpoint = options.pop("endpoint", None) or HubEndpoint("127.0.0.1", port or self.port)
        client = TunnelClient(
            endpoint, open_receiver=self.open_receiver, on_ready=on_ready, on_lost=on_lost, **options
        )
        self.clients.append(client)
        return client

    def start(self, client: TunnelClient) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(client.run())
        self.tasks.append(task)
        return task

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not reached():
                self.changed.clear()
                await self.changed.wait()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def tunnels() -> Callable[..., Any]:
    """`async with tunnels() as ends`: a server that listens, and no client yet."""

    @contextlib.asynccontextmanager
    async def opened(ssl: Any = None, **options: Any) -> AsyncIterator[Ends]:
        ends = Ends()
        ends.server = TunnelServer(open_tunnel=ends.open_tunnel, **options)
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(ends.server.protocol, "127.0.0.1", 0, ssl=ssl)
        ends.port = listening.sockets[0].getsockname()[1]
        try:
            yield ends
        finally:
            await ends.stop()
            listening.close()
            await ends.server.close()
            await listening.wait_closed()

    return opened


@pytest.fixture
def linked(tunnels: Any) -> Callable[..., Any]:
    """`async with linked() as (ends, agent, hub)`: one session that is up, and both its receivers."""

    @contextlib.asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Ends, Recorder, Recorder]]:
        async with tunnels() as ends:
            ends.start(ends.client(**options))
            await ends.until(lambda: ends.ready)
            yield ends, ends.agent_sessions[-1], ends.hub_sessions[-1]

    return opened


# ---------------------------------------------------------------- grpcio, in a process of its own


HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def messages_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the messages compiled from tunnel.proto are."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: the peers that nobody here wrote are missing")
    out = tmp_path_factory.mktemp("messages")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--python_out={out}", f"--grpc_python_out={out}"]
    subprocess.run([*command, "tunnel.proto"], check=True, cwd=HERE)
    return str(out)


class Peer:
    """A grpcio_peer.py that runs: `await do(…)` gives it an order, `await said(event)` waits for its next such event."""

    def __init__(self, process: subprocess.Popen[bytes], lines: asyncio.StreamReader) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self._lines = lines

    def do(self, order: str, **fields: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": order, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    async def said(self, event: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                for index, one in enumerate(self.events):
                    if one["event"] == event:
                        return self.events.pop(index)
                line = await self._lines.readline()
                assert line, f"the peer has gone; it was to say {event!r}"
                one = json.loads(line)
                if "data" in one:
                    one["data"] = base64.b64decode(one["data"])
                self.events.append(one)

    def kill(self) -> None:
        self.process.kill()


@pytest.fixture
def grpcio(messages_dir: str) -> Callable[..., Any]:
    """`async with grpcio("hub") as peer`: gRPC's C core as a base hub, or `grpcio("agent", address)` as a base agent."""

    @contextlib.asynccontextmanager
    async def started(*arguments: str) -> AsyncIterator[Peer]:
        command = [sys.executable, str(HERE / "grpcio_peer.py"), messages_dir, *arguments]
        environment = os.environ | {"GRPC_VERBOSITY": "NONE"}
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: ASYNC220
        lines = asyncio.StreamReader(limit=2**26)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), process.stdout)
        try:
            yield Peer(process, lines)
        finally:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b'{"do": "quit"}\n')
                process.stdin.close()
            transport.close()
            try:
                process.wait(10)
            finally:
                process.kill()
                process.wait()

    return started
