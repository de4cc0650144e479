"""A session that is lost takes everything of it along, at every stage, and leaves nothing to the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agent.connections import ConnectionLimits, MemoryConnManager, UDSConnManager
from agent.connections.manager import ConnManager
from agent.outcome import Kind, Outcome, Stage

from .conftest import DATA, ERROR, EchoPeer, House, OpenHouse, Peer, RecordingTunnel, SlowPeer, WordyPeer, turns, until

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"


async def nothing(house: House) -> None:
    pass


async def just_opened(house: House) -> None:
    house.data(1)


async def first_packet_on_its_way(house: House) -> None:
    house.data(1)
    house.data(1, FIRST)


async def large_first_packet_held(house: House) -> None:
    house.data(1, bytes(2_000_000))
    await turns()


async def request_taken(house: House) -> None:
    peer = await house.opened(1)
    house.data(1, FIRST)
    await until(lambda: peer.received == FIRST)


async def response_streams(house: House) -> None:
    await request_taken(house)
    house.peers[1].write(bytes(1_000_000))
    await until(lambda: house.tunnel.sent(1))


async def response_paused(house: House) -> None:
    await request_taken(house)
    house.tunnel.outbounds[1].pause()
    house.peers[1].write(bytes(1_000_000))
    await turns()


async def word_given(house: House) -> None:
    await response_paused(house)
    house.peers[1].end()
    await turns()


async def half_closed(house: House) -> None:
    await request_taken(house)
    house.peers[1].transport.write_eof()
    await turns()


async def broken_off(house: House) -> None:
    await request_taken(house)
    next(iter(house.manager._open.values())).abort("a reason")


async def ended(house: House) -> None:
    await request_taken(house)
    house.peers[1].end()
    await house.ended(1)


STAGES = [
    nothing,
    just_opened,
    first_packet_on_its_way,
    large_first_packet_held,
    request_taken,
    response_streams,
    response_paused,
    word_given,
    half_closed,
    broken_off,
    ended,
]


EARLY = [nothing, just_opened, first_packet_on_its_way, large_first_packet_held]
CASES = [(stage, peer) for stage in STAGES for peer in (WordyPeer, Peer)] + [(stage, SlowPeer) for stage in EARLY]


@pytest.mark.parametrize("error", [None, ConnectionResetError("gone")], ids=["orderly", "reset"])
@pytest.mark.parametrize(("stage", "peer_class"), CASES)
async def test_everything_dies_with_the_session_at_once(
    open_house: OpenHouse, stage: Callable[[House], object], peer_class: type[Peer], error: Exception | None
) -> None:
    async with open_house(peer_class, limits=ConnectionLimits(outcome_timeout_s=0.05)) as house:
        await stage(house)  # type: ignore[misc]
        sent = list(house.tunnel.packets)
        house.manager.tunnel_lost(error)
        assert house.manager.open_connections == 0
        assert house.manager.budget.held_bytes == 0
        house.manager.tunnel_lost(error)
        house.data(1, b"after the end")
        house.data(2, FIRST)
        house.error(1)
        await until(lambda: all(peer.lost for peer in house.peers.values() if peer.transport is not None))
        for peer in house.peers.values():
            peer.outcome(1, Kind.CLIENT_GONE, Stage.SIZED)
        await turns()
        assert house.tunnel.packets == sent
        assert 2 not in house.peers


async def test_no_byte_of_a_session_reaches_the_next_one(open_house: OpenHouse) -> None:
    """The same ids again, while the old session's proxies still write."""
    second_peers: dict[int, Peer] = {}
    first_peers: dict[int, Peer] = {}
    current = first_peers

    def peer(conn_id: int, outcome: Outcome) -> Peer:
        current[conn_id] = EchoPeer(conn_id, outcome)
        return current[conn_id]

    async with open_house(peer) as house:
        for conn_id in range(1, 21):
            house.data(conn_id, b"first session %d" % conn_id)
        await until(lambda: len(first_peers) == 20 and all(p.received for p in first_peers.values()))
        for p in first_peers.values():
            p.write(b"old bytes" * 1000)
        house.manager.tunnel_lost(None)
        current = second_peers
        house.peers.clear()
        tunnel = RecordingTunnel()
        manager: ConnManager
        if house.acceptor is None:
            manager = MemoryConnManager(tunnel, peer)
        else:
            manager = UDSConnManager(tunnel, house.acceptor)
        for conn_id in range(1, 21):
            manager.packet_received(conn_id, DATA, b"second session %d" % conn_id, "")
        for p in first_peers.values():
            if not p.transport.is_closing():
                p.write(b"older bytes")
            p.outcome(p.conn_id, Kind.FAILED, Stage.HEAD)
        await until(lambda: len(second_peers) == 20 and all(tunnel.sent(n) for n in range(1, 21)))
        await turns()
        for conn_id in range(1, 21):
            assert second_peers[conn_id].received == b"second session %d" % conn_id
            assert tunnel.sent(conn_id) == b"second session %d" % conn_id
            assert tunnel.codes(conn_id) == []
        assert all(p.lost for p in first_peers.values())
        manager.tunnel_lost(None)
        await until(lambda: all(p.lost for p in second_peers.values()))


async def test_a_thousand_connections_die_at_once(open_house: OpenHouse) -> None:
    async with open_house(EchoPeer) as house:
        for conn_id in range(1, 1001):
            house.data(conn_id, FIRST)
        await until(lambda: house.tunnel.sent(1000))
        house.manager.tunnel_lost(None)
        assert house.manager.open_connections == 0
        await until(lambda: all(peer.lost for peer in house.peers.values()))


async def test_a_proxy_that_writes_on_after_its_client_has_gone_reaches_nobody(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        house.error(1)
        peer.write(b"too late")
        await until(lambda: peer.lost)
        await asyncio.sleep(0)
        assert house.tunnel.packets == []
        assert ERROR not in house.tunnel.codes(1)
