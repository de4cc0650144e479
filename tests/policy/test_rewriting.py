"""Rewriting: URLs in fields, mapped between public paths and a target's, case by case and fuzzed."""

from __future__ import annotations

import functools
import random
import re
from urllib.parse import urljoin, urlsplit

import pytest

from agent.errors import Refused
from agent.messages import RequestHead, Target
from agent.policy.rewriting import MAX_VALUE_BYTES, Rewriter

Fields = list[tuple[bytes, bytes]]

BY_PATH, BY_HOST = "hub.example", "c1.tunnel.example"


def head(prefix: str = "/c1", host: str = BY_PATH, scheme: str = "https") -> RequestHead:
    return RequestHead("GET", b"/c1/x", "1.1", [], cluster="c1", prefix=prefix, host=host, scheme=scheme)


def target(url: str = "http://10.0.0.5:3000", *, host: str = "client", stripped: str = "") -> Target:
    preserve = host == "client"
    name = "" if host in ("client", "target") else host
    return Target(url, preserve_host=preserve, host_name=name, stripped=stripped.encode())


def answered(
    name: bytes, value: str, request: RequestHead, where: Target, *, above: str = "", is_app: bool = False
) -> str | None:
    """The value that a client gets, None if the field is dropped."""
    rewriter = Rewriter(where.stripped, above.encode(), is_app=is_app)
    fields = [(b"X-A", b"1"), (name, value.encode("latin-1")), (b"x-b", b"/")]
    before = fields.copy()
    found = rewriter.map_response(request, where, fields)
    assert fields == before, "the argument does not change"
    assert [field for field in found if field[0] in (b"X-A", b"x-b")] == [(b"X-A", b"1"), (b"x-b", b"/")]
    values = [field[1] for field in found if field[0] == name]
    assert len(values) <= 1
    if values and values[0] == value.encode("latin-1"):
        assert found is fields, "nothing is copied if nothing changes"
    return values[0].decode("latin-1") if values else None


# URLs of responses ------------------------------------------------------------------------------------------------

UNTOUCHED = [
    "",
    "x",
    "../x",
    "./",
    "?q",
    "#f",
    "//evil.example/x",
    "///x",
    "https://idp.example/login?next=http://10.0.0.5:3000/",
    "http://10.0.0.5/",
    "http://10.0.0.5:3001/",
    "http://10.0.0.50:3000/",
    "http://10.0.0.5:3000.evil.example/",
    "http://10.0.0.5:3000@evil.example/",
    "http://user@10.0.0.5:3000/",
    "http://evil.example\\@10.0.0.5:3000/",
    "ftp://10.0.0.5:3000/x",
    "mailto:a@b",
    "javascript:alert(1)",
    "http:x",
    "10.0.0.5:3000/x",
]


@pytest.mark.parametrize("value", UNTOUCHED)
@pytest.mark.parametrize("name", [b"Location", b"content-location", b"LOCATION"])
def test_relative_references_and_other_origins_stay_as_they_are(name: bytes, value: str) -> None:
    for request in (head(), head("", BY_HOST)):
        assert answered(name, value, request, target(stripped="/grafana")) == value


