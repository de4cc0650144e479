"""A drain lets what is in flight finish, ends the rest by the table, and waits until nothing is outstanding."""

from __future__ import annotations

import asyncio
import time

import pytest

from agent.connections import ConnectionLimits
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, ERROR, House, OpenHouse, until

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"
UNCONFIRMED = "the hub did not confirm that it has closed its clients' connections"


def forgets_at_once(house: House) -> None:
    """Have the hub respond with ERROR to every probe of a closed id.

    A base hub does so if the client has closed.
    """

    def answer(conn_id: int, code: int) -> None:
        if code == DATA and conn_id not in house.manager._open:
            asyncio.get_running_loop().call_soon(house.error, conn_id)

    house.tunnel.on_send = answer


async def test_a_drain_without_connections_is_over_at_once(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.manager.drain(30.0)
        assert house.tunnel.packets == []


def forgets_behind_an_error(house: House) -> None:
    """Have the hub list a connection until an ERROR for it has reached the client, as a Go hub does."""
    told: set[int] = set()

    def answer(conn_id: int, code: int) -> None:
        if code == ERROR:
            told.add(conn_id)
        elif code == DATA and conn_id in told:
            asyncio.get_running_loop().call_soon(house.error, conn_id)

    house.tunnel.on_send = answer


async def test_idle_connections_end_by_one_error_at_once(open_house: OpenHouse) -> None:
    async with open_house() as house:
        forgets_behind_an_error(house)
        peer = await house.opened(1)
        peer.write(b"an earlier answer")
        await until(lambda: house.tunnel.sent(1))
        house.manager.begin_drain()
        peer.end()  # the proxy's part of a drain
        before = time.monotonic()
        await house.manager.drain(30.0)
        assert time.monotonic() - before < 5
        assert house.tunnel.codes(1).count(ERROR) == 1
        assert house.manager.is_idle


async def test_what_is_in_flight_finishes_and_the_hub_is_asked_until_it_knows_it_no_more(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        house.data(1, FIRST)
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0.01)
        assert not drain.done()
        peer.write(b"the answer")
        peer.end()
        await house.ended(1)
        asked = house.tunnel.codes(1).count(DATA)
        await until(lambda: house.tunnel.codes(1).count(DATA) > asked + 1)  # asked again: no response yet
        assert not drain.done()
        house.error(1)
        await drain
        assert house.tunnel.sent(1) == b"the answer"
        assert ERROR not in house.tunnel.codes(1)


async def test_what_outlasts_the_deadline_ends_by_the_table(open_house: OpenHouse) -> None:
    async with open_house() as house:
        forgets_at_once(house)
        stages = [Stage.IDLE, Stage.HEAD, Stage.CHUNKED, Stage.SIZED, Stage.UPGRADED]
        for conn_id, stage in enumerate(stages, 1):
            peer = await house.opened(conn_id)
            peer.stage = stage
            house.data(conn_id, FIRST)
            await until(lambda peer=peer: peer.received)
            if stage is not Stage.HEAD:
                peer.write(b"a part")
                await until(lambda conn_id=conn_id: house.tunnel.sent(conn_id))
        await house.manager.drain(0.05)
        errors = [ERROR in house.tunnel.codes(conn_id) for conn_id in range(1, 6)]
        assert errors == [True, True, True, False, False]  # of the idle one no response is outstanding
        assert house.manager.open_connections == 0
        assert house.manager.counters.truncated == 2
        await until(lambda: all(peer.lost for peer in house.peers.values()))


async def test_a_hub_with_close_is_told_and_not_asked(open_house: OpenHouse) -> None:
    async with open_house(features=frozenset({"close"})) as house:
        idle, busy = await house.opened(1), await house.opened(2)
        busy.stage = Stage.SIZED
        busy.write(b"a part")
        await until(lambda: house.tunnel.sent(2))
        drain = asyncio.create_task(house.manager.drain(0.05))
        await asyncio.sleep(0)
        idle.end()
        await drain
        assert house.tunnel.codes(1) == [CLOSE]
        assert house.tunnel.codes(2) == [ERROR]


async def test_a_client_that_is_gone_is_not_waited_for(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        house.data(1, FIRST)
        house.tunnel.on_send = lambda conn_id, code: asyncio.get_running_loop().call_soon(house.error, conn_id)
        before = time.monotonic()
        await house.manager.drain(30.0)
        assert time.monotonic() - before < 5
        await until(lambda: peer.lost)


async def test_a_hub_that_answers_no_probe_is_given_its_own_time_for_a_client(
    open_house: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    assert ConnectionLimits().listed_s == 31.0  # a Go hub's 30 s, and one
    limits = ConnectionLimits(listed_s=0.4, probe_interval_s=0.1)
    async with open_house(limits=limits) as house:
        peer = await house.opened(1)
        house.data(1, FIRST)
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0)
        peer.write(b"the answer")
        peer.end()
        before = time.monotonic()
        await drain
        assert 0.35 <= time.monotonic() - before < 4
        assert house.manager.is_idle
        assert caplog.messages.count(UNCONFIRMED) == 1  # it may have it still: an upload's client, for example


async def test_a_client_with_a_whole_response_is_ended_by_an_error_after_a_second(open_house: OpenHouse) -> None:
    async with open_house() as house:
        forgets_behind_an_error(house)
        peer = await house.opened(1)
        house.data(1, FIRST)
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0)
        peer.write(b"the answer, and Connection: close")
        peer.end()
        before = time.monotonic()
        await drain
        assert 0.9 <= time.monotonic() - before < 10
        assert house.tunnel.codes(1).count(ERROR) == 1


async def test_an_error_that_the_hub_dropped_is_sent_again(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        peer.write(b"an earlier answer")
        await until(lambda: house.tunnel.sent(1))
        house.manager.begin_drain()
        peer.end()
        drain = asyncio.create_task(house.manager.drain(30.0))
        await until(lambda: house.tunnel.codes(1).count(ERROR) == 2)
        assert not drain.done()
        house.error(1)
        await drain


async def test_a_truncated_response_gets_no_error_however_long_the_hub_lists_it(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        peer.stage = Stage.SIZED
        house.data(1, FIRST)
        await until(lambda: peer.received)
        peer.write(b"a part")
        await until(lambda: house.tunnel.sent(1))
        drain = asyncio.create_task(house.manager.drain(0.01))
        await house.ended(1)
        began = time.monotonic()
        asked = house.tunnel.codes(1).count(DATA)
        await until(lambda: time.monotonic() - began > 1.3 and house.tunnel.codes(1).count(DATA) > asked + 4)
        assert ERROR not in house.tunnel.codes(1)
        assert not drain.done()
        house.error(1)
        await drain


async def test_many_that_ended_before_are_asked_about_a_few_hundred_at_a_time(open_house: OpenHouse) -> None:
    async with open_house() as house:
        for conn_id in range(1, 701):
            peer = await house.opened(conn_id)
            peer.end()
            await house.ended(conn_id)
        asked: list[int] = []
        most = 0

        def answer(conn_id: int, code: int) -> None:
            nonlocal most
            if code == DATA:
                asked.append(conn_id)
                most = max(most, len(asked))
                asyncio.get_running_loop().call_later(0.002, house.error, asked[-1])
                asyncio.get_running_loop().call_later(0.002, asked.remove, conn_id)

        house.tunnel.on_send = answer
        await house.manager.drain(30.0)
        assert house.manager.is_idle
        assert most <= 600  # a hub drops a response if 1,000 packets wait


async def test_what_ended_is_forgotten_when_no_hub_lists_it_any_longer(
    open_house: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house(limits=ConnectionLimits(listed_s=0.2, probe_interval_s=0.1)) as house:
        peer = await house.opened(1)
        peer.end()
        await house.ended(1)
        assert not house.manager.is_idle
        await until(lambda: house.manager.is_idle)
        await until(lambda: house.manager._prober._timer is None)
        assert UNCONFIRMED not in caplog.messages  # nobody asked


async def test_a_hub_with_close_lists_nothing_that_ended(open_house: OpenHouse) -> None:
    async with open_house(features=frozenset({"close"})) as house:
        peer = await house.opened(1)
        peer.end()
        await house.ended(1)
        assert house.manager.is_idle
        assert len(house.manager._listed) == 0


async def test_a_drain_waits_until_the_tunnel_has_sent_everything(open_house: OpenHouse) -> None:
    async with open_house() as house:
        house.tunnel.bytes_buffered = 1
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0.05)
        assert not drain.done()
        house.tunnel.bytes_buffered = 0
        await drain


async def test_a_lost_session_ends_its_drain(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.opened(1)
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0.01)
        house.manager.tunnel_lost(ConnectionResetError())
        async with asyncio.timeout(1):
            await drain


async def test_a_cancelled_drain_leaves_the_rest_running(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0.01)
        drain.cancel()
        await asyncio.wait([drain])
        house.data(1, FIRST)
        await until(lambda: peer.received == FIRST)
        peer.end(Kind.COMPLETE, Stage.IDLE)
        await house.ended(1)
