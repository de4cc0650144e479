"""`goaway`: DRAIN ends nothing by itself. Each role against a peer that keeps the rule, and against ones that don't."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from agent.tunnel.features import FEATURES
from agent.tunnel.packet import Packet

DATA, ERROR, DRAIN = 0, 1, 2
END_STREAM = 1
OK_HEAD = ((":status", "200"), ("content-type", "application/grpc"), ("tunnel-features", ",".join(FEATURES)))
CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/tunnel.v1.TunnelService/Tunnel"),
    (":authority", "hub"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("cluster-name", "c1"),
)
DRAINED = Packet(0, DRAIN)


def nothing() -> None:
    pass


async def until(peer: Any, packet: Packet) -> None:
    """Read the peer's frames until this packet has come."""
    async with asyncio.timeout(10):
        while packet not in peer.packets():
            peer.frames.append(await peer.frame())


async def until_end_of_stream(peer: Any) -> None:
    async with asyncio.timeout(10):
        while not any(kind == 0 and flags & END_STREAM for kind, flags, _, _ in peer.frames):
            peer.frames.append(await peer.frame())


def say(peer: Any, packet: Packet) -> None:
    peer.send(0, 0, 1, packet.encode())


def end(hub: Any) -> None:
    hub.headers(("grpc-status", "0"), end=True)


async def greet(hub: Any) -> None:
    """A hub's beginning, `goaway` named, up to the response to the probe."""
    await hub.reader.readexactly(24)
    hub.settings()
    hub.ack()
    hub.headers(*OK_HEAD)
    await hub.seen(1)
    await until(hub, Packet(-1))
    hub.answer_probe()


# ---------------------------------------------------------------- the agent's side


