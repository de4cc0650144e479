"""A connection whose heads and streams cost little: for users and targets, with thousands of requests a second.

The h2 library keeps SETTINGS and PING. This module has the heads, by `header_codec`, and the states of streams
(RFC 9113, section 5.1). The rules and calls are those of `Http2Connection`.

    HEADERS     stream of the peer's    above its last: a request    open: trailers     ended: STREAM_CLOSED
                                        at most its last, closed: an error of the connection, unless we have reset it
    DATA        see `Http2Connection`
    RST_STREAM  open: its user's `stream_lost`    closed: counted    idle: an error of the connection
"""

from __future__ import annotations

from typing import Any

import h2.events
import h2.settings

from ..errors import WireError
from .connection import Http2Connection, State
from .errors import ErrorCode, StreamReset, StreamsExhausted
from .frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MIN_MAX_FRAME_SIZE,
    PADDED,
    PUSH_PROMISE,
    RST_STREAM,
    WITH_PRIORITY,
    bare_headers,
    frame,
)
from .framing import FrameWriter
from .head_rules import Headers, fault_of
from .header_codec import HeaderDecoder, HeaderEncoder
from .stream import Http2Stream, StreamUser

__all__ = ["LeanConnection"]

BEYOND_FRAME = PADDED | WITH_PRIORITY

MOST_RESET = 1000
"""The ids kept of streams that this side has reset. Frames that cross a reset are ignored (section 5.1)."""

MOST_ID = 2**31 - 1


class _Nobody:
    """The user of a stream that has ended."""

    def headers_received(self, headers: Headers, ended: bool) -> None: ...
    def informational_received(self, headers: Headers) -> None: ...
    def trailers_received(self, headers: Headers) -> None: ...
    def stream_ended(self) -> None: ...
    def stream_lost(self, error: Exception) -> None: ...

    def fill(self, writer: FrameWriter) -> bool:
        return False


NOBODY = _Nobody()