# (the value, by path "/c1", by host "")
OWN = [
    ("http://10.0.0.5:3000/slash/", "/c1/slash/", "/slash/"),  # FastAPI behind a route with the target's Host
    ("http://10.0.0.5:3000/slash/?a=/b#c", "/c1/slash/?a=/b#c", "/slash/?a=/b#c"),
    ("https://10.0.0.5:3000/x", "/c1/x", "/x"),
    ("ws://10.0.0.5:3000/x", "/c1/x", "/x"),
    ("WSS://10.0.0.5:3000/x", "/c1/x", "/x"),
    ("//10.0.0.5:3000/x", "/c1/x", "/x"),
    ("http://10.0.0.5:3000", "/c1/", "/"),
    ("http://10.0.0.5:3000?q", "/c1/?q", "/?q"),
    ("http://10.0.0.5:3000#f", "/c1/#f", "/#f"),
    ("http://10.0.0.5:3000\\x", "/c1/x", "/x"),
    ("http://10.0.0.5:3000/c1/x", "/c1/x", "/c1/x"),
    ("http://10.0.0.5:3000/c1x", "/c1/c1x", "/c1x"),
    ("/login/?next=/admin/", "/c1/login/?next=/admin/", "/login/?next=/admin/"),  # Django's login
    ("/lab/tree?token=a", "/c1/lab/tree?token=a", "/lab/tree?token=a"),  # JupyterLab's
    ("/", "/c1/", "/"),
    ("/?q", "/c1/?q", "/?q"),
    ("/c1", "/c1", "/c1"),
    ("/c1?q", "/c1?q", "/c1?q"),
    ("/c1/", "/c1/", "/c1/"),
    ("/c1/lab", "/c1/lab", "/c1/lab"),  # it knows X-Forwarded-Prefix
    ("/c1x", "/c1/c1x", "/c1x"),
    ("/a/../b", "/c1/b", "/a/../b"),
    ("/../c2/x", "/c1/c2/x", "/../c2/x"),
    ("/c1/../../c2/", "/c1/c2/", "/c1/../../c2/"),
    ("/c1/%2e%2E/c2", "/c1/c2", "/c1/%2e%2E/c2"),
    ("/a\\..\\..\\c2", "/c1/c2", "/a\\..\\..\\c2"),
    ("/a/..", "/c1/", "/a/.."),
    ("/a/b/.", "/c1/a/b/", "/a/b/."),
    ("/é", "/c1/é", "/é"),
    ("/a?b=/../c", "/c1/a?b=/../c", "/a?b=/../c"),
    ("/.well-known/x", "/c1/.well-known/x", "/.well-known/x"),
    ("/\\evil.example", "/c1/\\evil.example", "/\\evil.example"),
    ("http://10.0.0.5:3000//evil.example/", "/c1//evil.example/", "/.//evil.example/"),
    ("http://10.0.0.5:3000/\\evil.example/", "/c1/\\evil.example/", "/./\\evil.example/"),
    ("http://10.0.0.5:3000\\\\evil.example/", "/c1/\\evil.example/", "/./\\evil.example/"),
    ("http://10.0.0.5:3000/x/..//evil.example/", "/c1//evil.example/", "/.//evil.example/"),
    ("http://10.0.0.5:3000/\t/evil.example/", "/c1//evil.example/", "/.//evil.example/"),  # browsers remove tabs
    ("http://10.0.0.5:3000/\t\\evil.example/", "/c1/\\evil.example/", "/./\\evil.example/"),
    ("/.\t./c2", "/c1/c2", "/.\t./c2"),
]


@pytest.mark.parametrize(("value", "by_path", "by_host"), OWN)
@pytest.mark.parametrize("name", [b"Location", b"Content-Location"])
def test_own_origin_and_paths_get_the_public_prefix(name: bytes, value: str, by_path: str, by_host: str) -> None:
    for where in (target(host="target"), target(host="client"), target(host="a.name")):
        assert answered(name, value, head(), where) == by_path
        assert answered(name, value, head("", BY_HOST), where) == by_host


