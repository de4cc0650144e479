"""The same random scripts on both twins: the whole traces are equal.

A script is a source of numbers. Every number chooses one thing:

- the next call, its end and its argument
- the action of a callback
- the moment of a turn of the loop
- the call that raises

The trace has each result, each exception's type and text, and each callback with its argument. It identifies each
object. The test has its own loop, so that scripts are cheap and exactly repeatable.
"""

from __future__ import annotations

import asyncio
import collections
import gc
import importlib
import os
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpipe.extensions import are_enabled

PYTHON = importlib.import_module("fastpipe._pipe_py")
COMPILED = importlib.import_module("fastpipe._pipe_c") if are_enabled() else None

CALLS = 60  # in one script, those of its callbacks not counted
SCRIPTS = int(os.environ.get("FASTPIPE_SCRIPTS", "1000"))  # 1,000 make about 100,000 steps, without an upper bound
BLOCKS = 20

RUNS = re.compile(rb"(?s)(?:(.)(?=\1))*.")

Choose = Callable[[int], int]


class FakeLoop:
    """The part of a loop that a pipe uses: call_soon, is_closed and call_exception_handler.

    It takes a turn only when the script asks for one.
    """

    def __init__(self, note: Callable[..., None]) -> None:
        self.ready: collections.deque[Any] = collections.deque()
        self.closed = False
        self.note = note

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> None:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        self.ready.append((callback, args))

    def is_closed(self) -> bool:
        return self.closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.note("handler", context["message"], repr(context["exception"]), sorted(context))

    def turn(self) -> None:
        for _ in range(len(self.ready)):
            callback, args = self.ready.popleft()
            try:
                callback(*args)
            except KeyboardInterrupt as error:
                self.note("out of the loop", repr(error))

    def close(self) -> None:
        self.closed = True
        self.ready.clear()


