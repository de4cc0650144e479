"""Sessions begin, break and begin again, at any moment, and nothing of one is seen in the next."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random

import aiohttp
import pytest

import fastpipe
from agent.tunnel.client import TunnelClient

from ..limits import scaled
from .whole_cluster import Cluster
from .whole_peers import CUT, curl, running_cable, running_origin, until

RECONNECTS = 20
CLIENTS = 8

only_base_hub = pytest.mark.parametrize("hub_kind", ["base"], indirect=True)


def open_pipe_ends() -> int:
    gc.collect()
    return sum(isinstance(each, fastpipe.PipeEnd) for each in gc.get_objects())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Clients:
    """Clients that send one request after another, each with its own body, and check the responses."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answered = 0
        self.failed = 0
        self.foreign: list[str] = []  # responses of another request
        self.stopping = False
        self._random = random.Random(20)

    async def work(self, name: int) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
            turn = 0
            while not self.stopping:
                turn += 1
                body = (f"client {name} request {turn};" * self._random.randrange(1, 6000)).encode()
                try:
                    async with client.post(f"{self.url}/echo", data=body) as answer:
                        received = await answer.read()
                        status = answer.status
                except (aiohttp.ClientError, ConnectionError):
                    self.failed += 1
                    continue
                if status == 200 and received == body:
                    self.answered += 1
                elif status in (502, 503) and b"client" not in received[:7]:
                    self.failed += 1
                else:
                    self.foreign.append(f"{status}: {received[:60]!r} for {body[:60]!r}")


@pytest.mark.loops("uvloop")
async def test_twenty_reconnects_with_requests_in_flight_leave_nothing_behind(cluster: Cluster) -> None:
    pipes_before = open_pipe_ends()
    async with running_origin() as origin, cluster.hub() as whole, running_cable(whole.grpc_port) as cable:
        agent = await whole.start_agent(routes=(f"/={origin.url}",), hub_address=f"127.0.0.1:{cable.port}")
        descriptors_before, tasks_before = descriptors(), len(asyncio.all_tasks())
        clients = Clients(whole.url)
        working = [asyncio.ensure_future(clients.work(name)) for name in range(CLIENTS)]
        chance = random.Random(20)
        for turn in range(1, RECONNECTS + 1):
            answered = clients.answered
            await until(lambda before=answered: clients.answered > before + CLIENTS, timeout_s=30)
            cable.cut_after_bytes = cable.bytes_carried + chance.randrange(200_000)  # in the middle of something
            await until(lambda: not agent.agent.ready)
            agent.agent.reconnect_now()  # the back-off has its own tests
            await until(lambda turn=turn: agent.times_ready > turn)
        clients.stopping = True
        await asyncio.wait(working, timeout=30)
        assert clients.foreign == []
        assert all(client.done() for client in working)
        for client in working:
            client.result()
        assert (await curl(f"{whole.url}/hello"))[:2] == (0, b"hello from the origin\n")
        if whole.kind == "ours":
            await until(lambda: agent.agent.open_connections <= CLIENTS)  # the hub's pool: idle, newest session
        # The live session keeps only idle connections: at most CLIENTS to the proxy, and to the origin.
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before + 2 * CLIENTS)
        assert descriptors() <= descriptors_before + 4 * CLIENTS + 4
        sessions = agent.times_ready
    assert sessions == RECONNECTS + 1
    await until(lambda: open_pipe_ends() <= pipes_before)


