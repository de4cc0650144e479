"""No field of a response reaches another cluster, as browsers read it, and every other byte stays."""

from __future__ import annotations

import logging
import random

import pytest

from agent.errors import Refused
from agent.hub import browser_isolation
from agent.hub.browser_isolation import Isolation, isolate_by_host, isolate_by_path
from agent.hub.clusters import ByHost, ByParser, ByPath, Clusters
from agent.messages import RequestHead, Target
from agent.proxy.heads import parse_response

Fields = list[tuple[bytes, bytes]]

HOST = "c1.tunnel.example.com"
COOKIE, ALLOWED = b"Set-Cookie", b"Service-Worker-Allowed"


def by_path(cookie: bytes, *, is_root: bool = False) -> bytes | None:
    """A cookie of c1 as its browser gets it."""
    kept, dropped = isolate_by_path(b"/c1", is_root, [(COOKIE, cookie)])
    assert dropped == 1 - len(kept)
    return kept[0][1] if kept else None


def by_host(cookie: bytes) -> bytes:
    ((_, found),) = isolate_by_host(HOST, [(COOKIE, cookie)])
    return found


# -- cookies by path


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        (b"a=b", b"a=b"),
        (b"a=b; Path=/", b"a=b; Path=/c1/"),
        (b"a=b; Path=/x", b"a=b; Path=/c1/x"),
        (b"a=b; Path=/c1", b"a=b; Path=/c1"),
        (b"a=b; Path=/c1/x", b"a=b; Path=/c1/x"),
        (b"a=b; Path=/c10/x", b"a=b; Path=/c1/c10/x"),
        (b"a=b; Path=/c1x", b"a=b; Path=/c1/c1x"),
        (b"a=b; Path=/C1/", b"a=b; Path=/c1/C1/"),
        (b"a=b;path=/;HttpOnly", b"a=b;path=/c1/;HttpOnly"),
        (b"a=b ;\t PATH \t=\t / \t; Secure ", b"a=b ;\t PATH \t=\t /c1/ \t; Secure "),
        (b'a=b; Path="/"', b"a=b; Path=/c1/"),
        (b'a=b; Path="/; Path=/"', b"a=b; Path=/c1/; Path=/c1/"),
        (b'a=b; Path="/c1/x"', b'a=b; Path="/c1/x"'),
        (b"a=b; Path=/c1/; Path=/; path=/x", b"a=b; Path=/c1/; Path=/c1/; path=/c1/x"),
        (b"a=b; Path; Path=; Path=x; Path=%2f", b"a=b"),  # curl takes `/` for some
        (b"a=b; Path=/x; Secure; Path=x; Path=/y; HttpOnly", b"a=b; Secure; Path=/c1/y; HttpOnly"),
        (b'a=b; Path=""/c1""; Path=" /"', b"a=b"),
        (b"a=b; Path=/=/", b"a=b; Path=/c1/=/"),
        (b"a=b; Domain=tunnel.example.com", b"a=b"),
        (b"a=b; Domain=c1.tunnel.example.com; Secure", b"a=b; Secure"),
        (b"a=b;DOMAIN = .x;domain;Domain=; Max-Age=1", b"a=b; Max-Age=1"),
        (b'a="x; Path=/; y"', b'a="x; Path=/c1/; y"'),
        (b"a=Path=/; b", b"a=Path=/; b"),
        (b"Path=/", b"Path=/"),
        (b"Path=/; Path=/", b"Path=/; Path=/c1/"),
        (b"", b""),
        (b";;", b";;"),
        (b"\xff=\xfe; Path=/\xff; \xff", b"\xff=\xfe; Path=/c1/\xff; \xff"),
        (b"a=b; Expires=Thu, 01 Jan 2026 00:00:00 GMT; SameSite=Lax; Path=/", b"a=b; Expires=Thu, 01 Jan 2026 "
         b"00:00:00 GMT; SameSite=Lax; Path=/c1/"),
        (b"__Secure-a=b; Path=/; Secure", b"__Secure-a=b; Path=/c1/; Secure"),
        (b"a=__Host-b; Path=/", b"a=__Host-b; Path=/c1/"),
    ],
)  # fmt: skip
def test_by_path_a_cookie_stays_below_its_clusters_prefix(cookie: bytes, expected: bytes) -> None:
    assert by_path(cookie) == expected


