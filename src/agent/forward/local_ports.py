"""Local ports: each accepted connection gets a tunnel to the port's target.

    accepted ──► too many? reset
        └──► Carrier.connect ──► joined ──► closed
                     └──► ForwardError: one log line, reset

A local connection is not read before its tunnel is open, so the kernel bounds its bytes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ForwardError, listening
from ..runtime.acceptor import Acceptor, RateLimitedLog, listening_sockets
from ..runtime.serving import serve_until_cancelled
from ..syntax import Address, is_loopback
from .addresses import Forward
from .carrier import Carrier
from .joining import Joint, reset_when_closed

__all__ = ["LocalPorts"]

logger = logging.getLogger(__name__)

BACKLOG = 1024


class LocalPorts:
    """Serves some local ports until cancelled.

    Args:
        forwards: the ports.
        carrier: opens the tunnels. It is closed at the end.
        max_connections: at once, for all ports together.
        drain_grace_s: time for open connections after the first cancellation.
        on_listening: called with each port's host and number.
    """

    def __init__(
        self,
        forwards: Sequence[Forward],
        carrier: Carrier,
        *,
        max_connections: int,
        drain_grace_s: float,
        on_listening: Callable[[str, int], None],
    ) -> None:
        self._forwards = forwards
        self._carrier = carrier
        self._max_connections = max_connections
        self._drain_grace_s = drain_grace_s
        self._on_listening = on_listening
        self._acceptors: list[Acceptor] = []
        self._open: set[asyncio.Task[None]] = set()
        self._joints: set[Joint] = set()
        self._full = RateLimitedLog(logger, logging.WARNING, "too many connections, so some are refused")

    @property
    def open_connections(self) -> int:
        """Local connections, those without a tunnel included."""
        return len(self._open)

    async def run(self) -> None:
        """Listen and serve until cancelled. Then open connections have `drain_grace_s` to end.

        A second cancellation ends them at once. Raises ListenError if a port can't be opened. Then none is open.
        """
        try:
            await self._listen()
            await serve_until_cancelled(self._drain)
        finally:
            self._stop()
            for joint in list(self._joints):
                joint.abort()
            for task in list(self._open):
                task.cancel()
            self._full.close()
            if self._open:
                await asyncio.wait(self._open)
            await self._carrier.close()

    async def _listen(self) -> None:
        opened: list[tuple[Forward, list[socket.socket]]] = []
        try:
            for forward in self._forwards:
                with listening("forward", forward.local):
                    found = await listening_sockets(forward.local.host, forward.local.port, backlog=BACKLOG)
                opened.append((forward, found))
        except BaseException:
            for _, sockets in opened:
                for sock in sockets:
                    sock.close()
            raise
        for forward, sockets in opened:
            self._accept_on(forward, sockets)

    def _accept_on(self, forward: Forward, sockets: list[socket.socket]) -> None:
        target = forward.target

        def accepted(sock: socket.socket, peer: Any) -> None:
            self._accepted(sock, peer, target)

        acceptor = Acceptor(sockets, accepted, lambda sock: reset_when_closed(sock, True), name=str(forward.local))
        self._acceptors.append(acceptor)
        acceptor.start()
        if not is_loopback(forward.local.host):
            extra = {"local": str(forward.local), "target": str(target)}
            logger.warning("every client reaches the target, because the port is not on loopback", extra=extra)
        self._on_listening(forward.local.host, acceptor.port)

    def _accepted(self, sock: socket.socket, peer: Any, target: Address) -> None:
        sock.setblocking(False)
        if len(self._open) >= self._max_connections:
            reset_when_closed(sock, True)
            sock.close()
            self._full(limit="max_connections", most=self._max_connections)
            return
        task = asyncio.get_running_loop().create_task(self._serve(sock, peer, target))
        self._open.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                logger.error("a bug: please report it", exc_info=error)

    async def _serve(self, sock: socket.socket, peer: Any, target: Address) -> None:
        extra: dict[str, object] = {"peer": peer, "target": str(target)}
        try:
            end = await self._carrier.connect(target)
        except ForwardError as error:
            reset_when_closed(sock, True)
            sock.close()
            extra |= {"fault": error.fault, "reason": error.reason}
            if error.request_id:
                extra = {"request_id": error.request_id, **extra}
            logger.warning("a connection could not be forwarded", extra=extra)
            return
        except BaseException:
            reset_when_closed(sock, True)
            sock.close()
            raise
        joint = Joint(end)
        self._joints.add(joint)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: joint.local, sock)
            if not await joint.done:
                logger.info("a forwarded connection was lost", extra=extra)
        except OSError as error:  # the local client has left
            logger.debug("a local connection can't be served", extra={**extra, "reason": str(error)})
        finally:
            self._joints.discard(joint)
            joint.abort()

    def _stop(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()

    async def _drain(self) -> None:
        self._stop()
        if self._open:
            await asyncio.wait(self._open, timeout=self._drain_grace_s)
