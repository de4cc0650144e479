"""The door that agents come through: which connections begin and when, and what happens to silent ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from agent.hub import agent_door
from agent.hub.agent_door import AgentDoor, Guest
from agent.runtime.acceptor import listening_sockets

from ..limits import scaled

pytestmark = pytest.mark.skipif(os.name != "posix", reason="silent connections are parked by add_reader")


class Begun(asyncio.Protocol):
    """An agent's connection that the hub has begun with. `said`: the bytes from the agent."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.said = b""
        self.transport: asyncio.Transport | None = None
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.said += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.guest.connection_ended()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    abort = close


class Harness:
    """A door, and those that it has begun with. most: how many were begun and not let in at once."""

    door: AgentDoor
    port = 0

    def __init__(self) -> None:
        self.begun: list[Begun] = []
        self.writers: list[asyncio.StreamWriter] = []

    def protocol(self, guest: Guest) -> Begun:
        self.begun.append(Begun(guest))
        return self.begun[-1]

    async def connect(self, said: bytes = b"") -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(said)
        return reader


async def until(reached: Callable[..., Any]) -> None:
    deadline_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Harness]:
    harness = Harness()
    settings = {
        "protocol": harness.protocol,
        "tls": None,
        "max_connections": 1000,
        "strangers": 256,
        "reason_of": str,
        "on_tls_failed": lambda peer, reason: None,
    }
    harness.door = AgentDoor(**(settings | options))
    harness.port = harness.door.open(await listening_sockets("127.0.0.1", 0, backlog=1024))
    try:
        yield harness
    finally:
        await harness.door.close()
        for begun in harness.begun:
            begun.close()
        for writer in harness.writers:
            writer.close()
        await until(lambda: all(begun.transport is None or begun.transport.is_closing() for begun in harness.begun))
        await asyncio.sleep(0)


async def test_silent_connections_hold_no_slot() -> None:
    async with opened() as harness:
        for _ in range(200):
            await harness.connect()
        await harness.connect(b"agent")
        await until(lambda: harness.begun and harness.begun[0].said == b"agent")
        assert len(harness.begun) == 1


async def test_a_silent_connection_is_begun_with_its_first_byte() -> None:
    async with opened() as harness:
        await harness.connect()
        await until(lambda: harness.door.open_connections == 1 and not harness.door.waiting)
        assert not harness.begun
        harness.writers[0].write(b"late")
        await until(lambda: harness.begun and harness.begun[0].said == b"late")


async def test_no_more_than_the_slots_are_begun_and_the_oldest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 1000.0)
    async with opened() as harness:
        for number in range(agent_door.SLOTS + 40):
            await harness.connect(b"%03d" % number)
        await until(lambda: len(harness.begun) == agent_door.SLOTS and all(begun.said for begun in harness.begun))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(harness.begun) == agent_door.SLOTS
        assert harness.door.waiting == 40
        for begun in harness.begun[:40]:
            begun.guest.call_accepted()
        await until(lambda: len(harness.begun) == agent_door.SLOTS + 40 and all(begun.said for begun in harness.begun))
        assert [int(begun.said) for begun in harness.begun] == list(range(agent_door.SLOTS + 40))


async def test_who_takes_long_lends_its_slot_and_is_let_in_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 0.0)
    async with opened() as harness:
        for _ in range(agent_door.SLOTS):
            await harness.connect(b"slow")
        await until(lambda: len(harness.begun) == agent_door.SLOTS)
        await harness.connect(b"quick")
        await until(lambda: harness.begun[-1].said == b"quick")
        harness.begun[0].guest.call_accepted()
        assert harness.begun[0].transport is not None
        assert not harness.begun[0].transport.is_closing()


async def test_what_has_left_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 1000.0)
    async with opened() as harness:
        for _ in range(agent_door.SLOTS + 10):
            await harness.connect(b"x")
        await until(lambda: len(harness.begun) == agent_door.SLOTS and harness.door.waiting == 10)
        for writer in harness.writers[agent_door.SLOTS :]:
            writer.close()  # with what it has said unread
        await harness.connect(b"last")
        await until(lambda: harness.door.waiting == 11)
        for begun in harness.begun[:20]:
            begun.guest.call_accepted()
        await until(lambda: harness.begun[-1].said == b"last")
        assert len(harness.begun) == agent_door.SLOTS + 1


