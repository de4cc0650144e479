"""Messages in frames, without a connection: whatever the cuts, the same packets, the same verdict."""

from __future__ import annotations

import importlib
import itertools
import os
import random
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent.errors import WireError
from agent.http2.frames import frame
from agent.tunnel.messages import MessageRefused
from agent.tunnel.packet import MAX_TEXT_BYTES, Packet, PacketError, encode_varint

DATA, ERROR, DRAIN = 0, 1, 2
SETTINGS = frame(4, 0, 0)

TWINS = ["py"] if os.environ.get("FASTPIPE_NO_EXTENSIONS", "") not in ("", "0") else ["c", "py"]
"""A compiled twin that wasn't built is an error here, not a test less."""


class Twin:
    """One twin's classes, from both rooms."""

    def __init__(self, name: str) -> None:
        messages = importlib.import_module(f"agent.tunnel.messages_{name}")
        self.FrameReader = importlib.import_module(f"agent.http2.framing_{name}").FrameReader
        self.MessageReader = messages.MessageReader
        self.PacketWriter = messages.PacketWriter


both = pytest.mark.parametrize("twin", [Twin(name) for name in TWINS], ids=TWINS)


class Trace:
    """A handler, and a sink for each stream, that record their calls."""

    def __init__(self, twin: Any, *, max_message_bytes: int = 2000, window: int = 100_000) -> None:
        self.events: list[Any] = []
        self.twin = twin
        self.reader = twin.FrameReader(self, expect_preface=False)
        self.reader.window = window
        for stream_id in (1, 3):
            sink = Sink(self.events, stream_id)
            reader = twin.MessageReader(sink, window=window, max_message_bytes=max_message_bytes)
            self.reader.streams[stream_id] = reader

    def feed(self, *parts: bytes) -> Trace:
        try:
            for part in parts:
                self.reader.feed(part)
        except WireError as error:
            self.events.append(("connection error", str(error), error.http2_code))
            self.reader.stop()
        return self

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        self.events.append(("control", kind, flags, stream_id, whole))

    def window_update(self, stream_id: int, increment: int) -> None:
        self.events.append(("credit", stream_id, increment))

    def data_ended(self, stream_id: int) -> None:
        self.events.append(("ended", stream_id))

    def stray_data(self, stream_id: int) -> None:
        self.events.append(("stray", stream_id))

    def stream_error(self, stream_id: int, error: WireError) -> None:
        self.events.append(("stream error", stream_id, str(error), error.http2_code))
        del self.reader.streams[stream_id]


class Sink:
    def __init__(self, events: list[Any], stream_id: int) -> None:
        self.events = events
        self.stream_id = stream_id

    def packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        self.events.append(("packet", self.stream_id, conn_id, code, bytes(data), error_message))

    def credit(self, conn_id: int, increment_bytes: int) -> None:
        self.events.append(("credited", self.stream_id, conn_id, increment_bytes))

    def message_refused(self, error: MessageRefused) -> None:
        raise AssertionError("a reader without `ends` refuses nothing")

    def bad_packet(self, error: PacketError) -> None:
        self.events.append(("bad packet", self.stream_id, error.conn_id, str(error)))
        if error.conn_id <= 0:
            raise error


