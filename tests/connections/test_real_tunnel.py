"""The managers behind a real tunnel: HTTP/2 on a loopback socket, our server in the hub's place."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from agent.connections import MemoryConnManager, UDSAcceptor, UDSConnManager
from agent.connections.manager import ConnManager
from agent.outcome import Kind, Outcome, Stage
from agent.tunnel.backoff import BackOff
from agent.tunnel.client import HubEndpoint, TunnelClient
from agent.tunnel.server import TunnelServer
from agent.tunnel.session import Tunnel

from .conftest import DATA, ERROR, Peer, WordyPeer, until


class Hub:
    """The hub's side of one session, which records what it receives."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.received: dict[int, bytearray] = {}
        self.errors: dict[int, str] = {}
        self.lost = False

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        if code == DATA:
            self.received.setdefault(conn_id, bytearray()).extend(data)
        elif code == ERROR:
            self.errors[conn_id] = error_message

    def tunnel_lost(self, error: Exception | None) -> None:
        self.lost = True


class Digester(WordyPeer):
    """Responds to each upload of a known length with its hash, and closes."""

    LENGTH = 40 * 32 * 1024

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if len(self.received) >= self.LENGTH:
            self.write(hashlib.sha256(self.received).digest())
            self.end()


class Streamer(WordyPeer):
    """Writes as fast as it is taken, for ever."""

    stage = Stage.CHUNKED

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.resume_writing()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        while not self.full and not self.transport.is_closing():
            self.write(bytes(65536))


@pytest.fixture
def joined(mode: str) -> Callable[..., contextlib.AbstractAsyncContextManager[Any]]:
    """`async with joined(peer) as (sessions, managers, peers)`: agent and hub, connected and reconnecting."""

    @contextlib.asynccontextmanager
    async def run(peer: Callable[[int, Outcome], Peer]) -> AsyncIterator[Any]:
        sessions: list[Hub] = []
        managers: list[ConnManager] = []
        peers: list[Peer] = []

        def accept(conn_id: int, outcome: Outcome) -> Peer:
            peers.append(peer(conn_id, outcome))
            return peers[-1]

        def open_tunnel(tunnel: Tunnel, metadata: object) -> Hub:
            sessions.append(Hub(tunnel))
            return sessions[-1]

        def open_receiver(tunnel: Tunnel) -> ConnManager:
            managers.append(UDSConnManager(tunnel, acceptor) if mode == "uds" else MemoryConnManager(tunnel, accept))
            return managers[-1]

        acceptor = UDSAcceptor(accept)
        server = TunnelServer(open_tunnel=open_tunnel, features=frozenset())
        listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        client = TunnelClient(
            HubEndpoint("127.0.0.1", port, None, None),
            cluster_name="c1",
            open_receiver=open_receiver,
            backoff=BackOff(first_s=0.001, max_s=0.01),
        )
        if mode == "uds":
            await acceptor.start()
        running = asyncio.create_task(client.run())
        try:
            await until(lambda: sessions and client.ready)
            yield sessions, managers, peers
        finally:
            running.cancel()
            await asyncio.wait([running])
            listener.close()
            await server.close()
            await until(lambda: all(p.lost or p.transport is None for p in peers))
            await acceptor.close()

    return run


async def test_40_packets_arrive_intact_200_times_out_of_200(joined: Any) -> None:
    async with joined(Digester) as (sessions, _, _):
        hub = sessions[0]
        uploads = {n: random.Random(n).randbytes(Digester.LENGTH) for n in range(1, 11)}
        for batch in range(20):
            for packet in range(40):
                for n, upload in uploads.items():
                    conn_id = batch * 10 + n
                    hub.tunnel.send(conn_id, DATA, upload[packet * 32768 : (packet + 1) * 32768])
                while hub.tunnel.bytes_buffered:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await until(lambda batch=batch: len(hub.received) == (batch + 1) * 10)
        for conn_id, got in hub.received.items():
            assert got == hashlib.sha256(uploads[(conn_id - 1) % 10 + 1]).digest()
        assert len(hub.received) == 200
        assert hub.errors == {}


async def test_twenty_reconnects_with_responses_in_flight_leave_nothing(joined: Any) -> None:
    async with joined(Streamer) as (sessions, managers, peers):
        for round_ in range(20):
            await until(lambda round_=round_: len(sessions) > round_)
            hub = sessions[round_]
            for conn_id in (1, 2, 3):
                hub.tunnel.send(conn_id, DATA, b"session %d" % round_)
            await until(lambda hub=hub: len(hub.received) == 3)
            hub.tunnel._stream.connection.abort()
            await until(lambda round_=round_: managers[round_].open_connections == 0 and managers[round_]._lost)
        await until(lambda: all(peer.lost for peer in peers))
        assert len(peers) == 60
        for number, peer in enumerate(peers):
            assert peer.received in (b"session %d" % (number // 3), b"")


async def test_an_error_follows_the_last_byte_on_the_wire_too(joined: Any) -> None:
    def peer(conn_id: int, outcome: Outcome) -> Peer:
        return WordyPeer(conn_id, outcome)

    async with joined(peer) as (sessions, _, peers):
        hub = sessions[0]
        hub.tunnel.send(1, DATA, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: peers and peers[0].received)
        peers[0].write(bytes(5_000_000))
        peers[0].end(Kind.COMPLETE, Stage.IDLE)
        for _ in range(10):
            hub.tunnel.send(1, DATA, b"the rest of an upload")
        await until(lambda: hub.errors)
        assert len(hub.received[1]) == 5_000_000


async def test_a_first_packet_that_cannot_be_taken_leaves_its_id_closed(joined: Any) -> None:
    """Its next bytes are the middle of a body, whatever they look like."""
    async with joined(WordyPeer) as (sessions, managers, peers):
        hub = sessions[0]
        stream = hub.tunnel._stream
        stream.writer.append(b"\0\0\0\0\4\x08\3\x1a\x7f")  # for id 3: 127 bytes of data, and none there
        stream.wake()
        for conn_id in (3, 4):
            out = hub.tunnel.outbound(conn_id, lambda: None, lambda: None)
            out.write(b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: peers and peers[-1].received)
        assert [peer.conn_id for peer in peers] == [4]
        assert managers[0].counters.stray_data == 1
        await until(lambda: 3 in hub.errors)