async def test_agent_waits_for_a_hub_that_is_down(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.hub() as whole, running_cable(whole.grpc_port) as cable:
        cable.plugged = False
        starting = asyncio.ensure_future(
            whole.start_agent(routes=(f"/={origin.url}",), hub_address=f"127.0.0.1:{cable.port}")
        )
        await asyncio.sleep(0)  # lets it begin
        assert not whole.agent.agent.ready
        cable.plugged = True
        await starting
        assert (await curl(f"{whole.url}/hello"))[1] == b"hello from the origin\n"


@only_base_hub
@pytest.mark.loops("uvloop")
async def test_refusing_hub_is_tried_again_with_a_back_off(cluster: Cluster) -> None:
    async with cluster.hub() as whole:
        cluster.base.command(f"refuse {whole.cluster} UNAVAILABLE")
        starting = asyncio.ensure_future(whole.start_agent(routes=("/=http://127.0.0.1:9",)))
        clock = asyncio.get_running_loop().time
        began_s = clock()
        await cluster.base.until(whole.cluster, lambda seen: seen["streams"] >= 3)
        assert clock() - began_s > 0.25 + 0.375  # two waits: 0.5 s and 0.75 s, each spread by 50 %
        cluster.base.command(f"refuse {whole.cluster} -")
        await starting


@only_base_hub
async def test_rejected_identity_is_said_loudly_and_retried_slowly(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.hub() as whole:
        cluster.base.command(f"refuse {whole.cluster} UNAUTHENTICATED")
        starting = asyncio.ensure_future(whole.start_agent(routes=("/=http://127.0.0.1:9",)))
        await until(lambda: [each for each in caplog.records if each.levelno == logging.ERROR])
        assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 1
        assert whole.stats()["streams"] == 1
        cluster.base.command(f"refuse {whole.cluster} -")
        whole.agent.agent.reconnect_now()
        await starting


@only_base_hub
@pytest.mark.parametrize("status", ["UNAVAILABLE", "OK", "INTERNAL"])
async def test_dropped_stream_fails_its_requests_and_comes_back(cluster: Cluster, status: str) -> None:
    async with (
        running_origin() as origin,
        cluster.running(origin.url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        waiting = asyncio.ensure_future(client.post(f"{whole.url}/hold"))
        streaming = await client.get(f"{whole.url}/drip")
        await origin.arrived.acquire()
        await origin.arrived.acquire()
        cluster.base.command(f"drop {whole.cluster} {status}")
        with pytest.raises(aiohttp.ClientError):
            await waiting
        with pytest.raises(CUT):
            await streaming.read()
        await until(lambda: whole.agent.agent.open_connections == 0)
        await until(lambda: whole.agent.times_ready == 2)
        assert await (await client.get(f"{whole.url}/hello")).text() == "hello from the origin\n"
        origin.go_on.release()
        origin.go_on.release()


@pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)
async def test_lost_tunnel_is_a_502_before_the_head_and_a_cut_after_it(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.hub() as whole, running_cable(whole.grpc_port) as cable:
        await whole.start_agent(routes=(f"/={origin.url}",), hub_address=f"127.0.0.1:{cable.port}")
        async with aiohttp.ClientSession() as client, asyncio.timeout(scaled(20)):
            waiting = asyncio.ensure_future(client.get(f"{whole.url}/hold"))
            streaming = await client.get(f"{whole.url}/drip")
            await origin.arrived.acquire()
            await origin.arrived.acquire()
            cable.cut()
            assert (await waiting).status == 502
            with pytest.raises(CUT):
                await streaming.read()
            origin.go_on.release()
            origin.go_on.release()


@only_base_hub
async def test_answer_of_an_old_session_never_reaches_the_same_id_of_the_next(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, asyncio.timeout(scaled(20)):
        async with aiohttp.ClientSession() as old, aiohttp.ClientSession() as new:
            first = asyncio.ensure_future(old.post(f"{whole.url}/hold", data=b"the old session's secret"))
            await origin.arrived.acquire()
            cluster.base.command(f"drop {whole.cluster}")
            with pytest.raises(aiohttp.ClientError):
                await first
            await until(lambda: whole.agent.times_ready == 2)
            second = asyncio.ensure_future(new.post(f"{whole.url}/hold", data=b"the new one's own"))
            await origin.arrived.acquire()  # conn_id 1 again, in flight
            for _ in range(2):
                origin.go_on.release()
            assert await (await second).read() == b"the new one's own"
            assert await (await new.post(f"{whole.url}/echo", data=b"and on")).read() == b"and on"
        assert whole.stats()["unknown_ids"] == []


@only_base_hub
async def test_data_for_a_closed_id_opens_nothing(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        code, _, _ = await curl("-H", "Connection: close", f"{whole.url}/hello")
        assert code == 0
        await until(lambda: whole.agent.agent.open_connections == 0)
        smuggled = f"GET /{whole.cluster}/smuggled HTTP/1.1\r\nHost: h\r\n\r\n".encode().hex()
        for conn_id in (1, 1, 0, -7):
            cluster.base.command(f"raw {whole.cluster} {conn_id} {smuggled}")
        await cluster.base.until(whole.cluster, lambda seen: seen["error_for_unknown"] == 1)
        assert await curl(f"{whole.url}/hello") == (0, b"hello from the origin\n", b"")
        assert origin.seen == ["GET /hello"] * 2
        assert whole.stats()["error_for_unknown"] == 1  # one for the id, not for each packet


@only_base_hub
async def test_unknown_codes_and_errors_for_unknown_ids_are_ignored(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        for command in ("99 9 what", "99 1 gone", "0 1 nothing", "0 7 nothing"):
            conn_id, rest = command.split(" ", 1)
            cluster.base.command(f"code {whole.cluster} {conn_id} {rest}")
        assert (await curl(f"{whole.url}/hello"))[1] == b"hello from the origin\n"
        seen = whole.stats()
        assert (seen["streams"], seen["errors"]) == (1, [])


@only_base_hub
async def test_malformed_message_ends_the_session_and_only_it(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        cluster.base.command(f"message {whole.cluster} 0aff")
        await until(lambda: whole.agent.times_ready == 2)
        assert len([each for each in caplog.records if each.levelno >= logging.WARNING and "tunnel" in each.name]) == 1
        assert (await curl(f"{whole.url}/hello"))[1] == b"hello from the origin\n"


@only_base_hub
async def test_flood_for_id_zero_ends_the_session_with_one_log_line(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        caplog.clear()
        cluster.base.command(f"flood {whole.cluster} 200000")
        await cluster.base.until(whole.cluster, lambda seen: seen["live_streams"] == 0)
        await until(lambda: [each for each in caplog.records if each.levelno >= logging.WARNING])
        assert len([each for each in caplog.records if each.levelno >= logging.WARNING]) == 1
        assert whole.stats()["streams"] == 1  # it backs off long
        whole.agent.agent.reconnect_now()
        await until(lambda: whole.agent.times_ready == 2)
        assert (await curl(f"{whole.url}/hello"))[1] == b"hello from the origin\n"


@only_base_hub
@pytest.mark.loops("uvloop")
async def test_hub_that_leaves_probes_unanswered_is_left(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    sooner = functools.partial(TunnelClient, first_probe_timeout_s=5.0)  # 20 s otherwise
    monkeypatch.setattr("agent.spoke.agent.TunnelClient", sooner)
    async with cluster.hub() as whole:
        cluster.base.command(f"deaf {whole.cluster} on")
        starting = asyncio.ensure_future(whole.start_agent(routes=("/=http://127.0.0.1:9",)))
        await cluster.base.until(whole.cluster, lambda seen: seen["probes"] == 1)
        assert not whole.agent.ready.is_set()
        cluster.base.command(f"deaf {whole.cluster} off")
        await starting
        assert whole.stats()["streams"] == 2
