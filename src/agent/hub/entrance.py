"""The connections before their first protocol, of all doors for users. One limit holds for them all."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Protocol

from ..runtime.acceptor import hang_up

__all__ = ["Abortable", "Entrance"]


MOST_LEAVING = 16
"""The most connections that have given way to others and are not closed yet, since each still has a descriptor."""


class Abortable(Protocol):
    """A protocol that only sends a response."""

    def abort(self) -> None: ...


class Entrance:
    """Holds the connections in TLS handshakes, PROXY headers and refusals.

    Attributes:
        entering: the tasks that let connections in, the oldest first.
        leaving: those of connections that have given way, and are not closed yet.
        answering: the protocols that refuse connections.
        most: the limit of `entering`, beyond which the oldest gives way.
    """

    def __init__(self, most: int) -> None:
        self.entering: dict[asyncio.Task[Any], socket.socket] = {}
        self.leaving: set[asyncio.Task[Any]] = set()
        self.answering: set[Abortable] = set()
        self.most = most

    def __len__(self) -> int:
        return len(self.entering) + len(self.answering)

    @property
    def is_full(self) -> bool:
        """Whether the oldest connection must give way to a new one."""
        return len(self.entering) >= self.most

    @property
    def is_busy(self) -> bool:
        """Whether further connections must wait until those that have given way are closed."""
        return len(self.leaving) >= MOST_LEAVING

    def hang_up_oldest(self) -> None:
        """Close the connection that has been entering for longest. There is one."""
        oldest = next(iter(self.entering))
        self.leaving.add(oldest)
        hang_up(self.entering.pop(oldest))

    def forget(self, task: asyncio.Task[Any]) -> None:
        """Forget a task that has ended."""
        self.entering.pop(task, None)
        self.leaving.discard(task)
