"""Users who flood or leave, and what the others notice. Hub and agent are processes."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import statistics
import sys
import time
from collections.abc import AsyncIterator
from typing import cast

import aiohttp
import pytest

from ..limits import scaled
from ..whole.whole_peers import until
from .rollout_processes import HubProcess, running_agent

pytestmark = [pytest.mark.loops("uvloop"), pytest.mark.timeout(180)]

FLOOD = """
import socket, sys, threading
port, path = int(sys.argv[1]), sys.argv[2].encode()
sock = socket.create_connection(("127.0.0.1", port))
requests = b"%b %b HTTP/1.1\\r\\nHost: hub\\r\\n\\r\\n" % (b"OPTIONS" if path == b"*" else b"GET", path) * 500
def write():
    while True:
        sock.sendall(requests)
threading.Thread(target=write, daemon=True).start()
answers = 0
while data := sock.recv(1 << 18):
    before, answers = answers, answers + data.count(b"HTTP/1.1 ")
    if answers // 100 > before // 100:
        print(answers, flush=True)
"""
"""Pipelines requests on one connection, reads the responses, and reports each hundred."""

FULL = 300
LEAVERS = 500
HALF_CLOSED_S = 2.0
SLACK_S = 20.0
"""A busy machine can add so much. It is a third of the wait before the agent found leavers."""


@contextlib.asynccontextmanager
async def flooding(port: int, path: str) -> AsyncIterator[list[int]]:
    """One connection that floods already. Gives how many responses it has had so far."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FLOOD, str(port), path, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    counts = [int(await process.stdout.readline())]

    async def count(lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            counts.append(int(line))

    counting = asyncio.ensure_future(count(process.stdout))
    try:
        yield counts
        assert process.returncode is None, "the flood has lasted"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await counting


async def p50_s(url: str, number: int = 30) -> float:
    took_s = []
    async with aiohttp.ClientSession() as client:
        for _ in range(number):
            began_s = time.perf_counter()
            async with client.get(url) as answer:
                assert (answer.status, await answer.text()) == (200, "OK")
            took_s.append(time.perf_counter() - began_s)
    return statistics.median(took_s)


class Target(asyncio.Protocol):
    """Responds to `/good` only."""

    def __init__(self, silent: set[Target]) -> None:
        self._silent = silent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if b"/good" in data:
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
        else:
            self._silent.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._silent.discard(self)


@pytest.fixture(params=["uds", "memory"])
def mode(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@contextlib.asynccontextmanager
async def running(
    directory: pathlib.Path, mode: str, *hub_flags: str
) -> AsyncIterator[tuple[HubProcess, str, set[Target]]]:
    """(the hub, the cluster's name, the target's connections whose request waits)."""
    silent: set[Target] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Target(silent), "127.0.0.1", 0, backlog=1024)
    route = f"--route=/=http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    hub = HubProcess(directory / "hub.log", *hub_flags)
    try:
        async with running_agent(directory, hub, route, *(["--use-memory-comm"] if mode == "memory" else [])) as agent:
            yield hub, agent.cluster, silent
            await until(lambda: not silent)
    finally:
        hub.close()
        server.close()


@pytest.mark.parametrize("path", ["/nosuch/x", "/favicon.ico", "*"])
async def test_a_flood_that_the_hub_answers_itself_slows_nobody(tmp_path: pathlib.Path, path: str) -> None:
    async with running(tmp_path, "memory") as (hub, cluster, _):
        url = f"http://127.0.0.1:{hub.http_port}/{cluster}/good"
        await p50_s(url, 10)
        async with flooding(hub.http_port, path) as counts:
            before = counts[-1]
            async with asyncio.timeout(scaled(60)):
                took_s = await p50_s(url)
            await until(lambda: counts[-1] > before)  # the flood gets responses all the while
        assert took_s < 0.1  # once 0.5 s, and up to 7 s


async def test_500_leavers_keep_others_out_no_longer_than_the_limit(tmp_path: pathlib.Path, mode: str) -> None:
    flags = [f"--max-clients={FULL}", f"--limits-half-closed-s={HALF_CLOSED_S}"]
    async with running(tmp_path, mode, *flags) as (hub, cluster, silent):
        waiting = []
        for _ in range(FULL):
            _, writer = await asyncio.open_connection("127.0.0.1", hub.http_port)
            writer.write(b"GET /%b/silent HTTP/1.1\r\nHost: hub\r\n\r\n" % cluster.encode())
            waiting.append(writer)
        await until(lambda: len(silent) == FULL, timeout_s=60)

        async def good() -> int:
            async with (
                aiohttp.ClientSession() as client,
                client.get(f"http://127.0.0.1:{hub.http_port}/{cluster}/good") as answer,
            ):
                await answer.read()
                return answer.status

        assert await good() == 503
        for _ in range(LEAVERS - FULL):
            _, writer = await asyncio.open_connection("127.0.0.1", hub.http_port)
            writer.write(b"GET /%b/silent HTTP/1.1\r\nHost: hub\r\n\r\n" % cluster.encode())
            waiting.append(writer)
        for writer in waiting:
            writer.close()
        left_s = time.monotonic()
        while (status := await good()) != 200:
            assert status == 503
            await asyncio.sleep(0.05)
        assert time.monotonic() - left_s < HALF_CLOSED_S + SLACK_S
        await until(lambda: not silent, timeout_s=HALF_CLOSED_S + SLACK_S)
        assert "fault=agent" not in hub.log
