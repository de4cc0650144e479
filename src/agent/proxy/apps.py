"""ASGI applications in this process as targets: no port, no socket, the proxy's bytes go over a pipe to uvicorn.

proxy ── Target(connect=…) ──► Listener ══ pipe ══ uvicorn's protocol ──► app

The bytes have the path behind the public prefix. The proxy names the prefix and the user in its forwarding fields, and
fastpipe puts both into the scope. Only this proxy writes to the pipe, so the fields are believed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from ..errors import AgentError, ConfigError, TargetError
from ..messages import Connect, RequestHead, Target

__all__ = ["Apps"]

logger = logging.getLogger(__name__)

Route = Callable[[RequestHead], "Target | Awaitable[Target]"]

ORIGIN = "http://app"
"""The origin of a target without an address. The application sees the client's own Host."""


class _App:
    """One application: served from its first use, or from `start`, until closed."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._serving: asyncio.Task[None] | None = None
        self._listener: asyncio.Future[Any] | None = None
        self._stop = asyncio.Event()

    async def listener(self) -> Any:
        """Return the app's fastpipe.Listener after its lifespan startup.

        Raises RuntimeError if the startup failed, and ImportError without uvicorn.
        If cancelled, the startup continues for the next caller.
        """
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(self._listener))
        return await asyncio.shield(self._listener)

    async def _serve(self, listener: asyncio.Future[Any]) -> None:
        """One task from the lifespan's startup to its shutdown: what an app opens in one, it closes in the same."""
        try:
            from fastpipe.asgi import serve
        except ImportError as error:
            _fail(listener, error)
            return
        try:
            # uvicorn's access log has query strings: tokens, too.
            async with serve(self._app, trust_forwarded_fields=True, access_log=False) as serving:
                listener.set_result(serving)
                await self._stop.wait()
        except Exception as error:
            if listener.done():
                logger.exception("the application's shutdown failed")
            else:
                _fail(listener, error)
        except asyncio.CancelledError:
            if not listener.done():
                _fail(listener, RuntimeError("its startup was given up: the agent stops"))
            raise

    async def connect(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """A connection to the app, for `Target.connect`. Raises TargetError (502)."""
        try:
            listener = await self.listener()
            transport, _ = await listener.connect(lambda: protocol)
        except ImportError as error:
            reason = "the agent cannot serve applications, because uvicorn is not installed"
            raise TargetError(502, reason, stage="connect", fault="agent") from error
        except (RuntimeError, OSError) as error:
            raise TargetError(502, "the application could not be started", stage="connect") from error
        return cast(asyncio.Transport, transport)

    def shut_down_connections(self) -> None:
        """Close the app's connections in order: WebSockets at once, with 1012, the others after their response."""
        if self._listener is not None and self._listener.done() and self._listener.exception() is None:
            from fastpipe.asgi import shut_down_connections

            shut_down_connections(self._listener.result())

    async def close(self) -> None:
        """Wait for the requests in flight, then run the lifespan's shutdown.

        A startup that still runs is cancelled, and its waiting callers get an error. If this call is cancelled, it
        aborts everything.
        """
        self._stop.set()
        if self._serving is None or self._listener is None:
            return
        if not self._listener.done():
            self._serving.cancel()
        try:
            await asyncio.wait([self._serving])
        finally:
            self._serving.cancel()


def _behind_cluster(request: RequestHead) -> bytes:
    """The request's own target without the cluster's name, which is a part of the public prefix if users see it."""
    cluster = b"/" + request.cluster.encode("latin-1")
    rest = request.target[len(cluster) :]
    if request.cluster and request.target.startswith(cluster) and (not rest or rest[:1] in b"/?"):
        return rest if rest.startswith(b"/") else b"/" + rest
    return request.target


def _fail(listener: asyncio.Future[Any], error: Exception) -> None:
    listener.set_exception(error)
    listener.exception()  # retrieved here, since perhaps no caller waits for it


class Apps:
    """The applications that an agent's targets name, each served once."""

    def __init__(self) -> None:
        self._apps: dict[int, tuple[Any, _App]] = {}  # by identity: an app need not be hashable

    async def start(self, app: Any) -> None:
        """Run the app's lifespan startup now. Raises ConfigError without uvicorn, AgentError where startup fails."""
        try:
            await self._of(app).listener()
        except ImportError:
            expected = "needs uvicorn: pip install 'fastpipe-agent[asgi]'"
            raise ConfigError("app", "--app or argument", expected) from None
        except RuntimeError as error:
            raise AgentError(f"the application did not start: {error}") from error

    def routed(self, route: Route) -> Route:
        """`route`, with targets that name an app made reachable."""

        async def later(awaitable: Awaitable[Target], request: RequestHead) -> Target:
            return self._reachable(await awaitable, request)

        def routed(request: RequestHead) -> Target | Awaitable[Target]:
            target = route(request)
            if isinstance(target, Target):
                return self._reachable(target, request)
            return later(target, request) if inspect.isawaitable(target) else target

        return routed

    def start_draining(self, end_connect: Callable[[Connect], None]) -> None:
        """Close WebSockets and idle connections in order. New requests are still served.

        end_connect: closes the connections of one `Target.connect`, each as soon as it is idle.
        """
        for _, app in self._apps.values():
            end_connect(app.connect)
            app.shut_down_connections()

    async def close(self) -> None:
        """End every app: requests in flight finish first. Cancelled: they are cut short."""
        apps, self._apps = list(self._apps.values()), {}
        await asyncio.gather(*(app.close() for _, app in apps))

    def _reachable(self, target: Target, request: RequestHead) -> Target:
        if not isinstance(target, Target) or target.app is None or target.connect is not None:
            return target  # the caller reports a value that is not a Target
        path = target.path if target.url else _behind_cluster(request)
        url = ORIGIN + path.decode("latin-1")
        return dataclasses.replace(target, url=url, app=None, connect=self._connect(target.app), preserve_host=True)

    def _connect(self, app: Any) -> Connect:
        return self._of(app).connect

    def _of(self, app: Any) -> _App:
        found = self._apps.get(id(app))
        if found is None:
            found = self._apps[id(app)] = (app, _App(app))
        return found[1]
