"""Carries each connection over a Unix socket to the agent's proxy. UDS is the default and replaces pipes if needed."""

from __future__ import annotations

import asyncio

from .acceptor import PendingPeer, UDSAcceptor
from .agent_connection import AgentConnection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget, Inbound
from .limits import ConnectionLimits
from .manager import ConnManager, Tunnel
from .socket_end import SocketEnd

__all__ = ["UDSAcceptor", "UDSConnManager", "UDSConnection", "make_uds_connection"]


class UDSConnection(AgentConnection):
    """One socket: its end here, and what the acceptor knows of the proxy's end."""

    mode = "uds"

    def __init__(self, conn_id: int, manager: ConnManager, announced: PendingPeer) -> None:
        super().__init__(conn_id, manager)
        self._announced = announced

    def attach_socket(self, end: SocketEnd, inbound: Inbound) -> None:
        self.attach(end, inbound)
        self._end_of_socket = end

    def proxy_has_it(self) -> bool:
        return self._announced.accepted

    def stop_sending(self) -> None:
        self._end_of_socket.stop_writing()

    def abort_carrier(self) -> None:
        dialled = self._end_of_socket.connected
        self._end_of_socket.abort()
        self._announced.withdraw(dialled=dialled)

    def peer_closed(self) -> bool:
        return self._end_of_socket.peer_closed()


def make_uds_connection(
    manager: ConnManager, conn_id: int, acceptor: UDSAcceptor, session: int, buffer_bytes: int
) -> UDSConnection:
    """A connection whose socket has reached the acceptor, or tries to. Raises OSError.

    session: from `acceptor.next_session`.
    buffer_bytes: a quarter of it may wait here. The kernel holds the rest.
    """
    announced = acceptor.announce(session, conn_id, manager.outcome, manager.tunnel.features)
    sock = acceptor.bind(announced)
    connection = UDSConnection(conn_id, manager, announced)
    timeout_s = manager.limits.connect_timeout_s
    loop = asyncio.get_running_loop()
    end = SocketEnd(loop, sock, connection, limit_bytes=buffer_bytes // 4, dial_timeout_s=timeout_s)
    connection.attach_socket(end, manager.inbound(end, buffer_bytes))
    end.dial(acceptor.path)
    return connection


class UDSConnManager(ConnManager):
    """Connections over Unix sockets. The rest as in ConnManager.

    acceptor: started, shared by all sessions. It sets the kernel's buffer to its own `buffer_bytes`.
    buffer_bytes: a quarter of it may wait here, beyond the kernel's buffer. A change applies to new connections.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        acceptor: UDSAcceptor,
        *,
        buffer_bytes: int = 65536,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        super().__init__(tunnel, limits=limits, budget=budget, counters=counters)
        self.buffer_bytes = buffer_bytes
        self.acceptor = acceptor
        self._session = acceptor.next_session()

    def make_connection(self, conn_id: int) -> AgentConnection:
        return make_uds_connection(self, conn_id, self.acceptor, self._session, self.buffer_bytes)
