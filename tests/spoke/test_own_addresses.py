"""The agent knows its own listeners, whatever address leads to them."""

from __future__ import annotations

import ipaddress

import pytest

from agent.spoke.own_addresses import OwnAddresses
from agent.syntax import Address


@pytest.mark.parametrize(
    ("listener", "address", "is_own"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "192.0.2.1", False),
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "127.9.9.9", True),
        ("0.0.0.0", "0.0.0.0", True),
        ("0.0.0.0", "192.0.2.1", False),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::", "2001:db8::1", False),
        ("::1", "::1", True),
        ("::1", "::", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_an_address_that_reaches_a_listener_is_its_own(listener: str, address: str, is_own: bool) -> None:
    own = OwnAddresses(lambda: [Address(listener, 8081)])
    assert own.has(ipaddress.ip_address(address), 8081) is is_own
    assert not own.has(ipaddress.ip_address(address), 8082)
