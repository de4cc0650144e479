"""A dial that fails leaves nothing in the pool."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from agent.errors import TargetError
from agent.messages import Target
from agent.proxy import dial, resolve
from agent.proxy.upstream import Upstream, Upstreams


async def test_a_dial_cancelled_just_as_it_connects_is_not_waited_for() -> None:
    """uvloop closes such a transport without connection_lost.

    `close` must not wait for that call.
    """
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)

    class Cancelling(Upstreams):
        def opened(self, upstream: Upstream) -> None:
            super().opened(upstream)
            dialling.cancel()

    upstreams = Cancelling()
    target = Target(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    dialling = asyncio.ensure_future(upstreams.dial(target))
    with pytest.raises(asyncio.CancelledError):
        await dialling
    async with asyncio.timeout(5):
        await upstreams.close()
    assert upstreams.open_connections == 0
    server.close()
    await server.wait_closed()


async def test_a_target_with_addresses_is_dialled_there_and_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_up(host: str, port: int) -> list[Any]:
        raise AssertionError("looked up")

    monkeypatch.setattr(dial, "look_up", look_up)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    where = server.sockets[0].getsockname()
    upstreams = Upstreams()
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", where)
    upstream = await upstreams.dial(Target("http://db.svc:5432", is_raw=True, addresses=(address,)))
    assert upstream.transport is not None
    assert upstream.transport.get_extra_info("peername") == where
    upstream.abort()
    await upstreams.close()
    server.close()
    await server.wait_closed()


async def test_a_name_is_resolved_within_a_limit_or_the_target_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [info[4] for info in await resolve("127.0.0.1", 80, 5.0)] == [("127.0.0.1", 80)]

    async def never(host: str, port: int) -> list[Any]:
        return await asyncio.get_running_loop().create_future()

    async def nothing(host: str, port: int) -> list[Any]:
        return []

    async def unknown(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    for look_up, status in ((never, 504), (nothing, 502), (unknown, 502)):
        monkeypatch.setattr(dial, "look_up", look_up)
        with pytest.raises(TargetError) as caught:
            await resolve("db.svc", 80, 0.05)
        assert (caught.value.status, caught.value.fault) == (status, "target")
