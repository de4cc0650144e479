"""The outcome of a connection, as the proxy and the connection managers report it.

The proxy calls `outcome(conn_id, kind, stage)` once for each connection, before it closes the transport. Nothing infers
an outcome from the transport, since an aborted Unix socket looks like a clean end of file. The outcome decides which
packet the hub gets (wire.md).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

__all__ = ["Kind", "Outcome", "Stage", "log_outcome"]

logger = logging.getLogger(__name__)


class Kind(enum.StrEnum):
    """How the connection ended."""

    COMPLETE = "complete"
    """Nothing was truncated. The last response was whole, the proxy's own error response included."""
    FAILED = "failed"
    """The target failed, a limit was exceeded, or a drain timed out."""
    CLIENT_GONE = "client gone"
    """The client closed the connection: the hub reported it, or its session closed."""


class Stage(enum.StrEnum):
    """How far the outstanding response had come."""

    IDLE = "idle"
    """No request was outstanding."""
    HEAD = "head"
    """A request was outstanding, and no byte of its response was sent."""
    CHUNKED = "chunked"
    """In the middle of a chunked response body."""
    SIZED = "sized"
    """In the middle of a response body with a Content-Length."""
    UPGRADED = "upgraded"
    """After a 101."""


Outcome = Callable[[int, Kind, Stage], None]
"""`outcome(conn_id, kind, stage)`."""


def log_outcome(conn_id: int, kind: Kind, stage: Stage) -> None:
    """Only log how a connection ended. This is the `Outcome` of a TCP port, where no hub needs the report."""
    logger.debug("client connection ended", extra={"conn_id": conn_id, "kind": kind, "stage": stage})