def test_a_prefix_that_the_agent_has_added_is_not_added_twice() -> None:
    once = by_path(b"a=b; Path=/grafana/")
    assert once == b"a=b; Path=/c1/grafana/"
    assert by_path(once) == once


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        (b"a=b", b"a=b; Path=/c1/"),
        (b"a=b; HttpOnly", b"a=b; Path=/c1/; HttpOnly"),
        (b"a=b; Path=/x; HttpOnly", b"a=b; Path=/c1/x; HttpOnly"),
        (b"a=b; Path=/x; Path", b"a=b; Path=/c1/"),
        (b"a=b; Path=/x; Path=y", b"a=b; Path=/c1/"),
        (b'a=b; Path="/c1/x"', b"a=b; Path=/c1/"),  # a browser takes the default path for it
        (b"a=b; Path=/x; Path=/y", b"a=b; Path=/c1/y"),
        (b"a=b; Path=/" + b"x" * 1024, b"a=b; Path=/c1/"),
    ],
)
def test_a_cookie_of_the_prefix_itself_gets_a_path(cookie: bytes, expected: bytes) -> None:
    """The request's path is `/c1`, and a browser's default path for that is `/`."""
    assert by_path(cookie, is_root=True) == expected


@pytest.mark.parametrize(
    "cookie",
    [
        b"__Host-a=b; Path=/; Secure",
        b"__host-a=b",
        b"  __HOST-a=b",
        b"__Host-=",
        b"__Host-Http-a=b",
        b"=__Host-a=b",
        b" = __Host-a",
        b"__Host-a",
        b";__Host-a=b",
    ],
)
def test_by_path_a_host_cookie_is_dropped(cookie: bytes) -> None:
    assert by_path(cookie) is None


# -- cookies by host


@pytest.mark.parametrize(
    ("cookie", "expected"),
    [
        (b"a=b; Path=/; HttpOnly", b"a=b; Path=/; HttpOnly"),
        (b"__Host-a=b; Path=/; Secure", b"__Host-a=b; Path=/; Secure"),
        (b"a=b; Domain=tunnel.example.com", b"a=b"),
        (b"a=b; Domain=.tunnel.example.com; Secure", b"a=b; Secure"),
        (b"a=b; domain = EXAMPLE.com ;Secure", b"a=b;Secure"),
        (b'a=b; Domain="example.com"', b"a=b"),
        (b"a=b; Domain=com; Domain=c1.tunnel.example.com", b"a=b; Domain=c1.tunnel.example.com"),
        (b"a=b; Domain=c1.tunnel.example.com", b"a=b; Domain=c1.tunnel.example.com"),
        (b"a=b;DOMAIN=.C1.Tunnel.Example.com", b"a=b;DOMAIN=.C1.Tunnel.Example.com"),
        (b"a=b; Domain=x.c1.tunnel.example.com", b"a=b; Domain=x.c1.tunnel.example.com"),
        (b"a=b; Domain=c2.tunnel.example.com", b"a=b"),
        (b"a=b; Domain=xc1.tunnel.example.com", b"a=b"),
        (b"a=b; Domain=tunnel.example.com.", b"a=b"),
        (b"a=b; Domain; Domain=", b"a=b; Domain; Domain="),
        (b'a="; Domain=example.com; "', b'a="; "'),
        (b"Domain=example.com", b"Domain=example.com"),
    ],
)
def test_by_host_a_cookies_domain_is_at_most_the_clusters_own_name(cookie: bytes, expected: bytes) -> None:
    assert by_host(cookie) == expected


def test_without_a_host_every_domain_is_removed() -> None:
    assert isolate_by_host("", [(COOKIE, b"a=b; Domain=x.; Domain=com")]) == [(COOKIE, b"a=b")]


# -- as browsers read it


def attributes(cookie: bytes) -> list[tuple[bytes, bytes]]:
    """RFC 6265bis, section 5.6: (name in lower case, value) in order."""
    found = []
    for part in cookie.split(b";")[1:]:
        name, _, value = part.partition(b"=")
        if len(value.strip(b" \t")) <= 1024:
            found.append((name.strip(b" \t").lower(), value.strip(b" \t")))
    return found


def stored_path(cookie: bytes, request_path: bytes, *, removes_quotes: bool) -> bytes:
    """The path of a stored cookie. removes_quotes: as curl, browsers don't."""
    default = request_path[: request_path.rfind(b"/")] or b"/"
    path = default
    for name, value in attributes(cookie):
        if name == b"path":
            if removes_quotes:
                bare = value.removeprefix(b'"').removesuffix(b'"')
                path = bare if bare.startswith(b"/") else b"/"
            else:
                path = value if value.startswith(b"/") else default
    return path


