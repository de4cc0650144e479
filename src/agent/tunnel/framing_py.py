"""The data plane: HTTP/2 DATA frames to gRPC messages to packets, and back. The Python twin: the specification.

No event loop and no transport in here: bytes go in by `FrameReader.feed`, packets come out at each stream's sink in
wire order, before `feed` returns; messages go in by `FrameWriter.append`, framed buffers come out by `take`.

What comes in is cut at three levels that know nothing of each other's borders:

    received bytes │ … 256 KiB … │ … 256 KiB … │       as the kernel had them
    HTTP/2 frames  │9│ DATA │9│ DATA      │9│ … │      FrameReader
    gRPC messages  │5│ message │5│ message │5│ … │     MessageReader, one per stream

                 preface (hub's side only)
                    │
                    ▼              DATA: window, length checked at the header
    ┌────────► frame header ───────────────► payload, piece by piece ──┐
    │               │  HEADERS, SETTINGS, …      │                     │
    │               ├────────────────────────► collected whole ────────┤
    │               │  WINDOW_UPDATE, GOAWAY, and types not known      │
    └───────────────┴──────────────────────────────────────────────────┘

Invariants
  I1  The same bytes give the same packets and the same error, however they are cut into calls of `feed`.
  I2  Nothing waits for a DATA frame to be whole: what is kept of an unfinished message is what arrived of it, once.
  I3  A received buffer outlives `feed` only through payloads handed out as views, and those are at least a quarter of
      it: a small payload that waits somewhere never holds a large buffer. Nobody writes into a received buffer while a
      view of it is left: it is bytes, or a Chunk.
  I4  A DATA frame counts against both windows whole (padding too) when its header is read; on a stream that is not
      ours any more it counts against the connection's only, and its credit goes back (RFC 9113, sections 5.1, 6.9).
  I5  Between HEADERS or PUSH_PROMISE and its END_HEADERS nothing but CONTINUATION of that stream (section 6.2).
  I6  A handler may stop the reader from within any call: then not one more byte is looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..errors import WireError
from . import frames
from .frames import DATA, HEAD, ByteAccount, FrameHandler, MessageSink
from .packet import ControlCode, PacketError, decode_packet, message_head

__all__ = ["FrameReader", "FrameWriter", "MessageReader"]


class MessageReader:
    """One stream's way in: pieces of DATA frames to packets. `window` and `unreturned` are its flow control's books.

    max_message_bytes: a longer message is passed over without being kept, and the sink hears of it in its place.
    account: what the bytes of an unfinished message are charged to, from when they come until the message is whole or
    the reader is closed; a message that it has no room for is passed over as a longer one. ends: either raises
    MessageRefused in place of that, as soon as the message's length is known.
    """

    __slots__ = (
        "_account",
        "_assembled",
        "_charged",
        "_ends",
        "_head",
        "_length",
        "_max",
        "_pieces",
        "_prefix",
        "_sink",
        "_want",
        "closed",
        "ended",
        "held",
        "unreturned",
        "window",
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
        self.window = window  # bytes the peer may still send on this stream
        self.unreturned = 0  # bytes received whose credit has not gone back yet
        self.ended = False  # END_STREAM was received
        self.closed = False  # nobody listens any more
        self.held = False  # its credit stays here for now
        self._sink = sink
        self._max = max_message_bytes
        self._account = account
        self._ends = ends
        self._charged = 0  # bytes of the message in hand that the account holds
        self._prefix = b""  # an unfinished prefix, 0 to 4 bytes
        self._length = 0  # of the message in hand
        self._want = 0  # bytes still to come of the message in hand; 0: between messages
        self._pieces: list[memoryview] = []  # what came of it in this feed
        self._assembled = bytearray()  # and before it
        self._head: bytearray | None = None  # the first bytes of a message that is not kept

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and not ended: the end of the stream now would cut it."""
        return bool(self._prefix) or self._want > 0

    @property
    def partial_bytes(self) -> int:
        """Bytes kept of a message that has not fully arrived."""
        return len(self._assembled) + sum(map(len, self._pieces))

    def data(self, buffer: bytes | memoryview, kept_bytes: int, start: int, end: int) -> None:
        """Take buffer[start:end], the next bytes of the stream. Raises WireError where gRPC's framing is broken."""
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
                raise frames.message_flags(prefix[0])
            length = int.from_bytes(prefix[1:], "big")
            self._length = length
            if length > self._max:
                if self._ends:
                    raise frames.message_refused(length, self._max)
                self._want = length
                self._head = bytearray()
            elif length <= end - start:
                self._deliver(buffer, kept_bytes, start, start + length)
                start += length
            else:
                self._want = length

    def settle(self) -> None:
        """Keep the unfinished message's bytes without the buffers they came in (I3); called at the end of a feed."""
        for piece in self._pieces:
            self._assembled += piece
        self._pieces.clear()

    def close(self) -> None:
        """Forget the unfinished message; nothing goes to the sink from now on."""
        self.closed = True
        self._pieces.clear()
        self._assembled = bytearray()
        self._uncharge()

    def _uncharge(self) -> None:
        charged, self._charged = self._charged, 0
        if charged and self._account is not None:
            self._account.give_back(charged)

    def _take(self, buffer: bytes | memoryview, start: int, end: int) -> int:
        """Take what buffer[start:end] has of the message in hand; how many bytes that was."""
        take = min(self._want, end - start)
        self._want -= take
        if self._head is None and self._want and self._account is not None:
            if not self._account.take(take):
                self._give_up()
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
        if len(head) < frames.LARGE_HEAD_BYTES:
            head += buffer[start : start + min(take, frames.LARGE_HEAD_BYTES - len(head))]
            if len(head) == frames.LARGE_HEAD_BYTES or not self._want:
                self._sink.bad_packet(frames.message_passed_over(self._length, self._max, bytes(head)))
        if not self._want:
            self._head = None
        return take

    def _give_up(self) -> None:
        """There is no room for the message in hand: pass it over."""
        if self._ends:
            raise frames.message_crowded(self._length)
        self.settle()
        kept, self._assembled = self._assembled, bytearray()
        self._uncharge()
        self._head = kept[: frames.LARGE_HEAD_BYTES]
        if len(kept) >= frames.LARGE_HEAD_BYTES:
            self._sink.bad_packet(frames.message_passed_over(self._length, self._max, bytes(self._head)))

    def _deliver(self, buffer: bytes | memoryview, kept_bytes: int, start: int, end: int) -> None:
        try:
            conn_id, code, data_start, data_end, text, window = decode_packet(buffer, start, end)
        except PacketError as error:
            self._sink.bad_packet(error)
            return
        if code == ControlCode.WINDOW:
            self._sink.credit(conn_id, window)
            return
        size = data_end - data_start
        data: bytes | memoryview
        if size * 4 >= kept_bytes and size > frames.VIEW_BYTES:  # I3
            data = memoryview(buffer)[data_start:data_end]
        else:
            data = bytes(buffer[data_start:data_end])
        self._sink.packet(conn_id, code, data, text)


