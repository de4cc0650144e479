"""One HTTP/2 stream as its user sees it, and what users of streams and connections promise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import h2.errors

from ..errors import AgentError
from .framing import FrameWriter, MessageReader, MessageSink

if TYPE_CHECKING:
    from .http2 import Http2Connection

__all__ = ["ConnectionUser", "GoAwayError", "Headers", "Http2Stream", "StreamReset", "StreamUser", "code_name"]

Headers = list[tuple[bytes, bytes]]

_CANCEL = 0x8  # RFC 9113, section 7


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


class Http2Stream:
    """One stream. `user` is whom it talks to."""

    __slots__ = ("answered", "connection", "finishing", "gone", "id", "local_ended", "queued", "reader", "remote_ended",
                 "trailers", "user", "window", "writer")  # fmt: skip

    user: StreamUser

    def __init__(self, connection: Http2Connection, stream_id: int, window: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.window = window  # bytes we may send; negative after the peer has shrunk it (section 6.9.2)
        self.writer = FrameWriter(stream_id)
        self.reader: MessageReader | None = None
        self.answered = False  # the peer's headers have come
        self.remote_ended = False
        self.local_ended = False
        self.finishing = False
        self.gone = False  # nothing of it goes out any more
        self.trailers: Headers | None = None
        self.queued = False  # in the sender's round

    def wake(self) -> None:
        """There is something to send."""
        self.connection.sender.wake(self)

    def send_headers(self, headers: Headers, *, end_stream: bool = False) -> None:
        """Send the response's head, or a response that is only a head."""
        self.connection.send_headers(self, headers, end_stream)

    def finish(self, trailers: Headers | None = None) -> None:
        """End our side, with trailers or without, once the message that has begun to go out is whole.

        The user isn't asked for another.
        """
        if not self.finishing:
            self.finishing = True
            self.trailers = trailers
            if self.writer.pending:
                self.wake()
            else:
                self.connection.finish(self)

    def reset(self, code: int = _CANCEL) -> None:
        """Give the stream up now. The user isn't told."""
        self.connection.reset(self, code)