def stored_domains(cookie: bytes) -> list[bytes]:
    return [value.strip(b'"').lstrip(b".").lower() for name, value in attributes(cookie) if name == b"domain"]


PIECES = [
    b"a=b", b";", b"; ", b" ; ", b"=", b'"', b" ", b"\t", b"Path", b"path=", b"PATH = ", b"Path=/", b'Path="/"', b"/",
    b"/c1", b"/c1/", b"/c10", b"..", b"Domain=", b"domain=example.com", b"Domain=.tunnel.example.com", b".",
    HOST.encode(), b"__Host-", b"Secure", b"Max-Age=3", b"\xff", b",", b"x" * 1024,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_every_cookie_is_narrow_in_every_reading(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(500):
        cookie = b"".join(rng.choices(PIECES, k=rng.randint(1, 16)))
        for request_path in (b"/c1", b"/c1/", b"/c1/x/y"):
            found = by_path(cookie, is_root=request_path == b"/c1")
            if found is None:
                continue
            assert not stored_domains(found), cookie
            for removes_quotes in (True, False):
                path = stored_path(found, request_path, removes_quotes=removes_quotes)
                assert path == b"/c1" or path.startswith(b"/c1/"), (cookie, found)
            assert by_path(found, is_root=request_path == b"/c1") == found, "once is enough"
        for domain in stored_domains(by_host(cookie)):
            assert not domain or domain == HOST.encode() or domain.endswith(b"." + HOST.encode()), cookie


# -- other fields


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (b"/", b"/c1/"),
        (b"/x", b"/c1/x"),
        (b"/c1", b"/c1/"),  # a scope is compared as text, and `/c1` begins `/c10/`
        (b"/c1/", b"/c1/"),
        (b"/c1/x", b"/c1/x"),
        (b"/c10/", b"/c1/c10/"),
        (b"/c1?", b"/c1/c1?"),
        (b"", None),
        (b"./", None),
        (b"../", None),
        (b"/c1/../", None),
        (b"/c1/%2E%2e/", None),
        (b"/c1/.\t./", None),
        (b"/c1\\..\\", None),
        (b"//evil.example/c1/", None),
        (b"https://hub/", None),
        (b"/c1/ , /", None),
        (b"/#", None),
    ],
)
def test_by_path_a_service_worker_stays_below_the_prefix(scope: bytes, expected: bytes | None) -> None:
    kept, dropped = isolate_by_path(b"/c1", False, [(ALLOWED, scope)])
    assert kept == ([] if expected is None else [(ALLOWED, expected)])
    assert dropped == 0


@pytest.mark.parametrize("name", [b"Alt-Svc", b"Clear-Site-Data", b"NEL", b"nel", b"Report-To"])
def test_by_path_a_field_that_holds_for_the_whole_origin_is_dropped(name: bytes) -> None:
    assert isolate_by_path(b"/c1", False, [(name, b"x"), (b"Reporting-Endpoints", b"y")])[0] == [
        (b"Reporting-Endpoints", b"y")
    ]
    response = parse_response(b"HTTP/1.1 200 OK\r\n" + name + b": x\r\n\r\n")
    assert response.has_urls, "the hub looks at its fields"


def test_other_fields_stay_as_they_are() -> None:
    others = [(b"Location", b"/x"), (b"X", b"Path=/; Domain=example.com"), (b"Set-Cookie2", b"a=b; Path=/")]
    given = [*others, (b"ALT-SVC", b"h3"), (b"clear-site-data", b'"*"'), (b"set-COOKIE", b"a=b;path=/"), *others]
    before = list(given)
    assert isolate_by_path(b"/c1", False, given)[0] == [*others, (b"set-COOKIE", b"a=b;path=/c1/"), *others]
    assert isolate_by_host(HOST, given) == [
        *others, (b"clear-site-data", b'"*"'), (b"set-COOKIE", b"a=b;path=/"), *others
    ]  # fmt: skip
    assert given == before


# -- the hub's functions


def request(target: bytes, host: str = "hub:8080", prefix: str = "") -> RequestHead:
    return RequestHead("GET", target, "1.1", [], host=host, prefix=prefix)


def target_of(clusters: Clusters, head: RequestHead) -> Target:
    located = clusters.locate(head)
    return Target("http://agent", stripped=located.stripped).with_path(located.path)


