"""Bytes that wait for a slow target stay in order and bounded, and give back their budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.connections.inbound import SLICE_BYTES, FirstPacketBudget, Inbound


class Carrier:
    """Takes bytes until it has had enough, as a transport does."""

    def __init__(self, high: int = 100) -> None:
        self.taken = bytearray()
        self.waiting = 0
        self.high = high
        self.eofs = 0
        self.inbound: Inbound | None = None
        self.paused = False

    def write(self, data: bytes | memoryview) -> None:
        assert not self.paused, "written while paused"
        assert not self.eofs
        assert 0 < len(data) <= SLICE_BYTES
        assert not isinstance(data, bytearray), "what is written must be immutable"
        self.taken += data
        self.waiting += len(data)
        if self.waiting > self.high and self.inbound is not None:
            self.paused = True
            self.inbound.pause()

    def write_eof(self) -> None:
        self.eofs += 1

    def drain(self) -> None:
        self.waiting = 0
        if self.paused and self.inbound is not None:
            self.paused = False
            self.inbound.resume()


def made(
    limit: int = 1000, budget: FirstPacketBudget | None = None, *, reframes: bool = False, uncounted: int = 100
) -> tuple[Carrier, Inbound]:
    carrier = Carrier()
    carrier.inbound = Inbound(
        carrier, budget or FirstPacketBudget(), limit_bytes=limit, uncounted_bytes=uncounted, reframes=reframes
    )
    return carrier, carrier.inbound


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=200), st.none()), max_size=60), st.booleans())
def test_bytes_leave_in_the_order_they_came(script: list[bytes | None], as_views: bool) -> None:
    carrier, inbound = made(limit=1_000_000)
    for step in script:
        if step is None:
            carrier.drain()
        else:
            inbound.feed(memoryview(step) if as_views else step)
    inbound.finish()
    while inbound.held_bytes:
        carrier.drain()
    carrier.drain()
    assert carrier.taken == b"".join(s for s in script if s)
    assert carrier.eofs == 1


def test_the_bound_fails_the_packet_that_passes_it_and_counts_no_first_packet() -> None:
    carrier, inbound = made(limit=1000)
    inbound.feed(b"f" * 5000)
    carrier.high = 0
    inbound.feed(b"a" * 1000)
    assert "1000 bytes wait" in inbound.feed(b"b")


def test_a_packet_as_large_as_the_bound_goes_through_where_nothing_waits() -> None:
    carrier, inbound = made(limit=1000)
    inbound.feed(b"first")
    carrier.drain()
    inbound.feed(b"x" * SLICE_BYTES)
    assert len(carrier.taken) == 5 + SLICE_BYTES


def test_the_first_packet_goes_out_in_slices_and_its_budget_comes_back_when_it_has_gone() -> None:
    budget = FirstPacketBudget(10 * SLICE_BYTES)
    carrier, inbound = made(budget=budget)
    packet = bytes(range(256)) * (3 * SLICE_BYTES // 256)
    inbound.feed(packet)
    assert budget.held_bytes == len(packet)
    carrier.drain()
    assert budget.held_bytes == len(packet)
    carrier.drain()
    assert carrier.taken == packet
    assert budget.held_bytes == 0
    inbound.stop()
    assert budget.held_bytes == 0


def test_first_packets_are_bounded_in_total_and_say_so() -> None:
    budget = FirstPacketBudget(1000)
    first, second, third = (made(budget=budget)[1] for _ in range(3))
    first._paused = second._paused = True
    first.feed(b"a" * 600)
    assert "a request of 500 bytes" in second.feed(b"b" * 500)
    assert budget.held_bytes == 600
    third.feed(b"c" * 100)  # any carrier takes that at once
    first.stop()
    first.stop()
    second.stop()
    assert budget.held_bytes == 0


def test_what_waits_behind_first_packets_is_bounded_in_total_beyond_an_allowance() -> None:
    budget = FirstPacketBudget(later_bytes=3_000_000)
    hog, other, third = (made(10_000_000, budget)[1] for _ in range(3))
    for inbound in (hog, other, third):
        inbound.feed(b"first")
        inbound.pause()
    hog.feed(bytes(1024 * 1024))
    assert budget.later.held_bytes == 0
    hog.feed(bytes(2_900_000))
    assert budget.later.held_bytes == 2_900_000
    other.feed(bytes(1024 * 1024))
    other.feed(bytes(100_000))
    assert "3000000 bytes" in other.feed(b"x")
    third.feed(bytes(1024 * 1024))
    assert budget.held_bytes == 0
    hog.stop()
    assert budget.later.held_bytes == 100_000
    other.feed(bytes(2_000_000))
    other.stop()
    third.stop()
    assert budget.later.held_bytes == 0


@given(st.lists(st.one_of(st.integers(1, 3_000_000), st.none()), max_size=30))
def test_the_total_is_charged_for_exactly_what_waits_beyond_the_allowance(script: list[int | None]) -> None:
    budget = FirstPacketBudget()
    carrier, inbound = made(1 << 40, budget)
    inbound.feed(b"first")
    for step in script:
        if step is None:
            carrier.drain()
        else:
            inbound.feed(bytes(step))
        assert budget.later.held_bytes == max(inbound.held_bytes - 1024 * 1024, 0)
    inbound.stop()
    assert budget.later.held_bytes == 0


def test_a_million_crumbs_cost_no_million_objects() -> None:
    carrier, inbound = made(limit=1_000_000)
    inbound.feed(b"first")
    inbound.pause()
    for _ in range(100_000):
        inbound.feed(memoryview(b"xyz")[1:2])
    assert len(inbound._pieces) < 5
    inbound.resume()
    while inbound.held_bytes:
        carrier.drain()
    assert carrier.taken == b"first" + b"y" * 100_000


def test_nothing_is_written_after_stop() -> None:
    carrier, inbound = made()
    inbound.feed(b"a" * 300)
    inbound.feed(b"b")
    inbound.finish()
    inbound.stop()
    before = bytes(carrier.taken)
    inbound.resume()
    assert carrier.taken == before
    assert carrier.eofs == 0
    assert inbound.held_bytes == 0


def test_the_first_request_is_reframed_only_where_asked_and_only_once() -> None:
    packet = b"POST / HTTP/1.1\r\nHost: h\r\n\r\nbody"
    carrier, inbound = made(reframes=True, uncounted=1000)
    inbound.feed(packet)
    carrier.drain()
    inbound.feed(packet)
    carrier.drain()
    assert carrier.taken == b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody" + packet
    carrier, inbound = made(reframes=False, uncounted=1000)
    inbound.feed(packet)
    assert carrier.taken == packet
