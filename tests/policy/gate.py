"""An agent's policy and proxy on a TCP port before two API servers, and a client of raw bytes."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Callable
from typing import Any

from agent import AgentConfig
from agent.policy.assembly import make_policy
from agent.proxy import Proxy, Upstreams

from ..limits import scaled
from .api_server import ApiServer

ALICE = {"username": "alice", "uid": "1", "groups": ["devs", "system:authenticated"]}
BOB = {"username": "bob", "uid": "2", "groups": ["team", "system:masters", "system:authenticated"]}


class Answer:
    def __init__(self, status: int, head: bytes, body: bytes) -> None:
        self.status = status
        self.head = head
        self.body = body


class Gate:
    """`ask` sends a request through the real proxy."""

    def __init__(self, managed: ApiServer, hub: ApiServer, **config: Any) -> None:
        self.managed = managed
        self.hub = hub
        settings = dict(config)
        if "kubeconfig" not in config:
            settings["kubeconfig"] = managed.kubeconfig()
        if "hub_kubeconfig" not in config:
            settings["hub_kubeconfig"] = hub.kubeconfig()
        self.config = AgentConfig(hub_address="127.0.0.1:1", cluster_name="c1", insecure=True, **settings)

    async def __aenter__(self) -> Gate:
        self.policy = make_policy(self.config)
        self.upstreams = Upstreams(ssl_context=self.policy.ssl_context, generation=lambda: self.policy.generation)
        self.proxy = Proxy(
            route=self.policy.router.route,
            process=self.policy.processor.process,
            upstreams=self.upstreams,
            cluster="c1",
            max_connections=2000,
        )
        ids = itertools.count(1)
        self.server = await asyncio.get_running_loop().create_server(
            lambda: self.proxy.connection(next(ids), lambda *_: None), "127.0.0.1", 0, backlog=2000
        )
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        self.proxy.close()
        await self.upstreams.close()
        await self.policy.close()

    async def ask(
        self, *headers: bytes, path: str = "/c1/api/v1/pods", method: str = "GET", body: bytes = b""
    ) -> Answer:
        """One request on its own connection."""
        lines = [f"{method} {path} HTTP/1.1".encode(), b"Host: hub", *headers]
        return await self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    async def send(self, request: bytes) -> Answer:
        return await ask_at(self.port, request)


async def ask_at(port: int, request: bytes) -> Answer:
    """Send raw bytes to a local port. Returns the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(scaled(30)):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            return Answer(status, head, await reader.readexactly(length))
    except asyncio.CancelledError:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a half-close
        writer.transport.abort()
        raise
    finally:
        writer.close()
        await writer.wait_closed()


async def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Wait for a state that nothing announces."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def bearer(token: str) -> bytes:
    return f"Authorization: Bearer {token}".encode()
