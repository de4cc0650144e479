"""A hub that is stopped and continued: what lay in its sockets meanwhile came in time."""

from __future__ import annotations

import asyncio
import pathlib

import pytest
from aiohttp import web

from ..limits import scaled
from .rollout_processes import HubProcess, running_agent

LIMIT_S = 2.0
STOPPED_S = 2 * LIMIT_S


@pytest.mark.parametrize("memory", [False, True], ids=["uds", "memory"])
async def test_what_came_while_it_was_stopped_is_not_late(tmp_path: pathlib.Path, memory: bool) -> None:
    arrived, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        arrived.set()
        await go_on.wait()
        return web.Response(text="held")

    async def upload(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    application = web.Application()
    application.router.add_get("/hold", hold)
    application.router.add_put("/upload", upload)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    route = f"--route=/=http://127.0.0.1:{runner.addresses[0][1]}"
    limits = (f"--limits-first-byte-timeout-s={LIMIT_S}", f"--limits-body-timeout-s={LIMIT_S}")
    hub = HubProcess(tmp_path / "hub.log", *limits)
    try:
        async with running_agent(tmp_path, hub, route, *(["--use-memory-comm"] if memory else [])) as agent:
            path = agent.cluster.encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", hub.http_port)
            uploads, uploading = await asyncio.open_connection("127.0.0.1", hub.http_port)
            uploading.write(b"PUT /%b/upload HTTP/1.1\r\nHost: hub\r\nContent-Length: 8\r\n\r\nfour" % path)
            writer.write(b"GET /%b/hold HTTP/1.1\r\nHost: hub\r\n\r\n" % path)
            await asyncio.wait_for(arrived.wait(), 20)
            hub.signal("SIGSTOP")
            try:
                go_on.set()
                uploading.write(b"more")
                await asyncio.sleep(STOPPED_S)  # the time itself is what this is about
            finally:
                hub.signal("SIGCONT")
            async with asyncio.timeout(scaled(30)):
                assert await reader.readline() == b"HTTP/1.1 200 OK\r\n", hub.log
                assert await uploads.readline() == b"HTTP/1.1 200 OK\r\n", hub.log
            writer.close()
            uploading.close()
    finally:
        hub.close()
        await runner.cleanup()
