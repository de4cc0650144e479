"""Attacks on identity below the header line: names, requests behind each other, upgrades, HTTP/1.0, odd reviews.

As in test_attacks.py, each goes through the real proxy to a TLS server. The tests compare all that the server received.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from aiohttp import web

from agent.messages import RequestHead, Target
from agent.policy.kubernetes import KubernetesProcessor

from ..limits import scaled
from .api_server import ApiServer, Received
from .gate import Gate, bearer
from .test_attacks import BOBS, CLAIMS, OWN

ALICE, BOB = bearer("alice"), bearer("bob")
GET = b"GET /c1/%b HTTP/1.1\r\nHost: hub\r\n%b\r\n\r\n"


def is_bob(received: Received) -> None:
    assert received.values(b"authorization") == [OWN]
    assert received.like(*CLAIMS) == BOBS


def is_alice(received: Received, claims: Iterable[tuple[bytes, bytes]] = ()) -> None:
    assert received.values(b"authorization") == [b"Bearer alice"]
    assert received.like(*CLAIMS) == list(claims)


async def talk(port: int, sent: bytes, answers: int = 99) -> list[int]:
    """Send raw bytes in one write. Returns the statuses, until there are so many or the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found: list[int] = []
    async with asyncio.timeout(scaled(30)):
        writer.write(sent)
        while len(found) < answers:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionResetError):
                break
            found.append(int(head.split(b" ", 2)[1]))
            if b"content-length: " in head.lower():
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
    writer.close()
    return found


# Bytes in names -------------------------------------------------------------------------------------------------------

BAD_NAMES = {
    "NUL inside": b"Impersonate\x00-User",
    "NUL behind": b"Impersonate-User\x00",
    "tab before the colon": b"Impersonate-User\t",
    "vertical tab before the colon": b"Impersonate-User\x0b",
    "DEL": b"Impersonate-User\x7f",
    "soft hyphen": b"Impersonate\xc2\xadUser",
    "full-width I": b"\xef\xbc\xa9mpersonate-User",
    "dotless i": b"\xc4\xb1mpersonate-User",
    "Kelvin-like trick": b"Impersonate\xe2\x80\x90User",
    "no-break space before": b"\xa0Impersonate-User",
    "a space before": b" Impersonate-User",
    "a tab before": b"\tImpersonate-User",
    "a bare CR before": b"\rImpersonate-User",
    "slash": b"Impersonate/User",
    "colon twice": b":Impersonate-User",
    "quotes": b'"Impersonate-User"',
    "empty": b"",
}


@pytest.mark.parametrize("name", list(BAD_NAMES))
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.loops("uvloop")
async def test_a_name_that_is_no_token_is_a_400(gated: Callable[..., Any], name: str, first: bool) -> None:
    lines = [BAD_NAMES[name] + b": root", BOB]
    async with gated() as gate:
        assert (await gate.ask(*(lines if first else lines[::-1]))).status == 400
        assert gate.managed.received == gate.managed.reviews == []


@pytest.mark.parametrize(
    "line",
    [
        b"Impersonate-User",
        b"Impersonate-User root",
        b"Impersonate-User=root",
        b"X-A: 1\r\n\tImpersonate-User: root",
        b"X-A: 1\r\n Impersonate-User: root",
        b"X-A: 1\n\tImpersonate-User: root",
    ],
    ids=ascii,
)
@pytest.mark.loops("uvloop")
async def test_a_line_that_is_no_field_is_a_400(gated: Callable[..., Any], line: bytes) -> None:
    async with gated() as gate:
        assert (await gate.ask(BOB, line)).status == 400
        assert gate.managed.received == gate.managed.reviews == []


# Requests behind each other -------------------------------------------------------------------------------------------


