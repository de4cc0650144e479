"""Identity attacks, each through the real proxy to a real TLS server, and asserted on what that server received.

No client may gain a group, a name or the agent's own rights, whatever it sends. The tests compare the whole identity of
each request that arrives, not only the attacked part.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import Refused
from agent.messages import RequestHead, Target
from agent.policy.identity import is_identity_header
from agent.policy.kubernetes import KubernetesProcessor
from agent.policy.reviews import Known, Verdict

from .api_server import ApiServer
from .gate import bearer

OWN = b"Bearer managed-own-token"
BOBS = [
    (b"Impersonate-User", b"bob"),
    (b"Impersonate-Group", b"team"),
    (b"Impersonate-Group", b"cluster:hub:system:masters"),
    (b"Impersonate-Group", b"system:authenticated"),
]
CLAIMS = (b"impersonate-", b"x-remote-")


@dataclasses.dataclass(frozen=True)
class Attack:
    """lines: the request's header lines. status: what the client gets. user: whose identity arrives at the API server:
    "bob" (a hub's user), "alice" (this cluster's), "" where nothing arrives. keeps: alice's own claims that pass."""

    name: str
    lines: tuple[bytes, ...]
    status: int = 200
    user: str = "bob"
    path: str = "/c1/api/v1/pods"
    keeps: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    method: str = "GET"