def cut(data: bytes, points: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(point % (len(data) + 1) for point in points)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


packets = st.builds(
    Packet,
    st.integers(-2, 5),
    st.integers(0, 4),
    st.binary(max_size=3000),
    st.sampled_from(["", "why: ü"]),
    st.sampled_from([0, 1, 2**32 - 1]),
)
bodies = st.one_of(
    packets.map(Packet.encode),
    st.binary(max_size=40),
    st.builds(lambda size, junk: b"\0" + size.to_bytes(4, "big") + junk, st.integers(0, 5000), st.binary(max_size=50)),
)
streams = st.lists(bodies, max_size=6).map(b"".join)


@st.composite
def frames(draw: Any) -> bytes:
    """A connection's bytes: messages cut into DATA frames, padded or not, other frames between; sometimes damaged."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    left = {1: draw(streams), 3: draw(streams)}
    out = [SETTINGS]
    while any(left.values()):
        stream_id = rng.choice([one for one in left if left[one]])
        size = rng.choice([1, 4, 5, 6, 20, 1000, 20_000])
        payload, left[stream_id] = left[stream_id][:size], left[stream_id][size:]
        if rng.random() < 0.2:
            padding = rng.randrange(200)
            out.append(frame(0, 8, stream_id, bytes((padding,)) + payload[:16000] + bytes(padding)))
        else:
            out.append(frame(0, 0, stream_id, payload[:16384]))
        if rng.random() < 0.2:
            out.append(
                rng.choice(
                    [
                        frame(6, 0, 0, bytes(8)),
                        frame(8, 0, rng.randrange(4), struct.pack(">I", rng.randrange(2**31))),
                        frame(1, 4, 5, b"\x88"),
                        frame(1, 0, 5, b"\x88") + frame(9, 4, 5, b"\x84"),
                        frame(1, 0, 5, b"\x88"),
                        frame(0xAB, 0xFF, 9, bytes(rng.randrange(50))),
                        frame(0, 1, stream_id),
                        frame(0, 0, 7, b"stray"),
                        frame(0, 8, 1, b"\x09abc"),
                        frame(0, 0, 1, bytes(16385)),
                    ]
                )
            )
    data = bytearray(b"".join(out))
    if rng.random() < 0.3:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@both
@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(data=frames(), points=st.lists(st.integers(0, 2**20), max_size=12))
def test_any_cut_gives_the_same_packets_and_the_same_verdict(twin: Any, data: bytes, points: list[int]) -> None:
    whole = Trace(twin).feed(data)
    assert Trace(twin).feed(*cut(data, points)).events == whole.events


@both
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=frames())
def test_byte_by_byte_is_a_cut_too(twin: Any, data: bytes) -> None:
    data = data[:3000]
    whole = Trace(twin).feed(data)
    parts = Trace(twin).feed(*(data[i : i + 1] for i in range(len(data))))
    assert parts.events == whole.events


@both
@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=200), points=st.lists(st.integers(0, 200), max_size=5))
@example(data=SETTINGS + b"\0\0\x01\0\x08\0\0\0\x01\0", points=[])
def test_noise_is_an_error_or_nothing_and_never_a_crash(twin: Any, data: bytes, points: list[int]) -> None:
    whole = Trace(twin).feed(SETTINGS + data)
    assert Trace(twin).feed(*cut(SETTINGS + data, points)).events == whole.events


@both
@settings(deadline=None)
@given(
    messages=st.lists(st.binary(max_size=400), max_size=20),
    takes=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 300)), min_size=1),
)
def test_what_is_written_in_frames_is_read_as_it_was(
    twin: Any, messages: list[bytes], takes: list[tuple[int, int]]
) -> None:
    writer = twin.PacketWriter(1)
    for message in messages:
        encoded = Packet(1, 0, message).encode()
        writer.append(encoded[:7])
        writer.append(memoryview(encoded)[7:])
    out = bytearray(SETTINGS)
    for limit, size in takes * (1 + sum(map(len, messages)) + 20 * len(messages)):
        before = writer.pending
        buffers = writer.take(limit, size)
        assert before - writer.pending <= limit
        assert all(len(buffer) <= size or len(buffer) == 9 for buffer in buffers)
        out += b"".join(buffers)
    assert writer.pending == 0
    trace = Trace(twin, max_message_bytes=10_000, window=2**20).feed(bytes(out))
    assert [event[4] for event in trace.events if event[0] == "packet"] == messages


def message_of(size: int) -> bytes:
    return Packet(1, 0, random.Random(size).randbytes(size)).encode()


@both
def test_a_payload_that_is_most_of_what_came_is_handed_on_as_a_view(twin: Any) -> None:
    seen: list[Any] = []

    class Views(Sink):
        def packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
            seen.append(data)

    trace = Trace(twin, window=2**20)
    trace.reader.streams[1] = twin.MessageReader(Views([], 1), window=2**20, max_message_bytes=2**20)
    trace.reader.max_frame_size = 2**20
    message = message_of(50_000)
    received = SETTINGS + frame(0, 0, 1, message) + frame(0, 0, 1, message_of(5000))
    trace.feed(received)
    assert isinstance(seen[0], memoryview)
    assert seen[0].obj is received  # where it was received, it stays
    assert type(seen[1]) is bytes  # a small one must not hold a large buffer


@both
def test_a_large_message_is_assembled_once(twin: Any) -> None:
    trace = Trace(twin, max_message_bytes=2**26, window=2**26)
    reader = trace.reader.streams[1]
    message = message_of(3_000_000)
    trace.feed(SETTINGS)
    kept = 0
    for start in range(0, len(message), 1000):
        trace.feed(frame(0, 0, 1, message[start : start + 1000]))
        kept = max(kept, reader.partial_bytes)
    assert trace.events[-1][4] == message[-3_000_000:]
    assert kept <= len(message)
    assert reader.partial_bytes == 0


@both
@pytest.mark.parametrize("before", [b"", b"\x38\x01"], ids=["plain", "unknown_field"])
def test_of_a_long_text_the_beginning_is_read(twin: Any, before: bytes) -> None:
    """The decoded text could be larger than its bytes.

    A megabyte that is not UTF-8 would decode to two megabytes. With one character of the astral planes it would be
    four.
    """
    trace = Trace(twin, max_message_bytes=2**26, window=2**26)
    text = b"ab\n" + b"\xff" * 2**20
    body = b"\x08\x07\x10\x01" + before + b"\x22" + encode_varint(len(text)) + text + b"\x1a\x02hi"
    trace.feed(SETTINGS)
    message = b"\0" + len(body).to_bytes(4, "big") + body
    for start in range(0, len(message), 16384):
        trace.feed(frame(0, 0, 1, message[start : start + 16384]))
    event = trace.events[-1]
    assert event[2:5] == (7, 1, b"hi")
    assert event[5] == "ab\n" + "\ufffd" * (MAX_TEXT_BYTES - 3)


@both
def test_a_message_over_the_limit_is_not_kept(twin: Any) -> None:
    trace = Trace(twin, max_message_bytes=1000, window=2**26)
    trace.feed(SETTINGS)
    message = Packet(77, 0, bytes(2_000_000)).encode() + Packet(78, 0, b"next").encode()
    for start in range(0, len(message), 10_000):
        trace.feed(frame(0, 0, 1, message[start : start + 10_000]))
        assert trace.reader.streams[1].partial_bytes == 0
    assert trace.events[1:] == [
        ("bad packet", 1, 77, f"gRPC: a message of {2_000_000 + 6} bytes, the limit is 1000"),
        ("packet", 1, 78, 0, b"next", ""),
    ]


@both
def test_the_windows_are_charged_with_padding_at_the_frame_header(twin: Any) -> None:
    trace = Trace(twin, window=1000)
    trace.feed(SETTINGS, frame(0, 8, 1, b"\x63" + bytes(99))[:20])
    reader = trace.reader.streams[1]
    assert (trace.reader.window, trace.reader.unreturned) == (900, 100)
    assert (reader.window, reader.unreturned) == (900, 100)
    trace.feed(bytes(89))
    trace.feed(frame(0, 0, 1, bytes(901)))
    assert trace.events[-1][0] == "connection error"
    assert trace.events[-1][2] == 3


@both
def test_stray_data_costs_only_the_connection_s_window(twin: Any) -> None:
    trace = Trace(twin, window=1000).feed(SETTINGS, frame(0, 0, 9, bytes(300)))
    assert trace.events[1:] == [("stray", 9)]
    assert (trace.reader.window, trace.reader.unreturned) == (700, 300)
    assert trace.reader.streams[1].window == 1000


@both
def test_a_stopped_reader_looks_at_nothing_more(twin: Any) -> None:
    trace = Trace(twin)
    trace.window_update = lambda *_: trace.reader.stop()  # type: ignore[method-assign]
    trace.feed(SETTINGS + frame(8, 0, 0, b"\0\0\0\1") + frame(0, 0, 1, message_of(5)) + b"noise that is no frame")
    trace.feed(b"more noise")
    assert len(trace.events) == 1


@both
@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_frame_header_in_pieces(twin: Any, size: int) -> None:
    message = frame(0, 0, 1, message_of(10))
    trace = Trace(twin).feed(SETTINGS + message[:size], message[size:])
    assert len(trace.events) == 2
