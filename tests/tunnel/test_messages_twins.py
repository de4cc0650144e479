"""Both twins of the data plane read the same bytes, whole and cut: same calls, errors and counts."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import WireError
from agent.http2.frames import PREFACE, frame
from agent.tunnel.messages import MessageRefused
from agent.tunnel.packet import Packet, PacketError, data_field, encode_varint


class Twin:
    """One twin's classes, from both rooms."""

    def __init__(self, name: str) -> None:
        messages = importlib.import_module(f"agent.tunnel.messages_{name}")
        self.FrameReader = importlib.import_module(f"agent.http2.framing_{name}").FrameReader
        self.MessageReader = messages.MessageReader
        self.PacketWriter = messages.PacketWriter


PYTHON = Twin("py")
COMPILED = None
if os.environ.get("FASTPIPE_NO_EXTENSIONS", "") in ("", "0"):
    COMPILED = Twin("c")  # one that wasn't built is an error

INPUTS = int(os.environ.get("FASTPIPE_INPUTS", "50000"))  # `make fuzz`: a million
BLOCKS = 20
PLENTY = 2**40

pytestmark = pytest.mark.skipif(COMPILED is None, reason="FASTPIPE_NO_EXTENSIONS: there is one twin")

TAGS = (0x08, 0x10, 0x1A, 0x22, 0x28, 0x28, 0x2A, 0x2B, 0x2C, 0x3D, 0x29, 0x02, 0x05, 0x06, 0x0A, 0x18, 0x25, 0x88)
KINDS = (0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 0xAB)
SIZES = {2: 5, 3: 4, 4: 6, 6: 8, 7: 8}  # most frames of these types are of the size they must have


class Trace:
    """A handler, and the sink of three streams, that record the calls of one twin."""

    def __init__(
        self,
        twin: Any,
        *,
        preface: bool,
        window: int,
        limit: int,
        stop_at: int,
        room: int | None = None,
        ends: bool = False,
    ) -> None:
        self.events: list[Any] = []
        self.stop_at = stop_at
        self.account = None if room is None else Account(self, room)
        self.reader = twin.FrameReader(self, expect_preface=preface)
        self.reader.window = window
        self.readers = {
            n: twin.MessageReader(
                Sink(self, n), window=window, max_message_bytes=limit, account=self.account, ends=ends
            )
            for n in (1, 3, 5)
        }
        self.reader.streams.update(self.readers)

    def note(self, *event: Any) -> None:
        self.events.append(event)
        if len(self.events) == self.stop_at:
            self.reader.stop()

    def feed(self, parts: Iterable[bytes | memoryview], *, room: bytearray | None = None) -> Trace:
        """room: where the parts are received into, one over the other."""
        try:
            for part in parts:
                if room is None:
                    self.reader.feed(part)
                else:
                    room[: len(part)] = part
                    self.reader.feed_part(memoryview(room), len(part))
        except WireError as error:
            self.events.append((type(error), str(error), error.http2_code))
            self.reader.stop()
        return self

    def books(self) -> tuple[Any, ...]:
        reader = self.reader
        streams = [
            (one.window, one.unreturned, one.ended, one.closed, one.held, one.in_message, one.partial_bytes)
            for one in self.readers.values()
        ]
        held = 0 if self.account is None else self.account.held
        if self.account is not None:
            assert held == sum(one.partial_bytes for one in self.readers.values())
        return self.events, reader.window, reader.unreturned, reader.stopped, sorted(reader.streams), streams, held

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        if kind == 4 and len(whole) > 9:
            self.reader.max_frame_size = 16384 + whole[-1]
        self.note("control", kind, flags, stream_id, whole)

    def window_update(self, stream_id: int, increment: int) -> None:
        self.note("credit", stream_id, increment)

    def data_ended(self, stream_id: int) -> None:
        self.note("ended", stream_id)

    def stray_data(self, stream_id: int) -> None:
        self.note("stray", stream_id)
        if stream_id == 9:
            raise WireError("HTTP/2: DATA frame on idle stream 9")

    def stream_error(self, stream_id: int, error: WireError) -> None:
        self.note("stream error", stream_id, type(error), str(error), error.http2_code)
        self.reader.streams.pop(stream_id).close()


