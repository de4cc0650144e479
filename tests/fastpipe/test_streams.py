"""Streams over a pipe are asyncio's streams: the same traces for the same arrivals, on both twins."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import importlib.util
import itertools
import random
import socket
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastpipe
from fastpipe import PipeBrokenError, PipeBusyError, _streams, open_pipe_streams, open_streams

from ..limits import scaled

Pair = tuple[tuple[Any, Any], tuple[Any, Any]]


def load_source() -> ModuleType:
    """The Python twin of the streams, also where the compiled one is imported."""
    spec = importlib.util.spec_from_file_location("streams_source", Path(fastpipe.__file__).with_name("_streams.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PYTHON = load_source()


@pytest.fixture
def streams(twin: ModuleType) -> ModuleType:
    """The streams that go with the pipe's twin."""
    return _streams if twin.__name__.endswith("_c") else PYTHON


@pytest.fixture
def open_pair(twin: ModuleType, streams: ModuleType) -> Callable[..., Pair]:
    """Does the same as open_pipe_streams, with one twin throughout."""

    def open_pair(limit: int = 65536, *, inline: bool = False) -> Pair:
        def wrap(end: Any) -> tuple[Any, Any]:
            reader = streams.PipeReader(limit, asyncio.get_running_loop(), not inline)
            end.set_protocol(reader)
            return reader, streams.PipeWriter(end, reader)

        first, second = twin.create_pipe(limit=limit, max_chunk=None, inline=inline)
        return wrap(first), wrap(second)

    return open_pair


async def close(*writers: Any) -> None:
    for writer in writers:
        writer.close()
    for writer in writers:
        await writer.wait_closed()


# ---- the same as asyncio's


