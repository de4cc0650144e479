"""gRPC's rules in the proxy: which requests are calls, how long they last, and failures as statuses of gRPC.

A call is a request with gRPC's content type. Its client is one that can carry a call: an HTTP/2 client, or a hub. No
timeout of the proxy ends a call. Its own deadline ends it, or its client, or the loss of a connection.

    before the response head   HTTP 200 with the status in the head, and nothing behind it ("Trailers-Only")
    after it                   trailers with the status

Between hub and agent a call is HTTP/1.1. There a failure is an HTTP response, and the hub turns it into a status.
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes

from .clock import NEVER
from .headers import SPECIAL, Fields

__all__ = [
    "CALL_DEADLINE",
    "SLACK_S",
    "failure_head",
    "failure_trailers",
    "grpc_trailers",
    "is_grpc",
    "status_of",
    "timeout_s",
]

CONTENT_TYPE = b"application/grpc"
CONTENT_TYPE_BYTES = len(CONTENT_TYPE)
NAME_BYTES = len(b"content-type")

SLACK_S = 1.0
"""How long a call may last behind its `grpc-timeout`. Its client and its server keep the time, and end it before."""

CALL_DEADLINE = "grpc-timeout"
"""The `limit` of a failure in the log and in `Tunnel-Fault`: the call's own deadline, and no setting."""

CROWDED = frozenset({"max_clients", "memory_comm.max_connections", "http2_max_streams"})
"""Settings whose limit means that there are too many connections or streams."""

MESSAGE_CHARS = 1000  # of the reason in a status. Percent-encoding may take twelve bytes for one.
SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))
TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

OK, UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED = 0, 2, 4, 7
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 8, 12, 13, 14, 16

STATUS_OF = {
    400: INTERNAL,
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: UNIMPLEMENTED,
    405: UNIMPLEMENTED,
    414: INTERNAL,
    421: UNAVAILABLE,
    429: RESOURCE_EXHAUSTED,
    431: INTERNAL,
    501: UNIMPLEMENTED,
    502: UNAVAILABLE,
    503: UNAVAILABLE,
    504: UNAVAILABLE,
}
"""Every other status is UNKNOWN."""


def is_grpc(fields: Fields) -> bool:
    """Whether the first Content-Type is gRPC's: `application/grpc`, alone or followed by `+` or `;`.

    gRPC-web has another content type. It is ordinary HTTP.
    """
    for name, value in fields:
        if len(name) == NAME_BYTES and name.lower() == b"content-type":
            if value[:CONTENT_TYPE_BYTES].lower() != CONTENT_TYPE:
                return False
            rest = value[CONTENT_TYPE_BYTES:]
            return not rest or rest.startswith((b"+", b";"))
    return False


def timeout_s(fields: Fields) -> float:
    """Return the call's `grpc-timeout` in seconds, or NEVER if there is none.

    A malformed one is the server's to judge, and counts as none here. Of several, the shortest counts.
    """
    shortest_s = NEVER
    for name, value in fields:
        if len(name) == len(CALL_DEADLINE) and name.lower() == b"grpc-timeout":
            match = TIMEOUT.fullmatch(value)
            if match is not None:
                shortest_s = min(shortest_s, int(match.group(1)) * UNITS_S[match.group(2)])
    return shortest_s


def status_of(status: int, limit: str = "") -> int:
    """The status of gRPC for a failure before the response head.

    status: of HTTP. limit: the setting that ended the request, or "".
    """
    if limit == CALL_DEADLINE:
        return DEADLINE_EXCEEDED
    if limit in CROWDED:
        return RESOURCE_EXHAUSTED
    return STATUS_OF.get(status, UNKNOWN)


def failure_head(status: int, reason: str, request_id: bytes, limit: str = "") -> Fields:
    """Return the fields of a response that is only a head, behind its `:status` of 200. Names are in lower case."""
    return [
        (b"content-type", CONTENT_TYPE),
        *_status_fields(status_of(status, limit), reason, request_id),
        (b"x-request-id", request_id),
    ]


def failure_trailers(reason: str, request_id: bytes, limit: str = "") -> Fields:
    """Return the trailers of a response that fails behind its head."""
    code = DEADLINE_EXCEEDED if limit == CALL_DEADLINE else UNAVAILABLE
    return _status_fields(code, reason, request_id)


def _status_fields(code: int, reason: str, request_id: bytes) -> Fields:
    """The status, and its message in percent-encoded UTF-8 (gRPC over HTTP/2, "Responses")."""
    message = reason[:MESSAGE_CHARS].encode("utf-8", "replace") + b" (request id: " + request_id + b")"
    return [(b"grpc-status", b"%d" % code), (b"grpc-message", quote_from_bytes(message, safe=SAFE).encode("ascii"))]


def grpc_trailers(fields: Fields) -> Fields:
    """The trailer fields of a call that the proxy forwards: all but framing, connection-specific and pseudo fields."""
    return [field for field in fields if field[0].lower() not in SPECIAL and field[0][:1] != b":"]
