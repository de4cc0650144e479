"""Heads of requests by HTTP/2: none reaches a target in two readings."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agent.config.limits import ProxyLimits
from agent.http2.head_rules import fault_of
from agent.proxy.heads import CHUNKED, Fault, Request
from agent.proxy.http2_requests import Http2RequestReader, MalformedStream, accept_of
from agent.proxy.origin import ClientOrigin

LIMITS = ProxyLimits()
Fields = list[tuple[bytes, bytes]]
HEAD: Fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", b"/p?q")]


def read(fields: Fields, *, ended: bool = True, connect: bool = False) -> tuple[Request, bytes]:
    reader = Http2RequestReader(ClientOrigin(peer="192.0.2.1"), connect)
    reader.take(fields, ended, LIMITS)
    assert reader.request is not None
    return reader.request, reader.own_target


def changed(name: bytes, value: bytes) -> Fields:
    return [(name, value) if name == each else (each, old) for each, old in HEAD]


def test_pseudo_fields_become_the_request_line_and_host() -> None:
    request, target = read([*HEAD, (b"accept", b"*/*")])
    assert (request.method, target, request.host) == (b"GET", b"/p?q", b"a.example")
    assert request.fields == [(b"accept", b"*/*")]
    assert request.length == 0


def test_cookie_crumbs_are_joined() -> None:
    request, _ = read([*HEAD, (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")])
    assert request.fields == [(b"x", b"y"), (b"cookie", b"a=1; b=2")]


def test_without_content_length_a_body_is_chunked() -> None:
    assert read(HEAD, ended=False)[0].length == CHUNKED
    assert read([*HEAD, (b"content-length", b"7")], ended=False)[0].length == 7


def test_a_host_alone_counts_as_authority() -> None:
    fields = [field for field in HEAD if field[0] != b":authority"]
    assert read([*fields, (b"host", b"b.example")])[0].host == b"b.example"
    assert read([*HEAD, (b"host", b"A.example")])[0].host == b"a.example"
    with pytest.raises(Fault, match="Host field is missing"):
        read(fields)


@pytest.mark.parametrize(
    "more",
    [
        [(b"host", b"b.example")],
        [(b"host", b"a.example"), (b"host", b"a.example")],
        [(b"host", b"a.example:443")],
    ],
)
def test_a_host_that_differs_is_a_stream_error(more: Fields) -> None:
    with pytest.raises(MalformedStream):
        read([*HEAD, *more])


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed(b":path", b"relative"), 400),
        (changed(b":path", b"/a b"), 400),
        (changed(b":path", b"/a HTTP/1.1"), 400),
        (changed(b":path", b"/../etc"), 400),
        (changed(b":path", b"http://b.example/"), 400),
        (changed(b":path", b"/#f"), 400),
        (changed(b":path", b"/" + b"x" * 20000), 414),
        (changed(b":method", b"GET / HTTP/1.1"), 400),
        (changed(b":method", b"TRACE"), 405),
        (changed(b":method", b"UNKNOWN"), 501),
        (changed(b":method", b"get"), 501),
        (changed(b":authority", b"a b"), 400),
        (changed(b":authority", b"user@a.example"), 400),
        (changed(b":authority", b"a.example/x"), 400),
        ([*HEAD, (b"x", b"\x01")], 400),
        ([*HEAD, (b"x(y)", b"1")], 400),
        ([*HEAD, (b"content-length", b"1"), (b"content-length", b"1")], 400),
        ([*HEAD, (b"content-length", b"+1")], 400),
        ([*HEAD, (b"content-length", b"1, 1")], 400),
        ([*HEAD, (b"content_length", b"1")], 400),
        ([*HEAD, (b"transfer_encoding", b"chunked")], 400),
        ([*HEAD, (b"expect", b"something")], 417),
        ([*HEAD, *[(b"x", b"y")] * 256], 431),
        ([*HEAD, (b"x", b"y" * 65536)], 431),
    ],
)
def test_the_rules_of_http1_hold(fields: Fields, status: int) -> None:
    with pytest.raises(Fault) as caught:
        read(fields)
    assert caught.value.status == status


def test_an_unknown_scheme_is_a_stream_error() -> None:
    with pytest.raises(MalformedStream):
        read(changed(b":scheme", b"http://evil/"))


def test_an_extended_connect_is_an_upgrade() -> None:
    fields = [*changed(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b"sec-websocket-key", b"theirs")]
    reader = Http2RequestReader(ClientOrigin(), False)
    reader.take(fields, False, LIMITS)
    request = reader.request
    assert request is not None
    assert (request.method, request.upgrade, request.length, reader.own_target) == (b"GET", b"websocket", 0, b"/p?q")
    assert request.fields == [(b"Sec-WebSocket-Key", reader.websocket_key)]
    with pytest.raises(Fault) as caught:
        read([*changed(b":method", b"CONNECT"), (b":protocol", b"connect-udp")], ended=False)
    assert caught.value.status == 501


def test_the_accept_is_that_of_the_rfc() -> None:
    assert accept_of(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_connect_has_its_authority_as_target() -> None:
    fields: Fields = [(b":method", b"CONNECT"), (b":authority", b"db:5432"), (b"proxy-authorization", b"Basic YzE6")]
    request, target = read(fields, ended=False, connect=True)
    assert (request.is_connect, request.length, target) == (True, 0, b"db:5432")
    with pytest.raises(Fault) as caught:
        read(fields, ended=False)
    assert caught.value.status == 405


def test_a_head_that_repeats_is_the_same_object() -> None:
    reader = Http2RequestReader(ClientOrigin(), False)
    found: list[Any] = []
    for path in (b"/a", b"/b"):
        reader.take([*changed(b":path", path), (b"accept", b"*/*")], True, LIMITS)
        found.append((reader.request, reader.own_target))
    assert found[0][0] is found[1][0]
    assert [target for _, target in found] == [b"/a", b"/b"]


TOKENS = [
    b"a",
    b"/",
    b"\r",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"\t",
    b"%2e",
    b".",
    b"\x7f",
    b"\xff",
    b"HTTP/1.1",
    b"chunked",
    b"0",
]
NAMES = b":method :path :scheme :authority :protocol :status host content-length cookie connection".split()
NAMES += [b"transfer-encoding", b"te", b"x", b"Upper", b"expect", b"upgrade", b"x\r\ny", b"x:y", b" x", b""]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_passes_is_one_request_in_http1(seed: int) -> None:
    """The head for the target is built from parts without a line end, and its framing is the only one."""
    chance = random.Random(seed)
    passed = 0
    for _ in range(1500):
        fields = [field for field in HEAD if chance.random() > 0.03]
        for _ in range(chance.randrange(3)):
            value = b"".join(chance.choice(TOKENS) for _ in range(chance.randrange(4)))
            fields.insert(chance.randrange(len(fields) + 1), (chance.choice(NAMES), value))
        if fault_of(fields, "extended request"):
            continue
        try:
            request, target = read(fields, ended=chance.random() < 0.5, connect=chance.random() < 0.5)
        except (Fault, MalformedStream):
            continue
        passed += 1
        parts = [request.method, target, request.host, *(part for field in request.fields for part in field)]
        assert not any(byte in part for part in parts for byte in b"\r\n\0")
        assert b" " not in request.method + target + request.host
        names = {name.lower() for name, _ in request.fields}
        assert not names & {b"transfer-encoding", b"content-length", b"connection", b"host", b"te", b"upgrade", b""}
    assert passed > 50
