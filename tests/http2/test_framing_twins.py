"""Both twins of plain readers and writers on the same bytes, whole and cut: the same calls, bytes, errors, books."""

from __future__ import annotations

import importlib
import os
import random

import pytest

from agent.http2.frames import PREFACE, frame

from .framing_trace import Trace

PYTHON = importlib.import_module("agent.http2.framing_py")
COMPILED = None
if os.environ.get("FASTPIPE_NO_EXTENSIONS", "") in ("", "0"):
    COMPILED = importlib.import_module("agent.http2.framing_c")  # one that wasn't built is an error

INPUTS = int(os.environ.get("FASTPIPE_INPUTS", "50000"))  # `make fuzz`: a million
BLOCKS = 20

pytestmark = pytest.mark.skipif(COMPILED is None, reason="FASTPIPE_NO_EXTENSIONS: there is one twin")


def conversation(rng: random.Random) -> bytes:
    """The bytes of a peer: DATA of any size, padded or not, other frames between, and sometimes damage."""
    out = [frame(4, 0, 0)] if rng.random() < 0.97 else []
    for _ in range(rng.randrange(1, 9)):
        stream_id = rng.choice((1, 1, 3, 3, 5))
        payload = rng.randbytes(rng.choice((0, 1, 4, 20, 1000, 5000, 16000)))
        if rng.random() < 0.3:
            padding = rng.randrange(20)
            out.append(frame(0, 8, stream_id, bytes((padding,)) + payload[:16000] + bytes(padding)))
        else:
            out.append(frame(0, rng.random() < 0.05, stream_id, payload))
        if rng.random() < 0.2:
            kind, size = rng.choice(((1, 3), (2, 5), (3, 4), (4, 6), (6, 8), (7, 8), (8, 4), (9, 3), (0xAB, 9)))
            flags = rng.choice((0, 1, 4, 4, 8))
            out.append(frame(kind, flags, rng.choice((0, 0, 1, 3, 7)), rng.randbytes(size)))
    data = bytearray(b"".join(out))
    if rng.random() < 0.2:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_any_bytes_in_any_pieces_have_the_same_verdict_on_both_twins(block: int) -> None:
    for seed in range(block, INPUTS, BLOCKS):
        rng = random.Random(seed)
        preface = rng.random() < 0.1
        data = (PREFACE if preface else b"") + conversation(rng)
        whole = memoryview(data) if seed % 2 else data  # as a Chunk gives it, or as bytes
        marks = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((1, 2, 5, 20))))
        parts = [whole[a:b] for a, b in zip([0, *marks], [*marks, len(data)], strict=True)]
        window = rng.choice((10**6, 10**6, 10**6, 3000))
        stop_at = rng.randrange(1, 9) if rng.random() < 0.1 else 0
        one, other, cut, again = (
            Trace(twin, window=window, preface=preface, stop_at=stop_at, consumes=True).feed(*pieces)
            for pieces in ((whole,), parts)
            for twin in (PYTHON, COMPILED)
        )
        assert other.books() == one.books(), f"seed {seed}, whole"
        assert again.books() == cut.books(), f"seed {seed}, cut"
        assert (cut.events, cut.bytes) == (one.events, one.bytes), f"seed {seed}, whole and cut"


@pytest.mark.parametrize("seed", range(100))
def test_writers_cut_the_same_frames(seed: int) -> None:
    assert COMPILED is not None
    rng = random.Random(seed)
    writers = [twin.FrameWriter(2**31 - 1) for twin in (PYTHON, COMPILED)]
    for _ in range(60):
        piece = rng.randbytes(rng.choice((0, 1, 200, 9000, 40_000)))
        for writer in writers:
            writer.append(piece)
        limit, size = rng.randrange(50_000) - 5, 1 + rng.randrange(20_000)
        first, second = (b"".join(writer.take(limit, size)) for writer in writers)
        assert first == second
        first, second = (writer.take_joined(limit, size) for writer in writers)
        assert first == second
        assert writers[0].pending == writers[1].pending
