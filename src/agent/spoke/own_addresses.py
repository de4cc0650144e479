"""The addresses that this process listens on itself, so that no tunnel leads back into the agent."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable

from ..syntax import Address, IpAddress, find_address

__all__ = ["OwnAddresses"]


class OwnAddresses:
    """Compares addresses with the listeners of this process. listeners: their addresses at the time."""

    def __init__(self, listeners: Callable[[], Iterable[Address]]) -> None:
        self._listeners = listeners

    def has(self, address: IpAddress, port: int) -> bool:
        """Whether a connection to this address and port would reach a listener."""
        for listener in self._listeners():
            own = find_address(listener.host)
            if port != listener.port or own is None:
                continue
            # The system takes an unspecified address for this machine, on either side.
            if address == own or (own.is_unspecified and _is_of_this_machine(address)) or address.is_unspecified:
                return True
        return False


def _is_of_this_machine(address: IpAddress) -> bool:
    """Whether this machine has the address. The system allows a bind to its own addresses only."""
    if address.is_loopback or address.is_unspecified:
        return True
    family = socket.AF_INET6 if isinstance(address, ipaddress.IPv6Address) else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError:
        return False
    return True
