"""Heads and bodies at parser level, with h11 as second opinion.

A split never changes a verdict. The test ids have the seeds.
"""

from __future__ import annotations

import collections
import functools
import random
import time

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import PolicyError
from agent.messages import Target
from agent.proxy import ProxyLimits
from agent.proxy.chunked import ChunkedDecoder, ChunkError, encode_chunk, encode_last
from agent.proxy.head_writer import head_for_client, head_for_target
from agent.proxy.headers import check_fields, forwarded_trailers
from agent.proxy.heads import CHUNKED, UNFRAMED, UNTIL_EOF, Fault, parse_request, parse_response
from agent.proxy.readers import BodyReader, RequestHeadReader, ResponseHeadReader
from agent.proxy.rules import HeadError
from agent.syntax import without_plain_dots
from fastpipe import IMPLEMENTATION

SHARE = 4 if IMPLEMENTATION == "python" else 1
"""The Python twin reads only a quarter of the inputs.

It is the same source as the compiled twin, and several times slower.
"""
LIMITS = ProxyLimits(target_bytes=64, request_head_bytes=512, chunk_line_bytes=40, trailer_bytes=100)

SEEDS = [
    b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /x HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\r\n"
    b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive, X\r\nX: y\r\n\r\n",
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n\x81\x01",
    b"\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
]
SPLICES = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\x0b",
    b"\x80",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Host: b\r\n",
    b"Connection: close\r\n",
    b",",
    b"Connection: host\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"/../",
    b"%2e",
    b"#",
    b"5;a=b\r\n",
    b"-1",
    b"0x5",
    b"\r\n\r\n",
    b"Upgrade: websocket\r\n",
    b"a" * 70,
    b"X: " + b"y" * 600 + b"\r\n",
    b";",
    b'"',
    b" HTTP/1.1\r\n",
]


def mutated(chance: random.Random, seeds: list[bytes] = SEEDS) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[at:at] = chance.choice(SPLICES)
            case 1:
                del data[at : at + chance.randrange(1, 6)]
            case 2:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                end = min(len(data), at + chance.randrange(1, 30))
                data[at:at] = data[at:end]
    return bytes(data)


def verdict(parts: list[bytes], as_views: bool = False) -> list[object]:
    """The proxy's reading of bytes in these parts: heads, content, and the fault at the end."""
    heads = RequestHeadReader(LIMITS)
    body: BodyReader | None = None
    made: list[object] = []
    content: list[bytes] = []
    try:
        for part in parts:
            data = memoryview(part) if as_views else part
            while len(data):
                if body is not None:
                    pieces, data = body.take(data)
                    content += map(bytes, pieces)
                    if body.ended:
                        made.append((b"".join(content), body.decoder.trailers if body.decoder else []))
                        body, content = None, []
                    continue
                head, data = heads.take(data)
                if head is not None:
                    request, target = parse_request(head, LIMITS)
                    again = parse_request(head.replace(head.split(b" ")[1], b"/other", 1), LIMITS, request)
                    assert target == b"*" or again == (request, b"/other"), "all but the target is the same"
                    fresh, _ = parse_request(head, LIMITS)
                    assert described(fresh) == described(request)
                    made.append((target, described(request)))
                    out = head_for_target(request, target, request.fields, Target("http://t"), b"1").as_http1()
                    assert_one_framing(out, request)
                    if request.upgrade:
                        return made
                    if request.length:
                        body = BodyReader(request.length, LIMITS)
    except Fault as fault:
        made.append(fault.status)
    except ChunkError:
        made.append(400)
    else:
        made.append((b"".join(content), bytes(heads.begun)))
    return made


def described(request) -> dict[str, object]:
    return {name: getattr(request, name) for name in request.__slots__ if name != "tail"}


