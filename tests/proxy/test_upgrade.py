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
    """Switches, sends `first` along with its head, echoes until the client's end, then sends bye."""

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


@pytest.mark.parametrize(
    "token",
    ["websocket", "SPDY/3.1", "WebSocket", "tcp", "tailscale-control-protocol", "DERP", "alpn-teleport", "h2", "x/h2c"],
)
async def test_bytes_go_both_ways_and_each_way_ends_alone(stack, origin, token):
    seen = []
    async with origin(upgrading(token, b"first", seen)) as o, stack(o.url) as h:
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
        assert seen[0].count(b"\r\nUpgrade: " + token.encode() + b"\r\n") == 1, "as the client spells it"
        assert b"\r\nConnection: Upgrade\r\n" in seen[0]


async def test_the_targets_end_is_passed_on_while_the_client_still_speaks(stack, origin):
    got = asyncio.get_running_loop().create_future()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("websocket"))
        writer.write_eof()
        got.set_result(await reader.read())

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 101
        assert await client.closed()
        client.send(b"still here")
        client.writer.write_eof()
        assert await asyncio.wait_for(got, 5) == b"still here"
        assert await h.outcome() == (Kind.COMPLETE, Stage.UPGRADED)


async def test_a_refused_upgrade_is_a_plain_response_and_what_waited_the_next_request(stack, origin, answering):
    seen = []
    refusal = b"HTTP/1.1 403 Forbidden\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno"
    async with origin(answering(refusal, OK, seen=seen)) as o, stack(o.url) as h:
        client = await h.open()
        client.send(wants("websocket") + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.switched()
        assert (answer.status, answer.body) == (403, b"no")
        assert b"upgrade" not in answer.headers
        assert (await client.switched()).body == b"OK"
        assert seen[1].startswith(b"GET /next ")


@pytest.mark.parametrize("token", ["SPDY/3.1", "h2c", "websocket, SPDY/3.1", "websocket/13", "", ","])
async def test_a_101_to_something_else_is_a_502(stack, origin, token):
    async with origin(upgrading(token)) as o, stack(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 502
        assert (await client.get()).status == 502


async def test_other_protocols_are_not_asked_for(stack, origin):
    async with origin() as o, stack(o.url) as h:
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


@pytest.mark.parametrize("named", ["foo/1", "BAR"])
async def test_what_is_asked_for_goes_on_in_order_and_spelling_and_the_target_picks_one(stack, origin, named):
    seen = []
    lines = "Upgrade: HTTP/2.0, bar, ,a b\r\nUPGRADE: tls/1.2,H2C,websocket, a/b/c\r\n"
    async with origin(upgrading(named, seen=seen)) as o, stack(o.url) as h:
        client = await h.open()
        client.send(wants("h2c, Foo/1", lines))
        answer = await client.switched()
        assert (answer.status, answer.headers[b"upgrade"]) == (101, named.encode())
        client.send(b"raw")
        assert await client.read_until(b"raw") == b"raw"
        assert b"\r\nUpgrade: Foo/1, bar, websocket\r\n" in seen[0]
        assert seen[0].lower().count(b"upgrade:") == 1


@pytest.mark.parametrize("token", ["h2c", "HTTP/2.0", "http/3", "TLS/1.0", "H2C, tls/1.3", "a b", ","])
async def test_another_kind_of_http_for_the_next_hop_is_never_asked_for(stack, origin, token):
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        client.send(wants(token))
        assert (await client.switched()).body == b"OK"
        assert b"upgrade" not in dict(o.requests[0][0].headers)


# A body first -------------------------------------------------------------------------------------------------------

START = b'{"Detach":false,"Tty":true}'
DOCKER = (
    b"POST /v1.43/exec/0123/start HTTP/1.1\r\nHost: docker\r\nUser-Agent: Docker-Client/24.0.2 (linux)\r\n"
    b"Content-Length: %d\r\nConnection: Upgrade\r\nContent-Type: application/json\r\nUpgrade: tcp\r\n%b\r\n"
)


def docker(status: str = "101 UPGRADED", body: bytes = START, seen: list | None = None):
    """`docker exec` as in dockerd: the request with its whole body, the response head, and raw bytes both ways."""

    async def target(reader, writer):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            got = await reader.readexactly(length)
            if seen is not None:
                seen.append((head, got))
            if not status.startswith("101"):
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno".encode())
                continue
            fields = "Content-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + b"\1\0\0\0\0\0\0\2$ ")
            while data := await reader.read(65536):
                writer.write(data.upper())
            writer.write(b"exit")
            writer.write_eof()
            return

    return target


@pytest.mark.parametrize("size", [0, len(START), 65536])
@pytest.mark.parametrize("sent", ["at once", "head first", "byte by byte"])
async def test_a_short_body_goes_first_and_the_upgrade_follows(stack, origin, eventually, size, sent):
    body = (START * 3000)[:size]
    seen = []
    head = DOCKER % (size, b"")
    async with origin(docker(seen=seen)) as o, stack(o.url) as h:
        client = await h.open()
        if sent == "at once":
            client.send(head + body + b"ls\n")
        elif sent == "head first" or size > 1000:
            client.send(head)
            await eventually(lambda: h.heads)
            client.send(body)
            client.send(b"ls\n")
        else:
            for at in range(len(head + body)):
                client.send((head + body)[at : at + 1])
                await asyncio.sleep(0)
            client.send(b"ls\n")
        answer = await client.switched()
        assert (answer.status, answer.headers[b"upgrade"]) == (101, b"tcp")
        assert answer.headers[b"content-type"] == b"application/vnd.docker.raw-stream"
        assert await client.read_until(b"LS\n") == b"\1\0\0\0\0\0\0\2$ LS\n"
        client.writer.write_eof()
        assert await client.read_all() == b"exit"
        assert await h.outcome() == (Kind.COMPLETE, Stage.UPGRADED)
        assert seen[0][1] == body
        assert b"\r\nContent-Length: %d\r\n" % size in seen[0][0]
        assert b"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" in seen[0][0]


@pytest.mark.parametrize("status", ["200 OK", "403 Forbidden", "404 Not Found"])
async def test_behind_a_refused_upgrade_with_a_body_comes_the_next_request(stack, origin, status):
    seen = []
    async with origin(docker(status, seen=seen)) as o, stack(o.url) as h:
        client = await h.open()
        for _ in range(2):
            client.send((DOCKER % (len(START), b"") + START) * 2)
            for _ in range(2):
                answer = await client.switched()
                assert (answer.status, answer.body) == (int(status[:3]), b"no")
        assert [body for _, body in seen] == [START] * 4
        assert o.connections == 1, "an upgrade that was refused leaves a connection as any other"
        client.send(DOCKER % (2, b"") + b"{}raw bytes that are no request\r\n\r\n")
        assert (await client.switched()).status == int(status[:3])
        assert (await client.answer()).status == 400
        assert await client.closed()


async def test_a_101_before_the_body_is_whole_loses_none_of_it(stack, origin, eventually):
    got = asyncio.get_running_loop().create_future()

    async def hasty(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("tcp"))
        got.set_result(await reader.readexactly(13))
        writer.write(b"done")
        await reader.read()

    async with origin(hasty) as o, stack(o.url) as h:
        client = await h.open()
        client.send(DOCKER % (10, b"") + b"01234")
        assert (await client.switched()).status == 101
        client.send(b"56789raw")
        assert await client.read_until(b"done") == b"done"
        assert await got == b"0123456789raw"


async def test_a_client_that_waits_for_100_gets_it_before_the_101(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await reader.readexactly(2)
        writer.write(switches("tcp"))
        writer.write(await reader.read(3))

    async with origin(target) as o, stack(o.url, limits={"expect_timeout_s": 60}) as h:
        client = await h.open()
        client.send(DOCKER % (2, b"Expect: 100-continue\r\n"))
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"{}")
        assert (await client.switched()).status == 101
        client.send(b"raw")
        assert await client.read_until(b"raw") == b"raw"


@pytest.mark.parametrize("framing", ["chunked", "65537"])
async def test_with_a_body_that_is_chunked_or_too_long_the_request_is_a_plain_one(stack, origin, framing):
    body = START if framing == "chunked" else bytes(65537)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if framing == "chunked" else body
    field = b"Transfer-Encoding: chunked" if framing == "chunked" else b"Content-Length: 65537"
    head = b"POST /%b HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: %b\r\n" + field + b"\r\n\r\n"
    async with origin() as o, stack(o.url) as h:
        client = await h.open()
        for path in (b"first", b"second"):
            client.send(head % (path, b"tcp, DERP") + sent)
            assert (await client.answer("POST")).body == body
        assert all(b"upgrade" not in dict(request.headers) for request, _ in o.requests)
        client.send(head % (b"third", b"tcp, WebSocket") + sent)
        assert (await client.answer("POST")).status == 400
        assert len(o.requests) == 2


async def test_a_target_that_breaks_an_upgrade_fails_it(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("websocket"))
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 101
        client.send(b"x")
        assert await client.closed()
        assert await h.outcome() == (Kind.FAILED, Stage.UPGRADED)


async def test_a_client_that_vanishes_ends_the_targets_side(stack, origin):
    gone = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switches("websocket"))
        try:
            await reader.read()
        except ConnectionError:
            pass
        gone.set()

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(wants("websocket"))
        assert (await client.switched()).status == 101
        client.writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 5)
        assert (await h.outcome())[1] is Stage.UPGRADED


async def test_much_goes_through_both_ways_with_a_slow_reader(stack, origin):
    size = 8 << 20
    async with origin(upgrading("websocket")) as o, stack(o.url) as h:
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
async def test_tls_targets_can_be_upgraded_to(stack, origin, authority, eventually, ends):
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
    async with origin(target, ssl=server) as o, stack(o.url, ssl_context=lambda target: trusting, limits=limits) as h:
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
