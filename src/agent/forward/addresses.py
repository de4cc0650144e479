"""The arguments of `fastpipe-agent forward`: what it listens on, and the target of each."""

from __future__ import annotations

from typing import NamedTuple

from ..syntax import Address, parse_address, parse_authority

__all__ = ["Forward", "parse_forward", "parse_target"]

LOOPBACK = "127.0.0.1"


class Forward(NamedTuple):
    """One local port. local: its address, port 0 for a free one. target: HOST:PORT, as the agent reaches it."""

    local: Address
    target: Address


def parse_target(text: str) -> Address:
    """Parse a target, `HOST:PORT`. Raises ValueError."""
    try:
        return parse_authority(text)
    except ValueError as error:
        raise ValueError(f"the target {error}, not {text!r}") from None


def parse_forward(text: str) -> Forward:
    """Parse `[LOCAL=]HOST:PORT`. LOCAL is a port on loopback, or HOST:PORT. Raises ValueError.

    Without LOCAL, the port is that of the target.
    """
    local, equals, target_text = text.rpartition("=")
    target = parse_target(target_text)
    if not equals:
        return Forward(Address(LOOPBACK, target.port), target)
    if local.isascii() and local.isdigit():
        local = f"{LOOPBACK}:{local}"
    try:
        return Forward(parse_address(local, listen=True), target)
    except ValueError as error:
        raise ValueError(f"the local address must be a port, or {str(error).removeprefix('must be ')}") from None
