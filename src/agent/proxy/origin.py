"""The other end of a client connection: a user, or a hub. It decides which forwarding fields the proxy believes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from ..syntax import find_address

__all__ = ["A_HUB", "A_USER", "NO_HOST", "ClientOrigin", "HubOrigin", "Origin", "origin_of"]


def _nobody(address: str) -> bool:
    return False


@dataclasses.dataclass(frozen=True, slots=True)
class ClientOrigin:
    """A user, or a load balancer in front. The proxy is the edge: it drops forwarding fields and writes its own.

    Attributes:
        peer: the user's IP address, "" if unknown.
        scheme: "http" or "https".
        port: the proxy's port, 0 if unknown.
        is_trusted: the fields of this peer are believed, and appended to.
        trusts: whether an address belongs to a trusted proxy. It finds the user in a trusted peer's X-Forwarded-For.
    """

    peer: str = ""
    scheme: str = "http"
    port: int = 0
    is_trusted: bool = False
    trusts: Callable[[str], bool] = _nobody


@dataclasses.dataclass(frozen=True, slots=True)
class HubOrigin:
    """A hub, as its agent sees it. A hub is trusted if its session has `forwarded`, or by `trust_hub_fields`.

    Attributes:
        is_base: the hub has no features. It writes the first request's framing, so no upgrade follows a body there.
        is_trusted: the hub cleans forwarding fields, so the agent believes and keeps them. Otherwise it drops them.
        prefix: the public path of the agent, if the hub can't be believed: "/c1".
        sends_connect: CONNECT is served, because only the hub itself can have written it (`connect` in wire.md).
    """

    is_base: bool = False
    is_trusted: bool = False
    prefix: str = ""
    sends_connect: bool = False


Origin = ClientOrigin | HubOrigin

A_HUB = HubOrigin()
"""A hub with features, whose forwarding fields are not believed."""

NO_HOST = b"agent"
"""The Host that a hub writes if the user sent no Host, since HTTP/1.1 requires one. X-Forwarded-Host then has another
name, or is missing."""

A_USER = ClientOrigin()
"""A user whose address is that of the connection's socket."""


def origin_of(transport: asyncio.BaseTransport) -> ClientOrigin:
    """Return the user at the other end of a transport, by its socket."""
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    address = find_address(peer[0]) if isinstance(peer, tuple) else None
    return ClientOrigin(
        peer="" if address is None else str(address),
        scheme="http" if transport.get_extra_info("ssl_object") is None else "https",
        port=own[1] if isinstance(own, tuple) else 0,
    )