class Valve:
    """The transport as a reader sees it: writes down when reading is paused."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def pause_reading(self) -> None:
        self.log.append("pause")

    def resume_reading(self) -> None:
        self.log.append("resume")


class Played:
    """One reader, driven by a script: what each read gave, and when reading was paused."""

    def __init__(self, reader: Any, feed: Any, eof: Any, lose: Any, valve: Valve) -> None:
        self.reader, self.valve = reader, valve
        self.feed, self.eof, self.lose = feed, eof, lose
        self.trace: list[Any] = []
        self.pending: asyncio.Task[Any] | None = None
        self.ended = False

    async def settle(self) -> None:
        for _ in range(2):
            await asyncio.sleep(0)
        if self.pending is not None and self.pending.done():
            try:
                outcome: Any = self.pending.result()
            except asyncio.IncompleteReadError as error:
                outcome = ("incomplete", error.partial, error.expected)
            except asyncio.LimitOverrunError as error:
                outcome = ("overrun", str(error), error.consumed)
            except Exception as error:
                outcome = (type(error), str(error))
            self.trace.append((type(outcome), outcome))
            self.pending = None

    async def play(self, step: tuple[Any, ...]) -> None:
        what, *args = step
        if what in ("feed", "eof", "lose"):
            self.ended = what != "feed"
            getattr(self, what)(*args)
        else:
            if self.pending is not None:
                self.pending.cancel()
                await asyncio.wait([self.pending])
                self.pending = None
                self.trace.append("cancelled")
            self.pending = asyncio.ensure_future(getattr(self.reader, what)(*args))
        await self.settle()
        self.trace.append((step[0], self.reader.at_eof(), None if self.ended else list(self.valve.log)))

    async def finish(self) -> None:
        if self.pending is not None:
            self.pending.cancel()
            await asyncio.wait([self.pending])


LIMIT = 16
pieces = st.binary(max_size=40) | st.text("a\nb;", max_size=40).map(str.encode)
steps = st.one_of(
    st.tuples(st.just("feed"), pieces),
    st.tuples(st.just("feed"), st.integers(1, 700).map(lambda n: b"ab;\n" * n)),
    st.tuples(st.just("read"), st.integers(0, 60)),
    st.tuples(st.just("readexactly"), st.integers(-1, 80)),
    st.tuples(st.just("readline")),
    st.tuples(st.just("readuntil"), st.sampled_from([b"\n", b";", b"a;", b"ab;\n", b"\na\n", b""])),
)
endings = st.one_of(st.just(("eof",)), st.just(("lose", None)), st.just(("lose", ConnectionResetError("gone"))))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(steps, max_size=30), ending=endings, after=st.lists(steps, max_size=6))
def test_every_script_gives_the_trace_of_asyncio(streams: ModuleType, script: Any, ending: Any, after: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        valve, our_valve = Valve(), Valve()
        theirs: Any = asyncio.StreamReader(LIMIT, loop)
        theirs.set_transport(valve)

        def lose(error: Exception | None) -> None:
            if error is None:
                theirs.feed_eof()
            else:
                theirs.set_exception(error)

        ours = streams.PipeReader(LIMIT, loop)
        ours.connection_made(our_valve)
        asyncios = Played(theirs, theirs.feed_data, theirs.feed_eof, lose, valve)
        pipes = Played(
            ours, lambda data: data and ours.data_received(data), ours.eof_received, ours.connection_lost, our_valve
        )
        # no more arrives after the end
        for step in (*script, ending, *(step for step in after if step[0] != "feed")):
            await asyncios.play(step)
            await pipes.play(step)
            assert pipes.trace == asyncios.trace
        await asyncios.finish()
        await pipes.finish()

    asyncio.run(main())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text("abcx", max_size=60).map(str.encode),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    separators=st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=4),
)
def test_the_separator_that_ends_first_wins(streams: ModuleType, text: bytes, cuts: Any, separators: Any) -> None:
    ends = [text.find(separator) + len(separator) for separator in separators if separator in text]

    async def main() -> None:
        reader = streams.PipeReader(1000, asyncio.get_running_loop())
        waiting = asyncio.ensure_future(reader.readuntil(tuple(separators)))
        await asyncio.sleep(0)
        for start, stop in itertools.pairwise(sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})):
            reader.data_received(text[start:stop])
            await asyncio.sleep(0)
        reader.eof_received()
        if ends:
            assert await waiting == text[: min(ends)]
        else:
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await waiting
            assert caught.value.partial == text

    asyncio.run(main())


async def test_a_separator_is_at_least_a_byte(open_pair: Any) -> None:
    (reader, writer), (_, other) = open_pair()
    for separators, text in ((b"", "one-byte string"), ((b"a", b""), "one-byte string"), ((), "at least one element")):
        with pytest.raises(ValueError, match=text):
            await reader.readuntil(separators)
    await close(writer, other)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_what_sockets_carry_the_pipe_carries(open_pair: Any, seed: int) -> None:
    """A whole conversation over a socketpair and over a pipe gives the same results."""
    rng = random.Random(seed)
    body = b"".join(rng.choice([b"line\n", b"x" * rng.randrange(300), b"a;b;", b"\r\n"]) for _ in range(400))
    plan = [
        (rng.choice(["readexactly", "readline", "readuntil"]), rng.randrange(1, 900), rng.choice([b";", b"\r\n"]))
        for _ in range(60)
    ]
    cuts = sorted(rng.randrange(len(body)) for _ in range(50))

    async def converse(pair: Any) -> list[Any]:
        (reader, writer), (their_reader, their_writer) = pair

        async def serve() -> None:
            for start, stop in itertools.pairwise([0, *cuts, len(body)]):
                their_writer.write(body[start:stop])
                await their_writer.drain()
            their_writer.write_eof()
            assert await their_reader.read() == b"done"

        serving = asyncio.ensure_future(serve())
        got: list[Any] = []
        for name, n, separator in plan:
            args = {"readexactly": [n], "readline": [], "readuntil": [separator]}[name]
            try:
                got.append(await getattr(reader, name)(*args))
            except asyncio.IncompleteReadError as error:
                got.append(("incomplete", error.partial))
        got.append(await reader.read())
        assert reader.at_eof()
        writer.write(b"done")
        writer.write_eof()
        await serving
        await close(writer, their_writer)
        return got

    near, far = socket.socketpair()
    over_sockets = await converse(
        (await asyncio.open_unix_connection(sock=near), await asyncio.open_unix_connection(sock=far))
    )
    assert await converse(open_pair()) == over_sockets


async def pump(rng: random.Random, writer: Any, sent: bytearray) -> None:
    """Writes of all sizes and kinds, some drained, then EOF."""
    for _ in range(rng.randrange(40)):
        data = rng.randbytes(rng.choice([1, 3, 100, 300, 5000, 100_000]))
        sent += data
        writer.write(rng.choice([data, bytearray(data), memoryview(data)]))
        if rng.random() < 0.7:
            await writer.drain()
    writer.write_eof()


async def suck(rng: random.Random, reader: Any, got: bytearray) -> None:
    """Reads of all kinds, many of them cancelled, to EOF."""
    buffer = bytearray(5000)
    while not reader.at_eof():
        kind = rng.randrange(5)
        try:
            if kind == 0:
                got += await reader.read(rng.randrange(1, 100_000))
            elif kind == 1:
                got += await reader.readuntil(rng.choice([b"\n", b"ab", (b"a", b"bc")]))
            elif kind == 2:
                got += buffer[: await reader.readinto(buffer)]
            elif kind == 3:
                async with asyncio.timeout(rng.choice([0, 0.0001])):
                    got += await reader.readexactly(rng.randrange(1, 500_000))
            else:
                task = asyncio.ensure_future(reader.read(1000))
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                task.cancel()
                got += await task
        except asyncio.IncompleteReadError as error:
            got += error.partial
        except asyncio.LimitOverrunError as error:
            got += await reader.readexactly(error.consumed)
        except (TimeoutError, asyncio.CancelledError):
            continue


@pytest.mark.parametrize("seed", range(8))
async def test_conversations_at_random_lose_nothing(open_pair: Any, seed: int) -> None:
    rng = random.Random(seed)
    (reader, writer), (their_reader, their_writer) = open_pair(limit=rng.choice([1, 100, 4096, 65536]))
    sent, got, their_sent, their_got = (bytearray() for _ in range(4))
    await asyncio.gather(
        pump(rng, writer, sent),
        suck(rng, their_reader, their_got),
        pump(rng, their_writer, their_sent),
        suck(rng, reader, got),
    )
    assert their_got == sent
    assert got == their_sent
    await close(writer, their_writer)


# ---- by reference, and without loss


async def test_bytes_arrive_as_the_very_object(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair()
    for size in (1, 64, 65536, 1 << 20):
        sent = bytes(size)
        writer.write(sent)
        assert await reader.readexactly(size) is sent
        writer.write(sent)
        assert await reader.read(size) is sent
    await close(writer, other)


async def test_small_writes_come_together(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair()
    data = bytes(i % 251 for i in range(40000))
    for i in range(len(data)):
        writer.write(data[i : i + 1])
    await asyncio.sleep(0.01)
    assert await reader.readexactly(30000) == data[:30000]
    writer.write(b"end")
    assert await reader.readexactly(10003) == data[30000:] + b"end"
    await close(writer, other)


async def test_readinto_fills_what_it_is_given(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair()
    buffer = bytearray(10)
    waiting = asyncio.ensure_future(reader.readinto(buffer))
    await asyncio.sleep(0)
    writer.writelines([b"0123", b"4567", bytearray(b"89abc")])
    first = await waiting
    assert 1 <= first <= 10
    view = memoryview(buffer)
    while first < 10:
        first += await reader.readinto(view[first:])
    assert buffer == b"0123456789"
    words = memoryview(bytearray(8)).cast("I")
    assert await reader.readinto(words) == 3
    assert bytes(words)[:3] == b"abc"
    assert await reader.readinto(bytearray()) == 0
    for bad in (b"immutable", 5, memoryview(bytearray(4))[::2]):
        with pytest.raises(TypeError):
            await reader.readinto(bad)
    writer.write_eof()
    assert await reader.readinto(buffer) == 0
    assert reader.at_eof()
    view.release()
    buffer.append(0)  # no view holds the buffer
    await close(writer, other)


@pytest.mark.parametrize("name", ["read", "readexactly", "readuntil", "readline", "readinto", "read_all"])
async def test_a_cancelled_read_loses_nothing(open_pair: Any, name: str) -> None:
    (_, writer), (reader, other) = open_pair()

    def begin() -> Any:
        if name == "readinto":
            return reader.readinto(bytearray(20))
        if name == "read_all":
            return reader.read()
        return getattr(reader, name)(*{"read": [20], "readexactly": [20], "readuntil": [b"\n"], "readline": []}[name])

    if name not in ("read", "readinto"):
        writer.write(b"abc")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(begin(), 0.01)
    task = asyncio.ensure_future(begin())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    writer.write(b"d")
    if name not in ("read", "readinto"):  # these two may have it before the cancel
        await asyncio.sleep(0)
        task.cancel()
    else:
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    writer.write(b"ef")
    writer.write_eof()
    assert await reader.read() == (b"def" if name in ("read", "readinto") else b"abcdef")
    await close(writer, other)


async def test_cancelled_after_it_was_woken(open_pair: Any) -> None:
    """The loop wakes the reader here, so there is a moment in between.

    An inline pipe delivers on the writer's stack.
    """
    (_, writer), (reader, other) = open_pair(inline=True)
    await asyncio.sleep(0)
    task = asyncio.ensure_future(reader.read(10))
    await asyncio.sleep(0)
    writer.write(b"kept")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await reader.read(10) == b"kept"
    await close(writer, other)


async def test_two_reads_at_once_are_refused(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair()
    first = asyncio.ensure_future(reader.readexactly(5))
    await asyncio.sleep(0)
    for again in (reader.read(1), reader.readline(), reader.readexactly(9), reader.readinto(bytearray(1))):
        with pytest.raises(PipeBusyError, match="already waiting for incoming data"):
            await again
    writer.write(b"hello")
    assert await first == b"hello"
    await close(writer, other)


@pytest.mark.parametrize("limit", [2**62, 2**63 - 1, 2**63, 2**80])
async def test_a_limit_beyond_every_integer_of_the_machine_is_none(
    twin: ModuleType, streams: ModuleType, limit: int
) -> None:
    near, far = twin.create_pipe(max_chunk=None)
    reader = streams.PipeReader(limit, asyncio.get_running_loop(), True)
    near.set_protocol(reader)
    far.write(b"a" * 300_000)
    far.write(b"b\nand on")
    async with asyncio.timeout(10):
        assert await reader.readline() == b"a" * 300_000 + b"b\n"
        far.write(b";")
        assert await reader.readuntil(b";") == b"and on;"
    assert near.is_reading()
    near.abort()


async def test_reading_goes_on_past_the_limit_when_asked_to(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair(limit=100)
    data = bytes(i % 256 for i in range(100_000))

    async def send() -> None:
        for start in range(0, len(data), 50):
            writer.write(data[start : start + 50])
            await writer.drain()
        writer.write_eof()

    sending = asyncio.ensure_future(send())
    assert await reader.readexactly(60_000) == data[:60_000]
    assert await reader.read() == data[60_000:]
    await sending
    await close(writer, other)


async def test_what_nobody_reads_stops_the_writer(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair(limit=1000)
    written = 0

    async def send() -> None:
        nonlocal written
        while written < 100_000:
            writer.write(bytes(100))
            written += 100
            await writer.drain()

    sending = asyncio.ensure_future(send())
    for _ in range(300):
        await asyncio.sleep(0)
    assert 2000 < written <= 4000  # twice the limit read ahead, the limit in the pipe, and one write
    waiting = asyncio.ensure_future(writer.drain())
    await asyncio.sleep(0)
    waiting.cancel()
    assert len(await reader.readexactly(100_000)) == 100_000
    await sending
    await close(writer, other)


# ---- endings


async def test_lines_until_the_end(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair()
    writer.write(b"one\ntwo\n\nlast")
    writer.close()
    assert [line async for line in reader] == [b"one\n", b"two\n", b"\n", b"last"]
    assert await reader.readline() == b""
    await close(writer, other)


async def test_an_abort_is_heard_everywhere(open_pair: Any) -> None:
    (reader, writer), (_, other) = open_pair(limit=10)
    writer.write(bytes(1000))
    await asyncio.sleep(0.01)
    writer.write(bytes(1000))  # the bytes read ahead exceed their limit, so these stay in the pipe
    reading = asyncio.ensure_future(reader.read(1))
    draining = asyncio.ensure_future(writer.drain())
    closing = asyncio.ensure_future(writer.wait_closed())
    await asyncio.sleep(0.01)
    assert not draining.done()
    other.transport.abort()
    for waiting in (reading, draining, closing):
        with pytest.raises(PipeBrokenError):
            await waiting
    with pytest.raises(PipeBrokenError):
        await reader.read(1)
    with pytest.raises(PipeBrokenError):
        await writer.drain()
    with pytest.raises(PipeBrokenError):
        await writer.wait_closed()
    assert isinstance(reader.exception(), ConnectionResetError)
    await other.wait_closed()


async def test_drain_after_the_close_says_so(open_pair: Any) -> None:
    (_, writer), (_, other) = open_pair()
    writer.close()
    assert writer.is_closing()
    with pytest.raises(ConnectionResetError, match="Connection lost"):
        await writer.drain()
    await close(other, writer)


async def test_half_closed_it_still_reads(open_pair: Any) -> None:
    (reader, writer), (their_reader, their_writer) = open_pair()
    assert writer.can_write_eof()
    writer.write_eof()
    assert await their_reader.read() == b""
    their_writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"
    with pytest.raises(RuntimeError):
        writer.write(b"x")
    await close(writer, their_writer)


async def test_one_cancelled_wait_closed_leaves_the_other(open_pair: Any) -> None:
    (_, writer), (_, other) = open_pair()
    first, second = (asyncio.ensure_future(writer.wait_closed()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    assert not second.done()
    await close(writer, other)
    await second


async def test_a_dropped_writer_warns_and_closes(open_pair: Any) -> None:
    (reader, writer), (their_reader, their_writer) = open_pair()
    their_writer.write(b"bye")
    with pytest.warns(ResourceWarning, match="unclosed <fastpipe.PipeWriter"):
        del their_writer
    assert await reader.read() == b"bye"
    del their_reader
    await close(writer)


async def test_a_forgotten_pair_is_collected(open_pair: Any) -> None:
    pair = open_pair()
    reader = pair[0][0]
    waiting = asyncio.ensure_future(reader.read(1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pair, reader, waiting
        gc.collect()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
    assert caught
    assert all(issubclass(warning.category, ResourceWarning) for warning in caught)


# ---- woken in the pipe's turn


async def test_a_reader_goes_on_in_the_turn_that_brings_its_bytes(open_pair: Any) -> None:
    (reader, writer), (their_reader, their_writer) = open_pair()
    await asyncio.sleep(0)

    async def echo() -> None:
        while data := await their_reader.read(100):
            their_writer.write(data)

    echoing = asyncio.ensure_future(echo())
    await asyncio.sleep(0)
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        handle[0] = asyncio.get_running_loop().call_soon(count)

    handle = [asyncio.get_running_loop().call_soon(count)]
    for _ in range(100):
        writer.write(b"ping")
        await reader.read(100)
    handle[0].cancel()
    assert 2 <= turns < 30
    await close(writer)
    await echoing
    await close(their_writer)


async def test_a_busy_pair_of_tasks_lets_timers_have_their_turn(open_pair: Any) -> None:
    (reader, writer), (their_reader, their_writer) = open_pair()
    stop = False

    async def bounce(reader: Any, writer: Any) -> int:
        n = 0
        while not stop and await reader.read(100):
            writer.write(b"x")
            n += 1
        writer.write_eof()
        return n

    both = [asyncio.ensure_future(bounce(*ends)) for ends in ((reader, writer), (their_reader, their_writer))]
    writer.write(b"x")
    loop = asyncio.get_running_loop()
    late = []
    for _ in range(20):
        due = loop.time() + 0.005
        await asyncio.sleep(0.005)
        late.append(loop.time() - due)
    stop = True
    assert sum(await asyncio.gather(*both)) > 100
    assert sorted(late)[10] < scaled(0.05)
    await close(writer, their_writer)


async def test_a_task_goes_on_in_its_own_context(open_pair: Any) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outer")
    (_, writer), (reader, other) = open_pair()

    async def read_in(value: str) -> str:
        variable.set(value)
        await reader.read(1)
        task = asyncio.current_task()
        assert task is not None
        assert task.get_name() == value
        return variable.get()

    task = asyncio.create_task(read_in("inner"), name="inner")
    await asyncio.sleep(0)
    variable.set("writer")
    writer.write(b"x")
    assert await task == "inner"
    assert variable.get() == "writer"
    await close(writer, other)


async def test_a_reader_keeps_no_task_that_is_done(open_pair: Any) -> None:
    (_, writer), (reader, other) = open_pair()
    task = asyncio.ensure_future(reader.read(1))
    await asyncio.sleep(0)
    writer.write(b"x")
    assert await task == b"x"
    watched = weakref.ref(task)
    del task
    await asyncio.sleep(0)
    gc.collect()
    assert watched() is None
    await close(writer, other)


async def test_an_inline_pipe_wakes_by_the_loop(open_pair: Any) -> None:
    (reader, writer), (their_reader, their_writer) = open_pair(inline=True)

    async def echo() -> None:
        while data := await their_reader.read(100):
            their_writer.write(data)
        their_writer.close()

    echoing = asyncio.ensure_future(echo())
    for _ in range(200):
        writer.write(b"ping")
        assert await reader.read(100) == b"ping"
    writer.close()
    await echoing
    await close(writer, their_writer)


# ---- the door


async def test_pairs_come_at_once_or_awaited() -> None:
    (reader, writer), (_, other) = open_pipe_streams()
    other.write(b"x")
    assert await reader.read() if other.close() else await reader.read(1) == b"x"
    await close(writer, other)
    (reader, writer), (_, other) = await open_pipe_streams(limit=10)
    other.write(b"0123456789a\n")
    with pytest.raises(ValueError, match="longer than limit"):
        await reader.readline()
    assert "PipeReader 0 bytes" in repr(reader)
    assert repr(writer).startswith("<fastpipe.PipeWriter transport=<fastpipe.PipeEnd open")
    assert writer.get_extra_info("peername") == ""
    await close(writer, other)
    with pytest.raises(ValueError, match="Limit cannot be <= 0"):
        open_pipe_streams(limit=0)


async def test_streams_over_an_end_that_one_has() -> None:
    first, second = fastpipe.create_pipe()
    first.write(b"early ")
    reader, writer = open_streams(second)
    first.write(b"bird")
    first.write_eof()
    assert await reader.read() == b"early bird"
    first.close()
    await close(writer)


def test_streams_need_a_running_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        open_pipe_streams()
