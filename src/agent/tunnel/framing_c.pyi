from typing import final

from .frames import ByteAccount, FrameHandler, MessageSink

__all__ = ["FrameReader", "FrameWriter", "MessageReader"]

@final
class MessageReader:
    window: int
    unreturned: int
    ended: bool
    closed: bool
    held: bool
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
    def close(self) -> None: ...

@final
class FrameReader:
    streams: dict[int, MessageReader]
    window: int
    unreturned: int
    max_frame_size: int
    stopped: bool
    def __init__(self, handler: FrameHandler, *, expect_preface: bool) -> None: ...
    def feed(self, data: bytes | memoryview, kept_bytes: int = 0) -> None: ...
    def feed_part(self, buffer: memoryview, size: int) -> None: ...
    def stop(self) -> None: ...

@final
class FrameWriter:
    @property
    def pending(self) -> int: ...
    def __init__(self, stream_id: int) -> None: ...
    def append(self, piece: bytes | memoryview) -> None: ...
    def append_packet(self, field: bytes, pieces: list[bytes | memoryview], size: int) -> None: ...
    def take(self, limit: int, max_frame_size: int) -> list[bytes | memoryview]: ...
    def take_joined(self, limit: int, max_frame_size: int) -> bytes: ...
    def clear(self) -> None: ...
