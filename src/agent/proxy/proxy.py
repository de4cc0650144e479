"""The Proxy: what makes connections, counts them, bounds them, drains them and looks at their deadlines."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import cast

from ..config.limits import ProxyLimits
from ..errors import Party
from ..http2.connection import Http2Connection
from ..outcome import Outcome
from .clock import Clock
from .context import OwnedConnection
from .decision import Process, Route
from .http2_clients import Http2ClientConnection
from .metrics import RequestMetrics
from .origin import A_HUB, Origin
from .request_id import RequestIds
from .server import ClientConnection
from .upstream import Upstreams

__all__ = ["Proxy"]

LOOKS = 32
"""Connections that are looked at for one that can make room for another."""


class Proxy:
    """An HTTP reverse proxy without a listener: `connection()` makes the protocol for one client connection.

    Args:
        route: returns a request's target. It may return an awaitable, and raise Refused.
        connect_route: the same for a CONNECT, whose head has the client's Proxy-Authorization. None: 405.
        process: returns the head for the target (identity headers), or None for no change. As `route` otherwise.
        upstreams: the pool of connections to targets. The proxy does not close it.
        cluster: passed to `route` with each head.
        max_connections: at this limit a new connection replaces one that was never used, or its first request gets a
            503.
        connections_limit: the name of that setting, for the log.
        party: this proxy's name, for the log and its responses.
        owns_clients: its connections belong to its clients, so closing one ends a body. An agent's connections belong
            to a hub, perhaps a base hub, which has no such end.
        metrics: by carrier, counts the times and responses of its requests.
        http2_max_streams: requests at once on one user's connection by HTTP/2. 0: only HTTP/1.1 is spoken.

    Attributes:
        limits: of new requests and connections. `use_limits` sets them.
        widened_limits: the same, with room in a request's head for what a trusted hub adds.
        refused: counts rejected connections, by (carrier, reason).

    route, limits and max_connections may change at any time. A request in flight uses the old or the new value.
    Everything happens on the loop that runs the transports.
    """

    def __init__(
        self,
        *,
        route: Route,
        upstreams: Upstreams,
        process: Process | None = None,
        connect_route: Route | None = None,
        limits: ProxyLimits | None = None,
        cluster: str = "",
        max_connections: int = 1000,
        connections_limit: str = "max_clients",
        party: Party = "agent",
        owns_clients: bool = False,
        metrics: Mapping[str, RequestMetrics] | None = None,
        http2_max_streams: int = 0,
    ) -> None:
        self.route = route
        self.process = process
        self.connect_route = connect_route
        self.upstreams = upstreams
        self.limits = limits or ProxyLimits()
        self.widened_limits = self.limits.widened()
        self.cluster = cluster
        self.max_connections = max_connections
        self.connections_limit = connections_limit
        self.party: Party = party
        self.owns_clients = owns_clients
        self.metrics = metrics or {}
        self.http2_max_streams = http2_max_streams
        self.refused: Counter[tuple[str, str]] = Counter()
        self.draining = False
        self.leaving = False
        self.requests_per_connection = 0
        self.requests_in_flight = 0
        self.request_ids = RequestIds()
        self.clock = Clock(self.limits.tick_s, self._sweep)
        self._connections: dict[OwnedConnection, None] = {}  # those looked at least recently first
        self._empty: asyncio.Event | None = None

    def use_limits(self, limits: ProxyLimits) -> None:
        """Set the limits of new requests and connections."""
        self.limits, self.widened_limits = limits, limits.widened()

    @property
    def open_connections(self) -> int:
        """Client connections, in use and idle."""
        return len(self._connections)

    def connection(self, conn_id: int, outcome: Outcome, carrier: str = "", origin: Origin = A_HUB) -> asyncio.Protocol:
        """Return the protocol for one client connection.

        Args:
            outcome: called once with the connection's end, before its transport is closed.
            carrier: its name in the counters.
            origin: the other end, and the forwarding fields that are believed of it.
        """
        made = ClientConnection(self, conn_id, outcome, carrier, origin)
        return cast(asyncio.Protocol, made)  # by its methods, not its base

    def bound_requests(self, each: int) -> None:
        """From now on close each connection after this many responses, and announce it on the last. 0: no limit."""
        if each != self.requests_per_connection:
            self.requests_per_connection = each
            for connection in self._connections:
                connection.requests_left = each

    def close_after_responses(self) -> None:
        """Send `Connection: close` on every response from now on, and then close.

        Idle and new connections are still served, because a request may be on its way.
        """
        self.leaving = True

    def start_draining(self) -> None:
        """Close idle connections now, and the others after the response in flight. New connections get a 503."""
        self.draining = True
        for connection in list(self._connections):
            connection.close_if_idle()

    async def wait_drained(self, timeout_s: float) -> bool:
        """Wait until no connection is left, at most `timeout_s` seconds. Returns whether that is so. Cancelled: nothing
        has changed."""
        if not self._connections:
            return True
        if self._empty is None:
            self._empty = asyncio.Event()
        self._empty.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return not self._connections
        return True

    def close(self) -> None:
        """End every connection at once, cutting what is in flight."""
        self.draining = True
        for connection in list(self._connections):
            connection.abort()
        self.clock.stop()

    def opened(self, connection: OwnedConnection) -> bool:
        """Count a connection. Returns whether it may have its requests served."""
        self._connections[connection] = None
        self.clock.start()
        if self.draining:
            self.refused[connection.carrier, "draining"] += 1
        elif len(self._connections) > self.max_connections and not self.make_room():
            self.refused[connection.carrier, "max_connections"] += 1
        else:
            return True
        return False

    def speak_http2(
        self, connection: OwnedConnection, outcome: Outcome | None, origin: Origin, is_served: bool
    ) -> Http2Connection:
        """Return the protocol that takes a connection's place, because its client speaks HTTP/2."""
        made = Http2ClientConnection(
            self,
            connection.conn_id,
            outcome,
            connection.carrier,
            origin,
            is_served=is_served,
            max_streams=self.http2_max_streams,
        )
        del self._connections[connection]
        self._connections[made] = None
        return made.protocol

    def make_room(self) -> bool:
        """Close a connection that has sent no byte for a second. Returns whether there is one, as far as it looks."""
        for connection in list(itertools.islice(self._connections, LOOKS)):
            del self._connections[connection]
            self._connections[connection] = None  # so that the next look is at others
            if connection.is_silent():
                connection.abort()
                return True
        return False

    def forget(self, connection: OwnedConnection) -> None:
        """Forget a closed connection."""
        self._connections.pop(connection, None)
        if not self._connections and self._empty is not None:
            self._empty.set()

    def _sweep(self, now: float) -> bool:
        for connection in list(self._connections):
            connection.look_at_deadlines(now)
        for metrics in self.metrics.values():
            metrics.settle()
        return bool(self._connections)
