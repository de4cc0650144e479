"""Both ends of a tunnel on a loopback socket, and receivers that record their calls."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import hpack
import pytest

from agent.tunnel.backoff import BackOff
from agent.tunnel.client import HubEndpoint, TunnelClient
from agent.tunnel.packet import Packet
from agent.tunnel.server import TunnelServer
from agent.tunnel.session import Tunnel
from agent.tunnel.window import ReceiveWindow

from ..limits import scaled

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
        self.windows: dict[int, ReceiveWindow | None] = {}
        self.reads = True  # what arrives is read at once

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        assert isinstance(data, (bytes, memoryview))
        if isinstance(data, memoryview):
            assert data.readonly
            assert type(data.obj).__name__ in ("bytes", "Chunk", "Storage")
        self.packets.append((conn_id, code, bytes(data), error_message))
        if code == DATA and data and self.tunnel is not None:
            if conn_id not in self.windows:
                self.windows[conn_id] = self.tunnel.receive_window(conn_id)
            window = self.windows[conn_id]
            if window is not None and not window.arrived(len(data)):
                self.tunnel.exceeded(conn_id)
            elif window is not None and self.reads:
                window.unread(0)
        self.on_packet(conn_id, code, data, error_message)
        self.changed.set()

    def tunnel_lost(self, error: Exception | None) -> None:
        self.lost.append(error)
        self.changed.set()

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(scaled(20)):
            while not reached():
                self.changed.clear()
                await self.changed.wait()

    def bytes_of(self, conn_id: int) -> bytes:
        return b"".join(data for one, code, data, _ in self.packets if one == conn_id and code == DATA)


class Ends:
    """Our server with the sessions it has seen, and our clients, which close with it."""

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
        self.changed.set()
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
        client = TunnelClient(endpoint, open_receiver=self.open_receiver, on_ready=on_ready, on_lost=on_lost, **options)
        self.clients.append(client)
        return client

    def start(self, client: TunnelClient) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(client.run())
        self.tasks.append(task)
        return task

    async def until(self, reached: Callable[[], Any]) -> None:
        async with asyncio.timeout(scaled(20)):
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


# ---------------------------------------------------------------- grpcio, in its own process


HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="session")
def messages_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the messages compiled from tunnel.proto are."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed: gRPC's own peers are missing")
    out = tmp_path_factory.mktemp("messages")
    outputs = [f"--python_out={out}", f"--grpc_python_out={out}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", *outputs, "tunnel.proto"], check=True)
    return str(out)


class Peer:
    """A grpcio_peer.py that runs: `do(…)` gives it an order, `await said(event)` waits for its next such event."""

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
                assert line, f"the peer ended before it reported {event!r}"
                one = json.loads(line)
                if "data" in one:
                    one["data"] = base64.b64decode(one["data"])
                self.events.append(one)

    def kill(self) -> None:
        self.process.kill()


@pytest.fixture
def grpcio(messages_dir: str) -> Callable[..., Any]:
    """`async with grpcio("hub") as peer`: gRPC's C core as a base hub.

    `grpcio("agent", address)` is gRPC's C core as a base agent.
    """

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


# ---------------------------------------------------------------- a peer that sends exactly what a test wants


class RawPeer:
    """One HTTP/2 connection, frame by frame. It does nothing by itself: no ACK, no credit, no response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        self.frames: list[tuple[int, int, int, bytes]] = []  # seen and not asked for yet
        self.body = b""  # DATA received, all streams' together

    def send(self, kind: int, flags: int, stream_id: int, payload: bytes = b"") -> None:
        head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream_id)
        self.writer.write(head + payload)

    def settings(self, **values: int) -> None:
        codes = {"header_table_size": 1, "max_concurrent_streams": 3, "initial_window_size": 4, "max_frame_size": 5}
        self.send(4, 0, 0, b"".join(struct.pack(">HI", codes[name], value) for name, value in values.items()))

    def ack(self) -> None:
        self.send(4, 1, 0)

    def headers(self, *fields: tuple[str, str], stream_id: int = 1, end: bool = False) -> None:
        self.send(1, 4 | end, stream_id, self.encoder.encode(fields))

    def credit(self, increment: int, stream_id: int = 0) -> None:
        self.send(8, 0, stream_id, struct.pack(">I", increment))

    def goaway(self, last: int, code: int, debug: bytes = b"") -> None:
        self.send(7, 0, 0, struct.pack(">II", last, code) + debug)

    async def frame(self) -> tuple[int, int, int, bytes]:
        """The next frame: (type, flags, stream, payload)."""
        async with asyncio.timeout(10):
            head = await self.reader.readexactly(9)
            payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == 0:
            self.body += payload
        return head[3], head[4], int.from_bytes(head[5:], "big"), payload

    async def seen(self, kind: int) -> tuple[int, int, int, bytes]:
        """The next frame of this type, whatever comes before it."""
        while True:
            for index, one in enumerate(self.frames):
                if one[0] == kind:
                    return self.frames.pop(index)
            self.frames.append(await self.frame())

    async def ended(self) -> tuple[int, str]:
        """The code and the debug text of the GOAWAY that ends the connection, and then its end."""
        _, _, _, payload = await self.seen(7)
        with contextlib.suppress(ConnectionResetError, asyncio.IncompleteReadError):
            while True:
                await self.frame()
        return int.from_bytes(payload[4:8], "big"), payload[8:].decode()

    def packets(self) -> list[Packet]:
        """The packets in what has come as DATA."""
        found, body = [], self.body
        while len(body) >= 5 and len(body) >= 5 + int.from_bytes(body[1:5], "big"):
            size = int.from_bytes(body[1:5], "big")
            found.append(Packet.decode(body[5 : 5 + size]))
            body = body[5 + size :]
        return found

    def answer_probe(self) -> None:
        self.send(0, 0, 1, Packet(-1, ERROR, b"", "unknown packet connection -1").encode())

    async def greet(self, **settings: int) -> None:
        """A hub's usual beginning, up to the response to the probe."""
        await self.reader.readexactly(24)
        self.settings(**settings)
        self.ack()
        self.credit(2**30)
        self.credit(2**30, stream_id=1) if not settings else None
        self.headers((":status", "200"), ("content-type", "application/grpc"))
        await self.seen(1)
        while not self.packets():
            self.frames.append(await self.frame())
        self.answer_probe()


@pytest.fixture
def raw_hub() -> Callable[..., Any]:
    """`async with raw_hub() as (port, accepted)`: `await accepted()` gives the next connection as a RawPeer."""

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[tuple[int, Callable[[], Any]]]:
        connections: asyncio.Queue[RawPeer] = asyncio.Queue()
        writers = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            connections.put_nowait(RawPeer(reader, writer))

        async def accepted() -> RawPeer:
            async with asyncio.timeout(10):
                return await connections.get()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield listening.sockets[0].getsockname()[1], accepted
        finally:
            listening.close()
            for writer in writers:
                writer.transport.abort()
            await listening.wait_closed()

    return opened


@pytest.fixture
def raw_agent() -> Callable[..., Any]:
    """`async with raw_agent(port) as peer`: a connection to our hub, with nothing sent yet."""

    @contextlib.asynccontextmanager
    async def opened(port: int) -> AsyncIterator[RawPeer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield RawPeer(reader, writer)
        finally:
            writer.transport.abort()

    return opened
