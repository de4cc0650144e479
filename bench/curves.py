"""Compares each default with its alternatives: the same work at every value, in turns.

    python -m bench curves      bench/results/curves.json, curves.md, curves.svg

A curve is a case whose variants are values of one setting. Separate processes run with changed constants
(`with_constants.py`). Each default is read from the code, so reports cannot show a wrong one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from agent.config.schema import AgentConfig
from agent.connections import memory
from agent.http2 import sizes as http2_sizes
from agent.proxy import ProxyLimits
from agent.tunnel import sizes as tunnel_sizes
from agent.tunnel import window
from fastpipe import _limits, create_pipe

from . import bench_tunnel, hop, pipe, tunnel
from .measuring import Case, Metric, Samples, Scale, Turn, no_collection, one
from .processes import Program, agent, hub, load, nginx, program

__all__ = ["CURVES", "Curve"]

KIB, MIB = 1 << 10, 1 << 20
RATE = Metric("throughput", "MB/s", more_is_better=True)
ROUND_TRIP = Metric("round trip", "µs")
ROUND_TRIP_P99 = Metric("round trip p99", "µs")
LATE = Metric("timer beside it, late", "µs")
SMALL_P50 = Metric("1 KiB beside a download", "ms")
SMALL_P99 = Metric("1 KiB beside a download, p99", "ms")
TOOK = Metric("1 MiB on a new connection", "ms")
LINK_MS = 20.0  # one way


@dataclasses.dataclass(frozen=True)
class Curve:
    """setting: as users or the source call it. chosen: the variant that is the default. why: what is behind it."""

    setting: str
    chosen: str
    why: str
    case: Case


def amount(size: int) -> str:
    """A number of bytes, as reports show it."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB" if size >= KIB else f"{size} B"


def curve(
    name: str,
    title: str,
    setting: str,
    chosen: str,
    why: str,
    variants: Sequence[str],
    open_turns: Callable[[contextlib.ExitStack], Callable[[str], Samples]],
    rounds: int = 3,
) -> Curve:
    """open_turns: makes what the turns need, and gives what takes one turn of a variant."""
    if chosen not in variants:
        raise ValueError(f"{name}: {chosen} isn't one of {variants}")

    @contextlib.contextmanager
    def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
        with contextlib.ExitStack() as stack:
            turn = open_turns(stack)
            yield {variant: functools.partial(turn, variant) for variant in variants}

    return Curve(setting, chosen, why, Case(name, title, open_case, rounds=(rounds, rounds)))


def sizes(
    name: str,
    title: str,
    setting: str,
    chosen: int,
    why: str,
    values: Sequence[int],
    open_turns: Callable[[contextlib.ExitStack, Mapping[str, int]], Callable[[str], Samples]],
) -> Curve:
    """A curve over numbers of bytes."""
    by_label = {amount(value): value for value in values}
    return curve(name, title, setting, amount(chosen), why, list(by_label), lambda stack: open_turns(stack, by_label))


# -- the pipe


