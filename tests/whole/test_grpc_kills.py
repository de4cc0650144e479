"""An agent, a hub or a server that is killed in the middle of gRPC calls.

Each call ends by a status, and none hangs or gets a wrong message.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from .whole_calls import Peer
from .whole_log import Process
from .whole_peers import free_port, until

SOAK = os.environ.get("FASTPIPE_SOAK", "") not in ("", "0")
KILLS = 20 if SOAK else 1
STREAMS = 20
ENDLESS = 1_000_000  # messages of a stream
BROKEN = {"UNAVAILABLE", "INTERNAL"}
"""The statuses of a call that a kill cuts. INTERNAL: in the middle of a message."""
SOON_S = 20.0

pytestmark = [pytest.mark.loops("uvloop"), pytest.mark.timeout(900 if SOAK else 120)]


class Path:
    """A hub and an agent in their own processes, on the same ports each time."""

    def __init__(self, started: type[Process], target: str, *agent: str) -> None:
        self._started = started
        self._target = target
        self._agent = agent
        self.grpc_port, self.http_port = free_port(), free_port()
        self.start_hub()
        self.start_agent()

    def start_hub(self) -> None:
        addresses = [f"--grpc-address=127.0.0.1:{self.grpc_port}", f"--http-address=127.0.0.1:{self.http_port}"]
        self.hub = self._started("hub", *addresses, blocked=False)
        assert self.hub.port("grpc"), self.hub.port("http")

    def start_agent(self) -> None:
        hub = f"--hub-address=127.0.0.1:{self.grpc_port}"
        arguments = [hub, "--cluster-name=c1", "--insecure", f"--route=/={self._target}", *self._agent]
        self.agent = self._started("run", *arguments, blocked=False)


@contextlib.asynccontextmanager
async def chatting(path: Path, server: Peer, client: Peer) -> AsyncIterator[None]:
    """Streams in the middle of their messages. The block ends them, and their statuses are checked."""
    async with server.orders() as orders, client.channel(f"127.0.0.1:{path.http_port}", prefix="/c1") as channel:
        await orders("again")
        chats = asyncio.ensure_future(channel("chats", streams=STREAMS, messages=ENDLESS, size=3000, ahead=20))
        for _ in range(STREAMS):
            waiting = asyncio.ensure_future(orders("event"))
            done, _ = await asyncio.wait([waiting, chats], return_when=asyncio.FIRST_COMPLETED)
            assert waiting in done, chats.result()
            assert waiting.result()["event"] == "chatting"
        yield
        found = await asyncio.wait_for(chats, SOON_S)
        assert set(found["codes"]) <= BROKEN, found
        assert sum(found["codes"].values()) == STREAMS
        assert found["wrong"] == 0


async def served(path: Path, client: Peer) -> None:
    """Calls succeed again."""
    async with client.channel(f"127.0.0.1:{path.http_port}", prefix="/c1") as channel:

        async def tried() -> bool:
            found = await channel("echoes", calls=1, size=100, at_once=1)
            assert found["wrong"] == 0
            return bool(found["codes"] == {"OK": 1})

        for _ in range(1000):
            if await tried():
                break
            await asyncio.sleep(0.02)
        found = await channel("echoes", calls=50, size=100, at_once=10)
        assert found == {"codes": {"OK": 50}, "wrong": 0}


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
async def test_an_agent_that_ends(started: type[Process], grpc_server: Peer, grpc_client: Peer, name: str) -> None:
    path = Path(started, f"h2c://127.0.0.1:{grpc_server.ports['plain']}", "--drain-grace-s=0.5")
    await served(path, grpc_client)
    for _ in range(KILLS):
        async with chatting(path, grpc_server, grpc_client):
            path.agent.process.send_signal(signal.Signals[name])
        await until(lambda: path.agent.process.poll() is not None)
        path.start_agent()
        await served(path, grpc_client)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
async def test_a_hub_that_ends(started: type[Process], grpc_server: Peer, grpc_client: Peer, name: str) -> None:
    path = Path(started, f"h2c://127.0.0.1:{grpc_server.ports['plain']}")
    await served(path, grpc_client)
    for _ in range(KILLS):
        async with chatting(path, grpc_server, grpc_client):
            path.hub.process.send_signal(signal.Signals[name])
            if name == "SIGTERM":
                await asyncio.sleep(0.3)  # the drain waits for calls in flight
                path.hub.process.send_signal(signal.SIGTERM)
        await until(lambda: path.hub.process.poll() is not None)
        path.start_hub()
        await served(path, grpc_client)


async def test_a_server_that_is_killed(started: type[Process], grpc_client: Peer) -> None:
    server = Peer("server")
    path = Path(started, f"h2c://127.0.0.1:{server.ports['plain']}")
    try:
        await served(path, grpc_client)
        async with server.orders() as orders:
            await orders("again")
            async with grpc_client.channel(f"127.0.0.1:{path.http_port}", prefix="/c1") as channel:
                chats = asyncio.ensure_future(channel("chats", streams=STREAMS, messages=ENDLESS, size=3000, ahead=20))
                for _ in range(STREAMS):
                    assert (await orders("event"))["event"] == "chatting"
                server.kill()
                found = await asyncio.wait_for(chats, SOON_S)
                assert (set(found["codes"]) <= BROKEN, found["wrong"]) == (True, 0), found
                assert (await channel("echoes", calls=5, size=9, at_once=5))["codes"] == {"UNAVAILABLE": 5}
    finally:
        server.close()
