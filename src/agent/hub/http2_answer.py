"""Responds by HTTP/2 to a user whom the door does not let in. Each request gets the same response."""

from __future__ import annotations

import asyncio
from typing import Any

from ..http2.connection import Http2Connection
from ..http2.head_rules import Headers
from ..http2.stream import Http2Stream

__all__ = ["Http2Answer"]


class Http2Answer:
    """One connection, which closes behind its first request's response.

    Args:
        open: the set that holds this object while it is connected.
        status, text: the response's. request_id: its id, shown behind the text.
        timeout_s: from the connection to its end.

    Attributes:
        protocol: for the transport.
    """

    def __init__(self, open: set[Any], status: int, text: str, request_id: str, timeout_s: float) -> None:
        self.protocol = Http2Connection(self, client=False)
        self._open = open
        self._body = f"{text}\nrequest id: {request_id}\n".encode()
        self._head: Headers = [
            (b":status", b"%d" % status),
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"x-content-type-options", b"nosniff"),
            (b"content-length", b"%d" % len(self._body)),
            (b"x-request-id", request_id.encode()),
        ]
        self._timeout_s = timeout_s
        self._timer: asyncio.TimerHandle | None = None

    def connected(self, connection: Http2Connection) -> None:
        """Wait for a request."""
        self._open.add(self)
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self.abort)

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        """Respond, and let the connection end."""
        stream.user = _Ignored()
        stream.stops_peer = True
        is_head_only = (b":method", b"HEAD") in headers
        stream.send_headers(self._head, end_stream=is_head_only)
        if not is_head_only:
            stream.writer.append(self._body)
            stream.finish()
        self.protocol.refuse_streams()

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        """The client's fault has no further effect."""

    def goaway_received(self, connection: Http2Connection) -> None:
        """The client closes the connection."""

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        """The connection is closed."""
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Close the connection at once."""
        self.protocol.abort()


class _Ignored:
    """The user of a stream whose request has no meaning."""

    def data_received(self, data: bytes | memoryview) -> None:
        """Without credit for it, the client sends little."""

    def headers_received(self, headers: Headers, ended: bool) -> None: ...
    def informational_received(self, headers: Headers) -> None: ...
    def trailers_received(self, headers: Headers) -> None: ...
    def stream_ended(self) -> None: ...
    def stream_lost(self, error: Exception) -> None: ...

    def fill(self, writer: Any) -> bool:
        return False
