"""The agent's side through what its user asks of it: reconnecting, draining, being cancelled."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.tunnel.backoff import BackOff
from agent.tunnel.client import HubEndpoint, TunnelClient
from agent.tunnel.grpc import GrpcStatus, Status
from agent.tunnel.packet import Packet

DATA, ERROR, DRAIN = 0, 1, 2


def nothing() -> None:
    pass


async def test_reconnect_now_dials_anew_and_lets_the_old_session_finish(linked: Any) -> None:
    async with linked() as (ends, old, old_hub):
        out = old.tunnel.outbound(1, nothing, nothing)
        ends.clients[0].reconnect_now()
        await ends.until(lambda: len(ends.ready) == 2)
        assert ends.delays_s == []
        out.write(b"still answered")
        await old_hub.until(lambda: old_hub.packets)
        assert old.lost == []
        out.finish()
        await old.until(lambda: old.lost)  # no connection holds it open
        assert old.lost == [None]
        assert old_hub.packets == [(1, DATA, b"still answered", ""), (0, DRAIN, b"", "")]
        assert old.tunnel.packets_sent == old_hub.tunnel.packets_received  # the DRAIN is counted, too
        assert ends.clients[0].ready


async def test_reconnect_now_cuts_a_wait_short(tunnels: Any, unused_port: int) -> None:
    async with tunnels() as ends:
        waiting = asyncio.Event()

        async def wait(delay_s: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

        ports = [unused_port, ends.port]
        client = ends.client(wait=wait, endpoint=lambda: HubEndpoint("127.0.0.1", ports.pop(0)))
        ends.start(client)
        async with asyncio.timeout(10):
            await waiting.wait()
        client.reconnect_now()
        await ends.until(lambda: ends.ready)


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


async def test_metadata_is_asked_for_before_each_dial(tunnels: Any) -> None:
    async with tunnels() as ends:
        tokens = ["one", "two"]
        ends.start(ends.client(metadata=lambda: [("authorization", tokens.pop(0))]))
        for turn, token in enumerate((b"one", b"two")):
            await ends.until(lambda turn=turn: len(ends.ready) == turn + 1)
            assert dict(ends.hub_sessions[turn].metadata)[b"authorization"] == token
            if turn == 0:
                ends.hub_sessions[0].tunnel._stream.connection.abort()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that neither takes nor refuses: it listens, and its backlog is full."""
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    fillers = [socket.socket() for _ in range(4)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    yield full.getsockname()[1]
    for one in (full, *fillers):
        one.close()


async def test_a_hub_that_takes_no_connection_in_time(tunnels: Any, caplog: Any, silent_port: int) -> None:
    async with tunnels() as ends:
        ends.start(ends.client(silent_port, dial_timeout_s=0.05))
        await ends.until(lambda: ends.delays_s)
        assert "within 0.05 s" in caplog.text


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70 + ".test"])
async def test_a_name_that_is_none_is_retried(tunnels: Any, caplog: Any, host: str) -> None:
    async with tunnels() as ends:
        ends.start(ends.client(endpoint=HubEndpoint(host, 1)))
        await ends.until(lambda: ends.delays_s)
        assert f"no connection to {host}:1" in caplog.text


@pytest.mark.parametrize("stage", ["dial", "probe", "wait"])
async def test_cancelling_leaves_nothing_at_any_stage(
    raw_hub: Any, tunnels: Any, unused_port: int, silent_port: int, stage: str
) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        task = ends.start(ends.client({"dial": silent_port, "probe": port, "wait": unused_port}[stage]))
        if stage == "probe":
            await accepted()
        elif stage == "wait":
            await ends.until(lambda: ends.delays_s)
        else:
            await ends.until(lambda: ends.agent_sessions)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(len(session.lost) == 1 for session in ends.agent_sessions)


