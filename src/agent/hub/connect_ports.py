"""The hub's listeners for CONNECT: from `[[listeners]]` to doors whose connections lead to one cluster.

fixed port        client's bytes ──► door ──► FixedPortConnection ──CONNECT──► the cluster's agent ──► target
CONNECT listener  client's CONNECT ──► door ──► ClientConnection ──CONNECT──► the cluster's agent ──► any target
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping

from ..config.listeners import Listener
from ..errors import listening
from ..messages import RequestHead, Target
from ..outcome import Outcome
from ..policy.trust import handshake_failure, server_context
from ..proxy import Proxy
from ..proxy.origin import ClientOrigin
from ..proxy.port import ProxyPort
from ..runtime.acceptor import listening_sockets
from ..runtime.unix_sockets import UnixListener, listen_at, locked, make_room_at
from ..syntax import parse_address
from .entrance import Entrance
from .user_door import UserDoor

__all__ = ["ConnectPort", "ConnectPorts", "MakeProtocol", "listener_tls"]

SETTING = "listener"

MakeProtocol = Callable[[int, Outcome, str, ClientOrigin], asyncio.Protocol]
"""Makes the protocol of one connection. The arguments are those of `Proxy.connection`."""


class ConnectPort:
    """One listener.

    listener: its configuration. port: counts its connections, and routes them. door: admits them.
    """

    def __init__(self, listener: Listener, port: ProxyPort, door: UserDoor) -> None:
        self.listener = listener
        self.port = port
        self.door = door
        self.number = 0
        self._sockets: list[socket.socket] = []
        self._unix: UnixListener | None = None

    @property
    def host(self) -> str:
        """The address's host, or `unix:` with the path."""
        return self.listener.address if self.listener.path else parse_address(self.listener.address, listen=True).host

    @property
    def refused(self) -> Mapping[str, int]:
        """Connections refused so far: too many, by TLS or its certificate, or because no target was reached."""
        refused = self.door.refused
        return {
            "connections": refused["connections"] + refused["handshakes"] + self.door.refused_descriptors,
            "tls": refused["tls"] + refused["no_certificate"] + refused["not_tls"],
            "connect": self.port.refused_tunnels,
        }

    async def listen(self, backlog: int) -> None:
        """Make the listening sockets, which accept nothing yet. Raises ListenError."""
        with listening(SETTING, self.listener.address):
            if self.listener.path:
                self._listen_at(self.listener.path, backlog)
            else:
                host, port = parse_address(self.listener.address, listen=True)
                self._sockets = await listening_sockets(host, port, backlog=backlog)

    def _listen_at(self, path: str, backlog: int) -> None:
        path = os.path.abspath(path)
        with locked(os.path.dirname(path)):
            make_room_at(path)
            self._unix = listen_at(path, backlog=backlog)
        self._sockets = [self._unix.sock]

    def open(self) -> None:
        """Accept from now on."""
        sockets, self._sockets = self._sockets, []
        self.number = self.door.open(sockets)

    def stop(self) -> None:
        """Accept no more, and remove the Unix socket. Repeated calls do nothing."""
        self.door.stop()
        for sock in self._sockets:
            sock.close()
        self._sockets = []
        if self._unix is not None:
            self._unix.remove()
            self._unix = None


def listener_tls(listener: Listener) -> ssl.SSLContext | None:
    """Return the TLS of a listener, None for plaintext. Raises ConfigError."""
    if not listener.cert_file:
        return None
    return server_context(
        listener.cert_file,
        listener.key_file,
        cert_field=SETTING,
        client_ca_file=listener.client_ca_file,
        client_ca_field=SETTING,
        client_required=False,  # the door refuses clients without one, and logs them
        alpn=() if listener.target else ["http/1.1"],
    )


class ConnectPorts:
    """All listeners of a hub, in the order of the configuration.

    Args:
        listeners: each with its TLS.
        proxy: counts, bounds and drains the connections with its own.
        route: returns the target of a CONNECT. The listener's cluster is in its head.
        serve: calls the maker of a connection's protocol.
        max_connections, entrance: as in `UserDoor`, for all of the hub's doors together.
    """

    def __init__(
        self,
        listeners: Iterable[tuple[Listener, ssl.SSLContext | None]],
        *,
        proxy: Proxy,
        route: Callable[[RequestHead], Target],
        serve: Callable[[MakeProtocol, ClientOrigin], asyncio.Protocol],
        max_connections: int,
        entrance: Entrance,
    ) -> None:
        found = []
        for listener, tls in listeners:
            port = ProxyPort(proxy, route, listener.address, listener.cluster)
            make: MakeProtocol = port.connection
            if listener.target:
                make = functools.partial(port.fixed_connection, listener.target.encode("ascii"))
            door = UserDoor(
                protocol=functools.partial(serve, make),
                open_connections=lambda: proxy.open_connections,
                make_room=proxy.make_room,
                max_connections=max_connections,
                tls=tls,
                certificate_required=listener.requires_certificate,
                reason_of=handshake_failure,
                entrance=entrance,
                fixed_port=listener.address if listener.target else "",
            )
            found.append(ConnectPort(listener, port, door))
        self.ports = tuple(found)

    async def listen(self, backlog: int) -> None:
        """Make all listening sockets. Raises ListenError. Then none of them stays open."""
        try:
            for port in self.ports:
                await port.listen(backlog)
        except BaseException:
            self.stop()
            raise

    def open(self, on_listening: Callable[[str, str, int], None]) -> None:
        """Accept from now on, and announce each listener."""
        for port in self.ports:
            port.open()
        for port in self.ports:
            on_listening(SETTING, port.host, port.number)

    def stop(self) -> None:
        """Accept no more. Repeated calls do nothing."""
        for port in self.ports:
            port.stop()

    async def close(self) -> None:
        """Close all connections that are not the proxy's yet. Cancelled: they are closed but not waited for."""
        self.stop()
        for port in self.ports:
            await port.door.close()
