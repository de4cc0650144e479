"""Chunked bodies: a strict decoder and an encoder (RFC 9112, section 7.1).

llhttp does not report where a message ended in its input, and does not bound the line of a chunk. So this decoder reads
the bodies. Each body has its own decoder, which keeps at most one line. The decoder returns slices of its input, in
order and never joined.

    LINE ──size > 0──► DATA ──size reached──► DATA_END ──CRLF──► LINE
      └───size = 0──► TRAILER ──empty line──► DONE
"""

from __future__ import annotations

import enum
import re

from ..config.limits import ProxyLimits
from ..errors import AgentError
from .headers import Fields

__all__ = ["LAST_CHUNK", "ChunkError", "ChunkedDecoder", "encode_chunk", "encode_last"]

LAST_CHUNK = b"0\r\n\r\n"
TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# Without white space around ";" and "=": allowed on receipt only for old senders, and read differently by others.
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + QUOTED + rb"))?)*")
FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):[\t ]*((?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?)[\t ]*")
STRAY_BREAK = re.compile(rb"(?<!\r)\n|\r(?!\n)(?!\Z)")
MAX_SIZE = 2**63 - 1
SLICE_BYTES = 4096
"""Shorter pieces are copies, longer ones are views, since a view costs more than a small copy."""


class ChunkError(AgentError):
    """A body's chunked coding is malformed or exceeds a limit: the fault of the party that sent the body.

    Attributes:
        reason: text that the client may see.
        limit: the name of the limit's setting, for the log, or "".
    """

    def __init__(self, reason: str, *, limit: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.limit = limit


class State(enum.Enum):
    LINE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()
    DONE = enum.auto()


class ChunkedDecoder:
    """Takes a chunked body as it arrives, gives its content. After a ChunkError it must not be fed again.

    is_grpc: the trailers are those of a gRPC call, which have their own limits.
    done: the last chunk and its trailers were read. trailers: as received. rest: after `done`, what followed in the
    last feed.
    """

    __slots__ = ("_is_grpc", "_left", "_limits", "_partial", "_state", "_trailer_bytes", "done", "rest", "trailers")

    def __init__(self, limits: ProxyLimits, is_grpc: bool = False) -> None:
        self._limits = limits
        self._is_grpc = is_grpc
        self._state = State.LINE
        self._left = 0
        self._partial = b""
        self._trailer_bytes = 0
        self.done = False
        self.rest = b""
        self.trailers: Fields = []

    def feed(self, data: bytes | memoryview) -> list[bytes | memoryview]:
        """Decode the next bytes. Returns their content, in order, as slices of `data`. Raises ChunkError."""
        if self._state is State.DATA and len(data) < self._left:
            self._left -= len(data)
            return [data]
        raw = data if type(data) is bytes else bytes(data)
        pieces: list[bytes | memoryview] = []
        position, size = 0, len(raw)
        while position < size:
            state = self._state
            if state is State.DATA:
                end = position + min(self._left, size - position)  # a sum with what is left may pass a C integer
                self._left -= end - position
                long = end - position > SLICE_BYTES
                pieces.append(memoryview(raw)[position:end] if long else raw[position:end])
                position = end
                if self._left == 0:
                    self._state = State.DATA_END
            elif state is State.DATA_END:
                position = self._take_data_end(raw, position)
            else:
                line, position = self._take_line(raw, position)
                if line is None:
                    break
                if state is State.LINE:
                    self._start_chunk(line)
                elif line:
                    self._add_trailer(line)
                else:
                    self._state = State.DONE
                    self.done = True
                    self.rest = raw[position:]
                    break
        return pieces

    def _take_data_end(self, raw: bytes, position: int) -> int:
        """Take the CRLF behind a chunk's data, or the half of it that is there."""
        found = self._partial + raw[position : position + 2 - len(self._partial)]
        if not b"\r\n".startswith(found):
            raise ChunkError("a chunk's data doesn't match its size")
        position += len(found) - len(self._partial)
        if len(found) == 2:
            self._partial = b""
            self._state = State.LINE
        else:
            self._partial = found
        return position

    def _take_line(self, raw: bytes, position: int) -> tuple[bytes | None, int]:
        """Take a line up to its CRLF: (line, position behind it), or (None, end) where it isn't whole yet."""
        known = len(self._partial)  # has no end and no stray break, but perhaps the half of one in its last byte
        if known:
            raw, shift = self._partial + raw[position:], position - known
            start = 0
        else:
            start, shift = position, 0
        fresh = start + known - 1 if known else start
        limit = self._limits.chunk_line_bytes if self._state is State.LINE else self._most_trailer_bytes()
        end = raw.find(b"\r\n", fresh, start + limit + 2)
        if end < 0:
            partial = raw[start:]
            if STRAY_BREAK.search(partial, fresh - start, limit):
                raise ChunkError("a line of the chunked coding doesn't end in CRLF")
            if len(partial) > limit + 1 or (len(partial) > limit and partial[limit:] != b"\r"):
                name = "chunk_line_bytes" if self._state is State.LINE else self._limit("trailer_bytes")
                raise ChunkError("a line of the chunked coding is too long", limit=f"limits.{name}")
            self._partial = partial
            return None, len(raw) + shift
        self._partial = b""
        return raw[start:end], end + 2 + shift

    def _start_chunk(self, line: bytes) -> None:
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            raise ChunkError("malformed chunk size")
        size = int(match.group(1), 16)
        if size > MAX_SIZE:
            raise ChunkError("a chunk's size is out of range")
        self._left = size
        self._state = State.DATA if size else State.TRAILER

    def _add_trailer(self, line: bytes) -> None:
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise ChunkError("malformed trailer field")
        self._trailer_bytes += len(line) + 2
        if self._trailer_bytes > self._most_trailer_bytes():
            raise ChunkError("the trailers are too large", limit=f"limits.{self._limit('trailer_bytes')}")
        most = self._limits.grpc_trailer_fields if self._is_grpc else self._limits.trailer_fields
        if len(self.trailers) >= most:
            raise ChunkError("the trailers are too many", limit=f"limits.{self._limit('trailer_fields')}")
        self.trailers.append((match.group(1), match.group(2)))

    def _most_trailer_bytes(self) -> int:
        return self._limits.grpc_trailer_bytes if self._is_grpc else self._limits.trailer_bytes

    def _limit(self, name: str) -> str:
        """The name of a limit of these trailers."""
        return f"grpc_{name}" if self._is_grpc else name


def encode_chunk(pieces: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """One chunk of all the pieces, which must not be empty: its line, the pieces themselves, its end."""
    return [b"%x\r\n" % sum(map(len, pieces)), *pieces, b"\r\n"]


def encode_last(trailers: Fields) -> bytes:
    """The last chunk with its trailers."""
    if not trailers:
        return LAST_CHUNK
    return b"".join([b"0\r\n", *(b"%b: %b\r\n" % field for field in trailers), b"\r\n"])
