"""Serving until cancelled: what the agent, the hub and the proxy command have in common."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

__all__ = ["run_beside", "serve_until_cancelled"]


async def serve_until_cancelled(drain: Callable[[], Awaitable[None]], task: asyncio.Task[None] | None = None) -> None:
    """Wait until cancelled, and drain then.

    drain: lets what is in flight finish. A second cancellation cancels `drain`. task: ends by an error only.
    Raises that error, without a drain. Raises CancelledError after the drain.
    """
    try:
        # A task that is awaited directly would be cancelled here, before the drain.
        await asyncio.wait([task if task is not None else asyncio.get_running_loop().create_future()])
    except asyncio.CancelledError:
        await drain()
        raise
    if task is not None:
        task.result()


def run_beside(ends: contextlib.AsyncExitStack, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run `coroutine` as a task until `ends` unwinds, which cancels the task and waits for it."""
    task = asyncio.create_task(coroutine)
    ends.push_async_callback(_cancel, task)
    return task


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancelled: the task is cancelled, but nothing waits for it."""
    task.cancel()
    await asyncio.wait([task])