class Account:
    """The account for unfinished messages. Sometimes it ends a stream during `take`."""

    def __init__(self, trace: Trace, room: int) -> None:
        self.trace = trace
        self.room = room
        self.held = 0

    def take(self, size: int) -> bool:
        assert size > 0
        if self.held + size > self.room:
            return False
        self.held += size
        if self.room < 2000 and size % 17 == 0:
            self.trace.readers[1].close()
        return True

    def give_back(self, size: int) -> None:
        assert 0 < size <= self.held
        self.held -= size


class Sink:
    def __init__(self, trace: Trace, stream_id: int) -> None:
        self.trace = trace
        self.stream_id = stream_id

    def packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        assert type(data) is bytes or (type(data) is memoryview and data.readonly)
        self.trace.note("packet", self.stream_id, conn_id, code, bytes(data), error_message)

    def credit(self, conn_id: int, increment_bytes: int) -> None:
        self.trace.note("credited", self.stream_id, conn_id, increment_bytes)

    def message_refused(self, error: MessageRefused) -> None:
        self.trace.stream_error(self.stream_id, error)

    def bad_packet(self, error: PacketError) -> None:
        self.trace.note("bad packet", self.stream_id, error.conn_id, str(error))
        if error.conn_id <= 0:
            raise error


def message(rng: random.Random) -> bytes:
    """A gRPC message: a valid packet, random fields, or noise. Sometimes its prefix is wrong."""
    kind = rng.randrange(10)
    if kind < 5:
        size = rng.choice((0, 1, 5, 60, 300, 5000)) if kind else 0
        packet = Packet(
            rng.choice((-1, 0, 1, 7, 300, 2**40, -(2**63))),
            rng.choice((0, 0, 0, 1, 2, 3, 4, -5)),
            rng.randbytes(size),
            rng.choice(("", "", "gone", "ü" * 9)),
            rng.choice((0, 0, 1, 2**31, 2**32 - 1)),
        )
        return packet.encode()
    body = b""
    if kind < 9:
        for _ in range(rng.randrange(6)):
            body += encode_varint(rng.choice(TAGS))
            body += rng.choice((encode_varint(rng.getrandbits(rng.choice((1, 3, 7, 30, 64)))), rng.randbytes(3)))
            body += rng.randbytes(rng.choice((0, 0, 1, 4, 8)))
    else:
        body = rng.randbytes(rng.randrange(40))
    size = len(body) if rng.random() < 0.9 else rng.getrandbits(rng.choice((4, 12, 32)))
    return bytes((rng.random() < 0.02,)) + size.to_bytes(4, "big") + body


def conversation(rng: random.Random) -> bytes:
    """The bytes of a peer: messages in DATA frames of any size and padding, other frames between, and damage."""
    out = [frame(4, 0, 0, b"\0\x05\0\0\x40" + rng.randbytes(1))] if rng.random() < 0.97 else []
    left = {n: b"".join(message(rng) for _ in range(rng.randrange(4))) for n in (1, 3)}
    for _ in range(rng.randrange(1, 9)):
        stream_id = rng.choice((1, 1, 3))
        size = rng.choice((0, 1, 4, 5, 6, 20, 1000, 16000))
        payload, left[stream_id] = left[stream_id][:size], left[stream_id][size:]
        if rng.random() < 0.2:
            padding = rng.randrange(20)
            out.append(frame(0, 8, stream_id, bytes((padding,)) + payload + bytes(padding)))
        elif payload:
            out.append(frame(0, rng.random() < 0.02, stream_id, payload))
        if rng.random() < 0.15:
            flags = rng.choice((0, 1, 4, 4, 8, 255))
            kind = rng.choice(KINDS)
            size = SIZES.get(kind, 0) if rng.random() < 0.7 else 0
            payload = rng.randbytes(size or rng.choice((0, 1, 4, 4, 4, 8, 30)))
            stream_id = 0 if kind in (4, 6, 7) and rng.random() < 0.7 else rng.choice((0, 1, 3, 5, 7, 9))
            out.append(frame(kind, flags, stream_id, payload))
    out.append(frame(0, 0, 1, left[1][:16000]))
    data = b"".join(out)
    if rng.random() < 0.25 and data:
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        data = bytes(damaged)
    return data[: rng.randrange(len(data) + 1)] if rng.random() < 0.1 else data


