"""How much of a link's bytes the kernel may hold: what waits there, nobody can overtake.

TCP would take megabytes, unsent in front of a slow network and unread behind a slow reader, and a small answer would
wait for all of them. A send queue is bounded by TCP_NOTSENT_LOWAT. A receive queue has to hold what is on its way in
one round trip, so it is bounded only where that is little: towards a near peer. Linux alone tells how near one is.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

from .sizes import UNREAD_BYTES, UNSENT_BYTES

__all__ = ["NEAR_S", "keep_queues_short"]

NEAR_S: Final = 0.000_5
"""Up to this round trip a peer is near: UNREAD_BYTES, doubled by the kernel, each NEAR_S are still about 1 GB/s."""

_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_TCP_INFO = getattr(socket, "TCP_INFO", None)
_RTT = struct.Struct("=68xI")  # struct tcp_info, tcpi_rtt (linux/tcp.h), in µs


def keep_queues_short(transport: asyncio.BaseTransport) -> None:
    """Bound what this transport's socket holds below it, where it is TCP's and the system can."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    if _NOTSENT_LOWAT is not None:
        sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, UNSENT_BYTES)
    if 0 < _round_trip_s(sock) <= NEAR_S:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNREAD_BYTES)


def _round_trip_s(sock: socket.socket) -> float:
    """As TCP has measured it, which it has when it is connected; 0 where nobody says."""
    if _TCP_INFO is None:
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RTT.size)
    except OSError:  # not Linux's way
        return 0
    return int(_RTT.unpack(info)[0]) / 1e6 if len(info) == _RTT.size else 0
