"""Routers: wire.md's table of paths and design.md's rules for static routes, row by row and with random targets."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.errors import ConfigError, Redirected, Refused
from agent.messages import RequestHead, Target
from agent.policy.router import AppRouter, KubernetesRouter, Router, StaticRouter
from agent.syntax import Route

SERVICES = "/c1/api/v1/namespaces/ns/services"


def anything(namespace: bytes, service: bytes, port: int) -> bool:
    return True


def head(target: str | bytes, method: str = "GET") -> RequestHead:
    raw = target if isinstance(target, bytes) else target.encode("latin-1")
    return RequestHead(method, raw, "1.1", [(b"Host", b"hub")], conn_id=1, cluster="c1")


def outcome(router: Router, target: str | bytes) -> str | int:
    """The URL that a target is sent to, or the status it is refused with."""
    try:
        found = router.route(head(target))
    except Refused as refused:
        return refused.status
    assert isinstance(found, Target)
    return found.url


# Rules of every router -------------------------------------------------------------------------------------------

NOT_OURS = [
    ("/c2/a", 421),
    ("/c1x/a", 421),
    ("/c/a", 421),
    ("/c2", 421),
    ("/c2?c1", 421),
    ("/c11", 421),
    ("/", 400),
    ("//c1/a", 400),
    ("/?c1", 400),
    ("/C1/a", 400),
    ("/c%31/a", 400),
    ("/c1%2fa", 400),
    ("/c1./a", 400),
    ("/-c1/a", 400),
    ("/c1-/a", 400),
    ("/c1.d/a", 400),
    ("/c1_/a", 400),
    (f"/{'x' * 64}/a", 400),
    (f"/{'x' * 63}/a", 421),
    ("", 400),
    ("*", 400),
    ("c1/a", 400),
    ("http://c1/a", 400),
    ("/c1/a#b", 400),
    ("/c1/a?b#c", 400),
    ("/c1/a b", 400),
    ("/c1/a?b c", 400),
    ("/c1/a\nb", 400),
    ("/c1\n", 400),
    ("/c1/a\x00", 400),
    ("/c1/\x7f", 400),
    ("/c1/é", 400),
    ("/c1/a\tb", 400),
]
DOTS = [
    "/c1/.",
    "/c1/..",
    "/c1/../c1/a",
    "/c1/a/../b",
    "/c1/a/./b",
    "/c1/a/..",
    "/../c1/a",
    "/./c1/a",
    "/c1/..?q",
    "/c1/%2e",
    "/c1/%2E%2e/a",
    "/c1/.%2e/a",
    "/c1/%2e./a",
    "/c1/a%2f..%2fb",
    "/c1/a%2F%2e%2E/b",
    "/c1/a/..%2fb",
    "/c1/a\\..\\b",
    "/c1/a%5c..%5Cb",
    "/c1/a/..;x=y/b",
    "/c1/a/%2e%2e%3bx/b",
    "/..",
    "/.",
]


def routers() -> list[Router]:
    return [KubernetesRouter("c1", allows=anything), StaticRouter([("/", "http://127.0.0.1:9000")], "c1")]


@pytest.mark.parametrize("router", routers(), ids=lambda router: type(router).__name__)
@pytest.mark.parametrize(("target", "status"), NOT_OURS)
def test_every_router_refuses_what_is_malformed_or_another_clusters(router: Router, target: str, status: int) -> None:
    assert outcome(router, target) == status


@pytest.mark.parametrize("router", routers(), ids=lambda router: type(router).__name__)
@pytest.mark.parametrize("target", DOTS)
def test_every_router_refuses_dot_segments_in_any_spelling(router: Router, target: str) -> None:
    assert outcome(router, target) == 400


@pytest.mark.parametrize(
    "target",
    [
        "/c1/a.b",
        "/c1/...",
        "/c1/.well-known/x",
        "/c1/a..",
        "/c1/..a",
        "/c1/%252e%252e",
        "/c1/a?../..",
        "/c1/a?x=/../",
        "/c1/%2ea",
    ],
)
def test_dots_that_are_no_dot_segments_pass_as_they_are(target: str) -> None:
    for router in routers():
        assert str(outcome(router, target)).endswith(target.removeprefix("/c1"))


# Kubernetes -------------------------------------------------------------------------------------------------------

API = "https://kubernetes.default.svc"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        # the API server
        ("/c1", f"{API}/"),
        ("/c1/", f"{API}/"),
        ("/c1?q", f"{API}/?q"),
        ("/c1/version", f"{API}/version"),
        ("/c1/api/v1/pods?watch=1&labelSelector=a%3Db", f"{API}/api/v1/pods?watch=1&labelSelector=a%3Db"),
        ("/c1//api/v1", f"{API}//api/v1"),
        ("/c1/a%2Fb", f"{API}/a%2Fb"),
        ("/c1/a/", f"{API}/a/"),
        ("/c1/c1/a", f"{API}/c1/a"),
        ("/c1/api/v1/namespaces/ns/services/https:web:443", f"{API}/api/v1/namespaces/ns/services/https:web:443"),
        (f"{SERVICES}/http:web:80/proxy/x", f"{API}/api/v1/namespaces/ns/services/http:web:80/proxy/x"),
        (f"{SERVICES}/web/proxy-services/x", f"{API}/api/v1/namespaces/ns/services/web/proxy-services/x"),
        ("/c1/api/v1/namespaces/ns/pods/web/proxy-service/", f"{API}/api/v1/namespaces/ns/pods/web/proxy-service/"),
        ("/c1//api/v1/namespaces/ns/services/x/proxy-service", f"{API}//api/v1/namespaces/ns/services/x/proxy-service"),
        # services
        (f"{SERVICES}/https:web:8443/proxy-service/a/b?c=d", "https://web.ns.svc:8443/a/b?c=d"),
        (f"{SERVICES}/https:web:8443/proxy-service", "https://web.ns.svc:8443/"),
        (f"{SERVICES}/https:web:8443/proxy-service/", "https://web.ns.svc:8443/"),
        (f"{SERVICES}/https:web:8443/proxy-service?q", "https://web.ns.svc:8443/?q"),
        (f"{SERVICES}/https:web:8443/proxy-service//a", "https://web.ns.svc:8443//a"),
        (f"{SERVICES}/https:web:8443/proxy-service/a%2Fb/%20", "https://web.ns.svc:8443/a%2Fb/%20"),
        (f"{SERVICES}/https:web:8443/proxy-service/proxy-service/x", "https://web.ns.svc:8443/proxy-service/x"),
        (f"{SERVICES}/https:web/proxy-service/a", "https://web.ns.svc:443/a"),
        (f"{SERVICES}/https:web:/proxy-service/a", "https://web.ns.svc:443/a"),
        (f"{SERVICES}/https:web:1/proxy-service/", "https://web.ns.svc:1/"),
        (f"{SERVICES}/https:web:65535/proxy-service/", "https://web.ns.svc:65535/"),
        (f"{SERVICES}/https:https:443/proxy-service/", "https://https.ns.svc:443/"),
        ("/c1/api/v1/namespaces/default/services/https:web:443/proxy-service/", "https://web.default.svc:443/"),
        ("/c1/api/v1/namespaces/ns/services/https:kubernetes:443/proxy-service/", "https://kubernetes.ns.svc:443/"),
        # not https
        (f"{SERVICES}/http:web:80/proxy-service/", 403),
        (f"{SERVICES}/http:web/proxy-service/", 403),
        (f"{SERVICES}/http:web:named/proxy-service/", 403),
        (f"{SERVICES}/web:443/proxy-service/", 403),
        (f"{SERVICES}/web/proxy-service/", 403),
        (f"{SERVICES}/web:/proxy-service/", 403),
        (f"{SERVICES}/https/proxy-service/", 403),
        # the API server as a service
        ("/c1/api/v1/namespaces/default/services/https:kubernetes:443/proxy-service/api", 403),
        ("/c1/api/v1/namespaces/default/services/https:kubernetes/proxy-service/api", 403),
        ("/c1/api/v1/namespaces/default/services/https:kubernetes:/proxy-service", 403),
        ("/c1/api/v1/namespaces/default/services/https:kubernetes:0443/proxy-service", 403),
        ("/c1/api/v1/namespaces/default/services/https:kubernetes:6443/proxy-service", 403),
        # malformed
        (f"{SERVICES}/https:web:0/proxy-service/", 400),
        (f"{SERVICES}/https:web:65536/proxy-service/", 400),
        (f"{SERVICES}/https:web:named/proxy-service/", 400),
        (f"{SERVICES}/https:web:-1/proxy-service/", 400),
        (f"{SERVICES}/https:web:+1/proxy-service/", 400),
        (f"{SERVICES}/https:web:000443/proxy-service/", 400),
        (f"{SERVICES}/https:web:4%343/proxy-service/", 400),
        (f"{SERVICES}/https:web:443:1/proxy-service/", 400),
        (f"{SERVICES}/https::443/proxy-service/", 400),
        (f"{SERVICES}/https:/proxy-service/", 400),
        (f"{SERVICES}//proxy-service/", 400),
        (f"{SERVICES}/ftp:web:443/proxy-service/", 400),
        (f"{SERVICES}/HTTPS:web:443/proxy-service/", 400),
        (f"{SERVICES}/https%3Aweb%3A443/proxy-service/", 400),
        (f"{SERVICES}/https:Web:443/proxy-service/", 400),
        (f"{SERVICES}/https:we%62:443/proxy-service/", 400),
        (f"{SERVICES}/https:web.other:443/proxy-service/", 400),
        (f"{SERVICES}/https:web@evil:443/proxy-service/", 400),
        (f"{SERVICES}/https:web%2f:443/proxy-service/", 400),
        (f"{SERVICES}/https:{'x' * 64}:443/proxy-service/", 400),
        (f"{SERVICES}/https:-web:443/proxy-service/", 400),
        ("/c1/api/v1/namespaces//services/https:web:443/proxy-service/", 400),
        ("/c1/api/v1/namespaces/NS/services/https:web:443/proxy-service/", 400),
        ("/c1/api/v1/namespaces/n%73/services/https:web:443/proxy-service/", 400),
        ("/c1/api/v1/namespaces/a.b/services/https:web:443/proxy-service/", 400),
    ],
)
def test_kubernetes_paths_lead_where_wire_md_says(target: str, expected: str | int) -> None:
    assert outcome(KubernetesRouter("c1", allows=anything), target) == expected


def test_service_hosts_never_spell_the_api_server() -> None:
    router = KubernetesRouter("c1", allows=anything)
    api = router.route(head("/c1/api"))
    for service in ("https:kubernetes", "https:kubernetes:", "https:kubernetes:443", "https:kubernetes:00443"):
        found = outcome(router, f"/c1/api/v1/namespaces/default/services/{service}/proxy-service/")
        assert found == 403, f"{service} leads to {api.host}"


# Static routes ----------------------------------------------------------------------------------------------------

ROUTES = [
    ("/", "http://root:1"),
    ("/api", "http://api:2"),
    ("/api/v1/", "http://v1:3/base/"),
    ("/deep", "https://deep/a/b//"),
    ("/app=1", "http://[::1]:5/x"),
]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "http://root:1/"),
        ("/", "http://root:1/"),
        ("?q", "http://root:1/?q"),
        ("/?q", "http://root:1/?q"),
        ("/a?b", "http://root:1/a?b"),
        ("/apix", "http://root:1/apix"),
        ("/api", "http://api:2/"),
        ("/api?q=/x", "http://api:2/?q=/x"),
        ("/api/", "http://api:2/"),
        ("/api//", "http://api:2//"),
        ("/api/x", "http://api:2/x"),
        ("/api%2Fx", "http://root:1/api%2Fx"),
        ("/%61pi", "http://root:1/%61pi"),
        ("/API", "http://root:1/API"),
        ("/api/v1", "http://v1:3/base"),
        ("/api/v1/", "http://v1:3/base/"),
        ("/api/v1?q", "http://v1:3/base?q"),
        ("/api/v1/x/", "http://v1:3/base/x/"),
        ("/api/v10", "http://api:2/v10"),
        ("//api/v1", "http://root:1//api/v1"),
        ("//evil.example/x", "http://root:1//evil.example/x"),
        ("/@evil.example/", "http://root:1/@evil.example/"),
        ("/:80", "http://root:1/:80"),
        ("/deep", "https://deep/a/b"),
        ("/deep/c", "https://deep/a/b/c"),
        ("/app=1/z", "http://[::1]:5/x/z"),
    ],
)
def test_longest_prefix_of_whole_segments_wins(path: str, expected: str) -> None:
    for routes in (ROUTES, list(reversed(ROUTES))):
        wanted = Target(expected)
        found = StaticRouter(routes, "c1").route(head("/c1" + path, "POST"))
        assert (found.url, found.path, found.authority) == (wanted.url, wanted.path, wanted.authority)
        if path.startswith("/"):
            assert StaticRouter(routes, None).route(head(path, "POST")).url == wanted.url


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("cluster", "public", "path", "location"),
    [
        ("c1", "/c1", "/c1/files", "/c1/files/"),
        ("c1", "/c1", "/c1/files?a=/b&c=//d", "/c1/files/?a=/b&c=//d"),
        ("c1", "", "/c1/files", "/files/"),
        ("c1", "/outer/c1", "/c1/files/deep", "/outer/c1/files/deep/"),
        (None, "", "/files?", "/files/?"),
    ],
)
def test_a_prefix_without_its_slash_is_redirected(
    method: str, cluster: str | None, public: str, path: str, location: str
) -> None:
    """The page's relative links would leave the route."""
    router = StaticRouter([("/files", "http://h"), ("/files/deep/", "http://d/")], cluster)
    for _ in range(2):
        asked = head(path, method)
        asked.prefix = public
        with pytest.raises(Redirected) as caught:
            router.route(asked)
        assert caught.value.location == location.encode()
        assert router.route(head(path, "POST")).path.startswith(b"/")  # and it is not kept for the next GET
    assert router.route(head(path.replace("?", "/?") if "?" in path else path + "/")).path[:1] == b"/"


