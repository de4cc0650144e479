"""HTTP/2's error codes, and how a peer ends a stream or the connection by one."""

from __future__ import annotations

import enum

from ..errors import AgentError, WireError
from ..syntax import readable

__all__ = ["ErrorCode", "GoAwayError", "OtherProtocolError", "StreamReset", "StreamsExhausted", "code_name"]


class ErrorCode(enum.IntEnum):
    """Why a stream was reset or a connection ended (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


def code_name(code: int) -> str:
    """The name of an error code, or its number if the RFC does not name it."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"code {code:#x}"


class StreamReset(AgentError):
    """The peer reset the stream. code: an HTTP/2 error code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the stream was reset: {code_name(code)}")
        self.code = code


class StreamsExhausted(AgentError):
    """The connection has no room for a further stream."""

    def __init__(self) -> None:
        super().__init__("the connection has no room for a further stream")


class GoAwayError(AgentError):
    """The peer closed the connection with a GOAWAY that ends our stream.

    code: an HTTP/2 error code. last_stream_id: the peer did not process streams with a higher id.
    """

    def __init__(self, code: int, last_stream_id: int, debug: bytes) -> None:
        text = f": {readable(debug)}" if debug else ""
        super().__init__(f"the peer sent GOAWAY {code_name(code)}, last stream {last_stream_id}{text}")
        self.code = code
        self.last_stream_id = last_stream_id


class OtherProtocolError(WireError):
    """The peer does not speak HTTP/2 on this port."""
