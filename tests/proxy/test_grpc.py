"""gRPC's rules: which requests are calls, what ends them, their trailers, and the statuses of failures."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import string
from urllib.parse import unquote_to_bytes

import pytest

from agent.errors import Refused
from agent.proxy import ClientOrigin, ProxyLimits
from agent.proxy.blame import read_fault
from agent.proxy.client_side import ClientSide
from agent.proxy.clock import NEVER
from agent.proxy.grpc import (
    CALL_DEADLINE,
    failure_head,
    failure_trailers,
    grpc_trailers,
    is_grpc,
    status_of,
    timeout_s,
)
from agent.proxy.heads import parse_request
from agent.proxy.relay import Exchange

INPUTS = int(os.environ.get("FASTPIPE_INPUTS", "50000"))
HASTY = dict.fromkeys(("first_byte_timeout_s", "body_timeout_s", "write_timeout_s", "head_timeout_s"), 0.1)
CALL = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nTE: trailers\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
STREAMED = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;charset=utf-8", True),
        (b"Application/gRPC+json", True),
        (b"application/grpc-web", False),
        (b"application/grpc-web+proto", False),
        (b"application/grpc-web-text", False),
        (b"application/grpcish", False),
        (b"application/grpc proto", False),
        (b"application/grp", False),
        (b"text/plain; a=application/grpc", False),
        (b"", False),
    ],
)
def test_the_content_type_decides(value: bytes, expected: bool) -> None:
    assert is_grpc([(b"X", b"application/grpc"), (b"cOntent-tYpe", value)]) is expected
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: " + value + b"\r\n\r\n"
    for fast in (True, False):
        assert parse_request(head, ProxyLimits(), None, fast)[0].is_grpc is expected


def test_the_first_content_type_decides() -> None:
    assert not is_grpc([(b"Content-Type", b"text/plain"), (b"Content-Type", b"application/grpc")])
    assert not is_grpc([])


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        (b"2H", 7200),
        (b"3M", 180),
        (b"4S", 4),
        (b"5m", 0.005),
        (b"1u", 1e-6),
        (b"1n", 1e-9),
        (b"0S", 0),
        (b"00000001S", 1),
        (b"99999999H", 99999999 * 3600),
        (b"", NEVER),
        (b"S", NEVER),
        (b"5", NEVER),
        (b"5s", NEVER),
        (b"-5S", NEVER),
        (b"+5S", NEVER),
        (b"5 S", NEVER),
        (b" 5S", NEVER),
        (b"5S ", NEVER),
        (b"5S\n", NEVER),
        (b"1.5S", NEVER),
        (b"1e3S", NEVER),
        (b"1_0S", NEVER),
        (b"123456789S", NEVER),
        ("٣S".encode(), NEVER),
        (b"5S, 6S", NEVER),
    ],
)
def test_a_timeout_is_at_most_eight_digits_and_a_unit(value: bytes, expected_s: float) -> None:
    assert timeout_s([(b"GRPC-Timeout", value)]) == expected_s


def test_the_shortest_of_several_timeouts_counts() -> None:
    assert timeout_s([(b"grpc-timeout", b"9S"), (b"grpc-timeout", b"1S"), (b"grpc-timeout", b"x")]) == 1
    assert timeout_s([(b"grpc-timeout-x", b"9S")]) == NEVER


def test_hostile_timeouts_and_content_types_raise_nothing() -> None:
    maker = random.Random(16)
    pieces = [b"application/grpc", b"+", b";", b"0", b"9", b"H", b"n", b"\0", b"\xff", b" ", b"\r\n", b"%", b"-", b"."]
    for _ in range(INPUTS // 10):
        value = b"".join(maker.choices(pieces, k=maker.randrange(12)))
        fields = [(maker.choice([b"grpc-timeout", b"Content-Type", b"x"]), value) for _ in range(2)]
        found_s = timeout_s(fields)
        assert found_s == NEVER or 0 <= found_s < 1e12
        is_grpc(fields)


def test_the_table_of_statuses() -> None:
    table = {
        13: (400, 414, 431),
        16: (401,),
        7: (403,),
        12: (404, 405, 501),
        8: (429,),
        14: (421, 502, 503, 504),
        2: (308, 402, 406, 407, 408, 410, 411, 417, 451, 500, 505, 599),
    }
    for code, statuses in table.items():
        for status in statuses:
            assert status_of(status) == code, status
    for limit in ("max_clients", "memory_comm.max_connections", "http2_max_streams"):
        assert status_of(503, limit) == 8
    assert status_of(503, "RLIMIT_NOFILE") == 14
    assert status_of(504, "limits.first_byte_timeout_s") == 14
    assert status_of(504, CALL_DEADLINE) == 4


@pytest.mark.parametrize("reason", ["plain", "100%", "über\r\n\x00", "a\x7f\x80\ud800b", "", "😀" * 5000, "%41"])
def test_the_message_is_percent_encoded(reason: str) -> None:
    for fields in (failure_head(502, reason, b"0abc"), failure_trailers(reason, b"0abc")):
        found = dict(fields)
        assert found[b"grpc-status"] == b"14"
        message = found[b"grpc-message"]
        assert all(byte in range(0x20, 0x7F) for byte in message)
        assert len(message) < 16384
        text = unquote_to_bytes(message).decode("utf-8")
        assert text == reason[:1000].encode("utf-8", "replace").decode() + " (request id: 0abc)"
        assert all(name == name.lower() for name, _ in fields)
    assert dict(failure_trailers(reason, b"0abc", CALL_DEADLINE))[b"grpc-status"] == b"4"


def test_trailers_pass_but_for_framing_and_connection_fields() -> None:
    passed = [(b"grpc-status", b"0"), (b"Set-Cookie", b"a"), (b"Content-Type", b"b"), (b"x-bin", b"AP8=")]
    dropped = (b"Content-Length", b"transfer-encoding", b"Connection", b"TE", b"Host", b"Upgrade", b":status")
    assert grpc_trailers([*passed, *((name, b"x") for name in dropped), (b"Tunnel-Fault", b"agent - x")]) == passed


# -- a call at an agent, whose client is a hub


def answering(sent: bytes):
    """A target that reads a head, and sends this."""

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        await reader.read()

    return target


async def test_neither_body_nor_first_byte_timeout_ends_a_call(stack, origin):
    go = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"0\r\n\r\n")
        await go.wait()
        writer.write(STREAMED + b"0\r\ngrpc-status: 0\r\n\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url, limits=HASTY) as h:
        client = await h.open()
        client.send(CALL + CHUNKED + b"1\r\nx\r\n")
        await asyncio.sleep(0.5)  # five times the limits
        client.send(b"0\r\n\r\n")
        await asyncio.sleep(0.5)
        go.set()
        answer = await client.answer("POST")
        assert (answer.status, answer.trailers) == (200, [(b"grpc-status", b"0")])


async def test_a_users_grpc_over_http1_is_ordinary_http(stack, origin):
    async with origin(answering(b"")) as o, stack(o.url, limits=HASTY) as h:
        h.client_origin = ClientOrigin()
        client = await h.open()
        client.send(CALL + CHUNKED)
        assert (await client.answer("POST")).status == 408
    async with origin(answering(b"")) as o, stack(o.url, limits=HASTY) as h:
        h.client_origin = ClientOrigin()
        client = await h.open()
        client.send(CALL + b"Content-Length: 0\r\n\r\n")
        answer = await client.answer("POST")
        assert (answer.status, b"tunnel-fault" in answer.headers) == (504, False)


async def test_a_stalled_reader_ends_no_call(stack, origin):
    """Flow control may pause a call for any time, in both directions."""
    sent = STREAMED + b"7a1200\r\n" + bytes(8_000_000) + b"\r\n0\r\n\r\n"
    async with origin(answering(sent)) as o, stack(o.url, limits=HASTY) as h:
        client = await h.open(limit=1024)
        client.send(CALL + CHUNKED)
        await client.read_until(b"\r\n\r\n")
        client.writer.transport.pause_reading()
        await asyncio.sleep(0.5)
        client.writer.transport.resume_reading()
        left = 8_000_000
        while left > 0:
            left -= len(await client.read())


async def test_the_calls_own_timeout_ends_it_a_second_later(stack, origin, caplog):
    caplog.set_level(logging.INFO, "agent.proxy")
    async with origin(answering(b"")) as o, stack(o.url, limits={"head_timeout_s": 0.04}) as h:
        client = await h.open()
        started_s = asyncio.get_running_loop().time()
        client.send(CALL + b"grpc-timeout: 10m\r\n" + CHUNKED)
        answer = await client.answer("POST")
        took_s = asyncio.get_running_loop().time() - started_s
        assert answer.status == 504
        fault, limit, reason = read_fault(answer.headers[b"tunnel-fault"])
        assert (fault, limit, reason) == ("target", CALL_DEADLINE, "the call's grpc-timeout passed")
        assert took_s >= 1.0
    assert [record.limit for record in caplog.records if hasattr(record, "limit")] == [CALL_DEADLINE]


async def test_a_timeout_behind_the_head_cuts_the_call(stack, origin):
    async with origin(answering(STREAMED)) as o, stack(o.url, limits={"head_timeout_s": 0.04}) as h:
        client = await h.open()
        client.send(CALL + b"grpc-timeout: 10m\r\n" + CHUNKED)
        assert not (await client.answer("POST")).complete


async def test_each_own_failure_names_its_fault_to_the_hub(stack):
    """A hub turns a failure into a status only if it is the agent's own."""

    def refuse(head):
        raise Refused(404, "no such service")

    async with stack(refuse) as h:
        client = await h.open()
        client.send(CALL + b"Content-Length: 0\r\n\r\n")
        answer = await client.answer("POST")
        assert answer.status == 404
        assert read_fault(answer.headers[b"tunnel-fault"]) == ("client", "", "no such service")
    async with stack(refuse, limits={"request_fields": 4}) as h:
        client = await h.open()
        client.send(CALL + b"X: y\r\n" * 8 + b"\r\n")
        answer = await client.answer("POST")
        assert answer.status == 431
        assert read_fault(answer.headers[b"tunnel-fault"])[:2] == ("client", "limits.request_fields")


