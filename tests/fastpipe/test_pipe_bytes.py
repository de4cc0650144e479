"""Zero-copy, by hand and by protocol: which object arrives, what a view is worth, what is copied and when."""

from __future__ import annotations

import array
import asyncio
import gc
import random

import pytest

BLOB = bytes(range(256)) * 1024  # 256 KiB


@pytest.fixture
def pair(twin):
    made = []

    def make(**options):
        made.extend(twin.create_pipe(**options))
        return made[-2:]

    yield make
    for end in made:
        end.abort()


# ---- by hand, without any event loop


def test_by_hand_no_loop_is_needed(pair):
    a, b = pair()
    a.write(b"hello ")
    a.write(b"world")
    assert a.get_write_buffer_size() == 11
    assert b.peek() == b"hello "
    b.consume(2)
    assert b.peek() == b"llo "
    b.consume(6)
    assert b.read(1) == b"r"
    assert b.read() == b"ld"
    assert (b.peek(), b.read(), b.readinto(bytearray(3)), b.at_eof()) == (b"", b"", 0, False)
    a.write(b"last")
    a.write_eof()
    assert not b.at_eof()
    assert b.read(-1) == b"last"
    assert b.at_eof()
    assert (b.peek(), b.read(), b.readinto(bytearray(3))) == (b"", b"", 0)
    b.write(b"the other way still works")
    assert a.read() == b"the other way still works"


def test_what_is_written_whole_is_read_as_the_very_object(pair):
    a, b = pair()
    blob = bytes(BLOB)
    a.write(blob)
    assert b.peek().obj is blob
    assert b.read() is blob
    a.write(memoryview(blob))
    assert b.read(len(blob)) is blob


def test_read_joins_what_waits(pair):
    a, b = pair()
    a.writelines([b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b""])
    assert b.read(3) == b"abc"
    assert b.read(1000) == b"def"


@pytest.mark.parametrize("n", [-1, 4, 1 << 70])
def test_consume_takes_only_what_is_there(pair, n):
    a, b = pair()
    a.write(b"abc")
    with pytest.raises(ValueError, match=f"cannot consume {n} bytes, 3 are waiting"):
        b.consume(n)
    assert b.read() == b"abc"
    b.consume(0)


def test_counts_must_be_integers(pair):
    _, b = pair()
    for call in (b.consume, b.read):
        with pytest.raises(TypeError, match="'float' object cannot be interpreted as an integer"):
            call(1.0)


def test_readinto_fills_from_several_writes(pair):
    a, b = pair()
    a.writelines([b"abc", b"def", b"ghi"])
    target = bytearray(8)
    assert b.readinto(memoryview(target)[1:6]) == 5
    assert target == b"\0abcde\0\0"
    numbers = array.array("H", [0, 0])
    assert b.readinto(numbers) == 4
    assert numbers.tobytes() == b"fghi"


def test_readinto_refuses_what_it_cannot_fill(pair):
    a, b = pair()
    a.write(b"abc")
    with pytest.raises(TypeError, match="buffer must be a writable bytes-like object, not 'bytes'"):
        b.readinto(b"const")
    with pytest.raises(TypeError, match="buffer must be a writable bytes-like object, not 'int'"):
        b.readinto(7)
    with pytest.raises(TypeError, match="buffer must be C-contiguous"):
        b.readinto(memoryview(bytearray(8))[::2])
    assert b.read() == b"abc"


# ---- what is kept and what is copied


@pytest.mark.parametrize(
    "make",
    [bytearray, lambda data: memoryview(bytearray(data)), lambda data: array.array("B", data)],
    ids=["bytearray", "view of bytearray", "array"],
)
def test_what_may_change_is_copied_before_write_returns(pair, make):
    a, b = pair()
    data = make(b"before")
    a.write(data)
    memoryview(data)[:] = b"after!"
    if isinstance(data, bytearray):
        data.clear()  # nor is it kept exported
    assert b.read() == b"before"


def test_a_read_only_view_of_what_may_change_is_copied(pair):
    a, b = pair()
    data = bytearray(b"before")
    a.write(memoryview(data).toreadonly())
    data[:] = b"after!"
    assert b.read() == b"before"


