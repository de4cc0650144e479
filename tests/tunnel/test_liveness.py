"""The hub's watch over an agent's connection: asked in time, suspected in time, ended in time, and heard at once."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

import pytest

from agent.runtime.deadlines import LATE_S
from agent.tunnel.liveness import TRANSITIONS, Event, Liveness, LivenessTimes, State

TIMES = LivenessTimes()


class Watched:
    """A connection that records its calls. Its peer's TCP has taken `taken_bytes`."""

    def __init__(self, loop: Clockwork) -> None:
        self._loop = loop
        self.heard_s = loop.time()
        self.taken_bytes = 0
        self.waits = False
        self.pings_s: list[float] = []
        self.failed: list[tuple[float, str]] = []
        self.aborted = False

    def outgoing(self) -> tuple[int, bool]:
        return self.taken_bytes, self.waits

    def ping(self) -> None:
        self.pings_s.append(self._loop.time())

    def fail(self, error: Exception) -> None:
        self.failed.append((self._loop.time(), str(error)))

    def abort(self) -> None:
        self.aborted = True

    def hear(self) -> None:
        self.heard_s = self._loop.time()


class Timer:
    def __init__(self, due_s: float, call: Callable[[], None]) -> None:
        self.due_s, self.call = due_s, call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clockwork:
    """A loop with timers only. Its time passes when a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[Timer] = []
        self.fired = 0

    def time(self) -> float:
        return self.now_s

    def call_at(self, due_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(due_s, call))
        return self.timers[-1]

    def open_timers(self) -> list[Timer]:
        self.timers = [timer for timer in self.timers if not timer.cancelled]
        return self.timers

    def run_to(self, end_s: float, late_s: float = 0.0) -> None:
        """Let time pass up to `end_s` seconds after the beginning. Each timer fires late_s too late."""
        end_s += 100.0
        while due := sorted((t for t in self.open_timers() if t.due_s <= end_s), key=lambda timer: timer.due_s):
            self.now_s = max(self.now_s, due[0].due_s + late_s)
            self.timers.remove(due[0])
            self.fired += 1
            due[0].call()
        self.now_s = end_s


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Liveness, Watched, Clockwork]]:
    loop = Clockwork()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    connection = Watched(loop)
    liveness = Liveness(connection, TIMES)
    liveness.start()
    yield liveness, connection, loop
    liveness.stop()
    assert not loop.open_timers()


Watch = tuple[Liveness, Watched, Clockwork]


def test_the_product_waits_as_documented() -> None:
    assert (TIMES.idle_s, TIMES.answer_s, TIMES.unanswered_s, TIMES.suspect_s) == (8.0, 8.0, 1.5, 2.5)
    with pytest.raises(ValueError, match="suspect_s must be positive"):
        LivenessTimes(suspect_s=0)


def test_every_pair_of_state_and_event_is_in_the_table_or_raises(watch: Watch) -> None:
    liveness, _, _ = watch
    for state, event in itertools.product(State, Event):
        liveness.state = state
        if (state, event) in TRANSITIONS:
            liveness._move(event)
            assert liveness.state is TRANSITIONS[state, event]
        else:
            with pytest.raises(KeyError):
                liveness._move(event)
    liveness.state = State.HEARD


def test_a_silent_agent_is_asked_after_8_s_and_ended_after_16(watch: Watch) -> None:
    _, connection, loop = watch
    loop.run_to(15.9)
    assert [round(at_s - 100, 2) for at_s in connection.pings_s] == [8.0]
    assert connection.failed == []
    loop.run_to(17)
    assert round(connection.failed[0][0] - 100, 1) == 16.0
    assert connection.failed[0][1] == "no byte came from it for 16 s"
    assert connection.aborted


def test_an_agent_that_answers_is_kept_with_one_timer_and_one_ping_each_8_s(watch: Watch) -> None:
    liveness, connection, loop = watch
    for tenth in range(1, 801):
        loop.run_to(tenth / 10)
        if connection.pings_s and connection.heard_s < connection.pings_s[-1]:
            connection.hear()
        assert len(loop.open_timers()) == 1
    assert 9 <= len(connection.pings_s) <= 10
    assert loop.fired <= 31  # an idle agent costs the hub no more
    assert liveness.state is not State.SUSPECTED


def test_a_waiting_request_makes_the_hub_ask_at_once_and_suspect_2_5_s_later(watch: Watch) -> None:
    liveness, connection, loop = watch
    changes: list[bool] = []
    liveness.watchers.append(lambda: changes.append(liveness.suspected))
    loop.run_to(1.4)
    liveness.ask()
    assert connection.pings_s == []  # it was heard less than 1.5 s ago
    loop.run_to(1.6)
    liveness.ask()
    liveness.ask()
    assert len(connection.pings_s) == 1
    loop.run_to(4.0)
    assert not liveness.suspected
    loop.run_to(4.2)
    assert liveness.suspected
    assert changes == [True]
    loop.run_to(15.9)
    assert not connection.failed
    loop.run_to(16.1)
    assert connection.failed
    liveness.stop()
    assert liveness.suspected  # for the requests that ended with it


def test_a_byte_clears_the_suspicion_at_once_and_the_log_hears_of_it_soon(watch: Watch) -> None:
    liveness, connection, loop = watch
    changes: list[bool] = []
    liveness.watchers.append(lambda: changes.append(liveness.suspected))
    loop.run_to(2)
    liveness.ask()
    loop.run_to(5)
    assert liveness.suspected
    connection.hear()
    assert not liveness.suspected
    loop.run_to(5 + TIMES.suspect_s)
    assert changes == [True, False]
    loop.run_to(20)  # and everything begins again
    assert len(connection.pings_s) == 2
    assert not connection.failed


def test_an_unanswered_ping_of_a_silent_agent_makes_it_suspected_without_a_request(watch: Watch) -> None:
    liveness, _, loop = watch
    loop.run_to(10.4)
    assert not liveness.suspected
    loop.run_to(10.6)
    assert liveness.suspected


def test_a_byte_within_the_clocks_resolution_of_the_ping_is_an_answer(watch: Watch) -> None:
    liveness, connection, loop = watch
    loop.run_to(2)
    liveness.ask()
    connection.hear()  # uvloop's clock counts milliseconds
    loop.run_to(9)
    assert not liveness.suspected
    assert not connection.failed


def test_a_hub_that_stood_still_reads_before_it_judges(watch: Watch) -> None:
    liveness, connection, loop = watch
    loop.run_to(2)
    liveness.ask()
    loop.now_s += 60  # stopped and continued: the response is in the socket
    due = loop.open_timers()[0]
    loop.timers.remove(due)
    due.call()
    assert not liveness.suspected
    connection.hear()
    loop.run_to(63)
    assert liveness.state is State.HEARD
    assert not connection.failed
    assert LATE_S < 60


def test_a_hub_whose_every_turn_is_long_finds_dead_agents_too(watch: Watch) -> None:
    liveness, connection, loop = watch
    loop.run_to(2)
    liveness.ask()
    loop.run_to(8, late_s=LATE_S + 0.3)
    assert liveness.suspected
    loop.run_to(24, late_s=LATE_S + 0.3)
    assert connection.failed


def test_the_time_in_which_the_hub_stood_still_does_not_count_against_the_agent(watch: Watch) -> None:
    """A frozen machine receives nothing, and the peer sends again only seconds later."""
    liveness, connection, loop = watch
    loop.run_to(2)
    liveness.ask()  # the end is due at 16
    loop.run_to(3)
    loop.now_s += 60  # 58.5 s after the timer was due
    loop.run_to(16 + 58.4)
    assert not connection.failed
    loop.run_to(16 + 58.6)
    assert connection.failed


@pytest.mark.parametrize("stops", [2, 3])
def test_a_hub_that_is_stopped_again_has_read_in_between(watch: Watch, stops: int) -> None:
    liveness, connection, loop = watch
    loop.run_to(2)
    liveness.ask()
    for stop in range(stops):
        loop.now_s += 30
        due = loop.open_timers()[0]
        loop.timers.remove(due)
        due.call()
        assert not liveness.suspected
        if not stop:
            connection.hear()
    assert not connection.failed


def test_a_slow_link_that_carries_what_waits_puts_the_end_off_up_to_a_minute(watch: Watch) -> None:
    _, connection, loop = watch
    connection.waits = True
    for second in range(59):
        connection.taken_bytes += 1000
        loop.run_to(second)
        assert not connection.failed
    for second in range(59, 75):
        connection.taken_bytes += 1000
        loop.run_to(second)
    assert connection.failed


def test_an_acknowledged_ping_alone_puts_nothing_off(watch: Watch) -> None:
    """A stopped agent's kernel acknowledges it."""
    _, connection, loop = watch
    loop.run_to(9)
    connection.taken_bytes += 17
    loop.run_to(16.1)
    assert connection.failed


def test_nothing_is_asked_of_a_connection_that_is_over(watch: Watch) -> None:
    liveness, connection, loop = watch
    loop.run_to(2)
    liveness.stop()
    liveness.stop()
    liveness.ask()
    assert connection.pings_s == []
