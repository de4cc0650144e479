"""gRPC's part of a call (gRPC over HTTP/2): headers, metadata, statuses, and the status of a response."""

from __future__ import annotations

import base64
import enum
import re
from collections.abc import Iterable
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ..errors import AgentError
from ..http2.head_rules import Headers

__all__ = [
    "PATH",
    "GrpcStatus",
    "Metadata",
    "Status",
    "check_metadata",
    "http_status",
    "metadata_of",
    "request_headers",
    "response_headers",
    "response_status",
    "trailers",
]

PATH = b"/tunnel.v1.TunnelService/Tunnel"

Metadata = list[tuple[str, str | bytes]]
"""Names are in lower case. Values are text, or bytes if the name ends in `-bin`."""

MIN_PUSHBACK_S, MAX_PUSHBACK_S = 0.1, 60.0
"""The shortest and the longest wait that a hub can request from an agent."""

_MILLISECONDS = re.compile(rb"-?[0-9]{1,18}\Z")
_MAX_MESSAGE_BYTES = 3000  # of a status message, for a log line. Percent-encoding takes up to three bytes for one.
_CONTENT_TYPE = b"application/grpc"
_NAME = re.compile(r"[0-9a-z_.\-]+\Z")
_VALUE = re.compile(r"[\x20-\x7e]*\Z")
_RESERVED = frozenset(("content-type", "te", "user-agent", "connection", "host", "transfer-encoding", "upgrade"))


class Status(enum.IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_NAMES = {int(status): status.name for status in Status}

# gRPC's doc/http-grpc-status-mapping.md; everything else is UNKNOWN
_FROM_HTTP = {
    400: Status.INTERNAL,
    401: Status.UNAUTHENTICATED,
    403: Status.PERMISSION_DENIED,
    404: Status.UNIMPLEMENTED,
    429: Status.UNAVAILABLE,
    502: Status.UNAVAILABLE,
    503: Status.UNAVAILABLE,
    504: Status.UNAVAILABLE,
}


class GrpcStatus(AgentError):
    """The status with which a call ended, or will end.

    code: a Status, or an unknown number.
    message: a text for a person.
    pushback_s: the wait that the hub requests before the next call (`grpc-retry-pushback-ms` of gRPC's A6), or None.
    logged: the code that raised this error has logged the reason.
    """

    def __init__(self, code: int, message: str = "", *, pushback_s: float | None = None, logged: bool = False) -> None:
        name = _NAMES.get(code, f"status {code}")
        super().__init__(f"{name}: {message}" if message else name)
        self.code = code
        self.message = message
        self.pushback_s = pushback_s
        self.logged = logged


def check_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """The same metadata, checked: ValueError for names and values that gRPC can't send or that are its own."""
    checked: Metadata = []
    for name, value in metadata:
        if not _NAME.match(name) or name.startswith("grpc-") or name in _RESERVED:
            raise ValueError(f"{name!r} can't be the name of metadata")
        if name.endswith("-bin") != isinstance(value, bytes):
            raise ValueError(f"metadata {name!r}: a name that ends in -bin has a value of bytes, any other one of text")
        if isinstance(value, str) and not _VALUE.match(value):
            raise ValueError(f"metadata {name!r}: the value must be visible ASCII and spaces")
        checked.append((name, value))
    return checked


def request_headers(scheme: str, authority: str, user_agent: str, metadata: Metadata) -> Headers:
    """The head of the call that opens a tunnel."""
    headers = [
        (b":method", b"POST"),
        (b":scheme", scheme.encode()),
        (b":path", PATH),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", _CONTENT_TYPE),
        (b"user-agent", user_agent.encode()),
        (b"grpc-accept-encoding", b"identity"),
    ]
    for name, value in metadata:
        raw = base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.strip().encode()
        headers.append((name.encode(), raw))
    return headers


def metadata_of(headers: Headers) -> Headers:
    """Return the metadata in a request's head unchanged, without the fields of HTTP and gRPC. Names are lower-case."""
    return [
        (name, value)
        for name, value in headers
        if not name.startswith((b":", b"grpc-")) and name not in (b"content-type", b"te")
    ]


def is_grpc(headers: Headers) -> bool:
    """Whether the content type is gRPC's, with protobuf or unnamed messages."""
    for name, value in headers:
        if name == b"content-type":
            kind = value.split(b";")[0].strip().lower()
            return kind in (_CONTENT_TYPE, _CONTENT_TYPE + b"+proto")
    return False


def http_status(headers: Headers) -> int:
    """Return a response head's `:status`: 0 if it is missing, -1 if it isn't three digits (RFC 9110, 15)."""
    for name, value in headers:
        if name == b":status":
            return int(value) if value.isdigit() and len(value) == 3 else -1
    return 0


def response_headers() -> Headers:
    """Return the head of a hub's response to a call."""
    return [(b":status", b"200"), (b"content-type", _CONTENT_TYPE), (b"grpc-accept-encoding", b"identity")]


def trailers(code: int, message: str = "") -> Headers:
    """The trailers that end a call."""
    out = [(b"grpc-status", str(int(code)).encode())]
    if message:
        # Percent-encoded UTF-8: all but visible ASCII and spaces, and the percent sign (gRPC over HTTP/2, "Responses").
        safe = "".join(chr(c) for c in range(0x20, 0x7F) if c != 0x25)
        out.append((b"grpc-message", quote_from_bytes(message.encode("utf-8", "replace"), safe=safe).encode()))
    return out


def response_status(headers: Headers) -> GrpcStatus | None:
    """Return the status in trailers, or in a response that is only a head. Returns None if there is no status.

    The HTTP status decides if the response isn't gRPC's, such as a proxy's error page.
    """
    code: int | None = None
    message = ""
    pushback_s: float | None = None
    for name, value in headers:
        if name == b"grpc-status":
            code = int(value) if value.isdigit() and len(value) < 5 else Status.UNKNOWN
        elif name == b"grpc-message":
            message = unquote_to_bytes(value[:_MAX_MESSAGE_BYTES]).decode("utf-8", "replace")
        elif name == b"grpc-retry-pushback-ms" and _MILLISECONDS.match(value):
            # A negative value means "don't retry". An agent always retries, so it waits the longest time.
            asked_s = int(value) / 1000 if int(value) >= 0 else MAX_PUSHBACK_S
            pushback_s = min(max(asked_s, MIN_PUSHBACK_S), MAX_PUSHBACK_S)
    if code is not None:
        return GrpcStatus(code, message, pushback_s=pushback_s)
    status = http_status(headers)
    if status and (status != 200 or not is_grpc(headers)):
        text = f"the response is HTTP {status}" + ("" if status != 200 else ", but not gRPC")
        text = text if status > 0 else "the response has an invalid :status"
        return GrpcStatus(_FROM_HTTP.get(status, Status.UNKNOWN), text)
    return None
