"""The state table of `_pipe_py`'s first page, line by line: each state × call × what is called back."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fastpipe import PipeBrokenError, PipeBusyError, PipeClosedError

STATES = ["open", "broken", "closing", "lost"]


class Setting:
    """A pipe whose end `a` is in one state, with protocols on both ends or on none."""

    def __init__(self, twin, recorder, by_hand: bool) -> None:
        self.a, self.b = twin.create_pipe()
        self.pa, self.pb = recorder(), recorder(eof_received=lambda *_: True)
        if not by_hand:
            self.a.set_protocol(self.pa)
            self.b.set_protocol(self.pb)

    async def reach(self, state: str) -> None:
        await turns()
        if state == "broken":
            self.b.abort()
        elif state == "closing":
            self.a.close()
        elif state == "lost":
            self.a.close()
            await turns()
        del self.pa.log[:], self.pb.log[:]

    async def done(self) -> None:
        self.a.abort()
        self.b.abort()
        await turns()


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture(params=STATES)
def state(request):
    return request.param


@pytest.fixture
def setting(twin, recorder):
    return lambda by_hand=False: Setting(twin, recorder, by_hand)


def is_open(state: str) -> bool:
    return state == "open"


async def test_is_closing_tells_whether_it_is_open(setting, state):
    s = setting()
    await s.reach(state)
    assert s.a.is_closing() is not is_open(state)
    assert s.a.is_reading() is is_open(state)
    await s.done()


@pytest.mark.parametrize("lines", [False, True])
async def test_write_is_dropped_unless_open(setting, state, lines):
    s = setting()
    await s.reach(state)
    if lines:
        s.a.writelines([b"x", b"", bytearray(b"y")])
    else:
        s.a.write(b"x")
    assert s.a.get_write_buffer_size() == (2 if lines else 1) * is_open(state)
    await turns()
    received = [entry for entry in s.pb.log if entry[0] == "data_received"]
    assert bool(received) is is_open(state)
    await s.done()


async def test_write_of_no_bytes_object_is_a_type_error_in_every_state(setting, state):
    s = setting()
    await s.reach(state)
    with pytest.raises(TypeError, match="data argument must be a bytes-like object, not 'str'"):
        s.a.write("text")
    with pytest.raises(TypeError, match="data argument must be a bytes-like object, not 'int'"):
        s.a.writelines([b"x", 7])
    assert s.a.get_write_buffer_size() == 0, "all or nothing"
    await s.done()


async def test_write_after_write_eof_is_a_runtime_error_in_every_state(setting, state):
    s = setting()
    s.a.write_eof()
    await s.reach(state)
    for data in (b"x", b""):
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
            s.a.write(data)
    with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
        s.a.writelines([])
    await s.done()


async def test_write_eof_is_a_half_close_once(setting, state):
    s = setting()
    await s.reach(state)
    s.a.write_eof()
    s.a.write_eof()
    await turns()
    told = s.pb.calls.count("eof_received")
    assert told == (1 if state in ("open", "closing") else 0)
    if is_open(state):
        s.b.write(b"still read")
        await turns()
        assert s.pa.log == [("data_received", b"still read")]
    await s.done()


async def test_close_tells_both_sides_once(setting, state):
    s = setting()
    await s.reach(state)
    s.a.close()
    s.a.close()
    assert s.pa.log == s.pb.log == [], "nothing is called back inside close"
    await turns()
    assert s.pa.calls == ([] if state == "lost" else ["connection_lost"])
    assert s.pa.lost is None
    await s.done()


async def test_abort_breaks_the_peer_if_open(setting, state):
    s = setting()
    await s.reach(state)
    s.a.abort()
    s.a.abort()
    assert s.pa.log == s.pb.log == []
    await turns()
    lost = [entry for entry in s.pa.log if entry[0] == "connection_lost"]
    assert len(lost) == (0 if state == "lost" else 1)
    if is_open(state):
        [(_, error)] = s.pb.log
        assert type(error) is PipeBrokenError
        assert isinstance(error, ConnectionResetError)
    await s.done()


async def test_abort_after_close_drops_what_the_peer_has_not_taken(setting):
    s = setting()
    await s.reach("open")
    s.b.pause_reading()
    s.a.write(b"x")
    s.a.close()
    assert s.a.get_write_buffer_size() == 1
    s.a.abort()
    await turns()
    assert [entry[0] for entry in s.pb.log] == ["connection_lost"]
    assert isinstance(s.pb.log[0][1], PipeBrokenError)
    assert s.pa.log == [("connection_lost", None)]


async def test_pause_and_resume_reading(setting, state):
    s = setting()
    await s.reach(state)
    s.a.resume_reading()
    s.a.pause_reading()
    s.a.pause_reading()
    assert not s.a.is_reading()
    if is_open(state):
        s.b.write(b"x")
        s.b.write_eof()
        await turns()
        assert s.pa.log == []
        s.a.resume_reading()
        s.a.resume_reading()
        assert s.pa.log == []
        await turns()
        assert s.pa.calls == ["data_received", "eof_received", "connection_lost"]
    else:
        s.a.resume_reading()
        assert not s.a.is_reading()
    await s.done()


@pytest.mark.parametrize("call", ["peek", "read", "readinto", "consume"])
async def test_reads_by_hand_in_every_state(setting, state, call):
    s = setting(by_hand=True)
    await s.reach(state)
    args = {"readinto": (bytearray(4),), "consume": (0,)}.get(call, ())
    read = getattr(s.a, call)
    if is_open(state):
        assert not read(*args)
    else:
        with pytest.raises(PipeBrokenError if state == "broken" else PipeClosedError):
            read(*args)
    assert s.a.at_eof() is False
    await s.done()


@pytest.mark.parametrize("call", ["peek", "read", "readinto", "consume"])
async def test_reads_by_hand_with_a_protocol_are_busy(setting, call):
    s = setting()
    await s.reach("open")
    args = {"readinto": (bytearray(4),), "consume": (0,)}.get(call, ())
    with pytest.raises(PipeBusyError):
        getattr(s.a, call)(*args)
    await s.done()


async def test_set_protocol_in_every_state(setting, state, recorder):
    s = setting()
    await s.reach(state)
    late = recorder()
    s.a.set_protocol(late)
    s.b.write(b"x")
    await turns()
    expected = {"open": ["data_received"], "broken": ["connection_lost"], "closing": ["connection_lost"], "lost": []}
    assert late.calls == expected[state], "connection_made was the first protocol's"
    assert s.pa.log == []
    await s.done()


async def test_a_first_protocol_hears_that_the_pipe_broke_before_it_came(setting, recorder):
    s = setting(by_hand=True)
    s.b.write(b"dropped")
    s.b.abort()
    late = recorder()
    s.a.set_protocol(late)
    await turns()
    assert late.calls == ["connection_made", "connection_lost"]
    assert isinstance(late.log[1][1], PipeBrokenError)


async def test_getters_answer_in_every_state(setting, state):
    s = setting()
    await s.reach(state)
    assert s.a.get_write_buffer_limits() == (16384, 65536)
    assert s.a.get_write_buffer_size() == 0
    assert s.a.can_write_eof() is True
    assert s.a.get_extra_info("nothing") is None
    assert (s.a.get_protocol() is None) is (state == "lost")
    assert repr(s.a) == f"<fastpipe.PipeEnd {state} waiting=0 unread=0>"
    s.a.set_write_buffer_limits(10)
    assert s.a.get_write_buffer_limits() == (2, 10)
    await s.done()


def scenario_write(end):
    with contextlib.suppress(RuntimeError):  # after write_eof
        end.write(b"from the callback")


def scenario_close(end):
    end.close()


def scenario_abort(end):
    end.abort()


def scenario_write_eof(end):
    end.write_eof()


def scenario_pause(end):
    end.pause_reading()


CALLBACKS = ["connection_made", "data_received", "eof_received", "connection_lost", "pause_writing", "resume_writing"]


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("which", ["own", "peer"])
@pytest.mark.parametrize("callback", CALLBACKS)
async def test_every_call_inside_every_callback(twin, recorder, callback, which, inline):
    for act in (scenario_write, scenario_close, scenario_abort, scenario_write_eof, scenario_pause):
        await call_inside_callback(twin, recorder, callback, act, which, inline)


async def call_inside_callback(twin, recorder, callback, act, which, inline):
    a, b = twin.create_pipe(limit=4, inline=inline)

    def react(*_):
        before = [list(pa.log), list(pb.log)]
        act(a if which == "own" else b)
        after = [list(pa.log), list(pb.log)]
        if not inline and act is not scenario_write:
            assert before == after, "nothing is called back inside a call"

    pa, pb = recorder(**{callback: react}), recorder()
    a.set_protocol(pa)
    b.set_protocol(pb)
    await turns()
    b.pause_reading()
    for end, data in ((a, b"more than the limit"), (b, b"x")):
        with contextlib.suppress(RuntimeError):  # a callback may have called write_eof
            end.write(data)
    await turns()
    b.resume_reading()
    await turns()
    b.write_eof()
    await turns()
    a.close()
    b.close()
    await turns()
    for log in (pa.calls, pb.calls):
        assert log[0] == "connection_made"
        assert log[-1] == "connection_lost"
        assert log.count("connection_made") == log.count("connection_lost") == 1
        assert log.count("eof_received") <= 1
        if "eof_received" in log:
            assert "data_received" not in log[log.index("eof_received") :]


RAISING = {
    "connection_made": "Fatal error: protocol.connection_made() call failed.",
    "data_received": "Fatal error: protocol.data_received() call failed.",
    "eof_received": "Fatal error: protocol.eof_received() call failed.",
    "connection_lost": "protocol.connection_lost() failed",
    "pause_writing": "protocol.pause_writing() failed",
    "resume_writing": "protocol.resume_writing() failed",
}


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("error", [ValueError("its own"), OSError("its own")], ids=["value", "os"])
@pytest.mark.parametrize("callback", RAISING)
async def test_a_protocol_that_raises_is_heard_of_and_lost(twin, recorder, callback, error, inline):
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

    def react(*_):
        raise error

    a, b = twin.create_pipe(limit=4, inline=inline)
    pa, pb = recorder(**{callback: react}), recorder()
    a.set_protocol(pa)
    b.set_protocol(pb)
    await turns()
    b.pause_reading()
    a.write(b"more than the limit")
    b.write(b"x")
    await turns()
    b.resume_reading()
    await turns()
    if not b.is_closing():
        b.write_eof()
    await turns()
    [context] = heard
    assert context["message"] == RAISING[callback]
    assert context["exception"] is error
    assert context["transport"] is a
    assert context["protocol"] is pa
    assert pa.calls[-1] == pb.calls[-1] == "connection_lost"
    if callback in ("connection_made", "data_received", "eof_received"):
        assert pa.log[-1] == ("connection_lost", error)
        assert isinstance(pb.log[-1][1], PipeBrokenError)
    else:
        assert pa.log[-1] == ("connection_lost", None)
        assert pb.log[-1] == ("connection_lost", None)


async def test_an_answer_to_eof_that_has_no_truth_is_the_protocols_fault(twin, recorder):
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    error = ValueError("neither true nor false")

    class Untold:
        def __bool__(self):
            raise error

    a, b = twin.create_pipe()
    pa, pb = recorder(eof_received=lambda *_: Untold()), recorder()
    a.set_protocol(pa)
    b.set_protocol(pb)
    b.write_eof()
    await turns()
    [context] = heard
    assert context["message"] == RAISING["eof_received"]
    assert context["exception"] is error
    assert pa.log[-1] == ("connection_lost", error)
    assert isinstance(pb.log[-1][1], PipeBrokenError)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_passes_through_wherever_a_protocol_raises_it(twin, error):
    class Leaving(asyncio.Protocol):
        @property
        def data_received(self):
            raise error

    async def main():
        a, b = twin.create_pipe()
        a.set_protocol(Leaving())
        b.write(b"x")
        try:
            await turns()
        finally:
            a.close()
            b.close()

    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(error):
            loop.run_until_complete(main())
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(turns())
    finally:
        loop.close()
