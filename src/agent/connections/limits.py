"""How much each connection of an agent may hold, and how long things may take."""

from __future__ import annotations

import dataclasses

from ..errors import AgentError

__all__ = ["ConnectionLimits", "FullError"]


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds and times of each connection.

    inbound_bytes: what may wait for a slow target beyond the first packet; past it the connection fails. The base
    protocol can't slow one client down, so it is also how far an upload of any length may run ahead of its target.
    probe_interval_s: how often a base hub is asked whether a connection's client is still there. outcome_timeout_s: how
    long the proxy may take to say how a connection ended that was aborted here. connect_timeout_s: how long a
    carrier may take to reach the proxy. settle_timeout_s: how long, at the end of a drain, the hub may take to receive
    what is left. listed_s: how long a base hub may list a connection that ended here (wire.md, "DRAIN to the hub"):
    its own 30 s, and one for the way.
    """

    inbound_bytes: int = 64 * 1024 * 1024
    probe_interval_s: float = 10.0
    outcome_timeout_s: float = 1.0
    connect_timeout_s: float = 5.0
    settle_timeout_s: float = 5.0
    listed_s: float = 31.0


class FullError(AgentError):
    """No more connections are opened for now. The text is fit for the client."""
