"""An ASGI app behind uvicorn's own protocol classes, reached by httpx and aiohttp through memory: no socket."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import re
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import httpcore
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from fastpipe import Listener, open_streams
from fastpipe.aiohttp import PipeConnector
from fastpipe.asgi import serve, shut_down_connections
from fastpipe.httpx import PipeTransport


async def hello(request: Request) -> JSONResponse:
    return JSONResponse(
        {"hello": request.path_params["name"], "version": request.scope["http_version"], "state": request.state.ready}
    )


class Echo:
    """Sends the body back while it arrives."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})


async def collect(request: Request) -> StreamingResponse:
    """The same in two steps, because httpx reads a response only after it has sent the whole request."""
    body = await request.body()

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 70_000):
            yield body[start : start + 70_000]

    return StreamingResponse(parts())


async def slow(request: Request) -> PlainTextResponse:
    request.app.state.started.set()
    await request.app.state.go_on.wait()
    return PlainTextResponse("late")


async def converse(websocket: WebSocket) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            text = await websocket.receive_text()
            await websocket.send_text(text.upper())


def make_app() -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        app.state.events.append("startup")
        yield {"ready": True}
        app.state.events.append("shutdown")

    app = Starlette(
        routes=[
            Route("/hello/{name}", hello),
            Route("/echo", Echo(), methods=["POST"]),
            Route("/collect", collect, methods=["POST"]),
            Route("/slow", slow),
            WebSocketRoute("/ws", converse),
        ],
        lifespan=lifespan,
    )
    app.state.events = []
    app.state.started, app.state.go_on = asyncio.Event(), asyncio.Event()
    return app


def http_client(listener: Listener, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=PipeTransport(listener, **options), base_url="http://app")


@pytest.fixture(params=["httptools", "h11"])
def http(request: pytest.FixtureRequest) -> str:
    """uvicorn's protocol class."""
    return request.param


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nobody opens a socket."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "bind", refuse)


async def test_httpx_to_uvicorn_to_starlette_without_a_socket(http: str, no_sockets: None) -> None:
    app = make_app()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with serve(app, http=http) as listener, http_client(listener) as client:
        assert app.state.events == ["startup"]
        for name in ("a", "b", "c"):
            response = await client.get(f"/hello/{name}")
            assert response.status_code == 200
            assert response.json() == {"hello": name, "version": "1.1", "state": True}
            assert response.http_version == "HTTP/1.1"
            assert response.headers["server"] == "uvicorn"
            assert "GMT" in response.headers["date"]
        assert listener.open_connections == 1  # kept alive
        assert (await client.get("/nowhere")).status_code == 404
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert app.state.events == ["startup", "shutdown"]


async def test_bodies_stream_both_ways(http: str) -> None:
    blocks = [bytes([n]) * 100_000 for n in range(30)]

    async def body() -> AsyncIterator[bytes]:
        for block in blocks:
            yield block

    async with serve(make_app(), http=http) as listener, http_client(listener) as client:
        async with client.stream("POST", "/collect", content=body()) as response:
            got = b"".join([part async for part in response.aiter_bytes()])
        assert got == b"".join(blocks)


async def test_many_requests_at_once() -> None:
    async with serve(make_app()) as listener, http_client(listener, max_connections=8) as client:
        answers = await asyncio.gather(*(client.get(f"/hello/{n}") for n in range(50)))
    assert [answer.json()["hello"] for answer in answers] == [str(n) for n in range(50)]


async def test_the_client_sees_its_own_errors() -> None:
    app = make_app()
    async with serve(app) as listener, http_client(listener) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/slow", timeout=0.05)
        with pytest.raises(httpx.ConnectError, match="no TLS"):
            await client.get("https://app/hello/a")
        app.state.go_on.set()
    async with http_client(listener) as client:
        with pytest.raises(httpx.ConnectError, match="closed"):
            await client.get("/hello/a")

    async def hang_up(reader: Any, writer: Any) -> None:
        await reader.readline()
        writer.transport.abort()

    async with await Listener().start_server(hang_up) as server, http_client(server) as client:
        with pytest.raises(httpx.ReadError):
            await client.get("/")
    full = Listener(backlog=1)
    _, writer = await full.open_connection()
    async with http_client(full) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("/", timeout=0.05)
    writer.close()
    full.close()


async def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    async with serve(make_app(), timeout_keep_alive=0) as listener, http_client(listener) as client:
        assert (await client.get("/hello/a")).status_code == 200
        await asyncio.sleep(0.05)
        assert (await client.get("/hello/b")).status_code == 200


async def test_requests_in_flight_are_finished_at_shutdown(http: str) -> None:
    app = make_app()
    async with http_client_later() as late:
        async with serve(app, http=http) as listener:
            answer = asyncio.ensure_future(late(listener).get("/slow"))
            await app.state.started.wait()
            asyncio.get_running_loop().call_later(0.05, app.state.go_on.set)
        assert app.state.events == ["startup", "shutdown"]
        assert (await answer).text == "late"


async def test_requests_that_take_too_long_are_cancelled_at_shutdown() -> None:
    app = make_app()
    async with http_client_later() as late:
        async with serve(app, shutdown_timeout_s=0.05) as listener:
            answer = asyncio.ensure_future(late(listener).get("/slow"))
            await app.state.started.wait()
        assert app.state.events == ["startup", "shutdown"]
        with pytest.raises(httpx.TransportError):
            await answer


@contextlib.asynccontextmanager
async def http_client_later() -> AsyncIterator[Any]:
    """Clients that live longer than the server."""
    clients: list[httpx.AsyncClient] = []

    def make(listener: Listener) -> httpx.AsyncClient:
        clients.append(http_client(listener))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


