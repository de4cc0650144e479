"""Hub and agent with their defaults cut no request because it takes long.

Each request here is silent for more than 30 s, the time that a Go hub lists a connection.
All requests wait at the same time, so the test takes as long as one of them.
"""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest

from ..whole.whole_peers import Origin, running_origin
from .rollout_processes import HubProcess, running_agent

SILENCE_S = 33.0


async def late_answer(client: aiohttp.ClientSession, url: str, silence: asyncio.Future[None]) -> None:
    answer = await client.post(f"{url}/hold", data=b"late")
    assert silence.done()
    assert (answer.status, await answer.read()) == (200, b"late")


async def silent_stream(client: aiohttp.ClientSession, url: str, silence: asyncio.Future[None]) -> None:
    answer = await client.get(f"{url}/drip?pieces=2")
    assert await answer.content.readuntil(b"\n\n") == b"data: 0\n\n"
    assert await answer.content.read() == b"data: 1\n\n"
    assert silence.done()


async def silent_websocket(client: aiohttp.ClientSession, url: str, silence: asyncio.Future[None]) -> None:
    async with client.ws_connect(f"{url}/ws") as socket:
        await socket.send_str("one")
        assert await socket.receive_str() == "echo one"
        await asyncio.shield(silence)
        await socket.send_str("two")
        assert await socket.receive_str() == "echo two"


async def stalled_upload(client: aiohttp.ClientSession, url: str, silence: asyncio.Future[None]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 100_000
        await asyncio.shield(silence)
        yield b"b" * 100_000

    answer = await client.post(f"{url}/echo", data=pieces())
    assert (answer.status, await answer.read()) == (200, b"a" * 100_000 + b"b" * 100_000)


async def idle_client(client: aiohttp.ClientSession, url: str, silence: asyncio.Future[None]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    for _ in range(2):
        writer.write(f"GET /{url.rpartition('/')[2]}/hello HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        await asyncio.shield(silence)
    writer.close()
    await writer.wait_closed()


CASES = (late_answer, silent_stream, silent_websocket, stalled_upload, idle_client)


@pytest.mark.loops("uvloop")
async def test_nothing_is_cut_after_half_a_minute(tmp_path: pathlib.Path, our_hub: HubProcess) -> None:
    silence: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def by(mode: str, origin: Origin) -> None:
        async with (
            running_agent(tmp_path, our_hub, f"--route=/={origin.url}", mode) as agent,
            aiohttp.ClientSession() as client,
        ):
            await asyncio.gather(*(case(client, agent.url, silence) for case in CASES))
            assert agent.log.count("level=warning") == 1  # nothing is authenticated

    async with running_origin() as origin, asyncio.TaskGroup() as both:
        for mode in ("--use-memory-comm", "--no-use-memory-comm"):
            both.create_task(by(mode, origin))
        for _ in range(4):  # the request of a late response and a stream's first piece, in each mode
            await origin.arrived.acquire()
        await asyncio.sleep(SILENCE_S)
        silence.set_result(None)
        for _ in range(6):
            origin.go_on.release()
