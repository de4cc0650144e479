"""Agents at the hub: how many it admits, its response to the others, and a herd that returns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
import trustme

from agent.tunnel.backoff import BackOff
from agent.tunnel.client import HubEndpoint, TunnelClient
from agent.tunnel.session import Tunnel

from ..whole.whole_cluster import running_hub
from ..whole.whole_peers import running_origin
from ..whole.whole_peers import until as until_within

HERD = 300


async def until(reached: Callable[[], Any]) -> None:
    await until_within(reached, timeout_s=80)


class Nobody:
    """The receiver of a session that carries nothing."""

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        pass

    def tunnel_lost(self, error: Exception | None) -> None:
        pass


class Herd:
    """Clients of one hub. dials: how often it was dialled."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._endpoint = HubEndpoint("127.0.0.1", port, tls)
        self.dials = 0
        self.clients: list[TunnelClient] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.delays_s: list[float] = []

    def _hub(self) -> HubEndpoint:
        self.dials += 1
        return self._endpoint

    async def _wait(self, delay_s: float) -> None:
        self.delays_s.append(delay_s)
        await asyncio.sleep(min(delay_s, 0.5))

    def add(self, cluster: str, **options: Any) -> TunnelClient:
        def receiver(tunnel: Tunnel) -> Nobody:
            return Nobody()

        client = TunnelClient(
            self._hub,
            cluster_name=cluster,
            open_receiver=receiver,
            dial_timeout_s=60,
            probe_timeout_s=30,
            backoff=BackOff(random=lambda: 0.5),
            wait=self._wait,
            **options,
        )
        self.clients.append(client)
        self.tasks.append(asyncio.ensure_future(client.run()))
        return client

    async def ready(self, number: int) -> None:
        await until(lambda: sum(client.ready for client in self.clients) >= number)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def herd_at(port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Herd]:
    herd = Herd(port, tls)
    try:
        yield herd
    finally:
        await herd.stop()


@pytest.mark.timeout(120)
@pytest.mark.loops("uvloop")  # asyncio's debug mode takes ten seconds for its clients alone
@pytest.mark.parametrize("with_tls", [False, True])
async def test_a_herd_is_let_in_with_one_handshake_each(tmp_path: pathlib.Path, with_tls: bool) -> None:
    """All at once, while users have requests: none is given up while the hub works on it."""
    config: dict[str, Any] = {}
    tls: ssl.SSLContext | None = None
    if with_tls:
        ca = trustme.CA()
        issued = ca.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "hub.pem")
        config = {"grpc_cert_file": str(tmp_path / "hub.pem")}
        tls = ssl.create_default_context()
        ca.configure_trust(tls)
        tls.set_alpn_protocols(["h2"])
    async with (
        running_hub(**config) as (grpc_port, http_port),
        aiohttp.ClientSession() as user,
        herd_at(grpc_port, tls) as herd,
    ):
        for number in range(HERD):
            herd.add(f"c{number}")
        statuses: Counter[int] = Counter()
        while not all(client.ready for client in herd.clients):
            async with user.get(f"http://127.0.0.1:{http_port}/nobody/") as answer:
                statuses[answer.status] += 1
                await answer.read()
        assert herd.dials <= 1.2 * HERD
        assert set(statuses) == {503}


async def test_past_max_sessions_per_cluster_the_oldest_stay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with (
        running_hub(max_sessions_per_cluster=2) as (grpc_port, _),
        herd_at(grpc_port) as herd,
    ):
        for number in range(2):
            herd.add("c1")
            await herd.ready(number + 1)
        late = herd.add("c1")
        other = herd.add("c2")
        await until(lambda: late.redials["full"] >= 3 and other.ready)
        assert [client.ready for client in herd.clients] == [True, True, False, True]
        assert sum(herd.clients[0].redials.values()) == 0
        # 5, 10 and 20 s, each ± 50 %
        for delay_s, middle_s in zip(herd.delays_s, (5, 10, 20), strict=False):
            assert 0.5 * middle_s <= delay_s <= 1.5 * middle_s
        told = [each for each in caplog.records if each.name == "agent.tunnel.client" and "RESOURCE" in each.message]
        assert [each.levelname for each in told] == ["ERROR"]
        assert "this cluster has 2 sessions, the most that are allowed (max_sessions_per_cluster)" in told[0].message
        lines = [each for each in caplog.records if "refused" in each.message and each.name.startswith("agent.hub")]
        assert len(lines) == late.redials["full"]
        assert not [each for each in caplog.records if "call was refused" in each.message]
        # A place that becomes free is taken.
        herd.tasks[0].cancel()
        await until(lambda: late.ready)


async def test_past_max_agents_the_oldest_stay() -> None:
    async with running_hub(max_agents=3) as (grpc_port, _), herd_at(grpc_port) as herd:
        for number in range(3):
            herd.add(f"c{number}")
            await herd.ready(number + 1)
        late = herd.add("c4")
        await until(lambda: late.redials["full"])
        assert [client.ready for client in herd.clients] == [True, True, True, False]


async def test_the_second_agent_of_a_cluster_is_a_line_that_says_who_gets_requests(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with running_hub() as (grpc_port, _), herd_at(grpc_port) as herd:
        herd.add("c1")
        await herd.ready(1)
        assert "several agents" not in caplog.text
        herd.add("c1")
        await herd.ready(2)
        (line,) = [each for each in caplog.records if "several agents" in each.message]
        assert (vars(line)["cluster"], vars(line)["sessions"]) == ("c1", 2)
        assert line.message == "a cluster has several agents, and the newest gets new requests"


async def test_a_refused_agent_is_one_line(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokens = tmp_path / "tokens"
    tokens.write_text("c1 right\n")
    async with running_origin(), running_hub(agent_token_file=str(tokens)) as (grpc_port, _):
        async with herd_at(grpc_port) as herd:
            client = herd.add("c1", metadata=[("authorization", "Bearer wrong")])
            await until(lambda: client.redials["rejected"])
        lines = [each for each in caplog.records if "refused" in each.message and each.name != "agent.tunnel.client"]
        assert [each.message for each in lines] == ["agent refused"]
        assert vars(lines[0])["peer"][0] == "127.0.0.1"
