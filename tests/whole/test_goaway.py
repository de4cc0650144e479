"""`goaway`, end to end: agents and hubs leave, and no request is lost, refused or sent twice for it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp
import pytest

import agent.hub.session
from agent.errors import TargetError, WireError
from agent.http2.connection import Http2Connection
from agent.hub.session import AgentSession
from agent.tunnel.client import HubEndpoint, TunnelClient
from agent.tunnel.packet import ControlCode
from agent.tunnel.server import TunnelServer
from agent.tunnel.session import Tunnel

from ..limits import scaled
from .test_extensions import line
from .whole_cluster import Cluster
from .whole_peers import running_cable, running_origin, until

DATA, ERROR, DRAIN = 0, 1, 2
ours = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)


@ours
async def test_the_next_agent_gets_what_is_new_and_the_last_one_finishes_what_it_has(cluster: Cluster) -> None:
    async with (
        running_origin() as first,
        running_origin() as second,
        cluster.running(first.url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(30)),
    ):
        assert (await client.get(f"{whole.url}/hello")).status == 200  # on a connection that is kept
        held = [asyncio.ensure_future(client.post(f"{whole.url}/hold", data=b"%d" % n)) for n in range(3)]
        for _ in held:
            await first.arrived.acquire()
        leaving = whole.agent
        await whole.start_agent(routes=(f"/={second.url}",))
        leaving.task.cancel()
        await until(lambda: leaving.agent.proxy.leaving)  # the hub has responded
        for _ in range(5):
            assert (await client.get(f"{whole.url}/hello")).status == 200
        assert (len(first.seen), len(second.seen)) == (4, 5)
        assert not leaving.task.done()
        for _ in held:
            first.go_on.release()
        for number, each in enumerate(held):
            answer = await each
            assert (answer.status, await answer.read()) == (200, b"%d" % number)
        await asyncio.wait([leaving.task])
        assert (await client.get(f"{whole.url}/hello")).status == 200


@ours
async def test_what_the_hub_opens_before_it_hears_of_a_drain_is_served(cluster: Cluster) -> None:
    async with (
        running_origin() as origin,
        cluster.hub() as whole,
        running_cable(whole.grpc_port) as cable,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(30)),
    ):
        agent = await whole.start_agent(routes=(f"/={origin.url}",), hub_address=f"127.0.0.1:{cable.port}")
        assert (await client.get(f"{whole.url}/hello")).status == 200
        cable.holding = True  # the agent's packets
        agent.task.cancel()
        await until(lambda: not agent.agent.ready)
        posts = [asyncio.ensure_future(client.post(f"{whole.url}/echo", data=b"%d" % n)) for n in range(8)]
        await until(lambda: len(origin.seen) == 9)  # one on the idle connection, the others on new ones
        cable.let_go()
        for number, each in enumerate(posts):
            answer = await each
            assert (answer.status, await answer.read()) == (200, b"%d" % number)
        await asyncio.wait([agent.task])
        assert len(origin.seen) == 9


async def test_a_hub_that_stops_says_so_and_its_requests_finish(mode: str) -> None:
    async with (
        running_origin() as origin,
        line(origin.url, mode) as found,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(30)),
    ):
        url = f"http://127.0.0.1:{found.http_port}/c1"
        held = asyncio.ensure_future(client.post(f"{url}/hold", data=b"still here"))
        await origin.arrived.acquire()
        session, (tunnel,) = found.session, found.agent.agent.managers
        found.task.cancel()
        await until(lambda: tunnel.opens_no_more)
        assert session.draining
        assert not held.done()
        origin.go_on.release()
        answer = await held
        assert (answer.status, await answer.read()) == (200, b"still here")
        await asyncio.wait([found.task])
        client_of_hub = found.agent.agent.clients[0]
        await until(lambda: not client_of_hub.ready)
        assert client_of_hub.redials["left"] == 1
        assert client_of_hub.redials["ended"] == client_of_hub.redials["connection"] == 0


async def test_a_session_that_is_left_ends_when_its_connections_have(mode: str) -> None:
    async with (
        running_origin() as origin,
        line(origin.url, mode) as found,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(30)),
    ):
        url = f"http://127.0.0.1:{found.http_port}/c1"
        held = asyncio.ensure_future(client.post(f"{url}/hold", data=b"x"))
        await origin.arrived.acquire()
        before = found.session
        found.agent.agent.reconnect_now()
        await until(lambda: before.draining)
        assert found.session is not before
        assert (await client.get(f"{url}/hello")).status == 200
        assert before.open_connections == 1
        origin.go_on.release()
        assert (await held).status == 200
        await until(lambda: len(found.hub._sessions["c1"]) == 1)
        assert before.tunnel.lost


# ---------------------------------------------------------------- the hub's session by itself


class Seen:
    """An agent's receiver that only records what came, and whether the hub had sent DRAIN by then."""

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.packets: list[tuple[int, int, bool]] = []

    def packet_received(self, conn_id: int, code: int, data: Any, error_message: str) -> None:
        self.packets.append((conn_id, code, self.tunnel.opens_no_more))

    def tunnel_lost(self, error: Exception | None) -> None: ...


