"""Collects heads and bodies from bytes as they arrive. A part that is not whole is held, within its limits.

Heads are judged whole, so the split of the bytes never changes the verdict. A fault that no further byte can mend is
raised at once.
"""

from __future__ import annotations

from ..config.limits import ProxyLimits
from .chunked import ChunkedDecoder
from .heads import (
    CHUNKED,
    Fault,
    Response,
    check_line,
    check_line_so_far,
    malformed_head,
    malformed_line,
    parse_response,
)
from .pieces import Piece
from .rules import RULES, HeadError, stray_rule

__all__ = ["BodyReader", "RequestHeadReader", "ResponseHeadReader"]

CR = 13


class RequestHeadReader:
    """Finds request heads. begun: part of one is held. serves_connect: one may be a CONNECT."""

    __slots__ = ("_checked_line", "_limits", "_scanned", "begun", "serves_connect")

    def __init__(self, limits: ProxyLimits, serves_connect: bool = False) -> None:
        self._limits = limits
        self.serves_connect = serves_connect
        self.begun: bytes | bytearray = b""
        self._scanned = 0  # how many of the held bytes are known to hold no end of a head
        self._checked_line = False

    def take(self, data: Piece) -> tuple[bytes | None, Piece]:
        """Take the next bytes, at least one. Returns (a whole head, what follows it), (None, b"") until there is one.

        Raises Fault where no rest could make it a head that may pass.
        """
        limit = self._limits.request_head_bytes
        held = self.begun
        raw: bytes | bytearray
        if held:
            raw = held
            raw += data
        elif type(data) is bytes:
            raw = data
        else:
            most = limit + 2 * self._limits.leading_blank_lines + 4
            raw = bytes(data) if len(data) <= most else bytes(data[:most])
        start = self._skip_blank_lines(raw) if raw[0] == CR else 0
        end = raw.find(b"\r\n\r\n", max(start, self._scanned - 3), start + limit)
        if end < 0:
            self._check_partial(raw, start)
            if not held:
                self.begun = bytearray(raw)
            self._scanned = len(raw)
            return None, b""
        end += 4
        if held:
            self.begun = b""
            self._scanned = 0
            self._checked_line = False
            return bytes(raw[start:end]), bytes(raw[end:])
        rest = data[end:] if end < len(data) else b""
        return bytes(raw if start == 0 and end == len(raw) else raw[start:end]), rest  # no copy where it is just that

    def _skip_blank_lines(self, raw: bytes | bytearray) -> int:
        """Where the request line begins, behind the few CRLFs that may come before it (RFC 9112, section 2.2)."""
        start = 0
        while raw.startswith(b"\r\n", start):
            start += 2
        if start > 2 * self._limits.leading_blank_lines:
            fault = malformed_line(RULES["empty-lines"])
            fault.limit = "limits.leading_blank_lines"
            raise fault
        return start

    def _check_partial(self, raw: bytes | bytearray, start: int) -> None:
        """Judge a head that isn't whole as its whole would be judged."""
        limits = self._limits
        if not self._checked_line:
            line_end = raw.find(b"\r\n", start)
            if line_end >= 0:
                check_line(bytes(raw[start:line_end]), limits, self.serves_connect)
                self._checked_line = True
            elif len(raw) > start:
                partial = bytes(raw[start:])
                check_line_so_far(partial[:-1] if partial[-1] == CR else partial, limits)
        rule = stray_rule(raw, max(start, self._scanned - 1), start + limits.request_head_bytes)
        if rule is not None:
            raise malformed_head(rule)
        if len(raw) - start > limits.request_head_bytes:
            raise Fault(431, "request head too large", limit="limits.request_head_bytes")


class ResponseHeadReader:
    """Finds response heads on one connection. begun: part of one is held."""

    __slots__ = ("_last", "_limit", "begun")

    def __init__(self, limits: ProxyLimits) -> None:
        self._limit = limits.response_head_bytes
        self._last: Response | None = None
        self.begun: bytes | bytearray = b""

    def take(self, data: Piece) -> tuple[Response | None, Piece]:
        """Take the next bytes, at least one. Returns (a response, what follows its head), or (None, b"") until there is
        one. Raises HeadError where no rest could make it one."""
        if self.begun:
            return self._take_more(data)
        limit, last = self._limit, self._last
        if type(data) is bytes:
            raw = data
            if last is not None and raw.startswith(last.block):  # up to its empty line, so it is just this head
                return last, raw[len(last.block) :]
        else:
            raw = bytes(data[: limit + 4])
        end = raw.find(b"\r\n\r\n", 0, limit)
        if end < 0:
            self._check_partial(raw, 0)
            self.begun = bytearray(raw)
            return None, b""
        end += 4
        return self._parse(raw[:end]), data[end:] if end < len(data) else b""

    def _take_more(self, data: Piece) -> tuple[Response | None, Piece]:
        """Take the next bytes of a head that has begun."""
        raw = self.begun
        held = len(raw)
        raw += data[: self._limit + 4]
        end = raw.find(b"\r\n\r\n", max(0, held - 3), self._limit)
        if end < 0:
            self._check_partial(raw, max(0, held - 1))
            return None, b""
        end += 4
        self.begun = b""
        rest = data[end - held :] if end - held < len(data) else b""
        return self._parse(bytes(raw[:end])), rest

    def _parse(self, head: bytes) -> Response:
        response = parse_response(head)
        if response.block and response.status >= 200:
            self._last = response
        return response

    def _check_partial(self, raw: bytes | bytearray, scanned: int) -> None:
        """Judge a head that isn't whole as its whole would be judged. scanned: bytes that hold nothing stray."""
        if not raw.startswith(b"HTTP/1."[: len(raw)]):
            raise HeadError(RULES["not-http1"])
        rule = stray_rule(raw, scanned, self._limit)
        if rule is not None:
            raise HeadError(rule)
        if len(raw) > self._limit:
            raise HeadError(RULES["head-size"])


class BodyReader:
    """Reads a body of known length, or a chunked one, as it arrives. ended: it was read to its end."""

    __slots__ = ("_left", "decoder", "ended")

    def __init__(self, length: int, limits: ProxyLimits) -> None:
        self._left = length
        self.decoder = ChunkedDecoder(limits) if length == CHUNKED else None
        self.ended = length == 0

    def take(self, data: Piece) -> tuple[list[Piece], Piece]:
        """Take the next bytes. Returns (content, what follows the body). Raises ChunkError."""
        decoder = self.decoder
        if decoder is not None:
            pieces = decoder.feed(data)
            self.ended = decoder.done
            return pieces, decoder.rest
        left = self._left - len(data)
        if left > 0:
            self._left = left
            return [data], b""
        self.ended = True
        if left == 0:
            return [data], b""
        return [data[: self._left]], data[self._left :]
