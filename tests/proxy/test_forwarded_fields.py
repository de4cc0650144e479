"""Forwarding fields: what the edge drops and writes, and whom it believes. Seeds are in the test ids."""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable

import pytest

from agent.proxy import ClientOrigin, HubOrigin, Origin, ProxyLimits
from agent.proxy import forwarded_fields as module
from agent.proxy.forwarded_fields import is_forwarding_field, receive
from agent.proxy.heads import Request, parse_request

NAMES = [
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarded-User",
    "X-Forwarded-Groups",
    "X-Forwarded-Email",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Uri",
    "X-Forwarded",
    "X-Real-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "CF-Connecting-IPv6",
    "CF-Pseudo-IPv4",
    "CF-Visitor",
    "CloudFront-Forwarded-Proto",
    "CloudFront-Viewer-Address",
    "Cluster-Client-IP",
    "Fastly-Client-IP",
    "Fly-Client-IP",
    "X-AppEngine-Remote-Addr",
    "X-AppEngine-User-IP",
    "X-ARR-SSL",
    "X-Azure-ClientIP",
    "X-Azure-SocketIP",
    "X-Envoy-Original-Path",
    "X-Originating-IP",
    "X-Sucuri-ClientIP",
    "X-Original-URL",
    "X-Original-URI",
    "X-Original-Host",
    "X-Original-Forwarded-For",
    "X-Rewrite-URL",
    "X-Client-Cert",
    "X-Client-Cert-DN",
    "X-SSL-Client-Verify",
    "X-SSL-Client-S-DN",
    "SSL-Client-Cert",
    "X-Scheme",
    "X-URL-Scheme",
    "Front-End-Https",
    "X-Request-Id",
]
SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda name: name,
    "lower": str.lower,
    "upper": str.upper,
    "underscores": lambda name: name.replace("-", "_"),
    "dots": lambda name: name.replace("-", "."),
    "mixed": lambda name: "".join(c.upper() if at % 3 else c.lower() for at, c in enumerate(name)).replace("-", "_", 1),
}
EDGE = ClientOrigin("192.0.2.7", "https", 8443)


