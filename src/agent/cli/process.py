"""Runs a service as a process: the event loop, signals, and an end that no thread can delay."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..config.schema import ProcessConfig
from ..errors import ConfigError
from .output import DONE, FAILED, report

if TYPE_CHECKING:
    import asyncio

__all__ = ["choose_loop", "import_from_working_folder", "on_hangup", "serve"]

LEAVE_S = 3.0
"""Seconds that threads have to end after a service has ended."""

logger = logging.getLogger(__name__)


def import_from_working_folder() -> None:
    """Search `module:name` in the working folder first, as `python -m` does."""
    sys.path.insert(0, os.getcwd())


def serve(
    body: Callable[[], Coroutine[Any, Any, None]], process: ProcessConfig, sources: Mapping[str, str] | None = None
) -> int:
    """Run a service until it ends or is signalled. Reports errors, and returns the exit code.

    sources: the source of each set field, for errors.
    """
    import asyncio

    from ..runtime.descriptors import open_more_descriptors
    from .allocator import keep_freed_memory

    keep_freed_memory()
    open_more_descriptors()

    async def run() -> int:
        try:
            code = await _until_signalled(body)
        except Exception as error:
            code = report(error, sources)
        _leave(code)
        return code

    try:
        with asyncio.Runner(loop_factory=choose_loop(process.loop)) as runner:
            return runner.run(run())
    except Exception as error:
        return report(error, sources)


async def _until_signalled(body: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `body` to its end. The first SIGTERM or SIGINT cancels it, which drains. The second aborts the drain.

    The third kills the process, which is the signal's default. Returns DONE, or FAILED after an abort. Raises the
    error of `body`.
    """
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    task = loop.create_task(body())
    signals: list[str] = []

    def on_signal(number: signal.Signals) -> None:
        signals.append(number.name)
        logger.info("draining" if len(signals) == 1 else "aborting", extra={"signal": number.name})
        if len(signals) == 2:
            for each in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        task.cancel()

    for each in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(each, on_signal, each)
        except NotImplementedError:  # on Windows, where only Ctrl-C exists
            signal.signal(each, lambda number, _: loop.call_soon_threadsafe(on_signal, signal.Signals(number)) and None)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        # A command that reloads replaces this handler. Without a handler, the signal kills the process.
        loop.add_signal_handler(signal.SIGHUP, logger.warning, "SIGHUP is ignored, since this command reloads nothing")
    await asyncio.wait([task])
    if len(signals) > 1:
        return FAILED
    if not task.cancelled():
        task.result()
    return DONE


def _leave(code: int) -> None:
    """End the process with this code within LEAVE_S, plus the time of the log.

    Threads that nothing can stop would keep it alive. A DNS lookup with a silent server takes up to a minute, and both
    loops and Python wait for it.
    """
    import threading
    import time

    def end() -> None:
        time.sleep(LEAVE_S)
        from ..telemetry.logs import finish

        finish()
        os._exit(code)

    threading.Thread(target=end, name="end of the process", daemon=True).start()


def choose_loop(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The factory of the event loop: uvloop's (on Windows winloop's), or None for asyncio's.

    name: the setting `loop`. Raises ConfigError if it is uvloop and uvloop is missing.
    """
    if name == "asyncio":
        return None
    from importlib import import_module

    library = "winloop" if name == "auto" and sys.platform == "win32" else "uvloop"
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module(library).new_event_loop
    except ImportError:
        if name == "uvloop":
            raise ConfigError("loop", "configuration", "must be asyncio or auto, uvloop isn't installed") from None
        return None
    return factory


@contextlib.contextmanager
def on_hangup(reload: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Within the block, each SIGHUP runs `reload`, one after the other. It has no effect on systems without SIGHUP."""
    import asyncio
    import signal

    if not hasattr(signal, "SIGHUP"):
        yield
        return
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    async def work() -> None:
        while True:
            await asked.wait()
            asked.clear()
            try:
                await reload()
            except Exception:
                logger.exception("a bug: please report it")

    worker = loop.create_task(work())
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it must not end a drain
        worker.cancel()
