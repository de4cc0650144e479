"""The proxy, as its exchanges and client connections see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from ..config.limits import ProxyLimits
from ..errors import Party
from ..http2.connection import Http2Connection
from ..messages import Target
from ..outcome import Outcome
from .clock import Clock
from .decision import Process, Route
from .metrics import RequestMetrics
from .origin import Origin
from .request_id import RequestIds
from .upstream_stream import UpstreamStream

__all__ = ["ConnectionOwner", "ExchangeContext", "OwnedConnection", "StreamPool"]


class StreamPool(Protocol):
    """Where streams to targets come from."""

    def take(self, target: Target) -> UpstreamStream | None:
        """Return a stream that needs no dial, or None."""

    async def dial(self, target: Target) -> UpstreamStream:
        """A stream on a new connection. Raises TargetError. Cancelled: nothing stays open."""


class ExchangeContext(Protocol):
    """The settings and pools that all exchanges of a proxy share. Each request reads them, since some can change."""

    route: Route
    process: Process | None
    connect_route: Route | None
    limits: ProxyLimits
    cluster: str
    party: Party
    clock: Clock

    @property
    def upstreams(self) -> StreamPool: ...


class OwnedConnection(Protocol):
    """One client connection, as its proxy sees it."""

    conn_id: int
    carrier: str
    metrics: RequestMetrics | None
    requests_left: int

    def is_silent(self) -> bool:
        """Whether the client has been connected for a second, and has sent nothing at all."""

    def close_if_idle(self) -> None:
        """End the connection if no request is outstanding on it."""

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the clock's time in seconds."""

    def abort(self) -> None:
        """End the connection at once."""


class ConnectionOwner(ExchangeContext, Protocol):
    """The proxy, as its client connections see it."""

    metrics: Mapping[str, RequestMetrics]
    draining: bool
    leaving: bool
    owns_clients: bool
    connections_limit: str
    requests_per_connection: int
    request_ids: RequestIds
    widened_limits: ProxyLimits
    requests_in_flight: int
    http2_max_streams: int
    refused: Counter[tuple[str, str]]

    def opened(self, connection: OwnedConnection) -> bool:
        """Count a connection. Returns whether it may have its requests served."""

    def speak_http2(
        self, connection: OwnedConnection, outcome: Outcome | None, origin: Origin, is_served: bool
    ) -> Http2Connection:
        """Return the protocol that takes a connection's place, because its client speaks HTTP/2."""

    def forget(self, connection: OwnedConnection) -> None:
        """Forget a closed connection."""
