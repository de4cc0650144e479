"""The sizes of a connection's queues and reads, in bytes. Compiled modules read them on import."""

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
"""The most bytes in the transport, and as many again unsent in the kernel. So the next choice leaves next."""

UNREAD_BYTES: Final = 256 * 1024
"""The most received and unread bytes in the kernel, if the peer is near (`socket_options`).

The kernel doubles it."""

FRAME_BYTES: Final = 256 * 1024
"""The largest sent frame, even if the peer allows larger ones. The ACK of a PING waits no longer than that."""

RECEIVE_BYTES: Final = 128 * 1024
"""The most bytes of one read. They stay in the processor's cache, and a payload of 32 KiB may hold the buffer."""

RECEIVE_TURN_BYTES: Final = 256 * 1024
"""The most bytes received before the event loop serves other sockets, since uvloop would read 32 times."""

COALESCED_BYTES: Final = 16 * 1024
"""The highest threshold for a wake-up, in a storm of small packets (`coalescing`). 1 turns coalescing off."""
