"""Both carriers in one session, picked for each new connection: how an agent is switched over, and back, as it runs.

This is the manager that an agent runs: at 100 % it is a MemoryConnManager, at 0 % a UDSConnManager, and the ids of both
kinds are one session's.
"""

from __future__ import annotations

import logging

from .carriage import Carriage
from .connection import Connection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .manager import ConnectionLimits, ConnManager, FullError, Tunnel
from .memory import MemoryConnManager
from .uds import UDSConnManager

__all__ = ["MixedConnManager"]

logger = logging.getLogger(__name__)


class MixedConnManager(MemoryConnManager, UDSConnManager):
    """A manager whose connections are carried as `carriage` says, each for its whole life. The rest as in ConnManager.

    carriage: started, shared by all sessions.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        carriage: Carriage,
        *,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        # Not the two in between: what they are given is the carriage's, and there may be no Unix socket yet.
        ConnManager.__init__(self, tunnel, limits=limits, budget=budget, counters=counters)
        self.accept, self.accept_base = carriage.accept_memory, carriage.accept_base_memory
        self._carriage = carriage
        self._listens = False
        self._full_said = False

    def make_connection(self, conn_id: int) -> Connection:
        carriage = self._carriage
        most, open_now = carriage.most_connections, self.counters.opened - self.counters.closed
        if most is not None and open_now > most:  # this one is counted already
            if not self._full_said:
                self._full_said = True
                logger.warning("the hub opens more connections than are taken", extra={"connections": most})
            raise FullError(f"the agent takes no more than {most} connections at once")
        self.buffer_size = carriage.buffer_size
        if carriage.share.next() or (carriage.most_sockets is not None and open_now > carriage.most_sockets):
            return MemoryConnManager.make_connection(self, conn_id)
        if not self._listens:
            assert carriage.acceptor is not None  # since a share was left for it
            self.listen_at(carriage.acceptor)
            self._listens = True
        return UDSConnManager.make_connection(self, conn_id)
