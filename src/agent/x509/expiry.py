"""Says whether a verified certificate has expired since.

OpenSSL verifies a certificate in a full handshake only. A resumed TLS session has the certificate of the first
handshake, and by TLS 1.3 each resumption gives a new ticket: without this check a certificate would let its holder in
for as long as the holder keeps coming.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

__all__ = ["has_expired"]


def has_expired(certificate: Mapping[str, Any]) -> bool:
    """Whether this certificate has expired. certificate: as `SSLObject.getpeercert()` gives it."""
    until = certificate.get("notAfter")
    return until is not None and ssl.cert_time_to_seconds(until) < time.time()
