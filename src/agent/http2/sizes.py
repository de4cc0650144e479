"""The sizes that decide what waits in a connection, in bytes. What compiles reads them when it is imported."""

from __future__ import annotations

from typing import Final

__all__ = [
    "COALESCED_BYTES",
    "FRAME_BYTES",
    "RECEIVE_BYTES",
    "RECEIVE_TURN_BYTES",
    "UNREAD_BYTES",
    "UNSENT_BYTES",
]

UNSENT_BYTES: Final = 128 * 1024
"""What may wait in the transport, and as much again unsent in the kernel: what is chosen next then goes out next."""

UNREAD_BYTES: Final = 256 * 1024
"""What may wait, received and not read, in the kernel, where the peer is near (`socket_options`).

The kernel takes the double of it."""

FRAME_BYTES: Final = 256 * 1024
"""The largest frame that is sent, however large a one the peer takes: an answer to a PING waits no longer than that."""

RECEIVE_BYTES: Final = 128 * 1024
"""The most that is received at once: it stays in the processor's cache, and a payload of 32 KiB may keep it."""

RECEIVE_TURN_BYTES: Final = 256 * 1024
"""What is received in one go before the event loop turns to other sockets: uvloop would read 32 times."""

COALESCED_BYTES: Final = 16 * 1024
"""What is waited for at most before we are woken, in a storm of small packets (`coalescing`); 1 waits for nothing."""
