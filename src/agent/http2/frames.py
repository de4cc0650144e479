"""HTTP/2 for both twins of the data plane: numbers, the shape of frames, and a text for each broken rule.

It exists once, so a compiled reader and a Python reader can't report different errors for the same bytes.
"""

from __future__ import annotations

import struct
from typing import Protocol

from ..errors import WireError
from .errors import ErrorCode, OtherProtocolError

__all__ = ["ByteSink", "FrameHandler", "frame", "frame_name"]

# RFC 9113, section 6: frame types, flags
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0x0, 0x1, 0x2, 0x3, 0x4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0x5, 0x6, 0x7, 0x8, 0x9
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113, section 3.4
MAX_WINDOW = 2**31 - 1  # RFC 9113, section 6.9.1
DEFAULT_WINDOW = 65535  # RFC 9113, section 6.5.2
MIN_MAX_FRAME_SIZE = 16384  # RFC 9113, section 6.5.2
MAX_HEADER_BLOCK_BYTES = 256 * 1024  # the largest decoded head, and compressed ones are hardly larger
VIEW_BYTES = 4096  # up to a page a copy of a payload costs less than a view
HEAD = struct.Struct(">HBBBI")
_NAMES = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame, header and payload."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def frame_name(kind: int) -> str:
    """A frame type in words."""
    return _NAMES[kind] if kind < len(_NAMES) else f"type {kind:#x}"


class ByteSink(Protocol):
    """The receiver of one stream's bytes."""

    def data_received(self, data: bytes | memoryview) -> None:
        """Take the stream's next bytes, of any number. data: bytes, or a memoryview of immutable bytes.

        The receiver calls `consumed` after it has used them. Until then the peer gets no credit for as many more.
        """


class FrameHandler(Protocol):
    """The receiver of all frames except DATA. It may stop the reader. Its WireError closes the connection."""

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        """A frame for the control plane, its header included: HEADERS, SETTINGS, PING, RST_STREAM, GOAWAY, …"""

    def window_update(self, stream_id: int, increment: int) -> None:
        """The peer returned credit. increment: 0 to 2^31-1, unchecked, as is the stream's state."""

    def data_ended(self, stream_id: int) -> None:
        """END_STREAM came on a DATA frame of a stream that is being read."""

    def stray_data(self, stream_id: int) -> None:
        """A DATA frame came for a stream that isn't being read: idle, closed, or ended by the peer before."""

    def stream_error(self, stream_id: int, error: WireError) -> None:
        """The bytes of this stream broke its format. Its reader has been closed."""


# ---------------------------------------------------------------- rules of a frame's header

_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
"""Payload bytes (RFC 9113, sections 6.4, 6.7, 6.9). `connection` checks PRIORITY's 5 (6.3), a stream's matter."""
_OF_STREAMS = frozenset((HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION))  # 6.2 to 6.4, 6.6, 6.10
_OF_THE_CONNECTION = frozenset((SETTINGS, PING, GOAWAY))  # 6.5, 6.7, 6.8


def check_control(kind: int, flags: int, stream_id: int, length: int) -> None:
    """Check the header of a frame that is neither DATA nor of an unknown type. Raises WireError, for the connection.

    The check runs before the payload arrives, and in every state of the stream.
    """
    name = frame_name(kind)
    if stream_id:
        if kind in _OF_THE_CONNECTION:
            raise WireError(f"HTTP/2: {name} frame on stream {stream_id}")
    elif kind in _OF_STREAMS:
        raise WireError(f"HTTP/2: {name} frame on stream 0")
    size = _SIZES.get(kind, length)
    if length != size:
        raise WireError(f"HTTP/2: {name} frame of {length} bytes, not {size}", http2_code=ErrorCode.FRAME_SIZE_ERROR)
    if kind == SETTINGS and (length % 6 or (length and flags & ACK)):
        rule = f"with ACK and {length} bytes" if flags & ACK else f"of {length} bytes, not a multiple of 6"
        raise WireError(f"HTTP/2: SETTINGS frame {rule}", http2_code=ErrorCode.FRAME_SIZE_ERROR)
    if kind == GOAWAY and length < 8:
        rule = f"GOAWAY frame of {length} bytes, not 8 or more"
        raise WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FRAME_SIZE_ERROR)


def header_fragment(whole: bytes, flags: int) -> bytes:
    """The part of a header block in a HEADERS frame, without padding and priority (RFC 9113, section 6.2).

    Nobody heeds the priority (section 5.3.2). Raises WireError where they don't fit in: the header block can't be found
    then, and the connection ends.
    """
    if not flags & (PADDED | WITH_PRIORITY):
        return whole[9:]
    start, end = 9, len(whole)
    if flags & PADDED:
        if start == end:
            raise WireError("HTTP/2: padded HEADERS frame without a pad length", http2_code=ErrorCode.FRAME_SIZE_ERROR)
        start, end = start + 1, end - whole[start]
    if flags & WITH_PRIORITY:
        if len(whole) < start + 5:
            raise WireError("HTTP/2: HEADERS frame too short for its priority", http2_code=ErrorCode.FRAME_SIZE_ERROR)
        start += 5
    if start > end:
        raise WireError(f"HTTP/2: HEADERS frame with {whole[9]} bytes of padding in {len(whole) - 10} of payload")
    return whole[start:end]


# ---------------------------------------------------------------- what can be broken


def no_preface() -> WireError:
    return WireError("HTTP/2: the connection preface is missing (is the peer speaking HTTP/1 or TLS?)")


def no_settings(kind: int) -> WireError:
    return OtherProtocolError(
        f"HTTP/2: the first frame is {frame_name(kind)}, not SETTINGS (is the peer speaking HTTP/2?)"
    )


def frame_too_large(kind: int, length: int, limit: int) -> WireError:
    rule = f"{frame_name(kind)} frame of {length} bytes, the limit is {limit}"
    return WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FRAME_SIZE_ERROR)


def inside_header_block(kind: int, stream_id: int) -> WireError:
    return WireError(f"HTTP/2: {frame_name(kind)} frame inside the header block of stream {stream_id}")


def stray_continuation() -> WireError:
    return WireError("HTTP/2: CONTINUATION frame without a header block")


def header_block_too_large() -> WireError:
    rule = f"header block of more than {MAX_HEADER_BLOCK_BYTES} bytes"
    return WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.ENHANCE_YOUR_CALM)


def data_on_stream_0() -> WireError:
    return WireError("HTTP/2: DATA frame on stream 0")


def beyond_connection_window(length: int, window: int) -> WireError:
    rule = f"DATA frame of {length} bytes exceeds the connection's window of {window}"
    return WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FLOW_CONTROL_ERROR)


def beyond_stream_window(length: int, window: int, stream_id: int) -> WireError:
    rule = f"DATA frame of {length} bytes exceeds the window of {window} of stream {stream_id}"
    return WireError(f"HTTP/2: {rule}", http2_code=ErrorCode.FLOW_CONTROL_ERROR)


def no_pad_length() -> WireError:
    return WireError("HTTP/2: padded DATA frame without a pad length", http2_code=ErrorCode.FRAME_SIZE_ERROR)


def padding_too_long(padding: int, left: int) -> WireError:
    return WireError(f"HTTP/2: DATA frame with {padding} bytes of padding in {left} of payload")