def test_views_are_flattened(pair):
    a, b = pair()
    blob = bytes(range(24))
    a.write(memoryview(blob).cast("I"))
    assert a.get_write_buffer_size() == 24
    assert b.peek().obj is blob
    assert (b.peek().format, b.peek().ndim, len(b.peek())) == ("B", 1, 24)
    assert b.read() is blob
    a.write(memoryview(blob).cast("B", [4, 6]))
    assert b.read() is blob
    a.write(memoryview(blob)[::2])
    assert b.read() == blob[::2]
    a.write(memoryview(b"").cast("B"))
    a.write(b"")
    assert a.get_write_buffer_size() == 0


def test_the_writer_may_release_its_view(pair):
    a, b = pair()
    view = memoryview(BLOB)[10:20]
    a.write(view)
    view.release()
    assert b.read() == BLOB[10:20]
    with pytest.raises(ValueError, match="released"):
        a.write(view)


def test_subclasses_of_bytes_arrive_as_exact_bytes(pair):
    class Odd(bytes):
        def __bytes__(self):
            return b"something else"

    a, b = pair()
    a.write(Odd(b"as stored"))
    data = b.read()
    assert type(data) is bytes
    assert data == b"as stored"


def test_views_stay_valid_and_unchanged_however_long_they_are_held(pair):
    a, b = pair()
    numbers = random.Random(3)
    held = []
    for _ in range(500):
        a.write(bytearray(numbers.randbytes(numbers.randrange(1, 2000))))
        view = b.peek()
        held.append((view, bytes(view)))
        b.consume(numbers.randrange(len(view) + 1))
    gc.collect()
    assert all(view == content for view, content in held)
    assert all(view.readonly for view, _ in held)


# ---- by protocol


async def test_data_received_gets_the_very_object(pair, recorder, run_turns):
    a, b = pair()
    b.set_protocol(recorder())
    blob = bytes(BLOB)
    a.write(blob)
    a.write(memoryview(blob))
    a.write(memoryview(blob)[1:])
    a.write(bytearray(b"copied"))
    await run_turns()
    received = [entry[1] for entry in b.get_protocol().log[1:]]
    assert received[0] is blob
    assert received[1] is blob
    assert received[2:] == [blob[1:], b"copied"]
    assert all(type(data) is bytes for data in received)


@pytest.mark.parametrize("max_chunk", [1, 7, 262144, None])
async def test_no_delivery_exceeds_max_chunk(pair, recorder, max_chunk):
    a, b = pair(max_chunk=max_chunk)
    protocol = recorder()
    b.set_protocol(protocol)
    sent = BLOB[:1000] if max_chunk in (1, 7) else bytes(BLOB + BLOB[:5])
    a.write(sent)
    while len(protocol.received) < len(sent):  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert protocol.received == sent
    deliveries = [entry[1] for entry in protocol.log[1:]]
    assert max(map(len, deliveries)) <= (max_chunk or len(sent))
    assert max_chunk or deliveries[0] is sent


async def test_protocols_that_accept_views_get_views(twin, pair, recorder, run_turns):
    a, b = pair(max_chunk=100)
    protocol = recorder()
    protocol.accepts_views = True
    b.set_protocol(protocol)
    blob = bytes(BLOB[:250])
    chunk = twin.Chunk(64)
    chunk.writable()[:4] = b"view"
    a.write(blob)
    a.write(chunk.commit(4))
    a.write(bytearray(b"copy"))
    await run_turns()
    views = [entry[1] for entry in protocol.log[1:]]
    assert [type(view) for view in views] == [memoryview] * 5
    assert [view.obj is blob for view in views[:3]] == [True] * 3
    assert b"".join(views[:3]) == blob
    assert views[3:] == [b"view", b"copy"]
    assert all(view.readonly for view in views)


async def test_buffered_protocols_are_filled_from_several_writes(pair, buffer_recorder, run_turns):
    a, b = pair(max_chunk=8)
    protocol = buffer_recorder(size=100)
    b.set_protocol(protocol)
    a.writelines([b"abc", b"def", b"ghijkl"])
    await run_turns()
    assert protocol.received == b"abcdefghijkl"
    assert protocol.log[1:] == [("get_buffer", 8), ("buffer_updated", 8), ("get_buffer", 4), ("buffer_updated", 4)]


@pytest.mark.parametrize("buffer", [bytearray(), b"const", "text", memoryview(bytearray(8))[::2]])
async def test_a_buffer_that_cannot_be_filled_is_fatal(pair, buffer_recorder, run_turns, buffer):
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    a, b = pair()
    protocol = buffer_recorder(get_buffer=lambda *_: buffer)
    b.set_protocol(protocol)
    a.write(b"x")
    await run_turns()
    assert [context["message"] for context in heard] == ["Fatal error: protocol.get_buffer() call failed."]
    assert protocol.log[-1] == ("connection_lost", heard[0]["exception"])


