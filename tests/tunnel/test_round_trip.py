"""The round trip that sizes windows: the least of the last ten seconds, measured again while data flows."""

from __future__ import annotations

from typing import Any

from agent.tunnel import session
from agent.tunnel.round_trip import GUESS_S, SAMPLE_S, WINDOW_S, RoundTrip


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def test_a_guess_stands_before_the_first_sample() -> None:
    assert RoundTrip().least_s == GUESS_S
    assert RoundTrip().is_stale


def test_the_least_sample_counts_for_ten_seconds_and_no_longer() -> None:
    clock = Clock()
    found = RoundTrip(clock)
    found.add(0.001)
    for _ in range(5):
        clock.now_s += 2
        found.add(0.2)
        assert found.least_s == 0.001
    clock.now_s += 0.1
    assert found.least_s == 0.2
    found.add(0.01)
    assert found.least_s == 0.01


def test_the_newest_sample_counts_however_old() -> None:
    clock = Clock()
    found = RoundTrip(clock)
    found.add(0.3)
    clock.now_s += 1000 * WINDOW_S
    assert found.least_s == 0.3
    assert found.is_stale
    found.add(0.2)
    assert not found.is_stale
    clock.now_s += SAMPLE_S
    assert found.is_stale


def test_few_samples_are_kept_however_many_come() -> None:
    clock = Clock()
    found = RoundTrip(clock)
    for number in range(10_000):
        clock.now_s += 0.01
        found.add(0.1 + number / 1e6)
        found.least_s  # noqa: B018  # what is too old is dropped when somebody asks
    assert len(found._samples) <= WINDOW_S / 0.01 + 2


async def test_both_roles_measure_again_while_data_flows(linked: Any, monkeypatch: Any) -> None:
    """A session of ours isn't probed while bytes come: its window would be sized by the first round trip for ever."""
    monkeypatch.setattr("agent.tunnel.round_trip.SAMPLE_S", 0.0)
    async with linked() as (_, agent, hub):
        for end in (agent, hub):
            tunnel: session.Tunnel = end.tunnel
            window = tunnel.receive_window(1)
            assert window is not None
            before = len(tunnel._round_trip._samples)
            monkeypatch.setattr(tunnel, "measured", lambda took_s, end=end: (end.lost.append(None), end.changed.set()))
            assert window.arrived(200_000)
            window.unread(0)
            await end.until(lambda end=end: end.lost)
            end.lost.clear()
            window.close()
            assert len(tunnel._round_trip._samples) == before
