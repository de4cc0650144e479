"""The half of a connection that knows the states of streams: their heads, ends and resets (RFC 9113, section 5.1).

              HEADERS, either way              END_STREAM, either way            END_STREAM, the other way
    (no entry) ───────────────► an Http2Stream ──────────────────► half-closed ──────────────────────────► (no entry)
       idle                         open     └──────────────── RST_STREAM, either way ─────────────────────► closed

A number above the highest so far is idle, and all others without an entry are closed. A closed stream that was reset is
remembered, since its peer may have sent more before it knew.

    HEADERS of     our client's stream     the peer's stream
    ----------     -------------------     ----------------------------------------
    idle           connection error        the request
    open           response, trailers      trailers
    half-closed    STREAM_CLOSED, once the peer has ended its side
    reset          nothing, but its block is decoded
    ended          STREAM_CLOSED, of the connection

Cython compiles this file as it is, with the types of `stream_plane.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..errors import WireError
from .control_frame_limiter import ControlFrameLimiter
from .data_plane import ControlPlane, DataPlane
from .errors import ErrorCode, StreamReset, StreamsExhausted
from .frames import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, MIN_MAX_FRAME_SIZE, PRIORITY, header_fragment
from .framing import DATA, DEFAULT_WINDOW, RST_STREAM, FrameReader, FrameWriter, StreamReader, frame
from .head_rules import Headers, HeadKind, fault_of
from .header_blocks import BlockDecoder, BlockEncoder
from .peer_limits import PeerLimits
from .stream import Http2Stream, Sender, StreamConnection, StreamUser

__all__ = ["ConnectionUser", "StreamOwner", "StreamPlane"]

UNLIMITED = 2**32
"""No SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113, section 6.5.2)."""

MAX_STREAM_ID = 2**31 - 1
"""RFC 9113, section 5.1.1."""

REMEMBERED_RESETS = 2048
"""Closed streams that were reset. HEADERS of an older one end the connection."""

# C globals (stream_plane.pxd), since an imported name is a Python number in a dictionary.
_DATA = DATA
_HEADERS = HEADERS
_CONTINUATION = CONTINUATION
_RST_STREAM = RST_STREAM
_PRIORITY = PRIORITY
_END_STREAM = END_STREAM
_END_HEADERS = END_HEADERS
_FRAGMENT_BYTES = MIN_MAX_FRAME_SIZE


class _Nobody:
    """The user of a stream that has ended. A circle of stream and user would wait for the garbage collector."""

    def headers_received(self, headers: Headers, ended: bool) -> None: ...
    def informational_received(self, headers: Headers) -> None: ...
    def trailers_received(self, headers: Headers) -> None: ...
    def stream_ended(self) -> None: ...
    def stream_lost(self, error: Exception) -> None: ...

    def fill(self, writer: FrameWriter) -> bool:
        return False


NOBODY = _Nobody()


class ConnectionUser(Protocol):
    """The owner of a connection."""

    def connected(self, connection: Any) -> None:
        """Streams can be opened from now on."""

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        """The peer opened a stream (the server's role): set `stream.user` before returning."""

    def stream_refused(self, connection: Any, fault: str) -> None:
        """The peer opened a stream with a malformed head, and the stream was reset. fault: the broken rule."""

    def goaway_received(self, connection: Any) -> None:
        """The peer wants no new streams here. Those that are open stay so."""

    def connection_ended(self, connection: Any, error: Exception | None) -> None:
        """The transport is closed. This is the last call. error: the reason, None if this side closed it."""


class StreamOwner(ControlPlane, StreamConnection, Protocol):
    """The calls of the streams' half to the other one, which is the connection of each stream."""

    def connection_frame(self, kind: int, flags: int, whole: bytes) -> None:
        """A frame of the connection came: SETTINGS, PING, GOAWAY or PUSH_PROMISE."""

    def streams_ended(self) -> None:
        """The last stream has ended, and no new ones are served."""


class StreamPlane(DataPlane):
    """The streams of `Http2Connection`.

    Args:
        owner: the half that is a subclass, since a `cdef class` can't inherit from asyncio.BufferedProtocol.
        user, client, limits, make_reader, make_writer: as of Http2Connection.
        window_bytes, frames, sender, input_ended: as of DataPlane.

    Attributes:
        draining: no new streams are served.
        peer_streams: how many streams the peer allows at once, by its latest SETTINGS. Without any, it is huge.
    """

    def __init__(
        self,
        owner: StreamOwner,
        user: ConnectionUser,
        client: bool,
        window_bytes: int,
        frames: FrameReader,
        sender: Sender,
        limits: PeerLimits,
        make_reader: Callable[[Http2Stream, int], StreamReader],
        make_writer: Callable[[int], FrameWriter],
        input_ended: Callable[[], None] | None,
    ) -> None:
        super().__init__(owner, window_bytes, frames, sender, input_ended)
        self.user = user
        self.client = client
        self.draining = False
        self.peer_streams = UNLIMITED
        self._owner = owner
        self._make_reader = make_reader
        self._make_writer = make_writer
        self._max_streams = limits.max_streams
        self._request_kind: HeadKind = "extended request" if limits.extended_connect else "request"
        self._limiter: ControlFrameLimiter | None = None
        self._encoder = BlockEncoder()
        self._decoder = BlockDecoder(limits.head_bytes)
        self._settings_acked = False  # whether the peer has our SETTINGS
        self._last_id = 0  # the highest that was opened
        self._resets: dict[int, None] = {}  # closed streams that were reset, oldest first
        self._block: list[bytes] | None = None  # the fragments of a block that is not whole
        self._block_flags = 0  # of its HEADERS frame
        self._sound: Headers | None = None  # the last decoded head without a fault, as what it was read
        self._sound_kind: HeadKind = "trailers"

    @property
    def last_peer_id(self) -> int:
        """The highest stream that the peer has opened."""
        return 0 if self.client else self._last_id

    def is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened this stream yet. Even ones never are, since neither side pushes."""
        return self._is_idle(stream_id)

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id % 2 == 0 or stream_id > self._last_id

    # ------------------------------------------------------------ in

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        """Take a frame that is not DATA, from the frame reader."""
        assert self._limiter is not None
        self._limiter.frame(kind, flags)  # `connection`, I5
        if kind == _HEADERS:
            fragment = header_fragment(whole, flags)
            if flags & _END_HEADERS:
                self._head(stream_id, flags, fragment)
            else:
                self._block, self._block_flags = [fragment], flags
        elif kind == _CONTINUATION:  # of this block: the frame reader has seen to that
            block = self._block
            assert block is not None
            block.append(whole[9:])
            if flags & _END_HEADERS:
                self._block = None
                self._head(stream_id, self._block_flags, b"".join(block))
        elif kind == _RST_STREAM:
            self._reset_by_peer(stream_id, int.from_bytes(whole[9:13], "big"))
        elif kind == _PRIORITY:  # of which nobody takes notice (section 5.3.2)
            if len(whole) != 14:
                rule = f"PRIORITY frame of {len(whole) - 9} bytes, not 5"
                self.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FRAME_SIZE_ERROR))
        else:
            self._owner.connection_frame(kind, flags, whole)

    def _head(self, stream_id: int, flags: int, block: bytes) -> None:
        """Take a whole head. Its block is decoded even if nobody wants it, for HPACK's table."""
        fields = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        ended = flags & _END_STREAM != 0
        if stream is None:
            if not self._is_idle(stream_id):
                self._closed_head(stream_id, ended)
            elif self.client or stream_id % 2 == 0:
                raise WireError(f"HTTP/2: HEADERS frame on stream {stream_id}, which nobody has opened")
            else:
                self._request(stream_id, fields, ended)
        elif stream.remote_ended:
            rule = f"HEADERS frame after the end of stream {stream_id}"
            self.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.STREAM_CLOSED))
        elif stream.head_received:
            self._trailers(stream, fields, ended)
        else:
            self._response(stream, fields, ended)

    def _closed_head(self, stream_id: int, ended: bool) -> None:
        """A head of a stream that is closed."""
        assert self._limiter is not None
        if stream_id not in self._resets:
            rule = f"HEADERS frame on closed stream {stream_id}"
            raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.STREAM_CLOSED)
        if not self.client:
            self._limiter.closed_stream_head()
        if ended:
            del self._resets[stream_id]

    def _request(self, stream_id: int, fields: Headers, ended: bool) -> None:
        assert self._limiter is not None
        self._last_id = stream_id
        stream = self._add_stream(stream_id)
        fault = self._fault(fields, self._request_kind)
        if fault:
            self._give_up(stream, ErrorCode.PROTOCOL_ERROR)
            self.user.stream_refused(self, fault)
            self._limiter.stream_refused()
            return
        if self.draining or len(self.streams) > self._max_streams:  # section 5.1.2
            self._give_up(stream, ErrorCode.REFUSED_STREAM)
            self._limiter.stream_refused()
            return
        stream.head_received = True
        stream.remote_ended = ended
        self.user.stream_opened(stream, fields, ended)
        if self.streams.get(stream_id) is stream:
            self._read(stream)

    def _response(self, stream: Http2Stream, fields: Headers, ended: bool) -> None:
        fault = self._fault(fields, "response")
        is_final = fault != "" or fields[0][1][:1] != b"1"
        if not is_final and ended:
            fault = "a 1xx response ends the stream (section 8.1)"
        if fault:
            self._malformed(stream, "response", fault)
        elif is_final:
            user = stream.user
            stream.head_received = True
            if ended:
                self._ended_remotely(stream, True)
            else:
                self._read(stream)
            user.headers_received(fields, ended)
        else:
            stream.user.informational_received(fields)

    def _trailers(self, stream: Http2Stream, fields: Headers, ended: bool) -> None:
        fault = self._fault(fields, "trailers") if ended else "trailers don't end the stream (section 8.1)"
        if fault:
            self._malformed(stream, "trailers", fault)
            return
        user = stream.user
        self._ended_remotely(stream, True)
        user.trailers_received(fields)

    def _fault(self, fields: Headers, kind: HeadKind) -> str:
        """The rule that a head breaks. A head that repeats is the same list, and is checked once."""
        if fields is self._sound and kind == self._sound_kind:
            return ""
        fault = fault_of(fields, kind)
        if not fault:
            self._sound, self._sound_kind = fields, kind
        return fault

    def _malformed(self, stream: Http2Stream, kind: str, fault: str) -> None:
        self.stream_error(stream.id, WireError(f"HTTP/2: malformed {kind}: {fault}"))

    def _reset_by_peer(self, stream_id: int, code: int) -> None:
        assert self._limiter is not None
        stream = self.streams.get(stream_id)
        if stream is not None:
            user = stream.user
            self._remember_reset(stream_id)
            self._forget(stream)
            user.stream_lost(StreamReset(code))
            self._limiter.stream_reset(responded=stream.responded)
        elif self._is_idle(stream_id):
            raise WireError(f"HTTP/2: RST_STREAM frame on idle stream {stream_id}")
        else:  # it has crossed the end of the stream
            self._limiter.closed_stream_reset()

    def data_ended(self, stream_id: int) -> None:
        """END_STREAM came on DATA, from the frame reader."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            user = stream.user
            self._ended_remotely(stream, True)
            user.stream_ended()

    def stray_data(self, stream_id: int) -> None:
        """DATA came for a stream that isn't being read, from the frame reader."""
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise WireError(f"HTTP/2: DATA frame on idle stream {stream_id}")
        elif not stream.head_received:
            self.stream_error(stream_id, WireError("HTTP/2: DATA frame before the response's headers"))
        elif stream.remote_ended:
            rule = f"DATA frame after the end of stream {stream_id}"
            self.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.STREAM_CLOSED))

    def stream_error(self, stream_id: int, error: WireError) -> None:
        """End a stream because the peer broke a rule. Its user gets the error."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            user = stream.user
            self._give_up(stream, error.http2_code)
            user.stream_lost(error)
            self._count_fault(stream)

    def _count_fault(self, stream: Http2Stream) -> None:
        """A client may cause as many resets by faults as it may send itself. Raises WireError past that."""
        if not self.client and self._limiter is not None:
            self._limiter.stream_reset(responded=stream.responded)

    # ------------------------------------------------------------ out

    def open_stream(self, user: StreamUser[Any], headers: Headers, *, ended: bool = False) -> Http2Stream:
        """Open a stream (the client's role). The request's head goes out at once, even before the peer's SETTINGS.

        ended: no DATA follows.

        Raises StreamsExhausted if the peer allows no further stream, or the connection has used all ids.
        """
        stream_id = self._last_id + 2 if self._last_id else 1
        if stream_id > MAX_STREAM_ID or len(self.streams) >= self.peer_streams:
            raise StreamsExhausted
        self._send_head(stream_id, headers, ended)
        self._last_id = stream_id
        stream = self._add_stream(stream_id)
        stream.user = user
        stream.local_ended = ended
        stream.responded = True  # a reset of it is no flood
        return stream

    def send_headers(self, stream: Http2Stream, headers: Headers, end_stream: bool) -> None:
        """Send a head on this stream, where its side is still open."""
        if self.streams.get(stream.id) is stream and not stream.local_ended:
            self._send_head(stream.id, headers, end_stream)
            if end_stream:
                self._ended_locally(stream)

    def send_whole(self, stream: Http2Stream, headers: Headers, body: bytes) -> bool:
        """Send a head with all of its DATA and END_STREAM at once. Returns False if that is not possible now."""
        size, sender = len(body), self.sender
        if self.streams.get(stream.id) is not stream or stream.local_ended:
            return False
        if sender.is_paused or size > min(stream.window, sender.window, _FRAGMENT_BYTES) or stream.writer.pending:
            return False
        head = self._head_frames(stream.id, self._encoder.encode(headers), 0)
        self._send(head + frame(_DATA, _END_STREAM, stream.id, body))
        sender.charge(stream, size)
        self._ended_locally(stream)
        return True

    def finish(self, stream: Http2Stream) -> None:
        """End this side of the stream, after its last byte."""
        if stream.local_ended or self.streams.get(stream.id) is not stream:
            return
        if stream.trailers is not None:
            self.send_headers(stream, stream.trailers, True)
            if not stream.remote_ended:
                self._give_up(stream, ErrorCode.NO_ERROR)  # the response is complete (section 8.1)
            return
        self._send(frame(_DATA, _END_STREAM, stream.id))
        self._ended_locally(stream)

    def reset(self, stream: Http2Stream, code: int) -> None:
        """Give this stream up, where it isn't already. Its user gets no call.

        Raises WireError if the client has caused too many resets with PROTOCOL_ERROR. Give that code in its calls only.
        """
        self._give_up(stream, code)
        if code == ErrorCode.PROTOCOL_ERROR:
            self._count_fault(stream)

    def _give_up(self, stream: Http2Stream, code: int) -> None:
        if self.streams.get(stream.id) is not stream or self.closing:
            return
        self._send(frame(_RST_STREAM, 0, stream.id, code.to_bytes(4, "big")))
        self._remember_reset(stream.id)
        self._forget(stream)

    def take_back(self, stream: Http2Stream) -> None:
        """Forget a stream of which the peer knows nothing, so a RST_STREAM frame would be an error to some peers."""
        self._remember_reset(stream.id)
        self._forget(stream)

    def _send_head(self, stream_id: int, fields: Headers, ended: bool) -> None:
        """Write the frames of a head. HPACK's table wants them in the order of their coding."""
        flags = _END_STREAM if ended else 0
        self._send(self._head_frames(stream_id, self._encoder.encode(fields), flags))

    def _head_frames(self, stream_id: int, block: bytes, flags: int) -> bytes:
        """The HEADERS frame of a block, and the CONTINUATION frames of a long one."""
        if len(block) <= _FRAGMENT_BYTES:
            return frame(_HEADERS, flags | _END_HEADERS, stream_id, block)
        out = [frame(_HEADERS, flags, stream_id, block[:_FRAGMENT_BYTES])]
        for start in range(_FRAGMENT_BYTES, len(block), _FRAGMENT_BYTES):
            last = _END_HEADERS if start + _FRAGMENT_BYTES >= len(block) else 0
            out.append(frame(_CONTINUATION, last, stream_id, block[start : start + _FRAGMENT_BYTES]))
        return b"".join(out)

    def _send(self, data: bytes) -> None:
        """Write behind the output of the connection (`connection`, I1)."""
        if self.sender.answering:
            self._owner.flush()
        self._write(data)

    # ------------------------------------------------------------ states

    def _add_stream(self, stream_id: int) -> Http2Stream:
        writer = self._make_writer(stream_id)
        stream = self.streams[stream_id] = Http2Stream(self._owner, self.sender, stream_id, writer)
        return stream

    def _read(self, stream: Http2Stream) -> None:
        """Start reading the stream's DATA, after the peer's headers."""
        if stream.reader is None and not stream.remote_ended:
            window = self._window_bytes if self._settings_acked else DEFAULT_WINDOW
            stream.reader = self._make_reader(stream, window)
            self._frames.streams[stream.id] = stream.reader

    def _ended_remotely(self, stream: Http2Stream, ended: bool) -> None:
        if ended:
            stream.remote_ended = True
            if stream.reader is not None:
                stream.reader.ended = True
            if stream.local_ended:
                self._forget(stream)

    def _ended_locally(self, stream: Http2Stream) -> None:
        stream.local_ended = True
        if stream.remote_ended:
            self._forget(stream)
        elif stream.stops_peer:
            self._give_up(stream, ErrorCode.NO_ERROR)  # section 8.1

    def _remember_reset(self, stream_id: int) -> None:
        self._resets[stream_id] = None
        if len(self._resets) > REMEMBERED_RESETS:
            del self._resets[next(iter(self._resets))]

    def _forget(self, stream: Http2Stream) -> None:
        self.streams.pop(stream.id, None)
        if stream.local_ended and self._limiter is not None:
            self._limiter.stream_completed()
        self._frames.streams.pop(stream.id, None)
        if stream.reader is not None:
            stream.reader.close()
        stream.gone = True
        stream.writer.clear()
        stream.user = NOBODY
        if self.draining and not self.streams:
            self._owner.streams_ended()
