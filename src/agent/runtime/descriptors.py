"""Lets the process open as many descriptors as it may, shares them out, and keeps the standard ones what they are.

A connection is a descriptor, and a shell gives 1,024 of them, with a far higher bound for whoever asks: a hub that may
have 10,000 users would refuse most of them. Go's runtime asks for itself; Python's doesn't.
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
"""Users' connections above `max_clients`, which are answered 503, where the limit allows so many."""


class Shares(NamedTuple):
    """What each kind of a hub's connections may have at once.

    clients: users' connections that are served. spare_clients: users' connections above that. agents: agents' tunnels.
    strangers: agents' connections without an accepted call.
    """

    clients: int
    spare_clients: int
    agents: int
    strangers: int


def descriptor_limit() -> int:
    """How many descriptors this process may have open at once, as it stands now; 0 where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def open_descriptors() -> int:
    """How many are open now; a guess where the system doesn't say."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 16


def open_more_descriptors() -> int:
    """Raise the soft limit (`ulimit -Sn`) to the hard one. Returns what holds then; 0 where there is no such limit."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # macOS: its kernel allows less than the limit says
            return soft
    return hard


def fill_standard_descriptors() -> None:
    """Open /dev/null where the process began with standard input, output or error closed.

    A socket would get that number otherwise: what libraries print on standard error would go to a client, and uvloop
    ends the process when it closes such a socket.
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
