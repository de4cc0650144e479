"""The queue by itself: whose packet goes next, and how much goes into it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agent.tunnel.messages import PacketWriter
from agent.tunnel.packet import Packet
from agent.tunnel.scheduler import Scheduler
from agent.tunnel.sizes import (
    BATCHED_HIGH_WATER_BYTES,
    BATCHED_TOTAL_BYTES,
    CREDITED_HIGH_WATER_BYTES,
    HIGH_WATER_BYTES,
)

DATA, ERROR = 0, 1


def nothing() -> None:
    pass


class Queue:
    def __init__(self, **options: Any) -> None:
        self.wakes = 0
        self.scheduler = Scheduler(self.wake, **options)

    def wake(self) -> None:
        self.wakes += 1

    def outbound(self, conn_id: int) -> Any:
        return self.scheduler.outbound(conn_id, nothing, nothing)

    def next(self) -> Packet | None:
        writer = PacketWriter(1)
        if not self.scheduler.fill(writer):
            assert writer.pending == 0
            return None
        message = b"".join(writer.take(2**30, 2**24))[9:]
        assert int.from_bytes(message[1:5], "big") == len(message) - 5
        assert len(message) < 4 * 2**20
        return Packet.decode(message[5:])

    def all(self) -> list[Packet]:
        return list(iter(self.next, None))


def test_a_connection_alone_fills_large_packets() -> None:
    queue = Queue()
    out = queue.outbound(1)
    out.write(bytes(2_500_000))
    assert [len(packet.data) for packet in queue.all()] == [2**20, 2**20, 2_500_000 - 2**21]


def test_connections_take_turns_of_256_kib() -> None:
    queue = Queue()
    for conn_id in (1, 2):
        queue.outbound(conn_id).write(bytes(600_000))
    sent = [(packet.conn_id, len(packet.data)) for packet in queue.all()]
    rest = 600_000 - 2 * 2**18
    assert sent == [(1, 2**18), (2, 2**18), (1, 2**18), (2, 2**18), (1, rest), (2, rest)]


def test_a_small_answer_goes_ahead_of_those_that_have_been_sending() -> None:
    queue = Queue()
    for conn_id in (1, 2, 3):
        queue.outbound(conn_id).write(bytes(2**20))
    assert [queue.next().conn_id for _ in range(4)] == [1, 2, 3, 1]
    queue.outbound(9).write(b"small")
    assert queue.next() == Packet(9, DATA, b"small")


def test_many_small_ones_can_t_starve_the_bulk() -> None:
    queue = Queue()
    bulk = queue.outbound(1)
    bulk.write(bytes(2**24))
    small = [queue.outbound(conn_id) for conn_id in range(2, 12)]
    turns = dict.fromkeys(range(1, 12), 0)
    for _ in range(1000):
        for out in small:
            if not out.queued_bytes:
                out.write(b"x")
        turns[queue.next().conn_id] += 1
    assert turns[1] == 64  # all of it
    assert min(turns.values()) >= 64


def test_many_new_ones_that_answer_once_can_t_starve_the_bulk() -> None:
    """Each request has its own connection, and they fill the link. A download beside them continues."""
    queue = Queue(shared_packet_bytes=65536)
    bulk = queue.outbound(1)
    bulk.write(bytes(2**24))
    sent = {True: 0, False: 0}
    waited = longest = 0
    for conn_id in range(2, 1002):
        out = queue.outbound(conn_id)
        out.write(bytes(20_000))
        out.finish(3)
        before = bulk.queued_bytes
        packet = queue.next()
        sent[packet.conn_id == 1] += len(packet.data)
        waited = 0 if bulk.queued_bytes < before else waited + 1
        longest = max(longest, waited)
    assert sent[True] * 5 >= sent[False]  # a fifth of the link, except at the beginning
    assert longest <= 4 * 65536 // 20_000 * 2 + 2  # each response is a packet, and its CLOSE another
    assert sent[False] >= sent[True] * 3  # and no more: they still go ahead


def test_control_packets_go_first_but_for_their_own_connection_s_data() -> None:
    queue = Queue()
    queue.outbound(1).write(b"data 1")
    queue.outbound(2).write(b"data 2")
    queue.scheduler.send(2, ERROR, b"", "after data 2")
    queue.scheduler.send(3, ERROR, b"", "first")
    queue.scheduler.send(-1, DATA)
    assert queue.all() == [
        Packet(3, ERROR, b"", "first"),
        Packet(-1),
        Packet(1, DATA, b"data 1"),
        Packet(2, DATA, b"data 2"),
        Packet(2, ERROR, b"", "after data 2"),
    ]


def test_order_is_kept_around_a_control_packet() -> None:
    queue = Queue()
    out = queue.outbound(2)
    out.write(b"before")
    queue.scheduler.send(2, 7)
    out.write(b"after")
    assert queue.all() == [Packet(2, 0, b"before"), Packet(2, 7), Packet(2, 0, b"after")]


def test_finish_says_its_word_after_the_data_and_is_forgotten() -> None:
    queue = Queue()
    out = queue.outbound(1)
    out.write(b"last")
    out.finish(ERROR, "over")
    out.finish(ERROR, "not twice")
    with pytest.raises(RuntimeError, match="after it was finished"):
        out.write(b"more")
    with pytest.raises(ValueError, match="already"):
        queue.outbound(1)
    assert queue.all() == [Packet(1, 0, b"last"), Packet(1, ERROR, b"", "over")]
    assert queue.scheduler.outbounds == {}
    queue.outbound(2).finish()
    assert queue.scheduler.outbounds == {}


def test_abort_drops_what_is_queued() -> None:
    queue = Queue()
    out = queue.outbound(1)
    out.write(b"never")
    out.abort()
    out.abort()
    queue.outbound(1).write(b"other")  # ids are the caller's business
    assert queue.all() == [Packet(1, 0, b"other")]
    assert queue.scheduler.queued_bytes == 0


@pytest.mark.parametrize("mark", [HIGH_WATER_BYTES, CREDITED_HIGH_WATER_BYTES])
def test_pause_above_the_mark_and_resume_below_a_quarter(mark: int) -> None:
    queue = Queue()
    queue.scheduler.high_water_bytes = mark
    told: list[Any] = []
    out = queue.scheduler.outbound(1, lambda: told.append("pause"), lambda: told.append(out.queued_bytes))
    out.write(bytes(mark))
    assert told == []
    out.write(b"x")
    assert told == ["pause"]
    out.write(bytes(mark))
    queue.outbound(2).write(b"another waits")
    while len(told) == 1:
        queue.next()
    assert told[1] < mark // 4


def test_resume_may_write_at_once() -> None:
    queue = Queue()
    left = [bytes(HIGH_WATER_BYTES + 1)] * 5

    def resume() -> None:
        if left:
            out.write(left.pop())

    out = queue.scheduler.outbound(1, nothing, resume)
    out.write(bytes(HIGH_WATER_BYTES + 1))
    assert sum(len(packet.data) for packet in queue.all()) == 6 * (HIGH_WATER_BYTES + 1)


def test_after_close_everything_is_silently_dropped() -> None:
    queue = Queue()
    out = queue.outbound(1)
    out.write(b"x")
    out.finish()
    queue.scheduler.close()
    out.write(b"late")
    other = queue.outbound(2)
    other.write(b"late")
    other.finish(ERROR, "late")
    other.abort()
    queue.scheduler.send(3, ERROR)
    assert queue.all() == []
    assert queue.scheduler.queued_bytes == 0
    assert queue.scheduler.outbounds == {}


def test_views_of_any_format_are_sent_as_bytes() -> None:
    import array

    queue = Queue()
    queue.outbound(1).write(memoryview(array.array("I", [1, 2, 3])))
    assert queue.next().data == array.array("I", [1, 2, 3]).tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_random_use_loses_doubles_and_reorders_nothing(seed: int) -> None:
    rng = random.Random(seed)
    queue = Queue(shared_packet_bytes=50, alone_packet_bytes=200)
    outs: dict[int, Any] = {}
    written: dict[int, bytes] = {}
    read: dict[int, bytes] = {}
    ended: set[int] = set()

    def take() -> None:
        packet = queue.next()
        if packet is not None:
            assert packet.conn_id not in ended
            if packet.code == ERROR:
                ended.add(packet.conn_id)
            read[packet.conn_id] = read.get(packet.conn_id, b"") + packet.data

    for step in range(2000):
        action = rng.random()
        if action < 0.1:
            outs[step] = queue.outbound(step)
            written[step] = b""
        elif action < 0.6 and outs:
            conn_id = rng.choice(list(outs))
            data = rng.randbytes(rng.randrange(300))
            outs[conn_id].write(data)
            written[conn_id] += data
        elif action < 0.65 and outs:
            outs.pop(rng.choice(list(outs))).finish(rng.choice([None, ERROR]))
        else:
            take()
        assert queue.scheduler.queued_bytes == sum(map(len, written.values())) - sum(map(len, read.values()))
    while queue.scheduler.queued_bytes or queue.scheduler._starting or queue.scheduler._going_on:
        take()
    assert {k: v for k, v in read.items() if v} == {k: v for k, v in written.items() if v}
    assert set(queue.scheduler.outbounds) == set(outs)


# ---------------------------------------------------------------- whole packets, for a hub that counts them


class Timers:
    """A clock that a test moves, and at most one timer."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.due: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay: float, callback: Any) -> Any:
        assert not self.due, "one timer is enough"
        self.due.append((self.now_s + delay, callback))
        return self

    def cancel(self) -> None:
        self.due.clear()

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.due and self.due[0][0] <= end_s:
            self.now_s, callback = self.due.pop()
            callback()
        self.now_s = end_s


