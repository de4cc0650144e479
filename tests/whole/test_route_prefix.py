"""A Flask app below a route, by host and by path, with the lines of docs/web-apps.md."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import flask
import pytest
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.serving import make_server

from ..web_apps_page import PAGE, Mode, example_of, words
from .whole_cluster import RunningAgent, running_hub

if not PAGE.exists():
    pytest.skip("the checkout has no docs/web-apps.md", allow_module_level=True)

DOMAIN = "tunnel.example.com"


@contextlib.contextmanager
def running_shop() -> Iterator[int]:
    """The app's port."""
    app = flask.Flask("shop")
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1, x_prefix=1)  # type: ignore[method-assign]

    @app.get("/")
    def index() -> str:
        return flask.url_for("cart", _external=True) + " " + str(flask.request.remote_addr)

    @app.get("/cart/")
    def cart() -> Any:
        return flask.redirect(flask.url_for("index"))

    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.loops("uvloop")
@pytest.mark.parametrize("mode", ["host", "path"])
async def test_flask_below_a_route(mode: Mode) -> None:
    example = example_of("test_flask_below_a_route", mode)
    config: dict[str, Any] = {"cluster_from": "host", "cluster_domain": DOMAIN} if mode == "host" else {}
    with running_shop() as port:
        arguments = words(example.commands[-1])[1]
        route = arguments[arguments.index("--route") + 1].replace(f":{example.port}", f":{port}")
        async with running_hub(**config) as (grpc_port, http_port), aiohttp.ClientSession() as client:
            agent = RunningAgent(
                hub_address=f"127.0.0.1:{grpc_port}", cluster_name="c1", insecure=True, routes=(route,)
            )
            try:
                await agent.wait_ready()
                public = "/shop" if mode == "host" else "/c1/shop"
                host = f"c1.{DOMAIN}" if mode == "host" else "hub.example.com"

                async def get(path: str) -> tuple[int, str, str]:
                    url = f"http://127.0.0.1:{http_port}{path}"
                    async with client.get(url, headers={"Host": host}, allow_redirects=False) as answer:
                        return answer.status, answer.headers.get("Location", ""), await answer.text()

                assert (await get(public))[:2] == (308, f"{public}/")
                assert await get(f"{public}/") == (200, "", f"http://{host}{public}/cart/ 127.0.0.1")
                assert (await get(f"{public}/cart/"))[:2] == (302, f"{public}/")
                assert (await get(f"{public}/cart"))[:2] == (308, f"{public}/cart/")  # Flask's own redirect
            finally:
                await agent.stop()
