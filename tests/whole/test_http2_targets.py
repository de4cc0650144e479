"""HTTP/2 targets behind a hub: both bodies, WebSockets by extended CONNECT, and a changed route."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import Iterator

import aiohttp
import pytest

from .whole_cluster import Cluster
from .whole_peers import free_port

pytestmark = pytest.mark.loops("uvloop")

APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": scope["http_version"] + " " + message["text"]})
    headers = dict(scope["headers"])
    head = [(b"x-version", scope["http_version"].encode()), (b"x-prefix", headers[b"x-forwarded-prefix"])]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    while True:
        message = await receive()
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": True})
        if not message.get("more_body"):
            break
    await send({"type": "http.response.body"})
"""


@pytest.fixture(scope="module")
def hypercorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An app that echoes bodies and WebSocket messages, by HTTP/1.1 and HTTP/2."""
    root = tmp_path_factory.mktemp("hypercorn")
    (root / "peer_app.py").write_text(APP)
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-W", "ignore", "-m", "hypercorn", "--bind", address, "peer_app:app"]
    with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            while "Running on" not in running.stderr.readline():
                assert running.poll() is None
            yield address
        finally:
            running.terminate()


async def test_bodies_and_websockets_reach_an_h2c_target(cluster: Cluster, hypercorn: str) -> None:
    async with cluster.hub() as whole, aiohttp.ClientSession() as client:
        await whole.start_agent(routes={"/": f"h2c://{hypercorn}", "/old": f"http://{hypercorn}"})
        base = whole.url

        async def echo(size: int) -> None:
            body = bytes(range(256)) * (size // 256)
            async with client.post(f"{base}/x", data=io.BytesIO(body)) as answer:
                assert answer.headers["x-version"] == "2"
                assert answer.headers["x-prefix"] == f"/{whole.cluster}"
                assert await answer.read() == body

        await asyncio.gather(*[echo(size) for size in (0, 256, 65536, 4 << 20, 4 << 20)])
        async with client.ws_connect(f"{base}/chat") as socket:
            for word in ("one", "two"):
                await socket.send_str(word)
                assert await socket.receive_str() == f"2 {word}"
        async with client.get(f"{base}/old/x") as answer:
            assert answer.headers["x-version"] == "1.1"
