"""How many connections an agent serves at once, by its configuration and by the descriptors that it may open.

A connection takes one descriptor for its target, and over a Unix socket two more for the socket's ends. What a hub
opens past the descriptors would fail for want of one here, and its target would look at fault. So the bound is lowered
at start. Past it connections are pipes in memory, which take none, and get their 503.
"""

from __future__ import annotations

__all__ = ["most_opened", "most_served"]

SPARE_CONNECTIONS = 1000
"""How many connections may wait for a 503 beside those that are served, and as many again as those."""

SPARE_DESCRIPTORS = 16
"""For what opens and closes beside connections: dials of hubs, lookups of names, files that are read again."""


def most_served(wanted: int, *, unix_sockets: bool, limit: int, used: int) -> int:
    """How many connections may be served for a configured `max_connections`, which is `wanted`; at least one.

    unix_sockets: whether they may be carried by them. limit: descriptors that the process may have open, 0 for any
    number; used: those that are not for connections.
    """
    each = 3 if unix_sockets else 1
    return max(1, min(wanted, (limit - used - SPARE_DESCRIPTORS) // each)) if limit else wanted


def most_opened(wanted: int) -> int:
    """How many connections hubs may have open. Past `wanted`, the configured `max_connections`, each waits for its
    first request, which gets a 503: room for a crowd of those, but not for a hub that opens one after the other and
    asks nothing."""
    return 2 * wanted + SPARE_CONNECTIONS
