"""Offers protocols by ALPN with a TLS context that others use too (RFC 7301)."""

from __future__ import annotations

import ssl
from typing import Any

__all__ = ["OfferedContext"]


class OfferedContext:
    """A client's TLS context that offers these protocols by ALPN. The event loop calls `wrap_bio` alone.

    The context belongs to the policy, and also serves connections without HTTP/2. OpenSSL copies the protocols when a
    connection's TLS begins, so they change only for that moment.
    """

    def __init__(self, context: ssl.SSLContext, protocols: list[str]) -> None:
        self._context = context
        self._protocols = protocols

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        """One connection's TLS."""
        self._context.set_alpn_protocols(self._protocols)
        try:
            return self._context.wrap_bio(*arguments, **named)
        finally:
            self._context.set_alpn_protocols(["http/1.1"])