async def test_a_targets_own_error_passes_as_it_is(stack, origin):
    forged = b"HTTP/1.1 503 Service Unavailable\r\nTunnel-Fault: agent - x\r\nX-Own: y\r\nContent-Length: 2\r\n\r\nNO"
    async with origin(answering(forged)) as o, stack(o.url) as h:
        client = await h.open()
        client.send(CALL + b"Content-Length: 0\r\n\r\n")
        answer = await client.answer("POST")
        assert (answer.status, answer.body, answer.headers[b"x-own"]) == (503, b"NO", b"y")
        assert b"tunnel-fault" not in answer.headers


async def test_a_calls_trailers_may_be_64_kib(stack, origin):
    trailers = [(f"x-{n}-bin".encode(), b"AAAA" * 100) for n in range(150)]
    lines = b"".join(b"%b: %b\r\n" % field for field in [*trailers, (b"content-type", b"x"), (b"grpc-status", b"0")])
    assert 60_000 < len(lines) < 65536
    async with origin(answering(STREAMED + b"0\r\n" + lines + b"\r\n")) as o, stack(o.url) as h:
        client = await h.open()
        client.send(CALL + CHUNKED + b"0\r\n\r\n")
        answer = await client.answer("POST")
        assert answer.complete
        assert answer.trailers == [*trailers, (b"content-type", b"x"), (b"grpc-status", b"0")]


