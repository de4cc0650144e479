"""gRPC messages: a stream's bytes to packets, and back. The Python twin: the specification.

    HTTP/2 frames  │9│ DATA │9│ DATA      │9│ … │      http2's FrameReader
    gRPC messages    │5│ mes│ │sage │5│ me│ │ … │      MessageReader, one per stream
    packets            └─────────┘                     at the stream's sink, in wire order

I1 to I3 are `http2.framing_py`'s invariants. Their meaning here:

I1. The same bytes give the same packets and the same error, wherever they are cut.
I2. The received bytes of an unfinished message are kept once, and nothing more.
I3. A payload becomes a view only if it is at least a quarter of the buffer behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..http2 import frames
from ..http2.framing_py import FrameWriter, StreamReader
from . import message_rules
from .message_rules import ByteAccount, MessageRefused, MessageSink
from .packet import ControlCode, PacketError, decode_packet, message_head

__all__ = ["MessageReader", "PacketWriter"]


class MessageReader(StreamReader):
    """Turns the received bytes of one stream's DATA frames into packets. It gives their credit back on arrival.

    max_message_bytes: the longest accepted message. A longer one is skipped, and the sink gets a `bad_packet` for it.
    account: counts an unfinished message's bytes, from their arrival until the message is whole or the reader closed.
        A message without room in the account is skipped, like a longer one.
    ends: refuse both kinds of message instead of skipping them. A longer one is refused as soon as its length is known.
        Then the reader closes, and calls `message_refused`.
    """

    __slots__ = (
        "_account",
        "_assembled",
        "_charged",
        "_ends",
        "_head",
        "_length",
        "_max",
        "_messages",
        "_pieces",
        "_prefix",
        "_want",
    )

    def __init__(
        self,
        sink: MessageSink,
        *,
        window: int,
        max_message_bytes: int,
        account: ByteAccount | None = None,
        ends: bool = False,
    ) -> None:
        self._start(window, manual_credit=False)
        self._messages = sink
        self._max = max_message_bytes
        self._account = account
        self._ends = ends
        self._charged = 0  # bytes of the message in hand that the account holds
        self._prefix = b""  # an unfinished prefix, 0 to 4 bytes
        self._length = 0  # of the message in hand
        self._want = 0  # missing bytes of the message in hand, 0 between messages
        self._pieces: list[memoryview] = []  # its bytes that arrived in this feed
        self._assembled = bytearray()  # its bytes that arrived before this feed
        self._head: bytearray | None = None  # the first bytes of a message that is not kept

    @property
    def in_message(self) -> bool:
        """Whether a message is unfinished, so that an end of the stream would cut it."""
        return bool(self._prefix) or self._want > 0

    @property
    def partial_bytes(self) -> int:
        """Bytes kept of a message that has not fully arrived."""
        return len(self._assembled) + sum(map(len, self._pieces))

    def data(self, buffer: bytes | memoryview, kept_bytes: int, start: int, end: int) -> None:
        """Take buffer[start:end], the next bytes of the stream. Raises WireError if gRPC's framing is broken."""
        while start < end and not self.closed:
            if self._want:
                start += self._take(buffer, start, end)
                continue
            if not self._prefix and end - start >= 5:
                prefix = buffer[start : start + 5]
                start += 5
            else:
                take = 5 - len(self._prefix)
                prefix = self._prefix = self._prefix + buffer[start : min(end, start + take)]
                if len(prefix) < 5:
                    return
                start += take
                self._prefix = b""
            if prefix[0]:
                raise message_rules.message_flags(prefix[0])
            length = int.from_bytes(prefix[1:], "big")
            self._length = length
            if length > self._max:
                if self._ends:
                    self.refuse(message_rules.message_refused(length, self._max))
                    return
                self._want = length
                self._head = bytearray()
            elif length <= end - start:
                self._deliver(buffer, kept_bytes, start, start + length)
                start += length
            else:
                self._want = length

    def settle(self) -> None:
        """Keep the unfinished message's bytes without their buffers (I3). The caller calls it at the end of a feed."""
        for piece in self._pieces:
            self._assembled += piece
        self._pieces.clear()

    def close(self) -> None:
        """Forget the unfinished message. From now on the sink gets nothing."""
        self.closed = True
        self._pieces.clear()
        self._assembled = bytearray()
        self._uncharge()

    def refuse(self, error: MessageRefused) -> None:
        """Read nothing more of the stream, and give the sink the reason."""
        self.close()
        self._messages.message_refused(error)

    def _uncharge(self) -> None:
        charged, self._charged = self._charged, 0
        if charged and self._account is not None:
            self._account.give_back(charged)

    def _take(self, buffer: bytes | memoryview, start: int, end: int) -> int:
        """Take the bytes of the message in hand from buffer[start:end]. Returns their number."""
        take = min(self._want, end - start)
        self._want -= take
        if self._head is None and self._want and self._account is not None:
            if not self._account.take(take):
                self._give_up()
                if self.closed:
                    return take
            else:
                self._charged += take
                if self.closed:  # by what the account had to end for it
                    self._uncharge()
                    return take
        head = self._head
        if head is None:
            self._pieces.append(memoryview(buffer)[start : start + take])
            if not self._want:
                if self._assembled:
                    self.settle()
                    whole = bytes(self._assembled)
                    self._assembled = bytearray()
                else:
                    whole = b"".join(self._pieces)
                    self._pieces.clear()
                self._uncharge()
                self._deliver(whole, len(whole), 0, len(whole))
            return take
        if len(head) < message_rules.LARGE_HEAD_BYTES:
            head += buffer[start : start + min(take, message_rules.LARGE_HEAD_BYTES - len(head))]
            if len(head) == message_rules.LARGE_HEAD_BYTES or not self._want:
                self._messages.bad_packet(message_rules.message_passed_over(self._length, self._max, bytes(head)))
        if not self._want:
            self._head = None
        return take

    def _give_up(self) -> None:
        """There is no room for the message in hand: pass it over."""
        if self._ends:
            self.refuse(message_rules.message_crowded(self._length))
            return
        self.settle()
        kept, self._assembled = self._assembled, bytearray()
        self._uncharge()
        self._head = kept[: message_rules.LARGE_HEAD_BYTES]
        if len(kept) >= message_rules.LARGE_HEAD_BYTES:
            self._messages.bad_packet(message_rules.message_passed_over(self._length, self._max, bytes(self._head)))

    def _deliver(self, buffer: bytes | memoryview, kept_bytes: int, start: int, end: int) -> None:
        try:
            conn_id, code, data_start, data_end, text, window = decode_packet(buffer, start, end)
        except PacketError as error:
            self._messages.bad_packet(error)
            return
        if code == ControlCode.WINDOW:
            self._messages.credit(conn_id, window)
            return
        size = data_end - data_start
        data: bytes | memoryview
        if size * 4 >= kept_bytes and size > frames.VIEW_BYTES:  # I3
            data = memoryview(buffer)[data_start:data_end]
        else:
            data = bytes(buffer[data_start:data_end])
        self._messages.packet(conn_id, code, data, text)


class PacketWriter(FrameWriter):
    """One stream's way out: packets, each in one message, to DATA frames."""

    __slots__ = ()

    def append_packet(self, field: bytes, pieces: Sequence[bytes | memoryview], size: int) -> None:
        """Queue a DATA packet. field: its connection's `data_field`. size: the bytes of all pieces together.

        Pieces are kept by reference, or copied into one if the copy costs less than carrying them to the socket.
        """
        head = message_head(field, size)
        if size <= message_rules.JOIN_BYTES:
            self.append(b"".join((head, *pieces)))
        elif len(pieces) * 1024 > size:  # crumbs
            self.append(head)
            self.append(b"".join(pieces))
        else:
            self.append(head)
            for piece in pieces:
                self.append(piece)
