"""Our agent's side and our hub's side, over a real socket."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

import pytest

from agent.errors import HubError
from agent.tunnel.features import FEATURES
from agent.tunnel.server import GrpcStatus

DATA, ERROR, DRAIN = 0, 1, 2


def nothing() -> None:
    pass


async def test_a_session_is_ready_once_its_probe_is_answered(linked: Any) -> None:
    async with linked(metadata=[("authorization", "Bearer x")]) as (ends, agent, hub):
        assert ends.clients[0].ready
        assert dict(hub.metadata)[b"cluster-name"] == b"c1"
        assert dict(hub.metadata)[b"authorization"] == b"Bearer x"
        assert agent.tunnel.role == "agent"
        assert hub.tunnel.role == "hub"
        assert hub.tunnel.peername[0] == "127.0.0.1"
        assert agent.tunnel.features == hub.tunnel.features == FEATURES
        assert agent.packets == []  # only the client receives the response to the probe


async def test_packets_arrive_in_order_both_ways(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        for conn_id in (1, 2, 3):
            out = hub.tunnel.outbound(conn_id, nothing, nothing)
            back = agent.tunnel.outbound(conn_id, nothing, nothing)
            for number in range(500):
                out.write(b"%d:%d " % (conn_id, number))
                back.write(b"%d-%d " % (conn_id, number))
            out.finish()
            back.finish(ERROR, "that was all: ü")
        await agent.until(lambda: sum(len(packet[2]) for packet in agent.packets) >= 3 * 500 * 4 + 1)
        await hub.until(lambda: sum(packet[1] == ERROR for packet in hub.packets) == 3)
        for conn_id in (1, 2, 3):
            expected = b"".join(b"%d:%d " % (conn_id, number) for number in range(500))
            await agent.until(lambda conn_id=conn_id, expected=expected: agent.bytes_of(conn_id) == expected)
            assert hub.bytes_of(conn_id) == b"".join(b"%d-%d " % (conn_id, number) for number in range(500))
            assert [p for p in hub.packets if p[0] == conn_id][-1] == (conn_id, ERROR, b"", "that was all: ü")


async def test_small_writes_of_one_turn_share_a_packet(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        out = hub.tunnel.outbound(7, nothing, nothing)
        out.write(b"head\r\n")
        out.write(memoryview(b"xbodyx")[1:5])
        await agent.until(lambda: agent.packets)
        assert agent.packets == [(7, DATA, b"head\r\nbody", "")]


async def test_an_upload_of_40_packets_arrives_intact_200_times(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        for conn_id in range(1, 201):
            body = os.urandom(40 * 997)
            out = hub.tunnel.outbound(conn_id, nothing, nothing)
            for number in range(40):
                out.write(body[number * 997 : (number + 1) * 997])
                if number % 7 == 0:
                    await asyncio.sleep(0)
            out.finish()
            await agent.until(lambda conn_id=conn_id, body=body: agent.bytes_of(conn_id) == body)
            agent.packets.clear()


async def test_large_writes_are_cut_to_packets_and_push_back(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        body = os.urandom(24 * 2**20)
        told: list[str] = []
        resumed = asyncio.Event()

        def resume() -> None:
            told.append("resume")
            resumed.set()

        out = agent.tunnel.outbound(1, lambda: told.append("pause"), resume)
        for start in range(0, len(body), 64 * 1024):
            out.write(body[start : start + 64 * 1024])
            if told and told[-1] == "pause":
                resumed.clear()
                async with asyncio.timeout(20):
                    await resumed.wait()
            assert out.queued_bytes <= 256 * 1024 + 64 * 1024
        out.finish()
        await hub.until(lambda: sum(len(packet[2]) for packet in hub.packets) == len(body))
        assert hashlib.sha256(hub.bytes_of(1)).digest() == hashlib.sha256(body).digest()
        assert max(len(packet[2]) for packet in hub.packets) <= 2**20
        assert told[:2] == ["pause", "resume"]
        assert agent.tunnel.bytes_buffered == 0


async def test_a_small_answer_overtakes_bulk(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        bulk = agent.tunnel.outbound(1, nothing, nothing)
        bulk.write(bytes(32 * 2**20))
        await hub.until(lambda: hub.packets)
        small = agent.tunnel.outbound(2, nothing, nothing)
        small.write(b"small")
        agent.tunnel.send(3, ERROR, b"", "control")
        await hub.until(lambda: any(packet[0] == 2 for packet in hub.packets))
        index = next(i for i, packet in enumerate(hub.packets) if packet[0] == 2)
        assert sum(len(packet[2]) for packet in hub.packets[:index]) < 16 * 2**20
        assert any(packet[:2] == (3, ERROR) for packet in hub.packets[:index])


async def test_bulk_connections_share_the_link_evenly(linked: Any) -> None:
    async with linked(features=frozenset()) as (_, agent, hub):
        for conn_id in (1, 2, 3):
            agent.tunnel.outbound(conn_id, nothing, nothing).write(bytes(8 * 2**20))
        await hub.until(lambda: sum(len(packet[2]) for packet in hub.packets) == 3 * 8 * 2**20)
        sent = {1: 0, 2: 0, 3: 0}
        for conn_id, _, data, _ in hub.packets:
            sent[conn_id] += len(data)
            if max(sent.values()) < 7 * 2**20:
                assert max(sent.values()) - min(sent.values()) <= 2**20
            assert len(data) == 2**20  # a base hub counts packets


@pytest.mark.parametrize("features", [frozenset(), FEATURES], ids=["base", "ours"])
async def test_drain_ends_the_stream_in_order(linked: Any, features: frozenset[str]) -> None:
    async with linked(features=features) as (ends, agent, hub):
        agent.tunnel.outbound(5, nothing, nothing).write(b"last words")
        await ends.clients[0].drain(5)
        async with asyncio.timeout(5):
            await ends.tasks[0]
        said, drained = (5, DATA, b"last words", ""), (0, DRAIN, b"", "")
        assert hub.packets == ([drained, said] if features else [said, drained])
        assert hub.lost == [None]
        assert agent.lost == [None]
        assert ends.lost == [(agent.tunnel, None)]
        assert not ends.clients[0].ready


async def test_a_call_without_cluster_name_is_refused_as_a_base_hub_does(tunnels: Any, caplog: Any) -> None:
    async with tunnels() as ends:
        ends.start(ends.client(cluster_name=""))
        await ends.until(lambda: len(ends.delays_s) == 3)
        assert ends.delays_s == [0.5, 0.75, 1.125]
        assert ends.hub_sessions == []
        assert "UNKNOWN: the metadata cluster-name is missing" in caplog.text
        assert all(isinstance(session.lost[0], HubError) for session in ends.agent_sessions[:3])


async def test_a_rejected_identity_is_said_loudly_and_retried_slowly(tunnels: Any, caplog: Any) -> None:
    async with tunnels() as ends:
        ends.refuse = GrpcStatus(16, "who are you? 100 % unknown: ü\n")
        ends.start(ends.client())
        await ends.until(lambda: ends.delays_s)
        assert ends.delays_s[0] == 60.0
        record = next(record for record in caplog.records if "UNAUTHENTICATED" in record.message)
        assert record.levelname == "ERROR"
        assert "who are you? 100 % unknown: ü\n" in record.message


async def test_a_lost_hub_is_dialled_again_with_growing_delays(tunnels: Any) -> None:
    async with tunnels() as ends:
        closed_port = ends.port
    async with tunnels() as ends:
        ends.start(ends.client(port=closed_port))
        await ends.until(lambda: len(ends.delays_s) == 4)
        assert ends.delays_s == [0.5, 0.75, 1.125, 1.6875]


async def test_sessions_never_mix(tunnels: Any) -> None:
    async with tunnels() as ends:
        ends.start(ends.client())
        for turn in range(20):
            await ends.until(lambda turn=turn: len(ends.ready) == turn + 1)
            agent, hub = ends.agent_sessions[-1], ends.hub_sessions[-1]
            out = hub.tunnel.outbound(1, nothing, nothing)
            out.write(b"%d" % turn * 100_000)
            await agent.until(lambda agent=agent: agent.packets)
            hub.tunnel._stream.connection.abort()
            await ends.until(lambda turn=turn: len(ends.lost) == turn + 1)
            assert isinstance(agent.lost[0], HubError)
            out.write(b"late")  # dropped silently
            agent.tunnel.send(1, ERROR, b"", "late")
        for turn, session in enumerate(ends.agent_sessions[:20]):
            assert set(session.bytes_of(1)) == set(b"%d" % turn)
            assert len(session.lost) == 1


async def test_a_closing_server_tells_its_agents(linked: Any) -> None:
    async with linked() as (ends, agent, hub):
        await ends.server.close()
        await ends.until(lambda: ends.lost)
        assert "UNAVAILABLE: the hub is shutting down" in str(agent.lost[0])
        assert hub.lost == [None]


async def test_a_packet_may_be_a_quarter_of_a_gibibyte(linked: Any) -> None:
    async with linked(features=frozenset()) as (_, agent, hub):
        from agent.tunnel.packet import data_field, message_head

        stream = hub.tunnel._stream
        body = os.urandom(2**20) * 256
        stream.writer.append(message_head(data_field(9), len(body)))
        stream.writer.append(body)
        stream.wake()
        await agent.until(lambda: agent.packets)
        assert len(agent.packets[0][2]) == len(body)
        assert agent.packets[0][2] == body


@pytest.mark.parametrize("limit", [65536])
async def test_a_message_over_the_limit_ends_only_its_connection(linked: Any, limit: int, caplog: Any) -> None:
    async with linked(message_bytes=limit, features=frozenset()) as (_, agent, hub):
        hub.tunnel.outbound(4, nothing, nothing).write(bytes(200_000))
        hub.tunnel.outbound(5, nothing, nothing).write(b"fine")
        await agent.until(lambda: len(agent.packets) == 2)
        assert [packet[:2] for packet in agent.packets] == [(4, ERROR), (5, DATA)]
        assert "the limit is 65536" in agent.packets[0][3]
        await hub.until(lambda: hub.packets)
        assert hub.packets[0][:2] == (4, ERROR)
        assert sum("the limit is 65536" in getattr(record, "reason", "") for record in caplog.records) == 1
