"""Agents that fall silent beside live ones: how long users wait, and what hub and users learn.

Each agent is its own process. After SIGSTOP its kernel acknowledges every byte, but nobody responds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from agent import HubConfig
from agent.hub.hub import Hub
from agent.hub.metrics import read
from agent.tunnel.liveness import LivenessTimes

from ..limits import scaled
from ..own_responses import reason_of
from .whole_peers import Origin, running_origin, until

SHORT = LivenessTimes(idle_s=2.0, answer_s=2.0, unanswered_s=0.4, suspect_s=0.6)
"""A quarter of the product's, so that a busy machine makes no live agent suspected."""

SLACK_S = scaled(5.0)
"""A busy machine can add so much to a short time."""

NO_BYTE = r"no byte came from it for 16(\.\d)? s"
"""The reason after `LivenessTimes.idle_s` and `answer_s`. A busy machine adds tenths."""

PATIENT = LivenessTimes(idle_s=20.0, answer_s=20.0, unanswered_s=0.4, suspect_s=0.6)
"""Suspects soon and ends late."""


class Scene:
    """A hub on the test's loop, and agents of the cluster c1, each with its own origin."""

    def __init__(self, hub: Hub, grpc_port: int, http_port: int) -> None:
        self.hub = hub
        self.url = f"http://127.0.0.1:{http_port}/c1"
        self.origins: list[Origin] = []
        self.processes: list[asyncio.subprocess.Process] = []
        self._grpc_port = grpc_port

    async def start_agent(self, origin: Origin) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent",
            "run",
            f"--hub-address=127.0.0.1:{self._grpc_port}",
            "--cluster-name=c1",
            "--insecure",
            f"--route=/={origin.url}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self.processes.append(process)
        self.origins.append(origin)
        assert process.stdout is not None
        assert (await process.stdout.readline()).strip() == b"ready"

    def stop(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGSTOP)

    def go_on(self, number: int) -> None:
        self.processes[number].send_signal(signal.SIGCONT)

    def agents(self, state: str) -> float:
        for metric in read(self.hub):
            if metric.name == "agents":
                found = next(value for labels, value in metric.samples if labels == (state,))
                assert isinstance(found, float | int)
                return found
        raise AssertionError("no such metric")


@contextlib.asynccontextmanager
async def scene(agents: int, times: LivenessTimes) -> AsyncIterator[Scene]:
    ports: dict[str, int] = {}
    config = HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0", drain_grace_s=0.1)
    hub = Hub(config, on_listening=lambda kind, _, port: ports.update({kind: port}))
    hub.liveness = times
    task = asyncio.ensure_future(hub.run())
    async with contextlib.AsyncExitStack() as stack:
        found = None
        try:
            await until(lambda: len(ports) == 2 or task.done())
            found = Scene(hub, ports["grpc"], ports["http"])
            for _ in range(agents):
                await found.start_agent(await stack.enter_async_context(running_origin()))
            yield found
        finally:
            for process in found.processes if found is not None else ():
                process.kill()
                await process.communicate()
            task.cancel()
            await asyncio.wait([task], timeout=20)


@contextlib.asynccontextmanager
async def http_client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60)) as client:
        yield client


async def answered(client: aiohttp.ClientSession, method: str, url: str, **options: Any) -> tuple[int, str, float]:
    """Status, text and how long it took."""
    began_s = time.monotonic()
    async with client.request(method, url, **options) as response:
        return response.status, await response.text(), time.monotonic() - began_s


