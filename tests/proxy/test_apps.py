"""Real applications in this process behind the agent's proxy, by path and by host: their links, users and sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from agent.errors import ConfigError
from agent.messages import RequestHead, Target
from agent.policy.router import AppRouter
from agent.proxy import HubOrigin
from agent.proxy.apps import Apps

TIMEOUT_S = 30.0
USER = "203.0.113.9"
HOST = "hub.example:8443"


@pytest.fixture(params=["pipe"])
def carrier(request: pytest.FixtureRequest) -> str:
    """Scopes do not depend on the carrier."""
    return request.param


@pytest.fixture(params=["/c1", "", "/outer/c1", "/caf%C3%A9"], ids=["path", "host", "outer", "encoded"])
def prefix(request: pytest.FixtureRequest) -> str:
    """The public prefix: by path, by host, and below a proxy in front of the hub."""
    return request.param


class Site:
    """One app of the cluster c1, and its user's browser."""

    def __init__(self, running: Any, prefix: str) -> None:
        self._running = running
        self.prefix = prefix
        self.cookies: dict[str, str] = {}

    @property
    def plain(self) -> str:
        """The prefix as scopes have it."""
        return unquote(self.prefix)

    @property
    def plain_root(self) -> str:
        return self.origin + self.plain

    @property
    def origin(self) -> str:
        return f"https://{HOST}"

    @property
    def root(self) -> str:
        """The URL of the app's `/`, without the slash."""
        return self.origin + self.prefix

    def head(self, method: str, path: str, more: dict[str, str]) -> bytes:
        """The head of a request as the hub sends it to the agent."""
        fields = {
            "Host": HOST,
            "X-Forwarded-For": USER,
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": HOST,
            "X-Forwarded-Port": "8443",
        }
        if self.prefix:
            fields["X-Forwarded-Prefix"] = self.prefix
        if self.cookies:
            fields["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        lines = [f"{method} /c1{path} HTTP/1.1", *(f"{name}: {value}" for name, value in {**fields, **more}.items())]
        return "\r\n".join([*lines, "", ""]).encode()

    async def ask(self, path: str, *, method: str = "GET", body: bytes = b"", **more: str) -> Any:
        """One request to a path of the app. `more` are fields, with `_` for `-`."""
        fields = {name.replace("_", "-"): value for name, value in more.items()}
        if body:
            fields |= {"Content-Length": str(len(body)), "Content-Type": "application/x-www-form-urlencoded"}
        client = await self._running.open()
        client.send(self.head(method, path, fields) + body)
        answer = await client.answer(method)
        for name, value in answer.fields:
            if name == b"set-cookie":
                key, _, rest = value.decode().partition("=")
                self.cookies[key] = rest.partition(";")[0]
        client.writer.close()
        return answer

    async def follow(self, answer: Any) -> Any:
        """Go where the browser would go. Fails if that is outside the app."""
        location = answer.headers[b"location"].decode()
        if location.startswith("/"):
            location = self.origin + location
        assert unquote(location).startswith(self.plain_root + "/"), location
        return await self.ask(unquote(location)[len(self.plain_root) :])

    async def socket_message(self, path: str) -> Any:
        """The first text message of a WebSocket, which is JSON."""
        client = await self._running.open()
        key = base64.b64encode(b"0123456789abcdef").decode()
        fields = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": key}
        client.send(self.head("GET", path, fields | {"Sec-WebSocket-Version": "13"}))
        assert b" 101 " in await client.read_until(b"\r\n\r\n")
        frame = b""
        while len(frame) < 2 or len(frame) < 2 + frame[1] + (2 if frame[1] == 126 else 0):
            frame += await client.read()
        assert frame[0] == 0x81  # one final text frame, not masked
        if frame[1] == 126:
            return json.loads(frame[4 : 4 + int.from_bytes(frame[2:4], "big")])
        return json.loads(frame[2 : 2 + frame[1]])


def shown(answer: Any) -> Any:
    """The JSON of a response. Frameworks differ in what they percent-encode, so nothing is."""
    assert answer.status == 200
    return json.loads(unquote(answer.body.decode()))


Serve = Callable[[Any], contextlib.AbstractAsyncContextManager[Site]]


@pytest.fixture
def serve(stack: Any, prefix: str) -> Serve:
    """`async with serve(app) as site`: the app behind the agent's proxy, as `--app` has it."""

    @contextlib.asynccontextmanager
    async def serving(app: Any) -> AsyncIterator[Site]:
        apps = Apps()
        await apps.start(app)
        route: Callable[[RequestHead], Target | Awaitable[Target]] = apps.routed(AppRouter(app, "c1").route)
        async with stack(route, cluster="c1") as running:
            running.client_origin = HubOrigin(is_trusted=True)
            yield Site(running, prefix)
            apps.start_draining(lambda connect: None)
        async with asyncio.timeout(TIMEOUT_S):
            await apps.close()

    return serving


async def links(request: Request) -> JSONResponse:
    return JSONResponse(
        {
            "url": str(request.url),
            "base": str(request.base_url),
            "item": str(request.url_for("item", name="a b")),
            "inner": str(request.url_for("sub:inner")),
            "static": str(request.url_for("static", path="/a.txt")),
            "path": request.scope["path"],
            "raw_path": request.scope["raw_path"].decode(),
            "root_path": request.scope["root_path"],
            "client": request.scope["client"],
            "server": request.scope["server"],
            "forwarded": sorted(name for name in request.headers if name.startswith("x-forwarded-")),
        }
    )


async def inner(request: Request) -> JSONResponse:
    return JSONResponse({"here": str(request.url_for("sub:inner")), "item": str(request.url_for("item", name="x"))})


async def leave(request: Request) -> RedirectResponse:
    return RedirectResponse(request.url_for("links"))


async def greet(websocket: WebSocket) -> None:
    await websocket.accept()
    scope = websocket.scope
    await websocket.send_json(
        [str(websocket.url), str(websocket.url_for("item", name="x")), scope["client"][0], list(scope["server"])]
    )
    await websocket.receive()


def starlette(directory: Path) -> Starlette:
    (directory / "a.txt").write_text("static")
    return Starlette(
        routes=[
            Route("/links", links),
            Route("/leave", leave),
            Route("/item/{name}", links, name="item"),
            Route("/slash/", links, name="slash"),
            Mount("/sub", routes=[Route("/inner", inner, name="inner"), WebSocketRoute("/ws", greet)], name="sub"),
            Mount("/static", StaticFiles(directory=directory), name="static"),
        ]
    )


async def test_a_starlette_apps_links_are_public(serve: Serve, tmp_path: Path) -> None:
    async with serve(starlette(tmp_path)) as site:
        root, plain = site.plain_root, site.plain
        raw_path = json.loads((await site.ask("/links")).body)["raw_path"]
        assert raw_path == f"{site.prefix}/links"
        scope = shown(await site.ask("/links?q=1"))
        assert scope == {
            "url": f"{root}/links?q=1",
            "base": f"{root}/",
            "item": f"{root}/item/a b",
            "inner": f"{root}/sub/inner",
            "static": f"{root}/static/a.txt",
            "path": f"{plain}/links",
            "raw_path": f"{plain}/links",
            "root_path": plain,
            "client": [USER, 0],
            "server": ["hub.example", 8443],
            "forwarded": sorted(
                ["x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto"]
                + (["x-forwarded-prefix"] if site.prefix else [])
            ),
        }
        assert shown(await site.ask("/sub/inner")) == {
            "here": f"{root}/sub/inner",
            "item": f"{root}/item/x",
        }
        assert (await site.ask("/static/a.txt")).body == b"static"
        assert (await site.ask("/nothing")).status == 404


async def test_a_starlette_apps_redirects_stay_below_the_prefix(serve: Serve, tmp_path: Path) -> None:
    async with serve(starlette(tmp_path)) as site:
        for path in ("/slash", "/leave"):
            moved = await site.ask(path)
            assert moved.status == 307
            assert (await site.follow(moved)).status == 200


async def test_an_apps_websocket_knows_its_user_and_its_url(serve: Serve, tmp_path: Path) -> None:
    async with serve(starlette(tmp_path)) as site:
        secure = site.plain_root.replace("https:", "wss:")
        assert await site.socket_message("/sub/ws") == [
            f"{secure}/sub/ws",
            f"{site.plain_root}/item/x",
            USER,
            ["hub.example", 8443],
        ]


async def test_a_routers_app_gets_the_path_behind_the_clusters_name(stack: Any, prefix: str, tmp_path: Path) -> None:
    app = starlette(tmp_path)
    apps = Apps()

    def route(head: RequestHead) -> Target:
        return Target(app=app, stripped=b"/cut")

    async with stack(apps.routed(route), cluster="c1") as running:
        running.client_origin = HubOrigin(is_trusted=True)
        site = Site(running, prefix)
        for path in ("/links", "/links?q=1"):
            assert shown(await site.ask(path))["url"] == f"{site.plain_root}/cut{path}"
        assert (await site.ask("/c1/links")).status == 404
        assert (await site.ask("")).status == 404
    await apps.close()


SPOOFED = {
    "X-Forwarded-For": "192.0.2.66",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Prefix": "/evil",
}


async def test_a_routers_app_without_uvicorn_is_502(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a request waited for ever."""
    monkeypatch.setitem(sys.modules, "fastpipe.asgi", None)
    apps = Apps()
    with pytest.raises(ConfigError, match=r"pip install 'fastpipe-agent\[asgi\]'"):
        await apps.start(object())
    async with stack(apps.routed(lambda head: Target(app=head)), cluster="c1") as running:
        client = await running.open()
        client.send(b"GET /c1/ HTTP/1.1\r\nHost: hub.example\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, b"uvicorn is not installed" in answer.body) == (502, True)
    await apps.close()


@pytest.mark.parametrize("spell", [str, str.lower, str.upper, lambda name: name.replace("-", "_")])
async def test_a_hub_that_is_not_believed_names_no_user(
    stack: Any, spell: Callable[[str], str], tmp_path: Path
) -> None:
    app = starlette(tmp_path)
    apps = Apps()
    async with stack(apps.routed(AppRouter(app, "c1").route), cluster="c1") as running:
        running.client_origin = HubOrigin(prefix="/c1")
        client = await running.open()
        spoofed = "".join(f"{spell(name)}: {value}\r\n" for name, value in SPOOFED.items())
        client.send(f"GET /c1/links HTTP/1.1\r\nHost: hub.example\r\n{spoofed}\r\n".encode())
        scope = shown(await client.answer())
        assert scope["url"] == "http://hub.example/c1/links"
        assert (scope["root_path"], scope["client"], scope["server"]) == ("/c1", None, ["hub.example", 80])
        assert scope["forwarded"] == ["x-forwarded-prefix"]
    await apps.close()


@pytest.mark.parametrize(
    ("target", "cluster", "path"),
    [
        (b"/c1/x?y", "c1", b"/x?y"),
        (b"/c1", "c1", b"/"),
        (b"/c1?y", "c1", b"/?y"),
        (b"/c12/x", "c1", b"/c12/x"),
        (b"/x/c1", "c1", b"/x/c1"),
        (b"//c1/x", "c1", b"//c1/x"),
        (b"/c1//x", "c1", b"//x"),
        (b"/c1/x", "", b"/c1/x"),
        (b"/x", "", b"/x"),
    ],
)
def test_what_a_target_holds_beside_its_app_stays(target: bytes, cluster: str, path: bytes) -> None:
    def change(head: RequestHead, target: Target, fields: Any) -> Any:
        return fields

    given = Target(app=object(), stripped=b"/cut", host_name="a.name", map_request=change, map_response=change)
    made = Apps().routed(lambda head: given)(RequestHead("GET", target, "1.1", [], cluster=cluster))
    assert isinstance(made, Target)
    assert made.path == path
    assert made.app is None
    assert made.connect is not None
    assert (made.stripped, made.host_name, made.map_request, made.map_response) == (b"/cut", "a.name", change, change)
    assert made.preserve_host


async def test_a_fastapi_apps_docs_page_and_slashes(serve: Serve) -> None:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()

    async def items(q: int = 0) -> dict[str, int]:
        return {"q": q}

    async def who(request: Any) -> dict[str, str]:
        return {"who": request.client.host, "items": str(request.url_for("items"))}

    async def ws(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_json(str(websocket.url))
        await websocket.receive()

    # The names of a module that may be missing: not in annotations that FastAPI reads from text.
    who.__annotations__["request"], ws.__annotations__["websocket"] = fastapi.Request, fastapi.WebSocket
    app.get("/items/")(items)
    app.get("/who")(who)
    app.websocket("/ws")(ws)
    async with serve(app) as site:
        plain = site.plain
        for page in ("/docs", "/redoc"):
            text = (await site.ask(page)).body.decode()
            assert f"{plain}/openapi.json" in text
        assert f"{plain}/docs/oauth2-redirect" in (await site.ask("/docs")).body.decode()
        schema = json.loads((await site.ask("/openapi.json")).body)
        assert schema.get("servers") == ([{"url": plain}] if plain else None)
        assert shown(await site.ask("/who")) == {"who": USER, "items": f"{site.plain_root}/items/"}
        moved = await site.ask("/items?q=3")
        assert moved.status == 307
        assert json.loads((await site.follow(moved)).body) == {"q": 3}
        assert await site.socket_message("/ws") == site.plain_root.replace("https:", "wss:") + "/ws"


@pytest.fixture(scope="session")
def django_app() -> Any:
    """A Django project of one file: links, a form with CSRF, a session in a cookie."""
    django = pytest.importorskip("django")
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["hub.example"],
        ROOT_URLCONF="of_the_test",
        SECRET_KEY="of the test",
        LOGGING_CONFIG=None,
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
        STATIC_URL="static/",
        MIDDLEWARE=[
            "django.middleware.security.SecurityMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
        ],
        SECURE_SSL_REDIRECT=True,  # a loop of redirects where the scheme is not the user's
        CSRF_COOKIE_SECURE=True,
    )
    django.setup(set_prefix=False)
    import sys
    import types

    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse, JsonResponse
    from django.middleware.csrf import get_token
    from django.shortcuts import redirect
    from django.templatetags.static import static
    from django.urls import path, reverse

    def page(request: HttpRequest) -> HttpResponse:
        return JsonResponse(
            {
                "page": reverse("page"),
                "absolute": request.build_absolute_uri(),
                "who": request.META["REMOTE_ADDR"],
                "static": static("a.css"),
                "user": request.session.get("user"),
                "secure": request.is_secure(),
            }
        )

    def form(request: HttpRequest) -> HttpResponse:
        if request.method == "POST":
            request.session["user"] = request.POST["user"]
            return redirect("page")
        return HttpResponse(get_token(request))

    urls = types.ModuleType("of_the_test")
    urls.urlpatterns = [path("page/", page, name="page"), path("form/", form)]  # type: ignore[attr-defined]
    sys.modules["of_the_test"] = urls
    return get_asgi_application()


def forget_static_url() -> None:
    """Django keeps STATIC_URL with the prefix of the first request: one public prefix for each process."""
    from django.conf import settings

    settings.__dict__.pop("STATIC_URL", None)


async def test_a_django_apps_links_slashes_and_form(serve: Serve, django_app: Any) -> None:
    forget_static_url()
    async with serve(django_app) as site:
        answer = json.loads((await site.ask("/page/?q=1")).body)
        assert answer == {
            "page": f"{site.prefix}/page/",
            "absolute": f"{site.root}/page/?q=1",
            "who": USER,
            "static": f"{site.prefix}/static/a.css",
            "user": None,
            "secure": True,
        }
        moved = await site.ask("/page")
        assert moved.status == 301
        assert (await site.follow(moved)).status == 200
        token = (await site.ask("/form/")).body
        body = b"csrfmiddlewaretoken=" + token + b"&user=ann"
        assert (await site.ask("/form/", method="POST", body=body, Origin="https://evil.example")).status == 403
        posted = await site.ask("/form/", method="POST", body=body, Origin=site.origin)
        assert posted.status == 302
        assert json.loads((await site.follow(posted)).body)["user"] == "ann"


async def test_a_flask_apps_links_session_and_redirects(serve: Serve) -> None:
    flask = pytest.importorskip("flask")
    a2wsgi = pytest.importorskip("a2wsgi")
    app = flask.Flask("of_the_test")
    app.secret_key = "of the test"

    @app.get("/page/")
    def page() -> Any:
        return {
            "page": flask.url_for("page"),
            "absolute": flask.url_for("page", _external=True),
            "static": flask.url_for("static", filename="a.css"),
            "who": flask.request.remote_addr,
            "user": flask.session.get("user"),
            "secure": flask.request.is_secure,
        }

    @app.post("/form")
    def form() -> Any:
        flask.session["user"] = flask.request.form["user"]
        return flask.redirect(flask.url_for("page"))

    async with serve(a2wsgi.WSGIMiddleware(app)) as site:
        assert shown(await site.ask("/page/")) == {
            "page": f"{site.plain}/page/",
            "absolute": f"{site.plain_root}/page/",
            "static": f"{site.plain}/static/a.css",
            "who": USER,
            "user": None,
            "secure": True,
        }
        moved = await site.ask("/page")
        assert moved.status == 308
        assert (await site.follow(moved)).status == 200
        posted = await site.ask("/form", method="POST", body=b"user=ann")
        assert posted.status == 302
        assert json.loads((await site.follow(posted)).body)["user"] == "ann"