def mapped(clusters: Clusters, head: RequestHead, fields: Fields) -> Fields:
    return Isolation(clusters.locate).map_response(head, target_of(clusters, head), fields)


@pytest.mark.parametrize(
    ("clusters", "head", "expected"),
    [
        (ByPath(), request(b"/c1/x"), b"a=b; Path=/c1/"),
        (ByPath(), request(b"/c1/x", prefix="/tunnel"), b"a=b; Path=/tunnel/c1/"),
        (ByHost("tunnel.example.com"), request(b"/x", HOST.upper() + ":443"), b"a=b; Path=/; Domain=" + HOST.encode()),
        (ByParser(lambda head: "c1"), request(b"/x", HOST), b"a=b; Path=/; Domain=" + HOST.encode()),
        (ByParser(lambda head: "c1"), request(b"/x", "hub"), b"a=b; Path=/"),
        (ByParser(lambda head: "c1"), request(b"/c1/x"), b"a=b; Path=/c1/"),
        (ByParser(lambda head: ("c1", b"/x")), request(b"/t/acme/x"), b"a=b; Path=/t/acme/"),
    ],
)
def test_a_response_is_narrowed_as_its_cluster_is_named(clusters: Clusters, head: RequestHead, expected: bytes) -> None:
    fields = [(COOKIE, b"a=b; Path=/; Domain=" + HOST.encode())]
    assert mapped(clusters, head, fields) == [(COOKIE, expected)]


@pytest.mark.parametrize("target", [b"/c1", b"/c1?x=/"])
def test_a_request_for_the_prefix_itself_is_told_apart(target: bytes) -> None:
    assert mapped(ByPath(), request(target), [(COOKIE, b"a=b")]) == [(COOKIE, b"a=b; Path=/c1/")]
    assert mapped(ByPath(), request(target, prefix="/t"), [(COOKIE, b"a=b")]) == [(COOKIE, b"a=b; Path=/t/c1/")]


def test_each_cluster_has_one_warning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_isolation, "MOST_WARNED", 2)
    clusters = ByPath()
    isolated = Isolation(clusters.locate)
    for name in (b"c1", b"c2", b"c1", b"c2", b"c3", b"c2", b"c1"):
        head = request(b"/%b/" % name)
        assert isolated.map_response(head, target_of(clusters, head), [(COOKIE, b"__Host-a=b")] * 2) == []
    assert [(each.levelno, each.__dict__["cluster"]) for each in caplog.records] == [
        (logging.WARNING, name) for name in ("c1", "c2", "c3", "c1")
    ]


# -- Destination


def destination(clusters: Clusters, head: RequestHead, *values: bytes) -> str:
    """Why the field is refused, "" if it isn't."""
    fields = [(b"Overwrite", b"F"), *((b"dEstination", value) for value in values)]
    before = list(fields)
    try:
        assert Isolation(clusters.locate).map_request(head, target_of(clusters, head), fields) == before
    except Refused as refused:
        assert (refused.status, refused.fault) == (502, "client")  # noqa: PT017
        return refused.reason
    return ""


@pytest.mark.parametrize(
    "value",
    [
        b"/c1/b", b"/c1", b"/c1/", b"/c1?x", b"/c1/./b", b"http://hub:8080/c1/b", b"https://HUB:8080/c1/b",
        b"HTTP://hub.:8080/c1/b?q=/../",
    ],
)  # fmt: skip
def test_a_destination_in_the_same_cluster_goes_on(value: bytes) -> None:
    assert destination(ByPath(), request(b"/c1/a"), value) == ""


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"/c2/b", "outside the request's cluster"),
        (b"/c10/b", "outside the request's cluster"),
        (b"/b", "outside the request's cluster"),
        (b"/", "outside the request's cluster"),
        (b"//c1/b", "no absolute URL or path"),
        (b"c1/b", "no absolute URL or path"),
        (b"", "no absolute URL or path"),
        (b"http:/c1/b", "no absolute URL or path"),
        (b"ftp://hub:8080/c1/b", "no absolute URL or path"),
        (b"http://hub:8080", "no absolute URL or path"),
        (b"http://hub:8080?/c1/b", "no absolute URL or path"),
        (b"/c1/b#c", "no absolute URL or path"),
        (b"/c1/b c", "no absolute URL or path"),
        (b"/c1\\b", "no absolute URL or path"),
        (b"/c1/\xff", "no absolute URL or path"),
        (b"/c1/../c2/b", "dot segments"),
        (b"/c1/%2e%2E/c2/b", "dot segments"),
        (b"/c1/..;/c2", "dot segments"),
        (b"http://hub/c1/b", "another host"),
        (b"http://other:8080/c1/b", "another host"),
        (b"http://user@hub:8080/c1/b", "another host"),
        (b"http://hub:8080\\@other/c1/b", "another host"),
        (b"http:///c1/b", "another host"),
        (b"http://\xff/c1/b", "another host"),
    ],
)
def test_a_destination_elsewhere_is_a_502(value: bytes, why: str) -> None:
    assert why in destination(ByPath(), request(b"/c1/a"), value)
    assert why in destination(ByPath(), request(b"/c1/a"), b"/c1/b", value)


