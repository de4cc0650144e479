"""The scope of an app behind a proxy, field by field, and beside uvicorn's own `--root-path`."""

from __future__ import annotations

import copy
import ipaddress
import random
from typing import Any
from urllib.parse import unquote

import aiohttp
import httpx
import pytest

from fastpipe.aiohttp import PipeConnector
from fastpipe.asgi import serve
from fastpipe.asgi_scope import ForwardedScope, apply_forwarded
from fastpipe.httpx import PipeTransport

KINDS = ["http", "websocket"]

PREFIX, FOR, PROTO, HOST, PORT = (f"x-forwarded-{name}".encode() for name in ("prefix", "for", "proto", "host", "port"))


def scope_of(kind: str, *fields: tuple[bytes, bytes], **changes: Any) -> dict[str, Any]:
    """A scope as uvicorn makes it on a pipe, where neither end has an address."""
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "server": None,
        "client": None,
        "root_path": "",
        "path": "/a b/ä",
        "raw_path": b"/a%20b/%C3%A4",
        "query_string": b"q=1",
        "headers": [(b"accept", b"*/*"), *fields],
        "state": {"ready": True},
        "extensions": {"http.response.trailers": {}},
        **changes,
    }


def applied(kind: str, *fields: tuple[bytes, bytes], **changes: Any) -> dict[str, Any]:
    """The scope's changes only."""
    before = scope_of(kind, *fields, **changes)
    after = copy.deepcopy(before)
    apply_forwarded(after)
    assert after.keys() == before.keys()
    return {key: value for key, value in after.items() if value != before[key]}