def trusts(address: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network("10.0.0.0/8")


BALANCER = ClientOrigin("10.0.0.1", "http", 8080, is_trusted=True, trusts=trusts)
OUR_HUB = HubOrigin(is_trusted=True)
BASE_HUB = HubOrigin(is_base=True, prefix="/c1")


def received(origin: Origin, *fields: tuple[str, str], host: str = "app.test") -> Request:
    lines = "".join(f"{name}: {value}\r\n" for name, value in (("Host", host), *fields) if value is not None)
    request, _ = parse_request(f"GET / HTTP/1.1\r\n{lines}\r\n".encode("latin-1"), ProxyLimits())
    receive(request, origin)
    return request


def written(request: Request) -> dict[str, str]:
    lines = request.forwarding.decode().split("\r\n")
    assert lines.pop() == ""
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("origin", [EDGE, HubOrigin(), BASE_HUB], ids=["user", "hub", "base hub"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_forwarding_field_passes(spelling: str, origin: Origin) -> None:
    spelled = [(SPELLINGS[spelling](name), "6.6.6.6") for name in NAMES]
    request = received(origin, ("Accept", "*/*"), *spelled, ("X-Forward", "kept"), ("X-Request-Start", "kept"))
    kept = [(b"Accept", b"*/*"), (b"X-Forward", b"kept"), (b"X-Request-Start", b"kept")]
    assert request.fields == kept
    assert request.received == [(b"Host", b"app.test"), *kept]
    assert b"6.6.6.6" not in request.forwarding + request.prefix + request.request_id
    assert request.peer == (EDGE.peer if origin is EDGE else "")


@pytest.mark.parametrize("spelling", ["underscores", "dots", "mixed"])
@pytest.mark.parametrize("origin", [BALANCER, OUR_HUB], ids=["balancer", "hub"])
def test_only_the_exact_spelling_of_a_trusted_party_is_believed(origin: Origin, spelling: str) -> None:
    request = received(origin, *[(SPELLINGS[spelling](name), "6.6.6.6") for name in NAMES if "-" in name])
    assert request.fields == []
    assert b"6.6.6.6" not in request.forwarding


def test_the_edge_writes_who_asks() -> None:
    request = received(EDGE, host="c1.example.com:9000")
    assert written(request) == {
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "c1.example.com:9000",
        "X-Forwarded-Port": "9000",
    }
    assert (request.peer, request.scheme, request.public_host) == ("192.0.2.7", "https", "c1.example.com:9000")


@pytest.mark.parametrize(
    ("host", "port"), [("a", "443"), ("a:1234", "1234"), ("[::1]", "443"), ("[2001:db8::1]:81", "81"), ("a:", "443")]
)
def test_the_forwarded_port_is_the_one_that_the_user_sees(host: str, port: str) -> None:
    assert written(received(EDGE, host=host))["X-Forwarded-Port"] == port


@pytest.mark.parametrize(
    ("said", "chain", "peer"),
    [
        ("203.0.113.9", "203.0.113.9, 10.0.0.1", "203.0.113.9"),
        ("203.0.113.9, 10.1.1.1", "203.0.113.9, 10.1.1.1, 10.0.0.1", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9", "203.0.113.9, 10.0.0.1", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9, 10.1.1.1", "203.0.113.9, 10.1.1.1, 10.0.0.1", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9, 10.0.0.1", "203.0.113.9"),
        ("[2001:db8::9]:4711", "2001:db8::9, 10.0.0.1", "2001:db8::9"),
        ("unknown", "10.0.0.1", "10.0.0.1"),
        ("6.6.6.6, unknown, 10.1.1.1", "10.1.1.1, 10.0.0.1", "10.1.1.1"),
        ("10.2.2.2", "10.2.2.2, 10.0.0.1", "10.2.2.2"),
        (",, ,", "10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::1, 10.0.0.1", "fe80::1"),
        ('fe80::1%é "x y"', "fe80::1, 10.0.0.1", "fe80::1"),
        ("[fe80::1%a;b]:80", "fe80::1, 10.0.0.1", "fe80::1"),
        ("::ffff:10.2.2.2", "10.2.2.2, 10.0.0.1", "10.2.2.2"),
        ("6.6.6.6, ::ffff:203.0.113.9", "203.0.113.9, 10.0.0.1", "203.0.113.9"),
        ("203.0.113.9" + ", 10.1.1.1" * 40, "10.1.1.1, " * 32 + "10.0.0.1", "10.1.1.1"),
        ("1" * 5000, "10.0.0.1", "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_names_the_user_and_nobody_before_it(said: str, chain: str, peer: str) -> None:
    request = received(BALANCER, ("X-Forwarded-For", said))
    assert (written(request)["X-Forwarded-For"], request.peer) == (chain, peer)


def test_no_long_value_is_kept() -> None:
    """Users write a part of what a trusted party sends."""
    kept = (module._kept_address, module._kept_prefix)
    for each in kept:
        each.cache_clear()
    for number in range(5):
        long = f"{number}" + "a" * 5000
        for origin in (BALANCER, OUR_HUB):
            received(origin, ("X-Forwarded-For", long), ("X-Forwarded-Prefix", "/" + long))
    assert [each.cache_info().currsize for each in kept] == [0, 0]


def test_a_trusted_proxy_is_believed() -> None:
    request = received(
        BALANCER,
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "www.example.com"),
        ("X-Forwarded-Prefix", "/portal/"),
        ("X-Request-Id", "from-the-balancer"),
        ("X-Forwarded-User", "ann"),
        ("Forwarded", "for=6.6.6.6"),
    )
    assert written(request) == {
        "X-Forwarded-For": "203.0.113.9, 10.0.0.1",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "www.example.com",
        "X-Forwarded-Port": "443",
    }
    assert (request.prefix, request.prefix_text) == (b"/portal", "/portal")
    assert request.request_id == b"from-the-balancer"
    assert request.fields == [(b"X-Forwarded-User", b"ann")]


def test_an_agent_keeps_what_our_hub_wrote() -> None:
    fields = [("X-Forwarded-For", "203.0.113.9, 10.0.0.1"), ("X-Forwarded-Proto", "https")]
    fields += [("X-Forwarded-Host", "c1.example.com"), ("X-Forwarded-Port", "443")]
    request = received(OUR_HUB, *fields, ("X-Forwarded-Prefix", "/c1"), ("X-Request-Id", "abc"))
    assert request.fields == [(name.encode(), value.encode()) for name, value in fields]
    assert (request.peer, request.scheme, request.public_host) == ("203.0.113.9", "https", "c1.example.com")
    assert (request.prefix, request.request_id, request.forwarding) == (b"/c1", b"abc", b"")


def test_a_user_without_a_host_has_none_at_the_agent() -> None:
    """A hub writes `Host: agent` for an HTTP/1.0 client without one. The target then gets its own name."""
    for said in ([], [("X-Forwarded-Host", "public.example")]):
        request = received(OUR_HUB, ("X-A", "1"), *said, host="agent")
        assert request.host == b""
        assert request.public_host == (said[0][1] if said else "")
        assert b"Host" not in dict(request.received)
    for origin, said in ((OUR_HUB, [("X-Forwarded-Host", "agent")]), (HubOrigin(), []), (BASE_HUB, [])):
        assert received(origin, *said, host="agent").host == b"agent", "the user's own"


def test_behind_a_base_hub_the_prefix_is_the_clusters_path() -> None:
    request = received(BASE_HUB, ("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-Prefix", "/evil"))
    assert (request.prefix, request.peer, request.scheme, request.fields) == (b"/c1", "", "http", [])


@pytest.mark.parametrize(
    "prefix",
    [
        *[
            "/a/../b",
            "//evil",
            "/a//b",
            "a",
            "/a?b",
            "/a#b",
            "/%2e%2e",
            "/a%2fb",
            "/a%5cb",
            "/a%00",
            "/a;b",
            "/é",
            "/////////",
            "/.",
            "/a/./b",
        ],
        "/" + "a" * 1025,
    ],
)
def test_a_prefix_that_could_mislead_is_none(prefix: str) -> None:
    assert received(OUR_HUB, ("X-Forwarded-Prefix", prefix)).prefix == b""


@pytest.mark.parametrize("value", ["a b", "a" * 129, "<script>", '"', "é"])
def test_an_id_that_could_mislead_is_none(value: str) -> None:
    assert received(BALANCER, ("X-Request-Id", value)).request_id == b""


@pytest.mark.parametrize("seed", range(3))
def test_random_fields_never_break_the_written_lines(seed: int) -> None:
    rng = random.Random(seed)
    parts = [
        "10.0.0.1",
        "6.6.6.6",
        ", ",
        ":",
        "[",
        "]",
        "::1",
        "/",
        "..",
        "%2e",
        "https",
        "x" * 70,
        "é",
        "\t",
        '"',
        ";",
    ]
    line = re.compile(rb"X-Forwarded-(For|Proto|Host|Port): [!-~]+(, [!-~]+)*")
    origins: list[Origin] = [EDGE, BALANCER, OUR_HUB, BASE_HUB]
    for _ in range(2000):
        fields = [
            (rng.choice(NAMES), "".join(rng.choices(parts, k=rng.randrange(1, 6))).strip() or "x")
            for _ in range(rng.randrange(1, 5))
        ]
        request = received(rng.choice(origins), *fields)
        for each in request.forwarding.split(b"\r\n")[:-1]:
            assert line.fullmatch(each), (fields, each)
        assert re.fullmatch(r"(/[^/?#\s]+)*", request.prefix_text)
        assert request.peer == "" or ipaddress.ip_address(request.peer)


def test_ordinary_fields_are_no_forwarding_fields() -> None:
    for name in ("Accept", "Cookie", "X-Requested-With", "X-Csrf-Token", "X-Forward", "Host", "Origin", "X-Request"):
        assert not is_forwarding_field(name.encode())
