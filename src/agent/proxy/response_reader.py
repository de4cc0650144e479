"""Reads the responses of one HTTP/1.1 connection to a target, and passes them to the exchange that uses it.

HEAD ──final head──► SIZED | CHUNKED | UNTIL_EOF ──body whole──► DONE ──next request──► HEAD
  └─ 1xx stays in HEAD; a 101, and a 2xx to CONNECT, leave to the tunnel
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from ..config.limits import ProxyLimits
from .chunked import ChunkedDecoder, ChunkError
from .headers import Fields
from .heads import CHUNKED, UNFRAMED, Response
from .pieces import Piece
from .readers import ResponseHeadReader
from .rules import HeadError

if TYPE_CHECKING:
    from .upstream_stream import StreamUser

__all__ = ["ResponseReader"]


class State(enum.Enum):
    """Decides how the next byte from the target is read."""

    HEAD = enum.auto()
    SIZED = enum.auto()
    CHUNKED = enum.auto()
    UNTIL_EOF = enum.auto()
    DONE = enum.auto()


# Looked up once: until Python 3.12 an enum's attribute costs a call.
HEAD, SIZED, IN_CHUNKS, TO_EOF, DONE = State
NO_TRAILERS: Fields = []


class ResponseReader:
    """The responses of one connection, one after another.

    is_reusable: the last one was framed, nothing followed it, and its target keeps the connection.
    """

    __slots__ = (
        "_decoder",
        "_heads",
        "_informational",
        "_is_connect",
        "_is_grpc",
        "_is_head_only",
        "_left",
        "_limits",
        "_state",
        "is_reusable",
    )

    def __init__(self, limits: ProxyLimits) -> None:
        self._limits = limits
        self._heads = ResponseHeadReader(limits)
        self._state = DONE
        self._is_connect = self._is_head_only = self._is_grpc = False
        self._informational = 0
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self.is_reusable = False

    def expect(self, is_head_only: bool, is_connect: bool = False, is_grpc: bool = False) -> None:
        """Expect the response to a new request.

        is_head_only: it was a HEAD request. is_connect: it was a CONNECT. is_grpc: it was a call.
        """
        self._state = HEAD
        self._is_head_only = is_head_only
        self._is_connect = is_connect
        self._is_grpc = is_grpc
        self._informational = 0
        self._decoder = None
        self.is_reusable = False

    def feed(self, user: StreamUser, data: Piece) -> None:
        """Take the next bytes."""
        state = self._state
        if state is SIZED:
            left = self._left - len(data)
            if left > 0:
                self._left = left
                user.response_body([data], False, NO_TRAILERS)
            else:
                self._end(left == 0)
                user.response_body([data if left == 0 else data[: self._left]], True, NO_TRAILERS)
        elif state is HEAD:
            self._read_heads(user, data)
        else:
            self._read_body(user, data)

    def feed_eof(self, user: StreamUser) -> bool:
        """The target sends no more. Returns False where that leaves the response unfinished."""
        if self._state is not TO_EOF:
            return False
        self._end(False)
        user.response_body([], True, NO_TRAILERS)
        return True

    def _end(self, is_clean: bool) -> None:
        self._state = DONE
        self.is_reusable = self.is_reusable and is_clean

    def _read_heads(self, user: StreamUser, data: Piece) -> None:
        """Act on each whole response head."""
        while data:
            try:
                response, data = self._heads.take(data)
            except HeadError as error:
                limit = "limits.response_head_bytes" if error.rule == "head-size" else ""
                user.response_failed(str(error), "response head", limit, error.rule)
                return
            if response is None:
                user.target_moved()
                return
            if response.status >= 200 and not (self._is_connect and response.status < 300):
                self._start(user, response, data)
                return
            if response.status == 101 or response.status >= 200:
                user.switched(response, data)
                return
            self._informational += 1
            if self._informational > self._limits.informational_responses:
                limit = "limits.informational_responses"
                user.response_failed("the target sent too many 1xx responses", "response head", limit, "")
                return
            if not user.informational(response):
                return

    def _start(self, user: StreamUser, response: Response, rest: Piece) -> None:
        """Pass a final head on, with the first bytes of its body."""
        length = declared = response.length
        self.is_reusable = response.keep_alive
        if self._is_head_only or response.status == 204 or response.status == 304:
            declared = response.content_length if response.content_length >= 0 and response.status != 204 else UNFRAMED
            length = 0
        elif length < 0:
            if length == CHUNKED:
                self._state = IN_CHUNKS
                self._decoder = ChunkedDecoder(self._limits, self._is_grpc)
            else:
                self._state = TO_EOF
            self._read_body(user, rest, response)
            return
        left = self._left = length - len(rest)
        if left > 0:
            self._state = SIZED
            user.response_started(response, declared, [rest] if rest else [], False, NO_TRAILERS)
            return
        self._end(left == 0)
        if left < 0:
            rest = rest[:length]
        user.response_started(response, declared, [rest] if rest else [], True, NO_TRAILERS)

    def _read_body(self, user: StreamUser, data: Piece, response: Response | None = None) -> None:
        """Pass on the next bytes of a body without Content-Length, after `response` if its head is new."""
        decoder = self._decoder
        pieces: list[Piece]
        ended, trailers = False, NO_TRAILERS
        if decoder is None:
            pieces = [data] if data else []
        else:
            try:
                pieces = decoder.feed(data) if data else []
            except ChunkError as error:
                user.response_failed(f"the target's body is broken: {error}", "response body", error.limit, "")
                return
            if decoder.done:
                ended, trailers = True, decoder.trailers
                self._end(not decoder.rest)
        if response is None:
            user.response_body(pieces, ended, trailers)
        else:
            user.response_started(response, CHUNKED, pieces, ended, trailers)