@pytest.mark.parametrize(("kind", "schemes"), [("http", ("http", "https")), ("websocket", ("ws", "wss"))], ids=str)
def test_the_scope_is_the_users_and_nothing_else_changes(kind: str, schemes: tuple[str, str]) -> None:
    fields = [
        (b"host", b"hub.example:8443"),
        (FOR, b"203.0.113.9, 10.0.0.1"),
        (PROTO, b"https"),
        (HOST, b"hub.example:8443"),
        (PORT, b"8443"),
        (PREFIX, b"/c1/grafana"),
    ]
    assert applied(kind, *fields) == {
        "root_path": "/c1/grafana",
        "path": "/c1/grafana/a b/ä",
        "raw_path": b"/c1/grafana/a%20b/%C3%A4",
        "client": ("203.0.113.9", 0),
        "scheme": schemes[1],
        "server": ("hub.example", 8443),
    }
    assert applied(kind) == {}
    assert applied(kind, (PROTO, b"http"), scheme=schemes[1]) == {"scheme": schemes[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_decoded_in_root_path_and_raw_in_raw_path(kind: str) -> None:
    changes = applied(kind, (PREFIX, b"/caf%C3%A9/a%20b"))
    assert changes["root_path"] == "/café/a b"
    assert changes["path"] == "/café/a b/a b/ä"
    assert changes["raw_path"] == b"/caf%C3%A9/a%20b/a%20b/%C3%A4"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_comes_before_the_servers_own_root_path(kind: str) -> None:
    changes = applied(kind, (PREFIX, b"/c1/"), root_path="/x", path="/x/y", raw_path=b"/x/y")
    assert changes == {"root_path": "/c1/x", "path": "/c1/x/y", "raw_path": b"/c1/x/y"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_scope_without_raw_path_gets_none(kind: str) -> None:
    assert applied(kind, (PREFIX, b"/c1"), raw_path=None) == {"root_path": "/c1", "path": "/c1/a b/ä"}
    scope = scope_of(kind, (PREFIX, b"/c1"))
    del scope["raw_path"], scope["root_path"]
    apply_forwarded(scope)
    assert "raw_path" not in scope
    assert scope["root_path"] == "/c1"


BAD_PREFIXES = [
    b"",
    b"/",
    b"c1",
    b"//evil.example",
    b"/c1//x",
    b"/c1/..",
    b"/../c1",
    b"/c1/.",
    b"/%2e%2e/c1",
    b"/.%2E",
    b"/..;x=1",
    b"/;x",
    b"/c1?x=1",
    b"/c1#x",
    b"/c1%3Fx",
    b"/c1%23x",
    b"/c1%2Fx",
    b"/c1\\x",
    b"/c1%5cx",
    b"/c1%",
    b"/c1%2",
    b"/c1%zz",
    b"/c1%00",
    b"/c1%0d%0aSet-Cookie:%20x",
    b"/c1%7f",
    b"/c1%C2%85",
    b"/c1%FF",
    b"/caf\xc3\xa9",
    b"/c1 x",
    b"/c1\tx",
    b"/c1\x00",
    b"/<script>",
    b'/"',
    b"/a, /b",
    b"https://evil.example/c1",
    b"/" + b"a" * 2048,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", BAD_PREFIXES, ids=lambda value: repr(value[:40]))
def test_a_malformed_prefix_is_ignored_alone(kind: str, prefix: bytes) -> None:
    assert applied(kind, (PREFIX, prefix), (FOR, b"203.0.113.9")) == {"client": ("203.0.113.9", 0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["*", ""])
def test_a_target_that_is_no_path_gets_no_prefix(kind: str, path: str) -> None:
    assert applied(kind, (PREFIX, b"/c1"), path=path, raw_path=path.encode()) == {}


@pytest.mark.parametrize(
    ("value", "client"),
    [
        (b"203.0.113.9", ("203.0.113.9", 0)),
        (b"203.0.113.9:5000", ("203.0.113.9", 5000)),
        (b"  203.0.113.9\t, x", ("203.0.113.9", 0)),
        (b"2001:db8::1", ("2001:db8::1", 0)),
        (b"[2001:db8::1]", ("2001:db8::1", 0)),
        (b"[2001:db8::1]:443", ("2001:db8::1", 443)),
        (b"::ffff:192.0.2.1", ("::ffff:192.0.2.1", 0)),
        (b"fe80::1%eth0", ("fe80::1%eth0", 0)),
        (b"", None),
        (b",203.0.113.9", None),
        (b"unknown, 203.0.113.9", None),
        (b"_hidden", None),
        (b"a.name", None),
        (b"203.0.113", None),
        (b"203.0.113.256", None),
        (b"203.0.113.09", None),
        (b"203.0.113.9:", None),
        (b"203.0.113.9:0", None),
        (b"203.0.113.9:65536", None),
        (b"203.0.113.9:-1", None),
        (b"203.0.113.9:5e3", None),
        (b"203.0.113.9%eth0", None),
        (b"[203.0.113.9]", None),
        (b"[2001:db8::1]443", None),
        (b"[2001:db8::1]:99999", None),
        (b"[2001:db8::1", None),
        (b"2001:db8::1]", None),
        (b"2001:db8:::1", None),
        (b"fe80::1%", None),
        (b"fe80::1%eth0\n", None),
        (b"fe80::1%" + b"e" * 17, None),
        (b'"203.0.113.9"', None),
        ("２0３.0.113.9".encode(), None),
        (b"1" * 3000, None),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_client_is_the_first_address(kind: str, value: bytes, client: tuple[str, int] | None) -> None:
    assert applied(kind, (FOR, value)) == ({} if client is None else {"client": client})
    assert applied(kind, (FOR, value), (FOR, b"192.0.2.99")) == ({} if client is None else {"client": client})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [b"", b"wss", b"ftp", b"https://", b"http s", b"\xff", b"javascript", b",https"])
def test_a_scheme_that_is_neither_http_nor_https_is_ignored(kind: str, value: bytes) -> None:
    assert applied(kind, (PROTO, value)) == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [b"https", b"HTTPS", b"https, http"])
def test_the_scheme_is_the_first_of_a_list(kind: str, value: bytes) -> None:
    assert applied(kind, (PROTO, value))["scheme"] == ("https" if kind == "http" else "wss")


@pytest.mark.parametrize(
    ("fields", "server"),
    [
        ({HOST: b"hub.example"}, ("hub.example", 80)),
        ({HOST: b"hub.example", PROTO: b"https"}, ("hub.example", 443)),
        ({HOST: b"hub.example:8080"}, ("hub.example", 8080)),
        ({HOST: b"hub.example:"}, ("hub.example", 80)),
        ({HOST: b"hub.example", PORT: b"8080"}, ("hub.example", 8080)),
        ({HOST: b"hub.example:8443", PORT: b"8080"}, ("hub.example", 8443)),
        ({HOST: b"hub.example, inner", PORT: b"8080, 1"}, ("hub.example", 8080)),
        ({HOST: b"[2001:db8::1]:8443"}, ("2001:db8::1", 8443)),
        ({b"host": b"hub.example:8080"}, ("hub.example", 8080)),
        ({b"host": b"inner", HOST: b"hub.example"}, ("hub.example", 80)),
        ({b"host": b"inner", HOST: b"hub example"}, ("inner", 80)),
        ({b"host": b"inner", HOST: b"hub.example:70000"}, ("inner", 80)),
        ({b"host": b"inner", HOST: b"/c1"}, ("inner", 80)),
        ({b"host": b"inner", HOST: b"user@hub.example"}, ("inner", 80)),
        ({b"host": b"inner", HOST: b"[not:an:address]"}, ("inner", 80)),
        ({b"host": b"inner", HOST: b"2001:db8::1"}, ("inner", 80)),
        ({b"host": b"inner", HOST: b"h" * 256}, ("inner", 80)),
        ({b"host": b"inner", HOST: b"\xfcber.example"}, ("inner", 80)),
        ({HOST: b"hub.example", PORT: b"0"}, ("hub.example", 80)),
        ({HOST: b"hub.example", PORT: b"65536"}, ("hub.example", 80)),
        ({HOST: b"hub.example", PORT: b"-1"}, ("hub.example", 80)),
        ({HOST: b"hub.example", PORT: b"443x"}, ("hub.example", 80)),
        ({HOST: b"hub.example", PORT: "４４３".encode()}, ("hub.example", 80)),
        ({HOST: b"hub.example", PORT: b"9" * 5000}, ("hub.example", 80)),
        ({PORT: b"8080"}, None),
        ({b"host": b"", HOST: b""}, None),
        ({b"host": b"bad host"}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_server_is_the_host_that_the_user_asked(
    kind: str, fields: dict[bytes, bytes], server: tuple[str, int] | None
) -> None:
    assert applied(kind, *fields.items()).get("server") == server


PIECES = [
    *BAD_PREFIXES,
    *[b"/c1", b"/c%C3%A4"] * 9,
    *(b"..", b"%2e", b"%2f", b"%C3%A4", b"%C3", b";", b",", b" ", b"\t", b"\r\n", b"\x00", b"\xff", b"@", b"?"),
    *(b"203.0.113.9", b"::1", b"[", b"]", b":", b"65535", b"65536", b"0", b"%eth0", b"a.name", b"https", b"http"),
]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_fields_hold_the_scope_stays_consistent(seed: int) -> None:
    dice = random.Random(seed)
    names = [PREFIX, FOR, PROTO, HOST, PORT, b"host"]
    seen = 0
    for _ in range(400):
        kind = dice.choice(KINDS)
        fields = []
        for name in dice.choices(names, k=dice.randrange(8)):
            value = b"".join(dice.choices(PIECES, k=dice.randrange(4)))
            if dice.random() < 0.2:
                value = bytes(dice.randrange(256) for _ in range(dice.randrange(12)))
            fields.append((name, value))
        scope = scope_of(kind, *fields)
        before = copy.deepcopy(scope)
        apply_forwarded(scope)
        root = scope["root_path"]
        seen += root != ""
        assert root == "" or root.startswith("/")
        assert not root.startswith("//")
        assert not {"", ".", ".."} & set(root.split("/")[1:])
        assert root.isprintable()
        assert not set(root) & set("?#\\")
        assert scope["path"] == root + before["path"]
        assert unquote(scope["raw_path"].decode("ascii")) == scope["path"]
        assert scope["raw_path"].endswith(before["raw_path"])
        assert scope["scheme"] in (("http", "https") if kind == "http" else ("ws", "wss"))
        if scope["client"] is not None:
            address, port = scope["client"]
            assert ipaddress.ip_address(address)
            assert 0 <= port <= 65535
        if scope["server"] is not None:
            host, port = scope["server"]
            assert host.isascii()
            assert host.isprintable()
            assert not set(host) & set(" /@[]?#,")
            assert 1 <= port <= 65535
        changed = {"root_path", "path", "raw_path", "scheme", "client", "server"}
        assert {key: scope[key] for key in scope.keys() - changed} == {
            key: before[key] for key in before.keys() - changed
        }
    assert seen


async def test_lifespan_and_unknown_scopes_pass_untouched() -> None:
    called: list[Any] = []

    async def app(*arguments: Any) -> None:
        called.append(arguments)

    for kind in ("lifespan", "of.tomorrow"):
        scope: dict[str, Any] = {"type": kind, "headers": [(PREFIX, b"/c1")], "path": "/", "state": {}}
        before = copy.deepcopy(scope)
        receive, send = object(), object()
        await ForwardedScope(app)(scope, receive, send)
        assert called.pop() == (scope, receive, send)
        assert scope == before


class Scopes:
    """An app that keeps its scopes, and accepts and closes WebSockets."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.kept.append(dict(scope))
        await receive()
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1000})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})


FIELDS = {
    "Host": "hub.example:8443",
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/c1",
}


async def one_of(kind: str, app: Scopes, **settings: Any) -> dict[str, Any]:
    """The scope of one request with the fields above."""
    async with serve(app, **settings) as listener:
        if kind == "http":
            transport = PipeTransport(listener)
            async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                assert (await client.get("/a%20b/%C3%A4?q=1", headers=FIELDS)).status_code == 200
        else:
            async with aiohttp.ClientSession(connector=PipeConnector(listener)) as session:
                url = "http://app/a%20b/%C3%A4?q=1"
                async with session.ws_connect(url, headers=FIELDS) as socket:
                    assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
    return app.kept.pop()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("http", ["httptools", "h11"])
async def test_the_paths_are_those_of_uvicorns_root_path(kind: str, http: str) -> None:
    app = Scopes()
    paths = ("root_path", "path", "raw_path", "query_string", "type", "http_version", "extensions", "state")
    theirs = await one_of(kind, app, root_path="/c1", http=http)
    ours = await one_of(kind, app, trust_forwarded_fields=True, http=http)
    assert ours["path"] == "/c1/a b/ä"
    assert {key: ours.get(key) for key in paths} == {key: theirs.get(key) for key in paths}
    assert (ours["client"], ours["server"]) == (("203.0.113.9", 0), ("hub.example", 8443))
    assert ours["scheme"] == ("https" if kind == "http" else "wss")
    assert {name.lower().encode() for name in FIELDS} <= {name for name, _ in ours["headers"]}


@pytest.mark.parametrize("kind", KINDS)
async def test_by_default_no_field_is_believed(kind: str) -> None:
    scope = await one_of(kind, Scopes())
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("", "/a b/ä", b"/a%20b/%C3%A4")
    assert (scope["client"], scope["server"]) == (None, ("", None))  # as on a Unix socket
    assert scope["scheme"] == ("http" if kind == "http" else "ws")
    assert (b"x-forwarded-prefix", b"/c1") in scope["headers"]


async def test_the_access_log_names_the_users_address_and_path(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="uvicorn.access")
    await one_of("http", Scopes(), trust_forwarded_fields=True)
    assert [each.getMessage() for each in caplog.records if each.name == "uvicorn.access"] == [
        '203.0.113.9:0 - "GET /c1/a%20b/%C3%A4?q=1 HTTP/1.1" 200'
    ]
