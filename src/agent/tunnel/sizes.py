"""The sizes that decide what waits for what in a tunnel, in bytes. What compiles reads them when it is imported."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ALONE_PACKET_BYTES",
    "BATCHED_HIGH_WATER_BYTES",
    "BATCHED_TOTAL_BYTES",
    "COALESCED_BYTES",
    "CREDITED_HIGH_WATER_BYTES",
    "CREDITED_PACKET_BYTES",
    "FRAME_BYTES",
    "HIGH_WATER_BYTES",
    "RECEIVE_BYTES",
    "RECEIVE_TURN_BYTES",
    "SHARED_PACKET_BYTES",
    "UNREAD_BYTES",
    "UNSENT_BYTES",
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

UNSENT_BYTES: Final = 128 * 1024
"""What may wait in the transport, and as much again unsent in the kernel: what is chosen next then goes out next."""

UNREAD_BYTES: Final = 256 * 1024
"""What may wait, received and not read, in the kernel, where the peer is near (`kernel`); it takes the double of it."""

FRAME_BYTES: Final = 256 * 1024
"""The largest frame that is sent, however large a one the peer takes: an answer to a PING waits no longer than that."""

RECEIVE_BYTES: Final = 128 * 1024
"""The most that is received at once: it stays in the processor's cache, and a payload of 32 KiB may keep it."""

RECEIVE_TURN_BYTES: Final = 256 * 1024
"""What is received in one go before the event loop turns to other sockets: uvloop would read 32 times."""

COALESCED_BYTES: Final = 16 * 1024
"""What is waited for at most before we are woken, in a storm of small packets (`coalescing`); 1 waits for nothing."""
