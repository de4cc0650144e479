"""Targets that break HTTP/2 on purpose: the client gets a 502 or a cut response, and never a forged one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import h2.exceptions
import hpack
import pytest

from agent.http2.errors import ErrorCode
from agent.http2.frames import END_HEADERS, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE
from agent.http2.framing import DATA, frame

from .http2_origin import OK, Asked, Fields, Session, http2_origin

Stacks = Callable[..., Any]
Eventually = Callable[..., Awaitable[None]]


@pytest.fixture(params=["pipe"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


HEADS: dict[str, Fields] = {
    "an upper-case name": [*OK, (b"X-Upper", b"1")],
    "a connection field": [*OK, (b"connection", b"close")],
    "a keep-alive field": [*OK, (b"keep-alive", b"5")],
    "a proxy-connection field": [*OK, (b"proxy-connection", b"close")],
    "a transfer-encoding field": [*OK, (b"transfer-encoding", b"chunked")],
    "an upgrade field": [*OK, (b"upgrade", b"websocket")],
    "no status": [(b"x-a", b"1")],
    "two statuses": [*OK, *OK],
    "a late status": [(b"x-a", b"1"), *OK],
    "a pseudo-field of requests": [*OK, (b":path", b"/")],
    "an unknown pseudo-field": [*OK, (b":x", b"/")],
    "a status of two digits": [(b":status", b"20")],
    "a status of four digits": [(b":status", b"2000")],
    "a status below the range": [(b":status", b"099")],
    "a status above the range": [(b":status", b"600")],
    "a status with a line's end": [(b":status", b"200 OK\r\nx: 1")],
    "a status of letters": [(b":status", b"2oo")],
    "a 101": [(b":status", b"101")],
    "a value with CR and LF": [*OK, (b"x-a", b"1\r\nx-b: 2")],
    "a value with LF": [*OK, (b"x-a", b"1\nx-b: 2")],
    "a value with CR": [*OK, (b"x-a", b"1\rx")],
    "a value with NUL": [*OK, (b"x-a", b"1\0x")],
    "a value with a control character": [*OK, (b"x-a", b"1\x01x")],
    "a value that begins with a space": [*OK, (b"x-a", b" 1")],
    "a value that ends with a tab": [*OK, (b"x-a", b"1\t")],
    "a name with a colon": [*OK, (b"x-a: 1\r\nx-b", b"1")],
    "a name with a space": [*OK, (b"x a", b"1")],
    "a name with CR and LF": [*OK, (b"x\r\nx-b", b"1")],
    "a name with NUL": [*OK, (b"x\0", b"1")],
    "a name that is no token": [*OK, (b"x(a)", b"1")],
    "an empty name": [*OK, (b"", b"1")],
    "two lengths": [*OK, (b"content-length", b"2"), (b"content-length", b"3")],
    "a length that is no number": [*OK, (b"content-length", b"2x")],
    "a negative length": [*OK, (b"content-length", b"-2")],
    "a list of lengths": [*OK, (b"content-length", b"2, 2")],
    "a huge length": [*OK, (b"content-length", b"99999999999999999999")],
}


@pytest.mark.parametrize("name", HEADS)
async def test_a_malformed_head_is_a_502_of_its_stream_alone(
    stack: Stacks, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(asked: Asked) -> None:
        if asked[b":path"] == b"/good":
            asked.answer()
            return
        asked.head(HEADS[name])
        try:
            asked.data(b"ok", end=True)
        except h2.exceptions.ProtocolError:
            pass  # the proxy's reset was there first

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        answer = await client.get()
        assert (answer.status, answer.complete) == (502, True)
        assert b"x-b" not in answer.headers
        warnings = [record for record in caplog.records if record.levelname == "WARNING"]
        assert [(record.__dict__["fault"], record.__dict__["stage"]) for record in warnings] == [
            ("target", "response head")
        ]
        if name != "a 101":  # a 1xx that ends its stream, to the h2 library
            assert (await client.get("/good")).body == b"ok"
            assert len(target.sessions) == 1
        assert running.upstreams.open_connections == 1


BODIES: dict[str, tuple[Fields, bytes | Fields]] = {
    "more than its length": ([*OK, (b"content-length", b"1")], b"ok"),
    "less than its length": ([*OK, (b"content-length", b"3")], b"ok"),
    "nothing of its length": ([*OK, (b"content-length", b"3")], b""),
    "DATA in a 204": ([(b":status", b"204")], b"ok"),
    "DATA in a 304": ([(b":status", b"304")], b"ok"),
    "trailers with a pseudo-field": (OK, OK),
    "trailers with a line's end": (OK, [(b"x", b"1\r\n\r\n")]),
    "trailers with a control character": (OK, [(b"x", b"1\x02")]),
    "too many trailers": (OK, [(b"x", b"1")] * 65),
    "too large trailers": (OK, [(b"x", b"1" * 9000)]),
}
"""A head, and the DATA or trailers that end the stream."""


@pytest.mark.parametrize("name", BODIES)
async def test_a_malformed_body_is_never_a_whole_response(stack: Stacks, name: str) -> None:
    async def handler(asked: Asked) -> None:
        if asked[b":path"] == b"/good":
            asked.answer()
            return
        head, rest = BODIES[name]
        asked.head(head)
        if isinstance(rest, bytes):
            asked.data(rest, end=True)
        else:
            asked.head(rest, end=True)

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.answer()
        assert answer.status == 502 or not answer.complete
        assert (await (await running.open()).get("/good")).body == b"ok"
        assert len(target.sessions) == 1


async def test_trailers_that_do_not_end_the_stream_cut_the_response(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.head()
        asked.session.raw(frame(HEADERS, END_HEADERS, asked.stream_id, asked.session.h2.encoder.encode([(b"x", b"1")])))

    async with http2_origin(handler) as target, stack(target.url) as running:
        answer = await (await running.open()).get()
        assert answer.status == 502 or not answer.complete
        assert target.asked


async def test_data_in_the_response_to_head_is_a_502(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.head([*OK, (b"content-length", b"2")])
        asked.data(b"ok", end=True)

    async with http2_origin(handler) as target, stack(target.url) as running:
        answer = await (await running.open()).get(method="HEAD")
        assert answer.status == 502
        assert target.asked


async def test_the_sixth_interim_response_is_a_502(stack: Stacks, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(asked: Asked) -> None:
        for _ in range(6):
            asked.head([(b":status", b"103"), (b"link", b"</>")])

    async with http2_origin(handler) as target, stack(target.url) as running:
        answer = await (await running.open()).get()
        assert answer.status == 502
        assert len(answer.informational) == 5
        assert any(record.__dict__.get("limit") == "limits.informational_responses" for record in caplog.records)
        assert await target.asked[0].was_reset() == ErrorCode.PROTOCOL_ERROR


async def test_a_head_past_the_limit_is_a_502(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.head([*OK, *((b"x-%d" % number, b"v" * 1000) for number in range(int(asked[b":path"][1:])))])
        asked.data(b"ok", end=True)

    async with http2_origin(handler) as target, stack(target.url) as running:
        answer = await (await running.open()).get("/200")
        assert (answer.status, len(answer.fields)) == (200, 201)
        answer = await (await running.open()).get("/300")
        assert answer.status == 502
        assert target.sessions


async def test_a_bomb_of_repeated_fields_is_a_502(stack: Stacks) -> None:
    """The block is small, and the decoded head is not."""

    async def handler(asked: Asked) -> None:
        encoder = asked.session.h2.encoder
        block = encoder.encode([*OK, (b"x", b"v" * 3000)])
        block += b"\xbe" * 16000  # the newest entry of the dynamic table, again and again
        asked.session.raw(frame(HEADERS, END_HEADERS, asked.stream_id, block[:16384]))

    async with http2_origin(handler) as target, stack(target.url) as running:
        answer = await (await running.open()).get()
        assert answer.status == 502
        assert target.asked


FLOODS: dict[str, bytes] = {
    "SETTINGS": frame(SETTINGS, 0, 0) * 2000,
    "PING": frame(PING, 0, 0, bytes(8)) * 2000,
    "empty DATA of closed streams": frame(DATA, 0, 1) * 20000,
    "RST_STREAM": frame(RST_STREAM, 0, 1, bytes(4)) * 20000,
    "WINDOW_UPDATE past the limit": frame(WINDOW_UPDATE, 0, 0, (2**31 - 1).to_bytes(4, "big")) * 2,
    "unknown GOAWAYs": frame(GOAWAY, 0, 0, (2**31 - 1).to_bytes(4, "big") + bytes(4)) * 2000,
    "a stream from the server": frame(HEADERS, END_HEADERS, 2, hpack.Encoder().encode([(b":method", b"GET")])),
    "a promise": frame(5, END_HEADERS, 1, (2).to_bytes(4, "big") + hpack.Encoder().encode([(b":method", b"GET")])),
    "a frame that is too large": (2**24 - 1).to_bytes(3, "big") + bytes(6) + bytes(1000),
    "HTTP/1.1": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "a head on an idle stream": frame(HEADERS, END_HEADERS, 99, hpack.Encoder().encode(OK)),
    "a broken block": frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_the_connection_or_costs_nothing(stack: Stacks, name: str, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        if asked[b":path"] == b"/good":
            asked.answer()
            return
        asked.session.raw(FLOODS[name])
        await asyncio.sleep(0)
        if not asked.session.transport.is_closing():
            try:
                asked.answer()
            except h2.exceptions.ProtocolError:
                pass

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
        answer = await client.answer("POST")
        assert answer.status in (200, 502)
        assert (await (await running.open()).get("/good")).body == b"ok"
        await eventually(lambda: running.upstreams.open_connections == 1)


async def test_an_http1_server_is_no_h2c_target(stack: Stacks) -> None:
    def begins(session: Session) -> None:
        session.is_deaf = True
        session.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with http2_origin(begins=begins) as target, stack(target.url) as running:
        answer = await (await running.open()).get()
        assert answer.status == 502
        assert b"does not speak HTTP/2" in answer.body
        assert target.sessions


@pytest.mark.parametrize("seed", range(4))
async def test_garbage_of_any_kind_leaves_nothing(stack: Stacks, seed: int, eventually: Eventually) -> None:
    chance = random.Random(seed)

    async def handler(asked: Asked) -> None:
        for _ in range(chance.randrange(1, 6)):
            kind = chance.randrange(0, 11)
            stream_id = chance.choice([0, 1, asked.stream_id, asked.stream_id, asked.stream_id + 2])
            payload = chance.randbytes(chance.choice([0, 1, 4, 5, 6, 8, 12, 100]))
            if kind == HEADERS and chance.random() < 0.7:
                payload = asked.session.h2.encoder.encode(chance.choice([*HEADS.values(), OK, OK, OK]))
            asked.session.raw(frame(kind, chance.choice([0, 1, 4, 5, 8, 0x20, 0xFF]), stream_id, payload))
        await asyncio.sleep(0.005)
        asked.session.transport.abort()

    async with http2_origin(handler) as target, stack(target.url) as running:
        for _ in range(25):
            client = await running.open()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
            head = await client.read()
            assert head.startswith((b"HTTP/1.1 502", b"HTTP/1.1 200", b"HTTP/1.1 304", b"HTTP/1.1 504"))
            client.writer.transport.abort()
        await eventually(lambda: not running.upstreams.open_connections)
        assert target.asked
