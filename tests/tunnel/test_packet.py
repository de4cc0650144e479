"""The packet codec, against protobuf's own and against what no encoder writes."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.tunnel.packet import (
    Packet,
    PacketError,
    data_field,
    decode_conn_id,
    decode_packet,
    encode_packet,
    encode_varint,
    message_head,
)

IDS = st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 300)
INCREMENTS = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**31 - 1, 2**31])
CODES = st.integers(0, 3) | st.integers(-(2**31), 2**31 - 1)


@pytest.fixture(scope="session")
def pb(messages_dir: str) -> Any:
    """The messages as protobuf compiles them from tunnel.proto."""
    spec = importlib.util.spec_from_file_location("tunnel_pb2", f"{messages_dir}/tunnel_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tunnel_pb2"] = module
    spec.loader.exec_module(module)
    return module


@settings(deadline=None)
@given(conn_id=IDS, code=CODES, data=st.binary(max_size=300), text=st.text(max_size=50), window=INCREMENTS)
def test_what_we_write_protobuf_reads_and_the_other_way_round(
    pb: Any, conn_id: int, code: int, data: bytes, text: str, window: int
) -> None:
    ours = encode_packet(conn_id, code, data, text, window)
    theirs = pb.Packet(conn_id=conn_id, code=code, data=data, error_message=text, window=window).SerializeToString()
    assert ours[5:] == theirs
    assert ours[:5] == b"\0" + len(theirs).to_bytes(4, "big")
    assert Packet.decode(theirs) == Packet(conn_id, code, data, text, window)


@settings(deadline=None)
@given(conn_id=IDS, data=st.binary(max_size=300))
def test_a_head_and_its_payload_are_a_message(pb: Any, conn_id: int, data: bytes) -> None:
    message = message_head(data_field(conn_id), len(data)) + data
    assert int.from_bytes(message[1:5], "big") == len(message) - 5
    read = pb.Packet.FromString(message[5:])
    assert (read.conn_id, read.code, read.data) == (conn_id, 0, data)


@settings(deadline=None, max_examples=500)
@given(
    st.lists(
        st.sampled_from([b"\x08", b"\x10", b"\x1a", b"\x22", b"\x28"])
        | st.sampled_from([b"\x2a\x02xy", b"\x33\x08\x01\x34", b"\x3d1234", b"\x05"])
        | st.integers(0, 2**64 - 1).map(encode_varint)
        | st.binary(max_size=5),
        max_size=8,
    ).map(b"".join)
)
def test_we_read_what_protobuf_reads_and_refuse_what_it_refuses(pb: Any, message: bytes) -> None:
    try:
        ours = Packet.decode(message)
    except PacketError as error:
        if "has wire type" not in str(error):  # there we are stricter, on purpose
            with pytest.raises(DecodeError):
                pb.Packet.FromString(message)
        return
    try:
        theirs = pb.Packet.FromString(message)
    except DecodeError:
        assert "\ufffd" in ours.error_message  # a text that isn't UTF-8 doesn't make an ERROR none
        return
    assert ours == Packet(theirs.conn_id, theirs.code, theirs.data, theirs.error_message, theirs.window)


@pytest.mark.parametrize(
    ("message", "conn_id", "rule"),
    [
        (b"\x08\x05\x1a\x03ab", 5, "data runs past the message's end"),
        (b"\x08\x05\x22\x03ab", 5, "error_message runs past the message's end"),
        (b"\x08", 0, "conn_id ends in mid-varint"),
        (b"\x08" + b"\x80" * 10 + b"\x01", 0, "conn_id is a varint of more than 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x02", 0, "conn_id is a varint of more than 64 bits"),
        (b"\x08\x05\x10" + b"\x80" * 11, 5, "code is a varint of more than 64 bits"),
        (b"\x08\x05\x18\x01", 5, "data has wire type 0"),
        (b"\x0a\x01x", 0, "conn_id has wire type 2"),
        (b"\x08\x05\x12\x01x", 5, "code has wire type 2"),
        (b"\x08\x05\x25abcd", 5, "error_message has wire type 5"),
        (b"\x08\x05\x28\x80", 5, "window ends in mid-varint"),
        (b"\x08\x05\x02", 5, "field number 0 is out of range"),
        (b"\x08\x05\x2e", 5, "wire type 6 does not exist"),
        (b"\x08\x05\x2f", 5, "wire type 7 does not exist"),
        (b"\x08\x05\x29abc", 5, "an unknown field runs past the message's end"),
        (b"\x08\x05\x2a\x7f", 5, "an unknown field runs past the message's end"),
        (b"\x08\x05\x2c", 5, "the end of a group that was not begun"),
        (b"\x08\x05\x2b\x34", 5, "the end of a group that was not begun"),
        (b"\x08\x05\x2b", 5, "a tag ends in mid-varint"),
        (b"\x08\x05" + b"\x2b" * 101, 5, "groups nested more than 100 deep"),
        (b"\x08\x05" + encode_varint((1 << 32) | 8), 5, "out of range"),
    ],
)
def test_a_mistake_names_its_field_and_its_connection(message: bytes, conn_id: int, rule: str) -> None:
    with pytest.raises(PacketError, match=rule) as caught:
        Packet.decode(message)
    assert caught.value.conn_id == conn_id


def test_nothing_beyond_the_message_is_read() -> None:
    with pytest.raises(PacketError, match="conn_id ends in mid-varint"):
        decode_packet(b"xx\x08\x80\x01xx", 2, 4)
    assert decode_packet(b"xx\x08\x05\x1a\x02abcc", 2, 8) == (5, 0, 6, 8, "", 0)


def test_an_overlong_but_valid_varint_is_read() -> None:
    assert Packet.decode(b"\x88\x00\x85\x80\x80\x00\x9a\x00\x81\x00x") == Packet(5, 0, b"x")


def test_a_long_text_is_cut_at_a_character() -> None:
    text = Packet.decode(encode_packet(1, 1, b"", "ü" * 20_000)[5:]).error_message
    assert text == "ü" * 8192


@pytest.mark.parametrize(
    ("head", "conn_id"),
    [(b"\x08\x05\x1a", 5), (b"\x08" + b"\xff" * 9 + b"\x01", -1), (b"\x1a\x05", 0), (b"\x08\xff", 0), (b"", 0)],
)
def test_the_owner_of_a_message_that_is_not_kept(head: bytes, conn_id: int) -> None:
    assert decode_conn_id(head) == conn_id
