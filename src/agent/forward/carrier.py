"""The carrier of forwarded connections to a hub, as its users see it, whichever protocol the hub speaks.

local end ──► Carrier.connect ──CONNECT──► hub ──200──► HubEnd ──join──► bytes both ways
                     └──► ForwardError: the hub is not reached, or it refuses
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import ssl
from collections.abc import Callable
from typing import Protocol

from ..syntax import Address

__all__ = ["Carrier", "HubAddress", "HubEnd"]


@dataclasses.dataclass(frozen=True, slots=True)
class HubAddress:
    """The hub's HTTP port.

    address: to dial. tls: makes the context, None for plaintext. server_name: of the certificate.
    """

    address: Address
    tls: Callable[[], ssl.SSLContext] | None = None
    server_name: str = ""


def credentials(cluster: str, token: str) -> str:
    """Return the value of `Proxy-Authorization` that names a cluster (RFC 7617). It is a secret if there is a token."""
    return "Basic " + base64.b64encode(f"{cluster}:{token}".encode()).decode()


class HubEnd(Protocol):
    """The hub's end of an open tunnel. Nothing is read from it before `give_to`."""

    transport: asyncio.Transport
    can_half_close: bool

    def give_to(self, protocol: asyncio.Protocol) -> None:
        """Pass the tunnel's bytes and events to `protocol`, those of the past included.

        `protocol.connection_made` is not called. Without this call, `transport.abort` ends the tunnel.
        """


class Carrier(Protocol):
    """Opens tunnels through a hub."""

    async def connect(self, target: Address) -> HubEnd:
        """Open a tunnel to a target. Raises ForwardError. If cancelled, nothing stays open."""

    async def close(self) -> None:
        """Close what all tunnels share. The tunnels end."""
