"""Targets of routes, each a process: `route_targets.py starlette` or `tornado`. It prints its port."""

from __future__ import annotations

import asyncio
import socket
import sys

import tornado.httpserver
import tornado.web
import tornado.websocket
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket


def slash(request: Request) -> Response:
    return PlainTextResponse(f"{request.url.path} for {request.headers['host']}")


def login(request: Request) -> Response:
    answer = RedirectResponse("/slash/?next=/", headers={"Refresh": "5; url='/slash/'", "Content-Location": "/login"})
    answer.set_cookie("session", "1")
    answer.set_cookie("lasting", "2", path="/slash")
    return answer


async def deny(websocket: WebSocket) -> None:
    await websocket.send_denial_response(RedirectResponse(str(websocket.url.replace(path="/login"))))


def serve_starlette(listening: socket.socket) -> None:
    app = Starlette(routes=[Route("/slash/", slash), Route("/login", login), WebSocketRoute("/denied", deny)])
    uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run([listening])


class Echo(tornado.websocket.WebSocketHandler):
    """A handler with tornado's `check_origin`, which compares Origin and Host."""

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)

    def data_received(self, chunk: bytes) -> None: ...


def serve_tornado(listening: socket.socket) -> None:
    async def serve() -> None:
        server = tornado.httpserver.HTTPServer(tornado.web.Application([("/ws", Echo)]))
        server.add_sockets([listening])
        await asyncio.Event().wait()

    listening.setblocking(False)
    asyncio.run(serve())


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0), backlog=100) as opened:
        print(opened.getsockname()[1], flush=True)
        {"starlette": serve_starlette, "tornado": serve_tornado}[sys.argv[1]](opened)
