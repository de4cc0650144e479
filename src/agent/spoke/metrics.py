"""Makes the metrics of an agent from the counters of its rooms, at each request for them.

Labels' values are ours or the operator's: carriers, causes, stages, hubs' addresses. None is a client's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..telemetry.metrics import Kind, Metric
from ..telemetry.shared_metrics import Measured, Service, of_requests, of_service

if TYPE_CHECKING:
    from ..connections.carrier_policy import CarrierPolicy
    from ..connections.counters import ConnectionCounters
    from ..connections.inbound import FirstPacketBudget
    from ..connections.manager import ConnManager
    from ..proxy import Proxy, Upstreams
    from ..tunnel.session import Tunnel
    from ..tunnel.window import WindowBudget
    from .links import HubLinks

__all__ = ["MODES", "AgentState", "read"]

MODES = ("memory", "uds")
"""The carriers of connections, as values of the label `mode`."""
FROM_HUB, TO_HUB = "from_hub", "to_hub"


class AgentState(Service, Protocol):
    """The attributes of an agent that these metrics read."""

    @property
    def links(self) -> HubLinks: ...
    @property
    def managers(self) -> Mapping[Tunnel, ConnManager]: ...
    @property
    def counters(self) -> ConnectionCounters: ...
    @property
    def carrier_policy(self) -> CarrierPolicy: ...
    @property
    def packets_received(self) -> int: ...
    @property
    def packets_sent(self) -> int: ...
    @property
    def budget(self) -> FirstPacketBudget: ...
    @property
    def windows(self) -> WindowBudget: ...
    @property
    def proxy(self) -> Proxy: ...
    @property
    def upstreams(self) -> Upstreams: ...
    @property
    def request_metrics(self) -> Mapping[str, Measured]: ...
    @property
    def processor(self) -> object: ...


def read(agent: AgentState) -> Iterator[Metric]:
    """All metrics of an agent that runs on this loop."""
    yield from of_service(agent)
    yield from _connections(agent)
    yield from _requests(agent)
    yield from _hubs(agent)
    yield from _reviews(getattr(agent.processor, "counters", None))


def _connections(agent: AgentState) -> Iterator[Metric]:
    open_by: Counter[str] = Counter()
    paused_by: Counter[tuple[str, str]] = Counter()
    for_targets = for_hub = response_bytes = 0
    for tunnel, manager in agent.managers.items():
        for_hub += tunnel.bytes_buffered
        for connection in manager.connections:
            open_by[connection.mode] += 1
            from_hub, to_hub = connection.paused
            paused_by[connection.mode, FROM_HUB] += from_hub
            paused_by[connection.mode, TO_HUB] += to_hub
            for_targets += connection.inbound.held_bytes
            response_bytes += connection.sent_bytes
    counters = agent.counters
    yield _by_mode("connections_open", "gauge", "Connections of hubs' clients that are open.", open_by)
    yield _by_mode("connections_opened", "counter", "Connections opened so far.", counters.opened_by)
    yield Metric.by_labels(
        "connections_ended",
        "counter",
        "Connections ended so far: complete, failed, truncated or client_gone.",
        ("mode", "outcome"),
        counters.ended_by,
    )
    yield Metric.by_labels(
        "connections_refused",
        "counter",
        "Connections that got a 503, past max_connections or while draining.",
        ("mode", "reason"),
        agent.proxy.refused,
    )
    yield Metric.by_labels(
        "connections_paused",
        "gauge",
        "Connections that wait for a slow target (from_hub) or hub (to_hub).",
        ("mode", "direction"),
        paused_by,
    )
    yield Metric.single(
        "memory_share_percent",
        "gauge",
        "Share of new connections that goes through memory.",
        agent.carrier_policy.memory_percent,
    )
    packets = {FROM_HUB: agent.packets_received, TO_HUB: agent.packets_sent}
    yield Metric.by_label("packets", "counter", "Packets of the tunnel, probes included.", "direction", packets)
    carried = {FROM_HUB: counters.inbound_bytes, TO_HUB: counters.outbound_bytes + response_bytes}
    yield Metric.by_label("carried_bytes", "counter", "Clients' bytes carried.", "direction", carried)
    ignored = {
        "closed_id": counters.stray_data,
        "invalid_id": counters.invalid_ids,
        "unknown_code": counters.unknown_codes,
    }
    yield Metric.by_label("packets_ignored", "counter", "Packets that could be for nobody.", "reason", ignored)
    buffered = {"for_targets": for_targets, "for_hub": for_hub, "first_packets": agent.budget.held_bytes}
    yield Metric.by_label("buffered_bytes", "gauge", "Bytes that wait, outside pipes and sockets.", "place", buffered)
    yield Metric.single(
        "window_bytes",
        "gauge",
        "Bytes that hubs may have in flight to slow targets, by the windows of all connections.",
        agent.windows.granted_bytes,
    )


def _requests(agent: AgentState) -> Iterator[Metric]:
    proxy, upstreams = agent.proxy, agent.upstreams
    yield Metric.single("requests_in_flight", "gauge", "Requests being served.", proxy.requests_in_flight)
    used = {"used": upstreams.open_connections - upstreams.idle_connections, "idle": upstreams.idle_connections}
    yield Metric.by_label("target_connections", "gauge", "Connections to targets.", "state", used)
    modes: dict[tuple[str, ...], Measured] = {(mode,): measures for mode, measures in agent.request_metrics.items()}
    yield from of_requests(modes, ("mode",), upstream="target", own="agent", policy=True)


def _hubs(agent: AgentState) -> Iterator[Metric]:
    """By configured address: a name that has several is one label's value."""
    hubs = agent.links.by_hub
    up = {hub: sum(client.ready for client in clients) for hub, clients in hubs}
    yield Metric.by_label(
        "hub_up",
        "gauge",
        "Hubs that responded to the last probe, 1 or 0 unless a name has several addresses.",
        "hub",
        up,
    )
    sessions = {hub: sum(client.sessions for client in clients) for hub, clients in hubs}
    yield Metric.by_label("hub_sessions", "counter", "Sessions in which the hub responded to a probe.", "hub", sessions)
    redials: Counter[tuple[str, str]] = Counter()
    for hub, clients in hubs:
        for client in clients:
            redials.update({(hub, cause): count for cause, count in client.redials.items()})
    yield Metric.by_labels(
        "hub_redials", "counter", "Dials again, by what ended the session before.", ("hub", "cause"), redials
    )


def _reviews(counters: Any) -> Iterator[Metric]:
    """Of a request processor that counts them: `reviews` by outcome, `cache_hits`, `shared`."""
    reviews = getattr(counters, "reviews", None)
    if not isinstance(reviews, Mapping):
        return
    yield Metric.by_label("token_reviews", "counter", "Token reviews, by what came of them.", "outcome", reviews)
    saved = {"cached": counters.cache_hits, "shared": counters.shared}
    yield Metric.by_label("token_reviews_saved", "counter", "Requests that needed no new token review.", "how", saved)


def _by_mode(name: str, kind: Kind, help_text: str, counts: Mapping[str, int]) -> Metric:
    return Metric.by_label(name, kind, help_text, "mode", {mode: counts.get(mode, 0) for mode in MODES})