class Pair:
    """A tunnel with AgentSession at one end and Seen at the other, which ends no session by itself."""

    def __init__(self, **options: Any) -> None:
        self.sessions: list[AgentSession] = []
        self.seen: list[Seen] = []
        self.ready = asyncio.Event()
        self._options = options
        self._server = TunnelServer(open_tunnel=self._open)

    def _open(self, tunnel: Tunnel, _metadata: Any) -> AgentSession:
        self.sessions.append(AgentSession(tunnel, "c1", "", lambda session, error: None, **self._options))
        return self.sessions[-1]

    def _receive(self, tunnel: Tunnel) -> Seen:
        self.seen.append(Seen(tunnel))
        return self.seen[-1]

    async def __aenter__(self) -> Pair:
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._server.protocol, "127.0.0.1", 0)
        port = self._listening.sockets[0].getsockname()[1]
        self.client = TunnelClient(
            HubEndpoint("127.0.0.1", port),
            cluster_name="c1",
            open_receiver=self._receive,
            on_ready=lambda _: self.ready.set(),
            is_idle=lambda _: False,
        )
        self.task = asyncio.ensure_future(self.client.run())
        async with asyncio.timeout(scaled(10)):
            await self.ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self._listening.close()
        await self._server.close()
        await self._listening.wait_closed()


async def test_every_id_is_opened_before_the_hub_s_drain() -> None:
    async with Pair() as pair, asyncio.timeout(scaled(20)):
        session, seen = pair.sessions[0], pair.seen[0]
        used = await session.connect(asyncio.Protocol())
        used.write(b"in the pipe")
        silent = await session.connect(asyncio.Protocol())
        connecting = asyncio.ensure_future(session.connect(asyncio.Protocol()))
        await asyncio.sleep(0)  # it has an id, and no transport yet
        session.drain()
        late = await connecting
        late.write(b"first bytes, behind the DRAIN")
        await until(lambda: seen.tunnel.opens_no_more)
        await until(lambda: (3, DATA, True) in seen.packets)
        opened = {conn_id for conn_id, code, drained in seen.packets if code == DATA and not drained}
        assert opened == {1, 2, 3}
        with pytest.raises(TargetError) as refused:
            await session.connect(asyncio.Protocol())
        assert refused.value.status == 503
        for each in (used, silent, late):
            each.abort()


async def test_a_draining_session_hands_connections_to_its_successor() -> None:
    others: list[AgentSession] = []
    async with Pair(successor=lambda _: others[0]) as old, Pair() as new, asyncio.timeout(scaled(20)):
        others += new.sessions
        old.sessions[0].drain()
        transport = await old.sessions[0].connect(asyncio.Protocol())
        transport.write(b"x")
        await until(lambda: (1, DATA, False) in new.seen[0].packets)
        assert not old.seen[0].packets
        transport.abort()


async def test_a_connection_that_is_opened_while_its_session_is_lost_is_its_successor_s() -> None:
    others: list[AgentSession] = []
    async with (
        Pair(successor=lambda _: next(iter(others), None)) as old,
        Pair(successor=lambda _: None) as new,
        asyncio.timeout(scaled(20)),
    ):
        session = old.sessions[0]
        connecting = [asyncio.ensure_future(session.connect(asyncio.Protocol())) for _ in range(2)]
        await asyncio.sleep(0)  # they have begun, and their `connection_made` is due in the loop's next turn
        session.tunnel._side.end_call()
        others += new.sessions
        for each in connecting:
            (await each).write(b"x")
        await until(lambda: {(1, DATA, False), (2, DATA, False)} <= set(new.seen[0].packets))
        assert not old.seen[0].packets
        assert not session.open_connections
        for each in connecting:
            each.result().abort()


async def test_an_agent_that_ends_what_has_not_begun_ends_it() -> None:
    lost = asyncio.Event()

    class Waits(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    async with Pair() as pair, asyncio.timeout(scaled(20)):
        session = pair.sessions[0]
        connecting = asyncio.ensure_future(session.connect(Waits()))
        await asyncio.sleep(0)
        session.packet_received(1, ERROR, b"", "")
        (await connecting).write(b"x")
        await lost.wait()
        await until(lambda: not session.open_connections)


async def test_a_stream_that_its_agent_leaves_open_is_ended_by_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.hub.session, "LEFT_OPEN_TIMEOUT_S", 0.05)
    async with Pair() as pair, asyncio.timeout(scaled(20)):
        session, tunnel = pair.sessions[0], pair.seen[0].tunnel
        held = await session.connect(asyncio.Protocol())
        tunnel.say_drain()
        await until(lambda: session.draining)
        await until(lambda: tunnel.opens_no_more)
        await asyncio.sleep(0.1)
        assert not tunnel.lost  # a connection is open
        held.abort()
        await until(lambda: tunnel.lost)


