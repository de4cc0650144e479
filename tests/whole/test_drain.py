"""An agent that stops finishes its requests, sends DRAIN, and sees the stream end, in that order."""

from __future__ import annotations

import asyncio
import pathlib

import aiohttp
import pytest

from ..limits import scaled
from .whole_cluster import Cluster
from .whole_peers import CUT, running_cable, running_origin, until

only_base_hub = pytest.mark.parametrize("hub_kind", ["base"], indirect=True)


async def test_request_in_flight_finishes_before_the_agent_leaves(cluster: Cluster) -> None:
    async with (
        running_origin() as origin,
        cluster.running(origin.url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        held = asyncio.ensure_future(client.post(f"{whole.url}/hold", data=b"still here"))
        await origin.arrived.acquire()
        whole.agent.task.cancel()
        await until(lambda: not whole.agent.agent.ready)
        assert not whole.agent.task.done()
        if whole.kind == "base":
            assert whole.stats()["drains"] == 0  # DRAIN would end the stream under the request
        origin.go_on.release()
        answer = await held
        assert (answer.status, await answer.read()) == (200, b"still here")
        if whole.kind == "base":
            assert answer.headers["connection"].lower() == "close"
        await asyncio.wait([whole.agent.task])
        if whole.kind == "base":
            seen = await cluster.base.until(whole.cluster, lambda seen: seen["live_streams"] == 0)
            assert (seen["drains"], seen["ends"], seen["packets_after_drain"]) == (1, ["OK"], 0)
            assert seen["open_at_drain"] == 0  # it could have locked up for good
            assert seen["errors"] == []


async def test_requests_that_come_during_a_drain_are_refused_with_retry_after(cluster: Cluster) -> None:
    async with (
        running_origin() as origin,
        cluster.running(origin.url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        held = asyncio.ensure_future(client.post(f"{whole.url}/hold"))
        await origin.arrived.acquire()
        whole.agent.task.cancel()
        await until(lambda: not whole.agent.agent.ready)
        refused = await client.get(f"{whole.url}/hello")
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        origin.go_on.release()
        assert (await held).status == 200
        await asyncio.wait([whole.agent.task])
    assert origin.seen == ["POST /hold"]


async def test_idle_connections_do_not_hold_a_drain_up(cluster: Cluster) -> None:
    async with (
        running_origin() as origin,
        cluster.running(origin.url, drain_grace_s=30.0) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        for _ in range(3):
            assert (await client.get(f"{whole.url}/hello")).status == 200
        clock = asyncio.get_running_loop().time
        began_s = clock()
        await whole.agent.stop()
        assert clock() - began_s < 4  # our hub closes its idle connections, so the agent needs no quiet time


async def test_end_of_the_grace_ends_what_is_left_cleanly(cluster: Cluster) -> None:
    async with (
        running_origin() as origin,
        cluster.running(origin.url, drain_grace_s=0.2) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        held = asyncio.ensure_future(client.post(f"{whole.url}/hold"))
        streaming = await client.get(f"{whole.url}/drip")
        await origin.arrived.acquire()
        await origin.arrived.acquire()
        await whole.agent.stop()
        try:
            assert (await held).status in (502, 503)
        except aiohttp.ClientError:
            pass  # closed before any byte: as clean
        with pytest.raises(CUT):
            await streaming.read()
        origin.go_on.release()
        origin.go_on.release()


async def test_second_cancellation_ends_a_drain_at_once(cluster: Cluster) -> None:
    async with (
        running_origin() as origin,
        cluster.running(origin.url, drain_grace_s=60.0) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        held = asyncio.ensure_future(client.post(f"{whole.url}/hold"))
        await origin.arrived.acquire()
        whole.agent.task.cancel()
        await until(lambda: not whole.agent.agent.ready)
        whole.agent.task.cancel()
        done, _ = await asyncio.wait([whole.agent.task], timeout=5)
        assert done
        try:
            assert (await held).status in (502, 503)
        except aiohttp.ClientError:
            pass  # closed before any byte
        origin.go_on.release()


async def test_agent_without_a_hub_stops_at_once(cluster: Cluster, unused_port: int) -> None:
    async with cluster.hub() as whole:
        starting = asyncio.ensure_future(
            whole.start_agent(routes=("/=http://127.0.0.1:9",), hub_address=f"127.0.0.1:{unused_port}")
        )
        await until(lambda: whole.agents)
        await asyncio.sleep(0)  # it has begun to dial
        await whole.agent.stop(timeout_s=3)
        with pytest.raises(asyncio.CancelledError):
            await starting


async def test_tunnel_lost_during_a_drain_ends_it(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.hub() as whole, running_cable(whole.grpc_port) as cable:
        await whole.start_agent(routes=(f"/={origin.url}",), hub_address=f"127.0.0.1:{cable.port}", drain_grace_s=60.0)
        async with aiohttp.ClientSession() as client, asyncio.timeout(scaled(20)):
            held = asyncio.ensure_future(client.post(f"{whole.url}/hold"))
            await origin.arrived.acquire()
            whole.agent.task.cancel()
            await until(lambda: not whole.agent.agent.ready)
            cable.cut()
            done, _ = await asyncio.wait([whole.agent.task], timeout=10)
            assert done
            await asyncio.wait([held])
            origin.go_on.release()
            assert held.exception() is not None or held.result().status in (502, 503)


@pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)
async def test_a_second_cancellation_at_any_moment_leaves_nothing_behind(
    cluster: Cluster, tmp_path: pathlib.Path
) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        for turns in [*range(0, 40, 3), 60, 90]:
            path = tmp_path / f"{turns}.sock"
            agent = await whole.start_agent(cluster_name=f"x{turns}", uds_socket_path=str(path))
            agent.task.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            agent.task.cancel()
            await asyncio.wait([agent.task], timeout=10)
            assert agent.task.done(), f"still there, cancelled again after {turns} turns of the loop"
            assert not path.exists()
