"""Every limit that ends a request or a connection is named in one log line.

The line has the party at fault and the setting of the limit.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl
from typing import Any

import pytest

from agent.messages import Target
from agent.proxy import ProxyLimits

from ..own_responses import reason_of

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
POST_CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
CALL = POST.replace(b"Host", b"Content-Type: application/grpc\r\nHost") % 1 + b"x"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
WANTS = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

ENDS_NOTHING = {
    "pipelined_bytes",
    "buffer_bytes",  # they pause
    "keep_alive_s",
    "upstream_idle_s",
    "idle_upstreams_per_target",  # what they end is idle
    "linger_s",  # limits a connection that closes anyway
    "expect_timeout_s",
    "retry_after_s",
    "unanswered_s",
}


@dataclasses.dataclass
class Case:
    """A limit, the messages that pass it, and the expected log line.

    limit: the setting that is exceeded.
    value: the value of the setting.
    fault: the party at fault.
    sent: bytes from the client.
    `answered`: bytes from the target, for each head.
    then: bytes from the client behind the response.
    reads: whether the client reads.
    ends: whether the client sends its end.
    stalls: whether the target reads nothing.
    tls: whether the target should speak TLS.
    never: whether there is no connection to the target.
    status: the status that the client gets.
    """

    limit: str
    value: float
    fault: str
    sent: bytes
    answered: bytes = b""
    then: bytes = b""
    reads: bool = True
    ends: bool = False
    stalls: bool = False
    tls: bool = False
    never: bool = False
    status: int = 0

    def __str__(self) -> str:
        return f"{self.limit}, {self.fault}, {self.status}"


CASES = [
    Case("head_timeout_s", 0.1, "client", b"GET / HTTP/1.1\r\nHo", status=408),
    Case("body_timeout_s", 0.1, "client", POST % 9 + b"half", status=408),
    Case("write_timeout_s", 0.2, "client", GET, SIZED + bytes(8_000_000), reads=False, status=200),
    Case("write_timeout_s", 0.2, "target", POST % 99_999_999 + bytes(20_000_000), stalls=True, status=504),
    Case("drain_s", 0.1, "client", POST % 9 + b"half", OK),
    Case("drain_bytes", 100, "client", POST % 999_999, OK, then=bytes(500_000)),
    Case("connect_timeout_s", 0.1, "target", GET, never=True, status=504),
    Case("tls_timeout_s", 0.1, "target", GET, tls=True, stalls=True, status=504),
    Case("first_byte_timeout_s", 0.1, "target", GET, status=504),
    Case("half_closed_s", 0.1, "client", GET, ends=True),
    Case("half_closed_s", 0.1, "client", GET, CHUNKED + b"5\r\nhello\r\n", ends=True, status=200),
    Case("request_head_bytes", 1024, "client", GET[:-2] + b"X: " + b"y" * 5000, status=431),
    Case("request_fields", 8, "client", GET[:-2] + b"X: y\r\n" * 20 + b"\r\n", status=431),
    Case("target_bytes", 256, "client", b"GET /" + b"x" * 300 + b" HTTP/1.1\r\nHost: a\r\n\r\n", status=414),
    Case("target_bytes", 256, "client", b"GET /" + b"x" * 5000, status=414),
    Case("leading_blank_lines", 2, "client", b"\r\n" * 5 + GET, status=400),
    Case("chunk_line_bytes", 100, "client", POST_CHUNKED + b"5;" + b"x" * 500, status=400),
    Case("trailer_bytes", 100, "client", POST_CHUNKED + b"0\r\nX: " + b"y" * 500, status=400),
    Case("trailer_bytes", 100, "client", POST_CHUNKED + b"0\r\n" + b"X: yyyyyyyyyyyyyyyyyyyy\r\n" * 9, status=400),
    Case("trailer_fields", 2, "client", POST_CHUNKED + b"0\r\n" + b"X: y\r\n" * 9, status=400),
    Case("response_head_bytes", 1024, "target", GET, b"HTTP/1.1 200 OK\r\nX: " + b"y" * 5000, status=502),
    Case("informational_responses", 2, "target", GET, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 5, status=502),
    Case("collect_bytes", 10, "target", b"GET / HTTP/1.0\r\n\r\n", CHUNKED + b"20\r\n" + bytes(32), status=502),
    Case("chunk_line_bytes", 100, "target", GET, CHUNKED + b"5;" + b"x" * 500, status=502),
    Case("trailer_bytes", 100, "target", GET, CHUNKED + b"2\r\nhi\r\n0\r\nX: " + b"y" * 500, status=502),
    Case("grpc_trailer_bytes", 100, "target", CALL, CHUNKED + b"2\r\nhi\r\n0\r\nX: " + b"y" * 500, status=502),
    Case("grpc_trailer_fields", 2, "target", CALL, CHUNKED + b"2\r\nhi\r\n0\r\n" + b"X: y\r\n" * 9, status=502),
]


def test_every_limit_is_walked() -> None:
    names = {field.name for field in dataclasses.fields(ProxyLimits)}
    assert {case.limit for case in CASES} | {"half_closed_idle_s", "connect_idle_s"} == names - ENDS_NOTHING


def lines(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name.startswith("agent.proxy")]


@pytest.mark.parametrize("carrier", ["tcp", "pipe"], indirect=True)
@pytest.mark.parametrize("case", CASES, ids=str)
async def test_the_line_names_fault_and_setting(stack, origin, eventually, caplog, case):
    caplog.set_level(logging.INFO, "agent.proxy")

    async def target(reader, writer):
        if case.stalls:
            await asyncio.get_running_loop().create_future()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(case.answered)
        await reader.read()

    async def never(protocol):
        await asyncio.get_running_loop().create_future()

    async with origin(target) as o:
        to = o.url.replace("http:", "https:") if case.tls else o.url

        def route(head):
            return Target(to, connect=never if case.never else None)

        limits = {case.limit: case.value}
        context = ssl.create_default_context()
        async with stack(route, limits=limits, ssl_context=lambda target: context) as h:
            client = await h.open(limit=1024)
            client.send(case.sent)
            if case.then:
                assert (await client.answer("POST")).complete
                client.send(case.then)
            reading = asyncio.ensure_future(client.read_all()) if case.reads else None
            if case.ends:
                if case.answered:
                    await eventually(lambda: any(c.response_begun for c in h.proxy._connections))
                client.writer.write_eof()
            await eventually(lambda: lines(caplog))
            client.writer.transport.abort()
            if reading is not None:
                await reading
    (line,) = lines(caplog)
    assert (line.limit, line.fault) == (f"limits.{case.limit}", case.fault)
    assert line.stage
    assert getattr(line, "status", 0) == case.status
    assert getattr(line, "truncated", False) is (case.status == 200)


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
async def test_silence_behind_a_half_closed_upgrade_names_its_setting(stack, origin, authority, eventually, caplog):
    caplog.set_level(logging.INFO, "agent.proxy")
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCH)
        await reader.read()

    limits = {"half_closed_idle_s": 0.1}
    async with origin(target, ssl=serving) as o, stack(o.url, limits=limits, ssl_context=lambda _: trusting) as h:
        client = await h.open()
        client.send(WANTS)
        assert (await client.switched()).status == 101
        client.writer.write_eof()
        assert await client.closed()
    (line,) = lines(caplog)
    assert (line.limit, line.fault) == ("limits.half_closed_idle_s", "client")


@pytest.mark.parametrize("party", ["target", "agent"])
async def test_an_upgraded_connection_names_the_party_that_takes_nothing(stack, origin, eventually, caplog, party):
    caplog.set_level(logging.INFO, "agent.proxy")

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCH)
        await asyncio.get_running_loop().create_future()

    async with origin(target) as o:

        def route(head):
            return Target(o.url, party=party)

        async with stack(route, limits={"write_timeout_s": 0.2}) as h:
            client = await h.open()
            client.send(WANTS)
            assert (await client.switched()).status == 101
            client.send(bytes(20_000_000))
            await eventually(lambda: lines(caplog))
            assert await client.closed()
    (line,) = lines(caplog)
    assert line.message == f"the {party} takes nothing"
    assert (line.limit, line.fault) == ("limits.write_timeout_s", party)


@pytest.mark.parametrize(("party", "setting"), [("agent", "memory_comm.max_connections"), ("hub", "max_clients")])
async def test_too_many_connections_name_their_setting(stack, origin, caplog, party, setting):
    caplog.set_level(logging.INFO, "agent.proxy")
    async with origin() as o, stack(o.url, max_connections=1, connections_limit=setting, party=party) as h:
        first, second = await h.open(), await h.open()
        assert (await first.get()).status == 200
        assert reason_of((await second.get()).body) == b"too many connections\n"
        h.proxy.start_draining()
        third = await h.open()
        assert reason_of((await third.get()).body) == b"the %b is being stopped\n" % party.encode()
    over, draining = lines(caplog)
    assert (over.limit, over.fault, over.status) == (setting, party, 503)
    assert (hasattr(draining, "limit"), draining.fault) == (False, party)


@pytest.mark.parametrize("sized", [True, False])
async def test_a_truncated_response_is_logged_as_the_client_got_it(stack, origin, answering, caplog, sized):
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1000\r\n\r\n" if sized else CHUNKED + b"3e8\r\n"
    async with origin(answering(head + bytes(400), then_close=True)) as o, stack(o.url) as h:
        client = await h.open()
        answer = await client.get()
        assert (len(answer.body), answer.complete) == (400, False)
    (line,) = lines(caplog)
    assert (line.status, line.truncated, line.sent_bytes, line.fault) == (206 if sized else 200, True, 400, "target")
    assert line.levelname == "WARNING"


async def test_a_response_that_failed_before_its_head_is_not_truncated(stack, origin, answering, caplog):
    async with origin(answering(b"HTTP/1.1 200 OK\r\nCont", then_close=True)) as o, stack(o.url) as h:
        assert (await (await h.open()).get()).status == 502
    (line,) = lines(caplog)
    assert (line.status, hasattr(line, "truncated")) == (502, False)
