"""Selects the carrier of each new connection. A percentage uses pipes, and the rest use Unix sockets.

The percentage can change while the agent runs. The Unix socket listens from its first possible use until the agent
stops. Its connections continue even if no new connection uses it.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable

from ..errors import ConfigError
from ..outcome import Outcome
from .acceptor import UDSAcceptor

__all__ = ["CarrierPolicy", "Share"]

Accept = Callable[[int, Outcome, str], asyncio.Protocol]
"""Makes the proxy's protocol for one connection, by its number, the receiver of its outcome, and its carrier."""


class Share:
    """Returns True `percent` times in any hundred calls in a row, evenly spread and not random.

    percent: 0 to 100. It may change at any time. The first hundred results after a change may be off by one.
    """

    def __init__(self, percent: int) -> None:
        self.percent = percent
        self._owed = 0  # hundredths of a True

    def next(self) -> bool:
        """Return whether the next connection is a pipe."""
        self._owed += self.percent
        if self._owed < 100:
            return False
        self._owed -= 100
        return True


class CarrierPolicy:
    """Shared by all sessions of an agent.

    Args:
        accept: makes the proxy's protocol for one connection, carried by `memory` or by `uds`.
        accept_for: returns the same by the hub's features, instead of `accept`.
        memory_percent: the percentage of new connections, over all sessions, that pipes carry.
        buffer_bytes: the bytes that each connection holds in each direction.
        socket_path: as in UDSAcceptor.

    Raises:
        ConfigError: some connections need Unix sockets, and this platform has none.

    Attributes:
        most_connections: the most connections of all sessions together, or None for no bound. The policy opens none
            beyond it. It may change at any time.
        most_sockets: beyond this many connections of all sessions, each new connection is a pipe, whatever the share
            is. The process may then open no more descriptors, and the proxy rejects further sockets. None: no bound.
        share: decides for each new connection whether it is a pipe.
        acceptor: the listener for the other connections, None until needed.
    """

    def __init__(
        self,
        accept: Accept,
        *,
        accept_for: Callable[[frozenset[str]], Accept] | None = None,
        memory_percent: int,
        buffer_bytes: int,
        socket_path: str = "",
        most_connections: int | None = None,
    ) -> None:
        _check(memory_percent)
        self._accept_for = accept_for or (lambda features: accept)
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

    def accept(self, features: frozenset[str], carrier: str) -> Callable[[int, Outcome], asyncio.Protocol]:
        """Return what makes the proxy's protocols for the connections of a hub with these features."""
        accept = self._accept_for(features)
        return lambda conn_id, outcome: accept(conn_id, outcome, carrier)

    async def start(self) -> None:
        """Be ready for connections. Raises ConfigError where the Unix socket can't be made. Cancelled: not started."""
        await self.change(memory_percent=self.share.percent, buffer_bytes=self.buffer_bytes)

    async def change(self, *, memory_percent: int, buffer_bytes: int) -> None:
        """Change the carriers of new connections. Open connections keep their carrier.

        Raises ConfigError if the Unix socket is needed and can't be made. Nothing changes after that error or if
        cancelled.
        """
        _check(memory_percent)
        if memory_percent < 100 and self.acceptor is None:
            acceptor = UDSAcceptor(
                self.accept(frozenset(), "uds"),
                accept_for=functools.partial(self.accept, carrier="uds"),
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
