"""How a connection ended, as the proxy and the connection managers tell it to the agent.

It is never read off what carries the bytes: an aborted Unix socket looks like a clean end. The proxy calls
`outcome(conn_id, kind, stage)` once for each connection, before it closes the transport; what the hub is then told
follows from it (wire.md, "How the proxy's end of a connection is told to the hub").
"""

from __future__ import annotations

import enum
from collections.abc import Callable

__all__ = ["Kind", "Outcome", "Stage"]


class Kind(enum.StrEnum):
    """What ended the connection."""

    COMPLETE = "complete"
    """Nothing was cut: the last response was whole (also the proxy's own error answer), or none was outstanding."""
    FAILED = "failed"
    """The proxy could not go on: the target failed, a limit was passed, a drain ran out of time."""
    CLIENT_GONE = "client gone"
    """The client's side ended it: the hub said so, or its session ended."""


class Stage(enum.StrEnum):
    """How far the outstanding response had come."""

    IDLE = "idle"
    """No request was outstanding."""
    HEAD = "head"
    """A request was outstanding and no byte of its response had gone out."""
    CHUNKED = "chunked"
    """In the middle of a chunked response body."""
    SIZED = "sized"
    """In the middle of a response body with a Content-Length."""
    UPGRADED = "upgraded"
    """After a 101."""


Outcome = Callable[[int, Kind, Stage], None]
"""`outcome(conn_id, kind, stage)`."""
