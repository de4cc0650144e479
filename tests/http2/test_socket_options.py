"""Bounds on the bytes below a session: in the kernel and in one turn of the event loop.

No packet can overtake bytes in the kernel.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import pytest

from agent.http2 import socket_options
from agent.http2.sizes import RECEIVE_BYTES, RECEIVE_TURN_BYTES, UNREAD_BYTES, UNSENT_BYTES
from agent.tunnel.packet import Packet

FRAME, FRAMES = 16_000, 256
"""Payload bytes of a packet, which has its own frame, and how many packets arrive at once."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows how near a peer is")


class Above:
    """A transport that gives access to its socket."""

    def __init__(self, sock: socket.socket | None) -> None:
        self.sock = sock

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> socket.socket | None:
        assert name == "socket"
        return self.sock


def bounds(sock: socket.socket) -> tuple[int, int]:
    return (
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF),
    )


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


async def test_both_roles_bound_both_queues_of_a_near_peer(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        for end in (agent, hub):
            sock = end.tunnel._stream.connection._transport.get_extra_info("socket")
            unsent, unread = bounds(sock)
            assert unsent == UNSENT_BYTES
            assert UNREAD_BYTES <= unread <= 2 * UNREAD_BYTES  # doubled, where the system allows so much


@pytest.mark.parametrize("round_trip_s", [0.0, socket_options.NEAR_S * 2, 0.05])
def test_a_far_peer_and_one_of_unknown_distance_keep_the_kernels_receive_queue(
    round_trip_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_options, "_read", lambda sock: socket_options.Link(0, False, round_trip_s))
    one, other = connected()
    with one, other:
        before = bounds(one)
        socket_options.prepare(Above(one))  # type: ignore[arg-type]  # all that is asked of it
        assert bounds(one) == (UNSENT_BYTES, before[1])


def test_a_round_trip_is_what_the_kernel_measured() -> None:
    one, other = connected()
    with one, other:
        link = socket_options.Link.of(Above(one))  # type: ignore[arg-type]  # all that is asked of it
        assert link is not None
        assert 0 < link.round_trip_s < 0.1
    with socket.socket(socket.AF_UNIX) as sock:
        assert socket_options.Link.of(Above(sock)) is None  # type: ignore[arg-type]  # as above
    with socket.socket() as sock:  # not connected
        link = socket_options.Link.of(Above(sock))  # type: ignore[arg-type]  # as above
        assert link is None or link.round_trip_s == 0


def test_what_is_not_tcp_is_left_alone() -> None:
    socket_options.prepare(Above(None))  # type: ignore[arg-type]  # as above
    one, other = socket.socketpair()
    with one, other:
        before = one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        socket_options.prepare(Above(one))  # type: ignore[arg-type]  # as above
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before


async def test_others_have_their_turn_while_a_peer_sends_megabytes(tunnels: Any, raw_hub: Any) -> None:
    """uvloop would read on while there is something, up to 32 times RECEIVE_BYTES."""
    loop = asyncio.get_running_loop()
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        peer = await accepted()
        await peer.greet()
        await ends.until(lambda: ends.ready)
        agent, turns = ends.agent_sessions[-1], [0]

        def turn() -> None:
            if sum(turns) < FRAME * FRAMES:
                turns.append(0)
                loop.call_soon(turn)

        def count(conn_id: int, code: int, data: Any, text: str) -> None:
            turns[-1] += len(data)

        agent.on_packet = count
        turn()
        for _ in range(FRAMES):
            peer.send(0, 0, 1, Packet(7, 0, bytes(FRAME)).encode())
        await agent.until(lambda: len(agent.packets) >= FRAMES)
        assert sum(turns) == FRAME * FRAMES
        assert max(turns) <= RECEIVE_TURN_BYTES + RECEIVE_BYTES


def test_a_peer_that_became_far_has_the_kernels_own_sizing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that was set once would hold for the session's life."""
    one, other = connected()
    with one, other:
        socket_options.prepare(Above(one))  # type: ignore[arg-type]  # all that is asked of it
        locked = one.getsockopt(socket.SOL_SOCKET, socket_options._SO_BUF_LOCK)
        assert not socket_options.size_receive_queue_freely(Above(one))  # type: ignore[arg-type]  # as above
        assert one.getsockopt(socket.SOL_SOCKET, socket_options._SO_BUF_LOCK) == locked != 0
        monkeypatch.setattr(socket_options, "_read", lambda sock: socket_options.Link(0, False, 0.2))
        assert socket_options.size_receive_queue_freely(Above(one))  # type: ignore[arg-type]  # as above
        assert one.getsockopt(socket.SOL_SOCKET, socket_options._SO_BUF_LOCK) == 0


def test_what_the_peers_tcp_has_taken_is_counted() -> None:
    one, other = connected()
    with one, other:
        before = socket_options.Link.of(Above(one))  # type: ignore[arg-type]  # all that is asked of it
        one.sendall(bytes(1000))
        assert len(other.recv(1000, socket.MSG_WAITALL)) == 1000
        after = socket_options.Link.of(Above(one))  # type: ignore[arg-type]  # as above
        assert before is not None
        assert after is not None
        assert after.acknowledged_bytes - before.acknowledged_bytes == 1000
        assert not after.waiting


async def test_both_roles_end_what_is_not_acknowledged_for_15_s(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        for end in (agent, hub):
            sock = end.tunnel._stream.connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000
