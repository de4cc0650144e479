"""The sizes of a tunnel's queues, packets and windows, in bytes. Compiled modules read them at import."""

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
"""The queued bytes of one connection above which its source pauses. The source resumes below a quarter.

A base hub's queue counts packets, so enough bytes for a large packet may wait here (wire.md)."""

CREDITED_HIGH_WATER_BYTES: Final = 128 * 1024
"""The same for a peer that counts bytes. It is smaller, because a small response waits for the packet in progress."""

SHARED_PACKET_BYTES: Final = 256 * 1024
"""A packet's payload while another connection waits. A base hub's queue counts packets, so not smaller (wire.md)."""

CREDITED_PACKET_BYTES: Final = 64 * 1024
"""The same for a peer that gives credit, and so counts bytes and not packets."""

ALONE_PACKET_BYTES: Final = 1024 * 1024
"""A packet's payload while nobody else waits (wire.md, "agent → hub, DATA")."""

BATCHED_HIGH_WATER_BYTES: Final = 2 * 1024 * 1024
"""HIGH_WATER_BYTES for a hub that counts packets. It holds one packet of ALONE_PACKET_BYTES and the next one."""

BATCHED_TOTAL_BYTES: Final = 64 * 1024 * 1024
"""The queued bytes of such a tunnel above which HIGH_WATER_BYTES is the limit of each connection again."""

WINDOW_BYTES: Final = 16 * 2**20
"""Receive window of a session's stream and of its connection: 128 ms of 1 Gbit/s."""

MESSAGE_BYTES: Final = 256 * 2**20 + 65536
"""Largest message taken: a first packet of 256 MiB and its head (wire.md, "opening")."""