@pytest.mark.loops("uvloop")
async def test_a_stopped_agent_beside_a_live_one_costs_users_5_s(caplog: pytest.LogCaptureFixture) -> None:
    """At full length, with the product's own times. Users once waited 45 s."""
    async with scene(2, LivenessTimes()) as found, http_client() as client:
        assert (await answered(client, "GET", f"{found.url}/hello"))[0] == 200
        assert found.origins[1].seen
        assert not found.origins[0].seen
        found.stop(1)
        post = asyncio.ensure_future(answered(client, "POST", f"{found.url}/echo", data=b"x"))
        gets = []
        while not post.done():
            gets.append(asyncio.ensure_future(answered(client, "GET", f"{found.url}/hello")))
            await asyncio.wait([post], timeout=0.25)
        assert len(gets) > 20
        results = [await get for get in gets]
        assert {status for status, _, _ in results} == {200}
        assert max(took_s for _, _, took_s in results) < scaled(5.0)
        assert found.agents("suspected") == 0
        status, text, took_s = await post
        assert status == 502
        assert re.fullmatch(rf"the agent of this cluster was lost: {NO_BYTE}\n", reason_of(text))
        assert 12 < took_s < scaled(20)
        lost = next(record for record in caplog.records if record.message == "agent disconnected")
        assert lost.levelno == logging.WARNING
        assert re.fullmatch(NO_BYTE, lost.__dict__["reason"])


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
@pytest.mark.loops("uvloop")
async def test_a_bodyless_idempotent_request_goes_to_the_other_agent_once(method: str) -> None:
    async with scene(2, SHORT) as found, http_client() as client:
        found.stop(1)
        status, _, took_s = await answered(client, method, f"{found.url}/hello")
        assert status == 200
        assert took_s < SHORT.unanswered_s + SHORT.suspect_s + SLACK_S
        assert len(found.origins[0].seen) == 1
        assert found.agents("suspected") == 1
        assert found.agents("serving") == 1


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("POST", {}),
        ("PUT", {"data": b"whole"}),
        ("GET", {"headers": {"Connection": "upgrade", "Upgrade": "websocket"}}),
    ],
)
@pytest.mark.loops("uvloop")
async def test_other_requests_are_502_when_the_session_ends(method: str, options: dict[str, Any]) -> None:
    async with scene(2, SHORT) as found, http_client() as client:
        found.stop(1)
        status, text, took_s = await answered(client, method, f"{found.url}/hello", **options)
        assert status == 502
        assert text.startswith("the agent of this cluster was lost: no byte came from it for ")
        assert took_s < SHORT.idle_s + SHORT.answer_s + SLACK_S
        assert found.origins[0].seen == []


@pytest.mark.loops("uvloop")
async def test_requests_go_back_to_the_newest_agent_when_a_byte_comes() -> None:
    async with scene(2, PATIENT) as found, http_client() as client:
        assert (await answered(client, "GET", f"{found.url}/hello"))[0] == 200  # leaves a pooled connection
        found.stop(1)
        assert (await answered(client, "GET", f"{found.url}/hello"))[0] == 200
        assert (await answered(client, "GET", f"{found.url}/hello"))[2] < SLACK_S  # new ones don't wait
        assert len(found.origins[0].seen) == 2
        found.go_on(1)
        await until(lambda: found.agents("suspected") == 0)
        before = len(found.origins[1].seen)
        assert (await answered(client, "GET", f"{found.url}/hello"))[0] == 200
        assert len(found.origins[0].seen) == 2
        assert len(found.origins[1].seen) > before


@pytest.mark.loops("uvloop")
async def test_requests_stay_with_a_lone_agent_that_comes_back() -> None:
    async with scene(1, PATIENT) as found, http_client() as client:
        found.stop(0)
        get = asyncio.ensure_future(answered(client, "GET", f"{found.url}/hello"))
        await until(lambda: found.agents("suspected") == 1)
        post = asyncio.ensure_future(answered(client, "POST", f"{found.url}/echo", data=b"x"))
        found.go_on(0)
        assert (await get)[0] == 200
        assert (await post)[0] == 200
        assert found.agents("suspected") == 0
        assert len(found.origins[0].seen) == 2


@pytest.mark.loops("uvloop")
async def test_an_agent_that_connects_takes_what_waits_for_a_suspected_one() -> None:
    async with scene(1, PATIENT) as found, http_client() as client, running_origin() as origin:
        found.stop(0)
        get = asyncio.ensure_future(answered(client, "GET", f"{found.url}/hello"))
        await until(lambda: found.agents("suspected") == 1)
        await found.start_agent(origin)
        assert (await get)[0] == 200
        assert found.origins[0].seen == []
        assert len(origin.seen) == 1


@pytest.mark.loops("uvloop")
async def test_of_three_agents_the_newest_that_lives_serves() -> None:
    async with scene(3, dataclasses.replace(PATIENT, idle_s=3.0)) as found, http_client() as client:
        found.stop(2)
        found.stop(1)
        await until(lambda: found.agents("suspected") == 2)  # by the PING after 3 s of silence
        status, _, took_s = await answered(client, "GET", f"{found.url}/hello")
        assert status == 200
        assert took_s < SLACK_S
        assert len(found.origins[0].seen) == 1


@pytest.mark.loops("uvloop")
async def test_with_all_agents_suspected_a_request_waits_for_the_newest() -> None:
    async with scene(2, SHORT) as found, http_client() as client:
        found.stop(0)
        found.stop(1)
        status, text, took_s = await answered(client, "GET", f"{found.url}/hello")
        assert status == 502
        assert text.startswith("the agent of this cluster was lost: no byte came from it for ")
        assert took_s < 2 * (SHORT.idle_s + SHORT.answer_s) + SLACK_S
