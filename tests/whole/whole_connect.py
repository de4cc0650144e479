"""CONNECT to a hub by hand, agents that allow it, and targets over plain TCP."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from agent.config.schema import ForwardConfig
from agent.forward.addresses import parse_forward
from agent.forward.local_ports import LocalPorts
from agent.forward.setup import make_carrier

from ..limits import scaled
from .whole_cluster import Cluster, Whole
from .whole_peers import until

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
NO_ROUTE = ("/=http://127.0.0.1:9",)

SOAKS = os.environ.get("FASTPIPE_SOAK", "0") not in ("", "0")
SWAPS = 100 if SOAKS else 20
SWAP_BYTES = (64 if SOAKS else 1) * 1024 * 1024
SWAP_TIMEOUT_S = scaled(1500 if SOAKS else 60)
"""Connections of a swap, and what each end of one sends."""


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


@contextlib.asynccontextmanager
async def forwarding(hub: str, cluster: str, *targets: str, token: str = "", **config: Any) -> AsyncIterator[list[int]]:
    """`forward` in this process: a local port for each target."""
    ports: list[int] = []
    given = ForwardConfig(hub=hub, cluster=cluster, connect_timeout_s=scaled(10), **config)
    local = LocalPorts(
        [parse_forward(f"0={target}") for target in targets],
        make_carrier(given, token),
        max_connections=given.max_connections,
        drain_grace_s=given.drain_grace_s,
        on_listening=lambda _, port: ports.append(port),
    )
    task = asyncio.ensure_future(local.run())
    try:
        await until(lambda: task.done() or len(ports) == len(targets))
        yield ports
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert local.open_connections == 0
        if not task.cancelled():
            task.result()


async def ask(whole: Whole, target: str, *fields: str, version: str = "1.1") -> tuple[str, Any, Any]:
    """Send a CONNECT. Returns (the response's head, reader, writer)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
    fields = fields or (f"Proxy-Authorization: {credentials(whole.cluster)}",)
    writer.write("\r\n".join((f"CONNECT {target} HTTP/{version}", "Host: another.example", *fields, "", "")).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    return head, reader, writer


async def _send(writer: asyncio.StreamWriter, seed: int) -> bytes:
    """Send SWAP_BYTES that only this seed gives. Returns their digest."""
    block, digest = random.Random(seed).randbytes(65528), hashlib.sha256()
    for number in range(SWAP_BYTES // 65536):
        piece = number.to_bytes(8, "big") + block
        digest.update(piece)
        writer.write(piece)
        await writer.drain()
    return digest.digest()


async def swap_as_target(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send bytes while the client's arrive, and behind the client's end the digest of both."""
    seed = int.from_bytes(await reader.readexactly(4), "big")
    sending = asyncio.ensure_future(_send(writer, seed + 1000))
    digest = hashlib.sha256()
    while data := await reader.read(262144):
        digest.update(data)
    writer.write(digest.digest() + await sending)
    writer.write_eof()


async def swap_as_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seed: int) -> None:
    """Send bytes to `swap_as_target` and end, while its own arrive. Checks both."""
    writer.write(seed.to_bytes(4, "big"))

    async def send() -> bytes:
        sent = await _send(writer, seed)
        writer.write_eof()
        return sent

    sending = asyncio.ensure_future(send())
    digest, left = hashlib.sha256(), SWAP_BYTES
    while left:
        data = await reader.read(min(left, 262144))
        assert data, f"{left} bytes are missing"
        digest.update(data)
        left -= len(data)
    found = await reader.read()
    assert found == await sending + digest.digest()
    writer.close()
