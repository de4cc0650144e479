"""Clients by HTTP/2: one stream is one exchange, by the rules that hold for HTTP/1.1."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import Any

import pytest

from agent.http2.errors import ErrorCode
from agent.http2.frames import PREFACE, SETTINGS, frame

from .http2_client import Http2Client
from .http2_stack import USER, opened

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Kind: sized\r\n\r\nOK"


async def test_a_get_and_a_post_are_relayed(stack: Any, origin: Any) -> None:
    async with origin() as o, opened(stack, o.url) as (_, client):
        reply = await client.get("/a?b=c", (b"x-own", b"1"))
        assert (reply.status, bytes(reply.body)) == (200, b"OK")
        reply = await client.reply(client.request(client.head("/up", method="POST"), b"chunked body"))
        assert bytes(reply.body) == b"chunked body"
        fields = client.head("/up", (b"content-length", b"5"), method="POST")
        assert bytes((await client.reply(client.request(fields, b"sized"))).body) == b"sized"
        (first, _), (second, _), (third, _) = o.requests
        assert (first.method, first.target) == (b"GET", b"/a?b=c")
        seen = dict(first.headers)
        assert seen[b"x-forwarded-host"] == b"client"
        assert seen[b"x-own"] == b"1"
        assert seen[b"x-forwarded-for"] == b"192.0.2.7"
        assert b"x-request-id" in seen
        assert dict(second.headers)[b"transfer-encoding"] == b"chunked"
        assert dict(third.headers)[b"content-length"] == b"5"


async def test_both_bodies_stream_at_once(stack: Any, origin: Any) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while data := await reader.read(65536):
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            if data.endswith(b"0\r\n\r\n"):
                writer.write(b"0\r\nX-Sum: 7\r\n\r\n")
                return

    async with origin(echo) as o, opened(stack, o.url) as (_, client):
        stream = client.request(client.head("/", method="POST"), ended=False)
        reply = client.replies[stream]
        await client.until(lambda: reply.heads)  # before any DATA of the request
        client.data(stream, b"one")
        await client.until(lambda: b"one" in reply.body)
        client.data(stream, b"two", ended=True)
        await client.reply(stream)
        assert reply.trailers == [(b"x-sum", b"7")]
        assert not reply.last_is_data


async def test_a_head_without_a_body_ends_the_stream(stack: Any, origin: Any, answering: Any) -> None:
    empty = b"HTTP/1.1 204 No Content\r\nX-Kind: Empty\r\n\r\n"
    async with origin(answering(empty)) as o, opened(stack, o.url) as (_, client):
        reply = await client.get()
        assert reply.heads == [[(b":status", b"204"), (b"x-kind", b"Empty")]]
        assert reply.ended
        assert not reply.last_is_data


async def test_large_bodies_pass_whole_both_ways(stack: Any, origin: Any) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for _ in range(32):
            writer.write(await reader.readexactly(len(body) // 32))
            await writer.drain()

    async with origin(serve) as o, opened(stack, o.url) as (_, client):
        fields = client.head("/", (b"content-length", b"%d" % len(body)), method="PUT")
        stream = client.request(fields, ended=False)
        sent = 0
        while sent < len(body):  # within the windows
            own, whole = (client.sent_window.get(each, 0) for each in (stream, 0))
            window = min(client.settings[4] + own, 65535 + whole) - sent
            if window > 0:
                part = body[sent : sent + window]
                sent += len(part)
                client.data(stream, part, ended=sent == len(body))
            else:
                seen = dict(client.sent_window)
                await client.until(lambda seen=seen: seen != client.sent_window)
        reply = await client.reply(stream)
        assert hashlib.sha256(reply.body).digest() == hashlib.sha256(body).digest()
        assert reply.ended


async def test_a_stream_that_is_not_read_stalls_no_other(stack: Any, origin: Any, answering: Any) -> None:
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n" + bytes(4_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(big if b"/big" in head else SIZED)
            await writer.drain()

    small_window = (4).to_bytes(2, "big") + (1000).to_bytes(4, "big")
    async with origin(serve) as o, opened(stack, o.url, small_window) as (h, client):
        client.credits = False
        slow = client.request(client.head("/big"))
        await client.until(lambda: len(client.replies[slow].body) == 1000)
        for _ in range(3):
            reply = await client.get("/small")
            assert bytes(reply.body) == b"OK"
        assert len(client.replies[slow].body) == 1000
        assert h.proxy.requests_in_flight == 1
        client.credit(slow, 5000)
        await client.until(lambda: len(client.replies[slow].body) == 6000)
        client.reset(slow)


async def test_a_reset_ends_the_exchange_up_to_the_target(stack: Any, origin: Any, eventually: Any) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with origin(lambda r, w: hold(r)) as o, opened(stack, o.url) as (h, client):
        stream = client.request()
        await eventually(lambda: o.open == 1 and h.heads)
        client.reset(stream)
        await eventually(lambda: o.open == 0)
        assert h.proxy.requests_in_flight == 0
        assert not client.closed


async def hold(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


async def test_a_truncated_response_is_a_reset(stack: Any, origin: Any, answering: Any) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    async with origin(answering(half, then_close=True)) as o, opened(stack, o.url) as (_, client):
        reply = await client.get()
        assert not reply.ended
        assert reply.reset == ErrorCode.INTERNAL_ERROR


async def test_a_response_before_the_requests_end_stops_the_request(stack: Any, origin: Any, answering: Any) -> None:
    async with origin(answering(SIZED)) as o, opened(stack, o.url) as (_, client):
        stream = client.request(client.head("/", method="POST"), b"begun", ended=False)
        reply = await client.reply(stream)
        await client.until(lambda: reply.reset is not None)
        assert reply.ended
        assert bytes(reply.body) == b"OK"
        assert reply.reset == ErrorCode.NO_ERROR
        client.data(stream, b"late", ended=True)
        assert (await client.get("/")).done


async def test_prior_knowledge_in_single_bytes(stack: Any, origin: Any) -> None:
    async with origin() as o, stack(o.url, owns_clients=True, http2_max_streams=5) as h:
        h.client_origin = USER
        raw = await h.open()
        for byte in PREFACE + frame(SETTINGS, 0, 0):
            raw.send(bytes((byte,)))
            await asyncio.sleep(0)
        client = Http2Client(raw.reader, raw.writer)
        await client.until(lambda: client.settings)
        assert client.settings[3] == 5
        assert client.settings[8] == 1
        assert (await client.get()).status == 200
        await client.close()


@pytest.mark.parametrize("begin", [b"P", b"PRI", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"])
async def test_http1_still_works_where_a_method_begins_alike(stack: Any, origin: Any, begin: bytes) -> None:
    async with origin() as o, stack(o.url, owns_clients=True, http2_max_streams=5) as h:
        h.client_origin = USER
        raw = await h.open()
        raw.send(b"P")
        await asyncio.sleep(0.01)
        raw.send(b"R" if begin == b"P" else b"OST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        if begin == b"P":
            raw.send(b"OPFIND / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        answer = await raw.answer("POST")
        assert (answer.status, answer.body) == (200, b"hi")


async def test_without_http2_the_preface_is_an_unknown_version(stack: Any, origin: Any) -> None:
    async with origin() as o, stack(o.url, owns_clients=True) as h:
        h.client_origin = USER
        raw = await h.open()
        raw.send(PREFACE)
        assert (await raw.answer()).status == 505


async def test_own_responses_have_the_request_id(stack: Any, origin: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with opened(stack, "http://127.0.0.1:9") as (_, client):
        reply = await client.get("/")
        assert reply.status == 502
        request_id = reply.fields[b"x-request-id"]
        assert b"request id: " + request_id in reply.body
        found = [r for r in caplog.records if getattr(r, "request_id", "") == request_id.decode()]
        assert found[0].status == 502  # type: ignore[attr-defined]
        reply = await client.get("/", method="HEAD")
        assert (reply.status, bytes(reply.body)) == (502, b"")


async def test_a_drain_sends_goaway_and_lets_streams_finish(stack: Any, origin: Any, eventually: Any) -> None:
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(SIZED)
        await writer.drain()
        await reader.read()

    async with origin(serve) as o, opened(stack, o.url) as (h, client):
        stream = client.request()
        await eventually(lambda: o.open)
        h.proxy.start_draining()
        await client.until(lambda: client.goaway)
        assert client.goaway == (stream, ErrorCode.NO_ERROR)
        late = client.request()
        assert (await client.reply(late)).reset == ErrorCode.REFUSED_STREAM
        release.set()
        assert bytes((await client.reply(stream)).body) == b"OK"
        assert await client.ended() == ErrorCode.NO_ERROR
