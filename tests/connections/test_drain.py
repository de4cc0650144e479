"""A drain lets what is in flight finish, ends the rest by the table, and waits until nothing is outstanding."""

from __future__ import annotations

import asyncio
import time

from agent.connections import ConnectionLimits
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, ERROR, House, OpenHouse, until

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"


def forgets_at_once(house: House) -> None:
    """Have the hub answer every probe of a closed id with ERROR, as a base hub does where the client has gone."""

    def answer(conn_id: int, code: int) -> None:
        if code == DATA and conn_id not in house.manager._open:
            asyncio.get_running_loop().call_soon(house.error, conn_id)

    house.tunnel.on_send = answer


async def test_a_drain_without_connections_is_over_at_once(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.manager.drain(30.0)
        assert house.tunnel.packets == []


async def test_idle_connections_end_without_a_word_to_the_hub_and_are_probed_no_more(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        peer.write(b"an earlier answer")
        await until(lambda: house.tunnel.sent(1))
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0)
        probes = house.tunnel.codes(1).count(DATA)
        peer.end()  # the proxy's part of a drain
        await drain
        assert house.tunnel.codes(1) == [DATA] * probes
        assert probes == 1


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
        await until(lambda: house.tunnel.codes(1).count(DATA) > asked + 1)  # asked again: no answer yet
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
        assert errors == [False, True, True, False, False]
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


async def test_a_hub_that_never_forgets_is_not_waited_for_ever(open_house: OpenHouse) -> None:
    assert ConnectionLimits().settle_timeout_s == 5.0
    async with open_house(limits=ConnectionLimits(settle_timeout_s=0.4)) as house:
        peer = await house.opened(1)
        house.data(1, FIRST)
        drain = asyncio.create_task(house.manager.drain(30.0))
        await asyncio.sleep(0)
        peer.write(b"the answer")
        peer.end()
        before = time.monotonic()
        await drain
        assert 0.35 <= time.monotonic() - before < 4


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