def test_a_websocket_at_a_prefix_is_not_redirected() -> None:
    asked = head("/c1/ws")
    asked.headers.append((b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="))
    assert StaticRouter([("/ws", "http://h")], "c1").route(asked).url == "http://h/"


@pytest.mark.parametrize(
    ("route", "path", "expected"),
    [
        (Route("/", "http://h"), "/c1", "http://h/"),
        (Route("/health", "http://h/health"), "/c1/health", "http://h/health"),
        (Route("/a", "http://h", strip_prefix=False), "/c1/a", "http://h/a"),
        (Route("/a", "http://h", rewrite=False), "/c1/a", "http://h/"),
        (Route("//a", "http://h"), "/c1//a", "http://h/"),
    ],
)
def test_other_paths_are_not_redirected(route: Route, path: str, expected: str) -> None:
    """Neither one resource, nor a path that the target sees, nor a route whose URLs must not be corrected."""
    router = StaticRouter([route], "c1")
    assert [router.route(head(path)).url for _ in range(2)] == [expected] * 2


@pytest.mark.parametrize(
    ("routes", "target", "status"),
    [
        ([("/api", "http://h")], "/c1", 404),
        ([("/api", "http://h")], "/c1/apix", 404),
        ([("/api", "http://h")], "/c1/ap", 404),
        ([("/api", "http://h")], "/c1?/api", 404),
        ([], "/c1/a", 404),
    ],
)
def test_a_path_without_a_route_is_404(routes: list[tuple[str, str]], target: str, status: int) -> None:
    assert outcome(StaticRouter(routes, "c1"), target) == status


def test_without_a_cluster_the_first_segment_is_the_paths_own() -> None:
    router = StaticRouter([("/", "http://h")], None)
    assert outcome(router, "/C2%20/a") == "http://h/C2%20/a"
    assert outcome(router, "/a/../b") == 400
    assert outcome(router, "?q") == 400
    assert router.route(head("/")).path == b"/"


@pytest.mark.parametrize(
    ("route", "path", "expected"),
    [
        (Route("/a", "http://h"), "/a/x?q", "http://h/x?q"),
        (Route("/a", "http://h", strip_prefix=False), "/a/x?q", "http://h/a/x?q"),
        (Route("/a", "http://h", strip_prefix=False), "/a", "http://h/a"),
        (Route("/a", "http://h/sub/"), "/a/x", "http://h/sub/x"),
        (Route("/a", "http://h/sub", strip_prefix=False), "/a//x/", "http://h/sub/a//x/"),
        (Route("/", "http://h/sub", strip_prefix=False), "", "http://h/sub/"),
    ],
)
def test_strip_prefix_decides_whether_the_target_sees_the_prefix(route: Route, path: str, expected: str) -> None:
    target = StaticRouter([route], "c1").route(head("/c1" + path))
    assert target.url == expected
    assert target.stripped == (route.prefix.rstrip("/").encode() if route.strip_prefix else b"")


@pytest.mark.parametrize(
    ("route", "preserve_host", "host_name"),
    [
        (("/", "http://h:1"), True, ""),
        (("/", "https://h:1"), False, ""),
        (Route("/", "https://h:1", "client"), True, ""),
        (Route("/", "http://h:1", "target"), False, ""),
        (Route("/", "http://h:1", "a.name:80"), False, "a.name:80"),
    ],
)
def test_host_of_a_route_is_a_property_of_its_targets(
    route: Route | tuple[str, str], preserve_host: bool, host_name: str
) -> None:
    for router in (StaticRouter([route], "c1"), StaticRouter([route], None)):
        target = router.route(head("/c1/x"))
        assert (target.preserve_host, target.host_name, target.host, target.port) == (preserve_host, host_name, "h", 1)


@pytest.mark.parametrize("all_routes", [False, True])
def test_http2_of_a_route_is_a_property_of_its_targets(all_routes: bool) -> None:
    routes = [
        Route("/a", "https://h"),
        Route("/b", "https://h", http2=True),
        Route("/c", "https://h", http2=False),
        Route("/d", "h2c://h"),
        Route("/e", "http://h"),
    ]
    router = StaticRouter(routes, None, http2=all_routes)
    found = [router.route(head(f"{route.prefix}/")).http2 for route in routes]
    assert found == [all_routes, True, False, True, False]


def test_rewrite_of_a_route_decides_about_its_maps() -> None:
    router = StaticRouter([("/a", "http://h"), Route("/b", "http://h", rewrite=False)], "c1")
    mapped, plain = router.route(head("/c1/a/x")), router.route(head("/c1/b/x"))
    assert mapped.map_request is not None
    assert mapped.map_response is not None
    assert (plain.map_request, plain.map_response) == (None, None)
    assert plain.stripped == b"/b"
    assert router.route(head("/c1/a/x")) is mapped, "the decision is kept with its maps"


def test_an_app_sees_the_clients_host_and_strips_nothing() -> None:
    target = AppRouter(object(), "c1").route(head("/c1/x"))
    assert (target.preserve_host, target.host_name, target.stripped) == (True, "", b"")
    assert target.map_request is not None
    assert target.map_response is not None


@pytest.mark.parametrize(
    ("path", "destination", "expected"),
    [
        ("/dav/a", "/c1/dav/b", "http://h:1/b"),
        ("/dav/a", "/c1/dav", "http://h:1/"),
        ("/dav/a", "/c1/dav/deep", "http://h:1/deep"),
        ("/dav/a", "/c1/dav/api/x", 502),  # the longer prefix is another route
        ("/dav/a", "/c1/davx/b", 502),
        ("/dav/a", "/c1/b", 502),
        ("/b", "/c1/dav/b", 502),
        ("/b", "/c1/c", "http://root:2/c"),
        ("/dav/api/a", "/c1/dav/api/b", "http://api:3/v1/b"),
        ("/keep/a", "/c1/keep/b", "http://keep:4/x/keep/b"),
    ],
)
def test_destination_leads_to_the_route_of_its_request_or_nowhere(
    path: str, destination: str, expected: str | int
) -> None:
    router = StaticRouter(
        [
            ("/", "http://root:2"),
            ("/dav", "http://h:1"),
            ("/dav/api", "http://api:3/v1"),
            Route("/keep", "http://keep:4/x", strip_prefix=False),
        ],
        "c1",
    )
    request = head("/c1" + path)
    request.headers.clear()  # without a Host the target gets its own
    request.prefix = "/c1"
    target = router.route(request)
    assert target.map_request is not None
    fields = [(b"Destination", destination.encode())]
    if expected == 502:
        with pytest.raises(Refused, match="another route") as caught:
            target.map_request(request, target, fields)
        assert caught.value.status == 502
    else:
        assert target.map_request(request, target, fields) == [(b"Destination", str(expected).encode())]


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("/a", "http://h/?q"),
        ("/a", "http://h?"),
        ("/a", "http://h/#f"),
        ("/a", "http://h#"),
        ("/a", "http://user@h/"),
        ("/a", "http://user:secret@h/"),
        ("/a", "http://@h/"),
        ("/a", "ftp://h"),
        ("/a", "h:80"),
        ("/a", "//h"),
        ("/a", "http://"),
        ("/a", "http:///x"),
        ("/a", "http://:80"),
        ("/a", "http://h:"),
        ("/a", "http://h:0"),
        ("/a", "http://h:65536"),
        ("/a", "http://h:x"),
        ("/a", "http://[::1"),
        ("/a", "http://[fe80::1%25eth0]"),
        ("/a", "http://::1/"),
        ("/a", "http://h/../x"),
        ("/a", "http://h/%2e%2E/x"),
        ("/a", "http://h\\x"),
        ("/a", "http://h /x"),
        ("/a", "http://hé/"),
        ("/a", "http://h%20/"),
        ("/a", ""),
        ("a", "http://h"),
        ("", "http://h"),
        ("/a?b", "http://h"),
        ("/a#b", "http://h"),
        ("/a/../b", "http://h"),
        ("/%2e", "http://h"),
        ("/é", "http://h"),
        ("/a b", "http://h"),
    ],
)
def test_a_wrong_route_is_a_config_error_that_tells_no_secret(prefix: str, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StaticRouter([(prefix, url)], "c1")
    assert caught.value.field == "route"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("again", ["/a", "/a/", "/a//"])
def test_a_prefix_given_twice_is_a_config_error(again: str) -> None:
    with pytest.raises(ConfigError, match="once only"):
        StaticRouter([("/a", "http://h"), (again, "http://g")], "c1")


@pytest.mark.parametrize("name", ["", "C1", "a.b", "a_b", "-a", "a-", "a" * 64, "a\n", "é", "a/b"])
def test_a_routers_cluster_is_one_label(name: str) -> None:
    for make in (KubernetesRouter, lambda cluster: StaticRouter([], cluster)):
        with pytest.raises(ConfigError, match="cluster_name"):
            make(name)


# Random targets ---------------------------------------------------------------------------------------------------

pieces = st.sampled_from(
    [
        b"/",
        b"/",
        b"c1",
        b"api/v1/namespaces",
        b"services",
        b"proxy-service",
        b"https:web:443",
        b"https",
        b":",
        b".",
        b"..",
        b"%2e",
        b"%2F",
        b"%5C",
        b";",
        b"?",
        b"#",
        b"@",
        b"\\",
        b"ns",
        b"default",
        b"kubernetes",
        b"http:",
        b"[",
        b"]",
        b"%",
    ]
)
targets = st.one_of(
    st.binary(max_size=60),
    st.lists(pieces, max_size=24).map(b"".join).map(lambda tail: b"/c1/" + tail),
    st.lists(pieces, max_size=6).map(b"".join).map(lambda tail: b"/c1/api/v1/namespaces/default/services/" + tail),
    st.lists(st.one_of(pieces, st.binary(max_size=4)), max_size=12).map(b"/".join).map(lambda tail: b"/c1/" + tail),
)


def has_dot_segment_by_decoding(path: bytes) -> bool:
    decoded = unquote_to_bytes(path)
    return any(segment.partition(b";")[0] in (b".", b"..") for segment in re.split(rb"[/\\]", decoded))


@settings(deadline=None)  # the machine may be busy
@given(target=targets)
@example(target=b"/c1/?[")
@example(target=b"/c1//[::1")
def test_a_router_refuses_or_gives_a_target_that_is_plainly_right(target: bytes) -> None:
    static = StaticRouter([("/", "http://127.0.0.1:9/base"), ("/api", "https://h")], "c1")
    for router in (KubernetesRouter("c1", allows=anything), static):
        if outcome(router, target) in (400, 403, 404, 421):
            continue
        found = router.route(head(target))
        path, mark, rest = target.partition(b"?")
        query = mark + rest
        assert path.split(b"/")[1] == b"c1"
        assert found.host in ("kubernetes.default.svc", "127.0.0.1", "h") or re.fullmatch(
            r"[a-z0-9-]+\.[a-z0-9-]+\.svc", found.host
        )
        assert not has_dot_segment_by_decoding(found.path.partition(b"?")[0])
        assert found.path.startswith(b"/")
        assert found.path.endswith(query)
        if isinstance(router, KubernetesRouter):
            is_service = b"/proxy-service" in path and found.host != "kubernetes.default.svc"
            assert found.scheme == "https"
            assert is_service or found.path == (path[3:] or b"/") + query