@pytest.mark.parametrize("late_s", [0.3, 1.5])
async def test_an_agent_that_stood_still_reads_before_it_takes_a_probe_for_unanswered(
    raw_hub: Any, tunnels: Any, late_s: float
) -> None:
    """The response is in the socket, and the deadline has passed: uvloop executes timers first."""
    timeout_s = 0.5
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, probe_interval_s=0.05, probe_timeout_s=timeout_s))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        loop = asyncio.get_running_loop()
        here, there = socket.socketpair()
        with here, there:
            for probe in (2, 3, 4):
                while len(hub.packets()) < probe:
                    await hub.frame()
                sent: list[bytes] = []
                hub.writer.write, write = sent.append, hub.writer.write  # type: ignore[method-assign]  # a frame's bytes
                hub.answer_probe()
                hub.writer.write = write  # type: ignore[method-assign]
                stopped = asyncio.Event()

                def stop(answer: bytes, stopped: asyncio.Event) -> None:
                    os.write(hub.writer.get_extra_info("socket").fileno(), answer)
                    time.sleep(timeout_s + late_s)
                    loop.remove_reader(here)
                    here.recv(1)
                    stopped.set()

                loop.add_reader(here, stop, sent[0], stopped)  # so that the loop's timers are what comes next
                there.send(b"x")
                await stopped.wait()
            while len(hub.packets()) < 5:
                await hub.frame()
        assert ends.lost == []


async def test_an_agent_whose_every_turn_is_long_finds_a_dead_hub_too(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, probe_interval_s=0.05, probe_timeout_s=0.2))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)

        def work() -> None:
            time.sleep(0.4)
            if not ends.lost:
                loop.call_later(0.001, work)

        loop = asyncio.get_running_loop()
        work()
        await ends.until(lambda: ends.lost)
        assert "no reply to a probe" in str(ends.lost[0][1])