BOB, ALICE = bearer("bob"), bearer("alice")
SPELLINGS = [
    b"Impersonate-User",
    b"impersonate-user",
    b"IMPERSONATE-USER",
    b"iMpErSoNaTe-UsEr",
    b"Impersonate_User",
    b"impersonate.user",
    b"Impersonate~User",
    b"Impersonate-Group",
    b"impersonate_group",
    b"Impersonate-Uid",
    b"Impersonate-Extra-scopes",
    b"Impersonate-Extra-acme.com%2Fproject",
    b"Impersonate-Whatever-Comes-Next",
    b"X-Remote-User",
    b"x-remote-user",
    b"X_Remote_User",
    b"X-Remote-Group",
    b"x_remote-GROUP",
    b"X-Remote-Uid",
    b"X-Remote-Extra-scopes",
    b"X-Remote-Extra-Acme.com%2fproject",
]
# A hub's user claims to be somebody else. A user of this cluster does the same, and may ask the API server.
SPELLED = [
    *(Attack(f"hub user with {name.decode()}", (BOB, name + b": system:masters")) for name in SPELLINGS),
    *(
        Attack(f"hub user with {name.decode()} first", (name + b": admin", BOB, name + b": x"))
        for name in SPELLINGS[::4]
    ),
    *(
        Attack(f"managed user with {name.decode()}", (ALICE, name + b": system:masters"), user="alice")
        for name in (b"X-Remote-User", b"x_remote_group", b"X-Remote-Extra-a", b"Impersonate_User", b"Impersonate.Uid")
    ),
    Attack(
        "managed user's own claims pass, for the API server to judge",
        (b"impersonate-user: carol", ALICE, b"Impersonate-Group: a", b"Impersonate-Group: b", b"X-Remote-User: root"),
        user="alice",
        keeps=((b"impersonate-user", b"carol"), (b"Impersonate-Group", b"a"), (b"Impersonate-Group", b"b")),
    ),
]
# Connection must not name headers of identity, framing or Authorization.
LISTED = [
    Attack(f"Connection names {name}", (BOB, f"Connection: {name}".encode()), 400, "")
    for name in (
        "Authorization",
        "authorization",
        "Impersonate-User",
        "impersonate-group",
        "close, Impersonate-Group",
        "Impersonate-Extra-x",
        "impersonate_user",
        "Host",
        "Content-Length",
        "keep-alive,\tAUTHORIZATION",
    )
] + [
    Attack("two Connection lines", (BOB, b"Connection: close", b"Connection: Authorization"), 400, ""),
    Attack("Connection names X-Remote-User", (BOB, b"Connection: X-Remote-User, close", b"X-Remote-User: root")),
]
TRAILERS = [
    Attack(
        f"{user} with {name} as a trailer",
        (line, b"Transfer-Encoding: chunked", b"Trailer: " + name.encode()),
        user=user,
        method="POST",
        body=b"2\r\nhi\r\n0\r\n" + name.encode() + b": admin\r\n\r\n",
    )
    for user, line in (("bob", BOB), ("alice", ALICE))
    for name in ("Impersonate-User", "Impersonate-Group", "X-Remote-User", "Authorization")
]
CREDENTIALS = [
    Attack("none", (), 401, ""),
    Attack("empty", (b"Authorization:",), 401, ""),
    Attack("empty token", (b"Authorization: Bearer",), 401, ""),
    Attack("blank token", (b"Authorization: Bearer  ",), 401, ""),
    Attack("two spaces before the token", (b"Authorization: Bearer  bob",), 401, ""),
    Attack("a tab before the token", (b"Authorization: Bearer\tbob",), 401, ""),
    Attack("two tokens in one header", (b"Authorization: Bearer bob alice",), 401, ""),
    Attack("a list of tokens", (b"Authorization: Bearer bob, Bearer alice",), 401, ""),
    Attack("two headers, hub's first", (BOB, ALICE), 401, ""),
    Attack("two headers, managed first", (ALICE, BOB), 401, ""),
    Attack("the same header twice", (BOB, BOB), 401, ""),
    Attack("two headers, one spelled otherwise", (BOB, b"AUTHORIZATION: Bearer alice"), 401, ""),
    Attack("another scheme", (b"Authorization: Basic Ym9iOmJvYg==",), 401, ""),
    Attack("no scheme", (b"Authorization: bob",), 401, ""),
    Attack("the scheme glued to the token", (b"Authorization: Bearerbob",), 401, ""),
    Attack("the scheme in lower case is still a bearer", (b"Authorization: bearer bob",)),
    Attack("the scheme in upper case", (b"authorization: BEARER bob",)),
    Attack("an unknown token", (bearer("mallory"),), 401, ""),
    Attack("a token with bytes outside ASCII", (b"Authorization: Bearer b\xf6b",), 401, ""),
    Attack("a token with a NUL", (b"Authorization: Bearer bob\x00",), 400, ""),
    Attack("a token in quotes", (b'Authorization: Bearer "bob"',), 401, ""),
    Attack("an enormous token", (b"Authorization: Bearer " + b"A" * 40_000,), 401, ""),
    Attack("a token past the head's limit", (b"Authorization: Bearer " + b"A" * 100_000,), 431, ""),
    Attack("Proxy-Authorization only", (b"Proxy-Authorization: Bearer bob",), 401, ""),
    Attack("a token in the query only", (), 401, "", path="/c1/api?access_token=bob"),
    Attack("a look-alike header only", (b"Authorization_: Bearer bob",), 401, ""),
    Attack("a name with a space before the colon", (b"Authorization : Bearer bob",), 400, ""),
    Attack("a folded header", (b"X-A: b", b" Impersonate-User: admin", BOB), 400, ""),
    Attack("a bare CR hides a header", (BOB, b"X-A: b\rImpersonate-User: admin"), 400, ""),
    Attack("a bare LF hides a header", (BOB, b"X-A: b\nImpersonate-User: admin"), 400, ""),
    Attack("the agent's own token", (bearer("managed-own-token"),), 401, ""),
    Attack("Cookie and forwarded names change nothing", (BOB, b"Cookie: user=root", b"Forwarded: for=root")),
]
SUBPROTOCOL = b"base64url.bearer.authorization.k8s.io." + base64.urlsafe_b64encode(b"alice").rstrip(b"=")
OFFERED = b"Sec-WebSocket-Protocol: v4.channel.k8s.io, " + SUBPROTOCOL
WEBSOCKETS = [
    Attack("a token as a WebSocket subprotocol only", (OFFERED,), 401, ""),
    Attack("another token beside, as a subprotocol", (BOB, OFFERED)),
    Attack("the same, spelled otherwise", (BOB, b"sec-websocket-protocol: " + SUBPROTOCOL.upper())),
]
SERVICES = "/c1/api/v1/namespaces/{}/services/{}/proxy-service/api/v1/secrets"
PATHS = [
    Attack(f"{namespace}/{service} as a service", (BOB,), status, "", path=SERVICES.format(namespace, service))
    for namespace, service, status in (
        ("default", "https:kubernetes:443", 403),
        ("default", "https:kubernetes", 403),
        ("default", "https:kubernetes:", 403),
        ("default", "https:kubernetes:6443", 403),
        ("default", "http:kubernetes:80", 403),
        ("default", "kubernetes:443", 403),
        ("default", "https:KUBERNETES:443", 400),
        ("Default", "https:kubernetes:443", 400),
        ("default", "https:kubernetes.default:443", 400),
        ("default", "https:kubernetes.:443", 400),
        ("default.svc", "https:kubernetes:443", 400),
        ("default", "https:kubernete%73:443", 400),
        ("default%2e", "https:kubernetes:443", 400),
        ("default", "https:kubernetes:https", 400),
        ("default", "https:kubernetes:0443", 403),
        ("default", "https:localhost:443", 403),
        ("kube-system", "https:other:443", 403),
        ("default", "https:user@kubernetes:443", 400),
        ("default", "https:::443", 400),
    )
] + [
    Attack("another cluster's path", (BOB,), 421, "", path="/c2/api"),
    Attack("dots lead out of the cluster", (BOB,), 400, "", path="/c1/../c2/api"),
    Attack("encoded dots", (BOB,), 400, "", path="/c1/api/%2e%2e/%2e%2e/x"),
    Attack("no cluster at all", (BOB,), 400, "", path="/"),
    Attack("an absolute URL", (BOB,), 400, "", path="http://kubernetes.default.svc/api"),
    Attack("a path that begins like a host", (BOB,), path="/c1//evil.example/api"),
]
ATTACKS = SPELLED + LISTED + TRAILERS + CREDENTIALS + WEBSOCKETS + PATHS


