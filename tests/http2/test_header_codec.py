"""HPACK, against the hpack library in both directions."""

from __future__ import annotations

import os
import random

import hpack
import pytest

from agent.errors import WireError
from agent.http2.errors import ErrorCode
from agent.http2.header_codec import HeaderDecoder, HeaderEncoder

Fields = list[tuple[bytes, bytes]]
NAMES = b":method :path :status accept cookie authorization content-length date x-long x-own server set-cookie".split()
VALUES = [
    b"GET",
    b"/",
    b"200",
    b"",
    b"gzip, deflate",
    b"a" * 40,
    b"z" * 900,
    b"v" * 5000,
    bytes(range(256)),
    b"\xff" * 30,
]
ROUNDS = int(os.environ.get("FASTPIPE_INPUTS", "50000")) // 1000


def random_head(chance: random.Random) -> Fields:
    return [
        (chance.choice(NAMES), chance.choice(VALUES) if chance.random() < 0.8 else chance.randbytes(8))
        for _ in range(chance.randrange(12))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_heads_of_the_library_are_decoded(seed: int) -> None:
    chance = random.Random(seed)
    library, ours = hpack.Encoder(), HeaderDecoder(2**20)
    heads = [random_head(chance) for _ in range(8)]
    for _ in range(ROUNDS):
        head = chance.choice(heads) if chance.random() < 0.7 else random_head(chance)
        if chance.random() < 0.05:
            library.header_table_size = chance.choice((0, 100, 1000, 4096))
        block = library.encode(head, huffman=chance.random() < 0.8)
        assert ours.decode(block) == head


@pytest.mark.parametrize("seed", range(4))
def test_the_library_decodes_our_heads(seed: int) -> None:
    chance = random.Random(seed)
    library, ours = hpack.Decoder(2**20), HeaderEncoder()
    heads = [random_head(chance) for _ in range(8)]
    for _ in range(ROUNDS):
        head = chance.choice(heads) if chance.random() < 0.7 else random_head(chance)
        if chance.random() < 0.05:
            size = chance.choice((0, 100, 1000, 4096, 8192))
            ours.use_limit(size)
            library.max_allowed_table_size = size
        assert [(bytes(name), bytes(value)) for name, value in library.decode(ours.encode(head), raw=True)] == head


@pytest.mark.parametrize("seed", range(4))
def test_broken_blocks_have_the_librarys_verdict(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(ROUNDS * 2):
        library, ours, encoder = hpack.Decoder(2**20), HeaderDecoder(2**20), hpack.Encoder()
        for _ in range(3):
            block = bytearray(encoder.encode(random_head(chance)) or b"\x82")
            for _ in range(chance.randrange(3)):
                block[chance.randrange(len(block))] = chance.randrange(256)
            if chance.random() < 0.1:
                del block[chance.randrange(len(block)) :]
            try:
                expected = [(bytes(n), bytes(v)) for n, v in library.decode(bytes(block), raw=True)]
            except (hpack.HPACKError, IndexError, TypeError, UnicodeDecodeError):
                with pytest.raises(WireError):
                    ours.decode(bytes(block))
                break
            try:
                assert ours.decode(bytes(block)) == expected
            except WireError as error:
                assert "size update" in error.rule or "number" in error.rule  # noqa: PT017
                break


def test_a_repeated_head_is_the_same_list_until_the_table_changes() -> None:
    encoder, decoder = hpack.Encoder(), HeaderDecoder(2**16)
    head: Fields = [(b":method", b"GET"), (b"x-own", b"1")]
    decoder.decode(encoder.encode(head))
    block = encoder.encode(head)
    first = decoder.decode(block)
    assert decoder.decode(block) is first
    decoder.decode(encoder.encode([(b"x-other", b"2")]))
    again = decoder.decode(encoder.encode(head))
    assert again == first
    assert again is not first


def test_a_head_past_the_limit_is_an_error() -> None:
    with pytest.raises(WireError) as caught:
        HeaderDecoder(1000).decode(hpack.Encoder().encode([(b"x", b"y" * 968)]))
    assert caught.value.http2_code == ErrorCode.ENHANCE_YOUR_CALM
    assert HeaderDecoder(1001).decode(hpack.Encoder().encode([(b"x", b"y" * 968)]))


def test_secrets_are_never_indexed() -> None:
    encoder = HeaderEncoder()
    block = encoder.encode([(b"set-cookie", b"a=1")])
    assert block[0] & 0xF0 == 0x10
    assert encoder.encode([(b"set-cookie", b"a=1")]) == block