async def test_pipelined_requests_are_each_their_own_users(gated: Callable[..., Any]) -> None:
    """One segment, one kept-alive connection to the target: no head, token or claim is its neighbour's."""
    claims = b"Impersonate-User: carol"
    async with gated() as gate:
        lines = [BOB, ALICE, b"X-A: 1", BOB + b"\r\n" + claims, ALICE + b"\r\n" + claims, BOB, bearer("eve"), ALICE]
        sent = b"".join(GET % (b"%d" % number, line) for number, line in enumerate(lines))
        assert await talk(gate.port, sent, len(lines)) == [200, 200, 401, 200, 200, 200, 401, 200]
        assert [received.target for received in gate.managed.received] == [f"/{n}" for n in (0, 1, 3, 4, 5, 7)]
        for number, received in zip((0, 1, 3, 4, 5, 7), gate.managed.received, strict=True):
            if lines[number].startswith(BOB):
                is_bob(received)
            else:
                is_alice(received, [(b"Impersonate-User", b"carol")] if claims in lines[number] else [])
        assert sorted(gate.managed.reviews) == ["alice", "bob", "eve"]


@pytest.mark.parametrize("status", [401, 403])
async def test_the_body_of_a_refused_request_is_never_the_next_one(gated: Callable[..., Any], status: int) -> None:
    inner = GET % (b"smuggled", ALICE)
    line = bearer("eve") if status == 401 else bearer("unfit")
    async with gated() as gate:
        gate.hub.users["unfit"] = {"username": "not fit"}
        sent = b"POST /c1/outer HTTP/1.1\r\nHost: hub\r\n%b\r\nContent-Length: %d\r\n\r\n" % (line, len(inner))
        assert await talk(gate.port, sent + inner + GET % (b"next", BOB), 2) == [status, 200]
        (received,) = gate.managed.received
        assert received.target == "/next"
        is_bob(received)


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding:\x0bchunked",
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: +5",
        b"Content-Length: 5, 5",
        b"Transfer_Encoding: chunked\r\nContent-Length: 1a",
    ],
    ids=ascii,
)
@pytest.mark.loops("uvloop")
async def test_no_framing_trick_hides_a_second_request(gated: Callable[..., Any], framing: bytes) -> None:
    async with gated() as gate:
        head = b"POST /c1/outer HTTP/1.1\r\nHost: hub\r\n%b\r\n%b\r\n\r\n" % (BOB, framing)
        found = await talk(gate.port, head + b"0\r\n\r\n" + GET % (b"smuggled", ALICE))
        assert found in ([400], [501])  # and then it is closed
        assert gate.managed.received == gate.managed.reviews == []


async def test_a_swapped_head_is_remembered_for_nobody_else(gated: Callable[..., Any]) -> None:
    """The kept head of a kept-alive client's last request counts only for exactly the same fields."""
    async with gated() as gate:
        for number in range(10):
            gate.hub.users[f"h{number}"] = {"username": f"hub-{number}", "groups": [f"g{number}"]}
        order = [0, 0, 1, 0, 1, 1, 9, 0, 5, 5]
        sent = b"".join(GET % (b"%d" % n, bearer(f"h{n}")) for n in order)
        assert await talk(gate.port, sent, len(order)) == [200] * len(order)
        for number, received in zip(order, gate.managed.received, strict=True):
            assert received.like(*CLAIMS) == [
                (b"Impersonate-User", b"hub-%d" % number),
                (b"Impersonate-Group", b"g%d" % number),
            ]


@pytest.mark.loops("uvloop")
async def test_rules_see_the_path_without_its_plain_dot_segments(gated: Callable[..., Any]) -> None:
    service = "/c1/api/v1/namespaces/default/services/"
    async with gated() as gate:
        for path in (
            f"{service}./https:kubernetes/proxy-service/x",
            f"{service}https:kubernetes/./proxy-service/./x",
            "/./c1/./api/v1/./namespaces/default/services/https:kubernetes:443/proxy-service/.",
        ):
            assert (await gate.ask(BOB, path=path)).status == 403, path
        assert gate.managed.received == gate.managed.reviews == []
        assert (await gate.ask(BOB, path="/./c1/./api/v1/pods/.?watch=/./1")).status == 200
        (received,) = gate.managed.received
        assert received.target == "/api/v1/pods/?watch=/./1"
        is_bob(received)
        assert (await gate.ask(BOB, path="/./c2/./api")).status == 421


