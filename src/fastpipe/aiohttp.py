"""An aiohttp connector that dials a Listener: HTTP and WebSockets in memory, with aiohttp's connection pool."""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest

from fastpipe.listener import Listener


class PipeConnector(aiohttp.BaseConnector):
    """Sends every request of a session to one listener, whatever its URL's host. `https` is rejected.

        session = aiohttp.ClientSession(connector=PipeConnector(listener))

    Args:
        listener: the server.
        options: those of aiohttp.BaseConnector (`limit`, `keepalive_timeout`, `force_close`).

    Raises:
        aiohttp.ClientConnectorError: the listener is closed.
    """

    def __init__(self, listener: Listener, **options: Any) -> None:
        super().__init__(**options)
        self._listener = listener

    async def _create_connection(self, req: ClientRequest, traces: Any, timeout: Any) -> ResponseHandler:
        """Make a connection, as aiohttp's hook for connectors. aiohttp bounds its time by the request's timeouts."""
        try:
            if req.is_ssl():
                raise OSError(0, "a pipe has no TLS: use an http:// URL")
            _, protocol = await self._listener.connect(self._factory)
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        return protocol
