"""Holds input that waits behind the request in flight, and decides whether its transport is read at all.

Two parties pause reading, each independently. The backlog pauses it while it is full. The exchange pauses it while its
target takes no bytes.
"""

from __future__ import annotations

import asyncio
from typing import cast

from .pieces import Piece

__all__ = ["Backlog"]


class Backlog:
    """One client connection's input that is unread so far.

    transport: whose reading it pauses. held: the input. is_paused: the exchange holds the reading back.
    """

    __slots__ = ("_is_full", "_limit_bytes", "held", "is_paused", "transport")

    def __init__(self, limit_bytes: int) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.held: bytes | bytearray = b""
        self._limit_bytes = limit_bytes
        self._is_full = False
        self.is_paused = False

    def hold(self, data: Piece) -> None:
        """Add input. Past the limit, reading pauses until `take`."""
        if not self.held and type(data) is bytes:
            self.held = data
        else:
            if type(self.held) is not bytearray:
                self.held = bytearray(self.held)
            self.held += data
        if len(self.held) > self._limit_bytes and not self._is_full:
            self._is_full = True
            if not self.is_paused and not self.transport.is_closing():
                self.transport.pause_reading()

    def take(self) -> bytes:
        """All input that is held. It is the caller's now."""
        data = bytes(self.held)
        self.held = b""
        if self._is_full:
            self._is_full = False
            self._resume_transport()
        return data

    def drop(self) -> None:
        """Drop the held bytes. Reading stays as it is."""
        self.held = b""

    def pause(self) -> None:
        """The exchange's target takes no more for now."""
        if not self.is_paused:
            self.is_paused = True
            if not self._is_full and not self.transport.is_closing():
                self.transport.pause_reading()

    def resume(self) -> bool:
        """The target takes more. Returns whether it was paused."""
        if not self.is_paused:
            return False
        self.is_paused = False
        self._resume_transport()
        return True

    def read_on(self) -> None:
        """Read, whatever held it back: what comes is ignored from now on."""
        self._is_full = self.is_paused = False
        self._resume_transport()

    def _resume_transport(self) -> None:
        if not self._is_full and not self.is_paused and not self.transport.is_closing():
            self.transport.resume_reading()
