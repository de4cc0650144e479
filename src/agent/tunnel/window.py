"""Flow control of one connection: the peer needs credit to send, and gets it back when the reader takes bytes.

    peer ── at most `window` bytes ──► arrived, unread ──► read ──┐
      ▲                                                           │
      └──────────── WINDOW packets, in batches ◄──────────────────┘

A window grows while its reader takes more than half of it in a round trip, as in QUIC implementations. Then the peer
waits for credit, and the reader doesn't wait for bytes. So the window becomes twice rate × round trip. It never grows
for a reader that doesn't read, so stalled readers hold at most their earlier credit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["INITIAL_WINDOW_BYTES", "MAX_WINDOW_BYTES", "ReceiveWindow", "WindowBudget"]

INITIAL_WINDOW_BYTES: Final = 256 * 1024
"""The credit of each side on a new connection, the opening DATA included (wire.md, "window")."""

MAX_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""A window grows no further (wire.md, "window")."""

_BATCHES = 4  # credit goes back a quarter of the window at a time …
_MAX_BATCH_BYTES = 1024 * 1024  # … or this much
_MIN_ROUND_TRIP_S = 0.001  # what a busy event loop adds to the fastest link


class WindowBudget:
    """Limits the total size of the windows of all connections that share it.

    limit_bytes: above it no window grows. A new connection always gets its first 256 KiB, and they count.
    granted_bytes: the total size of the windows now.
    """

    __slots__ = ("granted_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int = 256 * 1024 * 1024) -> None:
        self.limit_bytes = limit_bytes
        self.granted_bytes = 0

    def grow(self, size_bytes: int) -> bool:
        """Count `size_bytes` more. Returns False, and counts nothing, if that would exceed the limit."""
        if self.granted_bytes + size_bytes > self.limit_bytes:
            return False
        self.granted_bytes += size_bytes
        return True


class ReceiveWindow:
    """One connection's window, one direction.

    give: sends the peer an increment, 1 to 2^31-1 bytes.
    round_trip_s: returns the least round trip.
    now_s: a clock.

    Invariants:
    I1. The arrived bytes never exceed the credited bytes, or `arrived` has returned False.
    I2. The credited bytes that are not yet read are at most `size_bytes`.
    I3. The budget counts `size_bytes` for this window until `close`.
    """

    __slots__ = (
        "_arrived_bytes",
        "_budget",
        "_credited_bytes",
        "_epoch_bytes",
        "_epoch_s",
        "_give",
        "_now_s",
        "_round_trip_s",
        "closed",
        "size_bytes",
    )

    def __init__(
        self,
        give: Callable[[int], None],
        budget: WindowBudget,
        round_trip_s: Callable[[], float],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.size_bytes = INITIAL_WINDOW_BYTES
        self.closed = False
        self._give = give
        self._budget = budget
        self._round_trip_s = round_trip_s
        self._now_s = now_s
        self._arrived_bytes = 0  # so far
        self._credited_bytes = INITIAL_WINDOW_BYTES  # so far
        self._epoch_bytes = 0  # read when this look at the rate began
        self._epoch_s = now_s()
        budget.granted_bytes += INITIAL_WINDOW_BYTES

    def arrived(self, size_bytes: int) -> bool:
        """Count a DATA packet's payload. Returns whether the peer had credit for it."""
        self._arrived_bytes += size_bytes
        return self._arrived_bytes <= self._credited_bytes  # I1

    def unread(self, size_bytes: int) -> None:
        """Take the number of arrived bytes that wait for their reader. Credit for the rest goes back in batches."""
        read_bytes = self._arrived_bytes - size_bytes
        owed_bytes = read_bytes + self.size_bytes - self._credited_bytes
        if self.closed or owed_bytes < min(self.size_bytes // _BATCHES, _MAX_BATCH_BYTES):
            return
        epoch_bytes = read_bytes - self._epoch_bytes
        if epoch_bytes > self.size_bytes // 2:
            now_s = self._now_s()
            round_trip_s = max(self._round_trip_s(), _MIN_ROUND_TRIP_S)
            if (now_s - self._epoch_s) * self.size_bytes < 2 * round_trip_s * epoch_bytes:
                more_bytes = min(self.size_bytes, MAX_WINDOW_BYTES - self.size_bytes)
                if more_bytes and self._budget.grow(more_bytes):
                    self.size_bytes += more_bytes
                    owed_bytes += more_bytes
            self._epoch_bytes, self._epoch_s = read_bytes, now_s
        self._credited_bytes += owed_bytes  # I2
        self._give(owed_bytes)

    def close(self) -> None:
        """Give no more credit. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self._budget.granted_bytes -= self.size_bytes  # I3
