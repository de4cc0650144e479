"""Raises the limit of descriptors, divides them among kinds of connections, and protects the standard ones.

Each connection needs a descriptor. A shell allows 1,024 by default, and a far higher hard limit. With the default, a
hub for 10,000 users would refuse most of them. Go's runtime raises its limit by itself, Python's does not.
"""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = [
    "Shares",
    "descriptor_limit",
    "fill_standard_descriptors",
    "open_descriptors",
    "open_more_descriptors",
    "share_out",
]

RESERVE = 64
"""Descriptors for files, the event loop, listening sockets and the health address."""

STRANGERS = 256
"""Connections of the gRPC port without an accepted call, where the limit allows so many."""

SPARE_CLIENTS = 256
"""Users' connections above `max_clients` that get a 503, if the limit allows so many."""


class Shares(NamedTuple):
    """How many connections of each kind a hub may have at once.

    clients: served users' connections.
    spare_clients: users' connections above that, which get a 503.
    agents: agents' tunnels.
    strangers: agents' connections without an accepted call.
    """

    clients: int
    spare_clients: int
    agents: int
    strangers: int


def descriptor_limit() -> int:
    """The soft limit of open descriptors of this process. 0 means no limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """The number of open descriptors, or an estimate if the system does not list them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 16


def open_more_descriptors() -> int:
    """Raise the soft limit (`ulimit -Sn`) to the hard one. Returns the new limit, 0 without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS: its kernel allows less than its limit
            return soft
    return hard


def fill_standard_descriptors() -> None:
    """Open /dev/null where the process began with standard input, output or error closed.

    Otherwise a socket gets that number. Then libraries print their errors to a client, and uvloop ends the process when
    it closes the socket.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def share_out(limit: int, max_clients: int, max_agents: int) -> Shares:
    """Share a process's descriptors out among a hub's connections. limit: 0 for none.

    Nobody gets more than asked for. Agents have a quarter of what both together may have, and what users leave.
    """
    if not limit:
        return Shares(max_clients, SPARE_CLIENTS, max_agents, STRANGERS)
    left = max(limit - RESERVE, limit // 2)
    strangers = max(1, min(STRANGERS, left // 4))
    spare = max(1, min(SPARE_CLIENTS, left // 8))
    left = max(left - strangers - spare, 2)
    agents = max(1, min(max_agents, left // 4))
    clients = min(max_clients, left - agents)
    return Shares(clients, spare, min(max_agents, left - clients), strangers)
