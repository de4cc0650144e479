"""How much each connection of an agent may hold, and how long things may take."""

from __future__ import annotations

import dataclasses

from ..errors import AgentError

__all__ = ["ConnectionLimits", "FullError"]


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds and times of each connection.

    Attributes:
        inbound_bytes: the bytes that may wait for a slow target beyond the first packet. Beyond it the connection
            fails. The base protocol can't slow one client down. So this is also how far an upload of any length may
            run ahead of its target.
        probe_interval_s: how often a base hub is asked whether a connection's client is still there.
        outcome_timeout_s: how long the proxy may take to report how an aborted connection ended.
        connect_timeout_s: how long a carrier may take to reach the proxy.
        settle_timeout_s: how long the hub may take to receive the remaining bytes at the end of a drain.
        listed_s: how long a base hub may list a connection that ended here (wire.md, "DRAIN to the hub"). It is the
            hub's 30 s, and 1 s for the way.
    """

    inbound_bytes: int = 64 * 1024 * 1024
    probe_interval_s: float = 10.0
    outcome_timeout_s: float = 1.0
    connect_timeout_s: float = 5.0
    settle_timeout_s: float = 5.0
    listed_s: float = 31.0


class FullError(AgentError):
    """No more connections are opened for now. The text is fit for the client."""
