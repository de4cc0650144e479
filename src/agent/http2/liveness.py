"""Finds a dead peer. After a silence the peer gets a PING, and then has some seconds to reply."""

from __future__ import annotations

from .connection import Http2Connection

__all__ = ["PING_AFTER_S", "PING_DUE_S", "SilenceWatch"]

PING_AFTER_S = 20.0
"""Seconds without a byte until a PING."""

PING_DUE_S = 10.0
"""Seconds from there without a byte until the connection is dead."""


class SilenceWatch:
    """Watches one connection. `look` is called every fraction of a second, by a clock of the caller's."""

    __slots__ = ("_connection", "_heard_s", "_pinged", "_since")

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection
        self._heard_s = -1.0  # by the loop's clock, only to be compared with itself
        self._since = 0.0
        self._pinged = False

    def look(self, now: float) -> bool:
        """Send a PING if one is due. Returns False if the peer has not replied in time.

        now: seconds of any clock. Its stops do not count.
        """
        heard_s = self._connection.heard_s
        if heard_s != self._heard_s:
            self._heard_s = heard_s
            self._since = now
            self._pinged = False
        elif now - self._since >= PING_AFTER_S + PING_DUE_S:
            return False
        elif now - self._since >= PING_AFTER_S and not self._pinged:
            self._pinged = True
            self._connection.ping()
        return True
