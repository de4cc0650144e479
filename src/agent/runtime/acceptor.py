"""Accepts the connections of listening sockets, and logs when the process has no descriptor left.

Event loops hide that failure: libuv closes such connections silently, and asyncio leaves them waiting. Both also hand
out connections before anybody can count them. This acceptor keeps one descriptor in reserve:

    accept ──► EMFILE, ENFILE ──► release the reserve ──► accept ──► refuse, close ──► take the reserve again
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Acceptor", "RateLimitedLog", "hang_up", "listening_sockets"]

logger = logging.getLogger(__name__)

BATCH = 64
"""Connections accepted before the loop has a turn for those it has."""

PAUSE_S = 0.1
"""How long nothing is accepted where the system fails to, and the reserve doesn't help."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE)


async def listening_sockets(host: str, port: int, *, backlog: int) -> list[socket.socket]:
    """Sockets that listen on every address of a host, at least one. host "": every interface. port 0: a free one.

    Raises OSError; then none is left open. Cancelled: the same.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listener = socket.socket(family, kind, protocol)
            except OSError:
                continue  # a family that this machine doesn't have
            sockets.append(listener)
            listener.setblocking(False)
            if os.name == "posix" and sys.platform != "cygwin":  # elsewhere it would let two processes share a port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
                sockets.pop().close()  # an address of a name that is another machine's
                continue
            listener.listen(backlog)
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def hang_up(sock: socket.socket) -> None:
    """Shut down both directions of a connection that the loop is accepting, so that its owner closes it.

    Cancelling `connect_accepted_socket` would be wrong. If uvloop has called the protocol's `connection_made` by then,
    uvloop never calls `connection_lost`, and the connection is counted forever.
    """
    with contextlib.suppress(OSError):  # the peer has left, or the socket is closed
        sock.shutdown(socket.SHUT_RDWR)


class RateLimitedLog:
    """One log line that is written at most once a second, with how often it was due (`count`)."""

    def __init__(self, log: logging.Logger, level: int, message: str, interval_s: float = 1.0) -> None:
        self._log = log
        self._level = level
        self._message = message
        self._interval_s = interval_s
        self._count = 0
        self._extra: dict[str, object] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, **extra: object) -> None:
        """Write the line now, or with the next one. extra: its fields, those of the last call."""
        self._count += 1
        self._extra = extra
        if self._timer is None:
            self._write()

    def close(self) -> None:
        """Write what has not been written yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._count:
            self._log.log(self._level, self._message, extra={**self._extra, "count": self._count})
            self._count = 0

    def _write(self) -> None:
        self._timer = None
        if self._count:
            self.close()
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._write)


class Acceptor:
    """Accepts on some listening sockets, which it owns.

    Args:
        accepted: gets each connection's socket and its peer's address, and then owns the socket.
        refuse: gets each socket that exceeds the descriptors. It may send a few bytes without blocking. The acceptor
            closes the socket afterwards.
        name: the port's name in the log.
        is_busy: whether connections must wait, since the owner has not closed those that gave way to others.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        accepted: Callable[[socket.socket, Any], None],
        refuse: Callable[[socket.socket], None],
        *,
        name: str,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._sockets = list(sockets)
        self._accepted = accepted
        self._refuse = refuse
        self._name = name
        self._is_busy = is_busy
        self._loop = asyncio.get_running_loop()
        self._reserve = os.open(os.devnull, os.O_RDONLY)
        self._tasks: list[asyncio.Task[None]] = []
        self._pauses: dict[socket.socket, asyncio.TimerHandle] = {}
        self._out_of_descriptors = RateLimitedLog(
            logger, logging.ERROR, "no file descriptor is left (ulimit -n): connections are refused"
        )
        self._fails = RateLimitedLog(logger, logging.ERROR, "the system fails to accept connections")
        self.refused = 0
        """Connections refused for want of a descriptor."""

    @property
    def port(self) -> int:
        """The port of the first socket, 0 for a Unix socket."""
        name = self._sockets[0].getsockname()
        return int(name[1]) if isinstance(name, tuple) else 0

    def start(self) -> None:
        """Begin to accept."""
        for listener in self._sockets:
            try:
                self._loop.add_reader(listener, self._accept, listener)
            except NotImplementedError:  # Windows' proactor
                self._tasks.append(self._loop.create_task(self._accept_one_by_one(listener)))

    def close(self) -> None:
        """Accept no more, and close the listening sockets. Again is no error."""
        for timer in self._pauses.values():
            timer.cancel()
        self._pauses.clear()
        for task in self._tasks:
            task.cancel()
        for listener in self._sockets:
            if listener.fileno() >= 0:
                if not self._tasks:
                    self._loop.remove_reader(listener)
                listener.close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        self._out_of_descriptors.close()
        self._fails.close()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BATCH):
            if self._is_busy():
                return  # the loop calls again in its next turn
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # the peer has left
            except OSError as error:
                if error.errno not in _EXHAUSTED or not self._refuse_one(listener):
                    self._pause(listener, error)
                    return
                continue
            self._accepted(sock, peer)
            if listener.fileno() < 0:  # closed by what was called
                return

    def _refuse_one(self, listener: socket.socket) -> bool:
        """Refuse the connection that waits, by the descriptor in reserve. Returns whether that could be done."""
        if self._reserve < 0:
            return False
        os.close(self._reserve)
        self._reserve = -1
        try:
            sock, peer = listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:  # taken by another thread, or by another process for the whole system
                return False
        else:
            with sock:
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    self._refuse(sock)
            self.refused += 1
            self._out_of_descriptors(port=self._name, peer=peer)
        return self._take_reserve()

    def _take_reserve(self) -> bool:
        with contextlib.suppress(OSError):
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        return self._reserve >= 0

    def _pause(self, listener: socket.socket, error: OSError) -> None:
        """Wait before the next try, since the listener stays readable and would keep the loop busy."""
        if error.errno in _EXHAUSTED:
            self._out_of_descriptors(port=self._name)
        else:
            self._fails(port=self._name, reason=error.strerror or str(error))
        if not self._tasks:
            self._loop.remove_reader(listener)
            self._pauses[listener] = self._loop.call_later(PAUSE_S, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        del self._pauses[listener]
        if self._reserve < 0:
            self._take_reserve()
        self._loop.add_reader(listener, self._accept, listener)

    async def _accept_one_by_one(self, listener: socket.socket) -> None:
        while True:
            if self._is_busy():
                await asyncio.sleep(0)
                continue
            try:
                sock, peer = await self._loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if listener.fileno() < 0:
                    return
                self._pause(listener, error)
                await asyncio.sleep(PAUSE_S)
            else:
                self._accepted(sock, peer)
