"""The store of closed ids keeps ranges, and behaves like a set."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from agent.connections.ids import MAX_RANGES, IdRanges


@given(st.lists(st.integers(1, 40)))
def test_it_answers_as_a_set_would(added: list[int]) -> None:
    ranges, model = IdRanges(), set()
    for conn_id in added:
        ranges.add(conn_id)
        model.add(conn_id)
        assert {n for n in range(-1, 43) if n in ranges} == model
    spans = list(ranges.ranges())
    assert spans == sorted(spans)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(spans)), "neighbours are joined"


def test_a_hundred_thousand_ids_a_little_out_of_order_are_one_range() -> None:
    ids = list(range(1, 100_001))
    rng = random.Random(1)
    for start in range(0, len(ids), 16):
        part = ids[start : start + 16]
        rng.shuffle(part)
        ids[start : start + 16] = part
    ranges = IdRanges()
    for conn_id in ids:
        ranges.add(conn_id)
    assert list(ranges.ranges()) == [(1, 100_000)]
    assert 0 not in ranges
    assert 100_001 not in ranges


def test_the_largest_id_is_an_id() -> None:
    ranges = IdRanges()
    ranges.add(2**63 - 1)
    assert 2**63 - 1 in ranges
    assert 2**63 - 2 not in ranges


def test_gaps_cost_no_more_than_a_bound_and_forget_no_id() -> None:
    ranges = IdRanges()
    ids = range(2, 6 * MAX_RANGES, 2)
    for conn_id in ids:
        ranges.add(conn_id)
    assert len(list(ranges.ranges())) <= MAX_RANGES
    assert all(conn_id in ranges for conn_id in ids)
    spans = list(ranges.ranges())
    assert all(a[0] <= a[1] < b[0] - 1 for a, b in itertools.pairwise(spans))
    newest = ids[-1]
    assert newest - 1 not in ranges  # what a hub opens next, or a little out of order, is not taken for closed
    assert newest + 1 not in ranges