class LeanConnection(Http2Connection):
    """One HTTP/2 connection. The arguments are those of `Http2Connection`.

    A list of fields that a user gets is never changed, and may be the same for several streams. Nor does the user
    change one that it has sent.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in = HeaderDecoder(self._limits.head_bytes)
        self._out = HeaderEncoder()
        self._last_theirs = 0
        self._next_ours = 1
        self._block = bytearray()  # of the head whose CONTINUATION frames are awaited
        self._block_flags = 0
        self._well_formed_fields: Headers | None = None  # the last request's, which may repeat
        self._reset_here: dict[int, None] = {}

    # ------------------------------------------------------------ in

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        if kind == HEADERS:
            if self._limits.counts_streams:
                self._count(kind, flags)
            if flags & BEYOND_FRAME:
                whole = bare_headers(whole)
            if flags & END_HEADERS:
                self._head(stream_id, flags, whole[9:])
            else:
                self._block[:] = whole[9:]
                self._block_flags = flags
        elif kind == CONTINUATION:
            self._count(kind, flags)
            self._block += whole[9:]
            if flags & END_HEADERS:
                block = bytes(self._block)
                self._block.clear()
                self._head(stream_id, self._block_flags, block)
        elif kind == RST_STREAM:
            self._count(kind, flags)
            self._reset_received(stream_id, int.from_bytes(whole[9:13], "big"))
        elif kind == PUSH_PROMISE:
            raise WireError("HTTP/2: PUSH_PROMISE frame, and nobody may push")
        else:
            super().control_frame(kind, flags, stream_id, whole)

    def _count(self, kind: int, flags: int) -> None:
        assert self._limiter is not None
        self._limiter.frame(kind, flags)

    def _head(self, stream_id: int, flags: int, block: bytes) -> None:
        """A whole header block has come. Each is decoded, since HPACK's state belongs to the connection."""
        fields = self._in.decode(block)
        ended = flags & END_STREAM != 0
        stream = self.streams.get(stream_id)
        if stream is None:
            self._head_without_stream(stream_id, fields, ended)
        elif stream.remote_ended:
            rule = f"HEADERS frame behind the end of stream {stream_id}"
            self.stream_error(stream_id, WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.STREAM_CLOSED))
        elif stream.head_received:
            fault = fault_of(fields, "trailers") if ended else "trailers don't end the stream (section 8.1)"
            if fault:
                self.stream_error(stream_id, WireError(f"HTTP/2: malformed trailers: {fault}"))
            else:
                user = stream.user
                self._ended_remotely(stream, True)
                user.trailers_received(fields)
        else:
            self._response(stream, fields, ended)

    def _head_without_stream(self, stream_id: int, fields: Headers, ended: bool) -> None:
        if stream_id in self._reset_here:
            self._count_closed()
        elif not self.is_idle(stream_id):
            rule = f"HEADERS frame on closed stream {stream_id}"
            raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.STREAM_CLOSED)
        elif self.client or stream_id % 2 == 0:
            raise WireError(f"HTTP/2: HEADERS frame on stream {stream_id}, which nobody has opened")
        else:
            self._last_theirs = stream_id
            self._request(stream_id, fields, ended)

    def _request(self, stream_id: int, headers: Headers, ended: bool) -> None:
        if headers is not self._well_formed_fields:
            fault = fault_of(headers, self._head_kind)
            if fault:
                self._refuse(stream_id, ErrorCode.PROTOCOL_ERROR, ended)
                self.user.stream_refused(self, fault)
                return
            self._well_formed_fields = headers
        if self.state is State.DRAINING or len(self.streams) >= self._limits.max_streams:  # section 5.1.2
            self._refuse(stream_id, ErrorCode.REFUSED_STREAM, ended)
            return
        stream = self._add_stream(stream_id)
        stream.head_received = True
        stream.remote_ended = ended
        self.user.stream_opened(stream, headers, ended)
        if not ended and self.streams.get(stream_id) is stream:
            self._read(stream)

    def _refuse(self, stream_id: int, code: int, ended: bool) -> None:
        """Reset a stream that was not opened here."""
        assert self._limiter is not None
        if not ended:
            self._note_reset(stream_id)
        self._send(frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big")))
        self._limiter.stream_refused()

    def _response(self, stream: Http2Stream, fields: Headers, ended: bool) -> None:
        fault = fault_of(fields, "response")
        is_final = fault != "" or not fields[0][1].startswith(b"1")
        if not is_final and ended:
            fault = "a 1xx ends the stream (section 8.1)"
        if fault:
            self.stream_error(stream.id, WireError(f"HTTP/2: malformed response: {fault}"))
        elif not is_final:
            stream.user.informational_received(fields)
        else:
            user = stream.user
            stream.head_received = True
            self._read(stream)
            self._ended_remotely(stream, ended)
            user.headers_received(fields, ended)

    def _reset_received(self, stream_id: int, code: int) -> None:
        assert self._limiter is not None
        stream = self.streams.get(stream_id)
        if stream is not None:
            user = stream.user
            self._forget(stream)
            user.stream_lost(StreamReset(code))
            self._limiter.stream_reset(responded=stream.responded)
        elif self.is_idle(stream_id):
            raise WireError(f"HTTP/2: RST_STREAM frame on idle stream {stream_id}")
        else:
            self._count_closed()

    def _count_closed(self) -> None:
        """Count a frame for a closed stream, which costs its sender nothing."""
        assert self._limiter is not None
        self._limiter.closed_stream_reset()

    def data_ended(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            user = stream.user
            self._ended_remotely(stream, True)
            user.stream_ended()

    @property
    def _last_opened(self) -> int:
        return self._last_theirs

    def _settings_changed(self, event: h2.events.RemoteSettingsChanged) -> None:
        size = event.changed_settings.get(h2.settings.SettingCodes.HEADER_TABLE_SIZE)
        if size is not None:
            self._out.use_limit(size.new_value)
        super()._settings_changed(event)

    # ------------------------------------------------------------ out

    def open_stream(self, user: StreamUser[Any], headers: Headers, *, ended: bool = False) -> Http2Stream:
        if self._next_ours > MOST_ID or len(self.streams) >= self.peer_streams:
            raise StreamsExhausted
        stream_id = self._last_ours = self._next_ours
        self._next_ours += 2
        stream = self._add_stream(stream_id)
        stream.user = user
        stream.local_ended = ended
        stream.responded = True  # a reset of it is no flood
        self._send_head(stream_id, headers, ended)
        return stream

    def send_headers(self, stream: Http2Stream, headers: Headers, end_stream: bool) -> None:
        if self.streams.get(stream.id) is stream and not stream.local_ended:
            self._send_head(stream.id, headers, end_stream)
            if end_stream:
                self._ended_locally(stream)

    def send_whole(self, stream: Http2Stream, headers: Headers, body: bytes) -> bool:
        """Send a head with all of its DATA and END_STREAM at once. Returns False, if that is not possible now."""
        size = len(body)
        sender = self.sender
        if sender.is_paused or size > min(stream.window, sender.window, MIN_MAX_FRAME_SIZE) or stream.writer.pending:
            return False
        block = self._out.encode(headers)
        if len(block) > MIN_MAX_FRAME_SIZE:
            return False
        head = frame(HEADERS, END_HEADERS, stream.id, block)
        sender.charge(stream, size)
        self._send(head + frame(DATA, END_STREAM, stream.id, body))
        self._ended_locally(stream)
        return True

    def _send_head(self, stream_id: int, headers: Headers, ended: bool) -> None:
        block = self._out.encode(headers)
        flags = END_STREAM if ended else 0
        if len(block) <= MIN_MAX_FRAME_SIZE:
            self._send(frame(HEADERS, END_HEADERS | flags, stream_id, block))
            return
        out = [frame(HEADERS, flags, stream_id, block[:MIN_MAX_FRAME_SIZE])]
        for start in range(MIN_MAX_FRAME_SIZE, len(block), MIN_MAX_FRAME_SIZE):
            part = block[start : start + MIN_MAX_FRAME_SIZE]
            is_last = start + len(part) == len(block)
            out.append(frame(CONTINUATION, END_HEADERS if is_last else 0, stream_id, part))
        self._send(b"".join(out))

    def finish(self, stream: Http2Stream) -> None:
        if stream.local_ended or self.streams.get(stream.id) is not stream:
            return
        if stream.trailers is not None:
            self.send_headers(stream, stream.trailers, True)
            if not stream.remote_ended:
                self.reset(stream, ErrorCode.NO_ERROR)  # the response is complete (section 8.1)
            return
        self._send(frame(DATA, END_STREAM, stream.id))
        self._ended_locally(stream)

    def reset(self, stream: Http2Stream, code: int) -> None:
        if self.streams.get(stream.id) is not stream or self.closing:
            return
        if not stream.remote_ended:
            self._note_reset(stream.id)
        self._send(frame(RST_STREAM, 0, stream.id, code.to_bytes(4, "big")))
        self._forget(stream)

    def _take_back(self, stream: Http2Stream) -> None:
        self._forget(stream)

    def _forget(self, stream: Http2Stream) -> None:
        """Forget a stream. It lets go of its user, since a circle of both would wait for the garbage collector."""
        super()._forget(stream)
        stream.reader = None
        stream.user = NOBODY

    def _note_reset(self, stream_id: int) -> None:
        if len(self._reset_here) >= MOST_RESET:
            del self._reset_here[next(iter(self._reset_here))]
        self._reset_here[stream_id] = None

    def _say_goaway(self, code: int) -> None:
        self._send(frame(GOAWAY, 0, 0, self._last_theirs.to_bytes(4, "big") + code.to_bytes(4, "big")))

    def _send(self, data: bytes) -> None:
        """Write frames behind h2's output. The number of streams bounds them, so no peer can cause many (I4)."""
        if self.sender.answering:
            self.flush()
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)