MIB = 2**20


class Batching(Queue):
    def __init__(self) -> None:
        super().__init__()
        self.timers = Timers()
        self.scheduler.batch(self.timers)

    def sizes(self) -> list[int]:
        return [len(packet.data) for packet in self.all()]

    def bulk(self, conn_id: int) -> Any:
        """An outbound that has sent more than a small response: what it sends now is gathered."""
        out = self.outbound(conn_id)
        for _ in range(8):
            out.write(bytes(65536))
            assert self.sizes() == [65536]
        return out


def test_a_small_response_is_not_held() -> None:
    queue = Batching()
    out = queue.outbound(1)
    for _ in range(100):  # requests of one client, each behind the response to the one before
        out.heard()
        out.write(b"head and body")
        assert queue.sizes() == [13]
    assert not queue.timers.due


def test_bulk_goes_out_in_whole_packets() -> None:
    queue = Batching()
    out = queue.bulk(1)
    sent = []
    for _ in range(48):
        out.write(bytes(65536))
        sent += queue.sizes()
    assert sent == [MIB] * 3


def test_several_bulk_connections_take_turns_of_a_whole_packet() -> None:
    queue = Batching()
    for out in [queue.bulk(conn_id) for conn_id in (1, 2)]:
        out.write(bytes(2 * MIB))
    assert [(packet.conn_id, len(packet.data)) for packet in queue.all()] == [(1, MIB), (2, MIB)] * 2


