"""The round trip that sizes windows: the least of the last ten seconds, measured again while data flows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

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
    """Our two ends don't probe each other while bytes arrive.

    Without new measurements, the first round trip would size the window for ever.
    """
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


class Cable:
    """Carries a connection to a port at 8 MB/s each way. Every byte arrives `delay_s` later."""

    def __init__(self) -> None:
        self.port = 0
        self.delay_s = 0.0
        self.tasks: list[asyncio.Task[None]] = []

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            while True:
                due_s, data = await under_way.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                writer.write(data)

        self.tasks.append(loop.create_task(arrive()))
        free_s = loop.time()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(32 * 1024):
                free_s = max(free_s, loop.time()) + len(data) / 8e6
                await asyncio.sleep(free_s - loop.time())
                under_way.put_nowait((free_s + self.delay_s, data))
        writer.close()


@contextlib.asynccontextmanager
async def cable(to_port: int) -> AsyncIterator[Cable]:
    found = Cable()
    loop = asyncio.get_running_loop()
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to_port)
        writers.extend((writer, far_writer))
        found.tasks.append(loop.create_task(found.carry(reader, far_writer)))
        found.tasks.append(loop.create_task(found.carry(far_reader, writer)))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    found.port = listening.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        listening.close()
        for writer in writers:
            writer.transport.abort()
        for task in found.tasks:
            task.cancel()
        await asyncio.wait(found.tasks)


@pytest.mark.parametrize("role", ["hub", "agent"])
async def test_a_window_grows_when_the_link_becomes_longer(
    tunnels: Any, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    """By the smallest round trip ever seen it would stay as it was, for the session's life."""
    monkeypatch.setattr("agent.tunnel.round_trip.WINDOW_S", 1.0)
    monkeypatch.setattr("agent.tunnel.round_trip.SAMPLE_S", 0.2)
    async with tunnels() as ends, cable(ends.port) as link:
        ends.start(ends.client(link.port))
        await ends.until(lambda: ends.ready)
        hub, agent = ends.hub_sessions[0], ends.agent_sessions[0]
        receiver, sender = (hub, agent) if role == "hub" else (agent, hub)
        chunk = bytes(64 * 1024)
        paused = [False]

        def pause() -> None:
            paused[0] = True

        def resume() -> None:
            paused[0] = False
            asyncio.get_running_loop().call_soon(fill)

        def fill() -> None:
            while not paused[0] and not sender.lost:
                outbound.write(chunk)

        outbound = sender.tunnel.outbound(1, pause, resume)
        fill()
        await receiver.until(lambda: 1 in receiver.windows and len(receiver.packets) > 20)
        window = receiver.windows[1]
        assert window is not None
        before = window.size_bytes
        link.delay_s = 0.2
        await receiver.until(lambda: window.size_bytes >= max(2 * before, 2**21))  # of the 3.2 MB that it takes
        outbound.abort()
