"""Hostile clients by HTTP/2: floods, smuggling, broken frames and silence."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from agent.http2.errors import ErrorCode
from agent.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

from .http2_client import Fields, Http2Client, literal
from .http2_stack import USER, opened

pytestmark = pytest.mark.parametrize("carrier", ["tcp"], indirect=True)

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
GET: Fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"client")]


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


# -- floods


def pings(client: Http2Client, number: int) -> None:
    client.send(PING, 0, 0, struct.pack(">Q", number))


def settings(client: Http2Client, number: int) -> None:
    client.send(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535 + number % 2))


def acks(client: Http2Client, number: int) -> None:
    client.send(PING, ACK, 0, struct.pack(">Q", number))


def priorities(client: Http2Client, number: int) -> None:
    client.send(PRIORITY, 0, 2 * number + 101, struct.pack(">IB", 0, 1))


def resets(client: Http2Client, number: int) -> None:
    client.reset(client.request(client.head("/hold")))


def faults_of_streams(client: Http2Client, number: int) -> None:
    client.send(WINDOW_UPDATE, 0, client.request(client.head("/hold")), bytes(4))


def resets_of_closed_streams(client: Http2Client, number: int) -> None:
    client.reset(1)


def malformed_heads(client: Http2Client, number: int) -> None:
    client.request([*GET, (b"connection", b"close")])


def continuations(client: Http2Client, number: int) -> None:
    if not number:
        client.send(HEADERS, 0, 1001, literal(GET))
    client.send(CONTINUATION, 0, 1001, b"")


@pytest.mark.parametrize(
    ("flood", "allowed"),
    [
        (pings, 200),
        (settings, 200),
        (acks, 1000),
        (priorities, 1000),
        (resets, 200),
        (faults_of_streams, 200),
        (resets_of_closed_streams, 1000),
        (malformed_heads, 200),
        (continuations, 1000),
    ],
)
async def test_a_flood_closes_its_connection_and_no_other(
    stack: Any, origin: Any, flood: Callable[[Http2Client, int], None], allowed: int
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"/hold" not in await reader.readuntil(b"\r\n\r\n"):
            writer.write(SIZED)
        await hold(reader, writer)

    async with origin(serve) as o, opened(stack, o.url) as (h, other), opened(stack, o.url) as (_, client):
        assert (await client.get()).status == 200
        for number in range(allowed + 200):
            if client.closed or client.writer.transport.is_closing():
                break
            flood(client, number)
            if number % 50 == 0:
                await asyncio.sleep(0)
        assert await client.ended() in (ErrorCode.ENHANCE_YOUR_CALM, -1)  # -1: the reset took the GOAWAY along
        assert (await other.get()).status == 200
        assert h.proxy.requests_in_flight == 0


async def test_many_requests_and_late_resets_are_no_flood(stack: Any, origin: Any) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/long" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nbegun")
                await hold(reader, writer)
                return
            writer.write(SIZED)

    async with origin(serve) as o, opened(stack, o.url) as (_, client):
        for _ in range(6):
            streams = [client.request(GET) for _ in range(100)]
            for stream in streams:
                assert (await client.reply(stream)).status == 200
        for _ in range(220):
            stream = client.request(client.head("/long"))
            await client.until(lambda stream=stream: client.replies[stream].heads)
            client.reset(stream)
        assert (await client.get()).status == 200


async def test_streams_past_the_limit_are_refused(stack: Any, origin: Any, eventually: Any) -> None:
    async with origin(hold) as o, opened(stack, o.url, http2_max_streams=3) as (h, client):
        assert client.settings[3] == 3
        streams = [client.request(GET) for _ in range(4)]
        assert (await client.reply(streams[3])).reset == ErrorCode.REFUSED_STREAM
        await eventually(lambda: h.proxy.requests_in_flight == 3)
        client.reset(streams[0])
        await eventually(lambda: h.proxy.requests_in_flight == 2)


# -- smuggling


FORBIDDEN: list[Fields] = [
    [(b"connection", b"close")],
    [(b"connection", b"")],
    [(b"keep-alive", b"1")],
    [(b"proxy-connection", b"close")],
    [(b"transfer-encoding", b"chunked")],
    [(b"transfer-encoding", b"identity")],
    [(b"upgrade", b"websocket")],
    [(b"http2-settings", b"AAMAAABk")],
    [(b"te", b"gzip")],
    [(b"te", b"trailers, gzip")],
    [(b"X-Upper", b"1")],
    [(b"x-cr", b"a\rb")],
    [(b"x-lf", b"a\nb")],
    [(b"x-crlf", b"a\r\nTransfer-Encoding: chunked")],
    [(b"x-nul", b"a\0b")],
    [(b"x-space", b" a")],
    [(b"x-space", b"a\t")],
    [(b"x:colon", b"1")],
    [(b"x\r\nTransfer-Encoding: chunked\r\nx", b"1")],
    [(b"x\ny", b"1")],
    [(b"x\0y", b"1")],
    [(b"x y", b"1")],
    [(b"", b"1")],
    [(b"x\x7f", b"1")],
    [(b"x\xff", b"1")],
    [(b":method", b"POST")],
    [(b":path", b"/other")],
    [(b":status", b"200")],
    [(b":unknown", b"1")],
    [(b":protocol", b"websocket")],
    [(b"host", b"other")],
    [(b"host", b"client"), (b"host", b"client")],
]
PSEUDO: list[Fields] = [
    [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"client")],
    [(b":method", b"GET"), (b":path", b"/"), (b":authority", b"client")],
    [(b":scheme", b"http"), (b":path", b"/"), (b":authority", b"client")],
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b""), (b":authority", b"client")],
    [(b":method", b"GET"), (b":scheme", b"gopher"), (b":path", b"/"), (b":authority", b"client")],
    [(b":method", b"GET"), (b"x", b"y"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"client")],
    [(b":method", b"GET / HTTP/1.1\r\nX: "), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"client")],
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/ HTTP/1.1\r\nX: y"), (b":authority", b"client")],
    [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"client\r\nX: y")],
    [(b":method", b"CONNECT"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"client")],
    [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":authority", b"client")],
]


async def test_forbidden_heads_are_stream_errors_and_reach_no_target(
    stack: Any, origin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    heads = [*([*GET, *more] for more in FORBIDDEN), *PSEUDO]
    async with origin() as o, opened(stack, o.url) as (h, client):
        for head in heads:
            reply = await client.reply(client.request_block(literal(head)))
            assert reply.reset == ErrorCode.PROTOCOL_ERROR, head
        assert h.heads == []
        assert o.connections == 0
        assert (await client.get()).status == 200
    lines = [record for record in caplog.records if "malformed" in record.message]
    assert len(lines) == len(heads)
    assert {getattr(record, "fault", "") for record in lines} == {"client"}


async def test_a_head_past_the_limits_is_refused_on_its_stream(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url) as (_, client):
        assert (await client.get("/" + "x" * 20_000)).status == 414
        assert (await client.get("/", (b"x", b"y" * 70_000))).status == 431
        assert (await client.get("/", *[(b"x%d" % at, b"y") for at in range(260)])).status == 431
        assert (await client.get("/", *[(b"cookie", b"a=b")] * 260)).status == 200
        assert (await client.get()).status == 200
        client.request(client.head("/", (b"x", b"y" * 4000), *[(b"z", b"w" * 4000)] * 70))
        assert await client.ended() in (ErrorCode.ENHANCE_YOUR_CALM, ErrorCode.COMPRESSION_ERROR)


# -- broken frames


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (frame(HEADERS, END_HEADERS | END_STREAM, 2, literal(GET)), ErrorCode.PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS, 0, literal(GET)), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 0, 7, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1, b""), ErrorCode.PROTOCOL_ERROR),
        (frame(RST_STREAM, 0, 9, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(SETTINGS, 0, 0, b"x"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(PING, 0, 0, b"x"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xbf"), ErrorCode.COMPRESSION_ERROR),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", ErrorCode.FRAME_SIZE_ERROR),
    ],
)
async def test_a_broken_frame_closes_the_connection_with_its_code(
    stack: Any, origin: Any, broken: bytes, code: ErrorCode
) -> None:
    async with origin() as o, opened(stack, o.url) as (h, client):
        client.writer.write(broken)
        assert await client.ended() == code
        assert h.proxy.open_connections == 0


@pytest.mark.parametrize("seed", range(2))
async def test_random_frames_leave_nothing_behind(stack: Any, origin: Any, eventually: Any, seed: int) -> None:
    chance = random.Random(seed)
    rounds = int(os.environ.get("FASTPIPE_INPUTS", "50000")) // 2500
    async with origin() as o, stack(o.url, owns_clients=True, http2_max_streams=8) as h:
        h.client_origin = USER
        for _ in range(rounds):
            raw = await h.open()
            out = bytearray(PREFACE + frame(SETTINGS, 0, 0))
            for number in range(chance.randrange(1, 30)):
                kind = chance.choice((HEADERS, HEADERS, DATA, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION))
                stream = chance.choice((2 * number + 1, 1, 3, 0))
                payload = literal(GET) if kind == HEADERS else chance.randbytes(chance.choice((0, 4, 6, 8, 40)))
                out += frame(kind, chance.choice((0, 1, 4, 5, 8, 0x25)), stream, payload)
            for _ in range(chance.randrange(3)):
                out[chance.randrange(len(out))] = chance.randrange(256)
            raw.send(bytes(out))
            await asyncio.sleep(0)
            raw.writer.write_eof()
            await raw.read_all()
            raw.writer.close()
        await eventually(lambda: h.proxy.open_connections == 0)
        assert h.proxy.requests_in_flight == 0


# -- time


async def test_a_connection_without_a_request_closes(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url, limits={"head_timeout_s": 0.2}) as (_, client):
        assert await client.ended() == ErrorCode.NO_ERROR


async def test_an_idle_connection_closes(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url, limits={"keep_alive_s": 0.2}) as (_, client):
        assert (await client.get()).status == 200
        assert await client.ended() == ErrorCode.NO_ERROR


@pytest.mark.parametrize("part", [frame(HEADERS, 0, 1, literal(GET)), frame(HEADERS, 4, 1, literal(GET))[:20]])
async def test_a_head_that_stays_unfinished_closes_the_connection(
    stack: Any, origin: Any, part: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with origin() as o, opened(stack, o.url, limits={"head_timeout_s": 0.2}) as (_, client):
        client.writer.write(part)
        assert await client.ended() == ErrorCode.ENHANCE_YOUR_CALM
    assert "head did not come in time" in caplog.text


async def test_a_silent_peer_gets_a_ping_and_then_its_end(
    stack: Any, origin: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("agent.http2.liveness.PING_AFTER_S", 0.2)
    monkeypatch.setattr("agent.http2.liveness.PING_DUE_S", 0.4)
    async with origin(hold) as o, opened(stack, o.url, limits={"expect_timeout_s": 0.2}) as (h, client):
        client.request()
        await client.until(lambda: client.pings >= 2)
        client.answers_pings = False
        await client.ended()
        assert h.proxy.requests_in_flight == 0
    assert "did not reply to a PING" in caplog.text


async def test_a_connection_that_asked_for_nothing_makes_room(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url, max_connections=1) as (h, first):
        await asyncio.sleep(1.6)
        raw = await h.open()
        raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await raw.answer()).status == 200
        await first.ended()


async def test_one_connection_too_many_gets_503_and_goaway(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url, max_connections=1) as (h, first):
        assert (await first.get()).status == 200
        raw = await h.open()
        client = Http2Client(raw.reader, raw.writer)
        client.begin()
        reply = await client.get()
        assert (reply.status, reply.fields[b"retry-after"]) == (503, b"1")
        assert await client.ended() == ErrorCode.NO_ERROR
        await client.close()
        assert (await first.get()).status == 200
