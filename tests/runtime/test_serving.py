"""Serving until cancelled, and what runs beside it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from agent.runtime.serving import run_beside, serve_until_cancelled


class Drain:
    """A drain that ends when `done` is set."""

    def __init__(self) -> None:
        self.begun, self.done = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        await self.done.wait()


async def test_a_cancelled_server_drains_before_it_raises() -> None:
    drain = Drain()
    serving = asyncio.create_task(serve_until_cancelled(drain))
    await asyncio.sleep(0)
    assert not drain.begun.is_set()
    serving.cancel()
    await drain.begun.wait()
    assert not serving.done()
    drain.done.set()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_second_cancellation_ends_the_drain() -> None:
    drain = Drain()
    serving = asyncio.create_task(serve_until_cancelled(drain))
    await asyncio.sleep(0)
    serving.cancel()
    await drain.begun.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_the_tasks_error_is_raised_without_a_drain() -> None:
    async def fail() -> None:
        raise OSError("failed")

    drain = Drain()
    with pytest.raises(OSError, match="failed"):
        await serve_until_cancelled(drain, asyncio.create_task(fail()))
    assert not drain.begun.is_set()


async def test_a_drain_finds_the_task_running() -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    found: list[bool] = []

    async def drain() -> None:
        found.append(task.done())

    async def wait() -> None:
        await task

    async with contextlib.AsyncExitStack() as ends:
        serving = asyncio.create_task(serve_until_cancelled(drain, run_beside(ends, wait())))
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert found == [False]
    assert task.cancelled()


async def test_what_runs_beside_has_ended_when_the_stack_has() -> None:
    ended = asyncio.Event()

    async def beside() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    async with contextlib.AsyncExitStack() as ends:
        task = run_beside(ends, beside())
        await asyncio.sleep(0)
    assert task.cancelled()
    assert ended.is_set()