async def test_what_an_agent_says_of_a_connection_reaches_the_proxy_and_the_log(caplog: Any) -> None:
    caplog.set_level("INFO")
    async with Pair() as pair, asyncio.timeout(scaled(20)):
        session, seen = pair.sessions[0], pair.seen[0]
        used = await session.connect(asyncio.Protocol())
        used.write(b"hello")
        await until(lambda: seen.packets)
        hostile = "no descriptors\r\nlevel=ERROR \x1b[31m" + "x" * 1000
        seen.tunnel.send(seen.packets[0][0], ControlCode.ERROR, error_message=hostile)
        await until(lambda: used.get_extra_info("failure") is not None)
        failure = used.get_extra_info("failure")
        assert (failure.status, failure.fault) == (502, "agent")
        assert failure.reason.startswith("the agent reported: no descriptors  level=ERROR  [31mxxx")
        assert failure.reason.isprintable()
        assert len(failure.reason) < 250
        record = next(record for record in caplog.records if record.message == "agent ended a connection")
        assert record.__dict__["reason"] == failure.reason.removeprefix("the agent reported: ")
        assert record.__dict__["fault"] == "agent"


@pytest.mark.parametrize(
    ("error", "fault", "text"),
    [
        (ConnectionResetError(), "agent", "ConnectionResetError"),
        (ConnectionResetError(104, "Connection reset by peer"), "agent", "Connection reset by peer"),
        (WireError("x\r\n\x1b[31m" + "y" * 1_000), "agent", "x   [31m" + "y" * 192),
        (KeyError("/etc/a secret"), "hub", "the hub failed (KeyError)"),
    ],
)
async def test_users_are_told_why_a_session_was_lost_and_whose_fault_it_is(
    error: Exception, fault: str, text: str
) -> None:
    async with Pair() as pair, asyncio.timeout(scaled(20)):
        session, seen = pair.sessions[0], pair.seen[0]
        used = await session.connect(asyncio.Protocol())
        used.write(b"hello")
        await until(lambda: seen.packets)
        assert session.tunnel._stream is not None
        session.tunnel._stream.connection.fail(error)
        failure = used.get_extra_info("failure")
        assert (failure.fault, failure.reason) == (fault, f"the agent of this cluster was lost: {text}")
        with pytest.raises(TargetError) as raised:
            await session.connect(asyncio.Protocol())
        assert (raised.value.fault, raised.value.reason) == (fault, failure.reason)


@pytest.mark.parametrize("catches_up", [True, False])
async def test_a_client_is_not_too_slow_because_the_hub_stood_still(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, catches_up: bool
) -> None:
    monkeypatch.setattr(agent.hub.session, "BEHIND_TIMEOUT_S", 0.2)
    async with Pair() as pair, asyncio.timeout(scaled(20)):
        session, loop = pair.sessions[0], asyncio.get_running_loop()
        used = await session.connect(asyncio.Protocol())
        (connection,) = session._connections.values()
        session._fell_behind(connection)
        loop.call_soon(time.sleep, 0.5)
        looked = asyncio.Event()
        loop.call_at(loop.time() + 0.201, looked.set)  # behind the session's own timer
        await looked.wait()
        assert not used.is_closing()
        if catches_up:
            session.connection_caught_up(connection)
            assert not session._behind
        else:
            await until(used.is_closing)
            (line,) = [each for each in caplog.records if each.message.startswith("client too slow")]
            assert vars(line)["fault"] == "client"


async def test_a_connection_of_a_lost_agent_names_the_agent() -> None:
    async with Pair() as pair, asyncio.timeout(scaled(20)):
        session, seen = pair.sessions[0], pair.seen[0]
        used = await session.connect(asyncio.Protocol())
        used.write(b"hello")
        await until(lambda: seen.packets)
        assert seen.tunnel._stream is not None
        connection = seen.tunnel._stream.connection
        assert isinstance(connection, Http2Connection)
        connection.abort()
        await until(lambda: used.get_extra_info("failure") is not None)
        reason = used.get_extra_info("failure").reason
        assert reason.startswith("the agent of this cluster was lost: ")
        with pytest.raises(TargetError, match=reason) as caught:
            await session.connect(asyncio.Protocol())
        assert (caught.value.status, caught.value.fault) == (502, "agent")
