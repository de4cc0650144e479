"""Backpressure, inline delivery, fairness, garbage, threads, closed loops, and a pipe's reports about itself."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import socket
import subprocess
import sys
import threading
import time
import weakref

import pytest

from fastpipe import PipeBrokenError, PipeClosedError, PipeError


async def turns(n: int = 3) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def ended(*ends) -> None:
    for end in ends:
        end.abort()
    await turns()


def forget(holder: list) -> None:
    holder.clear()
    gc.collect()


# ---- backpressure


async def test_a_writer_is_paused_above_high_and_resumed_at_low(twin, recorder):
    a, b = twin.create_pipe(limit=100)
    writer, reader = recorder(), recorder()
    a.set_protocol(writer)
    b.set_protocol(reader)
    await turns()
    b.pause_reading()
    a.write(bytes(100))
    assert writer.calls == ["connection_made"], "the mark itself is not above it"
    a.write(b"x")
    assert writer.calls == ["connection_made", "pause_writing"], "inside the write, as in asyncio"
    a.write(b"x")
    assert a.get_write_buffer_size() == 102
    b.set_protocol(None)
    b.consume(76)
    await turns()
    assert writer.calls[2:] == [], "26 left"
    b.consume(1)
    assert writer.calls[2:] == []
    await turns()
    assert writer.calls[2:] == ["resume_writing"]
    await ended(a, b)


async def test_limit_zero_pauses_for_any_byte(twin, recorder):
    a, b = twin.create_pipe(limit=0)
    writer = recorder()
    a.set_protocol(writer)
    await turns()
    assert a.get_write_buffer_limits() == (0, 0)
    a.write(b"x")
    assert writer.calls[-1] == "pause_writing"
    b.read()
    await turns()
    assert writer.calls[-1] == "resume_writing"
    await ended(a, b)


async def test_a_huge_limit_never_pauses(twin, recorder):
    a, b = twin.create_pipe(limit=sys.maxsize)
    writer = recorder()
    a.set_protocol(writer)
    await turns()
    a.writelines([bytes(1 << 20)] * 64)
    assert writer.calls == ["connection_made"]
    await ended(a, b)


async def test_what_was_written_before_set_protocol_pauses_after_connection_made(twin, recorder):
    a, b = twin.create_pipe(limit=1)
    a.write(b"xx")
    writer = recorder()
    a.set_protocol(writer)
    await turns()
    assert writer.calls == ["connection_made", "pause_writing"]
    await ended(a, b)


async def test_limits_default_as_asyncio_does(twin, recorder):
    a, b = twin.create_pipe()
    for arguments, expected in [
        ({}, (16384, 65536)),
        ({"high": 100}, (25, 100)),
        ({"low": 100}, (100, 400)),
        ({"high": 7, "low": 3}, (3, 7)),
        ({"high": 0}, (0, 0)),
    ]:
        a.set_write_buffer_limits(**arguments)
        assert a.get_write_buffer_limits() == expected
    with pytest.raises(ValueError, match=r"high \(1\) must be >= low \(2\) must be >= 0"):
        a.set_write_buffer_limits(1, 2)
    writer = recorder()
    a.set_protocol(writer)
    await turns()
    a.write(b"xxx")
    assert writer.calls == ["connection_made", "pause_writing"]
    a.set_write_buffer_limits(100)
    await turns()
    assert writer.calls[-1] == "resume_writing", "the low mark has risen above what waits"
    a.set_write_buffer_limits(2)
    assert writer.calls[-1] == "pause_writing"
    await ended(a, b)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"limit": -1}, ValueError),
        ({"limit": sys.maxsize + 1}, ValueError),
        ({"limit": "1"}, TypeError),
        ({"limit": 1.5}, TypeError),
        ({"max_chunk": 0}, ValueError),
        ({"max_chunk": "1"}, TypeError),
    ],
)
def test_create_pipe_checks_its_arguments(twin, options, error):
    with pytest.raises(error):
        twin.create_pipe(**options)
    with pytest.raises(TypeError, match="made by create_pipe"):
        twin.PipeEnd()


async def test_a_writer_whose_peer_closed_is_resumed_and_may_go_on(twin, recorder):
    a, b = twin.create_pipe(limit=1)
    writer = recorder(eof_received=lambda *_: True)
    a.set_protocol(writer)
    await turns()
    a.write(b"xx")
    b.close()
    await turns()
    assert writer.calls == ["connection_made", "pause_writing", "resume_writing", "eof_received"]
    a.write(b"into nothing")
    await turns()
    assert writer.calls[-1] == "connection_lost"
    assert isinstance(writer.log[-1][1], PipeBrokenError)


async def test_a_write_into_a_closed_peer_breaks_after_what_the_peer_had_sent(twin, recorder):
    a, b = twin.create_pipe()
    protocol = recorder()
    a.set_protocol(protocol)
    await turns()
    b.write(b"the answer")
    b.close()
    a.write(b"the next question")
    await turns()
    assert protocol.calls == ["connection_made", "data_received", "connection_lost"]
    assert isinstance(protocol.log[-1][1], PipeBrokenError)


# ---- inline


async def test_inline_delivers_within_write(twin, recorder):
    a, b = twin.create_pipe(inline=True)
    reader = recorder()
    b.set_protocol(reader)
    a.write(b"early")
    assert reader.log == [], "connection_made comes first"
    await turns()
    a.write(b"now")
    assert reader.log[1:] == [("data_received", b"early"), ("data_received", b"now")]
    a.write_eof()
    assert reader.calls[-1] == "data_received", "eof_received is scheduled always"
    await turns()
    assert reader.calls[-2:] == ["eof_received", "connection_lost"]
    await ended(a, b)


async def test_inline_bytes_wait_until_the_receivers_callback_returns(twin, recorder):
    a, b = twin.create_pipe(inline=True)
    log = []

    def echo(name):
        def received(protocol, data):
            if len(data) < 4:
                protocol.transport.write(data + b".")
            log.append(f"{name} has written")

        return received

    a.set_protocol(recorder("a", log, data_received=echo("a")))
    b.set_protocol(recorder("b", log, data_received=echo("b")))
    await turns()
    del log[:]
    a.write(b".")
    log.append("written")
    assert log == [
        ("b", "data_received", b"."),
        ("a", "data_received", b".."),
        "a has written",
        "b has written",
        ("b", "data_received", b"..."),
        ("a", "data_received", b"...."),
        "a has written",
        "b has written",
        "written",
    ]
    await ended(a, b)


async def test_an_end_that_is_let_go_of_within_its_inline_callback_lives_until_that_returns(twin, recorder):
    a, b = twin.create_pipe(inline=True)

    def let_go(protocol, data):
        if data == b"go":
            transport, protocol.transport = protocol.transport, None
            transport.set_protocol(None)  # the pipe no longer holds the end, and nothing else does
            del transport
            for end in twin.create_pipe():  # takes its memory, where that is free already
                end.close()

    writer, reader = recorder(), recorder(data_received=let_go)
    a.set_protocol(writer)
    b.set_protocol(reader)
    del b
    await turns()
    for data in (b"1", b"2"):
        a.write(data)
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        a.write(b"go")
    await turns()
    assert [data for name, *data in reader.log if name == "data_received"] == [[b"1"], [b"2"], [b"go"]]
    assert writer.calls == ["connection_made", "eof_received", "connection_lost"]
    await ended(a)


async def test_inline_runs_in_the_receivers_context(twin, recorder):
    var = contextvars.ContextVar("var", default="none")
    seen = []
    a, b = twin.create_pipe(inline=True)
    var.set("setter's")
    b.set_protocol(recorder(data_received=lambda *_: seen.append(var.get())))
    await turns()
    var.set("writer's")
    a.write(b"x")
    assert (seen, var.get()) == (["setter's"], "writer's")
    await ended(a, b)


async def test_inline_keeps_paused_bytes_for_the_loop(twin, recorder):
    a, b = twin.create_pipe(inline=True)
    reader = recorder()
    b.set_protocol(reader)
    await turns()
    b.pause_reading()
    a.write(b"1")
    b.resume_reading()
    assert reader.calls == ["connection_made"]
    a.write(b"2")
    await turns()
    assert [entry[1] for entry in reader.log[1:]] == [b"1", b"2"], "in order"
    await ended(a, b)


async def test_an_interrupt_inside_inline_delivery_reaches_the_writer(twin, recorder):
    def interrupt(protocol, data):
        if data == b"interrupt":
            raise KeyboardInterrupt

    a, b = twin.create_pipe(inline=True)
    reader = recorder(data_received=interrupt)
    b.set_protocol(reader)
    await turns()
    with pytest.raises(KeyboardInterrupt):
        a.writelines([b"interrupt", b"after"])
    await turns()
    assert reader.log[1:] == [("data_received", b"interrupt"), ("data_received", b"after")]
    await ended(a, b)


# ---- turns


@pytest.mark.parametrize("inline", [False, True])
async def test_timers_and_sockets_get_their_turn_beside_busy_pairs(twin, recorder, inline):
    loop = asyncio.get_running_loop()
    stop = []

    def echo(protocol, data):
        protocol.log.clear()
        if not stop:
            protocol.transport.write(data)

    ends = []
    for _ in range(10):
        pair = twin.create_pipe(inline=inline)
        ends += pair
        for end in pair:
            end.set_protocol(recorder(data_received=echo))
    await turns()
    for end in ends[::2]:
        end.write(b"x")
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    with left, right:
        before = time.perf_counter()
        for _ in range(20):
            await loop.sock_sendall(left, b"ping")
            assert await loop.sock_recv(right, 4) == b"ping"
            await asyncio.sleep(0.001)
        assert time.perf_counter() - before < 5
    stop.append(True)
    await turns(10)
    await ended(*ends)


async def test_pipes_on_one_loop_share_its_turns_fairly(twin, recorder):
    counts = [0] * 5
    ends = []
    for number in range(5):
        pair = twin.create_pipe()
        ends += pair

        def echo(protocol, data, number=number):
            counts[number] += 1
            protocol.transport.write(data)

        for end in pair:
            end.set_protocol(recorder(data_received=echo))
    await turns()
    for number, end in enumerate(ends[::2]):
        for _ in range(1 + number * 7):  # some are busier than others
            end.write(b"x")
    await turns(50)
    await ended(*ends)
    assert min(counts) > 0.45 * max(counts), "one callback an end: with bytes both ways under way a pipe has two"


async def test_an_interrupt_loses_no_callback(twin):
    """The rest of the turn is made in the next one, that of the interrupted end included."""
    script = """
