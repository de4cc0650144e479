"""Agents at a hub written in Go, faults included.

No agent's end freezes the hub. Bulk arrives at clients that read late.

The hub lists each connection for LIFE_S. It freezes if a stream ends under a listed one. F1 to F3 in
`base_hub.py` are these faults. Each test has its own hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.connections import ConnectionLimits

from ..limits import scaled
from .whole_cluster import RunningAgent, Whole
from .whole_peers import BaseHubProcess, running_origin, until

LIFE_S = 4.0
MIB = 2**20
CLUSTER = "go"

uvloop_only = pytest.mark.loops("uvloop")  # what is slow has no second loop to prove


@contextlib.asynccontextmanager
async def go_hub(mode: str, *, life_s: float = LIFE_S, **config: Any) -> AsyncIterator[Whole]:
    """A Go hub and no agent yet. At the end no agent is left and the hub still serves."""
    base = BaseHubProcess("--go", f"{life_s}")
    try:
        whole = Whole("base", mode, base, CLUSTER)
        whole.agent_config = {
            "hub_address": f"127.0.0.1:{base.grpc_port}",
            "cluster_name": CLUSTER,
            "insecure": True,
            "use_memory_comm": mode == "memory",
            "drain_grace_s": 2.0,
        } | config
        yield whole
        for agent in whole.agents:
            await stopped(agent)
        await base.until(CLUSTER, lambda seen: seen["live_streams"] == 0)
        assert base.frozen() == {"frozen": False, "stuck": []}
        assert set(base.stats(CLUSTER)["listed_at_end"]) <= {0}
    finally:
        base.close()


async def stopped(agent: RunningAgent) -> None:
    """Drain the agent unless it drains already, and wait. A second cancellation would abort the drain."""
    if not agent.task.done() and not agent.task.cancelling():
        agent.task.cancel()
    done, _ = await asyncio.wait([agent.task], timeout=60)
    assert done, "the agent did not drain within 60 s"
    if not agent.task.cancelled():
        agent.task.result()


class Client:
    """One connection to the hub, kept alive."""

    def __init__(self, whole: Whole, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.whole, self.reader, self.writer = whole, reader, writer

    async def ask(self, path: str = "/hello", body: bytes = b"") -> None:
        method = "POST" if body else "GET"
        head = f"{method} /{self.whole.cluster}{path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, fields and body of a response that has a Content-Length."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split(" ")[1]), fields, await self.reader.readexactly(int(fields["content-length"]))

    async def get(self, path: str = "/hello") -> tuple[int, dict[str, str], bytes]:
        await self.ask(path)
        return await self.response()

    def close(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def clients(whole: Whole, count: int) -> AsyncIterator[list[Client]]:
    made = [
        Client(whole, *await asyncio.open_connection("127.0.0.1", whole.http_port, limit=MIB)) for _ in range(count)
    ]
    try:
        yield made
    finally:
        for client in made:
            client.close()


# ---------------------------------------------------------------- an agent that stops


@pytest.mark.parametrize("count", [1, 5])
async def test_an_idle_kept_alive_connection_is_closed_and_then_the_agent_leaves(mode: str, count: int) -> None:
    async with running_origin() as origin, go_hub(mode) as whole, clients(whole, count) as idle:
        await whole.start_agent(routes=(f"/={origin.url}",))
        for client in idle:
            assert (await client.get())[0] == 200
        await stopped(whole.agent)
        for client in idle:
            said = await client.reader.read()  # no request is outstanding: RFC 9112, section 6.3, and the end
            assert said.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
            assert b"Connection: close" in said
        seen = whole.stats()
        assert (seen["drains"], seen["listed_at_end"]) == (1, [0])
        assert len(seen["errors"]) == count


async def test_a_response_in_flight_arrives_whole_and_its_client_closes_before_the_agent_leaves(mode: str) -> None:
    async with running_origin() as origin, go_hub(mode) as whole, clients(whole, 1) as (client,):
        await whole.start_agent(routes=(f"/={origin.url}",))
        await client.ask("/hold", b"still here")
        await origin.arrived.acquire()
        whole.agent.task.cancel()
        await until(lambda: not whole.agent.agent.ready)
        origin.go_on.release()
        status, fields, body = await client.response()
        assert (status, fields["connection"], body) == (200, "close", b"still here")
        client.close()
        await stopped(whole.agent)
        assert whole.stats()["errors"] == []


@uvloop_only
async def test_a_watch_that_outlasts_the_grace_is_cut_and_then_the_agent_leaves(mode: str) -> None:
    async with running_origin() as origin, go_hub(mode, life_s=30, drain_grace_s=0.3) as whole:
        async with clients(whole, 1) as (client,):
            await whole.start_agent(routes=(f"/={origin.url}",))
            await client.ask("/drip")
            await origin.arrived.acquire()
            await stopped(whole.agent)
            said = await client.reader.read()
            assert b"data: 0" in said
            assert not said.endswith(b"0\r\n\r\n")  # its client's parser fails: it knows
        origin.go_on.release()


@uvloop_only
async def test_a_client_that_reads_slowly_gets_all_of_its_response(mode: str) -> None:
    """The agent has handed everything on: only the hub knows that the client hasn't."""
    body = os.urandom(12 * MIB)
    async with (
        running_origin() as origin,
        go_hub(mode, life_s=30, drain_grace_s=10) as whole,
        clients(whole, 1) as (client,),
    ):
        await whole.start_agent(routes=(f"/={origin.url}",))
        transport: Any = client.writer.transport
        transport.pause_reading()
        await client.ask("/echo", body)
        await whole.base.until(CLUSTER, lambda seen: seen["packets_in"] >= 12)
        whole.agent.task.cancel()
        await until(lambda: not whole.agent.agent.open_connections)
        assert not whole.agent.task.done()
        transport.resume_reading()
        status, _, received = await client.response()
        assert (status, hashlib.sha256(received).digest()) == (200, hashlib.sha256(body).digest())
        await stopped(whole.agent)


