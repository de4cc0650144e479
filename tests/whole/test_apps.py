"""ASGI applications behind a hub, with no port opened: HTTP, WebSockets, and the lifespan around them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent import Agent, AgentConfig, AgentError, ConfigError, RequestHead, Target
from agent.proxy.apps import Apps

from ..limits import scaled
from .whole_cluster import Cluster
from .whole_peers import until

BIG_BYTES = 1_000_000


class Served:
    """A Starlette application that records its own events."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.closed: list[int] = []  # with what its WebSockets were ended by their clients
        self.go_on = asyncio.Semaphore(0)  # each step of /steps takes one
        self.app = Starlette(
            routes=[
                Route("/hello/{name}", self.hello),
                Route("/length", self.length, methods=["POST"]),
                Route("/big", self.big),
                Route("/scope", self.scope),
                Route("/slash/", self.scope, name="slash"),
                Route("/steps", self.steps),
                WebSocketRoute("/ws", self.echo),
            ],
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.events.append("startup")
        yield
        self.events.append("shutdown")

    async def hello(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"hello {request.path_params['name']} at {request.headers['host'].split(':')[0]}")

    async def length(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def scope(self, request: Request) -> JSONResponse:
        named = {name: request.scope[name] for name in ("root_path", "path", "client", "server")}
        return JSONResponse({"url": str(request.url), "link": str(request.url_for("hello", name="x")), **named})

    async def big(self, request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(BIG_BYTES // 10_000):
                yield b"x" * 10_000

        return StreamingResponse(pieces())

    async def steps(self, request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            number = 0
            try:
                while True:
                    yield b"data: %d\n\n" % number
                    await self.go_on.acquire()
                    number += 1
            finally:
                self.events.append("steps ended")

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def echo(self, websocket: WebSocket) -> None:
        await websocket.accept(subprotocol=(websocket.scope["subprotocols"] or [None])[0])
        try:
            while (text := await websocket.receive_text()) != "close":
                await websocket.send_text("echo " + text)
            await websocket.close(4001, "as asked")
        except WebSocketDisconnect as end:
            self.closed.append(end.code)


async def test_an_app_is_served_behind_a_hub(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    served = Served()
    caplog.set_level(logging.INFO)
    async with cluster.hub() as whole, aiohttp.ClientSession() as client:
        await whole.start_agent(app=served.app)
        assert served.events == ["startup"]
        async with client.get(f"{whole.url}/hello/world?token=of-a-user") as answer:
            assert await answer.text() == "hello world at 127.0.0.1"
        async with client.post(f"{whole.url}/length", data=b"y" * BIG_BYTES) as answer:
            assert await answer.text() == str(BIG_BYTES)
        async with client.get(f"{whole.url}/big") as answer:
            assert len(await answer.read()) == BIG_BYTES
        async with client.get(f"{whole.url}/nothing/here") as answer:
            assert answer.status == 404
        async with client.ws_connect(f"{whole.url}/ws") as socket:
            await socket.send_str("one")
            assert await socket.receive_str() == "echo one"
        await whole.agent.stop()
    ours = [each for each in caplog.records if not each.name.startswith("aiohttp")]  # the test's own client
    assert "uvicorn.error" in {each.name for each in ours}  # the log has the app's failures
    assert not [each for each in ours if "of-a-user" in each.getMessage()]
    assert served.events == ["startup", "shutdown"]


async def test_an_app_sees_its_user_and_its_public_prefix(cluster: Cluster) -> None:
    served = Served()
    async with cluster.hub() as whole, aiohttp.ClientSession() as client:
        await whole.start_agent(app=served.app)
        forged = {"X-Forwarded-For": "192.0.2.66", "X-Forwarded-Prefix": "/evil", "X-Forwarded-Proto": "https"}
        async with client.get(f"{whole.url}/scope", headers=forged) as answer:
            scope = await answer.json()
        prefix = f"/{whole.cluster}"
        assert scope == {
            "url": f"{whole.url}/scope",
            "link": f"{whole.url}/hello/x",
            "root_path": prefix,
            "path": f"{prefix}/scope",
            "client": ["127.0.0.1", 0] if whole.kind == "ours" else None,  # a base hub does not name its user
            "server": ["127.0.0.1", whole.http_port],
        }
        async with client.get(f"{whole.url}/slash", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (307, f"/{whole.cluster}/slash/")


async def test_an_app_streams_step_by_step_and_hears_that_its_reader_has_gone(cluster: Cluster) -> None:
    served = Served()
    async with cluster.hub() as whole, aiohttp.ClientSession() as client, asyncio.timeout(scaled(20)):
        await whole.start_agent(app=served.app)
        answer = await client.get(f"{whole.url}/steps")
        for number in range(3):
            assert await answer.content.readuntil(b"\n\n") == b"data: %d\n\n" % number
            served.go_on.release()
        answer.close()
        while "steps ended" not in served.events:
            served.go_on.release()  # a base hub finds out by the next piece
            await asyncio.sleep(0.002)


async def test_an_apps_websockets_end_as_either_side_says(cluster: Cluster) -> None:
    served = Served()
    async with cluster.hub() as whole, aiohttp.ClientSession() as client, asyncio.timeout(scaled(20)):
        await whole.start_agent(app=served.app)
        async with client.ws_connect(f"{whole.url}/ws", protocols=["one", "two"]) as socket:
            assert socket.protocol == "one"
            message = "x" * BIG_BYTES
            await socket.send_str(message)
            assert await socket.receive_str() == "echo " + message
            await socket.send_str("close")
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 4001
        assert served.closed == []
        async with client.ws_connect(f"{whole.url}/ws") as socket:
            await socket.close(code=4002)
        await until(lambda: served.closed == [4002])
        vanishing = await client.ws_connect(f"{whole.url}/ws")
        await vanishing.send_str("one")
        assert await vanishing.receive_str() == "echo one"
        if whole.kind == "ours":  # a base hub doesn't report that a silent client left
            connection = vanishing._response.connection
            assert connection is not None
            assert connection.transport is not None
            connection.transport.abort()
            await until(lambda: len(served.closed) == 2)  # 1005 or 1006, as its server has it
        await vanishing.close()


async def test_an_apps_websockets_hear_of_a_drain_and_its_requests_finish(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.spoke.agent.QUIET_S", 0.5)
    served = Served()
    async with cluster.hub() as whole, aiohttp.ClientSession() as client, asyncio.timeout(scaled(30)):
        agent = await whole.start_agent(app=served.app, drain_grace_s=25.0)
        async with client.get(f"{whole.url}/hello/idle") as idle:
            assert idle.status == 200
        answer = await client.get(f"{whole.url}/steps", headers={"Connection": "close"})
        assert await answer.content.readuntil(b"\n\n") == b"data: 0\n\n"
        socket = await client.ws_connect(f"{whole.url}/ws")
        await socket.send_str("one")
        assert await socket.receive_str() == "echo one"
        stopping = asyncio.ensure_future(agent.stop(timeout_s=20))
        message = await socket.receive()
        assert message.type is aiohttp.WSMsgType.CLOSE, message
        assert socket.close_code == 1012
        assert not stopping.done()
        served.go_on.release()
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"  # requests in flight continue
        assert served.closed == [1012]
        answer.close()
        while "steps ended" not in served.events:
            served.go_on.release()
            await asyncio.sleep(0.002)
        await stopping
    assert served.events == ["startup", "steps ended", "shutdown"]


@pytest.mark.parametrize(("hub_kind", "mode"), [("ours", "memory")], indirect=True)
async def test_a_users_router_may_send_each_request_to_another_app(cluster: Cluster) -> None:
    one, two = Served(), Served()

    class ByName:
        async def route(self, request: RequestHead) -> Target:
            return Target(app=one.app) if request.target.startswith(b"/hello/one") else Target(app=two.app)

    async with cluster.hub() as whole:
        config = AgentConfig(**{**whole.agent_config, "cluster_name": whole.cluster})
        ready = asyncio.Event()
        running = asyncio.ensure_future(Agent(config, router=ByName(), on_ready=ready.set).run())
        await ready.wait()
        url = f"http://127.0.0.1:{whole.http_port}/{whole.cluster}/hello/x"
        async with aiohttp.ClientSession() as client, client.get(url) as answer:
            assert await answer.text() == "hello x at 127.0.0.1"  # the app's paths have no cluster's name
        assert (one.events, two.events) == ([], ["startup"])  # served from its first use
        running.cancel()
        await asyncio.wait([running])
    assert two.events == ["startup", "shutdown"]


@pytest.mark.parametrize(("hub_kind", "mode"), [("ours", "memory")], indirect=True)
async def test_an_app_that_does_not_start_ends_the_agent(cluster: Cluster) -> None:
    class Lifespan:
        async def __call__(self, scope, receive, send):  # type: ignore[no-untyped-def]
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no database"})

    async with cluster.hub() as whole:
        agent = Agent(AgentConfig(**whole.agent_config, app=Lifespan()))
        with pytest.raises(AgentError, match="did not start"):
            await agent.run()


@pytest.mark.parametrize(("hub_kind", "mode"), [("ours", "memory")], indirect=True)
async def test_an_app_that_does_not_come_up_keeps_no_agent_from_stopping(cluster: Cluster) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        started.set()
        await go_on.wait()

    async with cluster.hub() as whole:
        running = asyncio.ensure_future(Agent(AgentConfig(**whole.agent_config, app=app)).run())
        await started.wait()
        running.cancel()
        await asyncio.wait([running], timeout=5)
        assert running.cancelled()
    go_on.set()


async def test_a_second_cancellation_cuts_every_app_short() -> None:
    ended: list[str] = []

    def slow(name: str):  # type: ignore[no-untyped-def]
        async def app(scope, receive, send):  # type: ignore[no-untyped-def]
            assert scope["type"] == "lifespan"
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            ended.append(name)
            await go_on.wait()

        return app

    go_on = asyncio.Event()
    apps = Apps()
    for name in ("one", "two"):
        await apps.start(slow(name))
    closing = asyncio.ensure_future(apps.close())
    await until(lambda: sorted(ended) == ["one", "two"])  # side by side: neither waits for the other
    closing.cancel()
    await asyncio.wait([closing], timeout=5)
    assert closing.cancelled()
    go_on.set()


def test_an_app_that_cannot_be_imported_is_an_error_of_configuration() -> None:
    with pytest.raises(ConfigError, match=r"no\.such"):
        Agent(AgentConfig(hub_address="127.0.0.1:1", cluster_name="c1", insecure=True, app="no.such:app"))
