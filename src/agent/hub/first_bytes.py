"""Reads the first bytes of an accepted socket, and leaves all others to the protocol of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from .proxy_protocol import MAX_BYTES, MalformedHeader, ProxyHeader, parse_header

__all__ = ["peek", "receive_header"]

POLL_S = 0.01
"""The interval of looks at a socket, where the loop watches no sockets (Windows' proactor)."""


async def peek(sock: socket.socket, size: int) -> bytes:
    """Wait for bytes, and return up to `size` of them. They stay in the socket.

    Returns b"" at the end of the stream. Raises OSError. Cancelled: nothing has changed.

    sock: non-blocking, and not in use by a transport.
    """
    while True:
        try:
            return sock.recv(size, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            await _readable(sock)


async def receive_header(sock: socket.socket) -> ProxyHeader | None:
    """Receive the PROXY header of a connection, and not a byte behind it.

    Returns None if the peer closes the connection without a byte. Raises MalformedHeader and OSError. If cancelled, a
    part of the header may be lost, so that the connection is of no use.

    sock: as for `peek`.
    """
    header = b""
    while True:
        # Each part of a header leaves the socket at once. A loop reports a socket with unread bytes at each turn. So
        # half a header that stays would keep the loop busy.
        more = await peek(sock, MAX_BYTES - len(header))
        if not more:
            if header:
                raise MalformedHeader("the connection ended within the header")
            return None
        found = parse_header(header + more)
        part = len(more) if found is None else found.size - len(header)
        header += sock.recv(part)
        if found is not None:
            return found


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(sock, readable.set)
    except NotImplementedError:
        await asyncio.sleep(POLL_S)
        return
    try:
        await readable.wait()
    finally:
        with contextlib.suppress(ValueError):  # the socket is closed
            loop.remove_reader(sock)
