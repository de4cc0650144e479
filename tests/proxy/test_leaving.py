"""A client's end behind a whole request: it has left, or it only sends no more. The target's bytes show which."""

from __future__ import annotations

import asyncio
import logging
import ssl

import pytest

from agent.messages import Target
from agent.outcome import Kind, Stage

from ..own_responses import reason_of

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HASTY = {"half_closed_s": 0.2}


async def silent(reader, writer):
    await reader.read()


async def test_the_target_hears_of_a_client_that_left_while_it_was_silent(stack, origin, eventually, caplog):
    caplog.set_level(logging.INFO, "agent.proxy")
    async with origin(silent) as o, stack(o.url, limits=HASTY) as h:
        client = await h.open()
        client.send(GET)
        await eventually(lambda: o.open == 1)
        client.writer.write_eof()
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.HEAD)
        await eventually(lambda: o.open == 0)
        (line,) = [record for record in caplog.records if record.name.startswith("agent.proxy")]
        assert (line.fault, line.limit, line.conn_id) == ("client", "limits.half_closed_s", 1)


async def test_a_client_that_left_in_the_middle_of_a_silent_stream_is_found(stack, origin, eventually):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"5\r\nhello\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url, limits=HASTY) as h:
        client = await h.open()
        client.send(GET)
        await client.read_until(b"hello")
        client.writer.write_eof()
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.CHUNKED)
        await eventually(lambda: o.open == 0)


async def test_leavers_hold_their_places_no_longer_than_the_limit(stack, origin, eventually):
    async with origin(silent) as o, stack(o.url, limits=HASTY, max_connections=50) as h:
        for _ in range(50):
            client = await h.open()
            client.send(GET)
            client.writer.write_eof()
        await eventually(lambda: h.proxy.open_connections == 0)
        assert not h.proxy.refused
        await eventually(lambda: o.open == 0)


async def test_a_stream_with_short_gaps_reaches_a_half_closed_client_whole(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        for number in range(12):
            await asyncio.sleep(0.15)
            writer.write(b"1\r\n%x\r\n" % number)
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"half_closed_s": 1.0}) as h:
        client = await h.open()
        client.send(GET)
        client.writer.write_eof()
        answer = await client.answer()
        assert (answer.complete, answer.body) == (True, b"0123456789ab")
        assert await client.closed()
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


async def test_part_of_a_response_head_is_a_sign_of_life(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for start in range(0, len(OK), 4):
            writer.write(OK[start : start + 4])
            await asyncio.sleep(0.15)
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"half_closed_s": 1.0}) as h:
        client = await h.open()
        client.send(GET)
        client.writer.write_eof()
        assert (await client.answer()).body == b"OK"


async def test_the_time_in_which_the_client_takes_nothing_does_not_count(stack, origin, eventually):
    size = 8_000_000

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await reader.read()

    async with origin(target) as o, stack(o.url, limits=HASTY) as h:
        client = await h.open(limit=1024)
        client.send(GET)
        client.writer.write_eof()
        await eventually(lambda: any(connection.writing_paused for connection in h.proxy._connections))
        clock = h.proxy.clock
        until_s = clock.now + 4 * HASTY["half_closed_s"]
        await eventually(lambda: clock.now > until_s)
        answer = await client.answer()
        assert (answer.complete, len(answer.body)) == (True, size)


async def test_requests_pipelined_before_the_end_are_answered(stack, origin, eventually):
    async with origin() as o, stack(o.url, limits=HASTY) as h:
        client = await h.open()
        client.send(GET * 3)
        client.writer.write_eof()
        for _ in range(3):
            assert (await client.answer()).body == b"OK"
        assert await client.closed()
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


async def test_the_limit_holds_for_the_request_behind_the_first_too(stack, origin, answering, eventually):
    async with origin(answering(OK)) as o, stack(o.url, limits=HASTY) as h:
        client = await h.open()
        client.send(GET * 2)
        client.writer.write_eof()
        assert (await client.answer()).body == b"OK"
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.HEAD)
        await eventually(lambda: o.open == 0)


@pytest.mark.parametrize("before", [b"", GET])
async def test_an_end_within_a_body_is_a_400(stack, origin, answering, before):
    async with origin(answering(OK) if before else silent) as o, stack(o.url) as h:
        client = await h.open()
        client.send(before + b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
        client.writer.write_eof()
        if before:
            assert (await client.answer()).status == 200
        answer = await client.answer("POST")
        assert (answer.status, reason_of(answer.body)) == (400, b"the request's body ended early\n")
        assert await client.closed()


async def test_the_limit_holds_while_the_policy_is_awaited(stack):
    cancelled = asyncio.Event()

    async def never(head):
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    async with stack(never, limits=HASTY) as h:
        client = await h.open()
        client.send(GET)
        client.writer.write_eof()
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.HEAD)
        await asyncio.wait_for(cancelled.wait(), 30)


async def test_the_limit_holds_while_the_target_is_dialled(stack):
    cancelled = asyncio.Event()

    async def never(protocol):
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    async with stack(lambda head: Target("http://target", connect=never), limits=HASTY) as h:
        client = await h.open()
        client.send(GET)
        client.writer.write_eof()
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.HEAD)
        await asyncio.wait_for(cancelled.wait(), 30)


async def test_an_upgraded_connection_has_its_own_rule(stack, origin, eventually):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert await reader.read() == b""
        clock = h.proxy.clock
        until_s = clock.now + 4 * HASTY["half_closed_s"]
        await eventually(lambda: clock.now > until_s)
        writer.write(b"still there")
        writer.close()

    async with origin(target) as o, stack(o.url, limits=HASTY) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        client.writer.write_eof()
        assert (await client.switched()).status == 101
        assert await client.read_all() == b"still there"


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
async def test_a_tls_clients_end_ends_everything_at_once(stack, origin, authority, eventually):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with origin(silent) as o, stack(o.url, limits={"half_closed_s": 60}) as h:
        server = await asyncio.get_running_loop().create_server(h.connection, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname="localhost")
        writer.write(GET)
        await eventually(lambda: o.open == 1)
        writer.close()
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.HEAD)
        await eventually(lambda: o.open == 0)
        server.close()
