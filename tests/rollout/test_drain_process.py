"""The first SIGTERM lets what is in flight finish, the second doesn't: as processes, and not once but every time."""

from __future__ import annotations

import asyncio
import pathlib
import time
from typing import Any

import aiohttp
import pytest

from ..limits import scaled
from ..whole.whole_peers import BaseHubProcess, running_origin
from .rollout_processes import HubProcess, running_agent

pytestmark = pytest.mark.loops("asyncio")

ROUNDS = 20


async def drained(directory: pathlib.Path, hub: Any, mode: str) -> None:
    """One agent's end, with an upload, a stream and an idle connection at the time of the signal."""
    async with (
        running_origin() as origin,
        running_agent(directory, hub, f"--route=/={origin.url}", mode, "--drain-grace-s=20") as agent,
        aiohttp.ClientSession() as client,
    ):
        assert (await client.get(f"{agent.url}/hello")).status == 200
        held = asyncio.ensure_future(client.post(f"{agent.url}/hold", data=b"still here"))
        # A hub without `close` gets no sign that a kept connection has ended, once the response's head is sent.
        # The agent would then wait for the 5 s of wire.md. So the client asks for `close`.
        stream = await client.get(f"{agent.url}/drip?pieces=3", headers={"Connection": "close"})
        await origin.arrived.acquire()
        await origin.arrived.acquire()

        agent.signal("SIGTERM")
        await agent.logged("grace_s=")
        async with aiohttp.ClientSession() as late:
            refused = await late.get(f"{agent.url}/hello")
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) > 0
        assert agent.process.poll() is None
        for _ in range(4):
            origin.go_on.release()
        answer = await held
        assert (answer.status, await answer.read()) == (200, b"still here")
        assert await stream.read() == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"

        assert await agent.ends() == 0, agent.log
        assert "level=error" not in agent.log
        assert "Traceback" not in agent.log
        assert origin.seen.count("GET /hello") == 1
        if isinstance(hub, BaseHubProcess):
            assert answer.headers["Connection"].lower() == "close"
            seen = await hub.until(agent.cluster, lambda seen: seen["live_streams"] == 0)
            assert (seen["drains"], seen["ends"], seen["packets_after_drain"]) == (1, ["OK"], 0)
            assert seen["open_at_drain"] == 0  # wire.md: it could have locked up for good
            assert seen["errors"] == []


async def test_requests_in_flight_finish_20_times_of_20(tmp_path: pathlib.Path, hub: Any) -> None:
    async def one(number: int) -> None:
        async with asyncio.timeout(scaled(60)):
            await drained(tmp_path, hub, "--use-memory-comm" if number % 2 else "--no-use-memory-comm")

    ended = await asyncio.gather(*map(one, range(ROUNDS)), return_exceptions=True)
    failures = [error for error in ended if error is not None]
    assert not failures, f"{len(failures)} of {ROUNDS}: {failures[0]!r}"


@pytest.mark.parametrize("mode", ["--use-memory-comm", "--no-use-memory-comm"])
async def test_a_second_sigterm_aborts_what_is_in_flight(tmp_path: pathlib.Path, hub: Any, mode: str) -> None:
    async with (
        running_origin() as origin,
        running_agent(tmp_path, hub, f"--route=/={origin.url}", mode, "--drain-grace-s=600") as agent,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(60)),
    ):
        held = asyncio.ensure_future(client.post(f"{agent.url}/hold", data=b"x"))
        await origin.arrived.acquire()
        agent.signal("SIGTERM")
        await agent.logged("grace_s=")
        began_s = time.monotonic()
        agent.signal("SIGTERM")
        assert await agent.ends() == 1
        assert time.monotonic() - began_s < 5
        done, _ = await asyncio.wait([held], timeout=10)
        assert done, (hub.stats(agent.cluster) if isinstance(hub, BaseHubProcess) else hub.log, agent.log)
        try:
            assert (await held).status in (502, 503)
        except aiohttp.ClientError:
            pass  # closed before any byte
        origin.go_on.release()


@pytest.mark.parametrize("mode", ["--use-memory-comm", "--no-use-memory-comm"])
async def test_it_is_not_ready_from_the_first_moment_of_a_drain(
    tmp_path: pathlib.Path, our_hub: HubProcess, mode: str, unused_port: int
) -> None:
    health = f"http://127.0.0.1:{unused_port}"
    async with (
        running_origin() as origin,
        running_agent(
            tmp_path, our_hub, f"--route=/={origin.url}", mode, f"--health-address=127.0.0.1:{unused_port}"
        ) as agent,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(60)),
    ):
        assert (await client.get(f"{health}/readyz")).status == 200
        held = asyncio.ensure_future(client.post(f"{agent.url}/hold", data=b"x"))
        await origin.arrived.acquire()
        agent.signal("SIGTERM")
        await agent.logged("grace_s=")
        assert (await client.get(f"{health}/readyz")).status == 503
        assert (await client.get(f"{health}/healthz")).status == 200
        origin.go_on.release()
        assert (await held).status == 200
        assert await agent.ends() == 0