@pytest.mark.parametrize(
    ("value", "url", "host", "sent", "expected"),
    [
        # the Host that the target got, whatever scheme the target believes in
        ("http://hub.example/x", "http://t:1", "client", "hub.example", "/c1/x"),
        ("https://HUB.example:443/x", "http://t:1", "client", "hub.example", "/c1/x"),
        ("http://hub.example:80/x", "http://t:1", "client", "Hub.Example", "/c1/x"),
        ("https://hub.example/x", "http://t:1", "client", "hub.example:443", "/c1/x"),
        ("https://hub.example:8443/x", "http://t:1", "client", "hub.example:8443", "/c1/x"),
        ("https://hub.example/x", "http://t:1", "client", "hub.example:8443", "https://hub.example/x"),
        ("https://hub.example:8443/x", "http://t:1", "client", "hub.example", "https://hub.example:8443/x"),
        ("https://hub.example/x", "http://t:1", "target", "hub.example", "https://hub.example/x"),
        ("http://a.name:81/x", "http://t:1", "a.name:81", "hub.example", "/c1/x"),
        ("http://A.NAME:81/x", "https://t:1", "a.name:81", "hub.example", "/c1/x"),
        ("https://hub.example/x", "http://t:1", "a.name:81", "hub.example", "https://hub.example/x"),
        # nginx: the name of the Host with the port that nginx itself listens on
        ("http://hub.example:8080/x", "http://t:8080", "client", "hub.example:8443", "/c1/x"),
        ("http://hub.example:8080/x", "http://t:8080", "client", "hub.example", "/c1/x"),
        ("http://hub.example/x", "http://t", "client", "hub.example:8443", "/c1/x"),
        ("http://a.name:8080/x", "http://t:8080", "a.name", "hub.example", "/c1/x"),
        ("http://[::2]:8080/x", "http://t:8080", "client", "[::2]:1", "/c1/x"),
        ("http://hub.example:8081/x", "http://t:8080", "client", "hub.example", "http://hub.example:8081/x"),
        # the URL's authority, with and without its default port
        ("http://t/x", "http://t", "client", "hub.example", "/c1/x"),
        ("http://t:80/x", "http://t", "client", "hub.example", "/c1/x"),
        ("http://t/x", "http://t:80", "client", "hub.example", "/c1/x"),
        ("https://t:443/x", "https://t", "target", "hub.example", "/c1/x"),
        ("http://t/x", "https://T:443", "target", "hub.example", "/c1/x"),
        ("http://t:/x", "https://t", "target", "hub.example", "/c1/x"),
        ("http://[::1]:9000/x", "http://[::1]:9000", "client", "hub.example", "/c1/x"),
        ("http://[::1]/x", "http://[::1]:80", "client", "hub.example", "/c1/x"),
        ("http://[::1]:9001/x", "http://[::1]:9000", "client", "hub.example", "http://[::1]:9001/x"),
        # no Host from the user: the target got its own name
        ("http://t:1/x", "http://t:1", "client", "", "/c1/x"),
        ("http:///x", "http://t:1", "client", "", "http:///x"),
    ],
)
def test_own_origin_is_the_urls_authority_and_the_host_that_was_sent(
    value: str, url: str, host: str, sent: str, expected: str
) -> None:
    assert answered(b"Location", value, head(host=sent), target(url, host=host)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/login", "/c1/grafana/login"),  # Grafana without root_url
        ("/sub/login", "/c1/grafana/login"),
        ("/sub", "/c1/grafana"),
        ("/sub/", "/c1/grafana/"),
        ("/sub?q", "/c1/grafana?q"),
        ("/subx", "/c1/grafana/subx"),
        ("/sub//x", "/c1/grafana//x"),
        ("/sub/../x", "/c1/grafana/x"),
        ("http://10.0.0.5:3000/sub/login?a", "/c1/grafana/login?a"),
        ("http://10.0.0.5:3000", "/c1/grafana/"),
        ("https://hub.example/c1/grafana/login", "/c1/grafana/login"),  # Grafana with root_url
        ("/c1/grafana/login", "/c1/grafana/login"),
        ("/c1/grafana", "/c1/grafana"),
        ("/c1/grafanax", "/c1/grafana/c1/grafanax"),
        ("/grafana/login", "/c1/grafana/grafana/login"),
        ("/c1/login", "/c1/grafana/c1/login"),
    ],
)
def test_paths_of_the_routes_url_become_the_routes_prefix(value: str, expected: str) -> None:
    where = target("http://10.0.0.5:3000/sub", stripped="/grafana")
    assert answered(b"Location", value, head(), where, above="/sub") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/sub/login", "/login"),
        ("/sub", "/"),
        ("/sub?q", "/?q"),
        ("/other", "/other"),
        ("/sub//evil.example", "/.//evil.example"),
        ("/sub/\\evil.example", "/./\\evil.example"),
    ],
)
def test_path_of_a_root_routes_url_is_cut_without_making_a_host_of_the_rest(value: str, expected: str) -> None:
    where = target("http://10.0.0.5:3000/sub")
    assert answered(b"Location", value, head("", BY_HOST), where, above="/sub") == expected
    browser = urlsplit(urljoin("https://c1.tunnel.example/x", expected))
    assert browser.netloc == "c1.tunnel.example"