# HTTP/1.0, upgrades ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [b"", b"Host: kubernetes.default.svc\r\n", b"Host: evil.example\r\n"])
async def test_an_old_client_gains_nothing(gated: Callable[..., Any], host: bytes) -> None:
    async with gated() as gate:
        sent = b"GET /c1/old HTTP/1.0\r\n%b%b\r\nImpersonate-User: root\r\nX-Remote-User: root\r\n\r\n" % (host, BOB)
        assert await talk(gate.port, sent) == [200]
        (received,) = gate.managed.received
        is_bob(received)
        assert received.values(b"host") == [f"localhost:{gate.managed.port}".encode()]


UPGRADES = [b"websocket", b"SPDY/3.1", b"h2c", b"TLS/1.0"]


@pytest.mark.parametrize("protocol", UPGRADES, ids=bytes.decode)
@pytest.mark.parametrize("user", ["alice", "bob", "eve"])
@pytest.mark.loops("uvloop")
async def test_an_upgrade_goes_out_as_its_user(gated: Callable[..., Any], user: str, protocol: bytes) -> None:
    lines = [
        bearer(user),
        b"Connection: Upgrade, X-Remote-User",
        b"Upgrade: " + protocol,
        b"Impersonate-User: root",
        b"impersonate_group: system:masters",
        b"X-Remote-User: root",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + base64.b64encode(b"k" * 16),
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    ]
    async with gated() as gate:
        answer = await gate.ask(*lines, path="/c1/api/v1/namespaces/n/pods/p/exec?command=id")
        if user == "eve":
            assert (answer.status, gate.managed.received) == (401, [])
            return
        assert answer.status == 200  # the stand-in switches to nothing
        (received,) = gate.managed.received
        if user == "bob":
            is_bob(received)
        else:
            is_alice(received, [(b"Impersonate-User", b"root")])
        assert received.values(b"upgrade") == ([protocol] if protocol in (b"websocket", b"SPDY/3.1") else [])


NO_BREAK, NEXT_LINE = b"\xc2\xa0", b"\xc2\x85"
PROTOCOL = b"base64url.bearer.authorization.k8s.io." + base64.urlsafe_b64encode(b"alice").rstrip(b"=")


@pytest.mark.parametrize("before", [b"", b"\t", NO_BREAK, NEXT_LINE, b'"', b"v4, ", b"x"], ids=ascii)
@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.loops("uvloop")
async def test_no_white_space_of_gos_brings_another_token_along(
    gated: Callable[..., Any], before: bytes, lines: int
) -> None:
    """Go's TrimSpace takes U+0085 and U+00A0 for white space, bytes.strip does not."""
    offered = [b"Sec-WebSocket-Protocol: " + before + PROTOCOL] * lines
    async with gated() as gate:
        assert (await gate.ask(BOB, b"Sec-WebSocket-Protocol: v5.channel.k8s.io", *offered)).status == 200
        (received,) = gate.managed.received
        is_bob(received)
        sent = b",".join(received.values(b"sec-websocket-protocol"))
        assert b"bearer" not in sent
        assert b"v5.channel.k8s.io" in sent


OTHER_NAMES = [
    "https://kubernetes.default.svc.cluster.local/api",
    "https://kubernetes.default/api",
    "https://kubernetes/api",
    "https://10.96.0.1/api",
    "https://kubernetes.default.svc:6443/api",
    "https://[fd00::1]/api",
    "https://kubernetes.default.svc.cluster.local./api",
]


@pytest.mark.parametrize("url", OTHER_NAMES)
def test_by_another_name_the_api_server_gets_the_clients_own_credentials_and_no_claims(url: str) -> None:
    """Routes of the user's own may lead there: not reviewed by us, but never under the agent's rights either."""
    processor = KubernetesProcessor(None, None, api_server=("kubernetes.default.svc", 443))  # type: ignore[arg-type]
    fields = [(b"Authorization", b"Bearer bob"), (b"Impersonate-User", b"root"), (b"X-Remote-User", b"root")]
    found = processor.process(RequestHead("GET", b"/c1/api", "1.1", fields), Target(url))
    assert isinstance(found, RequestHead)
    assert (found.headers, found.client_identity) == (fields[:1], "")


# Odd reviews ----------------------------------------------------------------------------------------------------------


def answering(**status: Any) -> Callable[[web.Request, dict[str, Any]], Any]:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(body | {"status": status}, status=201)

    return answer


