"""Upgrades: no byte lost before, at or after the 101, and each direction ended on its own."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from agent.outcome import Kind, Stage

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


def wants(token: str, more: str = "") -> bytes:
    return f"GET /exec HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {token}\r\n{more}\r\n".encode()


def switches(token: str) -> bytes:
    return f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {token}\r\nX-Kept: 1\r\n\r\n".encode()


def upgrading(token: str, first: bytes = b"", seen: list | None = None):
    """Switches, sends `first` along with its head, and echoes until the client's end, then says bye."""

    async def target(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        if seen is not None:
            seen.append(head)
        writer.write(switches(token) + first)
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write(b"bye")
        writer.write_eof()
        await writer.drain()

    return target


@pytest.mark.parametrize("token", ["websocket", "SPDY/3.1", "WebSocket"])
async def test_bytes_go_both_ways_and_each_way_ends_alone(house, origin, token):
    seen = []
    async with origin(upgrading(token, b"first", seen)) as o, house(o.url) as h:
        client = await h.open()
        client.send(wants(token) + b"early")
        answer = await client.switched()
        assert (answer.status, answer.headers[b"x-kept"]) == (101, b"1")
        assert answer.headers[b"upgrade"].lower() == token.lower().encode()
        assert await client.read_until(b"early") == b"firstearly"
        client.send(b"\0\1\2")
        assert await client.read_until(b"\2") == b"\0\1\2"
        client.writer.write_eof()
        assert await client.read_all() == b"bye", "the target still speaks after the client's end"
        assert await h.outcome() == (Kind.COMPLETE, Stage.UPGRADED)
        assert seen[0].lower().count(b"upgrade: " + token.lower().encode()) == 1
        assert b"\r\nConnection: Upgrade\r\n" in seen[0]


async def test_the_targets_end_is_passed_on_while_the_client_still_speaks(house, origin):
    got = asyncio.get_running_loop().create_future()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("websocket"))
        writer.write_eof()
        got.set_result(await reader.read())

    async with origin(target) as o, house(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 101
        assert await client.closed()
        client.send(b"still here")
        client.writer.write_eof()
        assert await asyncio.wait_for(got, 5) == b"still here"
        assert await h.outcome() == (Kind.COMPLETE, Stage.UPGRADED)


async def test_a_refused_upgrade_is_a_plain_response_and_what_waited_the_next_request(house, origin, answering):
    seen = []
    refusal = b"HTTP/1.1 403 Forbidden\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno"
    async with origin(answering(refusal, OK, seen=seen)) as o, house(o.url) as h:
        client = await h.open()
        client.send(wants("websocket") + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.switched()
        assert (answer.status, answer.body) == (403, b"no")
        assert b"upgrade" not in answer.headers
        assert (await client.switched()).body == b"OK"
        assert seen[1].startswith(b"GET /next ")


@pytest.mark.parametrize("token", ["SPDY/3.1", "h2c", "websocket, SPDY/3.1"])
async def test_a_101_to_something_else_is_a_502(house, origin, token):
    async with origin(upgrading(token)) as o, house(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 502
        assert (await client.get()).status == 502


async def test_other_protocols_are_not_asked_for(house, origin):
    async with origin() as o, house(o.url) as h:
        client = await h.open()
        client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
            b"HTTP2-Settings: x\r\nContent-Length: 2\r\n\r\nhi"
        )
        assert (await client.answer("POST")).body == b"hi"
        client.send(b"GET / HTTP/1.0\r\nConnection: Upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n")
        assert (await client.switched()).body == b"OK"
        await client.get(more="Upgrade: websocket\r\n")
        client.send(wants("h2c, websocket", "Content-Length: 0\r\n"))
        assert (await client.switched()).status == 200
        names = [set(dict(request.headers)) for request, _ in o.requests]
        assert [b"upgrade" in found for found in names] == [False, False, False, True]
        assert all(b"http2-settings" not in found for found in names)


async def test_a_target_that_breaks_an_upgrade_fails_it(house, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("websocket"))
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset

    async with origin(target) as o, house(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 101
        client.send(b"x")
        assert await client.closed()
        assert await h.outcome() == (Kind.FAILED, Stage.UPGRADED)


async def test_a_client_that_vanishes_ends_the_targets_side(house, origin):
    gone = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("websocket"))
        try:
            await reader.read()
        except ConnectionError:
            pass
        gone.set()

    async with origin(target) as o, house(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 101
        client.writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 5)
        assert (await h.outcome())[1] is Stage.UPGRADED


async def test_much_goes_through_both_ways_with_a_slow_reader(house, origin):
    size = 8 << 20
    async with origin(upgrading("websocket")) as o, house(o.url) as h:
        client = await h.open(limit=1024)
        client.send(wants("websocket"))
        assert (await client.switched()).status == 101
        block = bytes(range(256)) * 256
        received = 0

        async def read():
            nonlocal received
            position = 0
            while received < size:
                data = await client.read(30_000)
                assert data == (block * 2)[position : position + len(data)]
                position = (position + len(data)) % len(block)
                received += len(data)
                if received % 7 == 0:
                    await asyncio.sleep(0)

        reading = asyncio.ensure_future(read())
        for _ in range(size // len(block)):
            client.send(block)
            await client.writer.drain()
        await asyncio.wait_for(reading, 60)
        client.writer.write_eof()
        assert await client.read_all() == b"bye"


@pytest.mark.parametrize("ends", ["silence", "drain"])
async def test_tls_targets_can_be_upgraded_to(house, origin, authority, eventually, ends):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("SPDY/3.1"))
        while data := await reader.read(65536):
            writer.write(data)

    limits = {"half_closed_idle_s": 0.1 if ends == "silence" else 60}
    async with origin(target, ssl=server) as o, house(o.url, ssl_context=lambda target: trusting, limits=limits) as h:
        client = await h.open()
        client.send(wants("SPDY/3.1"))
        assert (await client.switched()).status == 101
        client.send(b"ping")
        assert await client.read_until(b"ping") == b"ping"
        client.writer.write_eof()
        if ends == "drain":
            await eventually(lambda: next(iter(h.proxy._connections))._half_closed)
            h.proxy.start_draining()
        assert await client.closed(), "TLS has no half-close here: silence ends it"
        assert await h.outcome() == (Kind.COMPLETE, Stage.UPGRADED)
