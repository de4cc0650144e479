"""A drain lets what is in flight finish, ends the rest by the table, and waits until nothing is outstanding."""

from __future__ import annotations

import asyncio
import time

import pytest

from agent.connections import ConnectionLimits
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, ERROR, Stack, StackFactory, until

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"
UNCONFIRMED = "the hub did not confirm that it has closed its clients' connections"


def forgets_at_once(stack: Stack) -> None:
    """Have the hub respond with ERROR to every probe of a closed id.

    A base hub does so if the client has closed.
    """

    def answer(conn_id: int, code: int) -> None:
        if code == DATA and conn_id not in stack.manager._open:
            asyncio.get_running_loop().call_soon(stack.error, conn_id)

    stack.tunnel.on_send = answer


async def test_a_drain_without_connections_is_over_at_once(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        await stack.manager.drain(30.0)
        assert stack.tunnel.packets == []


def forgets_behind_an_error(stack: Stack) -> None:
    """Have the hub list a connection until an ERROR for it has reached the client, as a Go hub does."""
    told: set[int] = set()

    def answer(conn_id: int, code: int) -> None:
        if code == ERROR:
            told.add(conn_id)
        elif code == DATA and conn_id in told:
            asyncio.get_running_loop().call_soon(stack.error, conn_id)

    stack.tunnel.on_send = answer


async def test_idle_connections_end_by_one_error_at_once(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        forgets_behind_an_error(stack)
        peer = await stack.opened(1)
        peer.write(b"an earlier answer")
        await until(lambda: stack.tunnel.sent(1))
        stack.manager.begin_drain()
        peer.end()  # the proxy's part of a drain
        before = time.monotonic()
        await stack.manager.drain(30.0)
        assert time.monotonic() - before < 5
        assert stack.tunnel.codes(1).count(ERROR) == 1
        assert stack.manager.is_idle


async def test_what_is_in_flight_finishes_and_the_hub_is_asked_until_it_knows_it_no_more(
    open_stack: StackFactory,
) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        stack.data(1, FIRST)
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await asyncio.sleep(0.01)
        assert not drain.done()
        peer.write(b"the answer")
        peer.end()
        await stack.ended(1)
        asked = stack.tunnel.codes(1).count(DATA)
        await until(lambda: stack.tunnel.codes(1).count(DATA) > asked + 1)  # asked again: no response yet
        assert not drain.done()
        stack.error(1)
        await drain
        assert stack.tunnel.sent(1) == b"the answer"
        assert ERROR not in stack.tunnel.codes(1)


async def test_what_outlasts_the_deadline_ends_by_the_table(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        forgets_at_once(stack)
        stages = [Stage.IDLE, Stage.HEAD, Stage.CHUNKED, Stage.SIZED, Stage.UPGRADED]
        for conn_id, stage in enumerate(stages, 1):
            peer = await stack.opened(conn_id)
            peer.stage = stage
            stack.data(conn_id, FIRST)
            await until(lambda peer=peer: peer.received)
            if stage is not Stage.HEAD:
                peer.write(b"a part")
                await until(lambda conn_id=conn_id: stack.tunnel.sent(conn_id))
        await stack.manager.drain(0.05)
        errors = [ERROR in stack.tunnel.codes(conn_id) for conn_id in range(1, 6)]
        assert errors == [True, True, True, False, False]  # of the idle one no response is outstanding
        assert stack.manager.open_connections == 0
        assert stack.manager.counters.truncated == 2
        await until(lambda: all(peer.lost for peer in stack.peers.values()))


async def test_a_hub_with_close_is_told_and_not_asked(open_stack: StackFactory) -> None:
    async with open_stack(features=frozenset({"close"})) as stack:
        idle, busy = await stack.opened(1), await stack.opened(2)
        busy.stage = Stage.SIZED
        busy.write(b"a part")
        await until(lambda: stack.tunnel.sent(2))
        drain = asyncio.create_task(stack.manager.drain(0.05))
        await asyncio.sleep(0)
        idle.end()
        await drain
        assert stack.tunnel.codes(1) == [CLOSE]
        assert stack.tunnel.codes(2) == [ERROR]


async def test_a_client_that_is_gone_is_not_waited_for(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        stack.data(1, FIRST)
        stack.tunnel.on_send = lambda conn_id, code: asyncio.get_running_loop().call_soon(stack.error, conn_id)
        before = time.monotonic()
        await stack.manager.drain(30.0)
        assert time.monotonic() - before < 5
        await until(lambda: peer.lost)


async def test_a_hub_that_answers_no_probe_is_given_its_own_time_for_a_client(
    open_stack: StackFactory, caplog: pytest.LogCaptureFixture
) -> None:
    assert ConnectionLimits().listed_s == 31.0  # a Go hub's 30 s, and one
    limits = ConnectionLimits(listed_s=0.4, probe_interval_s=0.1)
    async with open_stack(limits=limits) as stack:
        peer = await stack.opened(1)
        stack.data(1, FIRST)
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await asyncio.sleep(0)
        peer.write(b"the answer")
        peer.end()
        before = time.monotonic()
        await drain
        assert 0.35 <= time.monotonic() - before < 4
        assert stack.manager.is_idle
        assert caplog.messages.count(UNCONFIRMED) == 1  # it may have it still: an upload's client, for example


async def test_a_client_with_a_whole_response_is_ended_by_an_error_after_a_second(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        forgets_behind_an_error(stack)
        peer = await stack.opened(1)
        stack.data(1, FIRST)
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await asyncio.sleep(0)
        peer.write(b"the answer, and Connection: close")
        peer.end()
        before = time.monotonic()
        await drain
        assert 0.9 <= time.monotonic() - before < 10
        assert stack.tunnel.codes(1).count(ERROR) == 1


async def test_an_error_that_the_hub_dropped_is_sent_again(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        peer.write(b"an earlier answer")
        await until(lambda: stack.tunnel.sent(1))
        stack.manager.begin_drain()
        peer.end()
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await until(lambda: stack.tunnel.codes(1).count(ERROR) == 2)
        assert not drain.done()
        stack.error(1)
        await drain


async def test_a_truncated_response_gets_no_error_however_long_the_hub_lists_it(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        peer.stage = Stage.SIZED
        stack.data(1, FIRST)
        await until(lambda: peer.received)
        peer.write(b"a part")
        await until(lambda: stack.tunnel.sent(1))
        drain = asyncio.create_task(stack.manager.drain(0.01))
        await stack.ended(1)
        began = time.monotonic()
        asked = stack.tunnel.codes(1).count(DATA)
        await until(lambda: time.monotonic() - began > 1.3 and stack.tunnel.codes(1).count(DATA) > asked + 4)
        assert ERROR not in stack.tunnel.codes(1)
        assert not drain.done()
        stack.error(1)
        await drain


async def test_many_that_ended_before_are_asked_about_a_few_hundred_at_a_time(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        for conn_id in range(1, 701):
            peer = await stack.opened(conn_id)
            peer.end()
            await stack.ended(conn_id)
        asked: list[int] = []
        most = 0

        def answer(conn_id: int, code: int) -> None:
            nonlocal most
            if code == DATA:
                asked.append(conn_id)
                most = max(most, len(asked))
                asyncio.get_running_loop().call_later(0.002, stack.error, asked[-1])
                asyncio.get_running_loop().call_later(0.002, asked.remove, conn_id)

        stack.tunnel.on_send = answer
        await stack.manager.drain(30.0)
        assert stack.manager.is_idle
        assert most <= 600  # a hub drops a response if 1,000 packets wait


async def test_what_ended_is_forgotten_when_no_hub_lists_it_any_longer(
    open_stack: StackFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stack(limits=ConnectionLimits(listed_s=0.2, probe_interval_s=0.1)) as stack:
        peer = await stack.opened(1)
        peer.end()
        await stack.ended(1)
        assert not stack.manager.is_idle
        await until(lambda: stack.manager.is_idle)
        await until(lambda: stack.manager._prober._timer is None)
        assert UNCONFIRMED not in caplog.messages  # nobody asked


async def test_a_hub_with_close_lists_nothing_that_ended(open_stack: StackFactory) -> None:
    async with open_stack(features=frozenset({"close"})) as stack:
        peer = await stack.opened(1)
        peer.end()
        await stack.ended(1)
        assert stack.manager.is_idle
        assert len(stack.manager._listed) == 0


async def test_a_drain_waits_until_the_tunnel_has_sent_everything(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        stack.tunnel.bytes_buffered = 1
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await asyncio.sleep(0.05)
        assert not drain.done()
        stack.tunnel.bytes_buffered = 0
        await drain


async def test_a_lost_session_ends_its_drain(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        await stack.opened(1)
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await asyncio.sleep(0.01)
        stack.manager.tunnel_lost(ConnectionResetError())
        async with asyncio.timeout(1):
            await drain


async def test_a_cancelled_drain_leaves_the_rest_running(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await asyncio.sleep(0.01)
        drain.cancel()
        await asyncio.wait([drain])
        stack.data(1, FIRST)
        await until(lambda: peer.received == FIRST)
        peer.end(Kind.COMPLETE, Stage.IDLE)
        await stack.ended(1)
