"""Receive coalescing, as in network cards: one wake-up for several small packets.

A peer may send every packet in a separate write. A wake-up then costs a switch of processes, three system calls and a
write of the response. That is many times the work on the packet, and a faster receiver finds fewer packets each time.
So if small packets come in quick succession, the kernel waits until several are there (SO_RCVLOWAT, socket(7)). A timer
bounds the wait.

                 LOOK_WAKEUPS within LOOK_S, of few bytes each
      looking ──────────────────────────────────────────────► holding ──┐ woken often in a tick: wait for
         ▲                                                      │  ▲    │ twice as much
         └──── two ticks without a wake-up, or no gain ─────────┘  └────┘

A byte waits for less than two ticks, and only if others arrived just before it. After a tick without a wake-up, the
waiting bytes are read. If bytes had to wait, the threshold shrinks, or coalescing rests. The first rest is REST_S, and
each next rest is four times as long. So a peer with few packets in flight stalls rarely. Only Linux, since 4.18, wakes
a reader as soon as the threshold drops to the bytes that wait.

Cython compiles this file as it is, with the types of `coalescing.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from typing import Any

from .sizes import COALESCED_BYTES

__all__ = ["ReceiveCoalescing"]

TICK_S = 0.001
"""The shortest that a timer of uvloop can be."""

LOOK_WAKEUPS = 16
LOOK_S = 0.003
"""Many wake-ups: so many within so long."""

FEW_BYTES = 2048
"""A wake-up for fewer, on average, is one that may be saved."""

FIRST_WAKEUPS = 2
"""The first threshold is the bytes of so many wake-ups."""

OFTEN = 2
"""More wake-ups in a tick than these are still too many."""

STEADY_TICKS = 32
"""After so many ticks without a stall, a stall counts as the peer's own pause. The threshold then grows again."""

REST_S, LONGEST_REST_S, REST_GROWS = 0.25, 16.0, 4
"""Seconds of rest after coalescing brought no gain: the first, the longest, and the factor between two."""

_look_wakeups = LOOK_WAKEUPS


def _release() -> tuple[int, int]:
    """The kernel's, (0, 0) where it is not Linux."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release) if sys.platform == "linux" else None
    return (int(found[1]), int(found[2])) if found else (0, 0)


_WAKES_READERS = _release() >= (4, 18)


class ReceiveCoalescing:
    """Coalesces for one transport, whose owner reports all received bytes. Without system support it does nothing."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting_for_bytes = 1  # what the kernel was asked to wait for
        self._loop = loop
        self._transport = transport
        sock: Any = transport.get_extra_info("socket")
        tcp = sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6)
        self._sock = sock if tcp and _WAKES_READERS else None
        self._timer: asyncio.TimerHandle | None = None
        self._wakeups = 0  # since we looked, or since the last tick, and what they brought
        self._bytes = 0
        self._looked_s = 0.0
        self._held_bytes = 0  # the threshold, 0 while looking
        self._first_bytes = 0
        self._most_bytes = COALESCED_BYTES
        self._steady = 0  # ticks without a stall
        self._rest_s = REST_S
        self._rested_s = 0.0  # when we look again

    def received(self, size_bytes: int) -> None:
        """A wake-up brought so many bytes."""
        self._wakeups += 1
        self._bytes += size_bytes
        if not self._held_bytes and self._wakeups >= _look_wakeups:
            self._look()

    def stop(self) -> None:
        """Stop, since the transport is closed."""
        self._sock = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now_s = time.monotonic()
        mean_bytes = self._bytes // self._wakeups
        often = now_s - self._looked_s <= LOOK_S
        self._wakeups = self._bytes = 0
        self._looked_s = now_s
        if often and mean_bytes < FEW_BYTES and now_s >= self._rested_s and self._sock is not None:
            self._steady = 0
            self._most_bytes = COALESCED_BYTES
            self._first_bytes = self._held_bytes = min(max(mean_bytes, 1) * FIRST_WAKEUPS, COALESCED_BYTES)
            self._wait_for(self._held_bytes)
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        wakeups, size_bytes = self._wakeups, self._bytes
        self._wakeups = self._bytes = 0
        if self.waiting_for_bytes == 1:  # the last tick was silent
            self._held_bytes = self._after_silence(wakeups > 0)
            if self._held_bytes:
                self._wait_for(self._held_bytes)
        elif not wakeups:
            self._wait_for(1)  # what is there, if anything is, comes now
        elif size_bytes >= wakeups * COALESCED_BYTES:
            self._held_bytes = 0  # each is for much already
            self._wait_for(1)
        else:
            self._steady += 1
            if self._steady == STEADY_TICKS:
                self._rest_s = REST_S
                self._most_bytes = COALESCED_BYTES
            if wakeups > OFTEN and self._held_bytes < self._most_bytes:
                self._held_bytes = min(self._held_bytes * 2, self._most_bytes)
                self._wait_for(self._held_bytes)
        if self._held_bytes and self._sock is not None:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _after_silence(self, stalled: bool) -> int:
        """Returns what to wait for from now on. stalled: there was something that had to wait."""
        steady, self._steady = self._steady, 0
        if not stalled:
            return 0
        if steady >= STEADY_TICKS:
            return self._held_bytes
        self._most_bytes = self._held_bytes // 2
        if self._most_bytes >= self._first_bytes:
            return self._most_bytes
        self._rested_s = time.monotonic() + self._rest_s
        self._rest_s = min(self._rest_s * REST_GROWS, LONGEST_REST_S)
        return 0

    def _wait_for(self, size_bytes: int) -> None:
        self.waiting_for_bytes = size_bytes
        if self._sock is not None and not self._transport.is_closing():  # whose number may be another's by now
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size_bytes)