@functools.lru_cache(maxsize=16)
def read_by_h11(out: bytes) -> h11.Request:
    """Read a head by h11. All splits of an input make the same head, and h11 took a third of the test's time."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(out)
    event = parser.next_event()
    assert isinstance(event, h11.Request), out
    return event


def assert_one_framing(out: bytes, request) -> None:
    """h11 reads what goes out as the same request, with one Host and at most one framing field."""
    event = read_by_h11(out)
    names = [name for name, _ in event.headers]
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert (event.method, event.target) == (request.method, b"/")
    lengths = dict(event.headers)
    assert lengths.get(b"content-length", b"0") == b"%d" % max(request.length, 0)
    assert (b"transfer-encoding" in lengths) == (request.length == CHUNKED)


@pytest.mark.parametrize("seed", range(8))
def test_no_split_changes_what_becomes_of_a_request(seed):
    chance = random.Random(seed)
    ends = collections.Counter()
    for _ in range(12_500 // SHARE):
        data = mutated(chance)
        whole = verdict([data])
        ends[whole[-1] if isinstance(whole[-1], int) else "passed"] += 1
        bytewise = verdict([data[i : i + 1] for i in range(len(data))])
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(3))
        random_parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
        assert verdict([data], as_views=True) == whole, data
        for other in (bytewise, verdict(random_parts), verdict(random_parts, as_views=True)):
            assert other == whole, data
    assert ends["passed"] > 100
    assert {400, 414, 417, 431, 501, 505} - set(ends) <= {414, 417, 505}, ends


@pytest.mark.parametrize("seed", range(4))
def test_what_the_intake_passes_llhttp_and_h11_pass_too(seed):
    """Nothing gets by that a strict parser of another make refuses, in the forms both know."""
    chance = random.Random(1000 + seed)
    passed = 0
    for _ in range(25_000 // SHARE):
        data = mutated(chance)
        try:
            head, _ = RequestHeadReader(LIMITS).take(data)
            if head is None:
                continue
            _, target = parse_request(head, LIMITS)
        except Fault:
            continue
        passed += 1
        parser = h11.Connection(h11.SERVER)
        parser.receive_data(head)
        event = parser.next_event()
        assert isinstance(event, h11.Request), head
        path, mark, query = event.target.partition(b"?")
        assert without_plain_dots(path) + mark + query == target
    assert passed > 300


RESPONSES = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive, X\r\nX: y\r\n\r\nto the end",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n\x81\x01",
    b"HTTP/1.1 304 Not Modified\r\nETag: a\r\n\r\n",
]


def response_verdict(parts: list[bytes]) -> list[object]:
    """The proxy's reading of a target's bytes: forwarded heads, content, and whether they are a response."""
    reader = ResponseHeadReader(LIMITS)
    body: BodyReader | None = None
    made: list[object] = []
    content = b""
    try:
        for part in parts:
            data: bytes | memoryview = part
            while len(data):
                if body is None:
                    response, data = reader.take(data)
                    if response is not None:
                        made.append((response.status, response.length, response.upgrade, response.keep_alive))
                        out = head_for_client(response, UNFRAMED, b"")
                        assert out == response.lines + b"\r\n"
                        if response.length == UNTIL_EOF and response.status >= 200:
                            return made
                        body = BodyReader(response.length, LIMITS) if response.length not in (0, UNTIL_EOF) else None
                else:
                    pieces, data = body.take(data)
                    content += b"".join(map(bytes, pieces))
                    if body.ended:
                        return [*made, content]
    except (HeadError, ChunkError):  # in which words may depend on what had come when it was found
        return [*made, "failed"]
    return [*made, content]


@pytest.mark.parametrize("seed", range(4))
def test_no_split_changes_what_becomes_of_a_response(seed):
    chance = random.Random(2000 + seed)
    passed = 0
    for _ in range(5_000 // SHARE):
        data = mutated(chance, RESPONSES)
        whole = response_verdict([data])
        passed += not isinstance(whole[-1], str)
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(3))
        random_parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
        for parts in ([data[i : i + 1] for i in range(len(data))], random_parts):
            assert response_verdict(parts) == whole, data
    assert passed > 300


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.integers(1, 30), st.booleans())
@settings(max_examples=200, deadline=None)
def test_chunks_come_out_as_they_went_in(contents, step, as_views):
    wire = b"".join(b"".join(encode_chunk([content])) for content in contents) + encode_last([(b"X", b"y")]) + b"rest"
    decoder = ChunkedDecoder(LIMITS)
    got: list[bytes] = []
    for at in range(0, len(wire), step):
        part = wire[at : at + step]
        got += map(bytes, decoder.feed(memoryview(part) if as_views else part))
        if decoder.done:
            assert wire.endswith(decoder.rest + wire[at + step :])
            assert decoder.rest + wire[at + step :] == b"rest"
            break
    assert decoder.done
    assert b"".join(got) == b"".join(contents)
    assert decoder.trailers == [(b"X", b"y")]


@pytest.mark.parametrize("before", [b"", b"3\r\nabc\r\n"])
@pytest.mark.parametrize("size", [b"7fffffffffffffff", b"7ffffffffffffff0"])
def test_the_largest_chunk_begins_as_any(before, size):
    """The chunk's offset plus its declared size is past 2**63."""
    decoder = ChunkedDecoder(LIMITS)
    assert b"".join(decoder.feed(before + size + b"\r\nhello")) == (b"abc" if before else b"") + b"hello"
    assert decoder.feed(b"more") == [b"more"]
    assert not decoder.done
    with pytest.raises(ChunkError, match="out of range"):
        ChunkedDecoder(LIMITS).feed(b"8000000000000000\r\nhello")


