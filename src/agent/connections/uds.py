"""Carries each connection over a Unix socket to the agent's own proxy: the default, and the way back from the pipe."""

from __future__ import annotations

import asyncio

from .acceptor import Announced, UDSAcceptor
from .connection import Connection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget, Inbound
from .manager import ConnectionLimits, ConnManager, Tunnel
from .socket_end import SocketEnd

__all__ = ["UDSAcceptor", "UDSCarriers", "UDSConnManager", "UDSConnection"]


class UDSConnection(Connection):
    """One socket: its end here, and what the acceptor knows of the proxy's end."""

    mode = "uds"

    def __init__(self, conn_id: int, manager: ConnManager, announced: Announced) -> None:
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


class UDSCarriers:
    """Makes connections over Unix sockets, for one session's manager.

    acceptor: started, shared by all sessions; has the kernel hold its own `buffer_size` of what is sent. buffer_size:
    what waits beyond that, here, is a quarter of it; may be changed for the connections to come.
    """

    def __init__(self, acceptor: UDSAcceptor, *, buffer_size: int = 65536) -> None:
        self._acceptor = acceptor
        self._session = acceptor.next_session()
        self.buffer_size = buffer_size

    def connect(self, conn_id: int, manager: ConnManager) -> UDSConnection:
        """A connection whose socket has reached the acceptor, or tries to. Raises OSError."""
        announced = self._acceptor.announce(self._session, conn_id, manager.outcome)
        sock = self._acceptor.bind(announced)
        connection = UDSConnection(conn_id, manager, announced)
        end = SocketEnd(
            asyncio.get_running_loop(),
            sock,
            connection,
            limit_bytes=self.buffer_size // 4,
            dial_timeout_s=manager.limits.connect_timeout_s,
        )
        inbound = manager.inbound(end, self.buffer_size)
        connection.attach_socket(end, inbound)
        end.dial(self._acceptor.path)
        return connection


class UDSConnManager(ConnManager):
    """Connections over Unix sockets only. acceptor, buffer_size: as in UDSCarriers. The rest as in ConnManager."""

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
        self._carriers = UDSCarriers(acceptor, buffer_size=buffer_size)

    def make_connection(self, conn_id: int) -> UDSConnection:
        return self._carriers.connect(conn_id, self)
