"""Each head that the fast parser reads gets the same result from llhttp, in both twins."""

from __future__ import annotations

import random

import httptools
import pytest

from agent.proxy import ProxyLimits
from agent.proxy.fast_parser import PLAIN_METHODS, HeaderBlock, plain_host_end, plain_request_line, plain_status_line
from agent.proxy.heads import (
    HOST,
    METHODS,
    STATUS_LINE,
    Fault,
    ask_llhttp,
    check_line,
    parse_request,
    parse_response,
)
from fastpipe import IMPLEMENTATION

SHARE = 4 if IMPLEMENTATION == "python" else 1
LIMITS = ProxyLimits()
REQUEST, RESPONSE = httptools.HttpRequestParser, httptools.HttpResponseParser

LINES = [
    b"Host: a",
    b"host:a:80",
    b"Content-Length: 5",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"content-length: 18446744073709551616",
    b"Content-Length: 9223372036854775808",
    b"Content-Length:\t005 ",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: chunked, chunked",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade, X",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"TE: trailers",
    b"Expect: 100-continue",
    b"Trailer: X",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: close",
    b"X: y",
    b"X:  y\t ",
    b"X:",
    b"X: ",
    b"X : y",
    b" X: y",
    b": y",
    b"X",
    b"",
    b"X: y\r",
    b"X: \x80\xff",
    b"X: \x00",
    b"X: \x7f",
    b"X: a\tb",
    b"X_Y: z",
    b"Content_Length: 5",
    b"Date: Mon, 23 Nov 2026 22:00:00 GMT",
    b"Cookie: a=b; c=d",
    b"(X): y",
    b"X: y: z",
]


def asked(parser: type, head: bytes) -> HeaderBlock | None:
    """The lines that llhttp reads of a head. None if llhttp rejects the head."""
    lines = HeaderBlock()
    try:
        return lines if ask_llhttp(parser, head, lines) else None
    except ValueError:
        return None


def assert_read_alike(parser: type, head: bytes) -> bool:
    """Where the lines are read here, llhttp takes the head and reads the same. Returns whether they are."""
    start = head.index(b"\r\n") + 2
    lines, block = HeaderBlock(), HeaderBlock()
    plain = lines.read(head, start, False)
    assert block.read(head, start, True) == plain, head
    if plain:
        theirs = asked(parser, head)
        assert theirs is not None, head
        assert (lines.fields, lines.special, lines.count) == (theirs.fields, theirs.special, theirs.count), head
        written = b"".join(name + b": " + value + b"\r\n" for name, value in theirs.fields)
        assert (block.block, block.special, block.count) == (head[:start] + written, theirs.special, theirs.count), head
    return plain


def is_plain_line(parser: type, head: bytes) -> bool:
    if parser is RESPONSE:
        return plain_status_line(head) > 0
    return head[: plain_request_line(head, 100)] in PLAIN_METHODS