def test_known_lengths_bypass_the_parser_by_reference():
    body = BodyReader(10, LIMITS)
    data = b"01234"
    assert body.take(data)[0][0] is data
    pieces, rest = body.take(b"56789GET")
    assert (pieces, bytes(rest), body.ended) == ([b"56789"], b"GET", True)
    large = memoryview(b"x" * 100_000)
    decoder = ChunkedDecoder(LIMITS)
    assert decoder.feed(b"30d40\r\n") == []
    assert decoder.feed(large)[0] is large, "nor is the inside of a chunk touched"


def test_response_heads_are_found_in_any_split():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 05\r\nX: y\t \r\nSet-Cookie: a\r\n\r\n"
    for step in range(1, len(head) + 3):
        reader = ResponseHeadReader(LIMITS)
        wire = head + b"hello"
        response, at, rest = None, 0, b""
        while response is None:
            response, rest = reader.take(wire[at : at + step])
            at += step
        assert rest + wire[at:] == b"hello"
        assert (response.status, response.length) == (200, 5)
        assert response.lines[response.line_bytes :] == b"X: y\r\nSet-Cookie: a\r\n"
        out = head_for_client(response, 5, b"close")
        expected = b"HTTP/1.1 200 OK\r\nX: y\r\nSet-Cookie: a\r\nContent-Length: 5\r\nConnection: close\r\n\r\n"
        assert out == expected


def test_a_response_head_that_repeats_is_read_once_and_written_for_each_use():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n"
    reader = ResponseHeadReader(LIMITS)
    first, rest = reader.take(head + b"hello")
    assert first is not None
    again, more = reader.take(head + b"world" + head)
    assert again is first
    assert (rest, more) == (b"hello", b"world" + head)
    for split in range(1, len(head)):
        assert reader.take(head[:split]) == (None, b"")
        held, behind = reader.take(head[split:] + b"hello")
        assert held is not None
        assert (held.length, held.lines, behind) == (5, first.lines, b"hello")
    plain = b"HTTP/1.1 200 OK\r\nX: y\r\n"
    for _ in range(2):
        assert head_for_client(first, 5, b"") == plain + b"Content-Length: 5\r\n\r\n"
        assert head_for_client(first, 7, b"") == plain + b"Content-Length: 7\r\n\r\n"
        assert head_for_client(first, 7, b"close") == plain + b"Content-Length: 7\r\nConnection: close\r\n\r\n"
        assert head_for_client(first, UNFRAMED, b"") == plain + b"\r\n"
    other, _ = reader.take(head.replace(b"X: y", b"X: z"))
    assert other is not None
    assert other.lines.endswith(b"\r\nX: z\r\n")
    long = head.replace(b"X: y", b"X: " + b"y" * 5000)
    one, _ = reader.take(long)
    two, _ = reader.take(long)
    assert one is not two, "too much to keep"
    assert one is not None
    assert head_for_client(one, 5, b"") == head_for_client(one, 5, b"")


def test_a_response_without_framing_lasts_until_its_end():
    assert parse_response(b"HTTP/1.1 200 OK\r\n\r\n").length == UNTIL_EOF
    with pytest.raises(HeadError, match="malformed"):
        parse_response(b"HTTP/1.1 200 OK\r\nX y\r\n\r\n")