class FrameReader:
    """The connection's way in. A stream's MessageReader is put into `streams`; `unreturned` is credit to give back.

    expect_preface: whether the peer is a client. max_frame_size: what the peer may send, for now.
    """

    def __init__(self, handler: FrameHandler, *, expect_preface: bool) -> None:
        self.streams: dict[int, MessageReader] = {}
        self.window = frames.DEFAULT_WINDOW  # bytes the peer may still send on the connection
        self.unreturned = 0  # bytes received whose credit has not gone back yet
        self.max_frame_size = frames.MIN_MAX_FRAME_SIZE
        self.stopped = False
        self._handler = handler
        self._preface = frames.PREFACE if expect_preface else b""  # what is still to come of it
        self._settings_seen = False
        self._stash = b""  # an unfinished frame header, 0 to 8 bytes
        self._left = 0  # bytes still to come of the frame in hand
        self._control: bytearray | None = None  # a control frame being collected; None: its bytes go elsewhere
        self._reader: MessageReader | None = None  # whom the DATA frame in hand belongs to; None: passed over
        self._stream_id = 0
        self._flags = 0
        self._padding = 0  # bytes of padding at the end of the DATA frame in hand; -1: not read yet
        self._block_stream = 0  # the stream whose header block is open (I5)
        self._block_bytes = 0

    def feed(self, data: bytes | memoryview, kept_bytes: int = 0) -> None:
        """Take the next bytes received. Raises WireError where the connection is beyond repair.

        data: exact bytes, or a read-only view of single bytes that never change. kept_bytes: how much memory a view of
        it keeps, where that is more than its length.
        """
        kept_bytes = max(kept_bytes, len(data))
        if self._preface:
            count = min(len(self._preface), len(data))
            if data[:count] != self._preface[:count]:
                raise frames.no_preface()
            self._preface = self._preface[count:]
            data = data[count:]
        position, end = 0, len(data)
        touched: MessageReader | None = None
        while position < end and not self.stopped:
            if self._left:
                if self._control is not None:
                    take = min(self._left, end - position)
                    self._control += data[position : position + take]
                    self._left -= take
                    position += take
                    if not self._left:
                        self._control_done()
                    continue
                if touched is not None and touched is not self._reader:
                    touched.settle()
                touched = self._reader
                position = self._payload(data, kept_bytes, position, end)
                continue
            if not self._stash and end - position >= 9:
                high, low, kind, flags, stream_id = HEAD.unpack_from(data, position)
                position += 9
            else:
                take = min(9 - len(self._stash), end - position)
                self._stash += data[position : position + take]
                position += take
                if len(self._stash) < 9:
                    break
                high, low, kind, flags, stream_id = HEAD.unpack(self._stash)
                self._stash = b""
            self._begin(high << 8 | low, kind, flags, stream_id & 0x7FFFFFFF)
        if touched is not None:
            touched.settle()

    def feed_part(self, buffer: memoryview, size: int) -> None:
        """Take buffer[:size], the next bytes received, of which nothing is kept: they may change after the call.

        Raises WireError as `feed` does.
        """
        self.feed(bytes(buffer[:size]))

    def stop(self) -> None:
        """Look at no further byte, whatever is fed (I6), and forget unfinished frames and messages."""
        self.stopped = True
        for reader in self.streams.values():
            reader.close()

    def _begin(self, length: int, kind: int, flags: int, stream_id: int) -> None:
        """Check a frame's header, and choose where its payload goes."""
        if not self._settings_seen:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise frames.no_settings(kind)
            self._settings_seen = True
        if length > self.max_frame_size:
            raise frames.frame_too_large(kind, length, self.max_frame_size)
        if self._block_stream and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise frames.inside_header_block(kind, self._block_stream)  # I5
        self._left = length
        self._stream_id = stream_id
        self._flags = flags
        self._control = None
        self._reader = None
        self._padding = 0
        if kind == DATA:
            self._begin_data(length)
            return
        if kind > frames.CONTINUATION:  # types not known are ignored (section 5.5)
            return
        if kind in (frames.HEADERS, frames.PUSH_PROMISE, frames.CONTINUATION):
            if kind == frames.CONTINUATION:
                if not self._block_stream:
                    raise frames.stray_continuation()
                self._block_bytes += length
            else:
                self._block_bytes = length
            if self._block_bytes > frames.MAX_HEADER_BLOCK_BYTES:
                raise frames.header_block_too_large()
            self._block_stream = 0 if flags & frames.END_HEADERS else stream_id
        frames.check_control(kind, flags, stream_id, length)
        self._control = bytearray(HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream_id))
        if not length:
            self._control_done()

    def _begin_data(self, length: int) -> None:
        """A DATA frame's header: the windows are charged with all of it (I4)."""
        stream_id = self._stream_id
        if not stream_id:
            raise frames.data_on_stream_0()
        if length > self.window:
            raise frames.beyond_connection_window(length, self.window)
        self.window -= length
        self.unreturned += length
        if self._flags & frames.PADDED:
            if not length:
                raise frames.no_pad_length()
            self._padding = -1
        reader = self.streams.get(stream_id)
        if reader is None or reader.ended or reader.closed:
            self._handler.stray_data(stream_id)
            return
        if length > reader.window:
            self._fail_stream(reader, frames.beyond_stream_window(length, reader.window, stream_id))
            return
        reader.window -= length
        reader.unreturned += length
        self._reader = reader
        if not length:
            self._data_done(reader)

    def _payload(self, data: bytes | memoryview, kept_bytes: int, position: int, end: int) -> int:
        """Take what data[position:end] has of the frame in hand's payload; the position behind it."""
        reader = self._reader
        if self._padding < 0:
            self._padding = data[position]
            position += 1
            self._left -= 1
            if self._padding > self._left:
                raise frames.padding_too_long(self._padding, self._left)
        elif reader is not None and self._left > self._padding:
            take = min(self._left - self._padding, end - position)
            self._left -= take
            try:
                reader.data(data, kept_bytes, position, position + take)
            except WireError as error:
                self._fail_stream(reader, error)
            position += take
        else:
            take = min(self._left, end - position)
            self._left -= take
            position += take
        if not self._left and reader is not None:
            self._data_done(reader)
        return position

    def _data_done(self, reader: MessageReader) -> None:
        """The DATA frame in hand is whole."""
        if self._flags & frames.END_STREAM and not reader.closed and not reader.ended:
            reader.ended = True
            self._handler.data_ended(self._stream_id)

    def _fail_stream(self, reader: MessageReader, error: WireError) -> None:
        reader.close()
        self._reader = None
        self._handler.stream_error(self._stream_id, error)

    def _control_done(self) -> None:
        """The control frame in hand is whole."""
        assert self._control is not None
        whole = bytes(self._control)
        self._control = None
        kind = whole[3]
        if kind == frames.WINDOW_UPDATE:
            self._handler.window_update(self._stream_id, int.from_bytes(whole[9:], "big") & 0x7FFFFFFF)
        else:
            self._handler.control_frame(kind, self._flags, self._stream_id, whole)