class Servers(Protocol):
    """The API servers of the managed cluster and of the hub."""

    managed: ApiServer
    hub: ApiServer


def check_identity(gate: Servers, attack: Attack) -> None:
    """Compare what arrived, and as whom. The hub's API server gets only reviews."""
    assert gate.hub.received == []
    if not attack.user:
        assert gate.managed.received == []
        return
    (received,) = gate.managed.received
    if attack.user == "bob":
        assert received.values(b"authorization") == [OWN]
        assert received.like(*CLAIMS) == BOBS
        assert b"base64url.bearer" not in b"".join(value for _, value in received.headers).lower()
    else:
        assert received.values(b"authorization") == [b"Bearer alice"]
        assert received.like(*CLAIMS) == list(attack.keeps)
    assert received.values(b"host") == [f"localhost:{gate.managed.port}".encode()]
    assert not received.values(b"connection")
    assert received.body in (b"", b"hi")


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 100
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
@pytest.mark.loops("uvloop")
async def test_nobody_gains_an_identity(gated: Callable[..., Any], attack: Attack) -> None:
    async with gated() as gate:
        answer = await gate.ask(*attack.lines, path=attack.path, method=attack.method, body=attack.body)
        assert answer.status == attack.status
        check_identity(gate, attack)
        for secret in (b"own-token", b"mallory"):
            assert secret not in answer.head + answer.body
        if attack.user == "" and attack.status != 401:
            assert gate.managed.reviews == []  # refused before anybody was asked


# Names that a hub gives ----------------------------------------------------------------------------------------------

