"""An agent with few descriptors serves as many users as they allow, and reports whose limit it is."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from .whole_cluster import running_hub
from .whole_peers import START_TIMEOUT_S, until

LIMIT = 64
USERS = 120

pytestmark = [
    pytest.mark.loops("uvloop"),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit"),
]


class SlowTarget:
    """Sends no response until the test releases it. held: requests that wait."""

    def __init__(self) -> None:
        self.held = 0
        self.go = asyncio.Event()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.held += 1
                await self.go.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def slow_target() -> AsyncIterator[SlowTarget]:
    target = SlowTarget()
    server = await asyncio.start_server(target.serve, "127.0.0.1", 0, backlog=1000)
    target.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield target
    finally:
        server.close()


@contextlib.asynccontextmanager
async def agent_process(log: Path, limit: int, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`fastpipe-agent run` that may open so many descriptors; ready. Ended by SIGTERM, and then its exit code is 0."""
    import resource

    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent",
            "run",
            "--insecure",
            *flags,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            assert await process.stdout.readline() == b"ready\n"
        yield process
        process.terminate()
        async with asyncio.timeout(START_TIMEOUT_S):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ask(session: aiohttp.ClientSession, url: str, found: Counter[tuple[int, str]]) -> None:
    async with session.get(url) as answer:
        text = await answer.text()
        if answer.status == 503:
            assert answer.headers["Retry-After"]
        found[answer.status, text.strip()] += 1


@pytest.mark.parametrize("mode", ["uds", "memory"])
async def test_a_crowd_is_served_as_far_as_descriptors_go_and_the_rest_is_told(mode: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ["--use-memory-comm"] if mode == "memory" else []
    found: Counter[tuple[int, str]] = Counter()
    async with slow_target() as target, running_hub() as (grpc_port, http_port):
        common = ["--hub-address", f"127.0.0.1:{grpc_port}", "--cluster-name", "c1", "--route", f"/={target.url}"]
        async with (
            agent_process(log, LIMIT, *common, "--drain-grace-s", "2", *flags),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            url = f"http://127.0.0.1:{http_port}/c1/"
            asking = [asyncio.ensure_future(ask(session, url, found)) for _ in range(USERS)]
            await until(lambda: found.total() + target.held == USERS, timeout_s=30)
            served = target.held
            refused = Counter(found)
            target.go.set()
            await asyncio.gather(*asking)
            assert found == refused + Counter({(200, "OK"): served})
            assert {status for status, _ in refused} == {503}
            assert not [text for _, text in refused if "target" in text]  # which is not at fault
            assert served >= (9 if mode == "uds" else 30), found
            assert served * (3 if mode == "uds" else 1) <= LIMIT
            # Nothing is left of the crowd. The next crowd gets the same service.
            again: Counter[tuple[int, str]] = Counter()
            await asyncio.gather(*(ask(session, url, again) for _ in range(served // 2)))
            assert again == Counter({(200, "OK"): served // 2})
    told = log.read_text()
    lowered = re.search(r'level=warning .*msg="max_connections is lowered.*" .*value=1000 in_force=(\d+)', told)
    assert lowered is not None, told
    assert int(lowered[1]) == served
    assert f"descriptors={LIMIT}" in lowered.string
    assert "a bug" not in told
    assert "Traceback" not in told


async def test_an_agent_with_enough_descriptors_lowers_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with slow_target() as target, running_hub() as (grpc_port, _):
        common = ["--hub-address", f"127.0.0.1:{grpc_port}", "--cluster-name", "c1", "--route", f"/={target.url}"]
        async with agent_process(log, 512, *common, "--memory-comm-max-connections", "10", "--use-memory-comm"):
            pass
    assert "lowered" not in log.read_text()
