"""The coarse clock: late turns of the loop make nobody late whose bytes have come."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from agent.proxy.clock import LATE_TICKS, Clock
from agent.runtime.deadlines import CATCH_UP_S, LATE_S, Deadline, timeout

TICK_S = 0.02
LATE = 10 * LATE_TICKS * TICK_S


async def settled(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (a state, and no event)
            await asyncio.sleep(0.001)


async def test_a_deadline_is_reached_at_the_earliest_then():
    swept = []

    def sweep(now):
        swept.append(now)
        return now < deadline

    clock = Clock(TICK_S, sweep)
    clock.start()
    began_s = asyncio.get_running_loop().time()
    deadline = clock.later(0.1)
    await settled(lambda: swept and swept[-1] >= deadline)
    assert asyncio.get_running_loop().time() - began_s >= 0.1


async def test_sockets_are_read_before_a_late_sweep():
    near, far = socket.socketpair()
    seen = []

    def readable():
        seen.append("read")
        near.recv(10)

    def sweep(now):
        if now >= deadline:
            seen.append("swept")
            return False
        return True

    loop = asyncio.get_running_loop()
    near.setblocking(False)
    loop.add_reader(near.fileno(), readable)
    clock = Clock(TICK_S, sweep)
    clock.start()
    deadline = clock.later(LATE / 2)
    far.send(b"in time")
    time.sleep(LATE)  # noqa: ASYNC251  (the loop stands still)
    await settled(lambda: "swept" in seen)
    assert seen == ["read", "swept"]
    loop.remove_reader(near.fileno())
    near.close()
    far.close()


async def test_the_time_in_which_the_loop_stood_still_does_not_count():
    swept = []
    clock = Clock(TICK_S, lambda now: swept.append(now) or True)
    clock.start()
    deadline = clock.later(LATE / 2)
    time.sleep(LATE)  # noqa: ASYNC251
    count = len(swept)
    await settled(lambda: len(swept) > count)
    assert clock.now < deadline
    await settled(lambda: clock.now >= deadline)
    clock.stop()


async def test_it_counts_where_the_far_sides_clock_went_on():
    swept = []
    clock = Clock(TICK_S, lambda now: swept.append(now) or True, counts_stops=True)
    clock.start()
    deadline = clock.later(LATE / 2)
    time.sleep(LATE)  # noqa: ASYNC251
    await settled(lambda: swept)
    assert swept[0] >= deadline
    clock.stop()


async def test_a_loop_whose_every_turn_is_long_sweeps_all_the_same():
    swept = []
    clock = Clock(TICK_S, lambda now: swept.append(now) or True)
    clock.start()
    for _ in range(8):
        time.sleep((LATE_TICKS + 2) * TICK_S)  # noqa: ASYNC251
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert swept
    assert swept == sorted(swept)
    clock.stop()


class Turns:
    """A loop with one timer. Its time passes when a test moves it."""

    def __init__(self) -> None:
        self.now_s = self.due_s = 100.0

    def time(self):
        return self.now_s

    def call_later(self, seconds, call):
        self.due_s, self.call = self.now_s + seconds, call
        return call

    def turn(self, late_s=0.0):
        """Let the timer come so late."""
        self.now_s = self.due_s + late_s
        self.call()


def test_deadlines_come_in_time_in_a_loop_whose_every_turn_is_long(monkeypatch):
    loop = Turns()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    swept = []
    clock = Clock(TICK_S, lambda now: swept.append(now) or True)
    clock.start()
    deadline = clock.later(10 * LATE)
    began_s = loop.now_s
    while not swept or swept[-1] < deadline:
        loop.turn(late_s=LATE)
    assert loop.now_s - began_s <= 14 * LATE


def test_each_of_several_stops_is_left_out(monkeypatch):
    loop = Turns()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    clock = Clock(TICK_S, lambda now: True)
    clock.start()
    deadline = clock.later(LATE / 2)
    for _ in range(3):
        loop.turn(late_s=LATE)
        loop.turn()
    assert clock.now < deadline


async def test_a_clock_started_again_does_not_go_back():
    clock = Clock(TICK_S, lambda now: False)
    clock.start()
    time.sleep(LATE)  # noqa: ASYNC251
    await settled(lambda: clock._handle is None)
    before = clock.now
    clock.start()
    assert clock.now >= before
    clock.stop()


async def test_what_came_in_time_is_read_before_a_timeout():
    near, far = socket.socketpair()
    near.setblocking(False)
    far.send(b"in time")

    async def waits():
        async with timeout(0.05):
            await asyncio.sleep(0.001)  # until the loop has stalled
            return await asyncio.get_running_loop().sock_recv(near, 10)

    waiting = asyncio.ensure_future(waits())
    await asyncio.sleep(0)
    time.sleep(LATE_S + 0.2)  # noqa: ASYNC251
    assert await waiting == b"in time"
    near.close()
    far.close()


async def test_a_timeout_is_one_where_nothing_comes():
    with pytest.raises(TimeoutError):
        async with timeout(0.05):
            await asyncio.get_running_loop().create_future()


async def test_a_late_deadline_lets_the_loop_catch_up_and_a_cancelled_one_never():
    loop = asyncio.get_running_loop()
    reached = loop.create_future()
    Deadline(0.05, lambda: reached.set_result(loop.time()))
    cancelled = Deadline(0.05, lambda: reached.set_exception(AssertionError("it was cancelled")))
    time.sleep(LATE_S + 0.2)  # noqa: ASYNC251
    woken_s = time.monotonic()
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await reached
    assert time.monotonic() - woken_s >= CATCH_UP_S