NAMES = [
    ("system:admin", [], b"cluster:hub:system:admin", []),
    (
        "system:serviceaccount:ns:x",
        ["system:serviceaccounts"],
        b"cluster:hub:system:serviceaccount:ns:x",
        [b"cluster:hub:system:serviceaccounts"],
    ),
    ("system:authenticated", ["system:authenticated"], b"cluster:hub:system:authenticated", [b"system:authenticated"]),
    ("bob", ["system:masters"], b"bob", [b"cluster:hub:system:masters"]),
    ("bob", ["system:masters", "system:masters"], b"bob", [b"cluster:hub:system:masters"]),
    ("bob", ["system:unauthenticated"], b"bob", [b"cluster:hub:system:unauthenticated"]),
    ("bob", ["system:"], b"bob", [b"cluster:hub:system:"]),
    ("bob", ["cluster:hub:system:masters"], b"bob", [b"cluster:hub:cluster:hub:system:masters"]),
    ("cluster:hub:system:admin", [], b"cluster:hub:cluster:hub:system:admin", []),
    ("bob", ["System:masters", "xsystem:masters"], b"bob", [b"System:masters", b"xsystem:masters"]),
    ("a,b", ["c,system:masters"], b"a,b", [b"c,system:masters"]),
]


@pytest.mark.parametrize(("username", "groups", "user", "local"), NAMES, ids=lambda value: str(value)[:60])
@pytest.mark.loops("uvloop")
async def test_no_name_of_the_hubs_is_one_of_this_clusters(
    gated: Callable[..., Any], username: str, groups: list[str], user: bytes, local: list[bytes]
) -> None:
    async with gated() as gate:
        gate.hub.users["x"] = {"username": username, "groups": groups}
        assert (await gate.ask(bearer("x"))).status == 200
        (received,) = gate.managed.received
        assert received.values(b"impersonate-user") == [user]
        assert received.values(b"impersonate-group") == local
        assert received.values(b"authorization") == [OWN]


@pytest.mark.parametrize(
    ("username", "groups"),
    [
        ("bo b", []),
        ("b\u00f6b", []),
        ("bob\r\nImpersonate-Group: system:masters", []),
        ("bob\x00", []),
        ("bob", ["a b"]),
        ("bob", [""]),
        ("bob", ["team", "x\nImpersonate-User: admin"]),
        ("bob", ["\u202esretsam:metsys"]),
        ("bob", ["ｓystem:masters"]),
        ("bob\x7f", []),
    ],
    ids=ascii,
)
@pytest.mark.loops("uvloop")
async def test_a_name_outside_visible_ascii_is_a_403(
    gated: Callable[..., Any], username: str, groups: list[str]
) -> None:
    async with gated() as gate:
        gate.hub.users["x"] = {"username": username, "groups": groups}
        assert (await gate.ask(bearer("x"))).status == 403
        assert (await gate.ask(bearer("x"))).status == 403
        assert gate.managed.received == []
        assert gate.hub.reviews == ["x"]  # remembered, too


async def test_listed_system_groups_keep_their_names(gated: Callable[..., Any]) -> None:
    async with gated(allow_hub_system_groups=["system:masters"]) as gate:
        gate.hub.users["x"] = {"username": "system:masters", "groups": ["system:masters", "system:nodes"]}
        assert (await gate.ask(bearer("x"))).status == 200
        (received,) = gate.managed.received
        assert received.values(b"impersonate-user") == [b"cluster:hub:system:masters"]  # groups are listed, not users
        assert received.values(b"impersonate-group") == [b"system:masters", b"cluster:hub:system:nodes"]