@pytest.mark.parametrize(
    ("value", "by_path", "by_host"),
    [
        ("/api/v1/users/1", "/c1/api/users/1", "/api/users/1"),
        ("http://10.0.0.5:3000/api/v1/users/1", "/c1/api/users/1", "/api/users/1"),
        ("/api/v1", "/c1/api", "/api"),
        ("/api/v10", "/c1/api/api/v10", "/api/v10"),
        ("/api/users/1", "/c1/api/api/users/1", "/api/users/1"),
        ("/c1/api/users/1", "/c1/api/users/1", "/api/c1/api/users/1"),
        ("/users/1", "/c1/api/users/1", "/api/users/1"),
    ],
)
def test_path_of_a_url_that_begins_with_the_public_prefix_is_cut(value: str, by_path: str, by_host: str) -> None:
    """`--route /api=http://10.0.0.5:3000/api/v1`"""
    where = target("http://10.0.0.5:3000/api/v1", stripped="/api")
    for request, expected in ((head(), by_path), (head("", BY_HOST), by_host)):
        assert answered(b"Location", value, request, where, above="/api/v1") == expected
        if value.startswith("/"):
            cookie = answered(b"Set-Cookie", f"a=b; Path={value}", request, where, above="/api/v1")
            assert cookie == f"a=b; Path={expected}"


def test_behind_a_proxy_that_sets_x_forwarded_host_the_host_that_was_sent_counts() -> None:
    request = head(host="public.example")
    request.headers = [(b"host", b"hub.internal:8080")]
    where = target(stripped="/dav")
    for value in ("http://hub.internal:8080/x", "http://hub.internal:3000/x", "https://public.example/x"):
        assert answered(b"Location", value, request, where) == "/c1/dav/x"
    assert answered(b"Location", "http://hub.internal:8080/x", request, target(host="target")) is not None
    assert sent("https://public.example/c1/dav/b", request, where) == "http://hub.internal:8080/b"
    assert isinstance(sent("http://hub.internal:8080/c1/dav/b", request, where), tuple)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://hub.example/c1/slash/", "/c1/slash/"),  # Starlette's redirect_slashes, which knows root_path
        ("http://hub.example/c1/slash/", "/c1/slash/"),
        ("/c1/login", "/c1/login"),
        ("/login", "/c1/login"),
        ("https://other.example/", "https://other.example/"),
    ],
)
def test_location_of_an_app_is_mapped_without_a_second_prefix(value: str, expected: str) -> None:
    where = Target("http://app", app=object(), preserve_host=True)
    assert answered(b"Location", value, head(), where, is_app=True) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5; url=/x", "5; url=/c1/x"),
        ("0;url=http://10.0.0.5:3000/x", "0;url=/c1/x"),
        ("5;URL='/x'", "5;URL='/c1/x'"),
        ('5 ; Url = "/x?a=b" ', '5 ; Url = "/c1/x?a=b" '),
        ("5,url=/x", "5,url=/c1/x"),
        ("5 url=/x", "5 url=/c1/x"),
        ("5;/x", "5;/c1/x"),
        ("0.5; url=/x", "0.5; url=/c1/x"),
        ("; url=/x", "; url=/c1/x"),
        ("5; url='/x", "5; url='/c1/x"),
        ("5; url=' http://10.0.0.5:3000/x '", "5; url=' /c1/x '"),  # browsers remove the blanks
        ("5; url='/x'trailing", "5; url='/c1/x'trailing"),
        ("5; url=x", "5; url=x"),
        ("5; url=//evil.example/", "5; url=//evil.example/"),
        ("5; url=https://idp.example/", "5; url=https://idp.example/"),
        ("5; url=/c1/x", "5; url=/c1/x"),
        ("5; url=", "5; url="),
        ("5", "5"),
        ("5;", "5;"),
        ("", ""),
        ("x; url=/x", "x; url=/x"),
    ],
)
def test_url_of_refresh_is_mapped_as_location_is(value: str, expected: str) -> None:
    assert answered(b"Refresh", value, head(), target()) == expected


