"""The sizes that decide what waits for what in a tunnel, in bytes. What compiles reads them when it is imported."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ALONE_PACKET_BYTES",
    "BATCHED_HIGH_WATER_BYTES",
    "BATCHED_TOTAL_BYTES",
    "CREDITED_HIGH_WATER_BYTES",
    "CREDITED_PACKET_BYTES",
    "HIGH_WATER_BYTES",
    "MESSAGE_BYTES",
    "SHARED_PACKET_BYTES",
    "WINDOW_BYTES",
]

HIGH_WATER_BYTES: Final = 256 * 1024
"""Queued bytes of one connection past which its source is asked to pause; it resumes below a quarter.

A base hub's queue counts packets, so what makes a large one may wait here (wire.md)."""

CREDITED_HIGH_WATER_BYTES: Final = 128 * 1024
"""The same where the peer counts bytes: a packet is begun for what waits here, and a small answer waits for its end."""

SHARED_PACKET_BYTES: Final = 256 * 1024
"""A packet's payload while another connection waits. A base hub's queue counts packets, so not smaller (wire.md)."""

CREDITED_PACKET_BYTES: Final = 64 * 1024
"""The same where the peer has credit for what comes, and so counts bytes and not packets."""

ALONE_PACKET_BYTES: Final = 1024 * 1024
"""A packet's payload while nobody else waits (wire.md, "agent → hub, DATA")."""

BATCHED_HIGH_WATER_BYTES: Final = 2 * 1024 * 1024
"""HIGH_WATER_BYTES towards a hub that counts packets: one of ALONE_PACKET_BYTES goes out, and the next one gathers."""

BATCHED_TOTAL_BYTES: Final = 64 * 1024 * 1024
"""What all connections of such a tunnel may hold together; past it HIGH_WATER_BYTES is each one's limit again."""

WINDOW_BYTES: Final = 16 * 2**20
"""Receive window of a session's stream and of its connection: 128 ms of 1 Gbit/s."""

MESSAGE_BYTES: Final = 256 * 2**20 + 65536
"""Largest message taken: a first packet of 256 MiB and its head (wire.md, "opening")."""
