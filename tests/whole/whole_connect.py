"""CONNECT to a hub by hand, agents that allow it, and targets over plain TCP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from .whole_cluster import Cluster, Whole

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NO_ROUTE = ("/=http://127.0.0.1:9",)


def credentials(cluster: str) -> str:
    return "Basic " + base64.b64encode(f"{cluster}:".encode()).decode()


@contextlib.asynccontextmanager
async def tcp_target(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server whose connections `serve` handles."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await serve(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def connecting(cluster: Cluster, *entries: str, **config: Any) -> AsyncIterator[Whole]:
    """A hub, and an agent that allows these entries."""
    async with cluster.hub() as whole:
        await whole.start_agent(routes=() if entries else NO_ROUTE, connect_allow=entries, **config)
        yield whole


async def ask(whole: Whole, target: str, *fields: str, version: str = "1.1") -> tuple[str, Any, Any]:
    """Send a CONNECT. Returns (the response's head, reader, writer)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
    fields = fields or (f"Proxy-Authorization: {credentials(whole.cluster)}",)
    writer.write("\r\n".join((f"CONNECT {target} HTTP/{version}", "Host: another.example", *fields, "", "")).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return head, reader, writer
