"""Rolling updates lose no request: agents of one cluster replace each other under load, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pathlib
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import aiohttp
import psutil
import pytest

from ..limits import scaled
from ..whole.whole_peers import BIG, running_origin, until
from .rollout_processes import HubProcess, Process

pytestmark = pytest.mark.loops("asyncio")

REPLACEMENTS = 5
CLIENTS = 6
BODY = os.urandom(700_000)


class Load:
    """Clients that run until the test stops them. `done`: finished requests by kind. `failed`: errors as text."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.done: Counter[str] = Counter()
        self.failed: list[str] = []
        self.stopped = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        kinds = [self.kept_alive] * CLIENTS + [self.fresh] * CLIENTS + [self.upload] * 2 + [self.download] * 2
        self._tasks = [asyncio.ensure_future(self._repeat(kind)) for kind in kinds]

    async def stop(self) -> None:
        self.stopped = True
        await asyncio.gather(*self._tasks)

    async def more(self, requests: int) -> None:
        """Wait until so many more requests have finished, some of each kind."""
        before = self.done.copy()
        async with asyncio.timeout(scaled(60)):
            while (self.done - before).total() < requests or len(self.done - before) < 4:
                assert not self.failed, self.failed[0]
                await asyncio.sleep(0.005)

    async def _repeat(self, kind: Any) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as client:
            while not self.stopped:
                request: Coroutine[Any, Any, None] = kind(client)
                try:
                    await request
                    self.done[kind.__name__] += 1
                except (aiohttp.ClientError, TimeoutError, AssertionError) as error:
                    self.failed.append(f"{kind.__name__}: {error!r}")

    async def kept_alive(self, client: aiohttp.ClientSession) -> None:
        async with client.post(f"{self.url}/echo", data=b"kept alive") as answer:  # a POST isn't sent twice by anybody
            assert (answer.status, await answer.read()) == (200, b"kept alive")

    async def fresh(self, client: aiohttp.ClientSession) -> None:
        async with client.post(f"{self.url}/echo", data=b"fresh", headers={"Connection": "close"}) as answer:
            assert (answer.status, await answer.read()) == (200, b"fresh")

    async def upload(self, client: aiohttp.ClientSession) -> None:
        async with client.post(f"{self.url}/digest", data=BODY) as answer:
            assert answer.status == 200
            assert (await answer.json())["sha256"] == hashlib.sha256(BODY).hexdigest()

    async def download(self, client: aiohttp.ClientSession) -> None:
        async with client.get(f"{self.url}/chunked") as answer:
            assert answer.status == 200
            assert await answer.read() == BIG


class ReplacingAgent(Process):
    """An agent of the cluster `rolling`."""

    def __init__(self, log: pathlib.Path, hub: HubProcess, mode: str, target_url: str) -> None:
        super().__init__(
            log,
            "run",
            f"--hub-address=127.0.0.1:{hub.grpc_port}",
            "--cluster-name=rolling",
            "--insecure",
            f"--route=/={target_url}",
            mode,
            "--drain-grace-s=20",
        )


@pytest.mark.parametrize("mode", ["--use-memory-comm", "--no-use-memory-comm"])
async def test_agents_replace_each_other_and_no_request_is_lost(tmp_path: pathlib.Path, mode: str) -> None:
    hub = HubProcess(tmp_path / "hub.log")
    load = Load(f"http://127.0.0.1:{hub.http_port}/rolling")
    agents: list[ReplacingAgent] = []

    async def start_agent(target_url: str) -> ReplacingAgent:
        agents.append(ReplacingAgent(tmp_path / f"agent{len(agents)}.log", hub, mode, target_url))
        assert await asyncio.to_thread(agents[-1].line) == "ready"
        return agents[-1]

    try:
        async with running_origin() as origin:
            serving = await start_agent(origin.url)
            load.start()
            await load.more(50)
            for _ in range(REPLACEMENTS):
                following = await start_agent(origin.url)
                serving.signal("SIGTERM")
                assert await serving.ends() == 0, serving.log
                assert "level=error" not in serving.log
                assert serving.log.count("level=warning") == 1, serving.log  # that nothing is authenticated
                assert "Traceback" not in serving.log
                serving = following
                await load.more(20)
            await load.stop()
            assert load.failed == []
            assert min(load.done[kind] for kind in ("kept_alive", "fresh", "upload", "download")) > REPLACEMENTS
            serving.signal("SIGTERM")
            assert await serving.ends() == 0
        await hub.logged("agent disconnected", times=REPLACEMENTS + 1)
        connections = psutil.Process(hub.process.pid).net_connections
        await until(lambda: not any(each.status == psutil.CONN_ESTABLISHED for each in connections("tcp")))
        hub.signal("SIGTERM")
        assert await hub.ends() == 0
        for text in ("level=error", "Traceback", "level=warning"):
            assert text not in hub.log, hub.log
    finally:
        with contextlib.suppress(Exception):
            await load.stop()
        for process in (*agents, hub):
            process.close()
