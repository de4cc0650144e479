"""A hub and agents on the test's own loop, joined to the peers of `whole_peers.py`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from agent import Agent, AgentConfig, HubConfig
from agent.hub.hub import Hub

from .whole_peers import START_TIMEOUT_S, BaseHubProcess

_names = itertools.count(1)


class RunningAgent:
    """An agent's task, and when it was ready."""

    def __init__(self, **config: Any) -> None:
        self.ready = asyncio.Event()
        self.times_ready = 0
        self.agent = Agent(AgentConfig(**config), on_ready=self._on_ready)
        self.task = asyncio.ensure_future(self.agent.run())

    def _on_ready(self) -> None:
        self.times_ready += 1
        self.ready.set()

    async def wait_ready(self) -> None:
        """Raises what the agent failed with, where it ends instead."""
        waiting = asyncio.ensure_future(self.ready.wait())
        await asyncio.wait([waiting, self.task], timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
        if self.task.done():
            self.task.result()
        assert self.ready.is_set(), "the agent isn't ready"

    async def stop(self, timeout_s: float = 15.0) -> None:
        """Cancel it, as SIGTERM does, and wait until it has drained. Raises what it failed with."""
        self.task.cancel()
        done, _ = await asyncio.wait([self.task], timeout=timeout_s)
        if not done:
            self.task.cancel()
            await asyncio.wait([self.task], timeout=5)
            raise AssertionError(f"the agent did not drain within {timeout_s} s")
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            raise error


class Whole:
    """A hub and its agents. `http_port`: the hub's for users. `url`: of the cluster's root, no slash behind."""

    def __init__(self, kind: str, mode: str, base: BaseHubProcess, cluster: str) -> None:
        self.kind = kind
        self.mode = mode
        self.base = base
        self.cluster = cluster
        self.grpc_port = base.grpc_port
        self.http_port = base.http_port
        self.agents: list[RunningAgent] = []
        self.agent_config: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/{self.cluster}"

    @property
    def agent(self) -> RunningAgent:
        return self.agents[-1]

    async def start_agent(self, **config: Any) -> RunningAgent:
        """Another agent of the same cluster, with the cluster's configuration and these changes to it; ready."""
        agent = RunningAgent(**(self.agent_config | config))
        self.agents.append(agent)
        await agent.wait_ready()
        return agent

    def stats(self) -> dict[str, Any]:
        """The base hub's counts of this cluster."""
        assert self.kind == "base"
        return self.base.stats(self.cluster)


class Cluster:
    """Starts hubs and agents of the kinds that this run of the test is about."""

    def __init__(self, hub_kind: str, mode: str, base: BaseHubProcess) -> None:
        self.hub_kind = hub_kind
        self.mode = mode
        self.base = base

    @contextlib.asynccontextmanager
    async def hub(self) -> AsyncIterator[Whole]:
        """A hub without an agent. Agents that start in the block end before the hub."""
        whole = Whole(self.hub_kind, self.mode, self.base, f"c{next(_names)}")
        async with contextlib.AsyncExitStack() as stack:
            if self.hub_kind == "ours":
                whole.grpc_port, whole.http_port = await stack.enter_async_context(running_hub())
            whole.agent_config = {
                "hub_address": f"127.0.0.1:{whole.grpc_port}",
                "cluster_name": whole.cluster,
                "insecure": True,
                "use_memory_comm": self.mode == "memory",
                "drain_grace_s": 5.0,
            }
            try:
                yield whole
            finally:
                for agent in whole.agents:
                    if not agent.task.done():
                        await agent.stop()

    @contextlib.asynccontextmanager
    async def running(self, target_url: str, **config: Any) -> AsyncIterator[Whole]:
        """A hub, and an agent that has every path go to `target_url`; ready."""
        async with self.hub() as whole:
            whole.agent_config |= {"routes": (f"/={target_url}",)} | config
            await whole.start_agent()
            yield whole


@contextlib.asynccontextmanager
async def running_hub(**config: Any) -> AsyncIterator[tuple[int, int]]:
    """(gRPC port, HTTP port) of our hub on free ports."""
    ports: dict[str, int] = {}
    listening = asyncio.Event()

    def on_listening(kind: str, _host: str, port: int) -> None:
        ports[kind] = port
        if len(ports) == 2:
            listening.set()

    defaults: dict[str, Any] = {"grpc_address": "127.0.0.1:0", "http_address": "127.0.0.1:0", "drain_grace_s": 2.0}
    task = asyncio.ensure_future(Hub(HubConfig(**defaults | config), on_listening=on_listening).run())
    waiting = asyncio.ensure_future(listening.wait())
    try:
        await asyncio.wait([waiting, task], timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        assert listening.is_set(), "the hub doesn't listen"
        yield ports["grpc"], ports["http"]
    finally:
        waiting.cancel()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=15)
        assert done, "the hub did not end"
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
