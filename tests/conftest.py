"""Runs coroutine tests on asyncio (debug mode) and uvloop, and fails any test that leaves something behind.

After each test: no exception reached the loop's handler, no task lives, no descriptor is open that wasn't before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import fastpipe
from fastpipe import extensions

from .limits import SLOW, scaled
from .staleness import left_over, listed_extensions, stale

# No test trusts the CAs of the system, and OpenSSL reads those for 22 ms. Nobody has this one's key.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("no_authority.pem"))

SOONER_S = 10.0
"""A coroutine's limit is so far below pytest-timeout's, whose signal an idle uvloop would never handle."""

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):  # not on Windows and PyPy
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop
    uvloop.new_event_loop().close()  # libuv opens its process-wide descriptors with the first loop


def pytest_sessionstart() -> None:
    """In a checkout, refuse to test extensions that are older than their sources: what was built would be tested."""
    source = Path(__file__).parent.parent / "src"
    if not extensions.are_enabled() or source not in Path(fastpipe.__file__).parents:
        return
    names = listed_extensions()
    if path := stale(source, names):
        pytest.exit(f"{path} is newer than what was built of it: run make .venv/.tested", returncode=4)
    if path := left_over(source, names):
        pytest.exit(f"{path} is no longer listed in pyproject.toml: delete it", returncode=4)


def pytest_sessionfinish() -> None:
    """Give back what `kept_out` took.

    Hypothesis' plugin, loaded for the summary, looks for referrers, and frozen ones aren't found.
    """
    gc.unfreeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if inspect.iscoroutinefunction(metafunc.function):
        metafunc.fixturenames.append("loop_name")
        wanted = metafunc.definition.get_closest_marker("loops")
        metafunc.parametrize("loop_name", wanted.args if wanted else list(LOOPS))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the loops that a parameter's `loops` mark does not name. Scale pytest-timeout's limits."""
    items[:] = [item for item in items if runs_on_its_loop(item)]
    if SLOW != 1:
        for item in items:
            item.add_marker(pytest.mark.timeout(scaled(allowed_s(item))), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    loop_name = str(pyfuncitem.callspec.params["loop_name"])
    run_on(loop_name, pyfuncitem.obj(**arguments), allowed_s(pyfuncitem) - SOONER_S)
    return True


def runs_on_its_loop(item: pytest.Item) -> bool:
    """Whether the test's `loops` mark names its loop. `pytest_generate_tests` sees no marks of single parameters."""
    wanted = item.get_closest_marker("loops")
    if wanted is None or not hasattr(item, "callspec"):
        return True
    return item.callspec.params.get("loop_name", wanted.args[0]) in wanted.args


def allowed_s(item: pytest.Item) -> float:
    """pytest-timeout's limit for a test: its mark's, the command line's, or pyproject.toml's."""
    mark = item.get_closest_marker("timeout")
    if mark is not None:
        return float(mark.args[0])
    return float(item.config.getoption("timeout", None) or item.config.getini("timeout"))


@contextlib.contextmanager
def short_stacks() -> Iterator[None]:
    """Keep one frame of each stack that asyncio's debug mode keeps per callback and future.

    Whole stacks took two fifths of the time of tests in debug mode. PYTHONASYNCIODEBUG=1 keeps them whole.
    """
    if os.environ.get("PYTHONASYNCIODEBUG"):
        yield
        return

    def walk_one(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
        if frame is not None:
            yield frame, frame.f_lineno

    def extract_one(f: FrameType | None = None, limit: int | None = None) -> traceback.StackSummary:
        """As asyncio's, for callbacks. It looks no file up in a cache of lines, which calls stat(2) each time."""
        frame = f or sys._getframe(1)
        code = frame.f_code
        summary = traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name, lookup_line=False)
        return traceback.StackSummary([summary])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traceback, "walk_stack", walk_one)
        patch.setattr("asyncio.format_helpers.extract_stack", extract_one)
        yield


def run_on(loop_name: str, coroutine: Any, timeout_s: float) -> None:
    """Run a coroutine on a fresh loop. Fail for unhandled errors and for tasks left alive."""
    unhandled: list[str] = []

    async def supervised() -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 60.0
        loop.set_exception_handler(
            lambda _, context: unhandled.append(f"{context.get('message')}: {context.get('exception')!r}")
        )
        async with asyncio.timeout(timeout_s):
            await coroutine
        for _ in range(3):  # callbacks already scheduled are no leak
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            await asyncio.wait(left, timeout=0.5)
            left = {task for task in left if not task.done()}
        assert not left, f"tasks left alive: {left}"
        gc.collect()  # a transport dropped without close warns here, inside the test
        await asyncio.sleep(0)

    with short_stacks(), asyncio.Runner(loop_factory=LOOPS[loop_name], debug=loop_name == "asyncio") as runner:
        runner.run(supervised())
    assert not unhandled, f"the loop's exception handler was called: {unhandled}"


def open_descriptors() -> dict[int, str]:
    """This process's descriptors and what each is open on. Linux only; elsewhere empty."""
    found: dict[int, str] = {}
    if sys.platform == "linux":
        for name in os.listdir("/proc/self/fd"):
            try:
                found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
            except OSError:  # the listing's own descriptor
                continue
    return found


THOROUGH_EVERY = 500
"""Tests between two collections that look at everything."""
_tests = itertools.count()


def kept_out() -> None:
    """Keep the objects of earlier tests out of the collections within and after a test.

    They took most of a test's time. Garbage among these objects is collected some hundred tests later.
    """
    if next(_tests) % THOROUGH_EVERY == 0:
        gc.unfreeze()
        gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Fail where a test leaves a descriptor open that was not open before it."""
    kept_out()
    before = open_descriptors()
    yield
    gc.collect()
    left = {fd: name for fd, name in open_descriptors().items() if before.get(fd) != name}
    assert not left, f"descriptors left open: {left}"