async def test_set_protocol_in_mid_stream_loses_nothing(pair, recorder, run_turns):
    a, b = pair(max_chunk=3)
    second = recorder()
    first = recorder(data_received=lambda p, d: p.transport.set_protocol(second))
    b.set_protocol(first)
    a.write(b"abcdef")
    await run_turns()
    assert first.log == [("connection_made",), ("data_received", b"abc")]
    assert second.log == [("data_received", b"def")]
    b.set_protocol(None)
    a.write(b"by hand")
    await run_turns()
    assert b.read() == b"by hand"


# ---- chunks


def filled(chunk, data: bytes) -> memoryview:
    with chunk.writable() as space:
        space[: len(data)] = data
    return chunk.commit(len(data))


def test_a_chunk_is_read_only_behind_what_it_receives(twin):
    chunk = twin.Chunk(10)
    first = filled(chunk, b"first")
    second = filled(chunk, b"secon")
    assert (first, second) == (b"first", b"secon")
    assert first.readonly
    with pytest.raises(TypeError):
        first[0] = 0
    assert (chunk.size, chunk.filled, len(chunk), bytes(chunk)) == (10, 10, 10, b"firstsecon")
    assert chunk.view(3, 7) == b"stse"
    with pytest.raises(ValueError, match="cannot commit 1 bytes, only 0 are free"):
        chunk.commit(1)
    with pytest.raises(ValueError, match="at least 1 byte, not 0"):
        twin.Chunk(0)
    assert repr(chunk) == "<fastpipe.Chunk 10 of 10 bytes>"


def test_a_chunk_is_in_use_until_its_last_view_has_gone(twin):
    chunk = twin.Chunk(10)
    assert not chunk.in_use
    view = filled(chunk, b"0123456789")
    part = view[2:4][1:]
    view.release()
    assert chunk.in_use, "a slice of a view is a view"
    with pytest.raises(BufferError, match="a view of this Chunk is alive"):
        chunk.clear()
    del view, part
    assert not chunk.in_use
    chunk.clear()
    space = chunk.writable()
    assert len(space) == 10
    assert chunk.in_use
    del space
    assert not chunk.in_use


def test_a_chunk_counts_its_views_where_the_collector_takes_them(twin):
    chunk = twin.Chunk(10)
    cycle = [chunk.writable(), chunk.view()]
    cycle.append(cycle)
    del cycle
    assert chunk.in_use
    gc.collect()
    assert not chunk.in_use


def test_views_of_a_chunk_go_through_by_reference(twin, pair):
    a, b = pair()
    chunk = twin.Chunk(100)
    view = filled(chunk, b"0123456789")
    base = view.obj
    a.write(view[2:])
    a.write(chunk)
    del view
    assert chunk.in_use, "what waits in the pipe is a view"
    assert b.peek().obj is base
    b.consume(1)
    assert b.peek() == b"3456789"
    assert b.read() == b"34567890123456789"
    assert not chunk.in_use


def test_what_is_still_written_into_a_chunk_is_copied(twin, pair):
    a, b = pair()
    chunk = twin.Chunk(4)
    space = chunk.writable()
    space[:] = b"abcd"
    a.write(space)
    space[:] = b"wxyz"
    assert b.read() == b"abcd"


def test_a_pool_reuses_a_chunk_only_when_its_last_view_has_gone(twin, pair):
    a, b = pair()
    pool = twin.ChunkPool(chunk_bytes=16, spare=2)
    chunk = pool.take()
    a.write(filled(chunk, b"in the pipe"))
    pool.give_back(chunk)
    other = pool.take()
    assert other is not chunk
    view = b.peek()
    b.consume(len(view))
    assert pool.take() is not chunk, "the view that was handed out lives"
    assert view == b"in the pipe"
    del view
    assert pool.take() is chunk
    assert chunk.filled == 0
    with pytest.raises(ValueError, match="a pool has"):
        twin.ChunkPool(0)


def test_a_pool_keeps_no_more_than_its_spares(twin):
    pool = twin.ChunkPool(16, spare=1)
    first, second = pool.take(), pool.take()
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take() is second
    assert pool.take() is not first