async def test_an_agent_that_leaves_takes_what_comes_before_the_answer(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        task = ends.start(ends.client(port))
        hub = await accepted()
        await greet(hub)
        await ends.until(lambda: ends.ready)
        tunnel, seen = ends.ready[0], ends.agent_sessions[0]
        leaving = asyncio.ensure_future(ends.clients[0].announce_drain(20))
        await until(hub, DRAINED)
        say(hub, Packet(1, DATA, b"on its way"))
        await seen.until(lambda: seen.packets)
        assert not leaving.done()
        assert not tunnel.opens_no_more
        outbound = tunnel.outbound(1, nothing, nothing)
        outbound.write(b"served")
        await until(hub, Packet(1, DATA, b"served"))
        say(hub, DRAINED)
        assert await leaving is True
        assert tunnel.opens_no_more
        assert not task.done()
        outbound.finish(3)
        await until(hub, Packet(1, 3))
        gone = asyncio.ensure_future(ends.clients[0].drain(20))
        await until_end_of_stream(hub)
        assert hub.packets().count(DRAINED) == 1
        end(hub)
        await gone
        await task
        assert seen.lost == [None]


async def test_what_is_queued_goes_out_before_the_end_of_the_stream(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await greet(hub)
        await ends.until(lambda: ends.ready)
        outbound = ends.ready[0].outbound(1, nothing, nothing)
        outbound.write(bytes(200_000))  # three of HTTP/2's first windows
        outbound.finish(3)
        gone = asyncio.ensure_future(ends.clients[0].drain(20))
        while len(hub.body) < 65535:
            hub.frames.append(await hub.frame())
        say(hub, DRAINED)
        hub.credit(1_000_000)
        hub.credit(1_000_000, stream_id=1)
        await until_end_of_stream(hub)
        assert sum(len(packet.data) for packet in hub.packets() if packet.conn_id == 1) == 200_000
        assert {DRAINED, Packet(1, 3)} <= set(hub.packets())
        end(hub)
        await gone


async def test_a_hub_that_does_not_answer_is_left_all_the_same(
    raw_hub: Any, tunnels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        task = ends.start(ends.client(port))
        hub = await accepted()
        await greet(hub)
        await ends.until(lambda: ends.ready)
        with caplog.at_level(logging.WARNING):
            assert await ends.clients[0].announce_drain(0.05) is True
            assert await ends.clients[0].announce_drain(0.05) is True
            await ends.clients[0].drain(0.05)
        await task
        messages = [record.getMessage() for record in caplog.records]
        assert messages == ["the hub did not respond to DRAIN within 0.05 s"]  # waited for once, not at each step
        assert len(ends.lost) == 1


async def test_a_hub_that_answers_late_has_the_time_that_is_left(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        task = ends.start(ends.client(port))
        hub = await accepted()
        await greet(hub)
        await ends.until(lambda: ends.ready)
        assert await ends.clients[0].announce_drain(0.01) is True
        leaving = asyncio.ensure_future(ends.clients[0].drain(20))
        await until(hub, DRAINED)
        say(hub, DRAINED)
        await until_end_of_stream(hub)
        end(hub)
        await leaving
        await task


async def test_a_hub_that_falls_silent_behind_its_answer_is_left(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        task = ends.start(ends.client(port))
        hub = await accepted()
        await greet(hub)
        await ends.until(lambda: ends.ready)
        leaving = asyncio.ensure_future(ends.clients[0].announce_drain(20))
        await until(hub, DRAINED)
        say(hub, DRAINED)
        await leaving
        await ends.clients[0].drain(0.05)
        await task
        await until_end_of_stream(hub)  # the agent ended the stream


async def test_a_hub_that_is_lost_while_it_is_asked_ends_the_wait(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        task = ends.start(ends.client(port))
        hub = await accepted()
        await greet(hub)
        await ends.until(lambda: ends.ready)
        leaving = asyncio.ensure_future(ends.clients[0].announce_drain(60))
        await until(hub, DRAINED)
        hub.writer.transport.abort()
        async with asyncio.timeout(10):
            await leaving
            await ends.clients[0].drain(60)
            await task


async def test_an_agent_answers_a_hub_that_leaves_and_dials_again(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await greet(hub)
        await ends.until(lambda: ends.ready)
        tunnel = ends.ready[0]
        outbound = tunnel.outbound(1, nothing, nothing)
        say(hub, DRAINED)
        await until(hub, DRAINED)
        say(hub, DRAINED)  # the agent ignores a second DRAIN
        following = await accepted()
        await greet(following)
        await ends.until(lambda: len(ends.ready) == 2)
        outbound.write(b"still served")
        await until(hub, Packet(1, DATA, b"still served"))
        assert not ends.lost
        outbound.finish(3)
        await until_end_of_stream(hub)
        assert hub.packets().count(DRAINED) == 1
        end(hub)
        await ends.until(lambda: ends.lost)
        assert ends.lost == [(tunnel, None)]
        assert DRAINED not in following.packets()


async def test_drain_of_a_base_hub_means_nothing(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        say(hub, DRAINED)
        say(hub, Packet(1, DATA, b"x"))
        seen = ends.agent_sessions[0]
        await seen.until(lambda: seen.packets)
        assert not ends.ready[0].opens_no_more
        assert not await ends.clients[0].announce_drain(20)  # it isn't asked either
        assert DRAINED not in hub.packets()


# ---------------------------------------------------------------- the hub's side


async def called(agent: Any, ends: Any, **settings: int) -> Any:
    """Make a call that offers all features, and return the hub's receiver of it."""
    agent.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    agent.settings(**settings)
    agent.headers(*CALL, ("tunnel-features", ",".join(sorted(FEATURES))))
    await ends.until(lambda: ends.hub_sessions)
    return ends.hub_sessions[-1]


async def test_a_hub_answers_drain_behind_what_it_has_announced(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hub = await called(agent, ends, initial_window_size=0)
        hub.on_packet = lambda conn_id, code, data, text: code == DRAIN and hub.tunnel.announce(7)
        hub.tunnel.outbound(7, nothing, nothing).write(b"waits for HTTP/2's window")
        say(agent, DRAINED)
        await hub.until(lambda: hub.packets)
        agent.settings(initial_window_size=65535)
        await until(agent, Packet(7, DATA, b"waits for HTTP/2's window"))
        order = agent.packets()
        assert order.index(Packet(7)) < order.index(DRAINED)
        assert hub.lost == []
        say(agent, DRAINED)  # the hub ignores a second DRAIN
        say(agent, Packet(7, DATA, b"answer"))
        await hub.until(lambda: hub.bytes_of(7))
        assert agent.packets().count(DRAINED) == 1
        agent.send(0, END_STREAM, 1)
        fields: dict[str, str] = {}
        while "grpc-status" not in fields:
            fields = dict(agent.decoder.decode((await agent.seen(1))[3]))
        assert fields["grpc-status"] == "0"
        assert hub.lost == [None]


async def test_a_hub_that_leaves_says_so_once_and_takes_the_answer(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hub = await called(agent, ends)
        hub.tunnel.say_drain()
        hub.tunnel.say_drain()
        await until(agent, DRAINED)
        say(agent, DRAINED)
        await hub.until(lambda: hub.packets)
        hub.tunnel.finish_when_sent()
        fields: dict[str, str] = {}
        while "grpc-status" not in fields:
            fields = dict(agent.decoder.decode((await agent.seen(1))[3]))
        assert fields["grpc-status"] == "0"
        assert agent.packets().count(DRAINED) == 1


async def test_drain_of_a_base_agent_ends_the_call(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels(features=frozenset({"close", "window"})) as ends, raw_agent(ends.port) as agent:
        hub = await called(agent, ends)
        hub.tunnel.say_drain()  # sends nothing, because goaway is not negotiated
        say(agent, DRAINED)
        fields: dict[str, str] = {}
        while "grpc-status" not in fields:
            fields = dict(agent.decoder.decode((await agent.seen(1))[3]))
        assert fields["grpc-status"] == "0"
        assert hub.lost == [None]
        assert DRAINED not in agent.packets()
