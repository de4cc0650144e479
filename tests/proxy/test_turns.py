"""How much one connection gets done in one turn of the loop: others have their turn before the rest."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import Refused
from agent.outcome import Kind, Stage

LOCAL = {
    "refused by the policy": (b"GET /nosuch HTTP/1.1\r\nHost: a\r\n\r\n", 404, "GET"),
    "refused, with a body": (b"POST /nosuch HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", 404, "POST"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204, "OPTIONS"),
    "a policy that fails": (b"GET /fails HTTP/1.1\r\nHost: a\r\n\r\n", 503, "GET"),
}
MANY = 500
MOST_PER_TURN = 16
"""The promise; what is kept is less."""


class Turns:
    """Counts what happens in each turn of the loop."""

    def __init__(self) -> None:
        self.count = self.most = self.turns = 0
        self._ends = False

    def __enter__(self) -> Turns:
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._turn)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends = True

    def _turn(self) -> None:
        self.most = max(self.most, self.count)
        self.turns += 1
        self.count = 0
        if not self._ends:
            self._loop.call_soon(self._turn)


@pytest.mark.parametrize("kind", LOCAL)
async def test_local_answers_are_bounded_per_turn(stack, kind):
    request, status, method = LOCAL[kind]
    with Turns() as turns:

        def route(head):
            turns.count += 1
            if head.target == b"/fails":
                raise KeyError("a bug")
            raise Refused(404, "no route for this path")

        async with stack(route) as h:
            client = await h.open()
            client.send(request * MANY)
            client.writer.write_eof()
            for _ in range(MANY):
                assert (await client.answer(method)).status == status
            assert await client.closed()
            assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)
        assert turns.turns >= MANY // MOST_PER_TURN
    assert turns.most <= MOST_PER_TURN


async def test_another_client_is_answered_within_a_few_turns(stack, origin):
    with Turns() as turns:

        async def through(client):
            before = turns.turns
            assert (await client.get("/good")).body == b"OK"
            return turns.turns - before

        def route(head):
            if head.target != b"/good":
                raise Refused(404, "no route for this path")
            return target(head)

        async with origin() as o, stack(o.url) as h:
            target, h.proxy.route = h.proxy.route, route
            client, flood = await h.open(), await h.open()
            alone = [await through(client) for _ in range(5)]
            flood.send(LOCAL["refused by the policy"][0] * 20_000)
            reading = asyncio.ensure_future(flood.read_all())
            beside = [await through(client) for _ in range(5)]
            assert not reading.done(), "the flood has lasted"
            flood.writer.transport.abort()
            await reading
    assert min(beside) <= 4 * max(alone)


async def test_a_client_that_reads_nothing_stops_its_own_flood(stack, eventually):
    def route(head):
        raise Refused(404, "x" * 10_000)

    async with stack(route, limits={"buffer_bytes": 16384}) as h:
        client = await h.open(limit=1024)
        client.send(LOCAL["refused by the policy"][0] * 5_000)
        await eventually(lambda: any(connection.writing_paused for connection in h.proxy._connections))
        (connection,) = h.proxy._connections
        assert len(connection._backlog.held) < 2_000_000
        for _ in range(5_000):
            assert (await client.answer()).status == 404


async def test_a_connection_lost_within_its_flood_is_gone(stack, eventually):
    seen = []

    def route(head):
        seen.append(1)
        if len(seen) == 10:
            client.writer.transport.abort()
        raise Refused(404, "no route for this path")

    async with stack(route) as h:
        client = await h.open()
        client.send(LOCAL["refused by the policy"][0] * MANY)
        await eventually(lambda: seen and h.proxy.open_connections == 0)
        assert len(seen) < MANY


async def test_a_drain_ends_a_flood_behind_its_next_answer(stack, eventually):
    def route(head):
        if not h.proxy.draining:
            h.proxy.start_draining()
        raise Refused(404, "no route for this path")

    async with stack(route, limits={"linger_s": 0.1}) as h:
        client = await h.open()
        client.send(LOCAL["refused by the policy"][0] * MANY)
        answer = await client.answer()
        assert (answer.status, answer.headers[b"connection"]) == (404, b"close")
        assert await client.closed()