@pytest.mark.parametrize(
    ("groups", "status"),
    [
        ([f"group-{number:04}" for number in range(100)], 200),
        ([f"group-{number:06}" for number in range(50_000)], 403),
        (["g" * 100_000], 403),
        (["team"] * 50_000, 200),
        ([], 200),
    ],
    ids=["100", "50,000", "one of 100 KB", "50,000 times one", "none"],
)
@pytest.mark.loops("uvloop")
async def test_groups_past_what_a_head_holds_are_a_403(
    gated: Callable[..., Any], groups: list[str], status: int
) -> None:
    async with gated() as gate:
        gate.hub.users["x"] = {"username": "x", "groups": groups}
        assert (await gate.ask(bearer("x"))).status == status
        assert (await gate.ask(bearer("x"))).status == status
        assert gate.hub.reviews == ["x"]
        assert [received.values(b"impersonate-group") for received in gate.managed.received] == [
            [group.encode() for group in dict.fromkeys(groups)]
        ] * (2 if status == 200 else 0)


MORE_THAN_ASKED: dict[str, dict[str, Any]] = {
    "extra": {"extra": {"authentication.kubernetes.io/pod-name": ["x"], "scopes": ["everything"]}},
    "uid": {"uid": "0"},
    "names in other cases": {"Username": "root", "userName": "root", "Groups": ["system:masters"]},
    "header-like": {"Impersonate-User": "root", "impersonate-group": ["system:masters"]},
}


@pytest.mark.parametrize("more", list(MORE_THAN_ASKED))
async def test_a_review_gives_a_name_and_groups_and_nothing_else(gated: Callable[..., Any], more: str) -> None:
    async with gated() as gate:
        gate.hub.users["x"] = {"username": "x", "groups": ["g"], **MORE_THAN_ASKED[more]}
        assert (await gate.ask(bearer("x"))).status == 200
        (received,) = gate.managed.received
        assert received.like(*CLAIMS) == [(b"Impersonate-User", b"x"), (b"Impersonate-Group", b"g")]


EXPIRED = "[invalid bearer token, token has expired]"


@pytest.mark.parametrize(
    ("managed", "hub", "status", "user"),
    [
        ({"user": {}, "error": EXPIRED}, {"user": {}, "error": EXPIRED}, 401, ""),
        ({"authenticated": False, "error": EXPIRED}, {"authenticated": False}, 401, ""),
        ({"authenticated": True, "user": {"username": "root"}, "error": EXPIRED}, {}, 401, ""),
        ({"error": EXPIRED}, {"authenticated": True, "user": {"username": "root"}, "error": EXPIRED}, 401, ""),
        ({"error": EXPIRED}, {"authenticated": True, "user": {"username": "bob"}}, 200, "bob"),
        ({"authenticated": False, "user": {"username": "root", "groups": ["system:masters"]}}, {}, 401, ""),
        ({}, {}, 401, ""),
    ],
    ids=str,
)
async def test_an_expired_token_is_nobodys(
    gated: Callable[..., Any], managed: dict[str, Any], hub: dict[str, Any], status: int, user: str
) -> None:
    async with gated() as gate:
        gate.managed.on_review, gate.hub.on_review = answering(**managed), answering(**hub)
        assert (await gate.ask(bearer("x"))).status == status
        assert [received.values(b"impersonate-user") for received in gate.managed.received] == (
            [[user.encode()]] if user else []
        )


async def test_one_token_is_another_user_behind_another_agent(clusters: Callable[..., Any]) -> None:
    """Two clusters, two agents in one process: what one has learnt of a token counts for its own cluster alone."""
    async with (
        clusters() as (one, two),
        Gate(one, two) as first,
        Gate(two, one, kubeconfig=two.kubeconfig()) as second,
    ):
        one.users["shared"], two.users["shared"] = {"username": "ones"}, {"username": "twos", "groups": ["g"]}
        assert (
            await first.ask(bearer("alice"))
        ).status == 200  # a user of `one`. To the second agent it is a hub's user
        assert (await second.ask(bearer("alice"))).status == 200
        assert (await first.ask(bearer("bob"))).status == 200
        assert (await second.ask(bearer("bob"))).status == 200
        assert await identities(one) == [(b"Bearer alice", []), (b"Bearer managed-own-token", [b"bob"])]
        assert await identities(two) == [(b"Bearer hub-own-token", [b"alice"]), (b"Bearer bob", [])]