@pytest.mark.parametrize("said", [b"", b"x"])
async def test_without_an_accepted_call_a_connection_is_closed_in_time(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(call_timeout_s=0.2) as harness:
        reader = await harness.connect(said)
        async with asyncio.timeout(scaled(20)):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert harness.door.refused == {"no_call": 1}
        assert "without an accepted call for 0.2 s" in caplog.text
        await until(lambda: harness.door.open_connections == 0)


async def test_with_an_accepted_call_a_connection_stays() -> None:
    async with opened(call_timeout_s=0.2) as harness:
        await harness.connect(b"x")
        await until(lambda: harness.begun)
        harness.begun[0].guest.call_accepted()
        harness.begun[0].guest.call_accepted()  # for another call
        mute = await harness.connect()
        async with asyncio.timeout(scaled(20)):
            assert await mute.read() == b""  # its time has run out, and began later
        assert harness.begun[0].transport is not None
        assert not harness.begun[0].transport.is_closing()
        assert harness.door.open_connections == 1


async def test_who_has_ended_its_calls_makes_room_for_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "PATIENCE_S", 0.0)
    async with opened(max_connections=3, strangers=2, call_timeout_s=0.3) as harness:
        for number in range(3):
            await harness.connect(b"x")
            await until(lambda number=number: len(harness.begun) == number + 1)
            harness.begun[number].guest.call_accepted()
        first, second, third = (each.guest for each in harness.begun)
        for guest in (second, first, first):
            guest.calls_ended()
        second.call_accepted()
        await harness.connect(b"agent")
        await until(lambda: len(harness.begun) == 4)
        assert [first.state, second.state, third.state] == [agent_door.GONE, agent_door.IN, agent_door.IN]
        harness.begun[3].guest.call_accepted()
        assert harness.door.open_connections == 3
        third.calls_ended()
        await asyncio.sleep(1)  # longer than call_timeout_s: the connection's protocol closes it, not the door
        assert third.state is agent_door.SLOW
        third.connection_ended()
        assert harness.door.open_connections == 2


async def test_time_in_the_hubs_own_queue_is_not_the_agents() -> None:
    async with opened(call_timeout_s=0.5) as harness:
        harness.door._slots = 1
        for _ in range(3):
            await harness.connect(b"x")
        await until(lambda: len(harness.begun) == 3)  # each has the slot for 0.5 s
        harness.begun[2].guest.call_accepted()
        await until(lambda: harness.door.open_connections == 1)
        assert harness.door.refused == {"no_call": 2}


async def test_what_has_come_while_the_hub_stood_still_is_read_before_deadlines() -> None:
    async with opened(call_timeout_s=1.0) as harness:
        await harness.connect()
        await until(lambda: harness.door.open_connections == 1 and not harness.door.waiting)
        harness.writers[0].write(b"in time")
        time.sleep(2.0)  # noqa: ASYNC251 - the loop stands still, as a stopped process does
        await until(lambda: harness.begun and harness.begun[0].said == b"in time")
        assert not harness.door.refused


async def test_past_all_connections_the_oldest_silent_one_goes(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(max_connections=10) as harness:
        silent = [await harness.connect() for _ in range(10)]
        await until(lambda: harness.door.open_connections == 10 and not harness.door.waiting)
        await harness.connect(b"agent")
        await until(lambda: harness.begun and harness.begun[0].said == b"agent")
        async with asyncio.timeout(scaled(20)):
            with contextlib.suppress(ConnectionError):
                assert await silent[0].read() == b""
        assert harness.door.refused == {"strangers": 1}
        assert "the oldest are closed" in caplog.text


async def test_agents_that_are_in_are_never_closed_for_others(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(max_connections=3) as harness:
        for _ in range(3):
            await harness.connect(b"x")
        await until(lambda: len(harness.begun) == 3)
        for begun in harness.begun:
            begun.guest.call_accepted()
        fourth = await harness.connect(b"y")
        async with asyncio.timeout(scaled(20)):
            with contextlib.suppress(ConnectionError):
                assert await fourth.read() == b""
        assert harness.door.refused == {"connections": 1}
        assert harness.door.open_connections == 3
        assert "too many connections from agents, so some are closed" in caplog.text


async def test_an_agent_that_would_wait_too_long_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 1000.0)
    async with opened() as harness:
        harness.door._pace = agent_door.MIN_PACE  # 80 agents in 20 s
        for _ in range(agent_door.SLOTS + 81):
            await harness.connect(b"x")
        await until(lambda: harness.door.waiting == 81)
        late = await harness.connect(b"x")
        async with asyncio.timeout(scaled(20)):
            with contextlib.suppress(ConnectionError):
                assert await late.read() == b""
        assert harness.door.refused == {"queue": 1}
        assert [r.levelno for r in caplog.records if "too many agents are waiting" in r.getMessage()] == [
            logging.WARNING
        ]


async def test_closing_ends_all_that_no_call_was_accepted_of() -> None:
    async with opened() as harness:
        readers = [await harness.connect(said) for said in (b"", b"x", b"y")]
        await until(lambda: len(harness.begun) == 2 and not harness.door.waiting)
        harness.begun[0].guest.call_accepted()
        await harness.door.close()
        ended = [reader for number, reader in enumerate(readers) if number != 1]
        async with asyncio.timeout(scaled(20)):
            for reader in ended:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        assert harness.begun[0].transport is not None
        assert not harness.begun[0].transport.is_closing()
