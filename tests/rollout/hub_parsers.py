"""Cluster parsers that a hub imports by name."""

from __future__ import annotations

from agent import Refused, RequestHead

NOT_CALLABLE = 7


def by_header(request: RequestHead) -> str:
    for name, value in request.headers:
        if name.lower() == b"x-cluster":
            return value.decode("ascii", "replace")
    raise Refused(404, "name a cluster in X-Cluster")


def by_bytes(request: RequestHead) -> bytes:
    return b"c1"
