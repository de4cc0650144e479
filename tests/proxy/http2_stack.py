"""A proxy that speaks HTTP/2, with a client of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from agent.proxy import ClientOrigin

from .http2_client import Http2Client, http2_client

USER = ClientOrigin(peer="192.0.2.7")


@contextlib.asynccontextmanager
async def opened(stack: Any, to: Any, settings: bytes = b"", **options: Any) -> AsyncIterator[tuple[Any, Http2Client]]:
    """Yield the stack and the client. options: of the proxy. settings: the payload of the client's SETTINGS."""
    options.setdefault("http2_max_streams", 128)
    async with stack(to, owns_clients=True, **options) as h:
        h.client_origin = USER
        raw = await h.open()
        async with http2_client(raw.reader, raw.writer, settings) as client:
            yield h, client
