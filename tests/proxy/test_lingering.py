"""A client that still sends at the end of its connection gets its last response whole."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import Refused
from agent.messages import Target
from agent.outcome import Kind, Stage

LAST = b"GET / HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n"
MORE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100_000


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
@pytest.mark.parametrize("answered_by", ["the proxy", "the target"])
async def test_the_last_answer_is_followed_by_an_end_and_no_reset(stack, origin, answered_by):
    def route(head):
        if answered_by == "the proxy":
            raise Refused(404, "no route for this path")
        return Target(o.url)

    async with origin() as o, stack(route, limits={"linger_s": 30}) as h:
        client = await h.open()
        client.send(LAST % b"1.1" + MORE)
        assert (await client.answer()).headers[b"connection"] == b"close"
        assert await client.read() == b""
        await client.writer.drain()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_client_that_reads_slowly_gets_all_though_it_sent_more(stack, origin, version):
    size = 600_000

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(size))

    limits = {"linger_s": 0.05, "buffer_bytes": 2 * size}
    async with origin(target) as o, stack(o.url, owns_clients=True, limits=limits) as h:
        client = await h.open(limit=1024)
        client.send(LAST % version + b"\r\n")  # the CRLF that some clients send behind a request
        await client.read_until(b"\r\n\r\n")
        got = 0
        while data := await client.read(1 << 15):
            got += len(data)
            await asyncio.sleep(0.02)
        assert got >= size


@pytest.mark.parametrize("carrier", ["unix", "pipe"], indirect=True)
async def test_a_client_that_reads_nothing_of_its_last_answer_is_given_up(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(4_000_000))

    limits = {"linger_s": 0.05, "write_timeout_s": 0.3, "buffer_bytes": 8_000_000}
    async with origin(target) as o, stack(o.url, limits=limits) as h:
        client = await h.open(limit=1024)
        client.send(LAST % b"1.1" + b"\r\n")
        await client.read_until(b"\r\n\r\n")
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)
        async with asyncio.timeout(30):
            while h.proxy.open_connections:  # noqa: ASYNC110  (a state, and no event)
                await asyncio.sleep(0.01)