async def identities(server: ApiServer) -> list[tuple[bytes, list[bytes]]]:
    return [(each.values(b"authorization")[0], each.values(b"impersonate-user")) for each in server.received]


# Made-up heads --------------------------------------------------------------------------------------------------------

NAMES = [
    b"Impersonate-User",
    b"Impersonate-Group",
    b"Impersonate-Uid",
    b"Impersonate-Extra-x",
    b"X-Remote-User",
    b"X-Remote-Group",
    b"X-Remote-Extra-x",
    b"Authorization",
    b"Connection",
    b"Transfer-Encoding",
    b"Content-Length",
    b"Host",
    b"Expect",
    b"Upgrade",
    b"Trailer",
    b"TE",
    b"Sec-WebSocket-Protocol",
    b"Proxy-Authorization",
]
VALUES = [
    b"root",
    b"system:masters",
    b"Bearer alice",
    b"bearer bob",
    b"Bearer managed-own-token",
    b"chunked",
    b"5",
    b"0",
    b"",
    b"close, Impersonate-User",
    b"Authorization",
    b"upgrade",
    b"websocket",
    b"100-continue",
    b"a\tb",
    b"\xff",
    PROTOCOL,
]
PIECES = [b"\r\n", b"\n", b"\r", b"\r\n ", b"\0", b"_", b"-", b":", b" ", b"\t", b"\xc2\xa0", b","]
BEHIND = [
    b"",
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\nImpersonate-User: root\r\n\r\n",
    GET % (b"behind", ALICE + b"\r\nX: 1"),
]
# The agent's rule for claims of an identity, written a second time. Any mark counts as "-", in any case.
CLAIM = re.compile(rb"impersonate[^a-z0-9].*|x[^a-z0-9]remote[^a-z0-9](user|group|uid|extra[^a-z0-9].*)", re.IGNORECASE)


def mutated(rng: random.Random, text: bytes) -> bytes:
    """No, one or two changes: a byte set, inserted or in the other case, or a piece that confuses parsers."""
    found = bytearray(text)
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
        at = rng.randrange(len(found) + 1)
        end = at + (at < len(found))
        change = rng.choice((bytes([rng.randrange(256)]), bytes(found[at:end]).swapcase(), rng.choice(PIECES)))
        found[at : rng.choice((at, end))] = change
    return bytes(found)


def made_up(rng: random.Random, number: int) -> bytes:
    lines = [
        mutated(rng, rng.choice(NAMES)) + rng.choice((b": ", b":", b" :", b":\t")) + mutated(rng, rng.choice(VALUES))
        for _ in range(rng.randrange(4))
    ]
    user = rng.choice((BOB, BOB, ALICE, b""))
    if user:
        lines.insert(rng.randrange(len(lines) + 1), user)
    start = b"%b /c1/%d HTTP/1.%d" % (rng.choice((b"GET", b"POST", b"DELETE")), number, rng.choice((1, 1, 1, 0)))
    return b"\r\n".join([start, b"Host: h", *lines, b"", b""]) + rng.choice(BEHIND)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.loops("uvloop")
async def test_no_made_up_head_gains_an_identity(gated: Callable[..., Any], seed: int) -> None:
    rng = random.Random(seed)
    arrived = 0
    async with gated() as gate:
        for number in range(600):
            sent = made_up(rng, number)
            gate.managed.received.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            writer.write(sent)
            writer.write_eof()
            async with asyncio.timeout(scaled(20)):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.transport.abort()
            arrived += len(gate.managed.received)
            for received in gate.managed.received:
                claims = [field for field in received.headers if CLAIM.fullmatch(field[0])]
                authorization = received.values(b"authorization")
                if authorization == [OWN]:
                    assert claims == BOBS, sent
                    assert PROTOCOL not in received.values(b"sec-websocket-protocol"), sent
                    assert b"bob" in sent
                else:
                    assert [value.lower() for value in authorization] == [b"bearer alice"], sent
                    assert all(name.lower().startswith(b"impersonate-") for name, _ in claims), sent
                    assert b"alice" in sent
    assert arrived > 100
