"""Unfinished messages of all calls and connections share one budget, and always give it back."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest

from agent.connections.inbound import FirstPacketBudget
from agent.tunnel.budget import SPARED_BYTES, MessageBudget, SparedAccount
from agent.tunnel.packet import MAX_SENT_MESSAGE_BYTES, Packet

CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/tunnel.v1.TunnelService/Tunnel"),
    (":authority", "hub"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("cluster-name", "c1"),
)
DATA, HEADERS, RST, PING = 0, 1, 3, 6
ERROR = 1
MIB = 2**20


async def begin(agent: Any, calls: int) -> None:
    agent.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    agent.settings()
    await agent.seen(4)
    agent.ack()
    for number in range(calls):
        agent.headers(*CALL, stream_id=2 * number + 1)
        agent.decoder.decode((await agent.seen(HEADERS))[3])


async def send(agent: Any, stream_id: int, data: bytes) -> None:
    for start in range(0, len(data), 16384):
        agent.send(DATA, 0, stream_id, data[start : start + 16384])
        await agent.writer.drain()


async def heard(agent: Any) -> None:
    """All that was sent has been read."""
    agent.send(PING, 0, 0, b"12345678")
    await agent.seen(PING)


def unfinished(length: int, sent: int) -> bytes:
    """The beginning of a message."""
    return b"\0" + length.to_bytes(4, "big") + Packet(1, 0, bytes(length)).encode()[5 : 5 + sent]


async def until(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110  # the budget has no event
            await asyncio.sleep(0.001)


async def test_a_hundred_calls_with_unfinished_messages_hold_no_more_than_the_budget(
    tunnels: Any, raw_agent: Any
) -> None:
    """They held 400 MiB."""
    async with tunnels(messages=MessageBudget(8 * MIB)) as ends, raw_agent(ends.port) as agent:
        budget = ends.server.messages
        await begin(agent, 100)
        agent.credit(2**30)

        async def read() -> None:
            while True:
                await agent.frame()

        reading = asyncio.create_task(read())
        most = 0
        for number in range(100):
            await send(agent, 2 * number + 1, unfinished(MAX_SENT_MESSAGE_BYTES, MIB))
            most = max(most, budget.held_bytes)
        await until(lambda: budget.ended_calls >= 92)
        assert most <= 8 * MIB
        assert budget.held_bytes <= 8 * MIB
        assert sum(bool(session.lost) for session in ends.hub_sessions) == budget.ended_calls
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    assert budget.held_bytes == 0


async def test_a_call_that_finds_no_room_ends_with_a_status_that_says_so(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels(messages=MessageBudget(MIB)) as ends, raw_agent(ends.port) as agent:
        await begin(agent, 2)
        await send(agent, 1, unfinished(3 * MIB, MIB + 16384))
        _, flags, stream_id, block = await agent.seen(HEADERS)
        status = dict(agent.decoder.decode(block))
        assert (flags & 1, stream_id, status["grpc-status"]) == (1, 1, "8")
        assert status["grpc-message"].startswith(f"gRPC: no memory for a message of {3 * MIB} bytes")
        assert (await agent.seen(RST))[2:] == (1, bytes(4))
        await send(agent, 3, Packet(1, 0, bytes(100_000)).encode())
        await ends.hub_sessions[1].until(lambda: ends.hub_sessions[1].packets)
        assert not ends.hub_sessions[1].lost


async def test_who_holds_the_budget_gives_way_to_others(tunnels: Any, raw_agent: Any) -> None:
    """One peer fills it and waits. An honest agent's message in two parts still arrives."""
    async with (
        tunnels(messages=MessageBudget(4 * MIB)) as ends,
        raw_agent(ends.port) as holder,
        raw_agent(ends.port) as other,
    ):
        await begin(holder, 4)
        for stream_id in (1, 3, 5, 7):
            await send(holder, stream_id, unfinished(3 * MIB, MIB - 16384 * (8 - stream_id)))
        await heard(holder)
        budget = ends.server.messages
        assert budget.ended_calls == 0
        await begin(other, 1)
        message = Packet(1, 0, bytes(900_000)).encode()
        await send(other, 1, message[:800_000])
        await heard(other)
        assert budget.ended_calls == 1
        await send(other, 1, message[800_000:])
        honest = ends.hub_sessions[-1]
        await honest.until(lambda: honest.packets)
        assert not honest.lost
        assert [bool(session.lost) for session in ends.hub_sessions] == [False, False, False, True, False]
        assert "give way" in str(ends.hub_sessions[3].lost[0])


Ending = Callable[[Any, Any], Any]


async def whole(agent: Any, ends: Any) -> None:
    message = Packet(1, 0, bytes(MIB)).encode()
    await send(agent, 1, message[5 + 500_000 :])


async def reset(agent: Any, ends: Any) -> None:
    agent.send(RST, 0, 1, struct.pack(">I", 8))