def mutated(chance: random.Random, head: bytes) -> bytes:
    hurt = bytearray(head)
    for _ in range(chance.choice((0, 0, 1, 2))):
        at = chance.randrange(len(hurt) - 3)
        match chance.randrange(3):
            case 0:
                hurt[at] = chance.randrange(256)
            case 1:
                del hurt[at : at + chance.randrange(1, 4)]
            case 2:
                hurt[at:at] = chance.choice((b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\x7f", b"\r\n "))
    whole = bytes(hurt) + b"\r\n\r\n"
    return whole[: whole.find(b"\r\n\r\n") + 4]  # as both intakes cut it


@pytest.mark.parametrize("seed", range(4))
def test_llhttp_reads_the_same_lines(seed: int) -> None:
    chance = random.Random(seed)
    plain = 0
    for _ in range(20_000 // SHARE):
        parser = chance.choice((REQUEST, RESPONSE))
        first = b"POST /x HTTP/1.1" if parser is REQUEST else b"HTTP/1.1 200 OK"
        lines = [chance.choice(LINES) for _ in range(chance.randrange(5))]
        head = mutated(chance, b"\r\n".join([first, *lines, b"", b""]))
        if is_plain_line(parser, head):
            plain += assert_read_alike(parser, head)
    assert plain > 4000 // SHARE


def test_llhttp_reads_the_same_whatever_byte_stands_where() -> None:
    plain = set()
    for byte in range(256):
        sign = bytes([byte])
        for line in (
            b"%bX: y",
            b"X%bX: y",
            b"X%b: y",
            b"X:%by",
            b"X: %b",
            b"X: y%b",
            b"X: y%bz",
            b"%b: y",
            b"X: y\r\n%b",
        ):
            for parser, first in ((REQUEST, b"GET / HTTP/1.1"), (RESPONSE, b"HTTP/1.1 200 OK")):
                head = b"%b\r\nHost: a\r\n%b\r\n\r\n" % (first, line % sign)
                if assert_read_alike(parser, head[: head.find(b"\r\n\r\n") + 4]):
                    plain.add(byte)
    assert plain >= {*range(0x20, 0x7F), *range(0x80, 0x100)}, "the bytes that a value may contain"


@pytest.mark.parametrize("seed", range(2))
def test_a_plain_request_line_is_as_the_whole_check_finds_it(seed: int) -> None:
    chance = random.Random(seed)
    plain = 0
    signs = [b"/", b"a", b"?", b"%", b".", b"#", b"\\", b" ", b"\t", b"\x80", b"\x7f", b"=", b";"]
    parts = [*signs, b"%2e", b"/.", b"x" * 40]
    versions = [b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b""]
    for _ in range(20_000 // SHARE):
        method = chance.choice([*PLAIN_METHODS, b"OPTIONS", b"get", b"GE T", b""])
        target = b"/" * chance.randrange(2) + b"".join(chance.choices(parts, k=chance.randrange(4)))
        head = mutated(chance, b"%b %b %b\r\nX: y\r\n\r\n" % (method, target, chance.choice(versions)))
        limits = ProxyLimits(target_bytes=64)
        method_end = plain_request_line(head, limits.target_bytes)
        if method_end and head[:method_end] in PLAIN_METHODS:
            plain += 1
            line = head[: head.index(b"\r\n")]
            assert check_line(line, limits) == (head[:method_end], line[method_end + 1 : -9], line[-1:]), head
            assert asked(REQUEST, line + b"\r\nHost: a\r\n\r\n") is not None, head
    assert plain > 400 // SHARE


@pytest.mark.parametrize("seed", range(2))
def test_a_plain_status_line_is_as_the_whole_check_finds_it(seed: int) -> None:
    chance = random.Random(seed)
    plain = 0
    for _ in range(20_000 // SHARE):
        reason = chance.choice((b" OK", b" ", b"", b" No way"))
        line = b"HTTP/1.%d %d%b" % (chance.randrange(3), chance.randrange(1000), reason)
        head = mutated(chance, line + b"\r\nX: y\r\n\r\n")
        end = plain_status_line(head)
        if end:
            plain += 1
            match = STATUS_LINE.match(head)
            assert match is not None, head
            assert (match.end(), match[1], match[2]) == (end + 2, b"1", head[9:12]), head
            assert head[:end] == b"HTTP/1.1 %b %b" % (match[2], match[3] or b"")
            assert asked(RESPONSE, head[: end + 2] + b"\r\n") is not None, head
    assert plain > 1000 // SHARE


def test_a_head_may_end_anywhere() -> None:
    """Nothing is looked at behind a head's end."""
    plain = 0
    for line in (b"GET /a HTTP/1.1\r\nHost: a", b"HTTP/1.1 200 OK\r\nX: y", b"DELETE / HTTP/1.0"):
        whole = line + b"\r\n\r\n"
        for length in range(len(line) + 1):
            head = whole[:length] + b"\r\n\r\n"
            parser = REQUEST if whole[0] != ord("H") else RESPONSE
            if is_plain_line(parser, head):
                plain += assert_read_alike(parser, head)
    assert plain >= 6


@pytest.mark.parametrize("method", sorted(METHODS))
def test_llhttp_takes_every_method_that_is_taken_here(method: bytes) -> None:
    """So that only its fields have to be read."""
    request, target = parse_request(method + b" /a HTTP/1.1\r\nHost: a\r\n\r\n", LIMITS)
    assert (request.method, request.name, target) == (method, method.decode(), b"/a")
    assert asked(REQUEST, method + b" /a HTTP/1.1\r\nHost: a\r\n\r\n") is not None


@pytest.mark.parametrize(
    ("host", "valid"),
    [
        (b"a", True),
        (b"a.b-c_d~e", True),
        (b"a:", True),
        (b"a:0", True),
        (b"a:80", True),
        (b"a:65535", True),
        (b"a:00080", True),
        (b"[::1]", True),
        (b"[::1]:65535", True),
        (b"a%20b:1", True),
        (b"1.2.3.4:5", True),
        (b"a:65536", False),
        (b"a:99999", False),
        (b"[::1]:65536", False),
        (b"a%20b:99999", False),
        (b"a:000080", False),
        (b"a:8x", False),
        (b"a:-1", False),
        (b"a:+1", False),
        (b"a: 1", False),
        (b"a:b:1", False),
        (b":80", False),
        (b"a b", False),
        (b"a,b", False),
        (b"a/b", False),
        (b"u@a", False),
        (b"[::1", False),
        (b"[::1]x", False),
        (b"a%2", False),
        (b"", False),
        (b"a\x80", False),
    ],
)
def test_a_host_is_one_valid_host_and_perhaps_a_port(host: bytes, valid: bool) -> None:
    end = plain_host_end(host)
    if end:
        match = HOST.match(host)
        assert match is not None
        assert match.end() == end
    head = b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host
    if valid:
        assert parse_request(head, LIMITS)[0].host == host
    else:
        with pytest.raises(Fault) as caught:
            parse_request(head, LIMITS)
        assert caught.value.status == 400


def test_a_response_goes_on_in_one_form_however_it_was_written() -> None:
    head = (
        b"HTTP/1.%b 200 OK\r\nX:y\r\nServer: nginx\r\nConnection: %b\r\nZ: \tw \r\nV: w\r\nContent-Length: 0%b\r\n\r\n"
    )
    out = b"HTTP/1.1 200 OK\r\nX: y\r\nServer: nginx\r\nZ: w\r\nV: w\r\n"
    for minor, connection, length in ((b"1", b"close", b"5"), (b"0", b"close", b"5"), (b"1", b"keep-alive, te", b"")):
        response = parse_response(head % (minor, connection, length))
        assert response.lines == out
        assert response.lines[response.line_bytes :] == out[17:]
        assert response.digits == (length or b"0")
    assert parse_response(head % (b"1", b"X, v", b"5")).lines == out.replace(b"X: y\r\n", b"").replace(b"V: w\r\n", b"")
