"""Writes a response to an HTTP/1.1 client: its head, and its body in the framing that the client understands.

A body of unknown length is sent in chunks. An HTTP/1.0 client understands none. If the connection is the client's, the
body is sent as it arrives. Closing ends it (RFC 9112, section 6.3). If the connection is a hub's, the body is
collected, and sent with its length.
"""

from __future__ import annotations

import asyncio
from typing import cast

from ..outcome import Stage
from .chunked import encode_chunk, encode_last
from .grpc import grpc_trailers
from .head_writer import head_for_client
from .headers import Fields, forwarded_trailers
from .heads import CHUNKED, Response
from .pieces import JOIN_BYTES, Piece, write_pieces

__all__ = ["ResponseWriter"]

# Looked up once: until Python 3.12 an enum's attribute costs a call.
BEFORE_HEAD, IN_SIZED, IN_CHUNKED = Stage.HEAD, Stage.SIZED, Stage.CHUNKED


class ResponseWriter:
    """The response in flight on one connection.

    transport: where it goes. stage: how far it has come, for the connection's outcome. collecting: the response whose
    body is collected before its head goes out.
    """

    __slots__ = ("_collected", "_is_chunked", "_is_grpc", "_sent_bytes", "_status", "collecting", "stage", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.stage = BEFORE_HEAD
        self.collecting: Response | None = None
        self._collected: bytearray | None = None
        self._is_chunked = self._is_grpc = False
        self._sent_bytes = 0  # of the body
        self._status = 0

    def expect(self, is_grpc: bool = False) -> None:
        """Prepare for the response to a new request. is_grpc: it is a call, whose trailers pass nearly all."""
        self._is_grpc = is_grpc
        self.stage = BEFORE_HEAD
        self.collecting = self._collected = None

    def start(
        self,
        response: Response,
        length: int,
        connection: bytes,
        pieces: list[Piece],
        ended: bool,
        trailers: Fields,
        is_open_ended: bool = False,
    ) -> None:
        """Write the head with what there is of the body.

        length: of the body in bytes, CHUNKED, or UNFRAMED. connection: the `Connection` field's value, b"" for none.
        is_open_ended: closing ends the body.
        """
        head = head_for_client(response, length, connection)
        self._status = response.status
        self._sent_bytes = 0
        self._is_chunked = length == CHUNKED
        if self._is_chunked or is_open_ended:
            self.stage = IN_CHUNKED
            out = self._framed(pieces, ended, trailers)
            write_pieces(self.transport, [head, *out])
            return
        self.stage = IN_SIZED
        if not pieces:
            self.transport.write(head)
            return
        for piece in pieces:
            self._sent_bytes += len(piece)
        body = pieces[0]
        if len(pieces) > 1:
            write_pieces(self.transport, [head, *pieces])
        elif type(body) is bytes and len(body) <= JOIN_BYTES:
            self.transport.write(head + body)
        else:
            write_pieces(self.transport, [head, body])

    def send(self, pieces: list[Piece], ended: bool, trailers: Fields) -> None:
        """Write the next pieces of the body."""
        out = self._framed(pieces, ended, trailers)
        if out:
            write_pieces(self.transport, out)

    def _framed(self, pieces: list[Piece], ended: bool, trailers: Fields) -> list[Piece]:
        """The next pieces as they go out."""
        for piece in pieces:
            self._sent_bytes += len(piece)
        if not self._is_chunked:
            return pieces
        out = encode_chunk(pieces) if pieces else []
        if ended:
            out.append(encode_last(grpc_trailers(trailers) if self._is_grpc else forwarded_trailers(trailers)))
        return out

    def collect(self, pieces: list[Piece], limit_bytes: int) -> bool:
        """Keep the next pieces of a body that is sent whole. Returns False where it is longer than `limit_bytes`."""
        if self._collected is None:
            self._collected = bytearray()
        for piece in pieces:  # joined: sent byte by byte, it would be many times the memory as pieces
            self._collected += piece
        return len(self._collected) <= limit_bytes

    def collected(self) -> bytes:
        """The body that was collected. It is handed out once."""
        body = bytes(self._collected or b"")
        self.collecting = self._collected = None
        return body

    def truncation(self) -> dict[str, int]:
        """Return log fields of a response whose head was sent and whose body is not whole. Empty before its head."""
        if self.stage is BEFORE_HEAD:
            return {}
        return {"status": self._status, "truncated": True, "sent_bytes": self._sent_bytes}
