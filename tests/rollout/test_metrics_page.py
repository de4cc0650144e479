"""/metrics of a real agent: what an operator would watch, and no label that a client could fill."""

from __future__ import annotations

import asyncio
import pathlib
import re
from typing import ClassVar

import aiohttp
import pytest

from agent import Agent, AgentConfig, RequestHead, Target
from agent.spoke.metrics import read

from ..limits import scaled
from ..whole.whole_peers import BaseHubProcess, running_origin
from .rollout_processes import running_agent, scrape

pytestmark = pytest.mark.loops("asyncio")

LABELS = {
    "version",
    "fastpipe",
    "python",
    "loop",
    "mode",
    "outcome",
    "reason",
    "direction",
    "place",
    "state",
    "source",
    "status",
    "stage",
    "le",
    "hub",
    "cause",
    "how",
}


@pytest.mark.parametrize("mode", ["memory", "uds"])
async def test_everything_that_happens_is_counted_by_mode_and_nothing_by_the_clients_words(
    tmp_path: pathlib.Path, base_hub: BaseHubProcess, unused_port: int, mode: str
) -> None:
    flag = "--use-memory-comm" if mode == "memory" else "--no-use-memory-comm"
    health = f"http://127.0.0.1:{unused_port}"
    async with (
        running_origin() as origin,
        asyncio.timeout(scaled(60)),
        aiohttp.ClientSession() as client,
        running_agent(
            tmp_path,
            base_hub,
            f"--route=/={origin.url}",
            flag,
            f"--health-address=127.0.0.1:{unused_port}",
            "--memory-comm-enable-metrics",
        ) as agent,
    ):
        hub = f"127.0.0.1:{base_hub.grpc_port}"
        for _ in range(3):
            answer = await client.request(
                "GET", f"{agent.url}/hello-XSECRETX", headers={"X-XSECRETX": "XSECRETX", "User-Agent": "XSECRETX"}
            )
            assert answer.status == 200
        assert (await client.post(f"{agent.url}/digest", data=b"x" * 100_000)).status == 200
        stream = await client.get(f"{agent.url}/drip?pieces=2")
        await origin.arrived.acquire()

        page = await scrape(unused_port)
        assert page["ready"] == 1
        assert page["connections_open", mode] == page["connections_opened_total", mode] == 1
        assert page["requests_in_flight"] == 1
        assert page["responses_total", mode, "target", "2xx"] == 5
        assert page["request_stage_seconds_count", mode, "whole"] == 4
        assert page["request_stage_seconds_count", mode, "connect"] == 1
        assert 0 < page["request_stage_seconds_sum", mode, "whole"] < 20
        assert page["carried_bytes_total", "from_hub"] > 100_000
        assert page["carried_bytes_total", "to_hub"] > 500
        assert page["packets_total", "from_hub"] >= 7
        assert page["packets_total", "to_hub"] >= 5
        assert page["hub_sessions_total", hub] == page["hub_up", hub] == 1
        assert page["target_connections", "used"] == 1
        assert page["buffered_bytes", "for_targets"] == 0
        assert page["process_cpu_seconds_total"] > 0

        base_hub.command(f"drop {agent.cluster}")
        with pytest.raises(aiohttp.ClientError):
            await stream.read()
        origin.go_on.release()
        origin.go_on.release()
        await agent.logged("the tunnel is up", 2)
        page = await scrape(unused_port)
        assert page["hub_redials_total", "ended", hub] == 1
        assert page["hub_sessions_total", hub] == 2
        assert page["connections_ended_total", mode, "client_gone"] >= 1
        assert page["connections_open", mode] == 0

        text = await (await client.get(f"{health}/metrics")).text()
        assert "XSECRETX" not in text
        ours = [line for line in text.splitlines() if line.startswith("fastpipe_agent_")]
        assert {name for line in ours for name in re.findall(r'([a-z_]+)="', line)} <= LABELS
        assert len(ours) < 400


async def test_without_enable_metrics_there_is_no_page(
    tmp_path: pathlib.Path, base_hub: BaseHubProcess, unused_port: int
) -> None:
    async with (
        asyncio.timeout(scaled(60)),
        aiohttp.ClientSession() as client,
        running_agent(
            tmp_path, base_hub, "--route=/=http://127.0.0.1:9", f"--health-address=127.0.0.1:{unused_port}"
        ) as agent,
    ):
        await agent.logged(f'msg="health checks are served" address=127.0.0.1:{unused_port}\n')
        assert (await client.get(f"http://127.0.0.1:{unused_port}/metrics")).status == 404
        assert (await client.get(f"http://127.0.0.1:{unused_port}/readyz")).status == 200


@pytest.mark.loops("asyncio", "uvloop")
async def test_token_reviews_are_read_off_the_processor_that_counts_them() -> None:
    class Counters:
        reviews: ClassVar = {"managed": 3, "failed": 1}
        cache_hits = 40
        shared = 2

    class Processor:
        counters = Counters()

        def process(self, request: RequestHead, target: Target) -> RequestHead:
            return request

    config = AgentConfig("127.0.0.1:1", "c1", insecure=True, routes=["/=http://127.0.0.1:9"])
    agent = Agent(config, request_processor=Processor())
    found = {metric.name: dict(metric.samples) for metric in read(agent)}
    assert found["token_reviews"] == {("failed",): 1, ("managed",): 3}
    assert found["token_reviews_saved"] == {("cached",): 40, ("shared",): 2}
    plain = {metric.name for metric in read(Agent(config))}
    assert plain == set(found) - {"token_reviews", "token_reviews_saved"}
