"""Which connection a packet belongs to, in either mode: ids, order, probes and bounds."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random

import pytest

from agent.connections import ConnectionLimits, FirstPacketBudget
from agent.outcome import Kind, Stage

from .conftest import CLOSE, DATA, DRAIN, ERROR, WINDOW, EchoPeer, OpenHouse, Peer, SlowPeer, WordyPeer, turns, until

FIRST = b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n"


async def test_bytes_go_both_ways_in_order(open_house: OpenHouse) -> None:
    async with open_house(EchoPeer) as house:
        house.data(1)
        house.data(1, FIRST)
        for n in range(200):
            house.data(1, b"%d;" % n)
        sent = FIRST + b"".join(b"%d;" % n for n in range(200))
        await until(lambda: house.tunnel.sent(1) == sent)


async def test_an_upload_of_40_packets_arrives_intact(open_house: OpenHouse) -> None:
    async with open_house() as house:
        packets = [random.Random(n).randbytes(32 * 1024) for n in range(40)]
        for conn_id in range(1, 26):
            house.data(conn_id)
            house.data(conn_id, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1310720\r\n\r\n")
        for packet in packets:
            for conn_id in range(1, 26):
                house.data(conn_id, memoryview(packet))
        whole = hashlib.sha256(b"".join(packets)).digest()
        head = len(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1310720\r\n\r\n")
        await until(lambda: len(house.peers) == 25)
        await until(lambda: all(len(peer.received) == head + 1310720 for peer in house.peers.values()))
        for peer in house.peers.values():
            assert hashlib.sha256(peer.received[head:]).digest() == whole


async def test_data_alone_opens_a_connection_where_no_empty_packet_came_first(open_house: OpenHouse) -> None:
    async with open_house() as house:
        house.data(7, FIRST)
        await until(lambda: 7 in house.peers and house.peers[7].received == FIRST)


async def test_ids_open_once_in_any_order(open_house: OpenHouse) -> None:
    async with open_house() as house:
        ids = list(range(1, 41))
        random.Random(3).shuffle(ids)
        for conn_id in ids:
            (await house.opened(conn_id)).end()
            await house.ended(conn_id)
        for conn_id in ids:
            house.data(conn_id, FIRST)
        await turns()
        assert sorted(house.peers) == sorted(ids)
        assert house.manager.counters.opened == 40
        assert house.manager.counters.stray_data == 40


async def test_a_base_hub_gets_one_error_for_data_of_a_closed_id(open_house: OpenHouse) -> None:
    async with open_house() as house:
        (await house.opened(1)).end()
        await house.ended(1)
        assert house.tunnel.codes(1) == []
        for _ in range(5):
            house.data(1, b"late")
        assert house.tunnel.codes(1) == [ERROR]
        assert house.manager.counters.stray_data == 5


async def test_a_hub_with_close_gets_none(open_house: OpenHouse) -> None:
    async with open_house(features=frozenset({"close"})) as house:
        (await house.opened(1)).end()
        await house.ended(1)
        house.data(1, b"late")
        house.close(1)
        await turns()
        assert house.tunnel.codes(1) == [CLOSE]
        assert house.manager.counters.stray_data == 1


async def test_data_behind_the_proxys_word_is_answered_after_the_response(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        peer.write(b"answer")
        peer.end()
        house.data(1, b"the rest of an upload")
        await until(lambda: house.tunnel.codes(1) == [ERROR])
        assert [data or code for _, code, data, _ in house.tunnel.packets] == [b"answer", ERROR]
        house.data(1, b"more")
        assert house.tunnel.codes(1) == [ERROR]


@pytest.mark.parametrize("features", [frozenset(), frozenset({"close"})])
async def test_what_follows_an_error_for_an_id_that_never_opened_opens_nothing(
    open_house: OpenHouse, features: frozenset[str]
) -> None:
    """The first packet of the id was too large, for example.

    The next packet is then the middle of a body, and can look like a request.
    """
    async with open_house(features=features) as house:
        house.error(3)
        house.data(3, FIRST)
        house.data(3)
        house.data(4, FIRST)
        await until(lambda: 4 in house.peers)
        assert 3 not in house.peers
        assert house.tunnel.codes(3) == []  # an ERROR never gets a response
        assert house.manager.counters.stray_data == 2


@pytest.mark.parametrize("conn_id", [0, -1, -5, -(2**63)])
async def test_ids_that_name_no_connection_never_open_one(open_house: OpenHouse, conn_id: int) -> None:
    async with open_house() as house:
        for _ in range(3):
            house.data(conn_id, FIRST)
            house.error(conn_id)
            house.data(conn_id)
        await turns()
        assert house.peers == {}
        assert house.tunnel.packets == []
        assert house.manager.counters.invalid_ids == 6


async def test_an_error_closes_quietly_and_is_never_answered(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        peer.stage = Stage.SIZED
        house.error(1)
        assert house.manager.open_connections == 0
        await until(lambda: peer.lost)
        house.error(1)
        house.error(99)
        await turns()
        assert house.tunnel.packets == []
        assert house.tunnel.outbounds[1].aborted
        assert 99 not in house.peers


@pytest.mark.parametrize("features", [frozenset(), frozenset({"close"})], ids=["base", "close"])
@pytest.mark.parametrize("code", [DRAIN, WINDOW, 77, -1])
async def test_unknown_codes_are_ignored_and_counted(
    open_house: OpenHouse, code: int, features: frozenset[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_house(features=features) as house:
        peer = await house.opened(1)
        house.manager.packet_received(1, code, b"x", "")
        house.manager.packet_received(2, code, b"x", "")
        await turns()
        assert house.manager.counters.unknown_codes == 2
        assert list(house.peers) == [1]
        assert not peer.received
        assert not peer.lost
    assert "unknown code" in caplog.text


async def test_a_base_hub_has_no_close(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        house.close(1)
        await turns()
        assert not peer.eof
        assert house.manager.counters.unknown_codes == 1


async def test_close_from_the_hub_is_a_half_close(open_house: OpenHouse) -> None:
    async with open_house(features=frozenset({"close"})) as house:
        peer = await house.opened(1)
        house.data(1, FIRST)
        house.close(1)
        house.close(1)
        house.data(1, b"a mistake")
        await until(lambda: peer.eof)
        assert peer.received == FIRST
        peer.write(b"still answered")
        await until(lambda: house.tunnel.sent(1) == b"still answered")
        peer.end()
        await house.ended(1)
        assert house.tunnel.codes(1) == [CLOSE]


async def test_a_half_close_of_the_proxy_lets_the_hub_go_on(open_house: OpenHouse) -> None:
    async with open_house(features=frozenset({"close"})) as house:
        peer = await house.opened(1)
        peer.write(b"all I have")
        peer.transport.write_eof()
        await until(lambda: house.tunnel.codes(1) == [CLOSE])
        assert house.tunnel.sent(1) == b"all I have"
        house.data(1, FIRST)
        await until(lambda: peer.received == FIRST)
        peer.end(Kind.COMPLETE, Stage.UPGRADED)
        await house.ended(1)
        assert house.tunnel.codes(1) == [CLOSE]


async def test_a_base_hubs_connection_outlives_the_proxys_half_close(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        peer.transport.write_eof()
        await turns()
        house.data(1, FIRST)
        await until(lambda: peer.received == FIRST)
        peer.end(Kind.COMPLETE, Stage.UPGRADED)
        await house.ended(1)
        assert house.tunnel.packets == []


async def test_first_requests_are_framed_for_base_hubs_only(open_house: OpenHouse) -> None:
    packet = b"POST /c1/ HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
    async with open_house() as house:
        peer = await house.opened(1)
        house.data(1, packet)
        house.data(1, packet)
        framed = b"POST /c1/ HTTP/1.1\r\nHost: h\r\nContent-Length: 23\r\n\r\nGET /admin HTTP/1.1\r\n\r\n"
        await until(lambda: peer.received == framed + packet)
    async with open_house(features=frozenset({"close"})) as house:
        peer = await house.opened(1)
        house.data(1, packet)
        await until(lambda: peer.received == packet)


async def test_a_thousand_connections_at_once(open_house: OpenHouse) -> None:
    async with open_house(EchoPeer) as house:
        for conn_id in range(1, 1001):
            house.data(conn_id)
            house.data(conn_id, FIRST + b"%d" % conn_id)
        expected = {n: joined(n) for n in range(1, 1001)}
        await until(lambda: all(house.tunnel.sent(n) == expected[n] for n in (1, 500, 1000)))
        await until(lambda: {n: house.tunnel.sent(n) for n in expected} == expected)
        assert house.manager.open_connections == 1000
        for peer in list(house.peers.values()):
            peer.end()
        await until(lambda: house.manager.open_connections == 0)
        assert list(house.manager._closed.ranges()) == [(1, 1000)]


def joined(conn_id: int) -> bytes:
    number = b"%d" % conn_id
    return FIRST[:-2] + b"Content-Length: %d\r\n\r\n" % len(number) + number


# ---------------------------------------------------------------- slow targets


async def test_a_slow_target_fails_alone_and_clearly(open_house: OpenHouse) -> None:
    limits = ConnectionLimits(inbound_bytes=1024 * 1024)
    made: list[Peer] = []

    def peer(conn_id: int, outcome: object) -> Peer:
        made.append((SlowPeer if conn_id == 1 else EchoPeer)(conn_id, outcome))
        made[-1].stage = Stage.HEAD
        return made[-1]

    async with open_house(peer, limits=limits) as house:
        slow, other = await house.opened(1), await house.opened(2)
        house.data(1, FIRST)
        house.data(2, FIRST)
        packet = bytes(32 * 1024)
        for n in range(200):
            house.data(1, packet)
            if n % 10 == 0:
                house.data(2, b"%d;" % n)
                await asyncio.sleep(0)
        await until(lambda: house.tunnel.codes(1) == [ERROR])
        (text,) = [text for number, _, _, text in house.tunnel.packets if number == 1]
        assert "1048576 bytes wait" in text
        assert slow.lost or house.mode == "uds"
        sent = FIRST + b"".join(b"%d;" % n for n in range(0, 200, 10))
        await until(lambda: house.tunnel.sent(2) == sent)
        assert not other.lost
        assert house.manager.counters.failed_inbound == 1
        house.data(1, packet)
        assert house.tunnel.codes(1) == [ERROR]


async def test_what_a_slow_target_takes_in_the_end_is_whole(open_house: OpenHouse) -> None:
    async with open_house(SlowPeer) as house:
        peer = await house.opened(1)
        rng = random.Random(5)
        packets = [FIRST] + [rng.randbytes(rng.choice([1, 100, 5000, 32768])) for _ in range(300)]
        for packet in packets:
            house.data(1, packet)
        assert house.held_bytes > 0
        peer.transport.resume_reading()
        await until(lambda: len(peer.received) == sum(map(len, packets)))
        assert peer.received == b"".join(packets)
        assert house.held_bytes == 0


async def test_a_first_packet_larger_than_every_bound_but_its_own_arrives(open_house: OpenHouse) -> None:
    budget = FirstPacketBudget(48 * 1024 * 1024)
    limits = ConnectionLimits(inbound_bytes=1000)
    async with open_house(SlowPeer, limits=limits, budget=budget) as house:
        body = random.Random(6).randbytes(20 * 1024 * 1024)
        head = b"POST / HTTP/1.1\r\nHost: h\r\n"
        peer = await house.opened(1)
        house.data(1, memoryview(head + b"\r\n" + body))
        assert budget.held_bytes == len(head) + 2 + len(body)
        peer.transport.resume_reading()
        await until(lambda: len(peer.received) >= len(body) + len(head) + 28)
        assert budget.held_bytes == 0
        assert hashlib.sha256(peer.received[-len(body) :]).digest() == hashlib.sha256(body).digest()
        assert peer.received.startswith(head + b"Content-Length: 20971520\r\n\r\n")


async def test_first_packets_past_the_total_fail_their_own_connection(open_house: OpenHouse) -> None:
    budget = FirstPacketBudget(1_000_000)
    async with open_house(SlowPeer, budget=budget) as house:
        for conn_id in (1, 2, 3):
            await house.opened(conn_id)
        house.data(1, bytes(900_000))
        house.data(2, bytes(200_000))
        house.data(3, FIRST)
        await until(lambda: house.tunnel.codes(2) == [ERROR])
        assert "200000 bytes" in house.tunnel.packets[-1][3]
        assert budget.held_bytes == 900_000
        house.error(1)
        assert budget.held_bytes == 0
        house.peers[3].transport.resume_reading()
        await until(lambda: house.peers[3].received == FIRST)


# ---------------------------------------------------------------- backpressure towards the hub


async def test_a_full_tunnel_pauses_its_connection_and_loses_nothing(open_house: OpenHouse) -> None:
    async with open_house() as house:
        peer = await house.opened(1)
        outbound = house.tunnel.outbounds[1]
        outbound.pause()
        data = random.Random(7).randbytes(3_000_000)
        peer.write(data)
        await turns()
        assert len(house.tunnel.sent(1)) < 1_000_000
        peer.end()
        await turns()
        assert house.manager.open_connections == 1
        outbound.resume()
        await house.ended(1)
        assert house.tunnel.sent(1) == data
        outbound.pause()
        outbound.resume()


# ---------------------------------------------------------------- probes


async def test_open_connections_are_probed_with_empty_data(open_house: OpenHouse) -> None:
    async with open_house(limits=ConnectionLimits(probe_interval_s=0.05)) as house:
        peer = await house.opened(1)
        await house.opened(2)
        peer.write(b"streams")
        await until(lambda: house.tunnel.codes(1).count(DATA) >= 3 and house.tunnel.codes(2).count(DATA) >= 3)
        house.error(1)  # the hub's response: that client has closed
        await until(lambda: peer.lost)
        before = len(house.tunnel.codes(1))
        probed = house.tunnel.codes(2).count(DATA)
        await until(lambda: house.tunnel.codes(2).count(DATA) > probed + 1)
        assert len(house.tunnel.codes(1)) == before
        assert ERROR not in house.tunnel.codes(1)


@pytest.mark.parametrize(("text", "reason"), [("", "gone"), ("client gone", "client gone"), ("x" * 300, "x" * 200)])
async def test_what_the_hub_ends_a_connection_for_is_in_the_log(
    open_house: OpenHouse, caplog: pytest.LogCaptureFixture, text: str, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    async with open_house() as house:
        peer = await house.opened(1)
        house.error(1, text)
        await until(lambda: peer.lost)
        [said] = [each for each in caplog.records if each.getMessage() == "connection closed"]
        assert said.reason == f"the hub reported: {reason}"  # type: ignore[attr-defined]


async def test_a_hub_with_close_needs_no_probes(open_house: OpenHouse) -> None:
    limits = ConnectionLimits(probe_interval_s=0.02)
    async with open_house(features=frozenset({"close"}), limits=limits) as house:
        await house.opened(1)
        await asyncio.sleep(0.1)
        assert house.tunnel.packets == []


# ---------------------------------------------------------------- what can't be opened


async def test_a_proxy_that_refuses_a_connection_fails_only_that_one(
    open_house: OpenHouse, caplog: pytest.LogCaptureFixture
) -> None:
    def picky(conn_id: int, outcome: object) -> Peer:
        if conn_id == 1:
            raise LookupError("no")
        return EchoPeer(conn_id, outcome)

    async with open_house(picky) as house:
        house.data(1)
        house.data(1, FIRST)
        house.data(2, FIRST)
        await until(lambda: house.tunnel.codes(1) == [ERROR] and house.tunnel.sent(2) == FIRST)
        house.data(1, FIRST)
        assert house.tunnel.codes(1) == [ERROR]
    assert caplog.text.count("LookupError: no") == 1


async def test_a_word_for_an_unknown_connection_is_no_error(open_house: OpenHouse) -> None:
    async with open_house(WordyPeer) as house:
        house.manager.outcome(5, Kind.FAILED, Stage.HEAD)
        assert house.tunnel.packets == []


async def test_an_id_that_is_new_behind_the_hub_s_drain_is_an_error_of_that_id_only(open_house: OpenHouse) -> None:
    async with open_house(features=frozenset({"close", "goaway"})) as house:
        peer = await house.opened(1)
        house.tunnel.opens_no_more = True
        house.data(2, FIRST)
        house.data(2, b"more")
        said = [packet for packet in house.tunnel.packets if packet[0] == 2]
        assert said == [(2, ERROR, b"", "the hub opened this connection after its DRAIN")]
        assert 2 not in house.peers
        received = len(peer.received)
        house.data(1, b"goes on")
        await until(lambda: peer.received[received:] == b"goes on")
        assert house.manager.counters.invalid_ids == 1


async def test_idle_is_waited_for_and_not_longer_than_asked(open_house: OpenHouse) -> None:
    async with open_house() as house:
        await house.manager.wait_idle(60)
        peer = await house.opened(1)
        await house.manager.wait_idle(0.01)
        assert house.manager.open_connections == 1
        waiting = asyncio.ensure_future(house.manager.wait_idle(60))
        await asyncio.sleep(0)
        peer.end()
        await waiting
        assert house.manager.open_connections == 0