async def end_of_stream(agent: Any, ends: Any) -> None:
    agent.send(DATA, 1, 1)


async def by_trailers(agent: Any, ends: Any) -> None:
    agent.headers(("grpc-status", "0"), end=True)


async def eof(agent: Any, ends: Any) -> None:
    agent.writer.close()


async def abort(agent: Any, ends: Any) -> None:
    agent.writer.transport.abort()


async def broken_frame(agent: Any, ends: Any) -> None:
    agent.send(RST, 0, 1, bytes(3))


async def broken_window(agent: Any, ends: Any) -> None:
    agent.credit(2**31 - 1, stream_id=1)


async def goaway(agent: Any, ends: Any) -> None:
    agent.goaway(0, 2)


async def ended_by_the_hub(agent: Any, ends: Any) -> None:
    ends.hub_sessions[0].tunnel.finish_when_sent()


async def hub_closes(agent: Any, ends: Any) -> None:
    await ends.server.close(timeout_s=0.1)


@pytest.mark.parametrize(
    "ending",
    [
        whole,
        reset,
        end_of_stream,
        by_trailers,
        eof,
        abort,
        broken_frame,
        broken_window,
        goaway,
        ended_by_the_hub,
        hub_closes,
    ],
)
async def test_what_was_charged_is_given_back_however_the_message_ends(
    tunnels: Any, raw_agent: Any, ending: Ending
) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        budget = ends.server.messages
        await begin(agent, 1)
        message = Packet(1, 0, bytes(MIB)).encode()
        await send(agent, 1, message[: 5 + 500_000])
        await heard(agent)
        assert budget.held_bytes == 500_000
        await ending(agent, ends)
        await until(lambda: not budget.held_bytes)
        assert not budget._holding


async def test_messages_that_come_whole_are_not_charged(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels(messages=MessageBudget(0)) as ends, raw_agent(ends.port) as agent:
        await begin(agent, 1)
        for number in range(20):
            agent.send(DATA, 0, 1, Packet(1, 0, bytes(1000)).encode())
            await ends.hub_sessions[0].until(lambda number=number: len(ends.hub_sessions[0].packets) == number + 1)
        assert ends.server.messages.held_bytes == 0


# ---------------------------------------------------------------- the agent


async def test_an_agent_without_room_fails_one_connection_and_its_session_goes_on(tunnels: Any, raw_hub: Any) -> None:
    """A hub's first packet holds a whole upload: 256 MiB. The budget is that of first packets that wait for targets."""
    budget = FirstPacketBudget(2 * MIB)
    async with tunnels() as ends, raw_hub() as (port, accepted):
        ends.start(ends.client(port, messages=budget))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        session = ends.agent_sessions[0]
        fits = Packet(7, 0, bytes(2 * MIB)).encode()
        await send(hub, 1, fits)
        await session.until(lambda: len(session.packets) == 1)
        assert budget.held_bytes == 0
        large = Packet(9, 0, bytes(5 * MIB)).encode()
        await send(hub, 1, large[: 4 * MIB])
        await session.until(lambda: len(session.packets) == 2)
        assert session.packets[1][:2] == (9, ERROR)
        assert session.packets[1][3].startswith(f"gRPC: no memory for a message of {len(large) - 5} bytes")
        assert budget.held_bytes == 0
        await send(hub, 1, large[4 * MIB :] + Packet(11, 0, b"fine").encode())
        await session.until(lambda: len(session.packets) == 3)
        assert session.packets[2] == (11, DATA, b"fine", "")
        while Packet(9, ERROR, b"", session.packets[1][3]) not in hub.packets():
            await hub.frame()
        assert not session.lost


async def test_small_messages_arrive_though_the_agents_budget_is_spent(tunnels: Any, raw_hub: Any) -> None:
    """Uploads that wait for slow targets hold it: the other requests don't pay for that."""
    budget = FirstPacketBudget(2 * MIB)
    assert budget.take(2 * MIB)
    async with tunnels() as ends, raw_hub() as (port, accepted):
        ends.start(ends.client(port, messages=budget))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        session = ends.agent_sessions[0]
        await send(hub, 1, Packet(7, 0, bytes(SPARED_BYTES - 10)).encode())
        await session.until(lambda: session.packets)
        assert session.packets[0][:2] == (7, DATA)
        assert budget.held_bytes == 2 * MIB


def test_a_spared_account_charges_what_is_beyond_and_gives_it_back() -> None:
    budget = FirstPacketBudget(100)
    account = SparedAccount(budget)
    assert account.take(SPARED_BYTES)
    assert budget.held_bytes == 0
    assert account.take(60)
    assert not account.take(50)
    assert (budget.held_bytes, account.held_bytes) == (60, SPARED_BYTES + 60)
    account.give_back(30)
    assert budget.held_bytes == 30
    account.give_back(SPARED_BYTES + 30)
    assert (budget.held_bytes, account.held_bytes) == (0, 0)
