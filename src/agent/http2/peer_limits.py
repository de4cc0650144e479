"""The limits of the peer of an HTTP/2 connection. Each use of HTTP/2 has its own."""

from __future__ import annotations

import dataclasses

__all__ = ["DEFAULT_LIMITS", "PeerLimits"]


@dataclasses.dataclass(frozen=True, slots=True)
class PeerLimits:
    """The limits of one connection's peer.

    Attributes:
        max_streams: the streams that it may have open at once. More are refused.
        head_bytes: the size of a decoded head, as HPACK counts it. A larger head closes the connection.
        announced_head_bytes: the size in SETTINGS_MAX_HEADER_LIST_SIZE.
        counts_streams: see ControlFrameLimiter.
        extended_connect: it may send extended CONNECT requests (RFC 8441).
    """

    max_streams: int = 100
    head_bytes: int = 2**16
    announced_head_bytes: int = 2**16
    counts_streams: bool = True
    extended_connect: bool = False


DEFAULT_LIMITS = PeerLimits()
"""Those of agents and hubs."""
