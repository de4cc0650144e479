"""How many connections an agent serves at once, by its configuration and by the descriptors that it may open.

A connection takes one descriptor for its target, and over a Unix socket two more for the socket's ends. Without a free
descriptor, a connection would fail in the agent, and its target would look at fault. So the agent lowers the bound at
start. Connections past the bound are pipes in memory, which take no descriptor, and get a 503.
"""

from __future__ import annotations

__all__ = ["most_opened", "most_served"]

SPARE_CONNECTIONS = 1000
"""How many connections may wait for a 503, besides another `max_connections` of them."""

SPARE_DESCRIPTORS = 16
"""Descriptors for other uses than connections: dials of hubs, lookups of names, files that are read again."""


def most_served(wanted: int, *, unix_sockets: bool, limit: int, used: int) -> int:
    """How many connections the agent may serve at once, at least one.

    wanted: the configured `max_connections`.
    unix_sockets: whether Unix sockets may carry connections.
    limit: descriptors that the process may have open, 0 for any number.
    used: descriptors that are not for connections.
    """
    each = 3 if unix_sockets else 1
    return max(1, min(wanted, (limit - used - SPARE_DESCRIPTORS) // each)) if limit else wanted


def most_opened(wanted: int) -> int:
    """How many connections hubs may have open.

    A connection past `wanted` waits for its first request, which gets a 503. The bound has room for a crowd of such
    connections. It stops a hub that opens one after the other without a request.

    wanted: the configured `max_connections`.
    """
    return 2 * wanted + SPARE_CONNECTIONS