import asyncio, importlib
twin = importlib.import_module(%r)
log = []
class P(asyncio.Protocol):
    def __init__(self, name): self.name = name
    def data_received(self, data):
        log.append(self.name)
        if data == b"x" and self.name == "0": raise KeyboardInterrupt
loop = asyncio.new_event_loop()
pairs = [twin.create_pipe(loop=loop) for _ in range(3)]
for number, (a, b) in enumerate(pairs):
    a.writelines([b"x", b"y"] if number == 0 else [b"x"])
    b.set_protocol(P(str(number)))
for _ in range(5):
    try: loop.run_until_complete(asyncio.sleep(0))
    except KeyboardInterrupt: log.append("interrupted")
assert log == ["0", "interrupted", "1", "2", "0"], log
for a, b in pairs: a.close(); b.close()
loop.run_until_complete(asyncio.sleep(0))
loop.close()
"""
    command = [sys.executable, "-W", "error", "-c", script % twin.__name__]
    result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# ---- dropped, in a wrong thread, on a closed loop


async def test_an_end_nobody_holds_warns_and_its_peer_sees_the_end(twin, recorder):
    a, b = twin.create_pipe()
    reader = recorder()
    b.set_protocol(reader)
    await turns()
    a.write(b"last words")
    holder = [a]
    del a
    with pytest.warns(ResourceWarning, match="unclosed transport <fastpipe.PipeEnd open waiting=0 unread=10>"):
        forget(holder)
    await turns()
    assert reader.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert reader.log[-1] == ("connection_lost", None)


def test_an_end_nobody_holds_is_eof_by_hand(twin):
    a, b = twin.create_pipe()
    a.write(b"last words")
    holder = [a]
    del a
    with pytest.warns(ResourceWarning):
        forget(holder)
    assert b.read() == b"last words"
    assert b.at_eof()
    b.close()


async def test_an_end_with_a_protocol_lives_as_long_as_its_peer(twin, recorder):
    a, b = twin.create_pipe()
    b.set_protocol(recorder(data_received=lambda p, data: p.transport.write(data.upper())))
    del b
    await turns()
    gc.collect()
    a.write(b"anyone there?")
    await turns()
    assert a.read() == b"ANYONE THERE?"
    a.close()
    await turns()


async def test_a_pair_nobody_holds_is_collected(twin, recorder):
    a, b = twin.create_pipe()
    watch = [weakref.ref(a), weakref.ref(b)]
    for end in (a, b):
        end.set_protocol(recorder())
    await turns()
    holder = [a, b]
    del a, b, end
    with pytest.warns(ResourceWarning):
        forget(holder)
    await turns()
    gc.collect()
    assert [ref() for ref in watch] == [None, None]


async def test_closed_ends_leave_nothing_behind(twin, recorder):
    a, b = twin.create_pipe()
    watch = [weakref.ref(a), weakref.ref(b)]
    for end in (a, b):
        end.set_protocol(recorder())
        watch.append(weakref.ref(end.get_protocol()))
    await turns()
    a.write(b"x")
    a.close()
    await turns()
    del a, b, end
    gc.collect()
    assert [ref() for ref in watch] == [None] * 4


async def test_an_end_collected_in_another_thread_is_ended_in_its_own(twin, recorder):
    a, b = twin.create_pipe()
    reader = recorder()
    b.set_protocol(reader)
    await turns()
    holder = [a]
    del a
    thread = threading.Thread(target=holder.clear)
    with pytest.warns(ResourceWarning):  # noqa: PT031
        thread.start()
        thread.join()
    for _ in range(50):
        await asyncio.sleep(0.001)
        if "connection_lost" in reader.calls:
            break
    assert reader.calls == ["connection_made", "eof_received", "connection_lost"]


async def test_calls_from_another_thread_raise(twin, recorder):
    a, b = twin.create_pipe()
    a.set_protocol(recorder())
    await turns()
    failed = []

    def misuse():
        for end, call, *args in [
            (a, "write", b"x"),
            (a, "writelines", [b"x"]),
            (a, "write_eof"),
            (a, "close"),
            (a, "abort"),
            (a, "pause_reading"),
            (a, "resume_reading"),
            (a, "set_protocol", recorder()),
            (a, "set_write_buffer_limits"),
            (b, "peek"),
            (b, "read"),
            (b, "readinto", bytearray(1)),
            (b, "consume", 0),
        ]:
            try:
                getattr(end, call)(*args)
            except RuntimeError as error:
                failed.append(str(error))

    await asyncio.to_thread(misuse)
    assert len(failed) == 13
    assert set(failed) == {"this pipe belongs to another thread, so use its loop's call_soon_threadsafe()"}
    assert not a.is_closing()
    await ended(a, b)


def test_a_pipe_made_before_its_loop_runs_elsewhere_goes_with_the_loop(twin, recorder):
    loop = asyncio.new_event_loop()
    a, b = twin.create_pipe(loop=loop)
    answered = threading.Event()

    def received(protocol, data):
        protocol.transport.write(data)
        protocol.transport.close()
        answered.set()

    b.set_protocol(recorder(data_received=received))
    a.set_protocol(recorder())
    a.write(b"x")
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert answered.wait(5)
    loop.call_soon_threadsafe(a.close)
    loop.call_soon_threadsafe(loop.call_soon, loop.stop)
    thread.join()
    loop.close()


def test_use_after_the_loop_closed_is_a_clear_error(twin, recorder):
    loop = asyncio.new_event_loop()

    async def opened():
        pair = twin.create_pipe()
        pair[1].set_protocol(recorder())
        return pair

    a, b = loop.run_until_complete(opened())
    a.write(b"scheduled, never delivered")
    loop.close()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            a.write(b"x")
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        a.set_protocol(recorder())
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        twin.create_pipe(loop=loop)
    a.close()
    b.close()
    assert a.is_closing()
    assert b.is_closing()


def test_set_protocol_needs_a_loop(twin, recorder):
    a, b = twin.create_pipe()
    with pytest.raises(RuntimeError, match="no running event loop"):
        a.set_protocol(recorder())
    a.write(b"by hand")

    async def later():
        reader = recorder()
        b.set_protocol(reader)
        await turns()
        a.close()
        await turns()
        return reader.calls

    calls = asyncio.run(later())
    assert calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


# ---- facts that a pipe reports about itself


async def test_an_end_is_a_transport(twin):
    a, b = twin.create_pipe()
    assert isinstance(a, asyncio.Transport)
    assert isinstance(a, asyncio.ReadTransport)
    assert isinstance(a, twin.PipeEnd)
    await ended(a, b)


async def test_a_users_own_method_takes_the_place_of_an_ends(twin, recorder):
    """As on asyncio's transports: uvicorn's tests of lost pongs replace `write` on the client's."""
    a, b = twin.create_pipe()
    reader = recorder()
    b.set_protocol(reader)
    await turns()
    swallowed = []
    a.write = swallowed.append
    a.write(b"swallowed")
    del a.write
    a.write(b"sent")
    a.note = "anything"
    assert (a.note, a.__dict__, b.__dict__) == ("anything", {"note": "anything"}, {})
    await turns()
    assert swallowed == [b"swallowed"]
    assert reader.received == b"sent"
    await ended(a, b)


