"""The data plane: HTTP/2 frames to each stream's bytes, and back. This Python twin is the specification.

It has no event loop and no transport. `FrameReader.feed` takes bytes, and passes them to each stream's reader in wire
order before it returns. `FrameWriter.append` takes a stream's bytes, and `take` returns framed buffers.

Each level cuts its input independently of the others:

    received bytes │ … 128 KiB … │ … 128 KiB … │       as the kernel had them
    HTTP/2 frames  │9│ DATA │9│ DATA      │9│ … │      FrameReader
    DATA's bytes     │──────│ │───────────│            StreamReader, one per stream; a subclass reads them

                 preface (a server's reader only)
                    │
                    ▼              DATA: window, length checked at the header
    ┌────────► frame header ───────────────► payload, piece by piece ──┐
    │               │  HEADERS, SETTINGS, …      │                     │
    │               ├────────────────────────► collected whole ────────┤
    │               │  WINDOW_UPDATE, GOAWAY, and unknown types        │
    └───────────────┴──────────────────────────────────────────────────┘

Invariants
  I1  The same bytes give the same calls and the same error, however `feed` gets them. Only the pieces of a stream's
      DATA may differ.
  I2  No byte waits until its DATA frame is whole.
  I3  A received buffer outlives `feed` only through views, and each view is at least a quarter of it. So a small
      waiting piece never holds a large buffer. No code writes into a received buffer while a view of it exists, since
      it is bytes or a Chunk.
  I4  A DATA frame counts against both windows whole (padding too) when its header is read. On a forgotten stream it
      counts only against the connection's, and its credit returns (RFC 9113, sections 5.1, 6.9).
  I5  Between HEADERS or PUSH_PROMISE and its END_HEADERS only CONTINUATION of that stream is allowed (section 6.2).
  I6  A handler may stop the reader within any call. Then the reader reads no further byte.
"""

from __future__ import annotations

from collections import deque

from ..errors import WireError
from . import frames
from .frames import DATA, HEAD, ByteSink, FrameHandler, frame

__all__ = ["FrameReader", "FrameWriter", "StreamReader", "frame"]


class StreamReader:
    """Receives one stream's DATA and passes it to the sink at once. A subclass may parse its protocol instead.

    The credit for the sink's bytes returns when the user calls `consumed`. The credit for padding returns at once.

    sink: gets the bytes.
    window: the peer's first credit in bytes.
    unreturned: credit that must still return.
    """

    __slots__ = ("_sink", "closed", "ended", "held", "manual_credit", "unread", "unreturned", "window")

    def __init__(self, sink: ByteSink, *, window: int) -> None:
        self._sink = sink
        self._start(window, manual_credit=True)

    def _start(self, window: int, *, manual_credit: bool) -> None:
        """Set the fields that every reader has. manual_credit: bytes count as unread until the user consumes them."""
        self.window = window  # bytes the peer may still send on this stream
        self.unreturned = 0  # bytes received whose credit may go back, and has not yet
        self.unread = 0  # bytes received that the user has not consumed yet
        self.manual_credit = manual_credit
        self.ended = False  # END_STREAM was received
        self.closed = False  # no user reads further
        self.held = False  # its credit does not return for now

    def consumed(self, size_bytes: int) -> None:
        """Return the credit of bytes that the user has used. Raises ValueError for more than arrived."""
        if not 0 <= size_bytes <= self.unread:
            raise ValueError(f"{self.unread} bytes are unread, not {size_bytes}")
        self.unread -= size_bytes
        self.unreturned += size_bytes

    def close(self) -> None:
        """Nothing goes to the sink from now on."""
        self.closed = True

    def data(self, buffer: bytes | memoryview, kept_bytes: int, start: int, end: int) -> None:
        """Take buffer[start:end], the next bytes of the stream. A subclass raises WireError to fail the stream.

        kept_bytes: how much memory a view of the buffer keeps.
        """
        size = end - start
        if self.closed:
            return
        if size * 4 >= kept_bytes and size > frames.VIEW_BYTES:  # I3
            self._sink.data_received(memoryview(buffer)[start:end])
        else:
            self._sink.data_received(bytes(buffer[start:end]))

    def settle(self) -> None:
        """Drop all references to received buffers (I3), at the end of a feed."""


class FrameReader:
    """Reads the frames of a connection. `streams` holds each stream's StreamReader.

    expect_preface: whether the peer is a client.
    max_frame_size: the largest allowed frame of the peer.
    unreturned: credit that must still return.
    """

    def __init__(self, handler: FrameHandler, *, expect_preface: bool) -> None:
        self.streams: dict[int, StreamReader] = {}
        self.window = frames.DEFAULT_WINDOW  # bytes the peer may still send on the connection
        self.unreturned = 0  # bytes received whose credit has not gone back yet
        self.max_frame_size = frames.MIN_MAX_FRAME_SIZE
        self.stopped = False
        self._handler = handler
        self._preface = frames.PREFACE if expect_preface else b""  # what is still to come of it
        self._settings_seen = False
        self._stash = b""  # an unfinished frame header, 0 to 8 bytes
        self._left = 0  # missing bytes of the current frame
        self._control: bytearray | None = None  # a control frame being collected, None for other frames
        self._reader: StreamReader | None = None  # of the current DATA frame, None to skip it
        self._stream_id = 0
        self._flags = 0
        self._padding = 0  # bytes of padding at the end of the current DATA frame, -1 if not read yet
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
        touched: StreamReader | None = None
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
        """Take buffer[:size], the next received bytes, and keep none of them. They may change after the call.

        Raises WireError as `feed` does.
        """
        self.feed(bytes(buffer[:size]))

    @property
    def has_begun(self) -> bool:
        """Whether a frame other than DATA, or a header block, has come in part."""
        return self._control is not None or self._block_stream != 0 or bool(self._stash)

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
        if reader.manual_credit:
            reader.unread += length
        else:
            reader.unreturned += length
        self._reader = reader
        if not length:
            self._data_done(reader)

    def _payload(self, data: bytes | memoryview, kept_bytes: int, position: int, end: int) -> int:
        """Take the current frame's payload from data[position:end]. Returns the position behind it."""
        reader = self._reader
        if self._padding < 0:
            self._padding = data[position]
            position += 1
            self._left -= 1
            if self._padding > self._left:
                raise frames.padding_too_long(self._padding, self._left)
            if reader is not None and reader.manual_credit:  # no user sees padding
                reader.unread -= self._padding + 1
                reader.unreturned += self._padding + 1
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

    def _data_done(self, reader: StreamReader) -> None:
        """The DATA frame in hand is whole."""
        if self._flags & frames.END_STREAM and not reader.closed and not reader.ended:
            reader.ended = True
            self._handler.data_ended(self._stream_id)

    def _fail_stream(self, reader: StreamReader, error: WireError) -> None:
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
    """One stream's way out: bytes, given in pieces, to DATA frames. Pieces go out by reference.

    It holds what a window or the transport has cut. A subclass frames messages: one that was begun goes out whole.
    """

    __slots__ = ("_pieces", "_stream_id", "pending")

    def __init__(self, stream_id: int) -> None:
        self.pending = 0  # bytes that are not in a frame yet
        self._stream_id = stream_id
        self._pieces: deque[bytes | memoryview] = deque()

    def append(self, piece: bytes | memoryview) -> None:
        """Append a piece. piece: bytes or a view of single bytes, which is kept and not copied."""
        size = len(piece)
        if size:
            self._pieces.append(piece)
            self.pending += size

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
        """Drop all waiting bytes, since the stream is closed."""
        self._pieces.clear()
        self.pending = 0