class Player:
    """Plays one script on one twin. `trace` records all events."""

    def __init__(self, twin: Any, choose: Choose) -> None:
        self.twin = twin
        self.choose = choose
        self.trace: list[Any] = []
        self.loop = FakeLoop(self.note)
        self.depth = 0
        self.reactions = 0
        self.sent: dict[int, bytes] = {}  # by id: what was written, to see whether the same object comes out
        self.views: list[tuple[memoryview, bytes]] = []
        self.chunk = twin.Chunk(1 << 16)
        self.ends: list[Any] = []
        self.names: dict[int, str] = {}
        for number in range(1 + choose(2)):
            loop = None if choose(8) == 0 else self.loop
            pair = twin.create_pipe(
                limit=(65536, 0, 1, 10, 100, 1 << 62)[choose(6)],
                inline=choose(3) == 0,
                max_chunk=(262144, None, 1, 7, 64)[choose(5)],
                loop=loop,
            )
            for end, side in zip(pair, "ab", strict=True):
                self.ends.append(end)
                self.names[id(end)] = f"{side}{number}"
        if choose(4):
            for end in self.ends:
                self.attempt(end, "set_protocol", self.protocol())

    def note(self, *what: Any) -> None:
        self.trace.append(what)

    def play(self) -> None:
        for _ in range(CALLS):
            if self.choose(3) == 0:
                self.note("turn")
                self.loop.turn()
            else:
                self.step()
        for _ in range(50):
            self.loop.turn()
        if self.choose(4) == 0:
            self.note("loop closed")
            self.loop.close()
            for _ in range(5):
                self.step()
        for view, content in self.views:
            assert view == content, "a view changed while it was held"
        for end in self.ends:
            self.note(repr(end), end.get_write_buffer_size(), end.is_closing())
            self.attempt(end, "abort")
        for _ in range(5):
            self.loop.turn()

    # what is written

    def data(self) -> Any:
        kind = self.choose(16)
        size = (1, 3, 10, 64, 200, 5000)[self.choose(6)]
        content = bytes([65 + self.choose(26)]) * size
        if kind == 0:
            return b""
        if kind == 1:
            return bytearray(content)
        if kind == 2:
            return memoryview(content)[size // 3 :]
        if kind == 3:
            return memoryview(content * 4).cast("I")
        if kind == 4:
            return memoryview(content * 2)[::2]
        if kind == 5:
            return "text"
        if kind == 6:
            return memoryview(bytearray(content))
        if kind == 7:
            if self.chunk.size - self.chunk.filled < size:
                self.chunk = self.twin.Chunk(1 << 16)
            self.chunk.writable()[:size] = content
            return self.chunk.commit(size)
        if kind == 8:
            return memoryview(content)
        if kind == 9:
            return type("Bytes", (bytes,), {})(content)
        if kind == 10:
            return memoryview(b"")
        self.sent[id(content)] = content
        return content

    # what is called

    def step(self) -> None:
        end = self.ends[self.choose(len(self.ends))]
        choose = self.choose
        call = choose(40)
        if call < 14:
            self.attempt(end, "write", self.data())
        elif call == 14:
            self.attempt(end, "writelines", [self.data() for _ in range(choose(4))])
        elif call == 15:
            self.attempt(end, "write_eof")
        elif call == 16:
            self.attempt(end, "close")
        elif call == 17:
            self.attempt(end, "abort")
        elif call in (18, 19):
            self.attempt(end, "pause_reading")
        elif call in (20, 21, 22):
            self.attempt(end, "resume_reading")
        elif call in (23, 24):
            self.attempt(end, "set_protocol", self.protocol() if choose(5) else None)
        elif call in (25, 26):
            view = self.attempt(end, "peek")
            if view is not None:
                self.views.append((view, bytes(view)))
        elif call in (27, 28):
            self.attempt(end, "consume", (0, 1, 5, 64, -1, 1 << 70, "x")[choose(7)])
        elif call in (29, 30):
            self.attempt(end, "read", (-1, 0, 1, 5, 200, 1 << 70, None)[choose(7)])
        elif call == 31:
            strided = memoryview(bytearray(20))[::2]
            target = (bytearray(10), bytearray(100), b"const", strided, bytearray(), 7)[choose(6)]
            self.attempt(end, "readinto", target)
            if isinstance(target, bytearray):
                self.note(bytes(target))
        elif call == 32:
            self.attempt(end, "set_write_buffer_limits", *((), (10,), (100, 50), (5, 10), (0, 0), (None, 7))[choose(6)])
        elif call == 33:
            stats = self.attempt(end, "collect_statistics")
            self.note(stats.bytes_written, stats.chunks_written, stats.bytes_read, stats.chunks_read, stats.pauses)
        elif call == 34:
            for query in ("at_eof", "is_closing", "is_reading", "get_write_buffer_limits", "can_write_eof", "__repr__"):
                self.attempt(end, query)
        else:
            self.attempt(end, "get_write_buffer_size")

    def attempt(self, end: Any, name: str, *args: Any) -> Any:
        label = (self.names[id(end)], name, *[self.shown(argument) for argument in args])
        try:
            result = getattr(end, name)(*args)
        except (Exception, KeyboardInterrupt) as error:
            self.note(*label, "raised", type(error).__name__, str(error))
            return None
        self.note(*label, self.shown(result))
        return result

    def shown(self, value: Any) -> Any:
        if isinstance(value, memoryview):
            return ("view", brief(bytes(value)), value.readonly, value.format, value.ndim)
        if type(value) is bytes:
            the_sent = len(value) > 1 and self.sent.get(id(value)) is value  # of a single byte CPython has one object
            return ("bytes", brief(value), the_sent)
        if isinstance(value, asyncio.BaseProtocol):
            return type(value).__name__
        if type(value).__name__ == "PipeStatistics":
            return "statistics"
        if isinstance(value, list):
            return [self.shown(item) for item in value]
        return repr(value)

    # what calls back

    def protocol(self) -> Any:
        kind = self.choose(4)
        return (Streaming, Streaming, Viewing, Buffered)[kind](self)

    def callback(self, protocol: Any, name: str, *args: Any) -> Any:
        self.note("callback", protocol.label, name, *[self.shown(argument) for argument in args])
        if self.depth >= 3 or self.reactions > 400:
            return None
        self.depth += 1
        self.reactions += 1
        try:
            for _ in range(self.choose(3)):
                self.step()
        finally:
            self.depth -= 1
        self.note("callback over", protocol.label, name)
        raising = self.choose(60)
        if raising == 0:
            raise ValueError("the protocol's own")
        if raising == 1:
            raise OSError("the protocol's OSError")
        if raising == 2:
            raise KeyboardInterrupt
        return self.choose(2) == 0


def brief(data: bytes) -> str:
    """Runs of letters, each as letter and count. These scripts write nothing else."""
    return "".join(f"{chr(run[0])}{len(run)}" for run in (match.group() for match in RUNS.finditer(data)))


class Base:
    label = "?"

    def __init__(self, player: Player) -> None:
        self.player = player
        self.label = f"p{player.choose(1000)}"

    def connection_made(self, transport: Any) -> None:
        self.player.callback(self, "connection_made", self.player.names[id(transport)])

    def eof_received(self) -> Any:
        return self.player.callback(self, "eof_received")

    def connection_lost(self, error: Any) -> None:
        self.player.callback(self, "connection_lost", error)

    def pause_writing(self) -> None:
        self.player.callback(self, "pause_writing")

    def resume_writing(self) -> None:
        self.player.callback(self, "resume_writing")


class Streaming(Base, asyncio.Protocol):
    def data_received(self, data: Any) -> None:
        self.player.callback(self, "data_received", data)


class Viewing(Streaming):
    accepts_views = True

    def data_received(self, data: Any) -> None:
        self.player.views.append((data, bytes(data)))
        super().data_received(data)


class Buffered(Base, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint: int) -> Any:
        self.player.callback(self, "get_buffer", sizehint)
        self.buffer = (bytearray(8), bytearray(100), memoryview(bytearray(50)), bytearray(), b"no")[
            min(self.player.choose(40), 4) if self.player.choose(3) == 0 else self.player.choose(3)
        ]
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.player.note(bytes(self.buffer[:nbytes]))
        self.player.callback(self, "buffer_updated", nbytes)


def trace_of(twin: Any, choose: Choose) -> list[Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        player = Player(twin, choose)
        player.play()
        trace = player.trace
        trace.append([str(warning.message) for warning in caught])
    return trace


def compare(source: Callable[[], Choose]) -> int:
    """Play the script of `source` on both twins, assert equal traces, and give their length."""
    expected = trace_of(PYTHON, source())
    got = trace_of(COMPILED, source())
    for number, (left, right) in enumerate(zip(expected, got, strict=False)):
        if left != right:
            context = "\n".join(map(str, expected[max(0, number - 12) : number]))
            raise AssertionError(f"step {number}:\n{context}\npython: {left}\nc:      {right}")
    assert len(expected) == len(got)
    return len(expected)


@pytest.fixture(autouse=True)
def garbage_is_collected_afterwards():
    """When garbage is collected is no part of the contract, so not in the midst of a script."""
    gc.collect()
    gc.disable()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        while gc.collect():  # an end becomes garbage only after it has learned that its peer closed
            pass
    gc.enable()


@pytest.mark.skipif(COMPILED is None, reason="FASTPIPE_NO_EXTENSIONS: there is one twin")
@pytest.mark.parametrize("block", range(BLOCKS))
def test_random_scripts_have_the_same_trace_on_both_twins(block):
    for seed in range(block, SCRIPTS, BLOCKS):
        try:
            compare(lambda seed=seed: random.Random(seed).randrange)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {error}") from None


@pytest.mark.skipif(COMPILED is None, reason="FASTPIPE_NO_EXTENSIONS: there is one twin")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(st.integers(0, 1 << 16), max_size=400))
def test_written_scripts_have_the_same_trace_on_both_twins(script):
    def source() -> Choose:
        numbers = iter(script)
        return lambda n: next(numbers, 0) % n

    compare(source)


def test_every_call_and_callback_is_reached_by_the_scripts():
    seen = collections.Counter()
    for seed in range(60):
        for entry in trace_of(PYTHON, random.Random(seed).randrange):
            seen.update(word for word in entry if isinstance(word, str))
    callbacks = "connection_made data_received buffer_updated eof_received connection_lost pause_writing resume_writing"
    for word in f"{callbacks} PipeBusyError PipeClosedError PipeBrokenError handler".split():
        assert seen[word], word
