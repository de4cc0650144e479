"""Writes the head of a response as HTTP/2's fields (RFC 9113, section 8.3.2), from checked parts."""

from __future__ import annotations

from .grpc import grpc_trailers
from .headers import Fields, forwarded_trailers
from .heads import Response

__all__ = ["CONTINUE_FIELDS", "informational_fields", "own_response_fields", "response_fields", "trailer_fields"]

CONTINUE_FIELDS: Fields = [(b":status", b"100")]


def response_fields(response: Response, length: int) -> Fields:
    """The fields of a final response's head. They are kept with the response, since its head repeats.

    length: of its body in bytes. heads.CHUNKED or heads.UNFRAMED: no Content-Length.
    """
    fields = response.http2_fields
    if fields is not None and response.http2_length == length:
        return fields
    fields = [(b":status", b"%d" % response.status), *_end_to_end(response)]
    if length >= 0:
        fields.append((b"content-length", response.digits if length == response.content_length else b"%d" % length))
    if response.block:
        response.http2_fields, response.http2_length = fields, length
    return fields


def informational_fields(response: Response) -> Fields:
    """The fields of a 103."""
    return [(b":status", b"103"), *_end_to_end(response)]


def own_response_fields(status: int, fields: Fields) -> Fields:
    """The fields of a response of the proxy."""
    return [(b":status", b"%d" % status), *[(name.lower(), value) for name, value in fields]]


def trailer_fields(trailers: Fields, is_grpc: bool) -> Fields:
    """The trailers that are sent on. They may be none. is_grpc: they are those of a call."""
    if is_grpc:
        return [(name.lower(), value) for name, value in grpc_trailers(trailers)]
    return [(name.lower(), value) for name, value in forwarded_trailers(trailers) if name[:1] != b":"]


def _end_to_end(response: Response) -> Fields:
    """The end-to-end fields with names in lower case."""
    fields: Fields = []
    for line in response.lines[response.line_bytes :].split(b"\r\n"):
        name, colon, value = line.partition(b": ")
        if colon:
            fields.append((name.lower(), value))
    return fields