@pytest.mark.parametrize(
    ("host", "value", "goes_on"),
    [
        ("hub", b"http://hub:80/c1/b", True),
        ("hub", b"https://hub:443/c1/b", True),
        ("hub:443", b"https://hub/c1/b", True),
        ("hub", b"https://hub:80/c1/b", False),
        ("[::1]:80", b"http://[::1]/c1/b", True),
        ("[::1]", b"http://[::1]:80/c1/b", True),
        ("[::1]:81", b"http://[::1]/c1/b", False),
        ("", b"http:///c1/b", False),
        ("", b"/c1/b", True),
    ],
)
def test_a_destinations_host_is_the_requests_own(host: str, value: bytes, goes_on: bool) -> None:
    assert (destination(ByPath(), request(b"/c1/a", host), value) == "") is goes_on


def test_by_host_a_destination_is_on_the_same_host() -> None:
    clusters, head = ByHost("tunnel.example.com"), request(b"/a", HOST)
    assert destination(clusters, head, b"/b", b"/c2/b", f"https://{HOST}/b".encode()) == ""
    assert "another host" in destination(clusters, head, b"https://c2.tunnel.example.com/b")


def test_a_parser_is_asked_for_the_cluster_of_a_destination() -> None:
    clusters = ByParser(lambda head: "c1" if head.target.startswith(b"/blue/") else "c2")
    assert destination(clusters, request(b"/blue/a"), b"/blue/b") == ""
    assert "outside" in destination(clusters, request(b"/blue/a"), b"/red/b")

    def strict(head: RequestHead) -> tuple[str, bytes]:
        tenant, slash, rest = head.target.removeprefix(b"/t/").partition(b"/")
        if tenant != b"acme":
            raise Refused(404, "no such tenant")
        return "c1", slash + rest

    assert destination(ByParser(strict), request(b"/t/acme/a"), b"/t/acme/b") == ""
    assert "outside" in destination(ByParser(strict), request(b"/t/acme/a"), b"/t/other/b")
    by_case = ByParser(lambda head: strict(head) if head.target != b"/t/acme/secret" else "")
    assert "outside" in destination(by_case, request(b"/t/acme/a"), b"/t/acme/secret")

    def picky(head: RequestHead) -> tuple[str, bytes]:
        if head.target == b"/t/acme/secret":
            raise Refused(403, "no")
        return strict(head)

    assert "in no cluster" in destination(ByParser(picky), request(b"/t/acme/a"), b"/t/acme/secret")


def test_behind_a_proxys_prefix_a_destination_has_it_too() -> None:
    head = request(b"/c1/a", prefix="/tunnel")
    assert destination(ByPath(), head, b"/tunnel/c1/b") == ""
    assert "outside" in destination(ByPath(), head, b"/c1/b")
    assert "outside" in destination(ByPath(), head, b"/tunnel/c2/b")


@pytest.mark.parametrize("seed", range(10))
def test_a_destination_that_goes_on_is_in_the_cluster(seed: int) -> None:
    rng = random.Random(seed)
    pieces = [b"http://", b"hub:8080", b"other", b"/", b"c1", b"c2", b".", b"..", b"%2e", b"%2F", b"\\", b"?", b"#",
              b"@", b"/c1/", b":", b" ", b"\xff"]  # fmt: skip
    for _ in range(1000):
        value = b"".join(rng.choices(pieces, k=rng.randint(1, 7)))
        if destination(ByPath(), request(b"/c1/a"), value) == "":
            path = value.removeprefix(b"http://hub:8080")
            while path.startswith(b"/./"):
                path = path[2:]
            assert path in (b"/c1", b"/c1/.") or path.startswith((b"/c1/", b"/c1?")), value
