"""Packets, the messages between the two ends of a tunnel, and their codec (wire.md, "Base protocol").

A packet is a protobuf message of five fields. It is the body of a gRPC message. The body follows one byte of flags (0,
never compressed) and its length in four bytes, big-endian. The codec is our own, because so few fields don't need a
library. The writer puts the payload last, and the reader leaves it in place, so neither side copies it.

The reader is strict if a mistake would change a packet's meaning, and lenient otherwise:

- It skips unknown fields, groups included.
- The last of a repeated field counts, as protobuf requires.
- It raises PacketError for a known field with another wire type, and for a varint of more than 64 bits.
- It raises PacketError for a field that runs past the message's end.
- It reads `window` only as a varint, because a peer without that extension may use its number for another purpose.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final, Protocol

from ..errors import WireError

__all__ = [
    "CLOSE",
    "DATA",
    "DRAIN",
    "ERROR",
    "MAX_INCREMENT_BYTES",
    "MAX_SENT_MESSAGE_BYTES",
    "MAX_TEXT_BYTES",
    "PROBE_ID",
    "ControlCode",
    "Packet",
    "PacketError",
    "PacketReceiver",
    "data_field",
    "decode_conn_id",
    "decode_packet",
    "encode_packet",
    "encode_varint",
    "message_head",
]

PROBE_ID = -1
"""DATA for this id asks whether the tunnel is up. ERROR for this id is the reply (wire.md, "connected")."""

MAX_SENT_MESSAGE_BYTES = 4 * 2**20 - 1
"""A message of 4 MiB, grpc-go's default receive limit, ends the whole tunnel at a base hub (wire.md, "agent → hub")."""

MAX_INCREMENT_BYTES = 2**31 - 1
"""The largest credit in one WINDOW packet, and the largest total credit of a connection (wire.md, "window")."""

MAX_TEXT_BYTES = 16 * 1024
"""The most bytes of an error's text that are sent or read. The text is for a person. Decoded, it may be four times its
size."""


class ControlCode(enum.IntEnum):
    """The kind of a packet. The reader ignores unknown codes, for later versions of the protocol."""

    DATA = 0
    """`data` is the next piece of the connection's byte stream."""
    ERROR = 1
    """The connection has ended. `error_message` is the reason."""
    DRAIN = 2
    """With id 0: the agent leaves, or, with `goaway`, either side accepts no new connections here."""
    CLOSE = 3
    """With `close`: the sender has no more DATA for this connection."""
    WINDOW = 4
    """With `window`: the other side may send `window` bytes more on this connection."""


# The codes as plain integers: code that compares one with each packet need not pay for an enum.
DATA: Final[int] = ControlCode.DATA.value
ERROR: Final[int] = ControlCode.ERROR.value
DRAIN: Final[int] = ControlCode.DRAIN.value
CLOSE: Final[int] = ControlCode.CLOSE.value


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """One packet as a value, off the hot path.

    conn_id: -2^63 to 2^63-1.
    code: a ControlCode, or a later code.
    window: an increment in bytes, 0 to 2^32-1.
    """

    conn_id: int
    code: int = ControlCode.DATA
    data: bytes | memoryview = b""
    error_message: str = ""
    window: int = 0

    def encode(self) -> bytes:
        """This packet as one gRPC message, its five bytes of prefix included."""
        return encode_packet(self.conn_id, self.code, self.data, self.error_message, self.window)

    @classmethod
    def decode(cls, message: bytes) -> Packet:
        """The packet in a gRPC message's body (without the five bytes of prefix). Raises PacketError."""
        conn_id, code, start, end, text, window = decode_packet(message, 0, len(message))
        return cls(conn_id, code, message[start:end], text, window)


class PacketReceiver(Protocol):
    """Receives the packets of a tunnel. Each session has one receiver."""

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        """The session's next packet, in wire order. code: DATA or ERROR (with id 0: DRAIN), and CLOSE if negotiated.

        data: immutable, the receiver's to keep. Must not raise, and may call the tunnel it belongs to.
        """

    def tunnel_lost(self, error: Exception | None) -> None:
        """The session has ended. This is the last call, made once. error: the reason, None after an orderly end."""


class PacketError(WireError):
    """A packet broke the format. conn_id: the packet's connection, or 0 if it could not be read."""

    def __init__(self, rule: str, conn_id: int = 0) -> None:
        super().__init__(rule)
        self.conn_id = conn_id


# ---------------------------------------------------------------- writing


def encode_varint(value: int) -> bytes:
    """Return a protobuf varint, 1 to 10 bytes. value: -2^63 to 2^64-1. Negative: two's complement in 64 bits."""
    if value < 0:
        value += 1 << 64
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def data_field(conn_id: int) -> bytes:
    """The bytes in front of the payload's length in every DATA packet of one connection: made once, kept by it."""
    return b"\x08" + encode_varint(conn_id) + b"\x1a"


def message_head(field: bytes, payload_bytes: int) -> bytes:
    """All of a DATA packet's gRPC message but the payload, which follows it. field: from `data_field`."""
    length = encode_varint(payload_bytes)
    return b"\0" + (len(field) + len(length) + payload_bytes).to_bytes(4, "big") + field + length


