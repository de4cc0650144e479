"""The proxy's waits: for whom, how long, and the response afterwards. Also Expect, which has a time limit."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest

from agent.messages import Target
from agent.outcome import Kind, Stage

from ..own_responses import reason_of

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"


async def silent(reader, writer):
    await reader.read()


async def test_a_head_that_does_not_come_is_a_408(stack):
    async with stack("http://127.0.0.1:9", limits={"head_timeout_s": 0.1}) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.1\r\nHo")
        answer = await client.answer()
        assert (answer.status, answer.headers[b"connection"]) == (408, b"close")
        assert await client.closed()
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


async def test_dripping_a_head_gains_no_time(stack):
    async with stack("http://127.0.0.1:9", limits={"head_timeout_s": 0.2}) as h:
        client = await h.open()
        for byte in b"GET / HTTP/1.1\r\nX: " + b"y" * 1000:
            if h.outcomes:
                break
            client.send(bytes([byte]))
            await asyncio.sleep(0.01)
        assert (await client.answer()).status == 408


async def test_a_connection_without_a_byte_ends_silently(stack):
    async with stack("http://127.0.0.1:9", limits={"head_timeout_s": 0.1}) as h:
        client = await h.open()
        assert await client.closed()
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


async def test_an_idle_connection_ends_silently(stack, origin):
    async with origin() as o, stack(o.url, limits={"keep_alive_s": 0.1}) as h:
        client = await h.open()
        assert (await client.get()).status == 200
        assert await client.closed()
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 9\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"]
)
async def test_a_body_that_stalls_is_a_408(stack, origin, framing):
    async with origin(silent) as o, stack(o.url, limits={"body_timeout_s": 0.1}) as h:
        client = await h.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing)
        assert (await client.answer("POST")).status == 408
        assert await client.closed()


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 103 Early Hints\r\n\r\n"]
)
async def test_a_target_without_an_answer_is_a_504(stack, origin, sent):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"first_byte_timeout_s": 0.1}) as h:
        client = await h.open()
        for _ in range(2):
            answer = await client.get()
            assert (answer.status, answer.complete) == (504, True)
        assert o.connections == 2
        await asyncio.sleep(0)


async def test_an_established_stream_may_be_silent_for_as_long_as_it_likes(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(0.6)
        writer.write(b"0\r\n\r\n")
        await reader.read()

    short = dict.fromkeys(
        ("first_byte_timeout_s", "keep_alive_s", "body_timeout_s", "head_timeout_s", "write_timeout_s", "drain_s"), 0.1
    )
    async with origin(target) as o, stack(o.url, limits=short) as h:
        client = await h.open()
        assert (await client.get()).complete


async def test_nobody_listening_is_a_502(stack):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with stack(f"http://127.0.0.1:{taken.getsockname()[1]}") as h:
            client = await h.open()
            answer = await client.get()
            assert (answer.status, reason_of(answer.body)) == (502, b"the target refused the connection\n")


async def test_a_name_without_an_address_is_a_502(stack):
    async with stack("http://name.invalid") as h:
        client = await h.open()
        answer = await client.get()
        assert (answer.status, reason_of(answer.body)) == (502, b"the target's name could not be resolved\n")


async def test_a_connection_that_does_not_come_about_is_a_504(stack):
    async def never(protocol):
        await asyncio.get_running_loop().create_future()

    limits = {"connect_timeout_s": 0.05}
    async with stack(lambda head: Target("http://target", connect=never), limits=limits) as h:
        client = await h.open()
        assert (await client.get()).status == 504


async def test_a_client_that_takes_nothing_is_cut(stack, origin):
    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 20_000_000)
        await writer.drain()
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"write_timeout_s": 0.2}) as h:
        client = await h.open(limit=1024)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await h.outcome() == (Kind.FAILED, Stage.SIZED)
        assert h.upstreams.open_connections == 0 or await gone(h)


async def gone(h):
    for _ in range(500):
        if not h.upstreams.open_connections:
            return True
        await asyncio.sleep(0.002)
    return False


async def test_a_target_that_takes_nothing_is_a_504(stack, origin):
    forever = asyncio.Event()

    async def target(reader, writer):
        await forever.wait()

    async with origin(target) as o, stack(o.url, limits={"write_timeout_s": 0.2, "body_timeout_s": 0.3}) as h:
        client = await h.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 20_000_000)
        assert (await client.answer("POST")).status == 504


async def test_unused_target_connections_end(stack, origin, eventually):
    async with origin() as o, stack(o.url, limits={"upstream_idle_s": 0.1}) as h:
        client = await h.open()
        await client.get()
        assert h.upstreams.idle_connections == 1
        await eventually(lambda: h.upstreams.open_connections == 0)


async def test_a_generation_that_fails_stops_no_sweep(stack, origin, eventually, caplog):
    """The generation comes from the user's CertificateProvider.

    Connections still close in time, and one log line reports the failure.
    """
    fails = False

    def generation():
        if fails:
            raise OSError("no roots")
        return 1

    async with origin() as o, stack(o.url, limits={"upstream_idle_s": 0.1}, generation=generation) as h:
        client = await h.open()
        for _ in range(2):
            fails = False
            caplog.clear()
            assert (await client.get()).status == 200
            while h.upstreams._generation_failed:  # until a sweep finds that it works
                await asyncio.sleep(0.01)
                assert (await client.get()).status == 200
            fails = True
            await eventually(lambda: h.upstreams.open_connections == 0)
            said = [record for record in caplog.records if "generation" in record.message]
            assert [(record.levelname, record.stage) for record in said] == [("ERROR", "idle")]
        answer = await client.get()
        assert (answer.status, b"no roots" in answer.body) == (503, False)


async def test_expect_is_passed_on_and_its_100_once(stack, origin):
    seen = []

    async def target(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        seen.append(await reader.readexactly(5))
        writer.write(OK)
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"expect_timeout_s": 5}) as h:
        client = await h.open()
        client.send(POST + b"Expect: 100-Continue\r\n\r\n")
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"hello")
        answer = await client.answer("POST")
        assert (answer.body, answer.informational) == (b"OK", [])
        assert b"\r\nExpect: 100-continue\r\n" in seen[0]
        assert seen[1] == b"hello"


async def test_a_target_that_says_no_100_gets_its_body_after_a_second(stack, origin):
    async with origin() as o, stack(o.url, limits={"expect_timeout_s": 0.05}) as h:
        client = await h.open()
        client.send(POST + b"Expect: 100-continue\r\n\r\n")
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"hello")
        answer = await client.answer("POST")
        assert answer.body == b"hello"


async def test_a_final_answer_instead_of_a_100_closes(stack, origin, answering):
    no = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
    async with origin(answering(no)) as o, stack(o.url) as h:
        client = await h.open()
        client.send(POST + b"Expect: 100-continue\r\n\r\n")
        answer = await client.answer("POST")
        assert (answer.status, answer.headers[b"connection"]) == (417, b"close")
        assert await client.closed()


async def test_no_100_for_http_1_0_and_none_without_a_body(stack, origin):
    async with origin() as o, stack(o.url, limits={"expect_timeout_s": 0.01}) as h:
        client = await h.open()
        client.send(b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        await asyncio.sleep(0.1)
        client.send(b"hello")
        answer = await client.answer("POST")
        assert (answer.body, answer.informational) == (b"hello", [])
        answer = await client.get(more="Expect: 100-continue\r\n")
        assert answer.informational == []
        assert [b"expect" in dict(request.headers) for request, _ in o.requests] == [False, False]


async def test_the_proxy_answers_expect_itself_where_told_to(stack, origin):
    answers = itertools.cycle((True, False))

    def route(head):
        return Target(o.url, answers_expect=next(answers))

    async with origin() as o, stack(route, limits={"expect_timeout_s": 0.05}) as h:
        client = await h.open()
        for _ in range(4):  # the same head each time, and not the same target
            client.send(POST + b"Expect: 100-continue\r\n\r\n")
            assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"hello")
            assert (await client.answer("POST")).body == b"hello"
        assert [b"expect" in dict(request.headers) for request, _ in o.requests] == [False, True, False, True]
