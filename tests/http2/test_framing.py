"""A stream's bytes in frames, without a connection: what a plain reader hands up, and the books of its credit."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

from agent.http2.errors import ErrorCode
from agent.http2.frames import DATA, END_STREAM, PADDED, frame

from .framing_trace import SETTINGS, Trace

TWINS = ["framing_py"] if os.environ.get("FASTPIPE_NO_EXTENSIONS", "") not in ("", "0") else ["framing_c", "framing_py"]
"""A compiled twin that wasn't built is an error here, not a test less."""

both = pytest.mark.parametrize("twin", [importlib.import_module(f"agent.http2.{name}") for name in TWINS], ids=TWINS)


@both
def test_bytes_are_handed_up_before_their_frame_is_whole(twin: Any) -> None:
    trace = Trace(twin).feed(SETTINGS, frame(DATA, 0, 1, b"abcdef")[:12])
    assert trace.bytes == {1: b"abc", 3: b""}


@both
def test_credit_waits_for_the_user_from_the_frames_header_on(twin: Any) -> None:
    trace = Trace(twin, window=1000).feed(SETTINGS, frame(DATA, 0, 1, bytes(100))[:20])
    reader = trace.reader.streams[1]
    assert (reader.window, reader.unread, reader.unreturned) == (900, 100, 0)
    assert (trace.reader.window, trace.reader.unreturned) == (900, 100)
    trace.feed(bytes(89))
    reader.consumed(60)
    assert (reader.unread, reader.unreturned) == (40, 60)
    for size in (41, -1):
        with pytest.raises(ValueError, match="40 bytes are unread"):
            reader.consumed(size)


@both
@pytest.mark.parametrize("cut", range(1, 30))
def test_padding_is_credit_that_no_user_waits_for(twin: Any, cut: int) -> None:
    sent = frame(DATA, PADDED, 1, b"\x08" + b"hi" + bytes(8))
    trace = Trace(twin).feed(SETTINGS, sent[:cut], sent[cut:])
    reader = trace.reader.streams[1]
    assert (trace.bytes[1], reader.unread, reader.unreturned) == (b"hi", 2, 9)


@both
def test_bytes_beyond_the_streams_window_fail_the_stream(twin: Any) -> None:
    trace = Trace(twin, window=100, connection_window=1000).feed(SETTINGS, frame(DATA, 0, 1, bytes(101)))
    assert trace.events[1][:2] == ("stream error", 1)
    assert trace.events[1][3] == ErrorCode.FLOW_CONTROL_ERROR
    assert trace.bytes[1] == b""


@both
def test_a_closed_reader_hands_nothing_up(twin: Any) -> None:
    trace = Trace(twin).feed(SETTINGS, frame(DATA, 0, 1, b"abc")[:10])
    trace.reader.streams[1].close()
    trace.feed(b"bc", frame(DATA, 0, 1, b"more"))
    assert trace.bytes[1] == b"a"
    assert trace.events[-1] == ("stray", 1)


@both
def test_the_end_of_a_stream_follows_its_last_byte(twin: Any) -> None:
    trace = Trace(twin).feed(SETTINGS, frame(DATA, END_STREAM, 1, b"abc")[:-1])
    assert ("ended", 1) not in trace.events
    trace.feed(b"c")
    assert trace.events[-1] == ("ended", 1)
    assert trace.bytes[1] == b"abc"


@both
def test_a_small_piece_does_not_keep_a_large_buffer(twin: Any) -> None:
    trace = Trace(twin, window=2**20)
    trace.reader.max_frame_size = 2**20
    received = SETTINGS + frame(DATA, 0, 1, bytes(50_000)) + frame(DATA, 0, 3, bytes(5000))
    trace.feed(received)
    assert isinstance(trace.pieces[0], memoryview)
    assert trace.pieces[0].obj is received
    assert type(trace.pieces[1]) is bytes


@both
def test_bytes_that_are_written_are_read_as_they_were(twin: Any) -> None:
    writer = twin.FrameWriter(1)
    sent = os.urandom(100_000)
    for start in range(0, len(sent), 7777):
        writer.append(memoryview(sent)[start : start + 7777])
    trace = Trace(twin, window=2**20).feed(SETTINGS)
    while writer.pending:
        trace.feed(writer.take_joined(9000, 1000), b"".join(writer.take(9000, 1000)))
    assert trace.bytes[1] == sent