async def test_extra_info_has_a_socket_without_a_descriptor(twin):
    a, b = twin.create_pipe()
    assert (a.get_extra_info("peername"), a.get_extra_info("sockname")) == ("", "")
    stand_in = a.get_extra_info("socket")
    assert stand_in.family == socket.AF_UNIX
    assert stand_in.type == socket.SOCK_STREAM
    assert stand_in.fileno() == -1
    assert stand_in.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) is None
    assert stand_in.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
    a.set_extra_info("peername", ("10.0.0.1", 4711))
    a.set_extra_info("sockname", ("10.0.0.2", 80))
    a.set_extra_info("conn_id", 7)
    assert a.get_extra_info("socket").getpeername() == ("10.0.0.1", 4711)
    assert a.get_extra_info("socket").getsockname() == ("10.0.0.2", 80)
    assert a.get_extra_info("socket").family == socket.AF_INET
    assert a.get_extra_info("conn_id") == 7
    assert a.get_extra_info("unknown", "default") == "default"
    await ended(a, b)


async def test_statistics_count_from_when_they_are_asked_for(twin, recorder):
    a, b = twin.create_pipe(limit=10)
    a.set_protocol(recorder())
    b.set_protocol(recorder())
    await turns()
    a.write(b"uncounted")
    await turns()
    wrote, read = a.collect_statistics(), b.collect_statistics()
    assert a.collect_statistics() is wrote
    b.pause_reading()
    a.writelines([b"12345", b"67890", b"!"])
    assert wrote.pauses == 1
    before = wrote.paused_s
    await asyncio.sleep(0.01)
    assert wrote.paused_s > before
    b.resume_reading()
    await turns()
    assert (wrote.bytes_written, wrote.chunks_written, wrote.bytes_read, wrote.chunks_read) == (11, 3, 0, 0)
    assert (read.bytes_written, read.chunks_written, read.bytes_read, read.chunks_read) == (0, 0, 11, 3)
    assert 0.005 < wrote.paused_s < 5
    at_rest = wrote.paused_s
    await asyncio.sleep(0.002)
    assert wrote.paused_s == at_rest
    assert (wrote.pauses, read.pauses, read.paused_s) == (1, 0, 0.0)
    await ended(a, b)


