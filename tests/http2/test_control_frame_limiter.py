"""A flood of frames that cost their sender nothing closes the connection. Honest use stays far below the limit."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest

from agent.errors import WireError
from agent.http2.control_frame_limiter import ALLOWED, ControlFrameLimiter
from agent.tunnel.packet import Packet

HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, ACK = 1, 2, 3, 4, 6, 1
CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/tunnel.v1.TunnelService/Tunnel"),
    (":authority", "hub"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("cluster-name", "c1"),
)


def pings(peer: Any, number: int) -> None:
    peer.send(PING, 0, 0, struct.pack(">Q", number))


def settings(peer: Any, number: int) -> None:
    peer.settings(initial_window_size=65535 + number % 2)


def resets(peer: Any, number: int) -> None:
    peer.headers(*CALL, stream_id=2 * number + 1)
    peer.send(RST_STREAM, 0, 2 * number + 1, struct.pack(">I", 8))


def acks(peer: Any, number: int) -> None:
    peer.send(PING, ACK, 0, struct.pack(">Q", number))


def priorities(peer: Any, number: int) -> None:
    peer.send(PRIORITY, 0, 2 * number + 101, struct.pack(">IB", 0, 1))


UNPACED = 8
"""The packets of a connection that an agent sends without a pause between two. 600 packets of one take a minute."""

Flood = Callable[[Any, int], None]


async def read(peer: Any) -> None:
    """Reads the responses to a flood, so that they don't pile up. Their pile has its own bound."""
    try:
        while True:
            peer.frames.append(await peer.frame())
    except (OSError, asyncio.IncompleteReadError, TimeoutError):
        pass


async def flooded(peer: Any, flood: Flood) -> None:
    """Flood until the connection ends."""
    reading = asyncio.ensure_future(read(peer))
    for number in range(3000):
        if reading.done() or peer.writer.transport.is_closing():
            break
        flood(peer, number)
        if number % 50 == 0:
            await asyncio.sleep(0)
    await reading


@pytest.mark.parametrize("flood", [pings, settings, resets, acks, priorities])
async def test_a_flooding_agent_is_dropped_and_the_others_are_not(
    tunnels: Any, raw_agent: Any, flood: Flood, caplog: pytest.LogCaptureFixture
) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        ends.start(ends.client())
        await ends.until(lambda: ends.ready)
        agent.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        agent.settings()
        await flooded(agent, flood)
        assert [record.getMessage() for record in caplog.records if "frames, and then" in record.getMessage()]
        assert not ends.lost
        assert len(ends.hub_sessions) <= 1 + ALLOWED[HEADERS][0] + 20


@pytest.mark.parametrize("flood", [pings, settings, acks, priorities])
async def test_a_flooding_hub_is_left(raw_hub: Any, tunnels: Any, flood: Flood) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        await flooded(hub, flood)
        await ends.until(lambda: ends.lost)
        assert "frames, and then" in str(ends.lost[0][1])


async def test_a_ping_for_each_piece_of_data_is_no_flood(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        for number in range(600):
            if number % UNPACED == 0:
                outbound = ends.ready[0].outbound(1 + number // UNPACED, lambda: None, lambda: None)
            outbound.write(b"x")
            before = len(hub.body)
            while len(hub.body) == before:
                await hub.frame()
            pings(hub, number)
            await hub.seen(PING)
        assert not ends.lost
        assert Packet(1, 0, b"x") in hub.packets()


def test_allowances_fill_again_by_the_second() -> None:
    now_s = 0.0
    guard = ControlFrameLimiter(lambda: now_s, lambda: 0)
    burst, per_second = ALLOWED[RST_STREAM]
    for _ in range(burst):
        guard.frame(RST_STREAM, 0)
    with pytest.raises(WireError):
        guard.frame(RST_STREAM, 0)
    guard.frame(SETTINGS, 0)  # each kind has its own
    now_s = 5.0
    for _ in range(int(5 * per_second)):
        guard.frame(RST_STREAM, 0)
    with pytest.raises(WireError, match="RST_STREAM"):
        guard.frame(RST_STREAM, 0)
