"""An ASGI app served in memory by uvicorn's own protocol classes: real HTTP/1.1 and WebSockets, no socket, no signals.

async with serve(app) as listener:
    async with httpx.AsyncClient(transport=PipeTransport(listener), base_url="http://app") as client:
        response = await client.get("/")
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any
from weakref import WeakKeyDictionary

import uvicorn
from uvicorn.server import ServerState

from fastpipe.listener import Listener

POLL_S = 0.05  # uvicorn has no way to be told that its background tasks are done; its own server asks twice as seldom


_states: WeakKeyDictionary[Listener, ServerState] = WeakKeyDictionary()  # of those where an app is served


class DatedState(ServerState):
    """uvicorn's shared state. Its `Date` header is made when it is asked for, where uvicorn's server has a timer."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._config = config
        self._second = 0
        self._headers: list[tuple[bytes, bytes]] = []
        super().__init__()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Date and Server, as configured."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            date = [(b"date", formatdate(second, usegmt=True).encode())] if self._config.date_header else []
            self._headers = date + self._config.encoded_headers
        return self._headers

    @default_headers.setter
    def default_headers(self, _: list[tuple[bytes, bytes]]) -> None:
        """uvicorn's constructor sets an empty one."""


@asynccontextmanager
async def serve(
    app: Callable[..., Any],
    *,
    listener: Listener | None = None,
    shutdown_timeout_s: float | None = 10.0,
    **settings: Any,
) -> AsyncIterator[Listener]:
    """Serve an ASGI app on a Listener, from its lifespan startup to its lifespan shutdown.

    app: an ASGI 3 callable. listener: where to serve; None makes one. shutdown_timeout_s: how long requests in flight
    may take once the body is left, before their tasks are cancelled and their connections aborted; None: for ever.
    settings: any of uvicorn.Config's but those of sockets and processes (`http="h11"`, `root_path="/x"`, …);
    here its logging is not configured, and forwarded headers are not trusted, unless asked for.

    Gives the listener, which is closed afterwards. Raises RuntimeError where the app's startup failed (uvicorn logs
    why). Cancelled, it shuts down as on leaving the body.
    """
    config = uvicorn.Config(app, **{"log_config": None, "proxy_headers": False, **settings})
    config.load()
    lifespan = config.lifespan_class(config)
    state = DatedState(config)
    protocol_class: Callable[..., asyncio.Protocol] = config.http_protocol_class

    def protocol() -> asyncio.Protocol:
        return protocol_class(
            config=config, server_state=state, app_state=lifespan.state, _loop=asyncio.get_running_loop()
        )

    server = await (Listener() if listener is None else listener).create_server(protocol, start_serving=False)
    try:
        await lifespan.startup()
        if lifespan.should_exit:
            raise RuntimeError("the app's lifespan startup failed")
    except BaseException:
        server.close()
        raise
    await server.start_serving()  # who came early waits in its backlog until here
    _states[server] = state
    try:
        yield server
    finally:
        del _states[server]
        server.close()
        try:
            async with asyncio.timeout(shutdown_timeout_s):
                await _finish(server, state)
        except TimeoutError:
            for task in list(state.tasks):
                task.cancel()
            server.abort_clients()
            await server.wait_closed()
            await asyncio.gather(*state.tasks, return_exceptions=True)
        await lifespan.shutdown()


def shut_down_connections(listener: Listener) -> None:
    """Tell the connections that an app's server has now to end: WebSockets at once, by "service restart" (1012 of RFC
    6455's registry), HTTP behind the answer in flight. New ones are served as ever, until `serve` is left.

    listener: what `serve` gave; where it serves no app any more, nothing happens.
    """
    state = _states.get(listener)
    for connection in list(state.connections) if state is not None else ():
        connection.shutdown()


async def _finish(server: Listener, state: ServerState) -> None:
    """Tell every connection to end after its answer, and wait for all of them and for their tasks."""
    told: set[Any] = set()
    closing = asyncio.ensure_future(server.wait_closed())
    try:
        while True:
            for connection in state.connections - told:
                connection.shutdown()
                told.add(connection)
            if closing.done() and not state.tasks:
                return
            await asyncio.wait([closing, *state.tasks], timeout=POLL_S)
    finally:
        closing.cancel()
