"""Measures what metrics cost an agent at full load: its CPU time for the same work with and without them.

    python bench/bench_metrics.py [--rounds 40] [--requests 1500] [--memory]

Hub, target and agent are separate processes. In each round, 50 kept-alive clients send the agent the same requests
three times, once for each way below. The order of the ways rotates. The kernel reports the CPU time of the agent's
process in ns. One process serves all ways, because two processes of the same program differ by some percent. The
program checks each response. Other load can only add to a round (cold caches). So the table has the lower quartile of
each way's rounds, and the quartiles of the ratios within a round.

    off         no metrics
    on          enable_metrics, never scraped
    per event   the rival: prometheus-client's own histograms and counters, updated at each event
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from typing import Any

CLIENTS = 50
SCRAPES = 20
VARIANTS = ("off", "on", "per event")
BODY = b"hello from the target\n"


# The processes --------------------------------------------------------------------------------------------------------


async def serve_target() -> None:
    class Target(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            for _ in range(data.count(b"\r\n\r\n")):
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))

    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().create_future()


async def serve_hub() -> None:
    from agent import HubConfig
    from agent.hub.hub import Hub

    config = HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0")
    await Hub(config, on_listening=lambda _kind, _host, port: print(port, flush=True)).run()


async def serve_agent(grpc_port: int, target_port: int, health_port: int, memory: bool) -> None:
    """Measure requests in the way whose number comes on standard input, for connections that are open, too."""
    from agent import Agent, AgentConfig, MemoryCommConfig

    config = AgentConfig(
        hub_address=f"127.0.0.1:{grpc_port}",
        cluster_name="bench",
        insecure=True,
        routes={"/": f"http://127.0.0.1:{target_port}"},
        use_memory_comm=memory,
        memory_comm=MemoryCommConfig(enable_metrics=True),
        health_address=f"127.0.0.1:{health_port}",
    )
    agent = Agent(config, on_ready=lambda: print("ready", flush=True))
    ways: list[dict[str, Any]] = [{}, agent.request_metrics, told_at_each_event()]

    def switch() -> None:
        number = int(sys.stdin.readline() or 0)
        agent.proxy.metrics = ways[number]
        for connection in agent.proxy._connections:
            connection.metrics = ways[number].get(connection.carrier)
        print(VARIANTS[number], flush=True)

    asyncio.get_running_loop().add_reader(sys.stdin, switch)
    await agent.run()


def told_at_each_event() -> dict[str, Any]:
    """Metrics that update prometheus-client's own objects at each event."""
    from prometheus_client import CollectorRegistry, Counter, Histogram

    from agent.proxy import RequestMetrics
    from agent.runtime.histogram import BOUNDS_S

    registry = CollectorRegistry()
    seconds = Histogram("stage_seconds", "", ["mode", "stage"], buckets=BOUNDS_S, registry=registry)
    responses = Counter("responses", "", ["mode", "status"], registry=registry)

    class Told:
        def __init__(self, *labels: str) -> None:
            self.add = seconds.labels(*labels).observe

        def settle(self) -> None: ...

    class Counts:
        def __init__(self, mode: str) -> None:
            self._children = [responses.labels(mode, f"{digit}xx") for digit in range(10)]

        def __getitem__(self, digit: int) -> int:
            return digit

        def __setitem__(self, digit: int, _: int) -> None:
            self._children[digit].inc()

    found: dict[str, Any] = {"memory": RequestMetrics(), "uds": RequestMetrics()}
    for mode, metrics in found.items():
        for stage in ("at_once", "policy", "connect", "head", "body", "whole"):
            setattr(metrics, stage, Told(mode, stage))
        metrics.from_target = Counts(mode)
    return found


