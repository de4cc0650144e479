"""Both carriers in one session, picked for each new connection: how an agent is switched over, and back, as it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .connection import Connection
from .counters import ConnectionCounters
from .inbound import FirstPacketBudget
from .manager import ConnectionLimits, ConnManager, Tunnel

__all__ = ["Carriers", "MixedConnManager", "Share"]


class Carriers(Protocol):
    """What makes connections of one kind: MemoryCarriers, UDSCarriers."""

    def connect(self, conn_id: int, manager: ConnManager) -> Connection: ...


class Share:
    """Says yes `percent` times in any hundred answers in a row, evenly spread: no chance is involved.

    percent: 0 to 100; may be changed at any time. After a change the first hundred answers may be off by one.
    """

    def __init__(self, percent: int) -> None:
        self.percent = percent
        self._owed = 0  # hundredths of a yes

    def next(self) -> bool:
        """The next answer."""
        self._owed += self.percent
        if self._owed < 100:
            return False
        self._owed -= 100
        return True


class MixedConnManager(ConnManager):
    """A manager whose connections are carried as `pick` says, each for its whole life. The rest as in ConnManager.

    pick: called for each new connection; gives the carriers that connect it. May raise, as `make_connection` may.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        pick: Callable[[], Carriers],
        *,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        super().__init__(tunnel, limits=limits, budget=budget, counters=counters)
        self._pick = pick

    def make_connection(self, conn_id: int) -> Connection:
        return self._pick().connect(conn_id, self)