class FrameWriter:
    """One stream's way out: messages, given in pieces, to DATA frames. Pieces go out by reference.

    It holds what a window or the transport has cut: a message that was begun has to be finished before the next.
    """

    __slots__ = ("_pieces", "_stream_id", "pending")

    def __init__(self, stream_id: int) -> None:
        self.pending = 0  # bytes that are not in a frame yet
        self._stream_id = stream_id
        self._pieces: deque[bytes | memoryview] = deque()

    def append(self, piece: bytes | memoryview) -> None:
        """Put a message's next piece behind what waits. piece: bytes or a view of single bytes; kept, not copied."""
        size = len(piece)
        if size:
            self._pieces.append(piece)
            self.pending += size

    def append_packet(self, field: bytes, pieces: Sequence[bytes | memoryview], size: int) -> None:
        """Put a DATA packet behind what waits. field: its connection's `data_field`; size: of all pieces together.

        Pieces are kept by reference, or copied into one where that costs less than carrying them to the socket.
        """
        head = message_head(field, size)
        if size <= frames.JOIN_BYTES:
            self.append(b"".join((head, *pieces)))
        elif len(pieces) * 1024 > size:  # crumbs
            self.append(head)
            self.append(b"".join(pieces))
        else:
            self.append(head)
            for piece in pieces:
                self.append(piece)

    def take(self, limit: int, max_frame_size: int) -> list[bytes | memoryview]:
        """Frames with up to `limit` bytes of what waits, none larger than max_frame_size: buffers, in order."""
        out: list[bytes | memoryview] = []
        pieces = self._pieces
        if max_frame_size < 1:
            raise ValueError("a frame holds at least 1 byte")
        while limit > 0 and self.pending:
            size = min(limit, self.pending, max_frame_size)
            limit -= size
            self.pending -= size
            out.append(HEAD.pack(size >> 8, size & 0xFF, DATA, 0, self._stream_id))
            while size:
                piece = pieces[0]
                if len(piece) <= size:
                    pieces.popleft()
                    out.append(piece)
                    size -= len(piece)
                else:
                    view = memoryview(piece)
                    out.append(view[:size])
                    pieces[0] = view[size:]
                    size = 0
        return out

    def take_joined(self, limit: int, max_frame_size: int) -> bytes:
        """The same, copied into one."""
        return b"".join(self.take(limit, max_frame_size))

    def clear(self) -> None:
        """Forget what waits: the stream is gone."""
        self._pieces.clear()
        self.pending = 0
