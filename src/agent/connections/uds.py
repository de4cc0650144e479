"""Carries each connection over a Unix socket to the agent's own proxy: the default, and the way back from the pipe."""

from __future__ import annotations

import asyncio

from .acceptor import PendingPeer, UDSAcceptor
from .connection import Connection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget, Inbound
from .manager import ConnectionLimits, ConnManager, Tunnel
from .socket_end import SocketEnd

__all__ = ["UDSAcceptor", "UDSConnManager", "UDSConnection"]


class UDSConnection(Connection):
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


class UDSConnManager(ConnManager):
    """Connections over Unix sockets. The rest as in ConnManager.

    acceptor: started, shared by all sessions; has the kernel hold its own `buffer_size` of what is sent. buffer_size:
    what waits beyond that, here, is a quarter of it; may be changed for the connections to come.
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
        self.buffer_size = buffer_size
        self.listen_at(acceptor)

    def listen_at(self, acceptor: UDSAcceptor) -> None:
        """Have the connections to come reach the proxy here."""
        self.acceptor = acceptor
        self._session = acceptor.next_session()

    def make_connection(self, conn_id: int) -> Connection:
        """A connection whose socket has reached the acceptor, or tries to. Raises OSError."""
        announced = self.acceptor.announce(self._session, conn_id, self.outcome, self.is_base_hubs)
        sock = self.acceptor.bind(announced)
        connection = UDSConnection(conn_id, self, announced)
        end = SocketEnd(
            asyncio.get_running_loop(),
            sock,
            connection,
            limit_bytes=self.buffer_size // 4,
            dial_timeout_s=self.limits.connect_timeout_s,
        )
        inbound = self.inbound(end, self.buffer_size)
        connection.attach_socket(end, inbound)
        end.dial(self.acceptor.path)
        return connection