async def test_longer_trailers_cut_the_call(stack, origin):
    lines = b"x: " + bytes(string.ascii_letters, "ascii") * 1300 + b"\r\n"
    assert len(lines) > 65536
    go = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(STREAMED)
        await go.wait()
        writer.write(b"0\r\n" + lines + b"\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        client.send(CALL + CHUNKED + b"0\r\n\r\n")
        assert b"200" in await client.read_until(b"\r\n\r\n")
        go.set()
        assert b"0\r\n" not in await client.read_all()


# -- a call at a hub


class RecordingClient(ClientSide):
    """A client that can carry calls, and notes what its exchange calls."""

    def __init__(self) -> None:
        super().__init__(1)
        self.carries_grpc = True
        self.request_id = b"0abc"
        self.calls: list[tuple[str, object]] = []
        self.ended = asyncio.Event()

    def truncation(self):
        return {}

    def start_response(self, response, length, pieces, ended, trailers):
        self.response_begun = True
        self.calls.append(("head", response.status))
        self.calls.append(("body", b"".join(bytes(piece) for piece in pieces)))

    def send_body(self, pieces, ended, trailers):
        self.calls.append(("trailers", trailers))

    def response_done(self):
        self.ended.set()

    def respond_with(self, status, reason, *, close=False, fields=None, fault=None, limit=""):
        self.calls.append(("own", (status, reason, fault, limit)))
        self.ended.set()

    def abort_response(self, reason, limit):
        self.calls.append(("abort", (reason, limit)))
        self.ended.set()


async def outcome_of(stack, origin, sent: bytes, call: bytes = CALL) -> list[tuple[str, object]]:
    """The calls that the client of a hub gets, if an agent sends these bytes."""
    async with origin(answering(sent)) as o, stack(o.url, party="hub") as h:
        client = RecordingClient()
        request, target = parse_request(call + b"Content-Length: 0\r\n\r\n", ProxyLimits())
        Exchange(client, h.proxy, None, request, target).start()
        await asyncio.wait_for(client.ended.wait(), 20)
        return client.calls


@pytest.mark.parametrize("carrier", ["pipe"], indirect=True)
async def test_an_agents_failure_becomes_the_hubs_own(stack, origin):
    """It is distinguished from a target's by `Tunnel-Fault`, and its body is not passed on."""
    head = b"HTTP/1.1 %d Some\r\nTunnel-Fault: target limits.x it failed\r\nContent-Length: 4\r\n\r\ntext"
    for status in (404, 502):
        calls = await outcome_of(stack, origin, head % status)
        assert calls == [("own", (status, "it failed", "target", "limits.x"))]
    plain = CALL.replace(b"grpc", b"grpc-web")
    assert await outcome_of(stack, origin, head % 502, plain) == [("head", 502), ("body", b"text")]
    without = b"HTTP/1.1 503 Some\r\nContent-Length: 4\r\n\r\ntext"
    assert await outcome_of(stack, origin, without) == [("head", 503), ("body", b"text")]


# -- everything else


async def test_the_body_timeout_stops_once_the_head_is_out(stack, origin):
    """A target may respond before the whole request is there, and the client may then send late."""

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await reader.readexactly(9)
        writer.write(b"cd")
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"body_timeout_s": 0.1}) as h:
        client = await h.open()
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
        await client.read_until(b"ab")
        for part in (b"a", b"b", b"ody"):
            await asyncio.sleep(0.3)
            client.send(part)
        await client.read_until(b"cd")
