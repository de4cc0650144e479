"""Makes the metrics of a hub from its counters, at each request. No label's value is from a client or an agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ..telemetry.metrics import Metric
from ..telemetry.shared_metrics import Measured, Service, of_requests, of_service

if TYPE_CHECKING:
    from ..proxy import Proxy
    from ..tunnel.budget import MessageBudget
    from .agent_door import AgentDoor
    from .connect_ports import ConnectPorts
    from .session import AgentSession
    from .user_door import UserDoor

__all__ = ["HubState", "read"]

REASONS = (
    "policy",
    "tls",
    "max_agents",
    "max_sessions_per_cluster",
    "queue",
    "connections",
    "strangers",
    "no_call",
    "descriptors",
)
"""Why agents are refused: by the hub, and at its door."""

MANY = 3
"""Clusters with so many agents and more are counted together."""


class HubState(Service, Protocol):
    """The attributes of a hub that these metrics read. The proxy and the doors are None before the hub runs."""

    @property
    def sessions(self) -> Sequence[AgentSession]: ...
    @property
    def sessions_opened(self) -> int: ...
    @property
    def refused(self) -> Counter[str]: ...
    @property
    def agent_door(self) -> AgentDoor | None: ...
    @property
    def user_door(self) -> UserDoor | None: ...
    @property
    def connect_ports(self) -> ConnectPorts | None: ...
    @property
    def proxy(self) -> Proxy | None: ...
    @property
    def request_metrics(self) -> Measured: ...
    @property
    def carried_bytes(self) -> tuple[int, int]: ...
    @property
    def messages(self) -> MessageBudget: ...


def read(hub: HubState) -> Iterator[Metric]:
    """All metrics of a hub that runs on this loop."""
    yield from of_service(hub)
    yield from _agents(hub)
    yield from _users(hub)
    yield from of_requests({(): hub.request_metrics}, (), upstream="agent", own="hub", policy=False)
    yield from _bytes(hub)


def _agents(hub: HubState) -> Iterator[Metric]:
    sessions = hub.sessions
    by_cluster = Counter(session.cluster for session in sessions if not session.draining)
    clusters = {str(agents): 0 for agents in range(1, MANY)} | {f"{MANY}+": 0}
    for agents in by_cluster.values():
        clusters[str(agents) if agents < MANY else f"{MANY}+"] += 1
    draining = sum(session.draining for session in sessions)
    suspected = sum(session.suspected and not session.draining for session in sessions)
    states = {"serving": len(sessions) - draining - suspected, "suspected": suspected, "draining": draining}
    yield Metric.by_label("agents", "gauge", "Agents' tunnels that are open.", "state", states)
    yield Metric.by_label("clusters", "gauge", "Clusters with an agent, by how many each has.", "agents", clusters)
    yield Metric.single("sessions", "counter", "Tunnels opened so far.", hub.sessions_opened)
    door = hub.agent_door
    refused = dict.fromkeys(REASONS, 0) | hub.refused
    if door is not None:
        refused |= door.refused
        refused["descriptors"] = door.refused_descriptors
    yield Metric.by_label(
        "agents_refused",
        "counter",
        "Agents refused, and connections to their port that were closed.",
        "reason",
        refused,
    )
    waiting = door.waiting if door is not None else 0
    yield Metric.single("agents_waiting", "gauge", "Agents' connections that the hub has not begun with.", waiting)


def _users(hub: HubState) -> Iterator[Metric]:
    proxy, door = hub.proxy, hub.user_door
    ports = hub.connect_ports.ports if hub.connect_ports is not None else ()
    connections = proxy.open_connections if proxy is not None else 0
    in_flight = proxy.requests_in_flight if proxy is not None else 0
    refused = sum(proxy.refused.values()) if proxy is not None else 0
    if door is not None:
        refused += door.refused["connections"] + door.refused_descriptors
    refused += sum(each.refused["connections"] for each in ports)
    yield Metric.single("client_connections", "gauge", "Users' connections that are open.", connections)
    yield Metric.single("requests_in_flight", "gauge", "Requests being served.", in_flight)
    yield Metric.single("connections_refused", "counter", "Users' connections that got a 503 or were closed.", refused)
    open_now = {each.listener.address: each.port.open_connections for each in ports}
    so_far = {each.listener.address: each.port.opened_connections for each in ports}
    by_reason = {(each.listener.address, reason): count for each in ports for reason, count in each.refused.items()}
    yield Metric.by_label(
        "listener_connections", "gauge", "Connections of listeners that are open.", "address", open_now
    )
    yield Metric.by_label(
        "listener_connections_opened", "counter", "Connections of listeners so far.", "address", so_far
    )
    yield Metric.by_labels(
        "listener_connections_refused",
        "counter",
        "Connections of listeners that were refused.",
        ("address", "reason"),
        by_reason,
    )


def _bytes(hub: HubState) -> Iterator[Metric]:
    from_agents, to_agents = hub.carried_bytes
    carried = {"from_agents": from_agents, "to_agents": to_agents}
    yield Metric.by_label("carried_bytes", "counter", "Clients' bytes carried.", "direction", carried)
    waiting = sum(session.tunnel.bytes_buffered for session in hub.sessions)
    yield Metric.single("buffered_bytes", "gauge", "Bytes that wait to be sent to agents.", waiting)
    yield Metric.single(
        "unfinished_message_bytes",
        "gauge",
        "Bytes of agents' messages that have not come whole.",
        hub.messages.held_bytes,
    )
    yield Metric.single(
        "calls_crowded_out",
        "counter",
        "Agents' calls ended because unfinished messages held all they may.",
        hub.messages.ended_calls,
    )
