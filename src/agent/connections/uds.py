"""Carries each connection over a Unix socket to the agent's own proxy: the default, and the way back from the pipe."""

from __future__ import annotations

from .acceptor import Announced, UDSAcceptor
from .connection import Connection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget, Inbound
from .manager import ConnectionLimits, ConnManager, Tunnel
from .socket_end import SocketEnd

__all__ = ["UDSAcceptor", "UDSConnManager", "UDSConnection"]


class UDSConnection(Connection):
    """One socket: its end here, and what the acceptor knows of the proxy's end."""

    def __init__(self, conn_id: int, manager: UDSConnManager, announced: Announced) -> None:
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


class UDSConnManager(ConnManager):
    """Connections over Unix sockets. acceptor: started, shared by all sessions. The rest as in ConnManager.

    buffer_size: the high-water mark of what waits to be sent to the proxy, in bytes.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        acceptor: UDSAcceptor,
        *,
        buffer_size: int = 65536,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        super().__init__(tunnel, limits=limits, budget=budget, counters=counters)
        self._acceptor = acceptor
        self._session = acceptor.next_session()
        self._buffer_bytes = buffer_size

    def make_connection(self, conn_id: int) -> UDSConnection:
        announced = self._acceptor.announce(self._session, conn_id, self.outcome)
        sock = self._acceptor.bind(announced)
        connection = UDSConnection(conn_id, self, announced)
        end = SocketEnd(
            self._loop,
            sock,
            connection,
            limit_bytes=self._buffer_bytes,
            dial_timeout_s=self.limits.connect_timeout_s,
        )
        inbound = Inbound(
            end,
            self.budget,
            limit_bytes=self.limits.inbound_bytes,
            uncounted_bytes=self._buffer_bytes,
            reframes=not self.tunnel.features,
        )
        connection.attach_socket(end, inbound)
        end.dial(self._acceptor.path)
        return connection
