"""What users of streams and of connections promise, and how they hear of the end of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import h2.errors

from ..errors import AgentError
from .flow import Http2Stream
from .frames import MessageRefused
from .framing import FrameWriter, MessageSink

if TYPE_CHECKING:
    from .http2 import Http2Connection

__all__ = ["ConnectionUser", "GoAwayError", "Headers", "Http2Stream", "StreamReset", "StreamUser", "code_name"]

Headers = list[tuple[bytes, bytes]]


def code_name(code: int) -> str:
    """An HTTP/2 error code in words (RFC 9113, section 7)."""
    try:
        return h2.errors.ErrorCodes(code).name
    except ValueError:
        return f"code {code:#x}"


class StreamReset(AgentError):
    """The peer reset the stream. code: an HTTP/2 error code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the stream was reset: {code_name(code)}")
        self.code = code


class GoAwayError(AgentError):
    """The peer ended the connection with a GOAWAY that doesn't let our stream go on. code: an HTTP/2 error code."""

    def __init__(self, code: int, last_stream_id: int, debug: bytes) -> None:
        text = f": {debug[:200].decode('ascii', 'replace')}" if debug else ""
        super().__init__(f"the peer sent GOAWAY {code_name(code)}, last stream {last_stream_id}{text}")
        self.code = code


class StreamUser(MessageSink, Protocol):
    """Who uses a stream: gets what arrives on it, and is asked for what goes out."""

    def headers_received(self, headers: Headers, ended: bool) -> None:
        """The response's head (agent's side). ended: the stream ended with it."""

    def trailers_received(self, headers: Headers) -> None:
        """The stream ended, with these trailers."""

    def stream_ended(self, in_message: bool) -> None:
        """The peer ended its side. in_message: in the middle of a message."""

    def stream_lost(self, error: Exception) -> None:
        """The stream is gone, by a reset or with its connection."""

    def message_refused(self, error: MessageRefused) -> None:
        """A message is too long, or there is no room for it: end the call (hub's side). Nothing more is read."""

    def fill(self, writer: FrameWriter) -> bool:
        """Give the writer the next message; False where there is none."""


class ConnectionUser(Protocol):
    """Who owns a connection."""

    def connected(self, connection: Http2Connection) -> None:
        """Streams can be opened from now on."""

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        """The peer opened a stream (hub's side): set `stream.user` before returning."""

    def goaway_received(self, connection: Http2Connection) -> None:
        """The peer wants no new streams here; those there are go on."""

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        """The transport is closed; the last call. error: why, None where it was closed from this side."""
