"""Both carriers in one session, picked for each new connection: how an agent is switched over, and back, as it runs.

This is the manager that an agent runs: at 100 % it is a MemoryConnManager, at 0 % a UDSConnManager, and the ids of both
kinds are one session's.
"""

from __future__ import annotations

import logging

from .carrier_policy import CarrierPolicy
from .connection import Connection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .manager import ConnectionLimits, ConnManager, FullError, Tunnel
from .memory import MemoryConnManager
from .uds import UDSConnManager

__all__ = ["MixedConnManager"]

logger = logging.getLogger(__name__)


class MixedConnManager(MemoryConnManager, UDSConnManager):
    """A manager whose connections are carried as `policy` says, each for its whole life. The rest as in ConnManager.

    policy: started, shared by all sessions.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        policy: CarrierPolicy,
        *,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        # Not the two in between: what they are given is the policy's, and there may be no Unix socket yet.
        ConnManager.__init__(self, tunnel, limits=limits, budget=budget, counters=counters)
        self.accept, self.accept_base = policy.accept_memory, policy.accept_base_memory
        self._policy = policy
        self._listens = False
        self._full_said = False

    def make_connection(self, conn_id: int) -> Connection:
        policy = self._policy
        most, open_now = policy.most_connections, self.counters.opened - self.counters.closed
        if most is not None and open_now > most:  # this one is counted already
            if not self._full_said:
                self._full_said = True
                logger.warning("the hub opens more connections than are taken", extra={"connections": most})
            raise FullError(f"the agent takes no more than {most} connections at once")
        self.buffer_size = policy.buffer_size
        if policy.share.next() or (policy.most_sockets is not None and open_now > policy.most_sockets):
            return MemoryConnManager.make_connection(self, conn_id)
        if not self._listens:
            assert policy.acceptor is not None  # since a share was left for it
            self.listen_at(policy.acceptor)
            self._listens = True
        return UDSConnManager.make_connection(self, conn_id)
