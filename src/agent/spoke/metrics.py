"""What an agent's rooms have counted, as metrics: read off them when somebody asks.

Labels' values are ours or the operator's: carriers, causes, stages, hubs' addresses. None is a client's.
"""

from __future__ import annotations

import asyncio
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import fastpipe

from ..telemetry import logs
from ..telemetry.metrics import Metric

if TYPE_CHECKING:
    from .agent import Agent

__all__ = ["read"]

CERTIFICATE_HELP = "When the certificates of a setting's files expire, in seconds since 1970."
MODES = ("memory", "uds")
FROM_HUB, TO_HUB = "from_hub", "to_hub"


def read(agent: Agent) -> Iterator[Metric]:
    """All metrics of an agent that runs on this loop."""
    yield _build_info()
    yield Metric("ready", "gauge", "1 where /readyz says ready.", (), [((), int(agent.ready))])
    yield from _certificates(agent)
    yield from logs.read()
    yield from _connections(agent)
    yield from _requests(agent)
    yield from _hubs(agent)
    yield from _reviews(getattr(agent.processor, "counters", None))


def _build_info() -> Metric:
    values = {
        "version": version("fastpipe-agent"),
        "fastpipe": fastpipe.IMPLEMENTATION,
        "python": platform.python_version(),
        "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
    }
    return Metric("build_info", "gauge", "What is running.", tuple(values), [(tuple(values.values()), 1)])


def _certificates(agent: Agent) -> Iterator[Metric]:
    ends = {(setting,): end_s for setting, end_s in agent.credentials.expiries.items()}
    yield _table("certificate_expiry_timestamp_seconds", "gauge", CERTIFICATE_HELP, ("setting",), ends)


def _connections(agent: Agent) -> Iterator[Metric]:
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
            response_bytes += connection.response_bytes
    counters = agent.counters
    yield _by_mode("connections_open", "gauge", "Connections of hubs' clients that are open.", open_by)
    yield _by_mode("connections_opened", "counter", "Connections opened so far.", counters.opened_by)
    yield _table(
        "connections_ended",
        "counter",
        "Connections ended so far: complete, failed, truncated or client_gone.",
        ("mode", "outcome"),
        counters.ended_by,
    )
    yield _table(
        "connections_refused",
        "counter",
        "Connections answered 503: past max_connections, or draining.",
        ("mode", "reason"),
        agent.proxy.refused,
    )
    yield _table(
        "connections_paused",
        "gauge",
        "Connections that wait for a slow target (from_hub) or hub (to_hub).",
        ("mode", "direction"),
        paused_by,
    )
    yield Metric(
        "memory_share_percent",
        "gauge",
        "Share of new connections that goes through memory.",
        (),
        [((), agent.carriage.memory_percent)],
    )
    packets = {
        FROM_HUB: agent.past_packets[0] + sum(tunnel.packets_received for tunnel in agent.managers),
        TO_HUB: agent.past_packets[1] + sum(tunnel.packets_sent for tunnel in agent.managers),
    }
    yield _table("packets", "counter", "Packets of the tunnel, probes included.", ("direction",), _keyed(packets))
    carried = {FROM_HUB: counters.inbound_bytes, TO_HUB: counters.outbound_bytes + response_bytes}
    yield _table("carried_bytes", "counter", "Clients' bytes carried.", ("direction",), _keyed(carried))
    ignored = {
        "closed_id": counters.stray_data,
        "invalid_id": counters.invalid_ids,
        "unknown_code": counters.unknown_codes,
    }
    yield _table("packets_ignored", "counter", "Packets that could be for nobody.", ("reason",), _keyed(ignored))
    buffered = {"for_targets": for_targets, "for_hub": for_hub, "first_packets": agent.budget.held_bytes}
    yield _table("buffered_bytes", "gauge", "Bytes that wait, outside pipes and sockets.", ("place",), _keyed(buffered))
    yield Metric(
        "window_bytes",
        "gauge",
        "What hubs may have under way to slow targets, by the windows of all connections.",
        (),
        [((), agent.windows.granted_bytes)],
    )


def _requests(agent: Agent) -> Iterator[Metric]:
    proxy, upstreams = agent.proxy, agent.upstreams
    yield Metric("requests_in_flight", "gauge", "Requests being served.", (), [((), proxy.requests_in_flight)])
    used = {"used": upstreams.open_connections - upstreams.idle_connections, "idle": upstreams.idle_connections}
    yield _table("target_connections", "gauge", "Connections to targets.", ("state",), _keyed(used))
    responses: dict[tuple[str, ...], int] = {}
    for mode, measures in agent.measures.items():
        for source, by_digit in (("target", measures.responses), ("agent", measures.own)):
            for digit, count in enumerate(by_digit):
                if count or (digit == 2 and source == "target"):
                    responses[mode, source, f"{digit}xx"] = count
        responses[mode, "target", "upgraded"] = measures.upgraded
    yield _table(
        "responses",
        "counter",
        "Responses by whose they are and the first digit of their status.",
        ("mode", "source", "status"),
        responses,
    )
    cut = {(mode,): measures.cut for mode, measures in agent.measures.items()}
    yield _table("responses_cut", "counter", "Responses that ended unfinished.", ("mode",), cut)
    yield Metric(
        "request_stage_seconds",
        "histogram",
        "How long requests took: policy, connect (new connections to targets), head and body of the response; whole.",
        ("mode", "stage"),
        [((mode, stage), took) for mode, each in agent.measures.items() for stage, took in each.stages.items()],
    )


def _hubs(agent: Agent) -> Iterator[Metric]:
    """By configured address: a name that has several is one label's value."""
    hubs = [(str(hub), agent.links.clients_of(number)) for number, hub in enumerate(agent.config.hub_addresses)]
    up = {(hub,): sum(client.ready for client in clients) for hub, clients in hubs}
    yield _table(
        "hub_up",
        "gauge",
        "How many hubs have answered the last probe: 1 or 0, unless a name has several.",
        ("hub",),
        up,
    )
    sessions = {(hub,): sum(client.sessions for client in clients) for hub, clients in hubs}
    yield _table("hub_sessions", "counter", "Sessions that the hub has answered a probe in.", ("hub",), sessions)
    redials: Counter[tuple[str, str]] = Counter()
    for hub, clients in hubs:
        for client in clients:
            redials.update({(hub, cause): count for cause, count in client.redials.items()})
    yield _table("hub_redials", "counter", "Dials again, by what ended the session before.", ("hub", "cause"), redials)


def _reviews(counters: Any) -> Iterator[Metric]:
    """Of a request processor that counts them: `reviews` by outcome, `cache_hits`, `shared`."""
    reviews = getattr(counters, "reviews", None)
    if not isinstance(reviews, Mapping):
        return
    yield _table("token_reviews", "counter", "Token reviews, by what came of them.", ("outcome",), _keyed(reviews))
    saved = {"cached": counters.cache_hits, "shared": counters.shared}
    yield _table("token_reviews_saved", "counter", "Requests that needed none of their own.", ("how",), _keyed(saved))


def _by_mode(name: str, kind: Any, help_text: str, counts: Mapping[str, int]) -> Metric:
    return Metric(name, kind, help_text, ("mode",), [((mode,), counts.get(mode, 0)) for mode in MODES])


def _table(name: str, kind: Any, help_text: str, labels: tuple[str, ...], counts: Mapping[Any, float]) -> Metric:
    return Metric(name, kind, help_text, labels, sorted(counts.items()))


def _keyed(counts: Mapping[str, int]) -> dict[tuple[str], int]:
    return {(key,): count for key, count in counts.items()}
