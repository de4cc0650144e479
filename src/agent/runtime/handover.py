"""The first protocol of a connection whose own protocol is chosen when the connection is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

__all__ = ["HandOver"]


class HandOver(asyncio.Protocol):
    """Hands the connection to the protocol that `choose` returns. If `choose` returns None, aborts the connection.

    choose: called once with the connected transport, to read the peer's name or certificate from it. Raises nothing.
    """

    def __init__(self, choose: Callable[[asyncio.Transport], asyncio.BaseProtocol | None]) -> None:
        self._choose = choose

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast(asyncio.Transport, transport)  # uvloop's transports are no subclasses
        protocol = self._choose(made)
        if protocol is None:
            made.abort()
            return
        made.set_protocol(protocol)
        protocol.connection_made(made)
