"""The door to gRPC's messages: the twin that goes with the data plane's (`http2.framing`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..http2.framing import IMPLEMENTATION
from .message_rules import ByteAccount, MessageRefused, MessageSink

# A type checker reads the compiled twin's stub.
if TYPE_CHECKING or IMPLEMENTATION == "c":
    from .messages_c import MessageReader, PacketWriter
else:
    from .messages_py import MessageReader, PacketWriter

__all__ = ["ByteAccount", "MessageReader", "MessageRefused", "MessageSink", "PacketWriter"]