# Cookies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a=b; Path=/", "a=b; Path=/c1/grafana"),
        ("a=b; Path=/x", "a=b; Path=/c1/grafana/x"),
        ("a=b;path=/x;HttpOnly", "a=b;path=/c1/grafana/x;HttpOnly"),
        ("a=b ;\tPATH = /x/ ; Secure", "a=b ;\tPATH = /c1/grafana/x/ ; Secure"),
        ("a=b; Path=/x; Path=/y", "a=b; Path=/c1/grafana/x; Path=/c1/grafana/y"),
        ("a=b; Path=/c1/grafana/x", "a=b; Path=/c1/grafana/x"),
        ("a=b; Path=/c1/grafana", "a=b; Path=/c1/grafana"),
        ("a=b; Path=/c1", "a=b; Path=/c1/grafana/c1"),
        ("a=b", "a=b"),
        ("a=b; Path", "a=b; Path"),
        ("a=b; Path=", "a=b; Path="),
        ("a=b; Path=x", "a=b; Path=x"),
        ('a=b; Path="/x"; Secure', 'a=b; Path="/c1/grafana/x"; Secure'),
        ('a=b; Path="/"', 'a=b; Path="/c1/grafana"'),
        ('a=b; Path="/c1/grafana"', 'a=b; Path="/c1/grafana"'),
        ("Path=/x", "Path=/x"),  # the cookie's own name
        ("a=Path=/x; Secure", "a=Path=/x; Secure"),
        ("a=b; xPath=/x; PathX=/x", "a=b; xPath=/x; PathX=/x"),
        ("a=b; Domain=10.0.0.5; Expires=Thu, 01 Jan 2026 00:00:00 GMT", None),
        ("__Host-a=b; Path=/; Secure", None),
        ("__host-a=b; Path=/; Secure", None),
        ("__Secure-a=b; Path=/; Secure", "__Secure-a=b; Path=/c1/grafana; Secure"),
    ],
)
def test_path_of_a_cookie_gets_what_the_route_cut(value: str, expected: str | None) -> None:
    where = target(stripped="/grafana")
    assert answered(b"Set-Cookie", value, head(), where) == (value if expected is None else expected)
    assert answered(b"Set-Cookie", value, head(), target()) == value, "the hub narrows what no route cut"


def test_cookies_of_a_url_with_a_path_lose_that_path() -> None:
    where = target("http://10.0.0.5:3000/sub")
    assert answered(b"Set-Cookie", "a=b; Path=/sub/x", head(), where, above="/sub") == "a=b; Path=/c1/x"
    assert answered(b"Set-Cookie", "a=b; Path=/sub", head("", BY_HOST), where, above="/sub") == "a=b; Path=/"
    assert answered(b"Set-Cookie", "a=b; Path=/", head("", BY_HOST), where, above="/sub") == "a=b; Path=/"
    where = target("http://10.0.0.5:3000/sub", stripped="/grafana")
    assert answered(b"Set-Cookie", "a=b; Path=/sub/", head(), where, above="/sub") == "a=b; Path=/c1/grafana/"


def test_every_field_of_a_response_is_mapped_in_its_place() -> None:
    fields = [
        (b"Set-Cookie", b"a=1; Path=/"),
        (b"LOCATION", b"/x"),
        (b"set-cookie", b"b=2; Path=/y"),
        (b"Link", b"</x>; rel=preload"),
        (b"Alt-Svc", b'h3=":443"'),
        (b"Service-Worker-Allowed", b"/"),
    ]
    assert Rewriter(b"/g").map_response(head(), target(stripped="/g"), fields) == [
        (b"Set-Cookie", b"a=1; Path=/c1/g"),
        (b"LOCATION", b"/c1/g/x"),
        (b"set-cookie", b"b=2; Path=/c1/g/y"),
        *fields[3:],
    ]


