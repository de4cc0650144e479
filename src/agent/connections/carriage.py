"""What carries an agent's new connections: a share of them pipes, the rest Unix sockets; changed while it runs.

The Unix socket listens from the first moment that a connection may need it until the agent's end: connections that it
carries live on when no new ones use it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from ..errors import ConfigError
from ..outcome import Outcome
from .acceptor import UDSAcceptor
from .memory import MemoryCarriers
from .mixed import Carriers, Share
from .uds import UDSCarriers

__all__ = ["Carriage"]

Accept = Callable[[int, Outcome, str], asyncio.Protocol]


class Carriage:
    """Shared by all sessions of an agent.

    accept: makes the proxy's protocol for one connection, carried by `memory` or by `uds`. memory_percent: the share of
    new connections, over all sessions, that pipes carry. buffer_size: what each holds in each direction, in bytes.
    socket_path: as in UDSAcceptor. Raises ConfigError where a share is left for Unix sockets and there are none.
    """

    def __init__(self, accept: Accept, *, memory_percent: int, buffer_size: int, socket_path: str = "") -> None:
        _check(memory_percent)
        self._accept = accept
        self._share = Share(memory_percent)
        self._buffer_bytes = buffer_size
        self._socket_path = socket_path
        self._memory = MemoryCarriers(lambda conn_id, outcome: accept(conn_id, outcome, "memory"))
        self._acceptor: UDSAcceptor | None = None

    @property
    def memory_percent(self) -> int:
        """The share of new connections that goes through memory."""
        return self._share.percent

    async def start(self) -> None:
        """Be ready for connections. Raises ConfigError where the Unix socket can't be made. Cancelled: not started."""
        await self.change(memory_percent=self._share.percent, buffer_size=self._buffer_bytes)

    async def change(self, *, memory_percent: int, buffer_size: int) -> None:
        """Carry new connections so from now on; those that are open go on as they are.

        Raises ConfigError where the Unix socket is needed and can't be made; then, and when cancelled, nothing changes.
        """
        _check(memory_percent)
        if memory_percent < 100 and self._acceptor is None:
            acceptor = UDSAcceptor(
                lambda conn_id, outcome: self._accept(conn_id, outcome, "uds"),
                socket_path=self._socket_path,
                buffer_size=buffer_size,
            )
            await acceptor.start()
            self._acceptor = acceptor
        if self._acceptor is not None:
            self._acceptor.buffer_size = buffer_size
        self._share.percent = memory_percent
        self._buffer_bytes = self._memory.buffer_size = buffer_size

    def session(self) -> Callable[[], Carriers]:
        """What picks the carriers of each new connection of one session."""
        sockets: UDSCarriers | None = None

        def pick() -> Carriers:
            nonlocal sockets
            if self._share.next():
                return self._memory
            if sockets is None:
                assert self._acceptor is not None  # since a share was left for it
                sockets = UDSCarriers(self._acceptor)
            sockets.buffer_size = self._buffer_bytes
            return sockets

        return pick

    async def close(self) -> None:
        """Stop listening, and end what came by the Unix socket. Cancelled: all of it is done but waiting."""
        if self._acceptor is not None:
            await self._acceptor.close()


def _check(memory_percent: int) -> None:
    if memory_percent < 100 and sys.platform == "win32":
        expected = "must be true (and canary_percent 100, if it is set): on Windows, Unix sockets aren't available"
        raise ConfigError("use_memory_comm", "configuration", expected)
