"""One further port of a proxy. Its connections have the port's routes, and share everything else with the proxy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import cast

from ..config.limits import ProxyLimits
from ..errors import Party, Refused
from ..http2.connection import Http2Connection
from ..messages import RequestHead, Target
from ..outcome import Outcome
from .clock import Clock
from .context import OwnedConnection
from .decision import Process, Route
from .fixed_port import FixedPortConnection, FixedPortOwner
from .metrics import RequestMetrics
from .origin import ClientOrigin, Origin
from .proxy import Proxy
from .request_id import RequestIds
from .server import ClientConnection
from .upstream import Upstreams

__all__ = ["ProxyPort"]


def _route_nothing(request: RequestHead) -> Target:
    raise Refused(404, "this port serves nothing but CONNECT")


class ProxyPort(FixedPortOwner):
    """The owner of one port's connections, in the proxy's place.

    Args:
        proxy: counts, bounds and drains the connections with its own.
        connect_route: returns the target of each CONNECT, as `Proxy` has it.
        name: of the port in the log. It is the operator's.
        cluster: the cluster that the port leads to, for `RequestHead.cluster`.

    Attributes:
        open_connections: the port's connections that are open.
        opened_connections: those opened so far.
        refused_tunnels: connections of a fixed port that reached no target.
    """

    def __init__(self, proxy: Proxy, connect_route: Route, name: str, cluster: str) -> None:
        self._proxy = proxy
        self.name = name
        self.route: Route = _route_nothing
        self.process: Process | None = None
        self.connect_route: Route | None = connect_route
        self.cluster = cluster
        self.party: Party = proxy.party
        self.owns_clients = proxy.owns_clients
        self.connections_limit = proxy.connections_limit
        self.requests_per_connection = 0
        self.http2_max_streams = 0
        self.open_connections = 0
        self.opened_connections = 0
        self.refused_tunnels = 0

    def connection(self, conn_id: int, outcome: Outcome, carrier: str, origin: ClientOrigin) -> asyncio.Protocol:
        """Return the protocol for a client that sends CONNECT. The arguments are those of `Proxy.connection`."""
        made = ClientConnection(self, conn_id, outcome, carrier, origin)
        return cast(asyncio.Protocol, made)  # by its methods, not its base

    def fixed_connection(
        self, target: bytes, conn_id: int, outcome: Outcome, carrier: str, origin: ClientOrigin
    ) -> asyncio.Protocol:
        """Return the protocol for a client whose bytes go to `target`, HOST:PORT."""
        made = FixedPortConnection(self, target, conn_id, outcome, carrier, origin)
        return cast(asyncio.Protocol, made)  # by its methods, not its base

    # -- the proxy's

    @property
    def limits(self) -> ProxyLimits:  # type: ignore[override]  # it is only read
        return self._proxy.limits

    @property
    def widened_limits(self) -> ProxyLimits:  # type: ignore[override]
        return self._proxy.widened_limits

    @property
    def clock(self) -> Clock:  # type: ignore[override]
        return self._proxy.clock

    @property
    def upstreams(self) -> Upstreams:
        return self._proxy.upstreams

    @property
    def metrics(self) -> Mapping[str, RequestMetrics]:  # type: ignore[override]
        return self._proxy.metrics

    @property
    def request_ids(self) -> RequestIds:  # type: ignore[override]
        return self._proxy.request_ids

    @property
    def refused(self) -> Counter[tuple[str, str]]:  # type: ignore[override]
        return self._proxy.refused

    @property
    def draining(self) -> bool:  # type: ignore[override]
        return self._proxy.draining

    @property
    def leaving(self) -> bool:  # type: ignore[override]
        return self._proxy.leaving

    @property
    def requests_in_flight(self) -> int:
        return self._proxy.requests_in_flight

    @requests_in_flight.setter
    def requests_in_flight(self, number: int) -> None:
        self._proxy.requests_in_flight = number

    def opened(self, connection: OwnedConnection) -> bool:
        self.open_connections += 1
        self.opened_connections += 1
        return self._proxy.opened(connection)

    def speak_http2(
        self, connection: OwnedConnection, outcome: Outcome | None, origin: Origin, is_served: bool
    ) -> Http2Connection:
        raise NotImplementedError("the port serves HTTP/1.1 alone")

    def forget(self, connection: OwnedConnection) -> None:
        self.open_connections -= 1
        self._proxy.forget(connection)
