"""Socket options of a connection: short queues, an early end of dead links, and the kernel's facts about the peer.

TCP would hold megabytes, unsent in front of a slow network and unread behind a slow reader. A small response would wait
for all of them. TCP_NOTSENT_LOWAT bounds the send queue. A receive queue must hold the bytes of a round trip. So it is
bounded only while the peer is near. A bound by SO_RCVBUF turns the kernel's own sizing off. Linux 5.14 and later can
turn it on again (SO_BUF_LOCK). Other systems get no bound.

If sent bytes have no acknowledgement for UNACKNOWLEDGED_S, the connection closes (TCP_USER_TIMEOUT). That detects a
hole in the path's MTU, through which small packets still pass. It also detects a peer whose process leaves its receive
queue full for as long. Linux counts that time too, though the peer acknowledges each probe. Both sides always read, so
a full queue means a stopped process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import struct
import sys
from typing import Any, Final

from .sizes import UNREAD_BYTES, UNSENT_BYTES

__all__ = ["FAR_S", "NEAR_S", "Link", "prepare", "size_receive_queue_freely"]

NEAR_S: Final = 0.000_5
"""Up to this round trip a peer is near: UNREAD_BYTES, doubled by the kernel, each NEAR_S are still about 1 GB/s."""

FAR_S: Final = 0.005
"""Past this round trip a peer is far: UNREAD_BYTES, doubled by the kernel, each FAR_S are about 1 Gbit/s."""

UNACKNOWLEDGED_S: Final = 15.0
"""How long the peer's TCP may leave what was sent without an acknowledgement, or its window shut."""

_LINUX = sys.platform == "linux"
_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
_TCP_INFO = getattr(socket, "TCP_INFO", None) if _LINUX else None
_SO_BUF_LOCK = 72  # asm-generic/socket.h; the socket module has no name for it
_INFO = struct.Struct("=24xI40xI48xQ16xI")
"""struct tcp_info (linux/tcp.h): tcpi_unacked, tcpi_rtt in µs, tcpi_bytes_acked (4.2), tcpi_notsent_bytes (4.6)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """The kernel's facts about a connection at one moment.

    acknowledged_bytes: bytes that the peer's TCP has acknowledged so far.
    waiting: whether bytes are in flight or unsent.
    round_trip_s: smoothed, to the next hop that speaks TCP.
    """

    acknowledged_bytes: int
    waiting: bool
    round_trip_s: float

    @classmethod
    def of(cls, transport: asyncio.BaseTransport) -> Link | None:
        """The link below this transport. None if it isn't TCP, or the system does not report it."""
        sock = _tcp_socket(transport)
        return None if sock is None else _read(sock)


def prepare(transport: asyncio.BaseTransport) -> None:
    """Bound what this transport's socket holds below it and how long, where it is TCP's and the system can."""
    sock = _tcp_socket(transport)
    if sock is None:
        return
    if _NOTSENT_LOWAT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)
    if _USER_TIMEOUT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(UNACKNOWLEDGED_S * 1000))
    link = _read(sock)
    if link is not None and 0 < link.round_trip_s <= NEAR_S and _can_be_unlocked(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES)


def size_receive_queue_freely(transport: asyncio.BaseTransport) -> bool:
    """Let the kernel size the receive queue again, if its own round trip is far as well.

    Returns whether that is so, or there is nothing to do.
    """
    sock = _tcp_socket(transport)
    link = None if sock is None else _read(sock)
    if sock is None or link is None:
        return True
    if link.round_trip_s <= FAR_S:
        return False
    if _can_be_unlocked(sock):
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)
    return True


def _tcp_socket(transport: asyncio.BaseTransport) -> Any:
    """The transport's socket where it is TCP's, else None."""
    if transport.is_closing():  # its number may be another socket's by now
        return None
    sock = transport.get_extra_info("socket")
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None


def _read(sock: Any) -> Link | None:
    if _TCP_INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _INFO.size)
    except OSError:
        return None
    if len(info) < _INFO.size:  # an older kernel
        return None
    unacknowledged, round_trip_us, acknowledged_bytes, unsent_bytes = _INFO.unpack(info)
    return Link(acknowledged_bytes, unacknowledged > 0 or unsent_bytes > 0, round_trip_us / 1e6)


def _can_be_unlocked(sock: Any) -> bool:
    try:
        sock.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
    except OSError:
        return False
    return True
