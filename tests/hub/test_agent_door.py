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


class Rig:
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


async def until(reached: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Rig]:
    rig = Rig()
    settings = {
        "protocol": rig.protocol,
        "tls": None,
        "max_connections": 1000,
        "strangers": 256,
        "reason_of": str,
        "on_tls_failed": lambda peer, reason: None,
    }
    rig.door = AgentDoor(**(settings | options))
    rig.port = rig.door.open(await listening_sockets("127.0.0.1", 0, backlog=1024))
    try:
        yield rig
    finally:
        await rig.door.close()
        for begun in rig.begun:
            begun.close()
        for writer in rig.writers:
            writer.close()
        await until(lambda: all(begun.transport is None or begun.transport.is_closing() for begun in rig.begun))
        await asyncio.sleep(0)


async def test_silent_connections_hold_no_slot() -> None:
    async with opened() as rig:
        for _ in range(200):
            await rig.connect()
        await rig.connect(b"agent")
        await until(lambda: rig.begun and rig.begun[0].said == b"agent")
        assert len(rig.begun) == 1


async def test_a_silent_connection_is_begun_with_its_first_byte() -> None:
    async with opened() as rig:
        await rig.connect()
        await until(lambda: rig.door.open_connections == 1 and not rig.door.waiting)
        assert not rig.begun
        rig.writers[0].write(b"late")
        await until(lambda: rig.begun and rig.begun[0].said == b"late")


async def test_no_more_than_the_slots_are_begun_and_the_oldest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 1000.0)
    async with opened() as rig:
        for number in range(agent_door.SLOTS + 40):
            await rig.connect(b"%03d" % number)
        await until(lambda: len(rig.begun) == agent_door.SLOTS and all(begun.said for begun in rig.begun))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(rig.begun) == agent_door.SLOTS
        assert rig.door.waiting == 40
        for begun in rig.begun[:40]:
            begun.guest.call_accepted()
        await until(lambda: len(rig.begun) == agent_door.SLOTS + 40 and all(begun.said for begun in rig.begun))
        assert [int(begun.said) for begun in rig.begun] == list(range(agent_door.SLOTS + 40))


async def test_who_takes_long_lends_its_slot_and_is_let_in_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 0.0)
    async with opened() as rig:
        for _ in range(agent_door.SLOTS):
            await rig.connect(b"slow")
        await until(lambda: len(rig.begun) == agent_door.SLOTS)
        await rig.connect(b"quick")
        await until(lambda: rig.begun[-1].said == b"quick")
        rig.begun[0].guest.call_accepted()
        assert rig.begun[0].transport is not None
        assert not rig.begun[0].transport.is_closing()


async def test_what_has_left_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 1000.0)
    async with opened() as rig:
        for _ in range(agent_door.SLOTS + 10):
            await rig.connect(b"x")
        await until(lambda: len(rig.begun) == agent_door.SLOTS and rig.door.waiting == 10)
        for writer in rig.writers[agent_door.SLOTS :]:
            writer.close()  # with what it has said unread
        await rig.connect(b"last")
        await until(lambda: rig.door.waiting == 11)
        for begun in rig.begun[:20]:
            begun.guest.call_accepted()
        await until(lambda: rig.begun[-1].said == b"last")
        assert len(rig.begun) == agent_door.SLOTS + 1