def test_the_end_of_a_bulk_waits_for_a_quiet_tick_and_no_longer() -> None:
    queue = Batching()
    queue.bulk(1).write(bytes(MIB + 1000))
    assert queue.sizes() == [MIB]
    wakes = queue.wakes
    queue.timers.run(0.004)
    assert queue.wakes > wakes
    assert queue.sizes() == [1000]
    assert not queue.timers.due


def test_an_end_that_is_said_waits_for_nothing() -> None:
    queue = Batching()
    for conn_id, code in ((1, ERROR), (2, None)):
        out = queue.bulk(conn_id)
        out.write(b"the last bytes")
        assert queue.sizes() == []
        out.finish(code)
        assert queue.sizes() == ([14] if code is None else [14, 0])


def test_a_source_that_trickles_is_held_for_a_tenth_of_a_second_at_most() -> None:
    queue = Batching()
    out = queue.bulk(1)
    waited, longest, sent = 0, 0, 0
    for _ in range(5000):
        out.write(b"x")
        queue.timers.run(0.001)
        got = sum(queue.sizes())
        waited = 0 if got else waited + 1
        longest = max(longest, waited)
        sent += got
    assert longest <= 125
    assert sent > 4800


def test_a_stream_of_small_writes_uses_few_packets() -> None:
    """A client that reads nothing for 2 s, and a hub that keeps 100 packets for it."""
    queue = Batching()
    out = queue.outbound(1)
    packets = 0
    for _ in range(2000):
        out.write(bytes(5000))  # 5 MB/s, and a turn of the loop between
        queue.timers.run(0.001)
        packets += len(queue.sizes())
    assert packets <= 40