def compare(data: bytes, marks: list[int], **options: Any) -> None:
    expected = Trace(PYTHON, **options).feed([data]).books()
    whole = memoryview(data) if len(data) % 2 else data  # as a Chunk gives it, or as bytes
    parts = [whole[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]
    assert Trace(COMPILED, **options).feed([data]).books() == expected, "compiled, whole"
    events, *_ = cut = Trace(COMPILED, **options).feed(parts).books()
    if options.get("room") in (None, PLENTY):  # what is held, and so what finds no room, depends on the cuts
        assert events == expected[0], "compiled, cut"
    assert cut == Trace(PYTHON, **options).feed(parts).books(), "both, cut"
    for twin in (COMPILED, PYTHON):
        assert Trace(twin, **options).feed(parts, room=bytearray(len(data))).books() == cut, "received into one place"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_any_bytes_in_any_pieces_have_the_same_verdict_on_both_twins(block: int) -> None:
    for seed in range(block, INPUTS, BLOCKS):
        rng = random.Random(seed)
        preface = rng.random() < 0.1
        data = conversation(rng)
        if preface:
            data = (PREFACE if rng.random() < 0.9 else PREFACE[:20] + b"\n") + data
        marks = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((1, 2, 5, 20))))
        window = rng.choice((10**6, 10**6, 10**6, 3000))
        limit = rng.choice((10**5, 1000, 8))
        stop_at = rng.randrange(1, 9) if rng.random() < 0.1 else 0
        room = rng.choice((None, PLENTY, 6, 500, 4000))
        ends = rng.random() < 0.3
        try:
            compare(data, marks, preface=preface, window=window, limit=limit, stop_at=stop_at, room=room, ends=ends)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {error}") from None


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=60), marks=st.lists(st.integers(0, 60), max_size=4))
def test_any_message_has_the_same_verdict_on_both_twins(body: bytes, marks: list[int]) -> None:
    data = frame(4, 0, 0) + frame(0, 0, 1, b"\0" + len(body).to_bytes(4, "big") + body)
    marks = sorted(min(mark, len(data)) for mark in marks)
    compare(data, marks, preface=False, window=10**6, limit=1000, stop_at=0)


@pytest.mark.parametrize("seed", range(300))
def test_writers_cut_the_same_frames(seed: int) -> None:
    pick = random.Random(seed).randrange
    writers = [twin.PacketWriter(2**31 - 1) for twin in (PYTHON, COMPILED)]
    for _ in range(60):
        choice = pick(10)
        if choice < 3:
            pieces = [random.Random(pick(1000)).randbytes((1, 200, 9000, 40_000)[pick(4)]) for _ in range(1 + pick(30))]
            views = [memoryview(b"xx" + piece + b"y")[2:-1] if pick(2) else piece for piece in pieces]
            for writer in writers:
                writer.append_packet(data_field(seed), list(views), sum(map(len, pieces)))
        elif choice < 5:
            piece = b"message"[: pick(8)]
            for writer in writers:
                writer.append(piece)
        elif choice == 5 and not pick(5):
            for writer in writers:
                writer.clear()
        else:
            limit, size = pick(100_000) - 5, 1 + pick(20_000)
            taken = [writer.take(limit, size) for writer in writers]
            assert list(map(bytes, taken[0])) == list(map(bytes, taken[1]))
            limit = pick(40_000) - 5
            joined = [writer.take_joined(limit, size) for writer in writers]
            assert type(joined[1]) is bytes
            assert joined[0] == joined[1]
        assert writers[0].pending == writers[1].pending


def test_pieces_that_are_not_of_the_size_that_was_said_are_refused() -> None:
    for size in (2, 4):
        with pytest.raises(ValueError, match="than their size"):
            COMPILED.PacketWriter(1).append_packet(data_field(1), [b"ab", memoryview(b"c")], size)


@pytest.mark.parametrize("take", ["take", "take_joined"])
def test_sizes_at_the_ends_of_the_integers_neither_hang_nor_pass_what_there_is(take: str) -> None:
    most = 2**63 - 1
    for twin in (PYTHON, COMPILED):
        writer = twin.PacketWriter(1)
        writer.append(b"message")
        for size in (0, -1, -most):
            with pytest.raises(ValueError, match="at least 1 byte"):
                getattr(writer, take)(10, size)
        assert not getattr(writer, take)(-most, 10)
        taken = getattr(writer, take)(most, most)
        assert (taken if take == "take_joined" else b"".join(taken)) == frame(0, 0, 1, b"message")
        assert writer.pending == 0