@uvloop_only
async def test_a_response_that_the_agent_cuts_is_not_continued_by_an_error(mode: str) -> None:
    """Content-Length: what the hub writes for an ERROR would count as body. The hub closes it in its own time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with go_hub(mode, life_s=3, drain_grace_s=0.2) as whole, clients(whole, 1) as (client,):
        await whole.start_agent(routes=(f"/={url}",))
        await client.ask()
        await client.reader.readuntil(bytes(1000))
        await stopped(whole.agent)
        assert await client.reader.read() == b""
        assert whole.stats()["errors"] == []
    server.close()


@uvloop_only
async def test_a_hub_that_answers_no_probe_is_given_its_time_for_a_client(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ConnectionLimits, "__init__", _shortened(ConnectionLimits.__init__, listed_s=4.0))
    async with running_origin() as origin, go_hub(mode, life_s=2) as whole, clients(whole, 2) as idle:
        await whole.start_agent(routes=(f"/={origin.url}",))
        for client in idle:
            assert (await client.get())[0] == 200
        for command in ("mute", "deaf"):
            whole.base.command(f"{command} {CLUSTER} on")
        await stopped(whole.agent)


def _shortened(init: Any, **changes: Any) -> Any:
    def shortened(self: ConnectionLimits, **options: Any) -> None:
        init(self, **(changes | options))

    return shortened


async def test_a_request_on_an_idle_connection_as_the_agent_leaves_is_answered(mode: str) -> None:
    """By the hub's 502 for the ERROR at worst, and never by silence."""
    async with running_origin() as origin, go_hub(mode) as whole, clients(whole, 3) as busy:
        await whole.start_agent(routes=(f"/={origin.url}",))
        for client in busy:
            assert (await client.get())[0] == 200
        whole.agent.task.cancel()
        for client in busy:
            await client.ask()
        for client in busy:
            status, fields, _ = await client.response()
            assert status in (200, 502, 503)
            assert status == 200 or fields["connection"] == "close"  # a 200 may have come before the drain
            client.close()
        await stopped(whole.agent)


async def test_a_request_that_is_still_coming_keeps_the_agent(mode: str) -> None:
    """The hub lists it from its head on, and reads no ERROR before the last byte of its body."""
    async with running_origin() as origin, go_hub(mode) as whole, clients(whole, 1) as (client,):
        await whole.start_agent(routes=(f"/={origin.url}",))
        client.writer.write(f"POST /{CLUSTER}/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhalf ".encode())
        await whole.base.until(CLUSTER, lambda seen: seen["open_connections"] == 1)
        await until(lambda: whole.agent.agent.open_connections == 1)
        whole.agent.task.cancel()
        await until(lambda: not whole.agent.agent.open_connections)
        assert not whole.agent.task.done()
        client.writer.write(b"there")
        assert (await client.response())[0] == 502
        await stopped(whole.agent)


