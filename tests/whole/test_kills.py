"""A hub that is killed and started again under load.

Its agent is back within its back-off, and no client gets another one's response.
The suite kills it two times. `make soak` kills it fifty times in each mode.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from agent.tunnel.backoff import BackOff

from .whole_cluster import RunningAgent
from .whole_peers import free_port, running_origin, until

SOAK = os.environ.get("FASTPIPE_SOAK", "") not in ("", "0")
KILLS = 50 if SOAK else 2
CLIENTS = 6
MOST_S = 1.0  # the longest back-off: sessions that last seconds make it grow from kill to kill, to a minute otherwise
BACK_S = MOST_S + 5.0  # and what a busy machine needs to dial


class Hub:
    """`fastpipe-agent hub` in its own process, on the same two ports each time."""

    def __init__(self) -> None:
        self.grpc_port, self.http_port = free_port(), free_port()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        addresses = ["--grpc-address", f"127.0.0.1:{self.grpc_port}", "--http-address", f"127.0.0.1:{self.http_port}"]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent",
            "hub",
            *addresses,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        for _ in range(2):
            assert (await self._process.stdout.readline()).startswith(b"listening ")

    async def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            await process.communicate()


@contextlib.asynccontextmanager
async def running_hub() -> AsyncIterator[Hub]:
    hub = Hub()
    await hub.start()
    try:
        yield hub
    finally:
        await hub.kill()


class Clients:
    """Clients that post their own bodies and check each response, whatever happens to the hub."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answered = 0
        self.foreign: list[bytes] = []  # what was somebody else's
        self.stopping = False

    async def work(self, name: int) -> None:
        rng = random.Random(name)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client:
            while not self.stopping:
                body = f"client {name} request {rng.random()};".encode() * rng.randrange(1, 4000)
                try:
                    async with client.post(f"{self.url}/echo", data=body) as answer:
                        status, received = answer.status, await answer.read()
                except (aiohttp.ClientError, TimeoutError, OSError):
                    await asyncio.sleep(0.02)
                    continue
                if status == 200:
                    self.answered += 1
                    if received != body:
                        self.foreign.append(received[:80])


@pytest.mark.loops("uvloop")
@pytest.mark.timeout(900 if SOAK else 120)
@pytest.mark.parametrize("memory", [True, False], ids=["memory", "uds"])
async def test_a_hub_killed_again_and_again_finds_its_agent_back(memory: bool) -> None:
    async with running_hub() as hub, running_origin() as origin:
        agent = RunningAgent(
            hub_address=f"127.0.0.1:{hub.grpc_port}",
            cluster_name="c1",
            insecure=True,
            use_memory_comm=memory,
            routes=(f"/={origin.url}",),
        )
        clients = Clients(f"http://127.0.0.1:{hub.http_port}/c1")
        working: list[asyncio.Future[None]] = []
        try:
            await agent.wait_ready()
            (client,) = agent.agent.clients
            client._backoff = BackOff(max_s=MOST_S)
            descriptors = len(os.listdir("/proc/self/fd"))
            working = [asyncio.ensure_future(clients.work(name)) for name in range(CLIENTS)]
            took_s = []
            for kill in range(1, KILLS + 1):
                await until(lambda before=clients.answered: clients.answered > before + CLIENTS, timeout_s=30)
                await hub.kill()
                await until(lambda: not agent.agent.ready)
                await hub.start()
                started_s = time.perf_counter()
                await until(lambda kill=kill: agent.times_ready > kill, timeout_s=BACK_S)
                took_s.append(time.perf_counter() - started_s)
            await until(lambda before=clients.answered: clients.answered > before + CLIENTS, timeout_s=30)
            clients.stopping = True
            await asyncio.wait(working, timeout=30)
            for each in working:
                each.result()
            assert clients.foreign == []
            assert agent.times_ready == KILLS + 1
            await until(lambda: agent.agent.open_connections <= CLIENTS)
            assert len(os.listdir("/proc/self/fd")) <= descriptors + 6 * CLIENTS
            print(
                f"{KILLS} kills: the agent was back {max(took_s):.2f} s after the hub at the latest, "
                f"median {statistics.median(took_s):.2f} s"
            )
            print(f"{clients.answered} responses, each to its request")
        finally:
            for each in working:
                each.cancel()
            await agent.stop()
