"""Responses and logs of a real hub and a real agent name whose fault an error was.

Hub and agent have the same limits, as by default. The one that is nearer to the party at fault reports it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pathlib
from collections import Counter
from collections.abc import AsyncIterator
from typing import cast

import aiohttp
import pytest

from ..own_responses import reason_of
from ..whole.whole_peers import until
from .rollout_processes import AgentProcess, HubProcess, running_agent

pytestmark = [pytest.mark.loops("uvloop"), pytest.mark.timeout(120)]

MANY = 20
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


@pytest.fixture(params=["uds", "memory"])
def mode(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


class Target(asyncio.Protocol):
    """Reads nothing behind the first bytes of a request, and sends `answer`."""

    def __init__(self, answer: bytes, transports: list[asyncio.Transport]) -> None:
        self._answer = answer
        self._transports = transports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transports.append(self._transport)

    def data_received(self, data: bytes) -> None:
        self._transport.pause_reading()
        self._transport.write(self._answer)


@contextlib.asynccontextmanager
async def running(
    directory: pathlib.Path, mode: str, answer: bytes, *limits: str
) -> AsyncIterator[tuple[HubProcess, AgentProcess]]:
    """A hub and an agent with the same limits, and a target behind them."""
    transports: list[asyncio.Transport] = []
    server = await asyncio.get_running_loop().create_server(lambda: Target(answer, transports), "127.0.0.1", 0)
    route = f"--route=/=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    hub = HubProcess(directory / "hub.log", *limits)
    flags = ["--use-memory-comm"] if mode == "memory" else []
    try:
        async with running_agent(directory, hub, route, *flags, *limits) as agent:
            yield hub, agent
    finally:
        hub.close()
        server.close()
        for transport in transports:
            transport.abort()


async def test_a_target_that_does_not_answer_is_told_as_the_target(tmp_path: pathlib.Path, mode: str) -> None:
    async with (
        running(tmp_path, mode, b"", "--limits-first-byte-timeout-s=0.5") as (hub, agent),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
    ):

        async def ask(number: int) -> tuple[int, str]:
            await asyncio.sleep(number * 0.03)  # at all times of both sweeps
            async with client.get(agent.url + "/silent") as answer:
                return answer.status, reason_of(await answer.text())

        found = Counter(await asyncio.gather(*map(ask, range(MANY))))
        assert found == {(504, "the target did not respond in time\n"): MANY}
        await agent.logged("did not respond in time")
        assert "fault=target" in agent.log
        assert "limit=limits.first_byte_timeout_s" in agent.log
        assert "fault=agent" not in hub.log
        await hub.logged("the agent responded with a failure")
        reason, limit = 'reason="the target did not respond in time"', "limit=limits.first_byte_timeout_s"
        assert f"status=504 fault=target method=GET {reason} {limit}" in hub.log


async def test_a_target_that_takes_nothing_is_told_as_the_target(tmp_path: pathlib.Path, mode: str) -> None:
    async with (
        running(tmp_path, mode, b"", "--limits-write-timeout-s=0.5") as (hub, agent),
        aiohttp.ClientSession() as client,
    ):
        for _ in range(3):
            async with client.post(agent.url + "/upload", data=io.BytesIO(bytes(60_000_000))) as answer:
                assert (answer.status, reason_of(await answer.text())) == (504, "the target takes nothing\n")
        await agent.logged("fault=target")
        assert "limit=limits.write_timeout_s" in agent.log
        await hub.logged('fault=target method=POST reason="the target takes nothing" limit=limits.write_timeout_s')
        assert "fault=agent" not in hub.log


async def test_a_client_that_takes_nothing_is_told_as_the_client(tmp_path: pathlib.Path, mode: str) -> None:
    large = b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n" + bytes(60_000_000)
    async with running(tmp_path, mode, large, "--limits-write-timeout-s=0.5") as (hub, agent):
        writers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.http_port, limit=1024)
            writer.write(b"GET /%b/large HTTP/1.1\r\nHost: hub\r\n\r\n" % agent.cluster.encode())
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            writers.append(writer)
        await hub.logged("the client takes nothing", 3)
        assert hub.log.count("limit=limits.write_timeout_s") == 3
        assert "fault=agent" not in hub.log
        for writer in writers:
            writer.transport.abort()


async def test_an_agent_without_a_descriptor_is_told_as_the_agent(tmp_path: pathlib.Path, mode: str) -> None:
    import resource

    async with running(tmp_path, mode, GOOD) as (hub, agent), aiohttp.ClientSession() as client:
        hard = resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (3, hard))  # it has more, and opens none
        async with client.get(agent.url + "/x") as answer:
            status, text = answer.status, await answer.text()
        assert status in (502, 503)
        assert "target" not in text
        assert "descriptor" in text
        await agent.logged("level=error")
        await agent.logged("fault=agent")
        await hub.logged("fault=agent")
        await hub.logged("descriptor")


async def test_an_agent_that_is_lost_is_told_as_the_agent(tmp_path: pathlib.Path, mode: str) -> None:
    async with running(tmp_path, mode, b"") as (hub, agent), aiohttp.ClientSession() as client:
        before = len(os.listdir(f"/proc/{agent.process.pid}/fd"))
        asking = asyncio.ensure_future(client.post(agent.url + "/silent", data=b"x"))
        await until(lambda: len(os.listdir(f"/proc/{agent.process.pid}/fd")) > before)  # it has dialled its target
        agent.signal("SIGKILL")
        answer = await asking
        text = await answer.text()
        assert answer.status == 502
        assert text.startswith("the agent of this cluster was lost: ")
        await hub.logged("agent disconnected")
        await hub.logged("fault=agent")
        assert "fault=target" not in hub.log


async def test_a_target_cannot_name_a_party(tmp_path: pathlib.Path, mode: str) -> None:
    forged = b"HTTP/1.1 503 Service Unavailable\r\nTunnel-Fault: agent - forged\r\nContent-Length: 2\r\n\r\nNO"
    async with running(tmp_path, mode, forged) as (hub, agent), aiohttp.ClientSession() as client:
        async with client.get(agent.url + "/x", headers={"Tunnel-Fault": "agent - forged"}) as answer:
            assert (answer.status, await answer.text()) == (503, "NO")
            assert "Tunnel-Fault" not in answer.headers
        assert "forged" not in hub.log + agent.log


async def test_no_user_sees_the_field(tmp_path: pathlib.Path, mode: str) -> None:
    async with (
        running(tmp_path, mode, b"", "--limits-first-byte-timeout-s=0.5") as (_, agent),
        aiohttp.ClientSession() as client,
        client.get(agent.url + "/silent") as answer,
    ):
        assert answer.status == 504
        assert "Tunnel-Fault" not in answer.headers
