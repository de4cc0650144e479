"""Checks whether a certificate has expired since OpenSSL verified it.

OpenSSL verifies a certificate in a full handshake only. A resumed TLS session has the certificate of the first
handshake. In TLS 1.3 each resumption gives a new ticket. So without this check, a holder who keeps reconnecting could
use an expired certificate forever.
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
