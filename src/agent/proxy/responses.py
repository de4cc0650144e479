"""The proxy's own responses, in text/plain."""

from __future__ import annotations

import http

from .headers import Fields, serialize

__all__ = ["CONTINUE", "own_parts", "own_response", "phrase"]

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PHRASES = {status.value: status.phrase.encode() for status in http.HTTPStatus}


def phrase(status: int) -> bytes:
    """The reason phrase that goes with a status, b"" for one without a name."""
    return PHRASES.get(status, b"")


def own_parts(status: int, reason: str, request_id: bytes, fields: Fields) -> tuple[Fields, bytes]:
    """Make the fields and the body of a response. The arguments are those of `own_response`."""
    head: Fields = []
    body = b""
    if status != 204:
        body = reason.encode("utf-8", "replace") + b"\n"
        if not fields or fields[0][0] != b"Content-Type":
            body += b"request id: %b\n" % request_id
            head.append((b"Content-Type", b"text/plain; charset=utf-8"))
        head += [(b"X-Content-Type-Options", b"nosniff"), (b"Content-Length", b"%d" % len(body))]
    head.append((b"X-Request-Id", request_id))
    return head + fields, body


def own_response(
    status: int, reason: str, request_id: bytes, *, fields: Fields, connection: bytes = b"", head_only: bool = False
) -> bytes:
    """Write a whole response.

    reason: its text, shown to the client.
    request_id: shown to the client with the text, and as a field.
    fields: if the first is a Content-Type, the text is a page of that type. Then the id is only a field.
    connection: the `Connection` field's value, b"" for none.
    head_only: for a HEAD request.
    """
    head, body = own_parts(status, reason, request_id, fields)
    if connection:
        head.append((b"Connection", connection))
    answer = serialize(b"HTTP/1.1 %d %b" % (status, phrase(status)), head)
    return answer if head_only else answer + body
