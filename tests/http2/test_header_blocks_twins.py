"""Both twins of HPACK on the same fields and blocks: equal blocks, fields and errors, for tables of any size."""

from __future__ import annotations

import importlib
import os
import random
from typing import Any

import hpack
import pytest

from agent.errors import WireError
from agent.http2.head_rules import Headers
from agent.http2.header_block_rules import NEVER_INDEXED, NOT_INDEXED, STATIC_TABLE, TABLE_BYTES

PYTHON = importlib.import_module("agent.http2.header_blocks_py")
COMPILED: Any = None
if os.environ.get("FASTPIPE_NO_EXTENSIONS", "") in ("", "0"):
    COMPILED = importlib.import_module("agent.http2.header_blocks_c")  # one that wasn't built is an error

INPUTS = int(os.environ.get("FASTPIPE_INPUTS", "2000"))  # `make fuzz`: a million
BLOCKS = 10
LIST_BYTES = 20_000

NAMES = [
    b"x-one",
    b"x-two",
    b"",
    b"x-" + b"long" * 40,
    b":path",
    b"content-length",
    b"date",
    *NEVER_INDEXED,
    *NOT_INDEXED,
]
VALUES = [b"", b"1", b"gzip, deflate", b"\xff\xfe\x00", b"v" * 300, b"/" * 127, b"\n" * 90]

pytestmark = pytest.mark.skipif(COMPILED is None, reason="FASTPIPE_NO_EXTENSIONS: there is one twin")


def random_fields(rng: random.Random) -> Headers:
    """Fields that repeat, that are new, and that fit no table."""
    fields: Headers = []
    for _ in range(rng.randrange(12)):
        name, value = rng.choice(STATIC_TABLE) if rng.random() < 0.4 else (rng.choice(NAMES), rng.choice(VALUES))
        if rng.random() < 0.4:
            value = rng.choice((b"%d" % rng.randrange(20), rng.randbytes(rng.choice((1, 5, 40, 150, 2100)))))
        fields.append((name, value))
    return fields


def outcome(decoder: Any, block: bytes) -> tuple[Any, ...]:
    """The fields, or the error's text and code."""
    try:
        return ("fields", list(decoder.decode(block)))
    except WireError as error:
        return ("error", str(error), error.http2_code)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_both_encode_the_same_block_and_both_decode_it(block: int) -> None:
    for seed in range(block, INPUTS // 40, BLOCKS):
        rng = random.Random(seed)
        encoders = [twin.BlockEncoder() for twin in (PYTHON, COMPILED)]
        decoders = [twin.BlockDecoder(2**20) for twin in (PYTHON, COMPILED)]
        heads = [random_fields(rng) for _ in range(4)]
        for _ in range(20):
            while rng.random() < 0.15:
                size = rng.choice((0, 40, 100, 100, 1000, TABLE_BYTES, 10**6))
                for encoder in encoders:
                    encoder.set_table_bytes(size)
            fields = rng.choice(heads) if rng.random() < 0.7 else random_fields(rng)
            one, other = (encoder.encode(fields) for encoder in encoders)
            assert other == one, f"seed {seed}"
            for decoder in decoders:
                assert decoder.decode(one) == fields, f"seed {seed}"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_any_block_has_the_same_outcome(block: int) -> None:
    """The blocks are the library's, which indexes and codes all it can, often damaged, or random bytes."""
    for seed in range(block, INPUTS, BLOCKS):
        rng = random.Random(seed)
        table_bytes = rng.choice((0, 60, TABLE_BYTES, TABLE_BYTES, 2**16))
        list_bytes = rng.choice((0, 100, 1000, LIST_BYTES, LIST_BYTES))
        decoders = [twin.BlockDecoder(list_bytes, table_bytes) for twin in (PYTHON, COMPILED)]
        encoder = hpack.Encoder()
        encoder.header_table_size = table_bytes
        for _ in range(rng.randrange(1, 6)):
            if rng.random() < 0.2:
                encoder.header_table_size = rng.randrange(table_bytes + 1)
            data = bytearray(encoder.encode(random_fields(rng), huffman=rng.random() < 0.7))
            if rng.random() < 0.1:
                data = bytearray(rng.randbytes(rng.randrange(40)))
            if rng.random() < 0.4:
                for _ in range(rng.randrange(1, 4)):
                    start = rng.randrange(len(data) + 1)
                    data[start : start + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            one, other = (outcome(decoder, bytes(data)) for decoder in decoders)
            assert other == one, f"seed {seed}"
            if one[0] == "error":
                break
            assert [outcome(decoder, b"") for decoder in decoders] == [("fields", [])] * 2


def test_texts_of_one_and_two_coded_octets_have_the_same_outcome() -> None:
    decoders = [twin.BlockDecoder(LIST_BYTES) for twin in (PYTHON, COMPILED)]
    for coded in range(0, 2**16, 1 if INPUTS > 10**5 else 7):
        for text in (bytes((coded & 0xFF,)), coded.to_bytes(2, "big"), b"\xff\xff" + coded.to_bytes(2, "big")):
            block = b"\x00\x01a" + bytes((0x80 | len(text),)) + text
            one, other = (outcome(decoder, block) for decoder in decoders)
            assert other == one, text.hex()


def test_integers_of_any_length_have_the_same_outcome() -> None:
    for first in (0x80, 0x40, 0x20, 0x10, 0x00, 0xFF, 0x7F, 0x3F, 0x1F, 0x0F):
        for tail in (
            b"",
            b"\x80",
            b"\x00",
            b"\x80" * 4 + b"\x00",
            b"\x80" * 5 + b"\x00",
            b"\xff" * 4 + b"\x7f",
            b"\xff" * 9,
        ):
            for rest in (b"", b"\x00", b"\x01a\x01b"):
                block = bytes((first,)) + tail + rest
                one, other = (outcome(twin.BlockDecoder(LIST_BYTES), block) for twin in (PYTHON, COMPILED))
                assert other == one, block.hex()
