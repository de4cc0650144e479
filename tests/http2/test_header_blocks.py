"""HPACK: RFC 7541's examples, what enters a table, and the bounds on a hostile block."""

from __future__ import annotations

import hpack
import pytest

from agent.errors import WireError
from agent.http2.errors import ErrorCode
from agent.http2.head_rules import Headers
from agent.http2.header_block_rules import NEVER_INDEXED, STATIC_TABLE, TABLE_BYTES
from agent.http2.header_blocks import BlockDecoder, BlockEncoder

LIST_BYTES = 2**16

# RFC 7541, appendix C.4: three requests on one connection, with Huffman's code.
REQUESTS = [
    ("828684418cf1e3c2e5f23a6ba0ab90f4ff", b"/", b"http", []),
    ("828684be5886a8eb10649cbf", b"/", b"http", [(b"cache-control", b"no-cache")]),
    (
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        b"/index.html",
        b"https",
        [(b"custom-key", b"custom-value")],
    ),
]


def request(path: bytes, scheme: bytes, more: Headers) -> Headers:
    pseudo = [(b":method", b"GET"), (b":scheme", scheme), (b":path", path), (b":authority", b"www.example.com")]
    return pseudo + more


def form(block: bytes) -> int:
    """The first bits of a block's first field (RFC 7541, section 6)."""
    return next(bits for bits in (0x80, 0x40, 0x20, 0x10, 0x00) if block[0] & bits or not bits)


def test_the_examples_of_the_rfc_are_decoded_and_encoded() -> None:
    decoder, encoder = BlockDecoder(LIST_BYTES), BlockEncoder()
    for block, path, scheme, more in REQUESTS:
        fields = request(path, scheme, more)
        assert decoder.decode(bytes.fromhex(block)) == fields
        assert encoder.encode(fields).hex() == block


def test_a_head_that_repeats_is_one_octet_for_each_field() -> None:
    encoder, decoder = BlockEncoder(), BlockDecoder(LIST_BYTES)
    fields = [(b":status", b"200"), (b"content-type", b"text/html"), (b"x-served-by", b"one")]
    blocks = [encoder.encode(list(fields)) for _ in range(3)]
    assert blocks[1] == blocks[2]
    assert len(blocks[1]) == len(fields)
    assert [decoder.decode(block) for block in blocks] == [fields] * 3


def test_a_kept_block_is_not_used_once_the_table_has_changed() -> None:
    encoder, decoder = BlockEncoder(), BlockDecoder(LIST_BYTES)
    first, second = [(b"x-one", b"1")], [(b"x-two", b"2")]
    for fields in (first, first, second, first, second, second):
        assert decoder.decode(encoder.encode(fields)) == fields
    encoder.set_table_bytes(0)
    encoder.set_table_bytes(TABLE_BYTES)
    for fields in (first, first, second, first):
        assert decoder.decode(encoder.encode(fields)) == fields


@pytest.mark.parametrize("name", sorted(NEVER_INDEXED))
def test_a_secret_enters_no_table(name: bytes) -> None:
    encoder, peer = BlockEncoder(), hpack.Decoder()
    for _ in range(2):
        block = encoder.encode([(name, b"secret")])
        assert form(block) == 0x10
        (field,) = peer.decode(block, raw=True)
        assert not field.indexable


def test_what_differs_each_time_pushes_nothing_out_of_the_table() -> None:
    encoder = BlockEncoder()
    kept = (b"x-kept", b"1")
    encoder.encode([kept])
    for number in range(200):
        encoder.encode(
            [(b"content-length", b"%d" % number), (b"x-request-id", b"%d" % number), (b"x-large", b"v" * 2100)]
        )
    assert encoder.encode([kept]) == b"\xbe"


def test_the_peers_table_is_never_larger_than_it_allows() -> None:
    encoder, peer = BlockEncoder(), hpack.Decoder()
    fields = [(b"x-%d" % number, b"1") for number in range(50)]
    peer.decode(encoder.encode(fields), raw=True)
    peer.max_allowed_table_size = 100
    encoder.set_table_bytes(100)
    assert list(peer.decode(encoder.encode(fields), raw=True)) == fields
    assert peer.header_table_size == 100


def test_a_table_that_shrank_and_grew_is_told_with_both_sizes() -> None:
    """RFC 7541, section 4.2."""
    encoder, peer = BlockEncoder(), hpack.Decoder()
    peer.decode(encoder.encode([(b"x-one", b"1")]), raw=True)
    encoder.set_table_bytes(0)
    encoder.set_table_bytes(10**9)
    block = encoder.encode([(b"x-one", b"1")])
    assert block[:4] == b"\x20\x3f\xe1\x1f"
    assert list(peer.decode(block, raw=True)) == [(b"x-one", b"1")]
    assert peer.header_table_size == TABLE_BYTES


@pytest.mark.parametrize(
    ("block", "rule"),
    [
        ("80", "index"),
        ("be", "index"),
        ("ffffffffff0f", "index"),
        ("ffffffffffff00", "malformed"),
        ("7f00", "index"),
        ("40", "malformed"),
        ("000161", "malformed"),
        ("00016105ff", "malformed"),
        ("0001618100", "malformed"),  # padding of zeros
        ("00016182ffff", "malformed"),  # padding of more than seven bits
        ("00016184ffffffff", "malformed"),  # EOS
        ("3fe21f", "table"),
        ("8220", "malformed"),
    ],
)
def test_a_malformed_block_ends_the_connection(block: str, rule: str) -> None:
    with pytest.raises(WireError, match=f"HPACK: .*{rule}") as raised:
        BlockDecoder(LIST_BYTES).decode(bytes.fromhex(block))
    assert raised.value.http2_code == ErrorCode.COMPRESSION_ERROR


def test_a_small_block_cannot_decode_to_more_than_its_limit() -> None:
    """One field of 4,000 bytes, and then one octet for each repetition."""
    decoder = BlockDecoder(LIST_BYTES)
    fields = [(b"x-bomb", b"v" * 4000)]
    assert decoder.decode(b"\x40\x06x-bomb\x7f\xa1\x1e" + b"v" * 4000) == fields
    assert decoder.decode(b"\xbe" * 15) == fields * 15
    with pytest.raises(WireError, match="more than 65536 bytes") as raised:
        decoder.decode(b"\xbe" * 200_000)
    assert raised.value.http2_code == ErrorCode.ENHANCE_YOUR_CALM


def test_a_field_counts_32_bytes_besides_its_own() -> None:
    assert len(BlockDecoder(1000).decode(b"\x84" * 26)) == 26  # ":path" and "/": 38 bytes
    with pytest.raises(WireError, match="more than 1000 bytes"):
        BlockDecoder(1000).decode(b"\x84" * 27)


def test_every_static_field_is_one_octet() -> None:
    for index, field in enumerate(STATIC_TABLE, 1):
        block = bytes((0x80 | index,))
        assert BlockDecoder(LIST_BYTES).decode(block) == [field]
        assert BlockEncoder().encode([field]) == block


def test_text_of_every_octet_survives() -> None:
    encoder, decoder = BlockEncoder(), BlockDecoder(LIST_BYTES)
    for octet in range(256):
        fields = [(b"x", bytes((octet,)) * size) for size in (1, 2, 3, 700)]
        assert decoder.decode(encoder.encode(fields)) == fields
