"""The delays between attempts."""

from __future__ import annotations

import random

import pytest

from agent.tunnel.backoff import BackOff


def test_delays_grow_by_half_from_half_a_second_to_a_minute() -> None:
    backoff = BackOff(random=lambda: 0.5)
    delays = [backoff.next_s() for _ in range(20)]
    assert delays[:4] == [0.5, 0.75, 1.125, 1.6875]
    assert delays[-1] == 60.0
    assert delays == sorted(delays)


def test_delays_are_spread_by_half_and_never_above_a_minute() -> None:
    rng = random.Random(1)
    firsts = [BackOff(random=rng.random).next_s() for _ in range(1000)]
    assert 0.25 <= min(firsts) < 0.27
    assert 0.73 < max(firsts) <= 0.75
    backoff = BackOff(random=rng.random)
    assert max(backoff.next_s() for _ in range(1000)) <= 60.0


def test_it_starts_over() -> None:
    backoff = BackOff(random=lambda: 0.5)
    for _ in range(5):
        backoff.next_s()
    backoff.reset()
    assert backoff.next_s() == 0.5


@pytest.mark.parametrize("wrong", [{"first_s": 0}, {"factor": 0.5}, {"jitter": 1}, {"max_s": 0.1}])
def test_senseless_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="back-off"):
        BackOff(**wrong)


def test_a_limit_of_one_delay_bounds_it_spreads_it_and_is_not_kept() -> None:
    highest = BackOff(random=lambda: 1.0)
    delays_s = [highest.next_s(10.0) for _ in range(20)]
    assert max(delays_s) == pytest.approx(10.0)
    assert delays_s[0] == 0.75  # shorter ones are as ever
    lowest = BackOff(random=lambda: 0.0)
    assert [lowest.next_s(10.0) for _ in range(20)][-1] == pytest.approx(10 / 3)  # agents don't come as one
    assert highest.next_s() == 60.0  # it has grown all the while
