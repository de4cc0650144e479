"""Both carriers in one session, selected for each new connection. So a running agent can switch over and back.

An agent runs this manager. At 100 % it is a MemoryConnManager, and at 0 % a UDSConnManager. The ids of both kinds
belong to one session.
"""

from __future__ import annotations

import logging

from .agent_connection import AgentConnection
from .carrier_policy import CarrierPolicy
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .limits import ConnectionLimits, FullError
from .manager import ConnManager, Tunnel
from .memory import make_memory_connection
from .uds import make_uds_connection

__all__ = ["MixedConnManager"]

logger = logging.getLogger(__name__)


class MixedConnManager(ConnManager):
    """A manager in which `policy` selects each connection's carrier for its whole life. The rest as in ConnManager.

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
        super().__init__(tunnel, limits=limits, budget=budget, counters=counters)
        self._policy = policy
        self._acceptor_session = 0  # this session's number at the acceptor, once it has one
        self._full_said = False

    def make_connection(self, conn_id: int) -> AgentConnection:
        policy = self._policy
        most, open_now = policy.most_connections, self.counters.opened - self.counters.closed
        if most is not None and open_now > most:  # this one is counted already
            if not self._full_said:
                self._full_said = True
                logger.warning("the hub opens more connections than are taken", extra={"connections": most})
            raise FullError(f"the agent takes no more than {most} connections at once")
        if policy.share.next() or (policy.most_sockets is not None and open_now > policy.most_sockets):
            accept = policy.accept(self.tunnel.features, "memory")
            return make_memory_connection(self, conn_id, accept, policy.buffer_bytes)
        assert policy.acceptor is not None  # since a share was left for it
        if not self._acceptor_session:
            self._acceptor_session = policy.acceptor.next_session()
        return make_uds_connection(self, conn_id, policy.acceptor, self._acceptor_session, policy.buffer_bytes)