def test_sparse_events_are_never_held() -> None:
    queue = Batching()
    out = queue.outbound(1)
    for _ in range(100):
        out.write(b"event")
        assert queue.sizes() == [5]
        queue.timers.run(0.11)


def test_a_held_connection_that_is_aborted_is_forgotten() -> None:
    queue = Batching()
    out = queue.bulk(1)
    out.write(b"held")
    assert queue.sizes() == []
    out.abort()
    queue.timers.run(1)
    assert (queue.all(), queue.scheduler.queued_bytes, queue.scheduler._backlogged) == ([], 0, 0)
    assert queue.scheduler._held == []
    assert not queue.timers.due


def test_what_is_held_goes_out_where_batching_stops_and_its_timer_with_the_session() -> None:
    queue = Batching()
    queue.bulk(1).write(b"held")
    queue.scheduler.stop_batching()
    assert queue.sizes() == [4]
    assert not queue.timers.due
    queue = Batching()
    queue.bulk(1).write(b"held")
    assert queue.sizes() == []
    queue.scheduler.close()
    assert not queue.timers.due


def test_a_source_pauses_past_2_mib_and_resumes_below_1() -> None:
    queue = Batching()
    said: list[str] = []
    out = queue.scheduler.outbound(1, lambda: said.append("pause"), lambda: said.append("resume"))
    out.write(bytes(BATCHED_HIGH_WATER_BYTES))
    assert said == []
    out.write(b"x")
    assert said == ["pause"]
    queue.next()
    assert said == ["pause"]
    queue.next()
    assert said == ["pause", "resume"]


def test_a_crowd_holds_no_more_than_its_total_and_256_kib_each() -> None:
    queue = Batching()
    paused: set[int] = set()
    outs = []
    for conn_id in range(1, 201):
        out = queue.scheduler.outbound(conn_id, lambda conn_id=conn_id: paused.add(conn_id), nothing)
        outs.append(out)
        while conn_id not in paused:
            out.write(bytes(65536))
    assert queue.scheduler.queued_bytes <= BATCHED_TOTAL_BYTES + 200 * (HIGH_WATER_BYTES + 65536) + 3 * MIB
    assert queue.sizes()  # the scheduler holds nothing, because a paused source can't fill a packet
    assert queue.scheduler.queued_bytes == 0


@pytest.mark.parametrize("seed", range(5))
def test_batching_keeps_every_byte_in_order(seed: int) -> None:
    rng = random.Random(seed)
    queue = Batching()
    outs = {conn_id: queue.outbound(conn_id) for conn_id in range(1, 6)}
    given: dict[int, bytearray] = {conn_id: bytearray() for conn_id in outs}
    got: dict[int, bytearray] = {conn_id: bytearray() for conn_id in outs}
    for _ in range(2000):
        conn_id = rng.randrange(1, 6)
        match rng.randrange(6):
            case 0:
                queue.timers.run(rng.choice([0.001, 0.003, 0.05]))
            case 1:
                outs[conn_id].heard()
            case 2:
                if packet := queue.next():
                    got[packet.conn_id] += packet.data
            case _:
                data = rng.randbytes(rng.choice([1, 100, 65536, 300_000]) % 70_000 + 1)
                given[conn_id] += data
                outs[conn_id].write(data)
    for out in outs.values():
        out.finish()
    for packet in queue.all():
        got[packet.conn_id] += packet.data
    assert got == given
    assert queue.scheduler.outbounds == {}