async def test_the_loops_own_sendfile_and_start_tls_take_a_pipe(twin, recorder, tmp_path, request):
    if "uvloop" in request.node.name:
        return  # takes its own transports only
    loop = asyncio.get_running_loop()
    path = tmp_path / "file"
    path.write_bytes(os.urandom(300_000))
    a, b = twin.create_pipe()
    reader = recorder()
    a.set_protocol(recorder())
    b.set_protocol(reader)
    await turns()
    with path.open("rb") as file:
        assert await loop.sendfile(a, file) == 300_000
    await turns(10)
    assert reader.received == path.read_bytes()
    await ended(a, b)


def test_a_debug_build_counts_what_is_made_and_freed(twin, recorder):
    counts = getattr(twin, "debug_counts", lambda: None)()
    if counts is None:
        return  # no FASTPIPE_DEBUG=1 build, or the Python twin: Python counts for it
    gc.collect()
    before = twin.debug_counts()

    async def use():
        for _ in range(10):
            a, b = twin.create_pipe(max_chunk=3)
            b.set_protocol(recorder())
            for data in (b"bytes", bytearray(b"copied"), memoryview(b"a view")[1:], b""):
                a.write(data)
            await turns()
            a.write(b"never taken")
            await ended(a, b)

    asyncio.run(use())
    gc.collect()
    after = twin.debug_counts()
    made = {name: after[name] - before[name] for name in after}
    assert made["pairs_made"] == 10
    assert made["ends_freed"] == 20
    assert made["pieces_made"] == made["pieces_freed"] == 40
    assert made["views_made"] == made["views_freed"]


def test_errors_say_whose_fault_it_is():
    assert issubclass(PipeBrokenError, ConnectionResetError)
    assert issubclass(PipeBrokenError, PipeError)
    assert issubclass(PipeClosedError, PipeError)
    assert not issubclass(PipeClosedError, OSError)