async def test_who_is_known_to_both_clusters_is_this_clusters_user(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        gate.hub.users["alice"] = {"username": "system:admin", "groups": ["system:masters"]}
        assert (await gate.ask(bearer("alice"))).status == 200
        (received,) = gate.managed.received
        assert received.values(b"authorization") == [b"Bearer alice"]
        assert gate.hub.reviews == []


# Services -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPELLINGS, ids=bytes.decode)
def test_on_services_every_claim_goes_and_authorization_stays(name: bytes) -> None:
    processor = KubernetesProcessor(None, None, api_server=("kubernetes.default.svc", 443))  # type: ignore[arg-type]
    kept = [(b"Host", b"h"), (b"Authorization", b"Bearer own"), (b"X-A", b"1")]
    head = RequestHead("GET", b"/", "1.1", [kept[0], (name, b"root"), *kept[1:]], 3, "c1")
    found = processor.process(head, Target("https://web.ns.svc:443/"))
    assert isinstance(found, RequestHead)
    assert found.headers == kept
    assert found.client_identity == ""


@pytest.mark.parametrize("host", ["kubernetes.default.svc", "KUBERNETES.default.svc", "kubernetes.default.svc."])
def test_no_spelling_of_the_api_server_leads_past_the_review(host: str) -> None:
    processor = KubernetesProcessor(None, None, api_server=("kubernetes.default.svc", 443))  # type: ignore[arg-type]
    with pytest.raises(Refused) as caught:
        processor.process(RequestHead("GET", b"/", "1.1", []), Target(f"https://{host}/api"))
    assert caught.value.status == 401


# Names already seen -----------------------------------------------------------------------------------------------

OTHERS = [b"Host", b"Accept", b"X-Request-Id", b"X-Remote", b"Impersonate", b"Authorization-Info", b"Sec-Fetch", b"i"]


class Answers:
    """Reviews that have been made: bob is a hub's user, alice this cluster's."""

    def recall(self, token: bytes) -> Verdict | None:
        known = {b"bob": Verdict(Known.HUB, 0, tuple(BOBS)), b"alice": Verdict(Known.MANAGED, 0)}
        return known.get(token, Verdict(Known.UNKNOWN, 0, reason="unknown"))


class Own:
    has_certificate = False

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"Authorization", OWN),)


ONE = KubernetesProcessor(Answers(), Own(), api_server=("h", 443))  # type: ignore[arg-type]  # remembers names throughout
HEADER = st.tuples(
    st.sampled_from([*SPELLINGS, *OTHERS, b"Authorization", b"authorization", b"AUTHORIZATION"]),
    st.sampled_from([b"Bearer bob", b"Bearer alice", b"bearer bob", b"Bearer eve", b"root"]),
)


@settings(deadline=None, max_examples=500)  # the machine may be busy
@given(headers=st.lists(HEADER, max_size=8), api=st.booleans())
def test_names_already_seen_change_no_verdict(headers: list[tuple[bytes, bytes]], api: bool) -> None:
    """The short way for heads of known names does what one does that has never seen a head."""

    def outcome(processor: KubernetesProcessor) -> list[tuple[bytes, bytes]] | int:
        head = RequestHead("GET", b"/", "1.1", list(headers))
        try:
            found = processor.process(head, Target("https://h/" if api else "https://web/"))
        except Refused as refused:
            return refused.status
        assert isinstance(found, RequestHead)
        return found.headers

    fresh = KubernetesProcessor(Answers(), Own(), api_server=("h", 443))  # type: ignore[arg-type]
    found = outcome(ONE)
    assert found == outcome(fresh) == outcome(fresh)
    if isinstance(found, list):
        claims = [(name, value) for name, value in found if is_identity_header(name)]
        sent = [value for name, value in headers if name.lower() == b"authorization"]
        if not api:
            assert claims == []
        elif sent in ([b"Bearer bob"], [b"bearer bob"]):
            assert claims == BOBS
            assert [value for name, value in found if name.lower() == b"authorization"] == [OWN]
        else:
            assert sent == [b"Bearer alice"]
            assert claims == [h for h in headers if h[0].lower().startswith(b"impersonate-")]


def test_names_that_clients_choose_are_remembered_to_a_bound() -> None:
    processor = KubernetesProcessor(Answers(), Own(), api_server=("h", 443))  # type: ignore[arg-type]
    for number in range(5000):
        name = b"X-Made-Up-%d" % number if number % 2 else b"Y" * 1000 + b"%d" % number
        head = RequestHead("GET", b"/", "1.1", [(name, b"1"), (b"Authorization", b"Bearer bob")])
        found = processor.process(head, Target("https://h/"))
        assert isinstance(found, RequestHead)
        assert found.headers == [(name, b"1"), (b"Authorization", OWN), *BOBS]
    assert len(processor._harmless) <= 1024
    assert max(map(len, processor._harmless)) <= 64
