"""The goals: each with its bound and the measurement that decides it."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence

from .measuring import Measurement, Ratio, number, spread

__all__ = ["GOALS", "Goal", "table"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """One goal.

    case: the name of the case.
    of: a variant.
    over: the variant of is compared with. If "", its own median counts.
    bound: the lowest allowed value, or with at_most the highest.
    worst: the goal takes the worst round of all cases that match `case` as a pattern, rather than a median.
    """

    text: str
    case: str
    metric: str
    of: str
    over: str
    bound: float
    unit: str = "×"
    at_most: bool = False
    worst: bool = False


GOALS = (
    Goal("p99 of the pipe's round trip", "pipe round trip 64 B", "round trip p99", "pipe", "UDS", 12),
    Goal("p99 of the whole hop, in-process target", "hop in-process target", "latency p99", "memory", "UDS", 1.5),
    Goal("requests/s, connection per request", "hop connection per request", "requests/s", "memory", "UDS", 2),
    Goal("CPU per request of the hop, kept-alive (−25%)", "hop kept-alive", "CPU per request", "memory", "UDS", 1.333),
    Goal("memory per open connection (−50%)", "open connections", "memory with the kernel's", "memory", "UDS", 2),
    Goal("whole path, 50 kept-alive", "whole path 1 KiB, 50 clients", "requests/s", "memory", "", 12_000, "1/s"),
    *(
        Goal(f"failures, {clients}", f"whole path*, {clients}*", "failures", "memory", "", 0, "", True, True)
        for clients in ("1 client", "10 clients", "50 clients", "200 clients", "500 clients")
    ),
    Goal("failures of UDS, any number of clients", "whole path*", "failures", "UDS", "", 0, "", True, True),
    Goal("1 GiB download, whole path", "whole path 1 GiB download", "throughput", "memory", "", 800, "MB/s"),
    *(
        Goal(
            f"p99 of 1 KiB beside a 1 GiB download, {mode}",
            "whole path 1 KiB beside a download",
            "p99 beside over p99 alone",
            mode,
            "",
            3,
            "×",
            True,
        )
        for mode in ("memory", "UDS")
    ),
    *(
        Goal(
            f"1 GiB over {way} to the HTTP download, {mode}",
            "forwarded 1 GiB",
            "throughput",
            f"{mode}, {way}",
            f"{mode}, HTTP",
            0.9,
        )
        for mode in ("memory", "UDS")
        for way in ("fixed port", "CONNECT")
    ),
    *(
        Goal(
            f"64 B there and back over {way}, to a kept-alive request (1 / 1.2), {mode}",
            "forwarded 64 B",
            "round trip",
            f"{mode}, {way}",
            f"{mode}, HTTP",
            1 / 1.2,
        )
        for mode in ("memory", "UDS")
        for way in ("fixed port", "CONNECT")
    ),
    Goal("cold start of `run` to ready", "start", "time to ready", "memory", "", 400, "ms", True),
    Goal("round trip 64 B, default delivery", "pipe round trip 64 B", "round trip", "pipe", "UDS", 20),
    Goal("round trip 64 B, inline", "pipe round trip 64 B", "round trip", "pipe, inline", "UDS", 40),
    Goal("p99 of it, inline", "pipe round trip 64 B", "round trip p99", "pipe, inline", "UDS", 30),
    Goal("round trip 64 B, Python twin", "pipe round trip 64 B", "round trip", "Python twin", "UDS", 4),
    Goal("round trip 64 B, the twins", "pipe round trip 64 B", "round trip", "pipe", "Python twin", 3),
    Goal("isolated hop, default delivery", "pipe hop", "hop", "pipe", "UDS", 3),
    Goal("isolated hop, inline", "pipe hop", "hop", "pipe, inline", "UDS", 10),
    Goal("one way, 64 KiB writes", "pipe one way", "throughput", "pipe", "UDS", 10),
    Goal("one way into a BufferedProtocol", "pipe one copy", "throughput", "BufferedProtocol", "memoryview copy", 0.8),
    Goal("one way by readinto", "pipe one copy", "throughput", "readinto", "memoryview copy", 0.8),
    Goal("make, connect and close a pair, 100 at a time", "pipe lives", "life", "pipe", "UDS", 15),
    Goal("the same, one after another", "pipe life", "life", "pipe", "UDS", 15),
    Goal("memory of an idle pair", "pipe idle", "memory", "pipe", "", 800, "bytes", True),
    Goal("round trip through awaited streams", "streams round trip", "round trip", "pipe", "UDS", 3),
    Goal("a request through uvicorn's protocol", "uvicorn request", "time", "pipe", "UDS", 1.8),
    Goal("CPU per packet of 256 B", "tunnel 256 B, grpcio hub", "CPU per packet", "compiled", "grpc.aio", 8),
    Goal("the same, Python twin", "tunnel 256 B, grpcio hub", "CPU per packet", "python", "grpc.aio", 2),
    Goal("CPU per packet of 32 KiB", "tunnel 32 KiB, grpcio hub", "CPU per packet", "compiled", "grpc.aio", 3),
    Goal("MB/s of them there", "tunnel 32 KiB, grpcio hub", "throughput", "compiled", "grpc.aio", 0.8),
    Goal("MB/s of 32 KiB packets, own to own", "tunnel 32 KiB, own hub", "throughput", "compiled", "grpc.aio", 2),
    Goal(
        "CPU per packet, 10,000 connections open to 10 (1 / 1.3)",
        "tunnel 10,000 open connections",
        "CPU per packet",
        "10,000 open",
        "10 open",
        1 / 1.3,
    ),
    Goal(
        "memory of an open connection in the tunnel",
        "tunnel 10,000 open connections",
        "memory in the process",
        "10,000 open",
        "",
        6 << 10,
        "bytes",
        True,
    ),
    Goal(
        "memory of one between tunnel and proxy",
        "open connections",
        "memory in the process",
        "memory",
        "",
        6 << 10,
        "bytes",
        True,
    ),
    *(
        Goal(
            f"the agent's memory for each of 10,000 {who} users",
            "10,000 users",
            "agent's memory per connection",
            f"memory, {who}",
            "",
            6 << 10,
            "bytes",
            True,
        )
        for who in ("idle", "watching")
    ),
    *(
        Goal(
            f"its CPU per request beside 10,000 {who}, to 10 alone (1 / 1.3)",
            "10,000 users",
            "agent's CPU per request",
            f"memory, {who}",
            "memory, 10 open",
            1 / 1.3,
        )
        for who in ("idle", "watching")
    ),
    Goal("CPU per request of the hop, 1 KiB", "hop kept-alive", "CPU per request", "memory", "", 20, "µs", True),
    Goal(
        "the same, no two heads alike",
        "hop kept-alive, heads that differ",
        "CPU per request",
        "memory",
        "",
        20,
        "µs",
        True,
    ),
    Goal("the same against UDS (−25%)", "hop kept-alive, heads that differ", "CPU per request", "memory", "UDS", 1.333),
    Goal("1 GiB through the hop against the baseline", "hop 1 GiB download", "throughput", "memory", "baseline", 0.8),
    Goal("the same, upload", "hop 1 GiB upload", "throughput", "memory", "baseline", 0.8),
    Goal(
        "memory that either takes at its peak",
        "hop 1 GiB *load",
        "memory grown at its peak",
        "memory",
        "",
        32,
        "MiB",
        True,
        True,
    ),
    Goal("gRPC unary against nginx with two hops", "gRPC unary", "calls/s", "memory", "nginx, two hops", 0.35),
    Goal("failures of these calls", "gRPC unary", "failures", "memory", "", 0, "", True, True),
    Goal(
        "CPU of an HTTP/2 request against an HTTP/1.1 request (1 / 1.5)",
        "HTTP/2 requests",
        "hub's and agent's CPU per request",
        "HTTP/2, 50 × 10",
        "HTTP/1.1, 500",
        1 / 1.5,
    ),
    Goal("requests/s to a TLS target, pooled", "hop TLS target", "requests/s", "pooled", "connection per request", 10),
)


def table(measurements: Sequence[Measurement], ratios: Sequence[Ratio]) -> str:
    """Markdown: each goal whose case has run, what was reached, from the worst to the best round.

    A value below its metric's resolution is shown as that. It can meet only an upper bound, and only if the resolution
    is not above that bound.
    """
    lines = ["| measured | goal | reached | rounds | |", "| --- | ---: | ---: | ---: | --- |"]
    for goal in GOALS:
        resolution = 0.0
        if goal.over:
            found = [
                item
                for item in ratios
                if (item.case, item.metric, item.of, item.over) == (goal.case, goal.metric, goal.of, goal.over)
            ]
            if not found:
                continue
            reached, between = found[0].ratio, f"{number(found[0].low)} – {number(found[0].high)}"
        else:
            own = [
                item
                for item in measurements
                if (item.metric, item.variant) == (goal.metric, goal.of) and fnmatch.fnmatchcase(item.case, goal.case)
            ]
            if not own:
                continue
            if goal.worst:
                reached, between = max(item.p99 for item in own), f"worst of {sum(item.n for item in own)}"
            else:
                reached, between = own[0].median, spread(own[0])
            resolution = max(item.resolution for item in own)
        figure = number(reached)
        if abs(reached) < resolution:
            figure, between = f"below {number(resolution)}", "below the resolution"
            kept = goal.at_most and resolution <= goal.bound
        else:
            kept = reached <= goal.bound if goal.at_most else reached >= goal.bound
        sign = "≤" if goal.at_most else "≥"
        space = "" if goal.unit in ("×", "") else " "
        lines.append(
            f"| {goal.text} | {sign} {number(goal.bound)}{space}{goal.unit} | {figure}{space}{goal.unit} "
            f"| {between} | {'yes' if kept else '**no**'} |"
        )
    return "\n".join(lines)