# Destination ------------------------------------------------------------------------------------------------------


def sent(
    value: str,
    request: RequestHead | None = None,
    where: Target | None = None,
    *,
    above: str = "",
    is_app: bool = False,
) -> str | tuple[int, str]:
    """The Destination that the target gets, or (status, reason)."""
    where = where or target()
    rewriter = Rewriter(where.stripped, above.encode(), is_app=is_app)
    fields = [(b"X-A", b"1"), (b"destination", value.encode("latin-1"))]
    before = fields.copy()
    try:
        found = rewriter.map_request(request or head(), where, fields)
    except Refused as refused:
        return refused.status, f"{refused.fault}: {refused.reason}"
    finally:
        assert fields == before, "the argument does not change"
    assert found[0] == (b"X-A", b"1")
    assert found[1][0] == b"destination"
    assert len(found) == 2
    return found[1][1].decode("latin-1")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://hub.example/c1/b.txt", "http://hub.example/b.txt"),
        ("http://hub.example/c1/b.txt", "http://hub.example/b.txt"),
        ("HTTPS://HUB.example:443/c1/b.txt", "http://hub.example/b.txt"),
        ("/c1/b.txt", "http://hub.example/b.txt"),
        ("/c1", "http://hub.example/"),
        ("/c1/", "http://hub.example/"),
        ("/c1/a%20b/%E2%82%AC", "http://hub.example/a%20b/%E2%82%AC"),
        ("/c1/a%2Fb", "http://hub.example/a%2Fb"),
        ("/c1/a/./b", "http://hub.example/a/b"),
        ("/c1/x?q=/../", "http://hub.example/x?q=/../"),
        ("/c1/x?", "http://hub.example/x?"),
        ("/c1//x", "http://hub.example//x"),
    ],
)
def test_destination_becomes_the_targets_own(value: str, expected: str) -> None:
    assert sent(value) == expected


OUTSIDE, MALFORMED, DOTS = "outside the cluster", "must be an absolute http or https URL, or a path", "'.' or '..'"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("https://evil.example/c1/b", "another host"),
        ("https://hub.example:8443/c1/b", "another host"),
        ("https://hub.example.evil.example/c1/b", "another host"),
        ("https://hub.example./c1/b", "another host"),
        ("https://10.0.0.5:3000/b", "another host"),
        ("https://hub.example/c2/b", OUTSIDE),
        ("https://hub.example/c1x/b", OUTSIDE),
        ("https://hub.example/b", OUTSIDE),
        ("https://hub.example", OUTSIDE),
        ("/c2/b", OUTSIDE),
        ("/C1/b", OUTSIDE),
        ("/c%31/b", OUTSIDE),
        ("//hub.example/c1/b", MALFORMED),
        ("///c1/b", MALFORMED),
        ("ftp://hub.example/c1/b", MALFORMED),
        ("https://user@hub.example/c1/b", MALFORMED),
        ("https://hub.example\\/c1/b", MALFORMED),
        ("https://hub.example@evil.example/c1/b", MALFORMED),
        ("https://hub.example#/c1/b", MALFORMED),
        ("https:/c1/b", MALFORMED),
        ("https:///c1/b", MALFORMED),
        ("c1/b", MALFORMED),
        ("", MALFORMED),
        ("*", MALFORMED),
        ("/c1/../c2/b", DOTS),
        ("/c1/..", DOTS),
        ("/c1/%2e%2e/c2/b", DOTS),
        ("/c1/a/%2E./b", DOTS),
        ("/c1/..%2fb", DOTS),
        ("/c1/..\\b", DOTS),
        ("/c1/..;/b", DOTS),
        ("/c1/a\\b", "backslash"),
        ("/c1/a b", "visible ASCII"),
        ("/c1/a\tb", "visible ASCII"),
        ("/c1/é", "visible ASCII"),
        ("/c1/a#b", "without a fragment"),
        ("/c1/a\r\nX: y", "visible ASCII"),
        ("/c1/a\0", "visible ASCII"),
        ("/c1/" + "a" * MAX_VALUE_BYTES, "16384 bytes"),
    ],
)
def test_any_other_destination_is_refused_with_the_reason(value: str, reason: str) -> None:
    found = sent(value)
    assert isinstance(found, tuple)
    assert found[0] == 502
    assert reason in found[1]
    assert found[1].startswith("client: ")


