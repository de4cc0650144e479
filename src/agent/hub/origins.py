"""Names the user of a connection: its socket's peer, or the source in a trusted proxy's PROXY header."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..proxy.origin import ClientOrigin
from ..syntax import IpAddress, find_address, parse_network
from .proxy_protocol import ProxyHeader

__all__ = ["Origins"]


class Origins:
    """Makes the origin of each connection of a port.

    Args:
        trusted: addresses and networks of trusted proxies, as the setting `trusted_proxies` has them.
        scheme: of the port, "http" or "https".

    Attributes:
        port: the number of the port, set when it listens.
    """

    def __init__(self, trusted: Sequence[str], scheme: str) -> None:
        self._networks = tuple(map(parse_network, trusted))
        self._scheme = scheme
        self.port = 0

    def of_socket(self, address: Any) -> ClientOrigin:
        """The origin of a connection that nothing else is known of. address: the socket's peer, (host, port, …)."""
        found = find_address(address[0]) if isinstance(address, tuple) else None
        peer = "" if found is None else str(found)
        return ClientOrigin(peer, self._scheme, self.port, self._has(found), self.trusts)

    def of_header(self, proxy: ClientOrigin, header: ProxyHeader) -> ClientOrigin:
        """The origin of a connection with a PROXY header. proxy: the socket's own origin.

        A proxy that sends a header may forward bytes as they are. Then the user wrote the forwarding fields, so they
        are believed only if the source is itself a trusted proxy.
        """
        if header.is_local:  # the proxy itself is the client
            return proxy
        if not header.source:
            return ClientOrigin(proxy.peer, self._scheme, self.port, is_trusted=False, trusts=self.trusts)
        port = header.port or self.port
        return ClientOrigin(header.source, self._scheme, port, self.trusts(header.source), self.trusts)

    def trusts(self, address: str) -> bool:
        """Whether a trusted proxy has this IP address. False for any other text."""
        return self._has(find_address(address))

    def _has(self, address: IpAddress | None) -> bool:
        return address is not None and any(address in network for network in self._networks)
