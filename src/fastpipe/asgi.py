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

from fastpipe.asgi_scope import ForwardedScope
from fastpipe.listener import Listener

POLL_S = 0.05  # uvicorn does not report when its background tasks finish. Its own server polls half as often


_states: WeakKeyDictionary[Listener, ServerState] = WeakKeyDictionary()  # of those where an app is served


class DatedState(ServerState):
    """uvicorn's shared state. It makes the `Date` header on demand, where uvicorn's server has a timer."""

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
    trust_forwarded_fields: bool = False,
    **settings: Any,
) -> AsyncIterator[Listener]:
    """Serve an ASGI app on a Listener, from its lifespan startup to its lifespan shutdown.

    Args:
        app: an ASGI 3 callable.
        listener: where to serve. None makes a listener.
        shutdown_timeout_s: seconds for requests in flight after the body of `async with`. Then their tasks are
            cancelled and their connections aborted. None is no limit.
        trust_forwarded_fields: the app's scopes follow X-Forwarded-Prefix, -For, -Proto, -Host and -Port. Set it only
            if all clients are proxies that write these fields themselves. Otherwise any client can claim any address.
        settings: those of uvicorn.Config except for sockets and processes (`http="h11"`, `root_path="/x"`, …).
            By default uvicorn's logging is not configured, and forwarded headers are not trusted.

    Yields:
        The listener, which is closed afterwards.

    Raises:
        RuntimeError: the app's startup failed, and uvicorn logged why.

    If cancelled, it shuts down as after the body.
    """
    config = uvicorn.Config(app, **{"log_config": None, "proxy_headers": False, **settings})
    config.load()
    if trust_forwarded_fields:
        config.loaded_app = ForwardedScope(config.loaded_app)
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
    """Close the open connections of an app's server, in order.

    WebSockets close at once with "service restart" (1012 of RFC 6455's registry), HTTP connections after the response
    in flight. New connections are served until the body of `serve` ends.

    listener: the listener from `serve`. If it serves no app, nothing happens.
    """
    state = _states.get(listener)
    for connection in list(state.connections) if state is not None else ():
        connection.shutdown()


async def _finish(server: Listener, state: ServerState) -> None:
    """Make every connection close after its response, and wait for the connections and their tasks."""
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
