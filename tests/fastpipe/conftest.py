"""Runs each pipe test on both twins, and gives protocols that write down what happens to them."""

from __future__ import annotations

import asyncio
import importlib
from types import ModuleType
from typing import Any

import pytest

from fastpipe.extensions import are_enabled

TWINS = ["c", "python"] if are_enabled() else ["python"]


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> ModuleType:
    """The module of one twin. Fails, and does not skip, where the extension was not built."""
    return importlib.import_module("fastpipe._pipe_c" if request.param == "c" else "fastpipe._pipe_py")


class Recorder(asyncio.Protocol):
    """Records every callback.

    `on` gives a callback its action: data_received=lambda protocol, data: …
    """

    def __init__(self, name: str = "", log: list[Any] | None = None, **on: Any) -> None:
        self.name = name
        self.log: list[Any] = [] if log is None else log
        self.on = on
        self.transport: Any = None
        self.received = bytearray()
        self.lost: asyncio.Future[BaseException | None] | None = None

    def _note(self, what: str, *args: Any) -> Any:
        entry = (what, *args)
        self.log.append((self.name, *entry) if self.name else entry)
        react = self.on.get(what)
        return react(self, *args) if react else None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._note("connection_made")

    def data_received(self, data: Any) -> None:
        self.received += data
        self._note("data_received", data)

    def eof_received(self) -> Any:
        return self._note("eof_received")

    def connection_lost(self, error: BaseException | None) -> None:
        self._note("connection_lost", error)
        if self.lost is not None:
            self.lost.set_result(error)

    def pause_writing(self) -> None:
        self._note("pause_writing")

    def resume_writing(self) -> None:
        self._note("resume_writing")

    @property
    def calls(self) -> list[str]:
        return [entry[1] if self.name else entry[0] for entry in self.log]


class BufferRecorder(asyncio.BufferedProtocol):
    """The same for a protocol that is given bytes in its own buffer."""

    def __init__(self, size: int = 1024, **on: Any) -> None:
        self.buffer = bytearray(size)
        self.on = on
        self.log: list[Any] = []
        self.received = bytearray()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.log.append(("connection_made",))

    def get_buffer(self, sizehint: int) -> Any:
        self.log.append(("get_buffer", sizehint))
        react = self.on.get("get_buffer")
        return react(self, sizehint) if react else self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += self.buffer[:nbytes]
        self.log.append(("buffer_updated", nbytes))
        react = self.on.get("buffer_updated")
        if react:
            react(self, nbytes)

    def eof_received(self) -> Any:
        self.log.append(("eof_received",))

    def connection_lost(self, error: BaseException | None) -> None:
        self.log.append(("connection_lost", error))


async def turns(n: int = 3) -> None:
    """Let the loop make n turns."""
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def buffer_recorder() -> type[BufferRecorder]:
    return BufferRecorder


@pytest.fixture
def run_turns() -> Any:
    return turns