@uvloop_only
async def test_five_updates_of_five_leave_the_hub_serving(mode: str) -> None:
    """With `Recreate`, as in deploy/agent.yaml, the old agent has ended before the new one starts."""
    async with running_origin() as origin, go_hub(mode) as whole:
        for _ in range(5):
            async with clients(whole, 2) as kept:
                await whole.start_agent(routes=(f"/={origin.url}",))
                for client in kept:
                    assert (await client.get())[0] == 200
                await stopped(whole.agent)
        assert whole.stats()["streams"] == 5


@uvloop_only
async def test_the_command_exits_0_on_sigterm_with_an_idle_connection(mode: str, tmp_path: pathlib.Path) -> None:
    async with running_origin() as origin, go_hub(mode) as whole, clients(whole, 1) as (client,):
        arguments = [
            sys.executable,
            "-m",
            "agent",
            "run",
            "--hub-address",
            f"127.0.0.1:{whole.grpc_port}",
            "--cluster-name",
            CLUSTER,
            "--insecure",
            "--route",
            f"/={origin.url}",
            *(["--use-memory-comm"] if mode == "memory" else []),
        ]
        process = await asyncio.create_subprocess_exec(*arguments, stderr=subprocess.DEVNULL, cwd=tmp_path)
        await whole.base.until(CLUSTER, lambda seen: seen["probes"] >= 1)
        assert (await client.get())[0] == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(scaled(30)):
            assert await process.wait() == 0


# ---------------------------------------------------------------- an agent that stays


async def test_a_new_session_waits_until_the_hub_lists_nothing_of_the_old_one(mode: str) -> None:
    async with running_origin() as origin, go_hub(mode, life_s=30) as whole, clients(whole, 2) as (kept, other):
        agent = await whole.start_agent(routes=(f"/={origin.url}",))
        assert (await kept.get())[0] == 200
        agent.agent.reconnect_now()
        assert (await other.get())[0] == 200  # the old session serves what comes
        assert (await kept.get())[0] == 200
        assert whole.stats()["streams"] == 1
        for client in (kept, other):
            client.close()
        await until(lambda: agent.times_ready == 2)
        assert whole.stats()["listed_at_end"] == [0]
        assert not whole.base.frozen()["frozen"]


async def test_a_drain_while_a_new_session_waits_ends_the_old_one(mode: str) -> None:
    async with running_origin() as origin, go_hub(mode) as whole, clients(whole, 1) as (kept,):
        agent = await whole.start_agent(routes=(f"/={origin.url}",))
        assert (await kept.get())[0] == 200
        agent.agent.reconnect_now()
        assert (await kept.get())[0] == 200
        await stopped(agent)
        assert whole.stats()["streams"] == 1


# ---------------------------------------------------------------- bulk


@contextlib.asynccontextmanager
async def downloads(size: int) -> AsyncIterator[tuple[str, str]]:
    """URL of a target whose every response has `size` bytes, and their SHA-256."""
    piece = os.urandom(65536)
    digest = hashlib.sha256(piece * (size // len(piece))).hexdigest()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                for _ in range(size // len(piece)):
                    writer.write(piece)
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", digest
    finally:
        server.close()


@uvloop_only
@pytest.mark.parametrize(("mib", "count"), [(20, 8), (64, 2)])
async def test_a_download_arrives_whole_at_a_client_that_reads_nothing_for_2_s(mode: str, mib: int, count: int) -> None:
    """A Go hub keeps 100 packets of it, and drops the rest."""
    async with downloads(mib * MIB) as (url, digest), go_hub(mode, life_s=60) as whole:
        await whole.start_agent(routes=(f"/={url}",))
        async with clients(whole, count) as readers:
            for client in readers:
                transport: Any = client.writer.transport
                transport.pause_reading()
                await client.ask()
            await asyncio.sleep(2)  # the promise: nobody reads meanwhile
            for client in readers:
                transport = client.writer.transport
                transport.resume_reading()
            async with asyncio.timeout(scaled(60)):
                for client in readers:
                    status, _, body = await client.response()
                    assert (status, hashlib.sha256(body).hexdigest()) == (200, digest)
        seen = whole.stats()
        assert seen["dropped_packets"] == 0
        assert seen["largest_packet_in"] == MIB


@uvloop_only
async def test_small_responses_of_one_client_are_not_held(mode: str) -> None:
    async with running_origin() as origin, go_hub(mode, life_s=60) as whole, clients(whole, 1) as (client,):
        await whole.start_agent(routes=(f"/={origin.url}",))
        clock = asyncio.get_running_loop().time
        began_s = clock()
        for _ in range(100):
            assert (await client.get())[0] == 200
        assert clock() - began_s < 8  # 100 waits for a packet would be 10 s
