"""The micro cases under pytest-benchmark: `pytest bench --benchmark-only`. Same functions as `python -m bench`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from . import pipe, streams


@pytest.mark.parametrize("who", pipe.RIVALS)
@pytest.mark.parametrize("size", [64, 65536])
def test_round_trips(benchmark: Any, who: str, size: int) -> None:
    """1,000 round trips."""
    loop, connect = pipe.RIVALS[who]
    with asyncio.Runner(loop_factory=pipe.LOOPS[loop]) as runner:
        ping, pong = pipe.Ping(), pipe.Pong()
        a, b = runner.run(connect(ping, pong))

        async def trips() -> None:
            await ping.start(a, b"x" * size, 1000 // pipe.BATCH)

        benchmark(lambda: runner.run(trips()))

        async def end() -> None:
            a.abort()
            b.abort()
            await asyncio.sleep(0)

        runner.run(end())


@pytest.mark.parametrize("who", pipe.RIVALS)
def test_one_way(benchmark: Any, who: str) -> None:
    """16 MiB in writes of 64 KiB."""
    loop, connect = pipe.RIVALS[who]
    benchmark(lambda: pipe.on_loop(loop, pipe.one_way(connect, pipe.Sink, 1 << 24)))


@pytest.mark.parametrize("twin", [pipe.C, pipe.PYTHON], ids=["pipe", "Python twin"])
def test_lives(benchmark: Any, twin: Any) -> None:
    """200 pairs made, connected and closed."""
    benchmark(lambda: pipe.on_loop("uvloop", pipe.pipe_lives(twin, 200)))


def test_lives_of_unix_sockets(benchmark: Any) -> None:
    """200 connections made, accepted and closed."""
    benchmark(lambda: pipe.on_loop("uvloop", pipe.uds_lives(200)))


@pytest.mark.parametrize("who", streams.RIVALS)
def test_stream_round_trips(benchmark: Any, who: str) -> None:
    """500 round trips, awaited."""
    benchmark(lambda: pipe.on_loop("uvloop", streams.round_trips(streams.RIVALS[who], 500)))


@pytest.mark.parametrize("who", ["UDS", "listener"])
def test_uvicorn_requests(benchmark: Any, who: str) -> None:
    """500 small kept-alive requests."""
    benchmark(lambda: pipe.on_loop("uvloop", streams.requests(who, 500)))