@pytest.mark.parametrize("said", [b"", b"x"])
async def test_without_an_accepted_call_a_connection_is_closed_in_time(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(call_timeout_s=0.2) as rig:
        reader = await rig.connect(said)
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        assert rig.door.refused == {"no_call": 1}
        assert "without an accepted call for 0.2 s" in caplog.text
        await until(lambda: rig.door.open_connections == 0)


async def test_with_an_accepted_call_a_connection_stays() -> None:
    async with opened(call_timeout_s=0.2) as rig:
        await rig.connect(b"x")
        await until(lambda: rig.begun)
        rig.begun[0].guest.call_accepted()
        rig.begun[0].guest.call_accepted()  # for another call
        mute = await rig.connect()
        async with asyncio.timeout(20):
            assert await mute.read() == b""  # its time has run out, and began later
        assert rig.begun[0].transport is not None
        assert not rig.begun[0].transport.is_closing()
        assert rig.door.open_connections == 1


async def test_who_has_ended_its_calls_makes_room_for_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "PATIENCE_S", 0.0)
    async with opened(max_connections=3, strangers=2, call_timeout_s=0.3) as rig:
        for number in range(3):
            await rig.connect(b"x")
            await until(lambda number=number: len(rig.begun) == number + 1)
            rig.begun[number].guest.call_accepted()
        first, second, third = (each.guest for each in rig.begun)
        for guest in (second, first, first):
            guest.calls_ended()
        second.call_accepted()
        await rig.connect(b"agent")
        await until(lambda: len(rig.begun) == 4)
        assert [first.state, second.state, third.state] == [agent_door.GONE, agent_door.IN, agent_door.IN]
        rig.begun[3].guest.call_accepted()
        assert rig.door.open_connections == 3
        third.calls_ended()
        await asyncio.sleep(1)  # longer than call_timeout_s: the connection's protocol closes it, not the door
        assert third.state is agent_door.SLOW
        third.connection_ended()
        assert rig.door.open_connections == 2


async def test_time_in_the_hubs_own_queue_is_not_the_agents() -> None:
    async with opened(call_timeout_s=0.5) as rig:
        rig.door._slots = 1
        for _ in range(3):
            await rig.connect(b"x")
        await until(lambda: len(rig.begun) == 3)  # each has the slot for 0.5 s
        rig.begun[2].guest.call_accepted()
        await until(lambda: rig.door.open_connections == 1)
        assert rig.door.refused == {"no_call": 2}


async def test_what_has_come_while_the_hub_stood_still_is_read_before_deadlines() -> None:
    async with opened(call_timeout_s=1.0) as rig:
        await rig.connect()
        await until(lambda: rig.door.open_connections == 1 and not rig.door.waiting)
        rig.writers[0].write(b"in time")
        time.sleep(2.0)  # noqa: ASYNC251 - the loop stands still, as a stopped process does
        await until(lambda: rig.begun and rig.begun[0].said == b"in time")
        assert not rig.door.refused


async def test_past_all_connections_the_oldest_silent_one_goes(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(max_connections=10) as rig:
        silent = [await rig.connect() for _ in range(10)]
        await until(lambda: rig.door.open_connections == 10 and not rig.door.waiting)
        await rig.connect(b"agent")
        await until(lambda: rig.begun and rig.begun[0].said == b"agent")
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await silent[0].read() == b""
        assert rig.door.refused == {"strangers": 1}
        assert "the oldest are closed" in caplog.text


async def test_agents_that_are_in_are_never_closed_for_others(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(max_connections=3) as rig:
        for _ in range(3):
            await rig.connect(b"x")
        await until(lambda: len(rig.begun) == 3)
        for begun in rig.begun:
            begun.guest.call_accepted()
        fourth = await rig.connect(b"y")
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await fourth.read() == b""
        assert rig.door.refused == {"connections": 1}
        assert rig.door.open_connections == 3
        assert "too many connections from agents, so some are closed" in caplog.text


async def test_an_agent_that_would_wait_too_long_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agent_door, "LOAN_S", 1000.0)
    async with opened() as rig:
        rig.door._pace = agent_door.MIN_PACE  # 80 agents in 20 s
        for _ in range(agent_door.SLOTS + 81):
            await rig.connect(b"x")
        await until(lambda: rig.door.waiting == 81)
        late = await rig.connect(b"x")
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                assert await late.read() == b""
        assert rig.door.refused == {"queue": 1}
        assert [r.levelno for r in caplog.records if "too many agents are waiting" in r.getMessage()] == [
            logging.WARNING
        ]


async def test_closing_ends_all_that_no_call_was_accepted_of() -> None:
    async with opened() as rig:
        readers = [await rig.connect(said) for said in (b"", b"x", b"y")]
        await until(lambda: len(rig.begun) == 2 and not rig.door.waiting)
        rig.begun[0].guest.call_accepted()
        await rig.door.close()
        ended = [reader for number, reader in enumerate(readers) if number != 1]
        async with asyncio.timeout(20):
            for reader in ended:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        assert rig.begun[0].transport is not None
        assert not rig.begun[0].transport.is_closing()