@pytest.mark.parametrize(
    ("host", "scheme", "value", "is_right"),
    [
        ("hub:8443", "https", "https://hub:8443/b", True),
        ("hub:8443", "https", "https://hub/b", False),
        ("hub", "https", "https://hub:443/b", True),
        ("hub:443", "https", "https://hub/b", True),
        ("hub", "http", "http://hub:80/b", True),
        ("hub:80", "http", "http://hub/b", True),
        ("hub", "http", "https://hub/b", True),  # a base hub names no scheme
        ("hub", "http", "http://hub:443/b", False),
        ("hub:", "http", "http://hub/b", True),
        ("[::1]:8080", "http", "http://[::1]:8080/b", True),
        ("[::1]", "http", "http://[::1]:80/b", True),
        ("[::1]", "http", "http://[::2]/b", False),
        ("", "http", "http://hub/b", False),
        ("", "http", "http:///b", False),
    ],
)
def test_host_of_a_destination_is_the_users_with_or_without_a_default_port(
    host: str, scheme: str, value: str, is_right: bool
) -> None:
    found = sent(value, head("", host, scheme), target(host="target"))
    assert found == "http://10.0.0.5:3000/b" if is_right else isinstance(found, tuple)


def test_destination_names_the_host_that_the_target_gets() -> None:
    value = "https://hub.example/c1/dav/b"
    for where, above, expected in (
        (target(stripped="/dav"), "", "http://hub.example/b"),
        (target(stripped="/dav", host="target"), "", "http://10.0.0.5:3000/b"),
        (target(stripped="/dav", host="a.name:81"), "", "http://a.name:81/b"),
        (target("https://t/up", stripped="/dav", host="target"), "/up", "https://t/up/b"),
        (target("https://t/up", host="target"), "/up", "https://t/up/dav/b"),
    ):
        assert sent(value, where=where, above=above) == expected
    assert sent("/c1/dav/b", head(host=""), target(stripped="/dav")) == "http://10.0.0.5:3000/b"


def test_destination_of_an_app_keeps_the_public_path() -> None:
    where = Target("http://app", app=object(), preserve_host=True)
    assert sent("https://hub.example/c1/b", where=where, is_app=True) == "https://hub.example/c1/b"
    assert sent("/c1/b", where=where, is_app=True) == "https://hub.example/c1/b"
    assert isinstance(sent("/c2/b", where=where, is_app=True), tuple)


def test_a_second_destination_is_refused() -> None:
    with pytest.raises(Refused, match="more than one Destination"):
        Rewriter().map_request(head(), target(), [(b"Destination", b"/c1/a"), (b"DESTINATION", b"/c1/b")])


# Hostile values ---------------------------------------------------------------------------------------------------


def test_values_that_cannot_be_written_after_mapping_are_dropped() -> None:
    assert answered(b"Location", "/x\r\nSet-Cookie: a=b", head(), target()) is None
    assert answered(b"Location", "http://10.0.0.5:3000/\0", head("", BY_HOST), target()) is None
    assert answered(b"Set-Cookie", "a=b\x7f; Path=/", head(), target(stripped="/g")) is None
    assert answered(b"Location", "/" + "x" * MAX_VALUE_BYTES, head(), target()) is None
    longest = "/" + "x" * (MAX_VALUE_BYTES - len("/c1/"))
    assert answered(b"Location", longest, head(), target()) == "/c1" + longest
    elsewhere = "https://idp.example/" + "x" * MAX_VALUE_BYTES
    assert answered(b"Location", elsewhere, head(), target()) == elsewhere