def run(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.suppress(asyncio.CancelledError):
        runner.run(main)


# The load -------------------------------------------------------------------------------------------------------------


async def load(port: int, requests: int) -> None:
    """Send `requests` requests by CLIENTS kept-alive connections, and check every response."""
    head = b"GET /bench/hello HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(requests // CLIENTS):
            writer.write(head)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert await reader.readexactly(len(BODY)) == BODY
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def scrape(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")
    assert b"request_stage_seconds_bucket" in await reader.read()
    writer.close()
    await writer.wait_closed()


def cpu_ns(pid: int) -> int:
    """The CPU time of a process, ns (proc(5), schedstat)."""
    return sum(int(path.read_text().split()[0]) for path in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"))


@contextlib.contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = process.stdout.readline().strip()
    assert found, "a process ended"
    return found


def free_port() -> int:
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def measure(rounds: int, requests: int, memory: bool) -> None:
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(child("target"))
        target_port = line(target)
        hub = stack.enter_context(child("hub"))
        grpc_port, http_port = line(hub), int(line(hub))
        health_port = free_port()
        agent = stack.enter_context(child("agent", grpc_port, target_port, health_port, int(memory)))
        assert line(agent) == "ready"
        spent: list[list[int]] = [[] for _ in VARIANTS]
        scrapes_ns: list[int] = []

        async def one(number: int) -> int:
            assert agent.stdin is not None
            agent.stdin.write(f"{number}\n")
            assert await asyncio.to_thread(line, agent) == VARIANTS[number]
            before = cpu_ns(agent.pid)
            await load(http_port, requests)
            return cpu_ns(agent.pid) - before

        async def all_rounds() -> None:
            for number in range(len(VARIANTS)):  # warm
                await one(number)
            for turn in range(rounds):
                for step in range(len(VARIANTS)):
                    number = (turn + step) % len(VARIANTS)
                    spent[number].append(await one(number))

            before = cpu_ns(agent.pid)
            for _ in range(SCRAPES):
                await scrape(health_port)
            scrapes_ns.append(cpu_ns(agent.pid) - before)

        run(all_rounds())
    heading = f"{'metrics':<12}{'CPU µs/request':>16}{'against off':>14}   ratios' quartiles"
    print(f"{heading}   ({rounds} rounds of {requests})")
    for name, each in zip(VARIANTS, spent, strict=True):
        ratios = [mine / off for mine, off in zip(each, spent[0], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if name != "off" else (1.0, 1.0, 1.0)
        per_request_us = lower_quartile(each) / requests / 1000
        against = lower_quartile(each) / lower_quartile(spent[0]) - 1
        quartiles = " … ".join(f"{ratio - 1:+.2%}" for ratio in (low, middle, high))
        print(f"{name:<12}{per_request_us:>16.2f}{against:>+14.2%}   {quartiles}")
    print(f"the calls that `on` adds to a request, alone in warm caches: {added_us():.2f} µs")
    scrape_ms = scrapes_ns[0] / SCRAPES / 1e6
    print(f"reading /metrics: {scrape_ms:.2f} ms of CPU, {scrape_ms / 150:.3f}% of one CPU every 15 s")


def lower_quartile(values: list[int]) -> float:
    return statistics.quantiles(values, n=4)[0]


def added_us() -> float:
    """CPU time of the calls that metrics add to one plain request, µs, the best of several runs."""
    from agent.proxy import RequestMetrics

    metrics = RequestMetrics()
    clock = time.perf_counter

    def one() -> None:
        began = clock()
        now = clock()
        metrics.at_once.add(now - began)

    best = float("inf")
    for _ in range(20):
        began = time.process_time()
        for _ in range(10_000):
            one()
        best = min(best, time.process_time() - began)
    return best / 10_000 * 1e6


if __name__ == "__main__":
    if sys.argv[1:2] == ["target"]:
        run(serve_target())
    elif sys.argv[1:2] == ["hub"]:
        run(serve_hub())
    elif sys.argv[1:2] == ["agent"]:
        grpc, target_at, health, in_memory = map(int, sys.argv[2:])
        run(serve_agent(grpc, target_at, health, bool(in_memory)))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--rounds", type=int, default=40)
        parser.add_argument("--requests", type=int, default=1500)
        parser.add_argument("--memory", action="store_true", help="by memory rather than Unix sockets")
        given = parser.parse_args()
        measure(given.rounds, given.requests // CLIENTS * CLIENTS, given.memory)