async def test_a_failed_startup_says_so() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        raise LookupError("no database")
        yield

    listener = Listener()
    asking = asyncio.ensure_future(http_client(listener).get("/"))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="lifespan startup failed"):
        async with serve(Starlette(lifespan=lifespan), listener=listener):
            pytest.fail("served")
    with pytest.raises(httpx.TransportError):
        await asking
    app = make_app()
    with pytest.raises(RuntimeError, match="closed"):
        async with serve(app, listener=listener):
            pytest.fail("served")
    assert app.state.events == []


async def test_who_comes_early_is_served_after_the_startup() -> None:
    listener = Listener()
    async with http_client(listener) as client:
        asking = asyncio.ensure_future(client.get("/hello/early"))
        await asyncio.sleep(0)
        async with serve(make_app(), listener=listener):
            assert (await asking).json()["state"] is True


async def test_an_app_without_lifespan_and_a_listener_of_ones_own() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = f"{scope['server']} {scope['client']}".encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    own = Listener(("app.test", 80))
    async with serve(app, listener=own) as listener:
        assert listener is own
        reader, writer = await own.open_connection(local_address=("10.0.0.1", 5))
        writer.write(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"('app.test', 80) ('10.0.0.1', 5)\r\n0\r\n\r\n")
        writer.close()


# ---- aiohttp, and WebSockets


async def test_aiohttp_through_memory(http: str, no_sockets: None) -> None:
    app = make_app()
    async with (
        serve(app, http=http) as listener,
        aiohttp.ClientSession(connector=PipeConnector(listener)) as session,
    ):
        for name in ("a", "b"):
            async with session.get(f"http://app/hello/{name}") as response:
                assert (await response.json())["hello"] == name
        body = bytes(1_000_000)
        async with session.post("http://app/echo", data=body) as response:
            assert await response.read() == body
        assert listener.open_connections == 1
        with pytest.raises(aiohttp.ClientConnectorError, match="no TLS"):
            await session.get("https://app/")
    async with aiohttp.ClientSession(connector=PipeConnector(listener)) as session:
        with pytest.raises(aiohttp.ClientConnectorError, match="closed"):
            await session.get("http://app/")


async def test_websockets_through_uvicorn_on_a_pipe(http: str, no_sockets: None) -> None:
    async with (
        serve(make_app(), http=http) as listener,
        aiohttp.ClientSession(connector=PipeConnector(listener)) as session,
    ):
        async with session.ws_connect("http://app/ws") as ws:
            for text in ("one", "two", "x" * 200_000):
                await ws.send_str(text)
                assert await ws.receive_str(timeout=5) == text.upper()
        async with session.ws_connect("http://app/ws") as ws, session.ws_connect("http://app/ws") as other:
            await ws.send_str("a")
            await other.send_str("b")
            assert [await ws.receive_str(), await other.receive_str()] == ["A", "B"]


async def test_an_open_websocket_is_told_of_the_shutdown() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with serve(make_app()) as listener:
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=PipeConnector(listener)))
            ws = await session.ws_connect("http://app/ws")
            await ws.send_str("a")
            await ws.receive_str()
            closing = asyncio.ensure_future(ws.receive(timeout=5))
            await asyncio.sleep(0)
        message = await closing
        assert message.type is aiohttp.WSMsgType.CLOSE
        assert message.data == 1012


async def test_connections_can_be_told_to_end_while_the_app_is_served_on(http: str) -> None:
    app = make_app()
    async with serve(app, http=http) as listener:
        session = aiohttp.ClientSession(connector=PipeConnector(listener))
        async with session:
            ws = await session.ws_connect("http://app/ws")
            await ws.send_str("a")
            await ws.receive_str()
            held = asyncio.ensure_future(session.get("http://app/slow"))
            await app.state.started.wait()
            shut_down_connections(listener)
            assert (await ws.receive(timeout=5)).data == 1012
            app.state.go_on.set()
            assert await (await held).text() == "late"
            assert (await session.get("http://app/hello/later")).status == 200
    shut_down_connections(listener)  # no connection is left, so there is nothing to shut down


async def test_aiohttps_own_server_protocol_runs_on_a_pipe() -> None:
    from aiohttp import web

    async def handler(request: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{request.method} {request.path} {await request.text()}")

    server = web.Server(handler)
    async with await Listener().create_server(server) as listener:
        async with http_client(listener) as client:
            assert (await client.post("/x", content=b"body")).text == "POST /x body"
            assert (await client.get("/y")).text == "GET /y "
        await server.shutdown(1)


async def test_httpcore_alone_may_use_the_backend() -> None:
    from fastpipe.httpx import PipeBackend

    async with (
        serve(make_app()) as listener,
        httpcore.AsyncConnectionPool(network_backend=PipeBackend(listener)) as pool,
    ):
        response = await pool.request("GET", "http://app/hello/core")
        assert b"core" in response.content


async def test_an_accepted_end_is_a_server_by_hand() -> None:
    listener = Listener()
    async with http_client(listener) as client:
        asking = asyncio.ensure_future(client.get("/"))
        reader, writer = open_streams(await listener.accept())
        assert await reader.readline() == b"GET / HTTP/1.1\r\n"
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        assert (await asking).text == "hi"
        writer.close()
    listener.close()


def test_the_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = pathlib.Path(__file__).parents[2].joinpath("docs", "fastpipe.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(import asyncio, httpx\n.*?)```", text, re.DOTALL)
    exec(compile(example, "docs/fastpipe.md", "exec"), {})
    assert capsys.readouterr().out == "{'hello': 'world'}\n"
