"""What sockets have beside their bytes: tells a client that has gone from one that only sends no more, and resets.

Both look the same to a reader: the end of its bytes. A Unix socket's poll shows POLLHUP once the peer has closed it
whole; a TCP socket shows POLLERR or POLLHUP once something sent to the peer was answered with a reset, which keepalive
probes bring about on a silent connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct

__all__ = ["is_gone", "reset_when_closed", "watch_half_closed"]

KEEPALIVE_S = 10


def watch_half_closed(transport: asyncio.BaseTransport) -> None:
    """Have the kernel probe a TCP peer that has sent its end, so that `is_gone` learns of its going."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), KEEPALIVE_S)
    except OSError:
        return  # gone already: the next look finds that


def reset_when_closed(transport: asyncio.BaseTransport, resets: bool) -> None:
    """Have the kernel end a TCP connection by a reset rather than a FIN, however it is closed, or no longer."""
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
