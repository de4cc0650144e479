"""A dial that fails leaves nothing in the pool."""

from __future__ import annotations

import asyncio

import pytest

from agent.messages import Target
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
