"""Routes behind a hub, with targets that nobody here wrote: Starlette, tornado, nginx with WebDAV."""

from __future__ import annotations

import contextlib
import pathlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from .whole_cluster import Cluster, Whole
from .whole_peers import NginxServer, until

pytestmark = pytest.mark.loops("uvloop")


@contextlib.contextmanager
def process(name: str) -> Iterator[int]:
    """One target of `route_targets.py`. Yields its port."""
    script = str(pathlib.Path(__file__).parent / "route_targets.py")
    with subprocess.Popen([sys.executable, script, name], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield int(running.stdout.readline())
        finally:
            running.terminate()


@pytest.fixture(scope="module")
def starlette_port() -> Iterator[int]:
    with process("starlette") as port:
        yield port


@pytest.fixture(scope="module")
def tornado_port() -> Iterator[int]:
    with process("tornado") as port:
        yield port


@pytest.fixture
def webdav(tmp_path: pathlib.Path) -> Iterator[NginxServer]:
    """nginx with `ngx_http_dav_module`, which compares the host of Destination with Host."""
    directory = tmp_path / "webdav"
    (directory / "www" / "files" / "folder").mkdir(parents=True)
    server = NginxServer(directory, f"root {directory}/www; location / {{ dav_methods PUT DELETE MKCOL COPY MOVE; }}")
    yield server
    server.close()


@contextlib.asynccontextmanager
async def routed(cluster: Cluster, *routes: dict[str, Any]) -> AsyncIterator[tuple[Whole, aiohttp.ClientSession]]:
    async with cluster.hub() as whole, aiohttp.ClientSession() as client:
        await whole.start_agent(routes=routes)
        yield whole, client


async def location(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(url, allow_redirects=False) as answer:
        assert answer.status in (301, 307), await answer.text()
        return answer.headers["Location"]


async def test_redirects_of_a_real_app_stay_behind_the_hub(cluster: Cluster, starlette_port: int) -> None:
    url = f"http://127.0.0.1:{starlette_port}"
    async with routed(
        cluster,
        {"prefix": "/", "url": url},
        {"prefix": "/app", "url": url},
        {"prefix": "/own", "url": url, "host": "target"},
        {"prefix": "/named", "url": url, "host": "app.example:81"},
        {"prefix": "/plain", "url": url, "rewrite": False, "host": "target"},
    ) as (whole, client):
        root = f"/{whole.cluster}"
        for prefix in ("", "/app", "/own", "/named"):
            assert await location(client, f"{whole.url}{prefix}/slash?a=b") == f"{root}{prefix}/slash/?a=b"
            assert await location(client, f"{whole.url}{prefix}/login") == f"{root}{prefix}/slash/?next=/"
        assert await location(client, f"{whole.url}/plain/slash") == f"{url}/slash/"
        for prefix, host in (
            ("/app", f"127.0.0.1:{whole.http_port}"),
            ("/own", f"127.0.0.1:{starlette_port}"),
            ("/named", "app.example:81"),
        ):
            async with client.get(f"{whole.url}{prefix}/slash") as answer:  # follows the redirect
                assert await answer.text() == f"/slash/ for {host}"
                assert answer.url.path == f"{root}{prefix}/slash/"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_prefix_without_its_slash_is_redirected_for_relative_links(
    cluster: Cluster, webdav: NginxServer, method: str
) -> None:
    async with routed(cluster, {"prefix": "/own", "url": webdav.url}) as (whole, client):
        for query in ("", "?q=/x"):
            public = f"/{whole.cluster}/own"
            async with client.request(method, f"{whole.url}/own{query}", allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (308, f"{public}/{query}")
        async with client.put(f"{whole.url}/own", data=b"content", allow_redirects=False) as answer:
            assert answer.status == 409  # nginx's own response: a PUT needs a file's name


async def test_cookies_and_other_fields_get_the_prefix_of_the_route(cluster: Cluster, starlette_port: int) -> None:
    async with routed(cluster, {"prefix": "/app", "url": f"http://127.0.0.1:{starlette_port}"}) as (whole, client):
        public = f"/{whole.cluster}/app"
        async with client.get(f"{whole.url}/app/login", allow_redirects=False) as answer:
            cookies = answer.headers.getall("Set-Cookie")
            assert cookies == [
                f"session=1; Path={public}; SameSite=lax",
                f"lasting=2; Path={public}/slash; SameSite=lax",
            ]
            assert answer.headers["Refresh"] == f"5; url='{public}/slash/'"
            assert answer.headers["Content-Location"] == f"{public}/login"


async def test_the_redirect_that_denies_an_upgrade_is_mapped(cluster: Cluster, starlette_port: int) -> None:
    async with routed(cluster, {"prefix": "/app", "url": f"http://127.0.0.1:{starlette_port}"}) as (whole, client):
        upgrade = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        async with client.get(f"{whole.url}/app/denied", headers=upgrade, allow_redirects=False) as answer:
            assert answer.status == 307
            assert answer.headers["Location"] == f"/{whole.cluster}/app/login"


async def test_tornado_accepts_the_origin_of_a_browser(cluster: Cluster, tornado_port: int) -> None:
    url = f"http://127.0.0.1:{tornado_port}"
    async with routed(cluster, {"prefix": "/", "url": url}, {"prefix": "/own", "url": url, "host": "target"}) as (
        whole,
        client,
    ):
        origin = {"Origin": f"http://127.0.0.1:{whole.http_port}"}
        async with client.ws_connect(f"{whole.url}/ws", headers=origin) as websocket:
            await websocket.send_str("hello")
            assert await websocket.receive_str() == "hello"
        for path, headers in (("/own/ws", origin), ("/ws", {"Origin": "http://evil.example"})):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await client.ws_connect(f"{whole.url}{path}", headers=headers)
            assert caught.value.status == 403


async def test_webdav_moves_and_copies_below_one_route(cluster: Cluster, webdav: NginxServer) -> None:
    files = webdav.directory / "www" / "files"
    async with routed(
        cluster,
        {"prefix": "/dav", "url": f"{webdav.url}/files"},
        {"prefix": "/own", "url": f"{webdav.url}/files", "host": "target"},
        {"prefix": "/files", "url": webdav.url, "strip_prefix": False},
    ) as (whole, client):

        async def move(method: str, source: str, destination: str) -> tuple[int, str]:
            async with client.request(
                method, f"{whole.url}{source}", headers={"Destination": destination, "Overwrite": "T"}
            ) as answer:
                return answer.status, await answer.text()

        for prefix in ("/dav", "/own", "/files"):
            public = f"{whole.url}{prefix}"
            async with client.put(f"{public}/a.txt", data=b"content") as answer:
                assert answer.status == 201
                assert answer.headers.get("Location", f"/{whole.cluster}{prefix}/a.txt") == (
                    f"/{whole.cluster}{prefix}/a.txt"
                )
            assert await move("MOVE", f"{prefix}/a.txt", f"{public}/b%20c.txt") == (204, "")
            assert await move("COPY", f"{prefix}/b%20c.txt", f"/{whole.cluster}{prefix}/folder/d.txt") == (204, "")
            assert [path.read_text() for path in (files / "b c.txt", files / "folder" / "d.txt")] == ["content"] * 2
            assert not (files / "a.txt").exists()
            for destination, reason in (
                (f"http://evil.example/{whole.cluster}{prefix}/x", "another host"),
                (f"{webdav.url}/files/x", "another host"),
                (f"/c0{prefix}/x", "outside the (request's )?cluster"),
                (f"/{whole.cluster}/other/x", "another route"),
                (f"{public}/../x", "dot segments|'..' segment"),
                (f"{public}/%2e%2e/x", "dot segments|'..' segment"),
            ):
                status, text = await move("MOVE", f"{prefix}/b%20c.txt", destination)
                assert status == 502
                assert re.search(reason, text)
            assert (files / "b c.txt").exists()
            (files / "b c.txt").unlink()
            (files / "folder" / "d.txt").unlink()
            # nginx redirects a folder to the name of the Host and its own port.
            assert await location(client, f"{public}/folder") == f"/{whole.cluster}{prefix}/folder/"


async def test_changed_routes_apply_on_reload(cluster: Cluster, starlette_port: int) -> None:
    url = f"http://127.0.0.1:{starlette_port}"
    async with routed(cluster, {"prefix": "/app", "url": url, "rewrite": False, "host": "target"}) as (whole, client):
        assert await location(client, f"{whole.url}/app/slash") == f"{url}/slash/"
        agent = whole.agent.agent
        config = type(agent.config)(**(whole.agent_config | {"routes": [{"prefix": "/app", "url": url}]}))
        await agent.reload(config)
        await until(lambda: agent.ready, bool)
        assert await location(client, f"{whole.url}/app/slash") == f"/{whole.cluster}/app/slash/"
