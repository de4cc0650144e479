"""Writes the heads for the target and for the client, from checked parts and never by copying."""

from __future__ import annotations

from ..config.limits import ProxyLimits
from ..errors import Refused
from ..messages import Target
from .headers import SPECIAL, Fields, check_fields
from .heads import CHUNKED, KEPT_BYTES, Request, Response

__all__ = [
    "ESTABLISHED",
    "TargetHead",
    "check_size",
    "head_for_client",
    "head_for_target",
    "informational_head",
    "switching_head",
]

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
"""The response to a CONNECT: without framing fields, and without fields of an agent (RFC 9110, section 9.3.6)."""

WITH_CONTENT = frozenset({b"POST", b"PUT", b"PATCH"})  # bodyless ones get a length of 0 (RFC 9110, section 8.6)


class TargetHead:
    """A request's head in checked parts. The stream to the target writes the head, each protocol in its own form.

    It is immutable, since a retry sends the same one.

    Attributes:
        request, own_target: as the client sent them. The target gets `own_target` if `target` names no path.
        fields: end-to-end fields of the policy. If they are not `request.fields`, framing fields, connection fields and
            `Host` among them are to be ignored.
        target: where the head goes.
        request_id: of this request.
    """

    __slots__ = ("_tail", "_written", "fields", "own_target", "request", "request_id", "target")

    request: Request
    own_target: bytes
    fields: Fields
    target: Target
    request_id: bytes
    _tail: bytes  # of an earlier head with equal fields, b"" if there is none
    _written: bytes

    def as_http1(self) -> bytes:
        """The whole head for an HTTP/1.1 connection."""
        if not self._written:
            self._written = _connect_head(self) if self.request.is_connect else _request_head(self)
        return self._written


def head_for_target(
    request: Request, own_target: bytes, fields: Fields, target: Target, request_id: bytes
) -> TargetHead:
    """Check the head for a target. The arguments are its attributes. Raises PolicyError if a field can't be written."""
    head = TargetHead.__new__(TargetHead)
    head.request, head.own_target, head.target, head.request_id = request, own_target, target, request_id
    head._tail = head._written = b""
    head.fields = fields
    if fields == request.given:  # by value: a kept-alive client's head repeats, and so does what a policy makes of it
        head._tail = request.tail
    elif fields is not request.fields and fields != request.received:
        check_fields(fields)
    return head


def _request_head(head: TargetHead) -> bytes:
    request, target = head.request, head.target
    host = target.fixed_host or request.host or target.authority
    tail = head._tail or _new_tail(request, head.fields)
    if request.expects_continue and not target.answers_expect:
        tail = b"Expect: 100-continue\r\n" + tail  # not in the cached tail, since the next request may not have it
    path = target.path or head.own_target
    stripped = target.stripped
    if stripped or request.prefix:
        return b"".join(
            (
                request.method,
                b" ",
                path,
                b" HTTP/1.1\r\nHost: ",
                host,
                b"\r\n",
                tail,
                request.forwarding,
                b"X-Forwarded-Prefix: ",
                request.prefix,
                stripped,
                b"\r\nX-Request-Id: ",
                head.request_id,  # the last field, since it is never the same
                b"\r\n\r\n",
            )
        )
    line = (request.method, b" ", path, b" HTTP/1.1\r\nHost: ", host, b"\r\n", tail)
    return b"".join((*line, request.forwarding, b"X-Request-Id: ", head.request_id, b"\r\n\r\n"))


def _new_tail(request: Request, fields: Fields) -> bytes:
    """Write all of a head behind its `Host`, and keep it for the next request with equal fields."""
    if fields is request.fields or fields == request.received:
        if request.reported:
            tail = _tail(request, request.unreported) + request.reported
        else:
            tail = _tail(request, request.fields)
        if len(tail) <= KEPT_BYTES:
            request.given, request.tail = request.fields if fields is request.fields else request.received, tail
    else:
        tail = _tail(request, [field for field in fields if field[0].lower() not in SPECIAL])
        if len(tail) <= KEPT_BYTES and _is_immutable(fields):  # else they could change under the copy
            request.given, request.tail = fields.copy(), tail
    return tail


def _connect_head(head: TargetHead) -> bytes:
    """Write a CONNECT for a cluster's agent. The client's credentials and its other fields stay here."""
    return b"".join(
        (
            b"CONNECT ",
            head.own_target,
            b" HTTP/1.1\r\nHost: ",
            head.own_target,
            b"\r\nTunnel-Cluster: ",
            head.target.cluster.encode("ascii"),
            b"\r\n",
            head.request.forwarding,
            b"X-Request-Id: ",
            head.request_id,
            b"\r\n\r\n",
        )
    )


def check_size(head: bytes, limits: ProxyLimits) -> None:
    """Check a head for a target that has the same limits. Raises Refused: 414, 431."""
    line_bytes = head.find(b"\r\n")
    if len(head) > limits.request_head_bytes:
        raise Refused(431, "request head too large", fault="client", limit="limits.request_head_bytes")
    if head.count(b"\r\n") - 2 > limits.request_fields:
        raise Refused(431, "too many header fields", fault="client", limit="limits.request_fields")
    if head.rfind(b" ", 0, line_bytes) - head.find(b" ") - 1 > limits.target_bytes:
        raise Refused(414, "request target too long", fault="client", limit="limits.target_bytes")


def _is_immutable(fields: Fields) -> bool:
    for field in fields:
        if type(field) is not tuple:
            return False
        for part in field:
            if type(part) is not bytes:
                return False
    return True


def _tail(request: Request, fields: Fields) -> bytes:
    """All of a head behind its `Host`, without the empty line."""
    out: list[bytes] = []
    for name, value in fields:
        out.append(name)
        out.append(b": ")
        out.append(value)
        out.append(b"\r\n")
    if request.has_length:
        out.append(b"Content-Length: %d\r\n" % request.length)
    elif request.length == CHUNKED:
        out.append(b"Transfer-Encoding: chunked\r\n")
    elif request.method in WITH_CONTENT and not request.upgrade:
        out.append(b"Content-Length: 0\r\n")
    if request.upgrade:
        out.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % request.upgrade)
    elif request.takes_trailers:
        out.append(b"Connection: TE\r\nTE: trailers\r\n")
    return b"".join(out)


def head_for_client(response: Response, length: int, connection: bytes) -> bytes:
    """Write the head of a final response.

    length: of its body in bytes, CHUNKED, or UNFRAMED without either.
    connection: the `Connection` field's value, b"" for none.
    """
    if response.written and length == response.framing and connection == response.closing:
        return response.written
    out = [response.lines]
    if length >= 0:
        out.append(b"Content-Length: ")
        out.append(response.digits if length == response.content_length else b"%d" % length)
        out.append(b"\r\n")
    elif length == CHUNKED:
        out.append(b"Transfer-Encoding: chunked\r\n")
    if connection:
        out.append(b"Connection: ")
        out.append(connection)
        out.append(b"\r\n")
    out.append(b"\r\n")
    head = b"".join(out)
    if response.block:
        response.framing, response.closing, response.written = length, connection, head
    return head


def informational_head(response: Response) -> bytes:
    """The head of a 103."""
    return b"HTTP/1.1 103 Early Hints\r\n" + response.lines[response.line_bytes :] + b"\r\n"


def switching_head(response: Response) -> bytes:
    """The head of a 101 that names a protocol its request asked for, or of the 200 to a CONNECT."""
    if response.status != 101:
        return ESTABLISHED
    return b"HTTP/1.1 101 Switching Protocols\r\n%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (
        response.lines[response.line_bytes :],
        response.upgrade,
    )