async def relayed(limit: int, total: int = 1 << 30, size: int = 16 * KIB) -> Samples:
    """Writes with backpressure to a receiver that copies."""
    source, sink = pipe.Source(), pipe.BufferSink(total)
    a, b = await pipe.over_pipe(pipe.C, limit=limit)(source, sink)
    with no_collection():
        began = pipe.now()
        source.start(a, b"x" * size, total // size)
        assert await sink.done == 0
        took = pipe.now() - began
    a.abort()
    b.abort()
    return one(RATE, total / took * 1e3)


async def chunked(max_chunk: int, total: int = 1 << 31) -> Samples:
    """Writes of 1 MiB of `bytes` to a receiver that wants `bytes`."""
    speed = await pipe.one_way(pipe.over_pipe(pipe.C, max_chunk=max_chunk), pipe.Sink, total, MIB)
    return one(RATE, speed * 1e3)


def turn_of_budget(calls: str) -> Samples:
    command = [
        sys.executable,
        "-m",
        "bench.with_constants",
        f"fastpipe._limits:TURN_CALLS={calls}",
        "bench.turn_budget",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    return {ROUND_TRIP: [found["round_trip"]], ROUND_TRIP_P99: [found["round_trip_p99"]], LATE: [found["late"]]}


# -- the agent's hop, in this process


def hop_downloads(
    stack: contextlib.ExitStack, values: Mapping[str, int], options: Callable[[int], dict[str, object]]
) -> Callable[[str], Samples]:
    server = stack.enter_context(nginx())
    return lambda at: pipe.on_loop("uvloop", hop.download("memory", server, **options(values[at])))


def hop_requests(stack: contextlib.ExitStack, clients: int, n: int = 4_000) -> Callable[..., Samples]:
    """loop, mode, options -> what requests on kept-alive connections cost."""
    server = stack.enter_context(nginx())

    def turn(loop: str, mode: str, **options: Any) -> Samples:
        found = pipe.on_loop(loop, hop.requests(mode, server, n, clients, close=False, **options))
        return {metric: found[metric] for metric in (hop.CPU, hop.RATE)}

    return turn


def pooled(stack: contextlib.ExitStack) -> Callable[[str], Samples]:
    turn = hop_requests(stack, clients=200)
    return lambda at: turn("uvloop", "memory", limits=ProxyLimits(idle_upstreams_per_target=int(at.replace(",", ""))))


def delivered(stack: contextlib.ExitStack) -> Callable[[str], Samples]:
    turn = hop_requests(stack, clients=16)

    def at(how: str) -> Samples:
        make = functools.partial(create_pipe, inline=how == "inline")
        with mock.patch.object(memory, "create_pipe", make):
            return turn("uvloop", "memory")

    return at


def looped(stack: contextlib.ExitStack) -> Callable[[str], Samples]:
    turn = hop_requests(stack, clients=16)

    def at(which: str) -> Samples:
        loop, mode = which.split(", ")
        return turn(loop, mode)

    return at


# -- hub and agent in separate processes


def paths(
    stack: contextlib.ExitStack, settings: Mapping[str, Sequence[str]], *, delay_ms: float = 0
) -> Mapping[str, str]:
    """For each variant a hub and an agent, both tuned so: where its path to one nginx begins. delay_ms: of the link."""
    server = stack.enter_context(nginx())
    found = {}
    for variant, tuned in settings.items():
        _, grpc, http = stack.enter_context(hub(tuned=tuned))
        if delay_ms:
            grpc = link(stack, grpc, delay_ms)
        stack.enter_context(agent(grpc, "c1", server.url, memory=True, tuned=tuned))
        found[variant] = f"http://{http}/c1"
        fetch(f"{found[variant]}/1m")
    return found


def link(stack: contextlib.ExitStack, address: str, delay_ms: float) -> str:
    """The address of a relay that brings everything late."""
    relay = Program([sys.executable, "-m", "bench.delay_relay", address.rpartition(":")[2], str(delay_ms)])
    stack.callback(relay.close)
    return f"127.0.0.1:{relay.wait_for('listening ')}"


def fetch(url: str, *, most_bytes: int | None = None) -> float:
    """Seconds that curl took for it, on a new connection. most_bytes: how much of the file's beginning is read."""
    command = [program("curl"), "-sf", "-o", "/dev/null", "-w", "%{size_download} %{time_total}", url]
    if most_bytes is not None:
        command += ["-r", f"0-{most_bytes - 1}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    size, took_s = done.stdout.split()
    if most_bytes is not None and int(size) != most_bytes:
        raise AssertionError(f"{size} bytes came instead of {most_bytes}")
    return float(took_s)


def settings_of(where: str, values: Mapping[str, int]) -> dict[str, list[str]]:
    """The arguments of `bench.with_constants` for each value. A shared packet is never larger than one alone."""
    found = {label: [f"{where}={value}"] for label, value in values.items()}
    if where.endswith(":ALONE_PACKET_BYTES"):
        for label, value in values.items():
            shared = min(value, tunnel_sizes.SHARED_PACKET_BYTES)
            found[label].append(f"agent.tunnel.sizes:SHARED_PACKET_BYTES={shared}")
    return found


def downloads(
    where: str, total: int, *, delay_ms: float = 0
) -> Callable[[contextlib.ExitStack, Mapping[str, int]], Callable[[str], Samples]]:
    def open_turns(stack: contextlib.ExitStack, values: Mapping[str, int]) -> Callable[[str], Samples]:
        urls = paths(stack, settings_of(where, values), delay_ms=delay_ms)
        return lambda at: one(RATE, total / fetch(f"{urls[at]}/1g", most_bytes=total) / 1e6)

    return open_turns


def first_answers(where: str) -> Callable[[contextlib.ExitStack, Mapping[str, int]], Callable[[str], Samples]]:
    def open_turns(stack: contextlib.ExitStack, values: Mapping[str, int]) -> Callable[[str], Samples]:
        server, settings = stack.enter_context(nginx()), settings_of(where, values)

        def turn(at: str) -> Samples:  # a new tunnel each time, since a used one has grown windows
            with contextlib.ExitStack() as own:
                _, grpc, http = own.enter_context(hub(tuned=settings[at]))
                grpc = link(own, grpc, LINK_MS)
                own.enter_context(agent(grpc, "c1", server.url, memory=True, tuned=settings[at]))
                return one(TOOK, fetch(f"http://{http}/c1/1m") * 1e3)

        return turn

    return open_turns


def beside_bulk(where: str) -> Callable[[contextlib.ExitStack, Mapping[str, int]], Callable[[str], Samples]]:
    def open_turns(stack: contextlib.ExitStack, values: Mapping[str, int]) -> Callable[[str], Samples]:
        urls = paths(stack, settings_of(where, values))

        def turn(at: str) -> Samples:
            command = [program("curl"), "-s", "-o", "/dev/null", f"{urls[at]}/1g"]
            bulk = [subprocess.Popen(command) for _ in range(3)]
            try:
                found = load(f"{urls[at]}/1k", 4, 1)
            finally:
                for each in bulk:
                    each.kill()
                    each.wait()
            if found["failures"]:
                raise AssertionError(f"{found['failures']} failures")
            return {SMALL_P50: [found["p50_ms"]], SMALL_P99: [found["p99_ms"]]}

        return turn

    return open_turns


def packets(where: str) -> Callable[[contextlib.ExitStack, Mapping[str, int]], Callable[[str], Samples]]:
    def open_turns(stack: contextlib.ExitStack, values: Mapping[str, int]) -> Callable[[str], Samples]:
        messages, settings = stack.enter_context(tunnel.messages()), settings_of(where, values)
        port = stack.enter_context(tunnel.echo_hub("grpcio", messages))

        def turn(at: str) -> Samples:
            found = bench_tunnel.client("compiled", port, 256, 20_000, messages, tuned=settings[at])
            return {tunnel.CPU: [found["CPU"]], tunnel.SPEED: [found["MB/s"]]}

        return turn

    return open_turns


BUFFERS = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB]
LIMITS = ProxyLimits()

CURVES: Sequence[Curve] = (
    sizes(
        "pipe limit",
        "1 GiB in writes of 16 KiB to a reader that copies, by the pipe's high-water mark",
        "`create_pipe(limit=…)`",
        _limits.DEFAULT_LIMIT,
        "asyncio's own default. A larger buffer holds more for a slow reader",
        BUFFERS,
        lambda stack, values: lambda at: pipe.on_loop("uvloop", relayed(values[at])),
    ),
    sizes(
        "pipe max_chunk",
        "Writes of 1 MiB of `bytes`, by the most that one `data_received` brings",
        "`create_pipe(max_chunk=…)`",
        _limits.DEFAULT_MAX_CHUNK,
        "asyncio's own maximum for one read. Choose more to pass whole objects by reference",
        [16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB],
        lambda stack, values: lambda at: pipe.on_loop("uvloop", chunked(values[at])),
    ),
    curve(
        "pipe turn",
        "64 B there and back, and a timer of 1 ms beside it, by the callbacks that one loop turn drains",
        "`fastpipe._limits.TURN_CALLS`",
        str(_limits.TURN_CALLS),
        "more keeps timers and sockets waiting for longer than the round trip's percentiles gain",
        ["1", "8", "64", "512", "4096", "32768"],
        lambda stack: turn_of_budget,
    ),
    sizes(
        "buffer_size",
        "1 GiB from nginx through the agent's hop over memory, by the pipe's size",
        "`buffer_size`",
        AgentConfig("hub:1", "c1").memory_comm.buffer_size,
        "equal to the pipe's own. The memory of a stalled connection grows with it",
        BUFFERS,
        functools.partial(hop_downloads, options=lambda size: {"buffer_bytes": size}),
    ),
    sizes(
        "buffer_bytes",
        "1 GiB from nginx through the hop, by what may wait in a transport's write buffer",
        "`agent.proxy.ProxyLimits.buffer_bytes`",
        LIMITS.buffer_bytes,
        "what a slow reader can make the proxy hold, for each direction",
        BUFFERS,
        functools.partial(hop_downloads, options=lambda size: {"limits": ProxyLimits(buffer_bytes=size)}),
    ),
    curve(
        "delivery",
        "The agent's hop over memory, 16 kept-alive clients, 1 KiB from nginx, by how its pipe delivers",
        "`agent/connections/memory.py`",
        "default",
        "callbacks never run inside a write, as on every other transport",
        ["default", "inline"],
        delivered,
        rounds=7,
    ),
    curve(
        "loop",
        "The agent's hop, 16 kept-alive clients, 1 KiB from nginx, by event loop and carrier",
        "`--loop`",
        "uvloop, memory",
        "`auto` takes uvloop where it is installed",
        ["uvloop, memory", "uvloop, UDS", "asyncio, memory", "asyncio, UDS"],
        looped,
        rounds=5,
    ),
    curve(
        "pooling",
        "The agent's hop, 200 kept-alive clients, 1 KiB, by the idle connections to a target that are kept",
        "`idle_upstreams_per_target`",
        f"{LIMITS.idle_upstreams_per_target:,}",
        "as many as there may be clients. With fewer, the end of a burst closes connections that the next one dials",
        ["1", "16", "64", "256", "1,000"],
        pooled,
        rounds=3,
    ),
    sizes(
        "packet, alone",
        "256 MiB from nginx through hub and agent, by a packet's payload where nobody else waits",
        "`agent.tunnel.sizes.ALONE_PACKET_BYTES`",
        tunnel_sizes.ALONE_PACKET_BYTES,
        "each packet costs the same, and a message may be 4 MiB (wire.md)",
        [16 * KIB, 64 * KIB, 256 * KIB, MIB, 3 * MIB],
        downloads("agent.tunnel.sizes:ALONE_PACKET_BYTES", 256 * MIB),
    ),
    sizes(
        "packet, shared",
        "1 KiB to 4 clients beside three downloads, by a packet's payload while others wait",
        "`agent.tunnel.sizes.CREDITED_PACKET_BYTES`",
        tunnel_sizes.CREDITED_PACKET_BYTES,
        "a small response waits for the packets of other connections",
        [8 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB],
        beside_bulk("agent.tunnel.sizes:CREDITED_PACKET_BYTES"),
    ),
    sizes(
        "queue",
        "1 KiB to 4 clients beside three downloads, by what may wait of a connection before its source pauses",
        "`agent.tunnel.sizes.CREDITED_HIGH_WATER_BYTES`",
        tunnel_sizes.CREDITED_HIGH_WATER_BYTES,
        "a packet that has begun goes out whole",
        [16 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB],
        beside_bulk("agent.tunnel.sizes:CREDITED_HIGH_WATER_BYTES"),
    ),
    sizes(
        "unsent",
        "1 KiB to 4 clients beside three downloads, by what may wait, unsent, in transport and kernel",
        "`agent.http2.sizes.UNSENT_BYTES`",
        http2_sizes.UNSENT_BYTES,
        "what has left the scheduler can't be overtaken",
        [16 * KIB, 64 * KIB, 128 * KIB, 512 * KIB, 2 * MIB],
        beside_bulk("agent.http2.sizes:UNSENT_BYTES"),
    ),
    sizes(
        "unread",
        "1 KiB to 4 clients beside three downloads, by what may wait, received and not read, in the kernel",
        "`agent.http2.sizes.UNREAD_BYTES`",
        http2_sizes.UNREAD_BYTES,
        "a small response waits behind all of it. With less, a sender idles while its peer has its turn",
        [32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB],
        beside_bulk("agent.http2.sizes:UNREAD_BYTES"),
    ),
    sizes(
        "coalesced",
        "Packets of 256 B sent and received, 64 in flight, a grpcio hub, by the most bytes per wake-up",
        "`agent.http2.sizes.COALESCED_BYTES`",
        http2_sizes.COALESCED_BYTES,
        "a wake-up costs many times as much as a packet. The value is far below the size of a receive queue",
        [1, KIB, 4 * KIB, 16 * KIB, 64 * KIB],
        packets("agent.http2.sizes:COALESCED_BYTES"),
    ),
    sizes(
        "window, first",
        f"1 MiB on a new connection, the hub {LINK_MS:.0f} ms away, by the window it begins with",
        "`agent.tunnel.window.INITIAL_WINDOW_BYTES`",
        window.INITIAL_WINDOW_BYTES,
        "both sides must mean the same (wire.md), and each connection has a right to it",
        [64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB],
        first_answers("agent.tunnel.window:INITIAL_WINDOW_BYTES"),
    ),
    sizes(
        "window, most",
        f"64 MiB, the hub {LINK_MS:.0f} ms away, by how far a connection's window grows",
        "`agent.tunnel.window.MAX_WINDOW_BYTES`",
        window.MAX_WINDOW_BYTES,
        "the link's own window is no larger",
        [MIB, 4 * MIB, 16 * MIB, 64 * MIB],
        downloads("agent.tunnel.window:MAX_WINDOW_BYTES", 64 * MIB, delay_ms=LINK_MS),
    ),
    sizes(
        "window, link",
        f"64 MiB, the hub {LINK_MS:.0f} ms away, by HTTP/2's window",
        "`agent.tunnel.sizes.WINDOW_BYTES`",
        tunnel_sizes.WINDOW_BYTES,
        "128 ms of 1 Gbit/s, for the bytes in flight of both ends together",
        [MIB, 4 * MIB, 16 * MIB, 64 * MIB],
        downloads("agent.tunnel.sizes:WINDOW_BYTES", 64 * MIB, delay_ms=LINK_MS),
    ),
)
