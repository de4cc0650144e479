"""HTTP/2 towards targets, against a scripted target: requests, responses, streams and their ends."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agent.http2 import liveness
from agent.http2.errors import ErrorCode
from agent.messages import Target
from agent.proxy import dial as dial_module
from agent.proxy import http2_target_connection

from .http2_origin import OK, Asked, http2_origin

Stacks = Callable[..., Any]
Eventually = Callable[..., Awaitable[None]]
MIB = 1 << 20


@pytest.fixture(params=["unix", "pipe"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_requests_share_a_connection_and_keep_their_parts(stack: Stacks) -> None:
    async with http2_origin() as target, stack(target.url) as running:
        client = await running.open()
        answer = await client.get("/a?b=c", more="X-One: 1\r\nCookie: a=b\r\nTE: trailers\r\nConnection: TE\r\n")
        assert (answer.status, answer.body) == (200, b"ok")
        asked = target.asked[0]
        authority = target.url.removeprefix("h2c://").encode()
        assert asked.fields[:4] == [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", authority),
            (b":path", b"/a?b=c"),
        ]
        assert (asked[b"x-one"], asked[b"cookie"], asked[b"te"]) == (b"1", b"a=b", b"trailers")
        assert asked.ended
        assert not {b"connection", b"host", b"transfer-encoding", b"content-length"} & {
            name for name, _ in asked.fields
        }
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
        assert (await client.answer("POST")).body == b"hello"
        assert target.asked[1][b"content-length"] == b"5"
        client.send(
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n"
        )
        assert (await client.answer("POST")).body == b"hello"
        await target.asked[2].whole()
        assert b"content-length" not in target.asked[2]
        assert len(target.sessions) == 1
        assert running.upstreams.open_connections == running.upstreams.idle_connections == 1


async def test_trailers_and_ends_of_responses(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        match asked[b":path"]:
            case b"/empty":
                asked.head([*OK, (b"x-a", b"1")], end=True)
            case b"/trailers":
                asked.head()
                asked.data(b"body")
                asked.head([(b"grpc-status", b"0"), (b"x-t", b"2"), (b"content-type", b"a/b")], end=True)
            case b"/only-trailers":
                asked.head()
                asked.head([(b"x-t", b"3")], end=True)
            case b"/later":
                asked.head([*OK, (b"content-length", b"4")])
                await asyncio.sleep(0.01)
                asked.data(b"bo")
                await asyncio.sleep(0.01)
                asked.data(b"dy")
                await asyncio.sleep(0.01)
                asked.data(b"", end=True)
            case _:
                asked.head([(b":status", asked[b":path"][1:]), (b"content-length", b"7")], end=True)

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        answer = await client.get("/empty")
        assert (answer.headers[b"content-length"], answer.body, answer.complete) == (b"0", b"", True)
        answer = await client.get("/trailers", more="TE: trailers\r\nConnection: TE\r\n")
        assert (answer.body, answer.trailers) == (b"body", [(b"grpc-status", b"0"), (b"x-t", b"2")])
        answer = await client.get("/only-trailers", more="TE: trailers\r\nConnection: TE\r\n")
        assert (answer.body, answer.trailers) == (b"", [(b"x-t", b"3")])
        answer = await client.get("/later")
        assert (answer.headers[b"content-length"], answer.body) == (b"4", b"body")
        answer = await client.get("/304")
        assert (answer.status, answer.headers[b"content-length"], answer.body) == (304, b"7", b"")
        answer = await client.get("/200", method="HEAD")
        assert (answer.status, answer.headers[b"content-length"], answer.body) == (200, b"7", b"")
        assert len(target.sessions) == 1


async def test_interim_responses_pass(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.head([(b":status", b"103"), (b"link", b"</a>; rel=preload")])
        if b"expect" in asked:
            asked.head([(b":status", b"100")])
        asked.answer(await asked.whole() or b"ok")

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        answer = await client.get()
        assert [each.status_code for each in answer.informational] == [103]
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        await client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(b"abc")
        answer = await client.answer("PUT")
        assert answer.body == b"abc"
        assert target.asked[1][b"expect"] == b"100-continue"


async def test_both_bodies_flow_at_once(stack: Stacks) -> None:
    async def echo(asked: Asked) -> None:
        asked.head()
        sent = 0
        while sent < 5:
            body = await asked.has(sent + 1)
            asked.data(body[sent:])
            sent = len(body)
        await asked.whole()
        asked.data(b"", end=True)

    async with http2_origin(echo) as target, stack(target.url) as running:
        client = await running.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            client.send(b"1\r\n%d\r\n" % number)
            await client.read_until(b"1\r\n%d\r\n" % number)
        client.send(b"0\r\n\r\n")
        await client.read_until(b"0\r\n\r\n")
        assert len(target.asked) == 1


async def test_a_slow_client_holds_one_window_and_stalls_nobody(stack: Stacks, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        if asked[b":path"] == b"/quick":
            asked.answer()
            return
        asked.head()
        left = 8 * MIB
        while left:
            size = min(left, asked.session.h2.local_flow_control_window(asked.stream_id), 16384)
            if size <= 0:
                await asyncio.sleep(0.005)
                continue
            asked.data(bytes(size), end=left == size)
            left -= size
            sent.append(size)

    sent: list[int] = []
    async with http2_origin(handler) as target, stack(target.url) as running:
        slow = await running.open(limit=65536)
        slow.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: sum(sent) > 300_000)
        await asyncio.sleep(0.05)
        stuck = sum(sent)
        quick = await running.open()
        assert (await quick.get("/quick")).body == b"ok"
        assert sum(sent) == stuck < 3 * MIB
        assert len(target.sessions) == 1
        answer = await slow.answer()
        assert len(answer.body) == 8 * MIB


async def test_a_large_upload_waits_for_a_slow_target(stack: Stacks, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        await go.wait()
        target.consumes = True
        session = asked.session
        session.h2.acknowledge_received_data(len(asked.body), asked.stream_id)
        session.flush()
        asked.answer(b"%d" % len(await asked.whole()))

    go = asyncio.Event()
    async with http2_origin(handler) as target, stack(target.url) as running:
        target.consumes = False
        client = await running.open()
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (4 * MIB))
        client.send(bytes(4 * MIB))
        await eventually(lambda: target.asked and len(target.asked[0].body) == 65535)
        await asyncio.sleep(0.02)
        if running.carrier == "pipe":
            assert client.writer.transport.get_write_buffer_size() > 2 * MIB  # the rest stays with the client
        go.set()
        assert (await client.answer("PUT")).body == b"%d" % (4 * MIB)


# -- ends


async def test_a_client_that_leaves_cancels_the_stream(stack: Stacks, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        if asked[b":path"] == b"/begun":
            asked.head()

    async with http2_origin(handler) as target, stack(target.url) as running:
        for path in ("/silent", "/begun"):
            client = await running.open()
            client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            if path == "/begun":
                await client.read_until(b"\r\n\r\n")
            await eventually(lambda path=path: target.asked and target.asked[-1][b":path"] == path.encode())
            client.writer.transport.abort()
            assert await target.asked[-1].was_reset() == ErrorCode.CANCEL
        assert (running.upstreams.open_connections, running.upstreams.idle_connections) == (1, 1)


async def test_a_complete_response_stops_the_request(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.answer(b"enough")

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc")
        assert (await client.answer("PUT")).body == b"enough"
        assert await target.asked[0].was_reset() == ErrorCode.NO_ERROR
        other = await running.open()
        assert (await other.get()).body == b"enough"
        assert len(target.sessions) == 1


@pytest.mark.parametrize("code", [ErrorCode.INTERNAL_ERROR, ErrorCode.HTTP_1_1_REQUIRED])
async def test_a_reset_before_the_head_is_a_502(stack: Stacks, code: int, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(asked: Asked) -> None:
        asked.kill(code)

    async with http2_origin(handler) as target, stack(target.url) as running:
        answer = await (await running.open()).get()
        assert answer.status == 502
        assert ErrorCode(code).name.encode() in answer.body
        assert [record.__dict__["fault"] for record in caplog.records if record.levelname == "WARNING"] == ["target"]
        assert len(target.asked) == 1
        assert running.upstreams.idle_connections == 1


async def test_a_reset_behind_the_head_cuts_the_response(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.head()
        asked.data(b"some")
        await asyncio.sleep(0.02)
        asked.kill(ErrorCode.INTERNAL_ERROR)

    async with http2_origin(handler) as target, stack(target.url) as running:
        answer = await (await running.open()).get()
        assert (answer.status, answer.body, answer.complete) == (200, b"some", False)
        assert len(target.asked) == 1


# -- refused streams


async def test_a_refused_stream_goes_to_another_connection_with_its_body(stack: Stacks, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        if asked.session is target.sessions[0] and asked[b":path"] != b"/first":
            await asked.has(5)
            asked.kill(ErrorCode.REFUSED_STREAM)
        else:
            asked.answer(await asked.whole() or b"ok")

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        assert (await client.get("/first")).status == 200
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
        await eventually(lambda: len(target.sessions) == 2)
        client.send(b"world")
        answer = await client.answer("POST")
        assert (answer.status, answer.body) == (200, b"helloworld")
        assert len(target.sessions) == 2


@pytest.mark.parametrize(("size", "connections"), [(5, 2), (100_000, 1)])
async def test_a_stream_refused_again_or_with_a_long_body_is_a_502(
    stack: Stacks, size: int, connections: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(asked: Asked) -> None:
        await asked.has(min(size, 65535))
        asked.kill(ErrorCode.REFUSED_STREAM)

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        answer = await client.answer("POST")
        assert answer.status == 502
        assert b"refused the stream" in answer.body
        assert len(target.sessions) == connections


async def test_goaway_lets_processed_streams_finish_and_moves_the_others(stack: Stacks, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        if asked.session is not target.sessions[0]:
            asked.answer(b"moved")
            return
        if asked[b":path"] == b"/old":
            await moving.wait()
            asked.answer(b"old")
        else:  # graceful: the last stream is the first
            asked.session.raw(b"\0\0\x08\x07\0\0\0\0\0" + (1).to_bytes(4, "big") + bytes(4))

    moving = asyncio.Event()
    async with http2_origin(handler) as target, stack(target.url) as running:
        old, new = await running.open(), await running.open()
        old.send(b"GET /old HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: target.asked)
        new.send(b"POST /new HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
        assert (await new.answer("POST")).body == b"moved"
        moving.set()
        assert (await old.answer()).body == b"old"
        await asyncio.wait_for(target.sessions[0].lost.wait(), 10)  # behind its last stream
        assert (await old.get("/old")).body == b"moved"
        assert len(target.sessions) == 2


async def test_goaway_with_an_error_fails_what_may_have_been_processed(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        asked.session.h2.close_connection(ErrorCode.INTERNAL_ERROR, last_stream_id=asked.stream_id)
        asked.session.flush()

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab")
        assert (await client.answer("POST")).status == 502
        assert len(target.asked) == 1


async def test_a_stale_connection_is_left_and_an_idempotent_request_sent_again(stack: Stacks) -> None:
    async def handler(asked: Asked) -> None:
        if len(target.asked) == 2:
            asked.session.transport.abort()
        else:
            asked.answer()

    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        assert (await client.get()).status == 200
        assert (await client.get()).status == 200
        assert (len(target.sessions), len(target.asked)) == (2, 3)


# -- limits and deadlines


@pytest.mark.parametrize("most", [1, 3])
async def test_full_connections_get_company(stack: Stacks, most: int, eventually: Eventually) -> None:
    async def handler(asked: Asked) -> None:
        await go.wait()
        asked.answer()

    go = asyncio.Event()
    settings = {3: most}
    async with http2_origin(handler, settings=settings) as target, stack(target.url) as running:
        clients = [await running.open() for _ in range(6)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: len(target.asked) == 6)
        assert len(target.sessions) == 6 // most
        go.set()
        for client in clients:
            assert (await client.answer()).status == 200
        for client in clients:
            assert (await client.get()).status == 200
        assert len(target.sessions) == 6 // most


async def test_a_target_that_allows_no_streams_is_a_502(stack: Stacks) -> None:
    async with http2_origin(settings={3: 0}) as target, stack(target.url) as running:
        client = await running.open()
        answer = await client.get()
        assert answer.status == 502
        assert b"allows no HTTP/2 streams" in answer.body
        assert not target.asked


async def test_a_target_that_takes_nothing_is_a_504(stack: Stacks, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(asked: Asked) -> None:
        pass

    limits = {"write_timeout_s": 0.2, "buffer_bytes": 65536}
    async with http2_origin(handler) as target, stack(target.url, limits=limits) as running:
        target.consumes = False
        client = await running.open()
        client.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(500_000))
        answer = await client.answer("PUT")
        assert answer.status == 504
        assert any(record.__dict__.get("limit") == "limits.write_timeout_s" for record in caplog.records)
        assert await target.asked[0].was_reset() == ErrorCode.CANCEL


async def test_a_silent_target_gets_a_ping_and_is_then_given_up(
    stack: Stacks, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    async def handler(asked: Asked) -> None:
        asked.session.transport.pause_reading()

    monkeypatch.setattr(liveness, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(liveness, "PING_DUE_S", 0.1)
    async with http2_origin(handler) as target, stack(target.url) as running:
        client = await running.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
        answer = await client.answer("POST")
        assert answer.status == 504
        assert b"PING" in answer.body
        await eventually(lambda: running.upstreams.open_connections == 0)
        assert target.asked


async def test_a_target_that_replies_to_pings_may_take_its_time(
    stack: Stacks, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    async def handler(asked: Asked) -> None:
        await eventually(lambda: asked.session.pings == 2)
        asked.answer()

    monkeypatch.setattr(liveness, "PING_AFTER_S", 0.05)
    monkeypatch.setattr(liveness, "PING_DUE_S", 5.0)
    async with http2_origin(handler) as target, stack(target.url) as running:
        assert (await (await running.open()).get()).status == 200
        assert len(target.sessions) == 1


async def test_idle_connections_close(stack: Stacks) -> None:
    async with http2_origin() as target, stack(target.url, limits={"upstream_idle_s": 0.1}) as running:
        assert (await (await running.open()).get()).status == 200
        await asyncio.wait_for(target.sessions[0].lost.wait(), 10)
        assert target.sessions[0].goaway.error_code == ErrorCode.NO_ERROR
        assert running.upstreams.open_connections == 0


async def test_an_idle_connection_gives_its_descriptor_to_a_dial(
    stack: Stacks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with http2_origin() as idle, http2_origin() as other:
        urls = iter((idle.url, other.url))
        async with stack(lambda head: Target(next(urls))) as running:
            client = await running.open()
            assert (await client.get()).status == 200
            real = dial_module._connect_to
            failed: list[bool] = []

            async def connect(info: Any) -> Any:
                if not failed:
                    failed.append(True)
                    raise OSError(errno.EMFILE, "no descriptor")
                return await real(info)

            monkeypatch.setattr(dial_module, "_connect_to", connect)
            assert (await client.get()).status == 200
            await asyncio.wait_for(idle.sessions[0].lost.wait(), 10)
            assert len(other.sessions) == 1


async def test_a_new_generation_gets_its_own_connection(stack: Stacks) -> None:
    generation = [1]
    async with http2_origin() as target, stack(target.url, generation=lambda: generation[0]) as running:
        client = await running.open()
        assert (await client.get()).status == 200
        generation[0] = 2
        assert (await client.get()).status == 200
        assert len(target.sessions) == 2
        await asyncio.wait_for(target.sessions[0].lost.wait(), 10)


async def test_a_cancelled_wait_leaves_nothing(stack: Stacks, eventually: Eventually) -> None:
    def silent(session: Any) -> None:
        session.is_deaf = True

    async with http2_origin(begins=silent) as target, stack(target.url) as running:
        clients = [await running.open() for _ in range(3)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: target.sessions)
        assert len(target.sessions) == 1
        for client in clients:
            client.writer.transport.abort()
        await eventually(lambda: not target.open and not running.upstreams.open_connections)


async def test_a_target_without_settings_is_a_504(stack: Stacks, caplog: pytest.LogCaptureFixture) -> None:
    def silent(session: Any) -> None:
        session.is_deaf = True

    limits = {"connect_timeout_s": 0.2}
    async with http2_origin(begins=silent) as target, stack(target.url, limits=limits) as running:
        assert (await (await running.open()).get()).status == 504
        assert any(record.__dict__.get("limit") == "limits.connect_timeout_s" for record in caplog.records)
        assert target.sessions


def test_the_limits_are_those_of_the_contract() -> None:
    assert (liveness.PING_AFTER_S, liveness.PING_DUE_S) == (20.0, 10.0)
    assert http2_target_connection.WINDOW_BYTES <= 256 * 1024
