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

__all__ = ["CarrierPolicy", "Share"]

Accept = Callable[[int, Outcome, str], asyncio.Protocol]


class Share:
    """Says yes `percent` times in any hundred answers in a row, evenly spread: no chance is involved.

    percent: 0 to 100; may be changed at any time. After a change the first hundred answers may be off by one.
    """

    def __init__(self, percent: int) -> None:
        self.percent = percent
        self._owed = 0  # hundredths of a yes

    def next(self) -> bool:
        """The next answer."""
        self._owed += self.percent
        if self._owed < 100:
            return False
        self._owed -= 100
        return True


class CarrierPolicy:
    """Shared by all sessions of an agent.

    accept: makes the proxy's protocol for one connection, carried by `memory` or by `uds`. accept_base: the same for
    connections that come from a hub without features; None: `accept` makes those too. memory_percent: the share of
    new connections, over all sessions, that pipes carry. buffer_bytes: what each holds in each direction.
    socket_path: as in UDSAcceptor. Raises ConfigError where a share is left for Unix sockets and there are none.

    most_connections: of all sessions together; past it no connection is opened. May be changed at any time; None for no
    bound. most_sockets: past so many connections of all sessions new ones are pipes, whatever the share is: the process
    may open no more descriptors, and the proxy refuses what comes then; None for no bound. share: says for each new
    connection whether it is a pipe. acceptor: where the others connect to, None until needed.
    """

    def __init__(
        self,
        accept: Accept,
        *,
        accept_base: Accept | None = None,
        memory_percent: int,
        buffer_bytes: int,
        socket_path: str = "",
        most_connections: int | None = None,
    ) -> None:
        _check(memory_percent)
        self._accept = accept
        self._accept_base = accept_base or accept
        self.share = Share(memory_percent)
        self.buffer_bytes = buffer_bytes
        self.most_connections = most_connections
        self.most_sockets: int | None = None
        self._socket_path = socket_path
        self.acceptor: UDSAcceptor | None = None

    @property
    def memory_percent(self) -> int:
        """The share of new connections that goes through memory."""
        return self.share.percent

    def accept_memory(self, conn_id: int, outcome: Outcome) -> asyncio.Protocol:
        """The proxy's protocol for a connection over a pipe."""
        return self._accept(conn_id, outcome, "memory")

    def accept_base_memory(self, conn_id: int, outcome: Outcome) -> asyncio.Protocol:
        """As `accept_memory`, for a connection that comes from a hub without features."""
        return self._accept_base(conn_id, outcome, "memory")

    async def start(self) -> None:
        """Be ready for connections. Raises ConfigError where the Unix socket can't be made. Cancelled: not started."""
        await self.change(memory_percent=self.share.percent, buffer_bytes=self.buffer_bytes)

    async def change(self, *, memory_percent: int, buffer_bytes: int) -> None:
        """Carry new connections so from now on; those that are open go on as they are.

        Raises ConfigError where the Unix socket is needed and can't be made; then, and when cancelled, nothing changes.
        """
        _check(memory_percent)
        if memory_percent < 100 and self.acceptor is None:
            acceptor = UDSAcceptor(
                lambda conn_id, outcome: self._accept(conn_id, outcome, "uds"),
                accept_base=lambda conn_id, outcome: self._accept_base(conn_id, outcome, "uds"),
                socket_path=self._socket_path,
                buffer_bytes=buffer_bytes,
            )
            await acceptor.start()
            self.acceptor = acceptor
        if self.acceptor is not None:
            self.acceptor.buffer_bytes = buffer_bytes
        self.share.percent = memory_percent
        self.buffer_bytes = buffer_bytes

    async def close(self) -> None:
        """Stop listening, and end what came by the Unix socket. Cancelled: all of it is done but waiting."""
        if self.acceptor is not None:
            await self.acceptor.close()


def _check(memory_percent: int) -> None:
    if memory_percent < 100 and sys.platform == "win32":
        expected = "must be true (and canary_percent 100, if it is set): on Windows, Unix sockets aren't available"
        raise ConfigError("use_memory_comm", "configuration", expected)
