"""Which carrier a new connection gets, and how much a carrier holds for a reader that has stopped."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.connections import (
    CarrierPolicy,
    ConnectionLimits,
    MemoryConnection,
    MixedConnManager,
    Share,
)
from agent.connections.uds import UDSConnection
from agent.errors import ConfigError
from agent.outcome import Outcome

from .conftest import DATA, ERROR, EchoPeer, Peer, RecordingTunnel, SlowPeer, until

# The share ------------------------------------------------------------------------------------------------------------


@given(percent=st.integers(0, 100), before=st.integers(0, 250))
def test_any_hundred_in_a_row_have_exactly_the_share(percent: int, before: int) -> None:
    share = Share(percent)
    for _ in range(before):
        share.next()
    assert sum(share.next() for _ in range(100)) == percent


def test_a_share_is_spread_evenly() -> None:
    share = Share(25)
    assert [share.next() for _ in range(8)] == [False, False, False, True] * 2


# The policy -----------------------------------------------------------------------------------------------------------


class Session:
    """One session of an agent whose carrier policy can be changed."""

    def __init__(self, percent: int) -> None:
        self.tunnel = RecordingTunnel()
        self.peers: dict[int, Peer] = {}
        self.modes: dict[int, str] = {}
        self.carrier_policy = CarrierPolicy(self._accept, memory_percent=percent, buffer_bytes=65536)
        self.manager: MixedConnManager | None = None

    def _accept(self, conn_id: int, outcome: Outcome, mode: str) -> Peer:
        self.modes[conn_id] = mode
        self.peers[conn_id] = EchoPeer(conn_id, outcome)
        return self.peers[conn_id]

    async def open(self, conn_id: int) -> None:
        if self.manager is None:
            self.manager = MixedConnManager(self.tunnel, self.carrier_policy)
        self.manager.packet_received(conn_id, DATA, b"", "")
        self.manager.packet_received(conn_id, DATA, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "")
        await until(lambda: self.tunnel.sent(conn_id).endswith(b"\r\n\r\n"))

    async def close(self) -> None:
        if self.manager is not None:
            self.manager.tunnel_lost(None)
        await until(lambda: all(peer.lost for peer in self.peers.values()))
        await self.carrier_policy.close()


async def test_both_carriers_serve_one_session_side_by_side() -> None:
    session = Session(50)
    await session.carrier_policy.start()
    for conn_id in range(1, 11):
        await session.open(conn_id)
    assert list(session.modes.values()) == ["uds", "memory"] * 5
    assert session.manager is not None
    assert session.manager.counters.opened_by == {"uds": 5, "memory": 5}
    assert [type(each) for each in session.manager.connections] == [UDSConnection, MemoryConnection] * 5
    session.manager.packet_received(1, 1, b"", "client gone")
    session.peers[2].end()
    await until(lambda: session.manager.open_connections == 8)  # type: ignore[union-attr]
    assert session.manager.counters.ended_by == {("uds", "client_gone"): 1, ("memory", "complete"): 1}
    await session.close()


async def test_a_change_is_for_new_connections_only() -> None:
    session = Session(100)
    await session.carrier_policy.start()
    await session.open(1)
    await session.carrier_policy.change(memory_percent=0, buffer_bytes=65536)  # the Unix socket is made now
    await session.open(2)
    await session.carrier_policy.change(memory_percent=100, buffer_bytes=65536)
    await session.open(3)
    assert session.modes == {1: "memory", 2: "uds", 3: "memory"}
    for conn_id in (1, 2, 3):
        session.manager.packet_received(conn_id, DATA, b"more", "")  # type: ignore[union-attr]
    await until(lambda: all(session.tunnel.sent(conn_id).endswith(b"more") for conn_id in (1, 2, 3)))
    await session.close()


@pytest.mark.parametrize("percent", [0, 100])
async def test_a_hub_that_opens_one_after_the_other_opens_no_more_than_a_bound(percent: int, caplog: Any) -> None:
    """These connections carry no request, so the proxy can't respond with 503.

    Over Unix sockets each connection has two descriptors.
    """
    session = Session(percent)
    session.carrier_policy.most_connections = 5
    await session.carrier_policy.start()
    for conn_id in range(1, 6):
        await session.open(conn_id)
    for conn_id in range(6, 1000):
        session.manager.packet_received(conn_id, DATA, b"", "")  # type: ignore[union-attr]
        session.manager.packet_received(conn_id, DATA, b"GET / HTTP/1.1\r\n", "")  # type: ignore[union-attr]
    assert session.manager.open_connections == 5  # type: ignore[union-attr]
    assert len(session.modes) == 5
    said = "the agent takes no more than 5 connections at once"
    refused = [packet for packet in session.tunnel.packets if packet[1] == ERROR]
    assert refused == [(conn_id, ERROR, b"", said) for conn_id in range(6, 1000)]  # one each
    assert sum("more connections than are taken" in record.message for record in caplog.records) == 1
    session.manager.packet_received(1, ERROR, b"", "client gone")  # type: ignore[union-attr]
    await session.open(1000)  # there is room again
    session.manager.packet_received(2, DATA, b"more", "")  # type: ignore[union-attr]
    await until(lambda: session.tunnel.sent(2).endswith(b"more"))
    await session.close()


async def test_a_unix_socket_that_cannot_be_made_leaves_everything_as_it_was(tmp_path: Any) -> None:
    (tmp_path / "taken").write_text("")
    session = Session(100)
    session.carrier_policy = CarrierPolicy(
        session._accept, memory_percent=100, buffer_bytes=65536, socket_path=str(tmp_path / "taken")
    )
    await session.carrier_policy.start()
    with pytest.raises(ConfigError):
        await session.carrier_policy.change(memory_percent=10, buffer_bytes=4096)
    assert session.carrier_policy.memory_percent == 100
    await session.open(1)
    assert session.modes == {1: "memory"}
    await session.close()


async def test_on_windows_unix_sockets_are_said_to_be_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    for percent in (0, 99):
        with pytest.raises(ConfigError, match="on Windows, Unix sockets aren't available"):
            CarrierPolicy(lambda *_: asyncio.Protocol(), memory_percent=percent, buffer_bytes=65536)
    carrier_policy = CarrierPolicy(lambda *_: asyncio.Protocol(), memory_percent=100, buffer_bytes=65536)
    with pytest.raises(ConfigError):
        await carrier_policy.change(memory_percent=50, buffer_bytes=65536)


# buffer_bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_bytes", [16384, 65536, 262144])
async def test_a_stalled_proxy_holds_about_the_buffer_and_the_rest_waits_outside(
    open_stack: Any, buffer_bytes: int
) -> None:
    limits = ConnectionLimits(inbound_bytes=8 * 1024 * 1024)
    options = {"buffer_bytes": buffer_bytes, "acceptor_options": {"buffer_bytes": buffer_bytes}}
    async with open_stack(SlowPeer, features=frozenset({"close"}), limits=limits, **options) as stack:
        peer = await stack.opened(1)
        sent = 0
        for size in (1, 1000, 32768, 300_000, 1024 * 1024):
            stack.data(1, b"x" * size)
            sent += size
        for _ in range(20):
            stack.data(1, b"x" * 32768)
            sent += 32768
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        (connection,) = stack.manager.connections
        assert connection.paused == (True, False)
        in_carrier = sent - stack.held_bytes
        assert buffer_bytes // 4 < in_carrier <= 2 * buffer_bytes + 8192, in_carrier
        assert stack.held_bytes == sent - in_carrier
        peer.transport.resume_reading()
        await until(lambda: len(peer.received) == sent)
        assert stack.held_bytes == 0
        assert connection.paused == (False, False)


@pytest.mark.parametrize("buffer_bytes", [16384, 65536, 262144])
async def test_a_stalled_hub_pauses_the_proxy_at_about_the_buffer(open_stack: Any, buffer_bytes: int) -> None:
    options = {"buffer_bytes": buffer_bytes, "acceptor_options": {"buffer_bytes": buffer_bytes}}
    async with open_stack(WritingPeer, features=frozenset({"close"}), **options) as stack:
        peer = await stack.opened(1)
        peer.transport.set_write_buffer_limits(high=buffer_bytes, low=buffer_bytes // 4)  # as the proxy does
        stack.tunnel.outbounds[1].pause()
        (connection,) = stack.manager.connections
        assert connection.paused == (False, True)
        piece, written = b"y" * 4096, 0
        while not peer.paused:
            peer.write(piece)
            written += len(piece)
            assert written <= 8 * buffer_bytes, "the writer was never paused"
            await asyncio.sleep(0)
        in_carrier = written - len(stack.tunnel.sent(1))
        assert buffer_bytes // 4 < in_carrier <= 2 * buffer_bytes + 8192, in_carrier
        stack.tunnel.outbounds[1].resume()
        await until(lambda: len(stack.tunnel.sent(1)) == written)
        assert not peer.paused


class WritingPeer(EchoPeer):
    paused = False

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