def encode_packet(
    conn_id: int, code: int, data: bytes | memoryview = b"", error_message: str = "", window: int = 0
) -> bytes:
    """Return one packet as one gRPC message. For small packets: `message_head` avoids the copy of a payload."""
    body = bytearray()
    if conn_id:
        body += b"\x08" + encode_varint(conn_id)
    if code:
        body += b"\x10" + encode_varint(code)
    if len(data):
        body += b"\x1a" + encode_varint(len(data)) + data
    if error_message:
        text = error_message.encode("utf-8", "replace")
        if len(text) > MAX_TEXT_BYTES:  # cut at a character, or the peer's parser refuses the message
            text = text[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode()
        body += b"\x22" + encode_varint(len(text)) + text
    if window:
        body += b"\x28" + encode_varint(window)
    return b"\0" + len(body).to_bytes(4, "big") + bytes(body)


# ---------------------------------------------------------------- reading


def _varint(buffer: bytes | memoryview, position: int, end: int, conn_id: int, what: str) -> tuple[int, int]:
    """The varint at `position`: its value (0 to 2^64-1) and the position behind it."""
    value = shift = 0
    while position < end:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
        shift += 7
        if shift > 63:
            break
    else:
        raise PacketError(f"packet: {what} ends in mid-varint", conn_id)
    raise PacketError(f"packet: {what} is a varint of more than 64 bits", conn_id)


def _skip(buffer: bytes | memoryview, position: int, end: int, tag: int, conn_id: int) -> int:
    """Return the position behind the unknown field whose tag was just read. It skips a group whole."""
    groups: list[int] = []  # the numbers of the groups we are in
    while True:
        wire_type = tag & 7
        if tag >> 3 == 0 or tag >> 32:
            raise PacketError(f"packet: field number {tag >> 3} is out of range", conn_id)
        if wire_type == 0:
            _, position = _varint(buffer, position, end, conn_id, "an unknown field")
        elif wire_type == 1:
            position += 8
        elif wire_type == 5:
            position += 4
        elif wire_type == 2:
            length, position = _varint(buffer, position, end, conn_id, "an unknown field's length")
            position += length
        elif wire_type == 3:
            groups.append(tag >> 3)
            if len(groups) > 100:  # protobuf's own limit of nesting
                raise PacketError("packet: groups nested more than 100 deep", conn_id)
        elif wire_type == 4:
            if not groups or groups.pop() != tag >> 3:
                raise PacketError("packet: the end of a group that was not begun", conn_id)
        else:
            raise PacketError(f"packet: wire type {wire_type} does not exist", conn_id)
        if position > end:
            raise PacketError("packet: an unknown field runs past the message's end", conn_id)
        if not groups:
            return position
        tag, position = _varint(buffer, position, end, conn_id, "a tag")


def decode_packet(buffer: bytes | memoryview, start: int, end: int) -> tuple[int, int, int, int, str, int]:
    """Read the packet in buffer[start:end]: (conn_id, code, its data's start and end, error_message, window).

    The data itself is not touched. Raises PacketError, with the conn_id if it is before the mistake. No text makes an
    ERROR invalid. Invalid UTF-8 is read with replacement characters, and a long text is truncated.
    """
    conn_id = code = window = 0
    data_start = data_end = start
    text = ""
    position = start
    while position < end:
        tag = buffer[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(buffer, position - 1, end, conn_id, "a tag")
        if tag == 0x08:
            value, position = _varint(buffer, position, end, 0, "conn_id")
            conn_id = value - (1 << 64) if value >> 63 else value
        elif tag == 0x1A:
            length, position = _varint(buffer, position, end, conn_id, "data's length")
            if length > end - position:
                raise PacketError("packet: data runs past the message's end", conn_id)
            data_start = position
            data_end = position = position + length
        elif tag == 0x10:
            value, position = _varint(buffer, position, end, conn_id, "code")
            code = value & 0xFFFFFFFF  # an enum is an int32: protobuf keeps the low 32 bits
            if code >> 31:
                code -= 1 << 32
        elif tag == 0x22:
            length, position = _varint(buffer, position, end, conn_id, "error_message's length")
            if length > end - position:
                raise PacketError("packet: error_message runs past the message's end", conn_id)
            text = str(buffer[position : position + min(length, MAX_TEXT_BYTES)], "utf-8", "replace")
            position += length
        elif tag == 0x28:
            value, position = _varint(buffer, position, end, conn_id, "window")
            window = value & 0xFFFFFFFF  # a uint32: protobuf keeps the low 32 bits
        elif tag >> 3 in (1, 2, 3, 4) and tag & 7 != 4:
            name = ("conn_id", "code", "data", "error_message")[(tag >> 3) - 1]
            raise PacketError(f"packet: {name} has wire type {tag & 7}", conn_id)
        else:
            position = _skip(buffer, position, end, tag, conn_id)
    return conn_id, code, data_start, data_end, text, window


def decode_conn_id(head: bytes) -> int:
    """Return the conn_id of a packet from its first 11 bytes, or 0 if it isn't the first field."""
    if not head.startswith(b"\x08"):
        return 0
    try:
        value, _ = _varint(head, 1, len(head), 0, "conn_id")
    except PacketError:
        return 0
    return value - (1 << 64) if value >> 63 else value
