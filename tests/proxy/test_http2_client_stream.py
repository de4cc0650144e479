"""One stream of a client: tunnels, Content-Length against DATA, back-pressure and deadlines."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from agent.http2.errors import ErrorCode
from agent.messages import Target
from agent.proxy.http2_requests import accept_of

from .http2_client import Fields
from .http2_stack import opened

pytestmark = [pytest.mark.parametrize("carrier", ["tcp", "pipe"], indirect=True)]

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
WEBSOCKET: Fields = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"https"),
    (b":path", b"/chat"),
    (b":authority", b"client"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-protocol", b"chat"),
    (b"origin", b"https://client"),
]
CONNECT: Fields = [(b":method", b"CONNECT"), (b":authority", b"db:5432"), (b"proxy-authorization", b"Basic YzE6")]


class WebSocketTarget:
    """Switches to websocket, and echoes bytes until the client's end. heads: the requests."""

    def __init__(self, accept: bytes | None = None, status: bytes = b"101 Switching Protocols") -> None:
        self.heads: list[bytes] = []
        self.ended = asyncio.Event()
        self.accept = accept
        self.status = status

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        found = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
        assert found is not None
        writer.write(b"HTTP/1.1 %b\r\n" % self.status)
        writer.write(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n")
        writer.write(
            b"Sec-WebSocket-Accept: %b\r\nContent-Length: 0\r\n\r\nfirst" % (self.accept or accept_of(found[1]))
        )
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        self.ended.set()
        writer.write(b"bye")
        writer.write_eof()
        await reader.read()


async def test_a_websocket_is_an_extended_connect(stack: Any, origin: Any) -> None:
    target = WebSocketTarget()
    async with origin(target) as o, opened(stack, o.url) as (h, client):
        assert client.settings[8] == 1
        stream = client.request(WEBSOCKET, ended=False)
        reply = client.replies[stream]
        client.data(stream, b"early")
        await client.until(lambda: bytes(reply.body) == b"firstearly")
        assert reply.heads == [[(b":status", b"200"), (b"sec-websocket-protocol", b"chat")]]
        head = target.heads[0]
        assert head.startswith(b"GET /chat HTTP/1.1\r\n")
        assert b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" in head
        assert b":protocol" not in head
        client.data(stream, b"more")
        await client.until(lambda: reply.body.endswith(b"more"))
        client.data(stream, b"", ended=True)  # a half-close
        await client.reply(stream)
        assert reply.body.endswith(b"bye")
        assert reply.ended
        assert h.proxy.requests_in_flight == 0


async def test_a_reset_aborts_a_websocket(stack: Any, origin: Any, eventually: Any) -> None:
    async with origin(WebSocketTarget()) as o, opened(stack, o.url) as (_, client):
        stream = client.request(WEBSOCKET, ended=False)
        await client.until(lambda: client.replies[stream].body)
        client.reset(stream, ErrorCode.CANCEL)
        await eventually(lambda: o.open == 0)


async def test_a_wrong_accept_is_a_502(stack: Any, origin: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with origin(WebSocketTarget(accept=b"d3Jvbmc=")) as o, opened(stack, o.url) as (h, client):
        reply = await client.reply(client.request(WEBSOCKET, ended=False))
        assert reply.status == 502
        assert h.proxy.requests_in_flight == 0
    assert "Sec-WebSocket-Accept is wrong" in caplog.text


@pytest.mark.parametrize(("status", "seen"), [(b"200 OK", 502), (b"403 Forbidden", 403)])
async def test_a_refused_websocket_is_a_response(stack: Any, origin: Any, status: bytes, seen: int) -> None:
    async with origin(WebSocketTarget(status=status)) as o, opened(stack, o.url) as (_, client):
        reply = await client.reply(client.request(WEBSOCKET, ended=False))
        assert reply.status == seen


async def test_another_protocol_is_a_501(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url) as (_, client):
        fields = [(name, b"connect-udp" if name == b":protocol" else value) for name, value in WEBSOCKET]
        assert (await client.reply(client.request(fields, ended=False))).status == 501


async def test_a_connect_carries_bytes_both_ways(stack: Any, origin: Any) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"banner ")
        writer.write(await reader.read())
        writer.write_eof()
        await reader.read()

    async def route(head: Any) -> Target:
        assert (b"Proxy-Authorization", b"Basic YzE6") in head.headers
        await asyncio.sleep(0)
        return Target(o.url, is_raw=True)

    async with origin(echo) as o, opened(stack, o.url, connect_route=route) as (h, client):
        stream = client.request(CONNECT, b"early ", ended=False)
        reply = client.replies[stream]
        await client.until(lambda: b"banner " in reply.body)
        client.data(stream, b"late", ended=True)
        await client.reply(stream)
        assert reply.heads == [[(b":status", b"200")]]
        assert bytes(reply.body) == b"banner early late"
        assert h.proxy.requests_in_flight == 0


async def test_without_a_route_a_connect_is_a_405(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url) as (_, client):
        assert (await client.reply(client.request(CONNECT, ended=False))).status == 405


# -- Content-Length


async def test_a_body_longer_than_its_length_is_never_whole_at_the_target(
    stack: Any, origin: Any, eventually: Any
) -> None:
    got = bytearray()

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            got.extend(data)

    async with origin(collect) as o, opened(stack, o.url) as (h, client):
        for parts in ([b"12345678"], [b"12345", b"678"], [b"1234", b"5678"]):
            got.clear()
            fields = client.head("/", (b"content-length", b"5"), method="POST")
            stream = client.request(fields, ended=False)
            for part in parts:
                client.data(stream, part)
            reply = await client.reply(stream)
            assert reply.reset == ErrorCode.PROTOCOL_ERROR
            await eventually(lambda: o.open == 0)
            assert b"12345" not in got
        assert h.proxy.requests_in_flight == 0


@pytest.mark.parametrize("parts", [[], [b"1234"]])
@pytest.mark.parametrize("has_trailers", [False, True])
async def test_a_body_shorter_than_its_length_is_a_stream_error(
    stack: Any, origin: Any, eventually: Any, parts: list[bytes], has_trailers: bool
) -> None:
    async with origin() as o, opened(stack, o.url) as (_, client):
        fields = client.head("/", (b"content-length", b"5"), method="POST")
        stream = client.request(fields, ended=not parts and not has_trailers)
        for part in parts:
            client.data(stream, part)
        if has_trailers:
            client.trailers(stream, [(b"x", b"y")])
        elif parts:
            client.data(stream, b"", ended=True)
        reply = await client.reply(stream)
        assert reply.reset == ErrorCode.PROTOCOL_ERROR
        await eventually(lambda: o.open == 0)
        assert o.requests == []


async def test_data_behind_a_length_of_0_reach_no_target(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url) as (h, client):
        fields = client.head("/", (b"content-length", b"0"), method="POST")
        stream = client.request(fields, b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.reply(stream)).reset == ErrorCode.PROTOCOL_ERROR
        assert o.requests == []
        assert h.heads == []
        assert (await client.reply(client.request(fields, b""))).status == 200


async def test_request_trailers_are_dropped(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url) as (_, client):
        stream = client.request(client.head("/", method="POST"), b"body", ended=False)
        client.trailers(stream, [(b"x-trailer", b"1")])
        assert bytes((await client.reply(stream)).body) == b"body"
        assert (await client.get()).status == 200


# -- back-pressure and time


async def test_a_target_that_takes_nothing_pauses_its_stream_alone(stack: Any, origin: Any, eventually: Any) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/stuck" in head:
            await release.wait()
            await reader.read()
        writer.write(SIZED)
        await writer.drain()
        await reader.read()

    release = asyncio.Event()
    async with origin(serve, size=4096) as o, opened(stack, o.url, limits={"buffer_bytes": 16384}) as (_, client):
        stuck = client.request(client.head("/stuck", method="POST"), ended=False)
        piece = bytes(16384)
        sent, window = 0, client.settings[4]
        while True:  # until the stream's window is used up, and no credit returns
            room = window + client.sent_window.get(stuck, 0) - sent
            whole = 65535 + client.sent_window.get(0, 0) - sent
            if room >= len(piece) and whole >= len(piece):
                client.data(stuck, piece)
                sent += len(piece)
                continue
            before = dict(client.sent_window)
            await asyncio.sleep(0.1)
            if before == client.sent_window:
                break
        assert (await client.get("/other")).status == 200
        client.reset(stuck)
        release.set()
        await eventually(lambda: o.open <= 1)


async def test_a_body_that_stalls_is_a_408(stack: Any, origin: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with origin(silent) as o, opened(stack, o.url, limits={"body_timeout_s": 0.2}) as (_, client):
        stream = client.request(client.head("/", method="POST"), b"begun", ended=False)
        reply = await client.reply(stream)
        await client.until(lambda: reply.reset is not None)
        assert (reply.status, reply.reset) == (408, ErrorCode.NO_ERROR)


async def test_a_client_that_gives_no_credit_loses_its_stream(
    stack: Any, origin: Any, answering: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    no_window = (4).to_bytes(2, "big") + bytes(4)
    limits = {"write_timeout_s": 0.2}
    async with origin(answering(SIZED)) as o, opened(stack, o.url, no_window, limits=limits) as (h, client):
        reply = await client.get()
        assert (reply.status, reply.reset) == (200, ErrorCode.CANCEL)
        assert h.proxy.requests_in_flight == 0
        assert not client.closed
    assert "the client takes nothing" in caplog.text


async def test_a_target_that_is_silent_is_a_504_on_its_stream(stack: Any, origin: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()

    async with origin(silent) as o, opened(stack, o.url, limits={"first_byte_timeout_s": 0.2}) as (_, client):
        assert (await client.get()).status == 504


async def test_a_continue_and_early_hints_pass(stack: Any, origin: Any) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        await reader.readexactly(4)
        writer.write(SIZED)
        await reader.read()

    async with origin(serve) as o, opened(stack, o.url) as (_, client):
        fields = client.head("/", (b"expect", b"100-continue"), (b"content-length", b"4"), method="POST")
        stream = client.request(fields, ended=False)
        reply = client.replies[stream]
        await client.until(lambda: len(reply.heads) == 2)
        client.data(stream, b"body", ended=True)
        await client.reply(stream)
        assert reply.heads[0] == [(b":status", b"100")]
        assert reply.heads[1] == [(b":status", b"103"), (b"link", b"</a>")]
        assert reply.status == 200
