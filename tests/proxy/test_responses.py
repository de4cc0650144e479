"""Responses that a target may send, and the bytes that the client then gets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.messages import RequestHead, Target
from agent.outcome import Kind, Stage

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_chunked_bodies_arrive_chunk_by_chunk_with_their_trailers(stack, origin):
    turns: asyncio.Queue[bytes] = asyncio.Queue()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        while data := await turns.get():
            writer.write(data)
        await reader.read()

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await client.read_until(b"\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in head, "the head does not wait for the body"
        turns.put_nowait(b"5\r\nevent\r\n")
        assert await client.read_until(b"\r\nevent\r\n") == b"5\r\nevent\r\n"
        turns.put_nowait(b"a;x\r\n0123")
        assert await client.read_until(b"0123\r\n") == b"4\r\n0123\r\n", "half a chunk does not wait for its end"
        turns.put_nowait(b"456789\r\n0\r\nX-Sum: 1\r\nContent-Length: 7\r\nSet-Cookie: a\r\n\r\n")
        assert await client.read_until(b"\r\n\r\n") == b"6\r\n456789\r\n0\r\nX-Sum: 1\r\n\r\n"
        turns.put_nowait(b"")
        assert h.upstreams.idle_connections == 1


async def test_a_body_that_ends_with_its_connection_is_re_framed(stack, origin, answering):
    async with origin(answering(b"HTTP/1.0 200 OK\r\n\r\nsome", then_close=True)) as o, stack(o.url) as h:
        client = await h.open()
        for _ in range(2):
            answer = await client.get()
            assert (answer.body, answer.complete) == (b"some", True)
            assert answer.headers[b"transfer-encoding"] == b"chunked"
        assert o.connections == 2
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert (answer.body, answer.headers[b"content-length"]) == (b"some", b"4")
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.answer()).body == b"some"
        assert await client.closed()


async def test_a_chunked_body_is_collected_for_an_http_1_0_client(stack, origin, answering):
    body = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with origin(answering(CHUNKED + body, CHUNKED + body)) as o, stack(o.url, limits={"collect_bytes": 5}) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert (answer.body, answer.headers[b"content-length"]) == (b"abcde", b"5")
        assert b"transfer-encoding" not in answer.headers
    async with origin(answering(CHUNKED + body)) as o, stack(o.url, limits={"collect_bytes": 4}) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await client.answer()).status == 502


@pytest.mark.parametrize(
    ("method", "sent", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 007\r\n\r\n", 200, b"7"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n", 200, None),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 204, None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"9"),
        ("GET", b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"0"),
    ],
)
async def test_responses_without_a_body(stack, origin, answering, method, sent, status, length):
    async with origin(answering(sent, OK)) as o, stack(o.url) as h:
        client = await h.open()
        answer = await client.get(method=method)
        assert (answer.status, answer.body, answer.headers.get(b"content-length")) == (status, b"", length)
        assert (await client.get()).body == b"OK", "the next response is not taken for this one's body"
        assert o.connections == 1


async def test_hop_by_hop_fields_of_a_response_end_here(stack, origin, answering):
    sent = (
        b"HTTP/1.1 200 Fine, thanks\r\nConnection: X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n"
        b"Proxy-Authenticate: x\r\nTrailer: X\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nOK"
    )
    async with origin(answering(sent)) as o, stack(o.url) as h:
        client = await h.open()
        answer = await client.get()
        assert answer.fields == [(b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"2")]


async def test_1xx_responses_pass_where_they_may(stack, origin, answering):
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\n\r\n"
    others = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    answers = (early + others + OK, early + OK, early * 5 + OK, early * 6 + OK)
    async with origin(answering(*answers)) as o, stack(o.url) as h:
        client = await h.open()
        answer = await client.get()
        assert [(i.status_code, list(i.headers)) for i in answer.informational] == [(103, [(b"link", b"</a>")])]
        assert answer.body == b"OK"
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer()).informational == []
        assert len((await client.get()).informational) == 5
        assert (await client.get()).status == 502


@pytest.mark.parametrize(
    "then", [OK, b"HTTP/1.1 99\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nSet-Cookie: a\r\n\r\n" + OK]
)
async def test_a_1xx_whose_fields_cannot_be_mapped_ends_the_exchange_once(stack, origin, answering, then):
    def fails(head: RequestHead, target: Target, fields: Any) -> Any:
        raise RuntimeError("a fault of the policy")

    early = b"HTTP/1.1 103 Early Hints\r\nSet-Cookie: a\r\n\r\n"
    async with origin(answering(early + then)) as o, stack(lambda _: Target(o.url, map_response=fails)) as h:
        client = await h.open()
        for _ in range(2):
            answer = await client.get()
            assert (answer.status, answer.informational, client.unread) == (502, [], b"")


GARBAGE = [
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"\x15\x03\x01\x00\x02\x02",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.1 099 Low\r\n\r\n",
    b"HTTP/1.1 999 High\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nBad Name: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nOK",
    b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nOK",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n",
    None,
    b"HTTP/1.1 200 OK\r\nContent-Le",
]


async def test_what_is_no_response_is_a_502_and_the_client_may_go_on(stack, origin, answering):
    for sent in GARBAGE:
        async with origin(answering(sent, then_close=True)) as o, stack(o.url) as h:
            client = await h.open()
            for _ in range(2):
                answer = await client.get()
                assert (answer.status, answer.complete) == (502, True), sent
            assert h.upstreams.idle_connections == 0


@pytest.mark.parametrize(
    ("sent", "stage"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", Stage.SIZED),
        (CHUNKED + b"4\r\nhalf\r\n", Stage.CHUNKED),
        (CHUNKED + b"9\r\nhalf", Stage.CHUNKED),
        (CHUNKED + b"4\r\nhalf\r\n0\r\n", Stage.CHUNKED),
    ],
)
async def test_a_body_cut_short_is_cut_short(stack, origin, answering, sent, stage):
    async with origin(answering(sent, then_close=True)) as o, stack(o.url) as h:
        client = await h.open()
        answer = await client.get()
        assert (answer.status, answer.body, answer.complete) == (200, b"half", False)
        assert await h.outcome() == (Kind.FAILED, stage)


async def test_a_chunk_broken_later_cuts_the_response(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"4\r\nhalf\r\n")
        await asyncio.sleep(0.02)
        writer.write(b"garbage\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        answer = await client.get()
        assert (answer.body, answer.complete) == (b"half", False)
        assert await h.outcome() == (Kind.FAILED, Stage.CHUNKED)


async def test_bytes_that_nobody_asked_for_close_the_targets_connection(stack, origin, answering, eventually):
    async with origin(answering(OK + OK)) as o, stack(o.url) as h:
        client = await h.open()
        assert (await client.get()).body == b"OK"
        assert (await client.get()).body == b"OK"
        assert o.connections == 2

    async def late(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.02)
        writer.write(OK)
        await reader.read()

    async with origin(late) as o, stack(o.url) as h:
        client = await h.open()
        assert (await client.get()).body == b"OK"
        await eventually(lambda: not h.upstreams.idle_connections)
        assert (await client.get()).body == b"OK"
        assert o.connections == 2


async def test_a_target_that_closes_is_not_reused(stack, origin, answering):
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nOK"
    async with origin(answering(closing)) as o, stack(o.url) as h:
        client = await h.open()
        for _ in range(2):
            answer = await client.get()
            assert answer.body == b"OK"
            assert b"connection" not in answer.headers
        assert o.connections == 2


@pytest.mark.parametrize(
    ("sent", "retried"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", False),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", False),
    ],
)
async def test_one_retry_where_a_pooled_connection_had_gone_stale(stack, origin, answering, sent, retried):
    seen = []
    async with origin(answering(OK, None, seen=seen)) as o, stack(o.url) as h:
        client = await h.open()
        assert (await client.get()).body == b"OK"
        client.send(sent)
        answer = await client.answer("POST")
        if retried:
            assert (answer.status, o.connections, len(seen)) == (200, 2, 3)
        else:
            assert (answer.status, o.connections, len(seen)) == (502, 1, 2)


async def test_never_two_retries_and_none_on_a_fresh_connection(stack, origin, answering):
    seen = []
    async with origin(answering(None, seen=seen)) as o, stack(o.url) as h:
        client = await h.open()
        assert (await client.get()).status == 502
        assert len(seen) == 1


async def test_an_early_final_response_is_relayed_and_the_rest_of_the_body_drained(stack, origin):
    early = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig"

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(early)
        await reader.read()

    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n"
    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(request)
        answer = await client.answer("POST")
        assert (answer.status, answer.body) == (413, b"big")
        client.send(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".ljust(200_000))
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.answer()).status == 204, "the connection continues after the body's end"
        assert [head.target for head in h.heads] == [b"/"]


@pytest.mark.parametrize("more", [300_000, 10])
async def test_a_body_that_is_not_drained_in_bounds_ends_the_connection(stack, origin, more):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"drain_s": 0.05}) as h:
        client = await h.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        assert (await client.answer("POST")).status == 403
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + b"x" * more)
        assert await client.closed()
        assert [head.target for head in h.heads] == [b"/"]
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


async def test_a_target_may_stream_its_answer_while_it_reads(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        for _ in range(3):
            data = await reader.readexactly(4)
            writer.write(b"4\r\n" + data + b"\r\n")
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n")
        for part in (b"abcd", b"efgh", b"ijkl"):
            client.send(part)
            assert (await client.read_until(part + b"\r\n")).endswith(b"4\r\n" + part + b"\r\n")
        assert await client.read_until(b"\r\n\r\n") == b"0\r\n\r\n"


async def test_the_target_is_told_at_once_when_the_client_goes(stack, origin, eventually):
    gone = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"5\r\nevent\r\n")
        try:
            await reader.read()
        except ConnectionError:
            pass
        gone.set()

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(b"GET /watch HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.read_until(b"event\r\n")
        if h.carrier == "tcp":  # a reset; a plain close looks like a half-close until something is sent
            sock = client.writer.get_extra_info("socket")
            sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
        client.writer.transport.abort()
        await asyncio.wait_for(gone.wait(), 5)
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.CHUNKED)
        await eventually(lambda: h.proxy.requests_in_flight == 0)
