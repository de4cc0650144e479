"""Carries each connection over a pipe in memory: the same bytes as over a Unix socket, without a kernel between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastpipe import PipeEnd, create_pipe

from ..outcome import Outcome
from .connection import Connection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget, Inbound
from .manager import ConnectionLimits, ConnManager, Tunnel

__all__ = ["MemoryConnManager", "MemoryConnection"]


class MemoryConnection(Connection):
    """One pipe: a client end for the manager, a server end for the proxy."""

    client_end: PipeEnd
    server_end: PipeEnd

    def peer_closed(self) -> bool:
        return bool(self.server_end.is_closing())


class MemoryConnManager(ConnManager):
    """Connections over pipes.

    accept: makes the proxy's protocol for one connection. buffer_size: a pipe's high-water mark, in bytes. The rest as
    in ConnManager.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        accept: Callable[[int, Outcome], asyncio.Protocol],
        *,
        buffer_size: int = 65536,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        super().__init__(tunnel, limits=limits, budget=budget, counters=counters)
        self._accept = accept
        self._buffer_bytes = buffer_size

    def make_connection(self, conn_id: int) -> MemoryConnection:
        protocol = self._accept(conn_id, self.outcome)
        connection = MemoryConnection(conn_id, self)
        connection.client_end, connection.server_end = create_pipe(limit=self._buffer_bytes, loop=self._loop)
        inbound = Inbound(
            connection.client_end,
            self.budget,
            limit_bytes=self.limits.inbound_bytes,
            uncounted_bytes=self._buffer_bytes,
            reframes=not self.tunnel.features,
        )
        connection.attach(connection.client_end, inbound)
        connection.server_end.set_protocol(protocol)
        connection.client_end.set_protocol(connection)
        return connection
