"""Writes the heads that go on: to the target, and back to the client. From checked parts, never copied."""

from __future__ import annotations

import functools

from agent.messages import Target
from agent.proxy.headers import SPECIAL, Fields, check_fields, serialize
from agent.proxy.heads import CHUNKED, KEPT_BYTES, Request, Response

__all__ = ["UPGRADE_NAMES", "head_for_client", "head_for_target", "switching_head"]

UPGRADE_NAMES = {b"websocket": b"websocket", b"spdy/3.1": b"SPDY/3.1"}
WITH_CONTENT = frozenset({b"POST", b"PUT", b"PATCH"})  # a bodyless one says so (RFC 9110, section 8.6)


@functools.lru_cache(maxsize=256)
def authority(scheme: str, host: str, port: int) -> bytes:
    """The `Host` of a target: without the port where it is the scheme's own."""
    name = f"[{host}]" if ":" in host else host
    return (name if port == (443 if scheme == "https" else 80) else f"{name}:{port}").encode()


def head_for_target(request: Request, own_target: bytes, fields: Fields, target: Target) -> bytes:
    """The head that the target gets. own_target: the client's, used where `target` names none. fields: end-to-end ones,
    as the policy left them; what belongs to framing, to the connection or is `Host` among them is ignored.

    Raises PolicyFault where one of them can't be written.
    """
    own_host = request.host if target.preserve_host or not target.host else b""
    host = own_host or authority(target.scheme, target.host, target.port)
    if fields == request.given:  # by value: a kept-alive client's head repeats, and so does what a policy makes of it
        tail = request.tail
    else:
        if fields is not request.fields:
            check_fields(fields)
        tail = _tail(request, [field for field in fields if field[0].lower() not in SPECIAL])
        if len(tail) <= KEPT_BYTES and _is_immutable(fields):  # else they could change under the copy
            request.given, request.tail = fields.copy(), tail
    if request.expects_continue and not target.answers_expect:
        tail = b"Expect: 100-continue\r\n" + tail  # not in the tail that is kept: the next target may be another's
    return b"".join(
        (request.method, b" ", target.path or own_target, b" HTTP/1.1\r\nHost: ", host, b"\r\n", tail)
    )


def _is_immutable(fields: Fields) -> bool:
    for field in fields:
        if type(field) is not tuple:
            return False
        for part in field:
            if type(part) is not bytes:
                return False
    return True


def _tail(request: Request, fields: Fields) -> bytes:
    """All of a head behind its `Host`."""
    out = list(map(b": ".join, fields))
    if request.has_length:
        out.append(b"Content-Length: %d" % request.length)
    elif request.length == CHUNKED:
        out.append(b"Transfer-Encoding: chunked")
    elif request.method in WITH_CONTENT and not request.upgrade:
        out.append(b"Content-Length: 0")
    if request.upgrade:
        out.append(b"Connection: Upgrade\r\nUpgrade: " + UPGRADE_NAMES[request.upgrade])
    elif request.takes_trailers:
        out.append(b"Connection: TE\r\nTE: trailers")
    out.append(b"\r\n")
    return b"\r\n".join(out)


def head_for_client(response: Response, length: int, connection: bytes) -> bytes:
    """The head of a final response. length: of its body in bytes, CHUNKED, or UNFRAMED where it says neither.
    connection: the `Connection` field's value, b"" for none."""
    if response.written and length == response.framing and connection == response.closing:
        return response.written
    fields = response.fields.copy()
    if length >= 0:
        fields.append((b"Content-Length", b"%d" % length))
    elif length == CHUNKED:
        fields.append((b"Transfer-Encoding", b"chunked"))
    if connection:
        fields.append((b"Connection", connection))
    head = serialize(b"HTTP/1.1 %d %b" % (response.status, response.reason), fields)
    if response.block:
        response.framing, response.closing, response.written = length, connection, head
    return head


def switching_head(response: Response) -> bytes:
    """The head of a 101."""
    name = (b"Upgrade", UPGRADE_NAMES[response.upgrade])
    return serialize(b"HTTP/1.1 101 Switching Protocols", [*response.fields, (b"Connection", b"Upgrade"), name])
