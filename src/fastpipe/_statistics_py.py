"""Counts of the bytes that one end sent and received. Counting starts with the first request for them."""

from __future__ import annotations

import time
from typing import final


@final
class PipeStatistics:
    """Counts of one end since the first call of `collect_statistics`. The object stays current."""

    __slots__ = ("_paused_at", "_paused_s", "bytes_read", "bytes_written", "chunks_read", "chunks_written", "pauses")

    def __init__(self) -> None:
        self.bytes_written = self.chunks_written = 0  # accepted by write: a chunk is one write
        self.bytes_read = self.chunks_read = 0  # delivered, or taken by hand: a chunk is one delivery or one call
        self.pauses = 0  # calls of pause_writing
        self._paused_s = 0.0
        self._paused_at: float | None = None

    @property
    def paused_s(self) -> float:
        """Seconds between pause_writing and resume_writing (or the end), a pause that lasts included."""
        running = 0.0 if self._paused_at is None else time.monotonic() - self._paused_at
        return self._paused_s + running

    def _pause(self) -> None:
        self.pauses += 1
        self._paused_at = time.monotonic()

    def _resume(self) -> None:
        self._paused_s, self._paused_at = self.paused_s, None
