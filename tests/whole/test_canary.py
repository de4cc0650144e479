"""A canary's share of connections is a share of requests, whatever hubs keep open. The log has both counts."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import aiohttp
import pytest

from agent import AgentConfig, MemoryCommConfig
from agent.spoke.agent import REQUESTS_PER_CONNECTION

from .whole_cluster import Cluster
from .whole_peers import running_origin, until

HALF = MemoryCommConfig(canary_percent=50)
TOLD = "connections opened so far, by what carries them"

pytestmark = pytest.mark.parametrize("mode", ["uds"])  # what a canary is beside


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[int, int, int]]:
    """(memory, uds, memory_percent) of each line."""
    found: list[dict[str, Any]] = [vars(record) for record in caplog.records if record.getMessage() == TOLD]
    return [(each["memory"], each["uds"], each["memory_percent"]) for each in found]


async def ask(session: aiohttp.ClientSession, url: str, times: int) -> int:
    """Ask one request after another. Returns how many responses announced that their connection closes."""
    closing = 0
    for _ in range(times):
        async with session.get(f"{url}/hello") as answer:
            assert answer.status == 200
            await answer.read()
            closing += answer.headers.get("connection", "").lower() == "close"
    return closing


async def test_requests_one_after_another_use_both_carriers_at_half(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="agent.spoke.agent")
    async with (
        running_origin() as origin,
        cluster.running(origin.url, memory_comm=HALF) as whole,
        aiohttp.ClientSession() as session,
    ):
        closing = await ask(session, whole.url, 40)
        by = whole.agent.agent.counters.opened_by
        assert dict(by) == {"memory": 2, "uds": 2}
        if whole.kind == "base":  # its user's connection is the agent's
            assert closing == 4
        await whole.agent.stop()
        assert told(caplog) == [(2, 2, 50)]


async def test_an_upload_that_is_a_connections_last_request_arrives_whole(cluster: Cluster) -> None:
    body = os.urandom(300_000)
    async with (
        running_origin() as origin,
        cluster.running(origin.url, memory_comm=HALF) as whole,
        aiohttp.ClientSession() as session,
    ):
        for _ in range(2 * REQUESTS_PER_CONNECTION):
            async with session.post(f"{whole.url}/digest", data=body) as answer:
                assert (await answer.json())["length"] == len(body)
        assert dict(whole.agent.agent.counters.opened_by) == {"memory": 1, "uds": 1}


async def test_a_connection_is_not_closed_where_all_go_one_way(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="agent.spoke.agent")
    async with running_origin() as origin, cluster.running(origin.url) as whole, aiohttp.ClientSession() as session:
        assert await ask(session, whole.url, 3 * REQUESTS_PER_CONNECTION) == 0
        assert dict(whole.agent.agent.counters.opened_by) == {"uds": 1}
        await whole.agent.stop()
        assert told(caplog) == []


async def test_a_canary_that_begins_and_ends_is_for_connections_that_are_open_already(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="agent.spoke.agent")
    async with running_origin() as origin, cluster.running(origin.url) as whole, aiohttp.ClientSession() as session:
        await ask(session, whole.url, REQUESTS_PER_CONNECTION + 5)
        agent = whole.agent.agent
        assert dict(agent.counters.opened_by) == {"uds": 1}
        config = whole.agent_config | {"use_memory_comm": False}
        await agent.reload(AgentConfig(**config, memory_comm=HALF))
        await ask(session, whole.url, 4 * REQUESTS_PER_CONNECTION)
        assert agent.counters.opened_by["memory"] >= 1
        assert told(caplog) == [(0, 1, 50)]
        await agent.reload(AgentConfig(**config, memory_comm=MemoryCommConfig(canary_percent=0)))
        await ask(session, whole.url, REQUESTS_PER_CONNECTION)  # to the end of what is open over memory
        opened = agent.counters.opened_by.total()
        await ask(session, whole.url, 3 * REQUESTS_PER_CONNECTION)
        assert agent.counters.opened_by.total() - opened <= 1
        assert len(told(caplog)) == 2


async def test_counts_are_told_now_and_then_where_they_changed(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="agent.spoke.agent")
    monkeypatch.setattr("agent.spoke.agent.SHARE_TOLD_S", 0.01)
    async with (
        running_origin() as origin,
        cluster.running(origin.url, memory_comm=HALF) as whole,
        aiohttp.ClientSession() as session,
    ):
        await ask(session, whole.url, 2 * REQUESTS_PER_CONNECTION)
        await until(lambda: (1, 1, 50) in told(caplog))
        many = len(told(caplog))
        await asyncio.sleep(0.1)
        assert len(told(caplog)) == many
