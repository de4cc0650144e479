"""What a hub has counted, as metrics: read off it when somebody asks. No label's value is a client's or an agent's."""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

import fastpipe

from ..telemetry import logs
from ..telemetry.metrics import Metric

if TYPE_CHECKING:
    from .hub import Hub

__all__ = ["read"]

CERTIFICATE_HELP = "When the certificates of a setting's files expire, in seconds since 1970."

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


def read(hub: Hub) -> Iterator[Metric]:
    """All metrics of a hub that runs on this loop."""
    running = {
        "version": version("fastpipe-agent"),
        "fastpipe": fastpipe.IMPLEMENTATION,
        "python": platform.python_version(),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
    }
    yield Metric("build_info", "gauge", "What is running.", tuple(running), [(tuple(running.values()), 1)])
    yield Metric("ready", "gauge", "1 where /readyz says ready.", (), [((), int(hub.ready))])
    ends = sorted(((setting,), end_s) for setting, end_s in hub.credentials.expiries.items())
    yield Metric("certificate_expiry_timestamp_seconds", "gauge", CERTIFICATE_HELP, ("setting",), ends)
    yield from logs.read()
    yield from _agents(hub)
    yield from _requests(hub)
    yield Metric(
        "unfinished_message_bytes",
        "gauge",
        "Bytes of agents' messages that have not come whole.",
        (),
        [((), hub.messages.held_bytes)],
    )
    yield Metric(
        "calls_crowded_out",
        "counter",
        "Agents' calls ended because unfinished messages held all they may.",
        (),
        [((), hub.messages.ended_calls)],
    )


def _agents(hub: Hub) -> Iterator[Metric]:
    sessions = hub.sessions
    by_cluster = Counter(session.cluster for session in sessions if not session.draining)
    clusters = {str(agents): 0 for agents in range(1, MANY)} | {f"{MANY}+": 0}
    for agents in by_cluster.values():
        clusters[str(agents) if agents < MANY else f"{MANY}+"] += 1
    draining = sum(session.draining for session in sessions)
    suspected = sum(session.suspected and not session.draining for session in sessions)
    serving = len(sessions) - draining - suspected
    yield Metric(
        "agents",
        "gauge",
        "Agents' tunnels that are open.",
        ("state",),
        [(("serving",), serving), (("suspected",), suspected), (("draining",), draining)],
    )
    yield Metric(
        "clusters",
        "gauge",
        "Clusters with an agent, by how many each has.",
        ("agents",),
        [((agents,), count) for agents, count in clusters.items()],
    )
    yield Metric("sessions", "counter", "Tunnels opened so far.", (), [((), hub.sessions_opened)])
    door = hub.agent_door
    refused = dict.fromkeys(REASONS, 0) | hub.refused
    if door is not None:
        refused |= door.refused
        refused["descriptors"] = door.refused_descriptors
    yield Metric(
        "agents_refused",
        "counter",
        "Agents refused, and connections to their port that were closed.",
        ("reason",),
        [((reason,), count) for reason, count in refused.items()],
    )
    waiting = door.waiting if door is not None else 0
    yield Metric("agents_waiting", "gauge", "Agents' connections that the hub has not begun with.", (), [((), waiting)])


def _requests(hub: Hub) -> Iterator[Metric]:
    proxy, measures = hub.proxy, hub.measures
    connections = proxy.open_connections if proxy is not None else 0
    in_flight = proxy.requests_in_flight if proxy is not None else 0
    yield Metric("client_connections", "gauge", "Users' connections that are open.", (), [((), connections)])
    yield Metric("requests_in_flight", "gauge", "Requests being served.", (), [((), in_flight)])
    over = sum(proxy.refused.values()) if proxy is not None else 0
    door = hub.user_door
    if door is not None:
        over += door.refused["connections"] + door.refused_descriptors
    yield Metric("connections_refused", "counter", "Users' connections answered 503, or closed.", (), [((), over)])
    responses = [
        ((source, f"{digit}xx"), count)
        for source, by_digit in (("agent", measures.responses), ("hub", measures.own))
        for digit, count in enumerate(by_digit)
        if count
    ]
    responses.append((("agent", "upgraded"), measures.upgraded))
    yield Metric(
        "responses",
        "counter",
        "Responses by whose they are and the first digit of their status.",
        ("source", "status"),
        responses,
    )
    yield Metric("responses_cut", "counter", "Responses that ended unfinished.", (), [((), measures.cut)])
    yield Metric(
        "request_stage_seconds",
        "histogram",
        "How long requests took: connect (new connections to agents), head and body of the response; whole.",
        ("stage",),
        [((stage,), took) for stage, took in measures.stages.items() if stage != "policy"],
    )
    carried = hub.carried_bytes
    yield Metric(
        "carried_bytes",
        "counter",
        "Clients' bytes carried.",
        ("direction",),
        [(("from_agents",), carried[0]), (("to_agents",), carried[1])],
    )
    waiting = sum(session.tunnel.bytes_buffered for session in hub.sessions)
    yield Metric("buffered_bytes", "gauge", "Bytes that wait to be sent to agents.", (), [((), waiting)])
