"""Credit: what each side may send on a connection before the other has read it."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any

import pytest

from agent.tunnel.messages import PacketWriter
from agent.tunnel.packet import Packet
from agent.tunnel.scheduler import Scheduler
from agent.tunnel.sizes import BATCHED_HIGH_WATER_BYTES, CREDITED_HIGH_WATER_BYTES, HIGH_WATER_BYTES
from agent.tunnel.window import INITIAL_WINDOW_BYTES, MAX_WINDOW_BYTES, ReceiveWindow, WindowBudget

DATA, ERROR, CLOSE, WINDOW = 0, 1, 3, 4
MIB = 2**20


def nothing() -> None:
    pass


# ---------------------------------------------------------------- the sender's side


def queue() -> Scheduler:
    scheduler = Scheduler(nothing)
    scheduler.initial_credit_bytes = 1000
    return scheduler


def sent(scheduler: Scheduler) -> list[Packet]:
    found = []
    writer = PacketWriter(1)
    while scheduler.fill(writer):
        found.append(Packet.decode(b"".join(bytes(piece) for piece in writer.take(2**30, 2**24))[14:]))
    return found


def test_nothing_goes_out_beyond_the_credit() -> None:
    scheduler = queue()
    scheduler.outbound(1, nothing, nothing).write(bytes(2500))
    assert [len(packet.data) for packet in sent(scheduler)] == [1000]
    assert scheduler.take_credit(1, 700)
    assert [len(packet.data) for packet in sent(scheduler)] == [700]
    assert scheduler.take_credit(1, 5000)
    assert [len(packet.data) for packet in sent(scheduler)] == [800]
    assert sent(scheduler) == []
    assert scheduler.queued_bytes == 0


def test_a_parked_connection_holds_up_no_other_and_keeps_its_packets_small() -> None:
    scheduler = queue()
    scheduler.outbound(1, nothing, nothing).write(bytes(2500))
    sent(scheduler)
    other = scheduler.outbound(2, nothing, nothing)
    scheduler.take_credit(2, 2 * MIB)
    other.write(bytes(MIB))
    assert [len(packet.data) for packet in sent(scheduler)] == [256 * 1024] * 4
    assert scheduler.outbounds[1].queued_bytes == 1500


def test_an_end_waits_behind_data_without_credit_and_credit_does_not() -> None:
    scheduler = queue()
    out = scheduler.outbound(1, nothing, nothing)
    out.write(bytes(1500))
    out.finish(CLOSE)
    scheduler.give_credit(1, 77)
    assert [(packet.code, len(packet.data), packet.window) for packet in sent(scheduler)] == [
        (WINDOW, 0, 77),
        (DATA, 1000, 0),
    ]
    scheduler.take_credit(1, 500)
    assert [(packet.code, len(packet.data)) for packet in sent(scheduler)] == [(DATA, 500), (CLOSE, 0)]
    assert scheduler.outbounds == {}


def test_a_parked_connection_can_be_dropped() -> None:
    scheduler = queue()
    out = scheduler.outbound(1, nothing, nothing)
    out.write(bytes(1500))
    sent(scheduler)
    out.abort()
    assert scheduler.queued_bytes == 0
    assert scheduler._backlogged == 0
    assert scheduler.take_credit(1, 5)  # of no use to anybody
    scheduler.outbound(2, nothing, nothing).write(b"x")
    assert [packet.conn_id for packet in sent(scheduler)] == [2]
    assert scheduler._backlogged == 0


@pytest.mark.parametrize("increment", [0, 2**31, 2**32 - 1, 2**31 - 1 - 999])
def test_an_increment_that_is_none_or_too_much_is_refused(increment: int) -> None:
    scheduler = queue()
    scheduler.outbound(1, nothing, nothing)
    assert not scheduler.take_credit(1, increment)
    assert scheduler.outbounds[1].credit_bytes == 1000


def test_the_sum_may_come_to_the_last_byte_below_two_gibibytes() -> None:
    scheduler = queue()
    scheduler.outbound(1, nothing, nothing)
    assert scheduler.take_credit(1, 2**31 - 1 - 1000)


@pytest.mark.parametrize("seed", range(10))
def test_random_credit_loses_and_reorders_nothing(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = queue()
    outs = {conn_id: scheduler.outbound(conn_id, nothing, nothing) for conn_id in range(1, 6)}
    credit = dict.fromkeys(outs, 1000)
    wanted, got = dict.fromkeys(outs, b""), dict.fromkeys(outs, b"")
    for step in range(3000):
        conn_id = rng.choice(list(outs))
        if rng.random() < 0.4:
            data = rng.randbytes(rng.randrange(400))
            outs[conn_id].write(data)
            wanted[conn_id] += data
        elif rng.random() < 0.3 or step > 2900:
            more = rng.randrange(1, 700)
            assert scheduler.take_credit(conn_id, more)
            credit[conn_id] += more
        for packet in sent(scheduler) if rng.random() < 0.5 else ():
            got[packet.conn_id] += packet.data
            credit[packet.conn_id] -= len(packet.data)
            assert credit[packet.conn_id] >= 0
    for conn_id in outs:
        scheduler.take_credit(conn_id, 2**20)
    for packet in sent(scheduler):
        got[packet.conn_id] += packet.data
    assert got == wanted
    assert scheduler.queued_bytes == scheduler._backlogged == 0


# ---------------------------------------------------------------- the receiver's side


class Reader:
    """A window, and a peer that fills it. Its time passes only when a test moves it."""

    def __init__(self, budget: WindowBudget | None = None, round_trip_s: float = 0.1) -> None:
        self.given: list[int] = []
        self.now_s = 0.0
        self.window = ReceiveWindow(
            self.given.append, budget or WindowBudget(), lambda: round_trip_s, lambda: self.now_s
        )

    def read(self, size: int) -> None:
        assert self.window.arrived(size)
        self.window.unread(0)


def test_credit_goes_back_in_batches_and_all_of_it() -> None:
    reader = Reader()
    for _ in range(1000):
        reader.now_s += 1.0  # a slow link: nothing grows
        reader.read(10_000)
    assert min(reader.given) >= INITIAL_WINDOW_BYTES // 4
    assert 10_000_000 - sum(reader.given) < INITIAL_WINDOW_BYTES // 4
    assert reader.window.size_bytes == INITIAL_WINDOW_BYTES


def test_no_credit_for_what_waits() -> None:
    reader = Reader()
    assert reader.window.arrived(INITIAL_WINDOW_BYTES)
    reader.window.unread(INITIAL_WINDOW_BYTES)
    assert reader.given == []
    reader.window.unread(0)
    assert sum(reader.given) >= INITIAL_WINDOW_BYTES


def test_one_byte_beyond_the_credit_is_told() -> None:
    reader = Reader()
    assert reader.window.arrived(INITIAL_WINDOW_BYTES)
    assert not reader.window.arrived(1)


def test_a_window_grows_to_what_rate_and_round_trip_need_and_no_further() -> None:
    reader = Reader(round_trip_s=0.1)
    rate = 20_000_000  # bytes/s: needs 2 MB for each round trip
    for _ in range(5000):
        reader.now_s += 10_000 / rate
        reader.read(10_000)
    assert 2_000_000 <= reader.window.size_bytes <= 8_000_000


def test_a_window_never_passes_16_mib_and_comes_out_of_the_budget() -> None:
    budget = WindowBudget(limit_bytes=20 * MIB)
    fast, other = Reader(budget), Reader(budget)
    for _ in range(10_000):
        fast.read(20_000)
        other.read(20_000)
    assert max(fast.window.size_bytes, other.window.size_bytes) <= MAX_WINDOW_BYTES
    assert budget.granted_bytes == fast.window.size_bytes + other.window.size_bytes <= 20 * MIB
    fast.window.close()
    fast.window.close()
    other.window.close()
    assert budget.granted_bytes == 0


# ---------------------------------------------------------------- both, over a socket


async def test_a_stalled_reader_gets_256_kib_and_the_others_all(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        agent.reads = False
        stalled = hub.tunnel.outbound(1, nothing, nothing)
        stalled.write(bytes(MIB))
        hub.tunnel.outbound(2, nothing, nothing).write(b"small")
        await agent.until(lambda: agent.bytes_of(2))
        await agent.until(lambda: len(agent.bytes_of(1)) == INITIAL_WINDOW_BYTES)
        agent.windows[1].unread(0)
        await agent.until(lambda: len(agent.bytes_of(1)) > INITIAL_WINDOW_BYTES)
        assert len(agent.bytes_of(1)) < 4 * INITIAL_WINDOW_BYTES


@pytest.mark.parametrize("sender", ["agent", "hub"])
async def test_bulk_goes_through_whole_and_the_window_grows(linked: Any, sender: str) -> None:
    async with linked() as (_, agent, hub):
        near, far = (agent, hub) if sender == "agent" else (hub, agent)
        body = random.Random(5).randbytes(MIB) * 64
        near.tunnel.outbound(1, nothing, nothing).write(body)
        await far.until(lambda: sum(len(packet[2]) for packet in far.packets) == len(body))
        assert hashlib.sha256(far.bytes_of(1)).digest() == hashlib.sha256(body).digest()
        assert far.tunnel.windows.granted_bytes == far.windows[1].size_bytes


@pytest.mark.parametrize("violator", ["agent", "hub"])
async def test_data_beyond_the_credit_ends_that_connection_only(linked: Any, violator: str, caplog: Any) -> None:
    async with linked() as (_, agent, hub):
        near, far = (agent, hub) if violator == "agent" else (hub, agent)
        far.reads = False
        for _ in range(5):
            near.tunnel.send(1, DATA, bytes(INITIAL_WINDOW_BYTES // 4))  # control packets aren't counted: a liar
        near.tunnel.outbound(2, nothing, nothing).write(b"fine")
        await near.until(lambda: near.packets)
        await far.until(lambda: far.bytes_of(2))
        assert near.packets == [(1, ERROR, b"", "window: DATA beyond the connection's credit")]
        assert (1, ERROR, b"", "window: DATA beyond the connection's credit") in far.packets


@pytest.mark.parametrize("increment", [0, 2**31, 2**31 - 1])
async def test_a_wrong_increment_ends_that_connection_only(linked: Any, increment: int) -> None:
    async with linked() as (_, agent, hub):
        hub.tunnel.outbound(1, nothing, nothing).write(b"x")
        await agent.until(lambda: agent.packets)
        agent.tunnel._scheduler.give_credit(9, increment)  # nobody's: ignored
        agent.tunnel._scheduler.give_credit(1, increment)
        await agent.until(lambda: any(packet[1] == ERROR for packet in agent.packets))
        assert [packet[0] for packet in agent.packets if packet[1] == ERROR] == [1]
        assert [packet[:2] for packet in hub.packets] == [(1, ERROR)]
        assert hub.tunnel.open_outbounds == 0


async def test_both_directions_full_at_once_do_not_lock_up(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        for end in (agent, hub):
            end.tunnel.outbound(1, nothing, nothing).write(bytes(8 * MIB))
        for end in (agent, hub):
            await end.until(lambda end=end: len(end.bytes_of(1)) == 8 * MIB)


async def test_window_packets_mean_nothing_where_they_were_not_negotiated(linked: Any) -> None:
    async with linked(features=frozenset({"close"})) as (_, agent, hub):
        hub.tunnel.outbound(1, nothing, nothing).write(bytes(MIB))
        agent.tunnel._scheduler.give_credit(1, 0)
        await agent.until(lambda: len(agent.bytes_of(1)) == MIB)
        assert agent.tunnel.receive_window(1) is None
        async with asyncio.timeout(5):
            while not hub.tunnel.unknown_packets:  # noqa: ASYNC110 - what is ignored tells nobody
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("features", "agent_mark", "hub_mark"),
    [
        ({"window"}, CREDITED_HIGH_WATER_BYTES, CREDITED_HIGH_WATER_BYTES),
        (set(), BATCHED_HIGH_WATER_BYTES, HIGH_WATER_BYTES),  # a base hub counts packets, so the agent sends large ones
    ],
    ids=["window", "base"],
)
async def test_less_waits_of_a_connection_where_bytes_are_counted(
    linked: Any, features: set[str], agent_mark: int, hub_mark: int
) -> None:
    async with linked(features=frozenset(features)) as (_, agent, hub):
        for end, mark in ((agent, agent_mark), (hub, hub_mark)):
            paused: list[bool] = []
            out = end.tunnel.outbound(1, lambda paused=paused: paused.append(True), nothing)
            out.write(bytes(mark))
            assert not paused
            out.write(b"x")
            assert paused
        for end, mark in ((agent, hub_mark), (hub, agent_mark)):
            await end.until(lambda end=end, mark=mark: len(end.bytes_of(1)) == mark + 1)
