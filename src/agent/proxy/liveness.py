"""Distinguishes a client that has left from one that has only shut down its sending side, and sends resets.

A reader sees the end of the bytes in both cases. A Unix socket's poll shows POLLHUP once the peer has closed it fully.
A TCP socket shows POLLERR or POLLHUP once the peer has sent a reset. Keepalive probes provoke that reset on a silent
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct

__all__ = ["is_gone", "probe_when_idle", "reset_when_closed", "watch_half_closed"]

KEEPALIVE_S = 10
TUNNEL_KEEPALIVE_S = 60
TUNNEL_PROBES_S, TUNNEL_PROBES = 15, 4
"""Probes of a silent tunnel, and how many may be lost. A dead peer is found within two minutes."""


def watch_half_closed(transport: asyncio.BaseTransport) -> None:
    """Enable keepalive probes of a TCP peer that has sent its FIN, so that `is_gone` detects when it leaves."""
    _probe(transport, {"TCP_KEEPIDLE": KEEPALIVE_S, "TCP_KEEPINTVL": KEEPALIVE_S})


def probe_when_idle(transport: asyncio.BaseTransport) -> None:
    """Enable keepalive probes of a TCP peer that may be silent for hours. The kernel then finds a dead one."""
    times = {"TCP_KEEPIDLE": TUNNEL_KEEPALIVE_S, "TCP_KEEPINTVL": TUNNEL_PROBES_S, "TCP_KEEPCNT": TUNNEL_PROBES}
    _probe(transport, times)


def _probe(transport: asyncio.BaseTransport, options: dict[str, int]) -> None:
    """Enable keepalive probes of a TCP peer. options: by name, those that this system has are set."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except OSError:
        return  # gone already: the next look finds that


def reset_when_closed(transport: asyncio.BaseTransport, resets: bool) -> None:
    """Make the kernel close a TCP connection with a reset instead of a FIN, or turn that off again."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with contextlib.suppress(OSError):  # gone already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", resets, 0))


def is_gone(transport: asyncio.BaseTransport) -> bool:
    """Whether the peer has closed both directions. False where the transport has no descriptor to ask."""
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(select, "poll"):
        return False
    try:
        descriptor = sock.fileno()
        if descriptor < 0:
            return False
        poll = select.poll()
        poll.register(descriptor, 0)
        return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))
    except (OSError, AttributeError):
        return False  # a stand-in socket without a descriptor