@pytest.mark.parametrize(
    "field",
    [
        (b"X", b"a\r\nB: c"),
        (b"X", b"a\nb"),
        (b"X", b"\0"),
        (b"X\r\n", b"a"),
        (b"", b"a"),
        (b"X:", b""),
        ("X", "a"),
        (b"X",),
        b"X",
        None,
        (b"X", None),
    ],
)
def test_a_policy_cannot_break_a_head_apart(field):
    with pytest.raises(PolicyError, match="process must give headers"):
        check_fields([field])


def test_a_request_is_read_once_only_where_all_but_its_target_is_the_same():
    head = b"GET /%b HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n"
    first, _ = parse_request(head % (b"1", b"y"), LIMITS)
    assert parse_request(head % (b"2", b"y"), LIMITS, first) == (first, b"/2")
    for other in (
        head % (b"1", b"z"),
        (head % (b"1", b"y")).replace(b"1.1", b"1.0"),
        (head % (b"1", b"y")).replace(b"GET", b"HEAD"),
    ):
        assert parse_request(other, LIMITS, first)[0] is not first
    with pytest.raises(Fault):
        parse_request(head % (b"../2", b"y"), LIMITS, first)


def test_llhttp_takes_every_target_that_is_taken_here():
    """This ensures that a kept head gets the same verdict as a new one."""

    class Nothing:
        pass

    for sign in range(0x21, 0x7F):
        for target in (b"/a%cb", b"/%c", b"/?%c", b"/a?b?%c", b"//%c"):
            if sign not in b"#\\" and sign != ord("."):
                line = target % sign
                parse_request(b"GET " + line + b" HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS)
                httptools.HttpRequestParser(Nothing()).feed_data(b"GET " + line + b" HTTP/1.1\r\nHost: a\r\n\r\n")


def test_what_a_policy_adds_to_framing_is_ignored():
    request, target = parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS)
    fields = [
        (b"host", b"evil"),
        (b"Content-Length", b"9"),
        (b"transfer-encoding", b"chunked"),
        (b"X-Ok", b"1"),
        (b"Connection", b"X-Ok"),
    ]
    out = head_for_target(request, target, fields, Target("http://[::1]:8080/p?q"), b"1").as_http1()
    assert out == b"GET /p?q HTTP/1.1\r\nHost: [::1]:8080\r\nX-Ok: 1\r\nX-Request-Id: 1\r\n\r\n"


@pytest.mark.parametrize("mutable", [[b"X-User", b"alice"], (b"X-User", bytearray(b"alice"))])
def test_a_field_that_a_policy_changes_in_place_goes_on_as_it_is_now(mutable):
    request, target = parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS)
    fields = [mutable]
    assert b"X-User: alice\r\n" in head_for_target(request, target, fields, Target("http://t"), b"1").as_http1()
    if isinstance(mutable, list):
        mutable[1] = b"mallory"
    else:
        mutable[1][:] = b"mallory"
    assert b"X-User: mallory\r\n" in head_for_target(request, target, fields, Target("http://t"), b"1").as_http1()


def test_trailers_that_may_go_on():
    fields = [(b"X-Sum", b"1"), (b"Content-Length", b"1"), (b"authorization", b"x"), (b"Grpc-Status", b"0")]
    assert forwarded_trailers(fields) == [(b"X-Sum", b"1"), (b"Grpc-Status", b"0")]


def test_httptools_still_has_the_gaps_that_are_closed_here():
    """If one of these starts to raise, the check beside it may be let go."""

    class Nothing:
        pass

    for line in (b"GET  / HTTP/1.1", b"GET / HTTP/0.9", b"GET /# HTTP/1.1", b"GET http://a/ HTTP/1.1"):
        httptools.HttpRequestParser(Nothing()).feed_data(line + b"\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize("begin", [b"1;", b"0\r\nX: "], ids=["line", "trailer"])
def test_a_line_that_comes_byte_by_byte_costs_by_the_byte(begin: bytes) -> None:
    took_s = {}
    for size in (1_000, 16_000):
        decoder = ChunkedDecoder(ProxyLimits(chunk_line_bytes=20_000, trailer_bytes=20_000))
        decoder.feed(begin)
        began_s = time.process_time()
        for _ in range(size):
            decoder.feed(b"x")
        took_s[size] = time.process_time() - began_s
    assert took_s[16_000] < 100 * took_s[1_000], "16 times as much, and not 256 times"
