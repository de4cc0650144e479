"""The rules of gRPC's messages for both twins of `messages`: sizes, protocols, and the text for each broken rule.

They exist once, so that a compiled reader and a Python reader report the same error for the same bytes.
"""

from __future__ import annotations

from typing import Protocol

from ..errors import WireError
from ..http2.errors import ErrorCode
from .packet import PacketError, decode_conn_id

__all__ = ["ByteAccount", "MessageRefused", "MessageSink"]

LARGE_HEAD_BYTES = 11  # a tag and the longest varint: enough to know whose message it is
JOIN_BYTES = 16 * 1024  # up to here one copy costs less than carrying the pieces to the socket


class MessageRefused(WireError):
    """A message is longer than is taken, or there is no memory for it: its call ends with RESOURCE_EXHAUSTED."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule, http2_code=ErrorCode.ENHANCE_YOUR_CALM)


class ByteAccount(Protocol):
    """Counts the bytes of unfinished messages."""

    def take(self, size_bytes: int) -> bool:
        """Count these bytes as held. Returns False, and counts nothing, if there is no room for them."""

    def give_back(self, size_bytes: int) -> None:
        """These bytes are no longer held."""


class MessageSink(Protocol):
    """Receives one stream's messages."""

    def packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        """The stream's next packet. data: immutable; a memoryview of bytes or bytes."""

    def credit(self, conn_id: int, increment_bytes: int) -> None:
        """The stream's next packet, of code WINDOW. increment_bytes: its `window`, 0 to 2^32-1, unchecked."""

    def bad_packet(self, error: PacketError) -> None:
        """A message could not be read or is too large. The call takes the place of its packet.

        The stream itself continues.
        """

    def message_refused(self, error: MessageRefused) -> None:
        """A message is too long, or there is no room for it, so the call must end. The reader reads nothing more.

        Only readers made with `ends` call it.
        """


def message_flags(flags: int) -> WireError:
    rule = "is compressed, which was not offered" if flags == 1 else f"has flags {flags:#x}"
    return WireError(f"gRPC: a message {rule}", http2_code=ErrorCode.INTERNAL_ERROR)


def message_refused(length: int, limit: int) -> MessageRefused:
    return MessageRefused(f"gRPC: a message of {length} bytes, the limit is {limit}")


def message_crowded(length: int) -> MessageRefused:
    return MessageRefused(f"gRPC: no memory for a message of {length} bytes: unfinished messages hold all they may")


def message_crowded_out(held: int) -> MessageRefused:
    rule = f"{held} bytes of an unfinished message give way: unfinished messages hold all they may"
    return MessageRefused(f"gRPC: {rule}")


def message_passed_over(length: int, limit: int, head: bytes) -> PacketError:
    """Return the error of a message that is not kept.

    length: the message's length in bytes. If it is within the limit, the memory for it was missing.
    limit: the longest accepted length.
    head: the message's first LARGE_HEAD_BYTES, or the whole message.
    """
    error = message_refused(length, limit) if length > limit else message_crowded(length)
    return PacketError(error.rule, decode_conn_id(head))
