"""The room between a tunnel that only records, by the documented interface, and real protocols in the proxy's place."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent.connections import ConnectionLimits, MemoryConnManager, UDSAcceptor, UDSConnManager
from agent.connections.manager import ConnManager
from agent.outcome import Kind, Outcome, Stage

from ..limits import scaled

DATA, ERROR, DRAIN, CLOSE, WINDOW = range(5)
TIMEOUT_S = scaled(10.0)


class RecordingOutbound:
    def __init__(self, tunnel: RecordingTunnel, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]):
        self.tunnel, self.conn_id, self.pause, self.resume = tunnel, conn_id, pause, resume
        self.queued_bytes = 0
        self.finished = self.aborted = False

    def heard(self) -> None:
        pass

    def write(self, data: bytes | memoryview) -> None:
        assert not self.finished, "write after finish"
        assert not self.aborted, "write after abort"
        assert len(data)
        self.tunnel.packets.append((self.conn_id, DATA, bytes(data), ""))

    def finish(self, code: int | None = None, error_message: str = "") -> None:
        assert not self.finished
        assert not self.aborted
        self.finished = True
        if code is not None:
            self.tunnel.packets.append((self.conn_id, code, b"", error_message))

    def abort(self) -> None:
        self.aborted = True


class RecordingTunnel:
    role = "agent"
    peername = ("127.0.0.1", 1)

    def __init__(self, features: frozenset[str] = frozenset()) -> None:
        self.features = features
        self.bytes_buffered = 0
        self.opens_no_more = False
        self.packets: list[tuple[int, int, bytes, str]] = []
        self.outbounds: dict[int, RecordingOutbound] = {}
        self.on_send: Callable[[int, int], None] | None = None

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> RecordingOutbound:
        assert conn_id not in self.outbounds, "a second outbound for one id"
        self.outbounds[conn_id] = RecordingOutbound(self, conn_id, pause, resume)
        return self.outbounds[conn_id]

    def send(self, conn_id: int, code: int, data: bytes = b"", error_message: str = "") -> None:
        self.packets.append((conn_id, code, bytes(data), error_message))
        if self.on_send is not None:
            self.on_send(conn_id, code)

    def is_closing(self) -> bool:
        return False

    # what tests ask

    def sent(self, conn_id: int) -> bytes:
        return b"".join(data for number, code, data, _ in self.packets if number == conn_id and code == DATA)

    def codes(self, conn_id: int) -> list[int]:
        """The control packets of a connection, and its empty DATA (probes)."""
        return [code for number, code, data, _ in self.packets if number == conn_id and not data]


class Peer(asyncio.Protocol):
    """The proxy's end of one connection, played by a test."""

    accepts_views = False

    def __init__(self, conn_id: int, outcome: Outcome) -> None:
        self.conn_id, self.outcome = conn_id, outcome
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        self.eof = self.lost = False
        self.lost_error: Exception | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.eof = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.lost_error = True, exc

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def end(self, kind: Kind = Kind.COMPLETE, stage: Stage = Stage.IDLE) -> None:
        """As the proxy does it: the word, then the transport."""
        assert self.transport is not None
        self.outcome(self.conn_id, kind, stage)
        self.transport.close()


class WordyPeer(Peer):
    """Reports its stage when its client closes, as the proxy does."""

    stage = Stage.IDLE

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost:
            self.outcome(self.conn_id, Kind.CLIENT_GONE, self.stage)
        super().connection_lost(exc)


class EchoPeer(WordyPeer):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.write(data)


class SlowPeer(WordyPeer):
    """Reads nothing until a test resumes it."""

    def connection_made(self, transport: Any) -> None:
        transport.pause_reading()
        asyncio.get_running_loop().call_soon(transport.pause_reading)  # uvloop starts reading after connection_made
        super().connection_made(transport)


@dataclasses.dataclass
class Stack:
    """One session: the manager under test, the tunnel before it and the proxy's ends behind it."""

    mode: str
    tunnel: RecordingTunnel
    manager: ConnManager
    peers: dict[int, Peer]
    acceptor: UDSAcceptor | None

    def data(self, conn_id: int, data: bytes | memoryview = b"") -> None:
        self.manager.packet_received(conn_id, DATA, data, "")

    def error(self, conn_id: int, text: str = "client gone") -> None:
        self.manager.packet_received(conn_id, ERROR, b"", text)

    def close(self, conn_id: int) -> None:
        self.manager.packet_received(conn_id, CLOSE, b"", "")

    @property
    def held_bytes(self) -> int:
        """The bytes that wait for slow proxies, over all connections."""
        return sum(connection.inbound.held_bytes for connection in self.manager.connections)

    async def opened(self, conn_id: int) -> Any:
        """The proxy's end of an open connection, once it is connected."""
        self.data(conn_id)
        await until(lambda: conn_id in self.peers and self.peers[conn_id].transport is not None)
        await asyncio.sleep(0)
        return self.peers[conn_id]

    async def ended(self, conn_id: int) -> None:
        await until(lambda: conn_id not in self.manager._open)


async def until(reached: Callable[[], object]) -> None:
    """Wait for a state."""
    async with asyncio.timeout(TIMEOUT_S):
        while not reached():  # noqa: ASYNC110 - any state, of any object
            await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Let everything happen that is going to: for showing that something doesn't."""
    for _ in range(count):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)


StackFactory = Callable[..., contextlib.AbstractAsyncContextManager[Stack]]


@pytest.fixture(params=["memory", "uds"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_stack(mode: str) -> StackFactory:
    """`async with open_stack(peer=…, features=…, limits=…, budget=…) as stack`: one session in either mode."""

    @contextlib.asynccontextmanager
    async def stack(
        peer: Callable[[int, Outcome], Peer] = WordyPeer,
        features: frozenset[str] = frozenset(),
        limits: ConnectionLimits | None = None,
        acceptor_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> AsyncIterator[Stack]:
        peers: dict[int, Peer] = {}

        def accept(conn_id: int, outcome: Outcome) -> asyncio.Protocol:
            assert conn_id not in peers, "an id opened twice"
            peers[conn_id] = peer(conn_id, outcome)
            return peers[conn_id]

        tunnel = RecordingTunnel(features)
        acceptor = None
        manager: ConnManager
        if mode == "uds":
            acceptor = UDSAcceptor(accept, **(acceptor_options or {}))
            await acceptor.start()
            manager = UDSConnManager(tunnel, acceptor, limits=limits, **options)
        else:
            manager = MemoryConnManager(tunnel, accept, limits=limits, **options)
        try:
            yield Stack(mode, tunnel, manager, peers, acceptor)
        finally:
            manager.tunnel_lost(None)
            assert manager.open_connections == 0
            assert manager.budget.held_bytes == 0
            assert manager.budget.later.held_bytes == 0
            await until(lambda: all(p.lost or p.transport is None for p in peers.values()))
            if acceptor is not None:
                await acceptor.close()

    return stack