PIECES = [
    *("/", "//", "\\", ".", "..", "%2e", "%2F", "%5c", "?", "#", ";", "=", "'", '"', ",", " ", "\t", "@", ":", "*"),
    *("http:", "https://", "WS://", "ftp://", "10.0.0.5:3000", "10.0.0.5", ":80", ":443", "hub.example", "[::1]"),
    *("c1", "c2", "/c1/", "/c1/g", "/sub", "g", "a", "é", "\r\n", "\0", "\x7f", "\xff", "5; url=", "Path=", "; path=/"),
    *("__Host-a=b", "url", "0.5", "user@", "evil.example"),
]
CONTROL = re.compile(rb"[\0-\x08\x0a-\x1f\x7f]")


def random_value(chance: random.Random) -> bytes:
    if chance.random() < 0.02:
        return b"/c1/" + b"a/../" * chance.randint(1, 4000)
    if chance.random() < 0.1:
        return chance.randbytes(chance.randint(0, 40))
    return "".join(chance.choices(PIECES, k=chance.randint(0, 10))).encode("latin-1")


def random_head(chance: random.Random) -> RequestHead:
    prefix = chance.choice(["", "/c1", "/outer/c1", "/c1/../x", "/\u20ac\r\n"])
    host = chance.choice(["", "hub.example", "hub.example:8443", "[::1]:80", "a b", "\u20ac\r\n", "10.0.0.5:3000"])
    return head(prefix, host, chance.choice(["http", "https", "\r\n"]))


@pytest.mark.parametrize("seed", range(8))
def test_random_responses_are_mapped_without_errors_controls_or_foreign_hosts(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(1500):
        stripped, above = chance.choice(["", "/g"]), chance.choice(["", "/sub"])
        where = target(f"http://10.0.0.5:3000{above}", host=chance.choice(["client", "target", "b"]), stripped=stripped)
        request = random_head(chance)
        rewriter = Rewriter(where.stripped, above.encode(), is_app=chance.random() < 0.2)
        name = chance.choice([b"Location", b"content-location", b"Refresh", b"Set-Cookie"])
        value = random_value(chance)
        once = rewriter.map_response(request, where, [(name, value)])
        if once == [(name, value)]:
            continue
        for _, mapped in once:
            assert CONTROL.search(mapped) is None
            assert len(mapped) <= MAX_VALUE_BYTES
            if name in (b"Location", b"content-location"):
                assert mapped[:1] == b"/"
                assert mapped[1:2] not in (b"/", b"\\")
        prefix = request.prefix + stripped
        if ".." not in prefix and (prefix or not above):
            assert rewriter.map_response(request, where, once) == once, (value, once, prefix, above)


def is_below(prefix: bytes, path: bytes) -> bool:
    return f"{path.decode()}/".startswith(f"{prefix.decode()}/")


@pytest.mark.parametrize("seed", range(8))
def test_random_destinations_are_refused_or_stay_below_the_route(seed: int) -> None:
    chance = random.Random(seed)
    mapped = 0
    statuses = set()
    for _ in range(1500):
        stripped, above = chance.choice([b"", b"/g"]), chance.choice([b"", b"/sub"])
        where = target("http://10.0.0.5:3000" + above.decode(), host=chance.choice(["client", "target"]))
        rewriter = Rewriter(stripped, above, functools.partial(is_below, stripped))
        request = random_head(chance)
        value = random_value(chance)
        if chance.random() < 0.8:
            value = chance.choice([stripped, stripped + b"/a/", b"/x"]) + value
            value = f"{chance.choice(['', 'https://hub.example'])}{request.prefix}".encode("latin-1", "replace") + value
        try:
            found = rewriter.map_request(request, where, [(b"Destination", value)])
        except Refused as refused:
            statuses.add(refused.status)
            continue
        mapped += 1
        ((_, url),) = found
        assert re.fullmatch(rb"http://[!-~]+", url)
        parts = urlsplit(url.decode("ascii"))
        assert parts.netloc in (request.host, "10.0.0.5:3000")
        assert parts.path.encode().startswith(above)
        assert not re.search(r"(^|/)\.\.(/|$)", parts.path)
    assert mapped > 30
    assert statuses == {502}
