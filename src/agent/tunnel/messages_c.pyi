from typing import final

from ..http2.framing_c import FrameWriter, StreamReader
from .message_rules import ByteAccount, MessageRefused, MessageSink

__all__ = ["MessageReader", "PacketWriter"]

@final
class MessageReader(StreamReader):
    def __init__(
        self,
        sink: MessageSink,
        *,
        window: int,
        max_message_bytes: int,
        account: ByteAccount | None = None,
        ends: bool = False,
    ) -> None: ...
    @property
    def in_message(self) -> bool: ...
    @property
    def partial_bytes(self) -> int: ...
    def refuse(self, error: MessageRefused) -> None: ...

@final
class PacketWriter(FrameWriter):
    def append_packet(self, field: bytes, pieces: list[bytes | memoryview], size: int) -> None: ...
