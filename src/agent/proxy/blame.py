"""`Tunnel-Fault`: a field with which an agent's own error response names the party at fault to the hub's log.

    Tunnel-Fault: <party> <limit, or "-"> <the reason, as in the response's text>

Hubs and agents drop the field from all other messages, so neither a user nor a target can write it.
"""

from __future__ import annotations

import logging
from typing import cast

from ..errors import Party
from ..syntax import PEER_CHARS

__all__ = ["FAULT_FIELD", "log_fault", "read_fault", "write_fault"]

logger = logging.getLogger(__name__)

FAULT_FIELD = b"Tunnel-Fault"
BLAMED = ("client", "target", "agent", "policy")
"""Parties that an agent may name. If an agent names another party, the agent is at fault."""
LIMIT_CHARS = 64


def write_fault(fault: Party, limit: str, reason: str) -> bytes:
    """The field's value."""
    text = f"{fault} {limit or '-'} {reason[:PEER_CHARS]}"
    return "".join(char if " " <= char <= "~" else "?" for char in text).encode()


def read_fault(value: bytes) -> tuple[Party, str, str]:
    """Read (party, limit or "", reason) from an agent's field. The result is safe for the log."""
    text = "".join(char if char.isprintable() else "?" for char in value.decode("latin-1"))
    party, _, rest = text.partition(" ")
    limit, _, reason = rest.partition(" ")
    fault = cast(Party, party) if party in BLAMED else "agent"
    return fault, "" if limit == "-" else limit[:LIMIT_CHARS], reason[:PEER_CHARS]


def log_fault(fields: dict[str, object], fault: Party, limit: str, reason: str, status: int, method: bytes) -> None:
    """Log that an agent responded with a failure, and whose fault it was.

    fields: the request's, for the log. fault, limit, reason: as `read_fault` returns them.
    """
    extra: dict[str, object] = {
        **fields,
        "stage": "response head",
        "status": status,
        "fault": fault,
        "method": method.decode(),
        "reason": reason,
    }
    if limit:
        extra["limit"] = limit
    logger.warning("the agent responded with a failure", extra=extra)
