"""Which connection a packet belongs to, in either mode: ids, order, probes and bounds."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random

import pytest

from agent.connections import ConnectionLimits, FirstPacketBudget
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, DRAIN, ERROR, WINDOW, EchoPeer, Peer, SlowPeer, StackFactory, WordyPeer, turns, until

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"


async def test_bytes_go_both_ways_in_order(open_stack: StackFactory) -> None:
    async with open_stack(EchoPeer) as stack:
        stack.data(1)
        stack.data(1, FIRST)
        for n in range(200):
            stack.data(1, b"%d;" % n)
        sent = FIRST + b"".join(b"%d;" % n for n in range(200))
        await until(lambda: stack.tunnel.sent(1) == sent)


async def test_an_upload_of_40_packets_arrives_intact(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        packets = [random.Random(n).randbytes(32 * 1024) for n in range(40)]
        for conn_id in range(1, 26):
            stack.data(conn_id)
            stack.data(conn_id, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1310720\r\n\r\n")
        for packet in packets:
            for conn_id in range(1, 26):
                stack.data(conn_id, memoryview(packet))
        whole = hashlib.sha256(b"".join(packets)).digest()
        head = len(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1310720\r\n\r\n")
        await until(lambda: len(stack.peers) == 25)
        await until(lambda: all(len(peer.received) == head + 1310720 for peer in stack.peers.values()))
        for peer in stack.peers.values():
            assert hashlib.sha256(peer.received[head:]).digest() == whole


async def test_data_alone_opens_a_connection_where_no_empty_packet_came_first(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        stack.data(7, FIRST)
        await until(lambda: 7 in stack.peers and stack.peers[7].received == FIRST)


async def test_ids_open_once_in_any_order(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        ids = list(range(1, 41))
        random.Random(3).shuffle(ids)
        for conn_id in ids:
            (await stack.opened(conn_id)).end()
            await stack.ended(conn_id)
        for conn_id in ids:
            stack.data(conn_id, FIRST)
        await turns()
        assert sorted(stack.peers) == sorted(ids)
        assert stack.manager.counters.opened == 40
        assert stack.manager.counters.stray_data == 40


async def test_a_base_hub_gets_one_error_for_data_of_a_closed_id(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        (await stack.opened(1)).end()
        await stack.ended(1)
        assert stack.tunnel.codes(1) == []
        for _ in range(5):
            stack.data(1, b"late")
        assert stack.tunnel.codes(1) == [ERROR]
        assert stack.manager.counters.stray_data == 5


async def test_a_hub_with_close_gets_none(open_stack: StackFactory) -> None:
    async with open_stack(features=frozenset({"close"})) as stack:
        (await stack.opened(1)).end()
        await stack.ended(1)
        stack.data(1, b"late")
        stack.close(1)
        await turns()
        assert stack.tunnel.codes(1) == [CLOSE]
        assert stack.manager.counters.stray_data == 1


async def test_data_behind_the_proxys_word_is_answered_after_the_response(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        peer.write(b"answer")
        peer.end()
        stack.data(1, b"the rest of an upload")
        await until(lambda: stack.tunnel.codes(1) == [ERROR])
        assert [data or code for _, code, data, _ in stack.tunnel.packets] == [b"answer", ERROR]
        stack.data(1, b"more")
        assert stack.tunnel.codes(1) == [ERROR]


@pytest.mark.parametrize("features", [frozenset(), frozenset({"close"})])
async def test_what_follows_an_error_for_an_id_that_never_opened_opens_nothing(
    open_stack: StackFactory, features: frozenset[str]
) -> None:
    """The first packet of the id was too large, for example.

    The next packet is then the middle of a body, and can look like a request.
    """
    async with open_stack(features=features) as stack:
        stack.error(3)
        stack.data(3, FIRST)
        stack.data(3)
        stack.data(4, FIRST)
        await until(lambda: 4 in stack.peers)
        assert 3 not in stack.peers
        assert stack.tunnel.codes(3) == []  # an ERROR never gets a response
        assert stack.manager.counters.stray_data == 2


@pytest.mark.parametrize("conn_id", [0, -1, -5, -(2**63)])
async def test_ids_that_name_no_connection_never_open_one(open_stack: StackFactory, conn_id: int) -> None:
    async with open_stack() as stack:
        for _ in range(3):
            stack.data(conn_id, FIRST)
            stack.error(conn_id)
            stack.data(conn_id)
        await turns()
        assert stack.peers == {}
        assert stack.tunnel.packets == []
        assert stack.manager.counters.invalid_ids == 6


async def test_an_error_closes_quietly_and_is_never_answered(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        peer.stage = Stage.SIZED
        stack.error(1)
        assert stack.manager.open_connections == 0
        await until(lambda: peer.lost)
        stack.error(1)
        stack.error(99)
        await turns()
        assert stack.tunnel.packets == []
        assert stack.tunnel.outbounds[1].aborted
        assert 99 not in stack.peers


@pytest.mark.parametrize("features", [frozenset(), frozenset({"close"})], ids=["base", "close"])
@pytest.mark.parametrize("code", [DRAIN, WINDOW, 77, -1])
async def test_unknown_codes_are_ignored_and_counted(
    open_stack: StackFactory, code: int, features: frozenset[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_stack(features=features) as stack:
        peer = await stack.opened(1)
        stack.manager.packet_received(1, code, b"x", "")
        stack.manager.packet_received(2, code, b"x", "")
        await turns()
        assert stack.manager.counters.unknown_codes == 2
        assert list(stack.peers) == [1]
        assert not peer.received
        assert not peer.lost
    assert "unknown code" in caplog.text


async def test_a_base_hub_has_no_close(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        stack.close(1)
        await turns()
        assert not peer.eof
        assert stack.manager.counters.unknown_codes == 1


async def test_close_from_the_hub_is_a_half_close(open_stack: StackFactory) -> None:
    async with open_stack(features=frozenset({"close"})) as stack:
        peer = await stack.opened(1)
        stack.data(1, FIRST)
        stack.close(1)
        stack.close(1)
        stack.data(1, b"a mistake")
        await until(lambda: peer.eof)
        assert peer.received == FIRST
        peer.write(b"still answered")
        await until(lambda: stack.tunnel.sent(1) == b"still answered")
        peer.end()
        await stack.ended(1)
        assert stack.tunnel.codes(1) == [CLOSE]


async def test_a_half_close_of_the_proxy_lets_the_hub_go_on(open_stack: StackFactory) -> None:
    async with open_stack(features=frozenset({"close"})) as stack:
        peer = await stack.opened(1)
        peer.write(b"all I have")
        peer.transport.write_eof()
        await until(lambda: stack.tunnel.codes(1) == [CLOSE])
        assert stack.tunnel.sent(1) == b"all I have"
        stack.data(1, FIRST)
        await until(lambda: peer.received == FIRST)
        peer.end(Kind.COMPLETE, Stage.UPGRADED)
        await stack.ended(1)
        assert stack.tunnel.codes(1) == [CLOSE]


async def test_a_base_hubs_connection_outlives_the_proxys_half_close(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        peer.transport.write_eof()
        await turns()
        stack.data(1, FIRST)
        await until(lambda: peer.received == FIRST)
        peer.end(Kind.COMPLETE, Stage.UPGRADED)
        await stack.ended(1)
        assert stack.tunnel.packets == []


async def test_first_requests_are_framed_for_base_hubs_only(open_stack: StackFactory) -> None:
    packet = b"POST /c1/ HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
    async with open_stack() as stack:
        peer = await stack.opened(1)
        stack.data(1, packet)
        stack.data(1, packet)
        framed = b"POST /c1/ HTTP/1.1\r\nHost: h\r\nContent-Length: 23\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
        await until(lambda: peer.received == framed + packet)
    async with open_stack(features=frozenset({"close"})) as stack:
        peer = await stack.opened(1)
        stack.data(1, packet)
        await until(lambda: peer.received == packet)


async def test_a_thousand_connections_at_once(open_stack: StackFactory) -> None:
    async with open_stack(EchoPeer) as stack:
        for conn_id in range(1, 1001):
            stack.data(conn_id)
            stack.data(conn_id, FIRST + b"%d" % conn_id)
        expected = {n: joined(n) for n in range(1, 1001)}
        await until(lambda: all(stack.tunnel.sent(n) == expected[n] for n in (1, 500, 1000)))
        await until(lambda: {n: stack.tunnel.sent(n) for n in expected} == expected)
        assert stack.manager.open_connections == 1000
        for peer in list(stack.peers.values()):
            peer.end()
        await until(lambda: stack.manager.open_connections == 0)
        assert list(stack.manager._closed.ranges()) == [(1, 1000)]


def joined(conn_id: int) -> bytes:
    number = b"%d" % conn_id
    return FIRST[:-2] + b"Content-Length: %d\r\n\r\n" % len(number) + number


# ---------------------------------------------------------------- slow targets


async def test_a_slow_target_fails_alone_and_clearly(open_stack: StackFactory) -> None:
    limits = ConnectionLimits(inbound_bytes=1024 * 1024)
    made: list[Peer] = []

    def peer(conn_id: int, outcome: object) -> Peer:
        made.append((SlowPeer if conn_id == 1 else EchoPeer)(conn_id, outcome))
        made[-1].stage = Stage.HEAD
        return made[-1]

    async with open_stack(peer, limits=limits) as stack:
        slow, other = await stack.opened(1), await stack.opened(2)
        stack.data(1, FIRST)
        stack.data(2, FIRST)
        packet = bytes(32 * 1024)
        for n in range(200):
            stack.data(1, packet)
            if n % 10 == 0:
                stack.data(2, b"%d;" % n)
                await asyncio.sleep(0)
        await until(lambda: stack.tunnel.codes(1) == [ERROR])
        (text,) = [text for number, _, _, text in stack.tunnel.packets if number == 1]
        assert "1048576 bytes wait" in text
        assert slow.lost or stack.mode == "uds"
        sent = FIRST + b"".join(b"%d;" % n for n in range(0, 200, 10))
        await until(lambda: stack.tunnel.sent(2) == sent)
        assert not other.lost
        assert stack.manager.counters.failed_inbound == 1
        stack.data(1, packet)
        assert stack.tunnel.codes(1) == [ERROR]


async def test_what_a_slow_target_takes_in_the_end_is_whole(open_stack: StackFactory) -> None:
    async with open_stack(SlowPeer) as stack:
        peer = await stack.opened(1)
        rng = random.Random(5)
        packets = [FIRST] + [rng.randbytes(rng.choice([1, 100, 5000, 32768])) for _ in range(300)]
        for packet in packets:
            stack.data(1, packet)
        assert stack.held_bytes > 0
        peer.transport.resume_reading()
        await until(lambda: len(peer.received) == sum(map(len, packets)))
        assert peer.received == b"".join(packets)
        assert stack.held_bytes == 0


async def test_a_first_packet_larger_than_every_bound_but_its_own_arrives(open_stack: StackFactory) -> None:
    budget = FirstPacketBudget(48 * 1024 * 1024)
    limits = ConnectionLimits(inbound_bytes=1000)
    async with open_stack(SlowPeer, limits=limits, budget=budget) as stack:
        body = random.Random(6).randbytes(20 * 1024 * 1024)
        head = b"POST / HTTP/1.1\r\nHost: h\r\n"
        peer = await stack.opened(1)
        stack.data(1, memoryview(head + b"\r\n" + body))
        assert budget.held_bytes == len(head) + 2 + len(body)
        peer.transport.resume_reading()
        await until(lambda: len(peer.received) >= len(body) + len(head) + 28)
        assert budget.held_bytes == 0
        assert hashlib.sha256(peer.received[-len(body) :]).digest() == hashlib.sha256(body).digest()
        assert peer.received.startswith(head + b"Content-Length: 20971520\r\n\r\n")


async def test_first_packets_past_the_total_fail_their_own_connection(open_stack: StackFactory) -> None:
    budget = FirstPacketBudget(1_000_000)
    async with open_stack(SlowPeer, budget=budget) as stack:
        for conn_id in (1, 2, 3):
            await stack.opened(conn_id)
        stack.data(1, bytes(900_000))
        stack.data(2, bytes(200_000))
        stack.data(3, FIRST)
        await until(lambda: stack.tunnel.codes(2) == [ERROR])
        assert "200000 bytes" in stack.tunnel.packets[-1][3]
        assert budget.held_bytes == 900_000
        stack.error(1)
        assert budget.held_bytes == 0
        stack.peers[3].transport.resume_reading()
        await until(lambda: stack.peers[3].received == FIRST)


# ---------------------------------------------------------------- backpressure towards the hub


async def test_a_full_tunnel_pauses_its_connection_and_loses_nothing(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        peer = await stack.opened(1)
        outbound = stack.tunnel.outbounds[1]
        outbound.pause()
        data = random.Random(7).randbytes(3_000_000)
        peer.write(data)
        await turns()
        assert len(stack.tunnel.sent(1)) < 1_000_000
        peer.end()
        await turns()
        assert stack.manager.open_connections == 1
        outbound.resume()
        await stack.ended(1)
        assert stack.tunnel.sent(1) == data
        outbound.pause()
        outbound.resume()


# ---------------------------------------------------------------- probes


async def test_open_connections_are_probed_with_empty_data(open_stack: StackFactory) -> None:
    async with open_stack(limits=ConnectionLimits(probe_interval_s=0.05)) as stack:
        peer = await stack.opened(1)
        await stack.opened(2)
        peer.write(b"streams")
        await until(lambda: stack.tunnel.codes(1).count(DATA) >= 3 and stack.tunnel.codes(2).count(DATA) >= 3)
        stack.error(1)  # the hub's response: that client has closed
        await until(lambda: peer.lost)
        before = len(stack.tunnel.codes(1))
        probed = stack.tunnel.codes(2).count(DATA)
        await until(lambda: stack.tunnel.codes(2).count(DATA) > probed + 1)
        assert len(stack.tunnel.codes(1)) == before
        assert ERROR not in stack.tunnel.codes(1)


@pytest.mark.parametrize(("text", "reason"), [("", "gone"), ("client gone", "client gone"), ("x" * 300, "x" * 200)])
async def test_what_the_hub_ends_a_connection_for_is_in_the_log(
    open_stack: StackFactory, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    async with open_stack() as stack:
        peer = await stack.opened(1)
        stack.error(1, text)
        await until(lambda: peer.lost)
        [said] = [each for each in caplog.records if each.getMessage() == "connection closed"]
        assert said.reason == f"the hub reported: {reason}"  # type: ignore[attr-defined]


async def test_a_hub_with_close_needs_no_probes(open_stack: StackFactory) -> None:
    limits = ConnectionLimits(probe_interval_s=0.02)
    async with open_stack(features=frozenset({"close"}), limits=limits) as stack:
        await stack.opened(1)
        await asyncio.sleep(0.1)
        assert stack.tunnel.packets == []


# ---------------------------------------------------------------- what can't be opened


async def test_a_proxy_that_refuses_a_connection_fails_only_that_one(
    open_stack: StackFactory, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(conn_id: int, outcome: object) -> Peer:
        if conn_id == 1:
            raise LookupError("no")
        return EchoPeer(conn_id, outcome)

    async with open_stack(picky) as stack:
        stack.data(1)
        stack.data(1, FIRST)
        stack.data(2, FIRST)
        await until(lambda: stack.tunnel.codes(1) == [ERROR] and stack.tunnel.sent(2) == FIRST)
        stack.data(1, FIRST)
        assert stack.tunnel.codes(1) == [ERROR]
    assert caplog.text.count("LookupError: no") == 1


async def test_a_word_for_an_unknown_connection_is_no_error(open_stack: StackFactory) -> None:
    async with open_stack(WordyPeer) as stack:
        stack.manager.outcome(5, Kind.FAILED, Stage.HEAD)
        assert stack.tunnel.packets == []


async def test_an_id_that_is_new_behind_the_hub_s_drain_is_an_error_of_that_id_only(open_stack: StackFactory) -> None:
    async with open_stack(features=frozenset({"close", "goaway"})) as stack:
        peer = await stack.opened(1)
        stack.tunnel.opens_no_more = True
        stack.data(2, FIRST)
        stack.data(2, b"more")
        said = [packet for packet in stack.tunnel.packets if packet[0] == 2]
        assert said == [(2, ERROR, b"", "the hub opened this connection after its DRAIN")]
        assert 2 not in stack.peers
        received = len(peer.received)
        stack.data(1, b"goes on")
        await until(lambda: peer.received[received:] == b"goes on")
        assert stack.manager.counters.invalid_ids == 1


async def test_idle_is_waited_for_and_not_longer_than_asked(open_stack: StackFactory) -> None:
    async with open_stack() as stack:
        await stack.manager.wait_idle(60)
        peer = await stack.opened(1)
        await stack.manager.wait_idle(0.01)
        assert stack.manager.open_connections == 1
        waiting = asyncio.ensure_future(stack.manager.wait_idle(60))
        await asyncio.sleep(0)
        peer.end()
        await waiting
        assert stack.manager.open_connections == 0
