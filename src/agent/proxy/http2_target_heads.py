"""The heads of HTTP/2 towards a target: a request's fields from its checked parts, and a response from its fields.

A response is written as an HTTP/1.1 head and read by `heads.parse_response`. So all rules of HTTP/1.1 hold for it, and
none exists twice. `http2.head_rules` has rejected every byte that ends a line before.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re

from ..config.limits import ProxyLimits
from ..errors import AgentError
from ..http2.head_rules import Headers
from .head_writer import WITH_CONTENT, TargetHead
from .headers import SPECIAL, Fields
from .heads import STRICT_UPGRADES, Response, parse_response
from .responses import phrase
from .rules import CONTROL, RULES, TOKEN, HeadError

__all__ = [
    "MalformedTrailers",
    "ResponseHeads",
    "accepted_key",
    "check_trailers",
    "request_fields",
    "websocket_fields",
    "websocket_key",
]

WEBSOCKET = b"websocket"
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
# The key belongs to the HTTP/1.1 handshake (RFC 8441, section 5).
NOT_EXTENDED = SPECIAL | {b"sec-websocket-key", b"sec-websocket-accept"}
FIELD_OVERHEAD_BYTES = 4
"""Of a field line in HTTP/1.1, so that both protocols count trailers alike."""

TRAILER_NAME = re.compile(TOKEN)


class MalformedTrailers(AgentError):
    """A response's trailers break a rule. The text is fit for the client. limit: the setting, or ""."""

    def __init__(self, reason: str, limit: str = "") -> None:
        super().__init__(reason)
        self.limit = limit


def request_fields(head: TargetHead) -> Headers:
    """The fields of a request, with its pseudo-fields."""
    request, target = head.request, head.target
    out = _first(head, request.method)
    if head.fields is request.fields:
        _add(out, request.fields)
    else:
        _add(out, [field for field in head.fields if field[0].lower() not in SPECIAL])
    if request.has_length:
        out.append((b"content-length", b"%d" % request.length))
    elif request.length == 0 and request.method in WITH_CONTENT:
        out.append((b"content-length", b"0"))
    if request.takes_trailers:
        out.append((b"te", b"trailers"))
    if request.expects_continue and not target.answers_expect:
        out.append((b"expect", b"100-continue"))
    _add_last(out, head)
    return out


def websocket_key(head: TargetHead) -> bytes | None:
    """Return the key of a request for a WebSocket, b"" without a key, or None for any other request."""
    tokens = head.request.upgrade.lower().split(b", ")
    if WEBSOCKET not in tokens:
        return None
    return next((value for name, value in head.fields if name.lower() == b"sec-websocket-key"), b"")


def needs_http1(head: TargetHead) -> bool:
    """Whether the request makes no sense without an upgrade that HTTP/2 does not have."""
    tokens = set(head.request.upgrade.lower().split(b", "))
    return bool(tokens & STRICT_UPGRADES) and WEBSOCKET not in tokens


def websocket_fields(head: TargetHead) -> Headers:
    """The fields of an extended CONNECT for a WebSocket (RFC 8441, section 5)."""
    out = [*_first(head, b"CONNECT"), (b":protocol", WEBSOCKET)]
    _add(out, [field for field in head.fields if field[0].lower() not in NOT_EXTENDED])
    _add_last(out, head)
    return out


def accepted_key(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept of a key (RFC 6455, section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID, usedforsecurity=False).digest())


def _first(head: TargetHead, method: bytes) -> Headers:
    target = head.target
    return [
        (b":method", method),
        (b":scheme", target.http_scheme.encode()),
        (b":authority", target.fixed_host or head.request.host or target.authority),
        (b":path", target.path or head.own_target),
    ]


def _add(out: Headers, fields: Fields) -> None:
    out += [(name.lower(), value) for name, value in fields]


def _add_last(out: Headers, head: TargetHead) -> None:
    """Add what the proxy itself writes."""
    request, stripped = head.request, head.target.stripped
    if request.forwarding:
        out += _kept_lines(request.forwarding) if len(request.forwarding) <= KEPT_BYTES else _lines(request.forwarding)
    if stripped or request.prefix:
        out.append((b"x-forwarded-prefix", request.prefix + stripped))
    out.append((b"x-request-id", head.request_id))


KEPT_BYTES = 1024


def _lines(block: bytes) -> Headers:
    """The fields of written lines, each with its CRLF."""
    pairs = (line.partition(b": ") for line in block.split(b"\r\n") if line)
    return [(name.lower(), value) for name, _, value in pairs]


_kept_lines = functools.lru_cache(maxsize=1024)(_lines)


class ResponseHeads:
    """Reads the response heads of one connection. Equal heads in a row are read once."""

    __slots__ = ("_fields", "_response")

    def __init__(self) -> None:
        self._fields: Headers = []
        self._response: Response | None = None

    def read(self, fields: Headers) -> Response:
        """The response of a head whose form was checked. Raises HeadError."""
        if fields == self._fields and self._response is not None:
            return self._response
        response = parse_response(_as_http1(fields, fields[0][1]))
        if response.status == 101:  # RFC 9113, section 8.6
            raise HeadError(RULES["switch-unasked"])
        self._fields, self._response = fields, response
        return response

    @staticmethod
    def switched(fields: Headers, key: bytes) -> Response:
        """The 101 of a response that opens a WebSocket. key: of the client's request. Raises HeadError."""
        kept = [field for field in fields if field[0] not in NOT_EXTENDED]
        kept += [(b"connection", b"upgrade"), (b"upgrade", WEBSOCKET)]
        if key:
            kept.append((b"sec-websocket-accept", accepted_key(key)))
        return parse_response(_as_http1(kept, b"101"))


def _as_http1(fields: Headers, status: bytes) -> bytes:
    if len(status) != 3 or not status.isdigit():
        raise HeadError(RULES["status-form"])
    lines = [b"HTTP/1.1 %b %b\r\n" % (status, phrase(int(status)))]
    lines += [b"%b: %b\r\n" % field for field in fields if field[0][:1] != b":"]
    lines.append(b"\r\n")
    return b"".join(lines)


def check_trailers(fields: Headers, limits: ProxyLimits, is_grpc: bool) -> Fields:
    """Check the trailers of a response as those of a chunked body are. Raises MalformedTrailers.

    is_grpc: they are those of a call, which have their own limits.
    """
    prefix = "limits.grpc_" if is_grpc else "limits."
    if len(fields) > (limits.grpc_trailer_fields if is_grpc else limits.trailer_fields):
        raise MalformedTrailers("the trailers are too many", f"{prefix}trailer_fields")
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + FIELD_OVERHEAD_BYTES
        if TRAILER_NAME.fullmatch(name) is None or CONTROL.search(value):
            raise MalformedTrailers("malformed trailer field")
    if size > (limits.grpc_trailer_bytes if is_grpc else limits.trailer_bytes):
        raise MalformedTrailers("the trailers are too large", f"{prefix}trailer_bytes")
    return fields
