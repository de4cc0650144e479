"""Carries each connection over a pipe in memory: the same bytes as over a Unix socket, without a kernel between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from fastpipe import PipeEnd, create_pipe

from ..outcome import Outcome
from .agent_connection import AgentConnection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .limits import ConnectionLimits
from .manager import ConnManager, Tunnel

__all__ = ["MemoryConnManager", "MemoryConnection", "make_memory_connection"]


class MemoryConnection(AgentConnection):
    """One pipe: a client end for the manager, a server end for the proxy."""

    mode = "memory"
    client_end: PipeEnd
    server_end: PipeEnd

    def peer_closed(self) -> bool:
        return bool(self.server_end.is_closing())


def make_memory_connection(
    manager: ConnManager, conn_id: int, accept: Callable[[int, Outcome], asyncio.Protocol], buffer_bytes: int
) -> MemoryConnection:
    """A connection whose pipe has the proxy's protocol on its other end.

    accept: makes that protocol. buffer_bytes: the pipe's high-water mark.
    """
    protocol = accept(conn_id, manager.outcome)
    connection = MemoryConnection(conn_id, manager)
    client_end, server_end = create_pipe(limit=buffer_bytes, loop=asyncio.get_running_loop())
    connection.client_end, connection.server_end = client_end, server_end
    connection.attach(client_end, manager.inbound(client_end, buffer_bytes))
    server_end.set_protocol(protocol)
    client_end.set_protocol(cast(asyncio.Protocol, connection))  # by its methods, not its base
    return connection


class MemoryConnManager(ConnManager):
    """Connections over pipes. The rest as in ConnManager.

    accept: makes the proxy's protocol for one connection.
    accept_for: returns the same by the hub's features, instead of `accept`.
    buffer_bytes: a pipe's high-water mark. A change applies to new connections.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        accept: Callable[[int, Outcome], asyncio.Protocol],
        *,
        accept_for: Callable[[frozenset[str]], Callable[[int, Outcome], asyncio.Protocol]] | None = None,
        buffer_bytes: int = 65536,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        super().__init__(tunnel, limits=limits, budget=budget, counters=counters)
        self._accept_for = accept_for or (lambda features: accept)
        self.buffer_bytes = buffer_bytes

    def make_connection(self, conn_id: int) -> AgentConnection:
        accept = self._accept_for(self.tunnel.features)  # known only after the session was accepted
        return make_memory_connection(self, conn_id, accept, self.buffer_bytes)
