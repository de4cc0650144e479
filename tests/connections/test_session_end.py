"""A session that is lost takes everything of it along, at every stage, and leaves nothing to the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from agent.connections import ConnectionLimits, MemoryConnManager, UDSConnManager
from agent.connections.manager import ConnManager
from agent.outcome import Kind, Outcome, Stage

from .conftest import (
    DATA,
    ERROR,
    EchoPeer,
    Peer,
    RecordingTunnel,
    SlowPeer,
    Stack,
    StackFactory,
    WordyPeer,
    turns,
    until,
)

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"


async def nothing(stack: Stack) -> None:
    pass


async def just_opened(stack: Stack) -> None:
    stack.data(1)


async def first_packet_on_its_way(stack: Stack) -> None:
    stack.data(1)
    stack.data(1, FIRST)


async def large_first_packet_held(stack: Stack) -> None:
    stack.data(1, bytes(2_000_000))
    await turns()


async def request_taken(stack: Stack) -> None:
    peer = await stack.opened(1)
    stack.data(1, FIRST)
    await until(lambda: peer.received == FIRST)


async def response_streams(stack: Stack) -> None:
    await request_taken(stack)
    stack.peers[1].write(bytes(1_000_000))
    await until(lambda: stack.tunnel.sent(1))


async def response_paused(stack: Stack) -> None:
    await request_taken(stack)
    stack.tunnel.outbounds[1].pause()
    stack.peers[1].write(bytes(1_000_000))
    await turns()


async def word_given(stack: Stack) -> None:
    await response_paused(stack)
    stack.peers[1].end()
    await turns()


async def half_closed(stack: Stack) -> None:
    await request_taken(stack)
    stack.peers[1].transport.write_eof()
    await turns()


async def broken_off(stack: Stack) -> None:
    await request_taken(stack)
    next(iter(stack.manager._open.values())).abort("a reason")


async def ended(stack: Stack) -> None:
    await request_taken(stack)
    stack.peers[1].end()
    await stack.ended(1)


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
    open_stack: StackFactory, stage: Callable[[Stack], object], peer_class: type[Peer], error: Exception | None
) -> None:
    async with open_stack(peer_class, limits=ConnectionLimits(outcome_timeout_s=0.05)) as stack:
        await stage(stack)  # type: ignore[misc]
        sent = list(stack.tunnel.packets)
        stack.manager.tunnel_lost(error)
        assert stack.manager.open_connections == 0
        assert stack.manager.budget.held_bytes == 0
        stack.manager.tunnel_lost(error)
        stack.data(1, b"after the end")
        stack.data(2, FIRST)
        stack.error(1)
        await until(lambda: all(peer.lost for peer in stack.peers.values() if peer.transport is not None))
        for peer in stack.peers.values():
            peer.outcome(1, Kind.CLIENT_GONE, Stage.SIZED)
        await turns()
        assert stack.tunnel.packets == sent
        assert 2 not in stack.peers


async def test_no_byte_of_a_session_reaches_the_next_one(open_stack: StackFactory) -> None:
    """The same ids again, while the old session's proxies still write."""
    second_peers: dict[int, Peer] = {}
    first_peers: dict[int, Peer] = {}
    current = first_peers

    def peer(conn_id: int, outcome: Outcome) -> Peer:
        current[conn_id] = EchoPeer(conn_id, outcome)
        return current[conn_id]

    async with open_stack(peer) as stack:
        for conn_id in range(1, 21):
            stack.data(conn_id, b"first session %d" % conn_id)
        await until(lambda: len(first_peers) == 20 and all(p.received for p in first_peers.values()))
        for p in first_peers.values():
            p.write(b"old bytes" * 1000)
        stack.manager.tunnel_lost(None)
        current = second_peers
        stack.peers.clear()
        tunnel = RecordingTunnel()
        manager: ConnManager
        if stack.acceptor is None:
            manager = MemoryConnManager(tunnel, peer)
        else:
            manager = UDSConnManager(tunnel, stack.acceptor)
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


async def test_a_thousand_connections_die_at_once(open_stack: StackFactory) -> None:
    async with open_stack(EchoPeer) as stack:
        for conn_id in range(1, 1001):
            stack.data(conn_id, FIRST)
        await until(lambda: stack.tunnel.sent(1000))
        stack.manager.tunnel_lost(None)
        assert stack.manager.open_connections == 0
        await until(lambda: all(peer.lost for peer in stack.peers.values()))


async def test_a_proxy_that_writes_on_after_its_client_has_gone_reaches_nobody(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        stack.error(1)
        peer.write(b"too late")
        await until(lambda: peer.lost)
        await asyncio.sleep(0)
        assert stack.tunnel.packets == []
        assert ERROR not in stack.tunnel.codes(1)
