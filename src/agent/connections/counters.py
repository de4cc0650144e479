"""Counters of the connection managers, for metrics and for the log. One object serves all sessions of an agent."""

from __future__ import annotations

import dataclasses
from collections import Counter

__all__ = ["ConnectionCounters"]


@dataclasses.dataclass(slots=True)
class ConnectionCounters:
    """Totals since the agent started. Packets and connections are counted by one, bytes by `…_bytes`."""

    opened: int = 0
    closed: int = 0
    opened_by: Counter[str] = dataclasses.field(default_factory=Counter)
    """By carrier, `memory` or `uds`. Connections that failed to open are not included."""
    ended_by: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """By carrier and by the way they ended: `complete`, `failed`, `truncated`, `client_gone`."""
    truncated: int = 0
    """Closed in the middle of a response that can't be broken off visibly."""
    failed_inbound: int = 0
    """Failed because their target read too slowly, and the bytes that waited passed their bound."""
    stray_data: int = 0
    """DATA packets for ids that are closed: dropped."""
    invalid_ids: int = 0
    """Packets for ids that can't name a connection (0 and below): dropped."""
    unknown_codes: int = 0
    """Packets with a control code that nobody negotiated: ignored."""
    probes: int = 0
    """Empty DATA packets sent to find out whether a client is still there."""
    inbound_bytes: int = 0
    outbound_bytes: int = 0