async def test_drain_is_forced_where_the_hub_does_not_end_the_stream(raw_hub: Any, tunnels: Any, caplog: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        task = ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        draining = asyncio.create_task(ends.clients[0].drain(0.1))
        while Packet(0, DRAIN) not in hub.packets():
            await hub.frame()
        await draining
        await hub.seen(7)
        async with asyncio.timeout(5):
            await task
        assert "did not end the stream within 0.1 s" in caplog.text


async def test_drain_without_a_session_ends_the_search(tunnels: Any, unused_port: int) -> None:
    async with tunnels() as ends:
        task = ends.start(ends.client(unused_port))
        await ends.until(lambda: len(ends.delays_s) == 2)
        await ends.clients[0].drain(5)
        async with asyncio.timeout(5):
            await task
        assert ends.ready == []


async def test_a_session_that_stayed_up_lets_the_backoff_start_over(tunnels: Any) -> None:
    async with tunnels() as ends:
        ends.start(ends.client(stable_after_s=0))
        for turn in range(3):
            await ends.until(lambda turn=turn: len(ends.ready) == turn + 1)
            ends.hub_sessions[-1].tunnel._stream.connection.abort()
            await ends.until(lambda turn=turn: len(ends.lost) == turn + 1)
        await ends.until(lambda: len(ends.delays_s) == 3)
        assert ends.delays_s == [0.5, 0.5, 0.5]


async def test_a_session_that_is_cut_at_once_makes_the_backoff_grow(tunnels: Any) -> None:
    async with tunnels() as ends:
        ends.start(ends.client())
        for turn in range(3):
            await ends.until(lambda turn=turn: len(ends.ready) == turn + 1)
            ends.hub_sessions[-1].tunnel._stream.connection.abort()
            await ends.until(lambda turn=turn: len(ends.lost) == turn + 1)
        await ends.until(lambda: len(ends.delays_s) == 3)
        assert ends.delays_s == [0.5, 0.75, 1.125]


async def test_a_hub_without_alpn_is_refused(tunnels: Any, caplog: Any) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("hub.test").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    client.set_alpn_protocols(["h2"])
    async with tunnels(ssl=server) as ends:
        ends.start(ends.client(endpoint=HubEndpoint("127.0.0.1", ends.port, client, "hub.test")))
        await ends.until(lambda: ends.delays_s)
        assert "did not choose h2 by ALPN" in caplog.text


async def test_tls_both_ways(tunnels: Any) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("hub.test").configure_cert(server)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    authority.issue_cert("c1").configure_cert(client)
    for context in (server, client):
        context.set_alpn_protocols(["h2"])
    async with tunnels(ssl=server) as ends:
        ends.start(ends.client(endpoint=HubEndpoint("127.0.0.1", ends.port, client, "hub.test")))
        await ends.until(lambda: ends.ready)
        agent, hub = ends.agent_sessions[0], ends.hub_sessions[0]
        names = hub.tunnel.get_extra_info("peercert")["subjectAltName"]
        assert names == (("DNS", "c1"),)
        body = bytes(range(256)) * 20_000
        agent.tunnel.outbound(1, nothing, nothing).write(body)
        await hub.until(lambda: len(hub.bytes_of(1)) == len(body))
        assert hub.bytes_of(1) == body


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize(
    "metadata",
    [[("Upper", "x")], [("grpc-status", "0")], [("te", "x")], [("a-bin", "text")], [("a", "ü")], [("a", "b\r\nc: d")]],
)
async def test_metadata_that_can_t_be_sent_is_refused(metadata: Any) -> None:
    with pytest.raises(ValueError, match="metadata"):
        TunnelClient(
            HubEndpoint("h", 1),
            cluster_name="c",
            metadata=metadata,
            open_receiver=lambda tunnel: None,  # type: ignore
        )


async def test_a_hub_that_answered_before_is_dialled_every_10_s_at_least(tunnels: Any, unused_port: int) -> None:
    """A crash loop: the hub comes back for a moment, and falls again."""
    async with tunnels() as ends:
        ends.start(ends.client(backoff=BackOff(random=lambda: 1.0)))
        for turn in range(2):
            await ends.until(lambda turn=turn: len(ends.ready) == turn + 1)
            ends.hub_sessions[-1].tunnel._stream.connection.abort()
        ends.refuse = GrpcStatus(Status.UNAVAILABLE, "not yet")
        await ends.until(lambda: len(ends.delays_s) >= 20)
        assert max(ends.delays_s) == pytest.approx(10.0)


async def test_a_hub_that_goes_away_in_order_again_and_again_is_dialled_every_10_s_at_least(tunnels: Any) -> None:
    async with tunnels() as ends:
        ends.start(ends.client(backoff=BackOff(first_s=20.0)))  # as after some time without the hub
        for turn in range(4):
            await ends.until(lambda turn=turn: len(ends.ready) == turn + 1)
            ends.hub_sessions[-1].tunnel.say_drain()
            await ends.until(lambda turn=turn: len(ends.delays_s) == turn + 1)
        assert max(ends.delays_s) <= 10.0
        assert min(ends.delays_s) > 1.0


async def test_a_hub_that_never_answered_is_dialled_less_and_less(tunnels: Any, unused_port: int) -> None:
    async with tunnels() as ends:
        ends.start(ends.client(unused_port, backoff=BackOff(random=lambda: 1.0)))
        await ends.until(lambda: len(ends.delays_s) >= 20)
        assert max(ends.delays_s) == 60.0


async def test_another_hub_in_the_place_of_one_that_answered_is_a_new_one(tunnels: Any, unused_port: int) -> None:
    async with tunnels() as ends:
        where = [HubEndpoint("127.0.0.1", ends.port)]
        ends.start(ends.client(endpoint=lambda: where[0], backoff=BackOff(random=lambda: 1.0)))
        await ends.until(lambda: ends.ready)
        where[0] = HubEndpoint("127.0.0.1", unused_port)
        ends.hub_sessions[0].tunnel._stream.connection.abort()
        await ends.until(lambda: len(ends.delays_s) >= 20)
        assert max(ends.delays_s) == 60.0


async def test_a_rejection_by_a_hub_that_answered_before_is_retried_slowly(tunnels: Any) -> None:
    async with tunnels() as ends:
        ends.start(ends.client(backoff=BackOff(random=lambda: 0.5)))
        await ends.until(lambda: ends.ready)
        ends.refuse = GrpcStatus(Status.UNAUTHENTICATED, "no")
        ends.hub_sessions[0].tunnel._stream.connection.abort()
        await ends.until(lambda: len(ends.delays_s) >= 2)
        assert ends.delays_s[1] == 60.0
