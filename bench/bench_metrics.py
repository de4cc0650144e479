"""What metrics cost an agent at full load: CPU time of agent processes that do the same work, with and without them.

    python bench/bench_metrics.py [--rounds 20] [--requests 2000] [--memory]

One hub, one target and four agents, each a process of its own. In each round every agent serves the same requests by
50 kept-alive clients, one agent after the other in an order that turns, and what its process spent is read off the
kernel (ns on a CPU). Each answer is checked. What else runs on the machine only ever adds to a round (cold caches), so
the lower quartile of each agent's rounds is quoted, and the quartiles of the ratios within a round beside it.

    off         no metrics
    on          enable_metrics, never asked
    scraped     enable_metrics, /metrics read every second, 15 times as often as is usual
    per event   enable_metrics, but with prometheus-client's own histograms and counters told at each event: the rival
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
from collections.abc import Iterator

CLIENTS = 50
VARIANTS = ("off", "on", "scraped", "per event")
BODY = b"hello from the target\n"


# The processes --------------------------------------------------------------------------------------------------------


async def serve_target() -> None:
    class Target(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            for _ in range(data.count(b"\r\n\r\n")):
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY))  # type: ignore[attr-defined]

    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().create_future()


async def serve_hub() -> None:
    from agent import HubConfig
    from agent.hub.hub import Hub

    config = HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0")
    await Hub(config, on_listening=lambda _kind, _host, port: print(port, flush=True)).run()


async def serve_agent(number: int, grpc_port: int, target_port: int, health_port: int, memory: bool) -> None:
    from agent import Agent, AgentConfig, MemoryCommConfig

    variant = VARIANTS[number]
    config = AgentConfig(
        hub_address=f"127.0.0.1:{grpc_port}",
        cluster_name=f"c{number}",
        insecure=True,
        routes={"/": f"http://127.0.0.1:{target_port}"},
        use_memory_comm=memory,
        memory_comm=MemoryCommConfig(enable_metrics=variant != "off"),
        health_address=f"127.0.0.1:{health_port}",
    )
    agent = Agent(config, on_ready=lambda: print("ready", flush=True))
    if variant == "per event":
        tell_prometheus_at_each_event(agent)
    await agent.run()


def tell_prometheus_at_each_event(agent: object) -> None:
    from prometheus_client import CollectorRegistry, Counter, Histogram

    from agent.durations import BOUNDS_S

    registry = CollectorRegistry()
    seconds = Histogram("stage_seconds", "", ["mode", "stage"], buckets=BOUNDS_S, registry=registry)
    responses = Counter("responses", "", ["mode", "status"], registry=registry)

    class Told:
        def __init__(self, *labels: str) -> None:
            self.add = seconds.labels(*labels).observe

    class Counts:
        def __init__(self, mode: str) -> None:
            self._children = [responses.labels(mode, f"{digit}xx") for digit in range(10)]

        def __getitem__(self, digit: int) -> int:
            return digit

        def __setitem__(self, digit: int, _: int) -> None:
            self._children[digit].inc()

    for mode, measures in agent.measures.items():  # type: ignore[attr-defined]
        for stage in ("policy", "connect", "head", "body", "whole"):
            setattr(measures, stage, Told(mode, stage))
        measures.from_target = Counts(mode)


def run(main: object) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, contextlib.suppress(asyncio.CancelledError):
        runner.run(main)  # type: ignore[arg-type]


# The load -------------------------------------------------------------------------------------------------------------


async def load(port: int, cluster: str, requests: int) -> None:
    """Send `requests` requests by CLIENTS kept-alive connections, and check every answer."""
    head = f"GET /{cluster}/hello HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n".encode()

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
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n")
        assert b"request_stage_seconds_bucket" in await reader.read()
        writer.close()
        await asyncio.sleep(1)


def cpu_ns(pid: int) -> int:
    """What a process has spent on a CPU (proc(5), schedstat)."""
    return sum(int(path.read_text().split()[0]) for path in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"))


@contextlib.contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


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
        health_ports = [free_port() for _ in VARIANTS]
        agents = [
            stack.enter_context(child("agent", number, grpc_port, target_port, health_ports[number], int(memory)))
            for number in range(len(VARIANTS))
        ]
        for agent in agents:
            assert line(agent) == "ready"
        spent: list[list[int]] = [[] for _ in VARIANTS]

        async def all_rounds() -> None:
            scraping = asyncio.ensure_future(scrape(health_ports[VARIANTS.index("scraped")]))
            for number in range(len(VARIANTS)):
                await load(http_port, f"c{number}", requests)  # warm
            for turn in range(rounds):
                for step in range(len(VARIANTS)):
                    number = (turn + step) % len(VARIANTS)
                    before = cpu_ns(agents[number].pid)
                    await load(http_port, f"c{number}", requests)
                    spent[number].append(cpu_ns(agents[number].pid) - before)
            assert not scraping.done(), "scraping failed"
            scraping.cancel()

        run(all_rounds())
    print(f"{'metrics':<12}{'CPU µs/request':>16}{'against off':>14}   ratios' quartiles   ({rounds} rounds of {requests})")
    for name, each in zip(VARIANTS, spent, strict=True):
        ratios = [mine / off for mine, off in zip(each, spent[0], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if name != "off" else (1.0, 1.0, 1.0)
        per_request_us = lower_quartile(each) / requests / 1000
        against = lower_quartile(each) / lower_quartile(spent[0]) - 1
        print(f"{name:<12}{per_request_us:>16.2f}{against:>+14.2%}   {low - 1:+.2%} … {middle - 1:+.2%} … {high - 1:+.2%}")
    print(f"what `on` adds to one request, called alone: {added_us():.2f} µs")


def lower_quartile(values: list[int]) -> float:
    return statistics.quantiles(values, n=4)[0]


def added_us() -> float:
    """CPU time of the calls that metrics add to one plain request, in µs; the best of several runs."""
    from agent.proxy import Measures

    measures = Measures()
    clock = time.perf_counter

    def one() -> None:
        began = clock()
        now = clock()
        measures.head.add(now - began)
        measures.whole.add(now - began)
        measures.from_target[2] += 1

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
        number, grpc, target_at, health, in_memory = map(int, sys.argv[2:])
        run(serve_agent(number, grpc, target_at, health, bool(in_memory)))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--rounds", type=int, default=20)
        parser.add_argument("--requests", type=int, default=2000)
        parser.add_argument("--memory", action="store_true", help="by memory rather than Unix sockets")
        given = parser.parse_args()
        measure(given.rounds, given.requests // CLIENTS * CLIENTS, given.memory)
