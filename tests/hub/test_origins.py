"""The origin of a connection: its socket's peer, or a PROXY header's source."""

from __future__ import annotations

from typing import Any

import pytest

from agent.hub.origins import Origins
from agent.hub.proxy_protocol import ProxyHeader

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "fd00::/8", "fe80::/10")


@pytest.mark.parametrize(
    ("address", "peer", "is_trusted"),
    [
        (("127.0.0.1", 5), "127.0.0.1", True),
        (("127.0.0.2", 5), "127.0.0.2", False),
        (("10.255.0.1", 5), "10.255.0.1", True),
        (("::ffff:10.1.2.3", 5, 0, 0), "10.1.2.3", True),
        (("::ffff:11.1.2.3", 5, 0, 0), "11.1.2.3", False),
        (("fd12::1", 5, 0, 0), "fd12::1", True),
        (("2001:DB8::1", 5, 0, 0), "2001:db8::1", False),
        (("fe80::1%eth0", 5, 0, 3), "fe80::1", True),
        (("", 5), "", False),
        ("", "", False),
        (None, "", False),
    ],
)
def test_a_sockets_peer_is_the_user(address: Any, peer: str, is_trusted: bool) -> None:
    origins = Origins(TRUSTED, "https")
    origins.port = 8443
    found = origins.of_socket(address)
    assert (found.peer, found.scheme, found.port, found.is_trusted) == (peer, "https", 8443, is_trusted)


def test_nobody_is_trusted_by_default() -> None:
    assert not Origins((), "http").of_socket(("127.0.0.1", 5)).is_trusted


def test_the_source_of_a_header_is_the_user() -> None:
    origins = Origins(TRUSTED, "http")
    origins.port = 8080
    proxy = origins.of_socket(("10.0.0.1", 5))
    found = origins.of_header(proxy, ProxyHeader(50, "203.0.113.9", 4711, 443))
    assert (found.peer, found.scheme, found.port) == ("203.0.113.9", "http", 443)
    assert origins.of_header(proxy, ProxyHeader(50, "203.0.113.9", 4711, 0)).port == 8080


@pytest.mark.parametrize("header", [ProxyHeader(15), ProxyHeader(16, is_local=True)])
def test_a_header_without_a_source_keeps_the_sockets_peer(header: ProxyHeader) -> None:
    origins = Origins(TRUSTED, "http")
    origins.port = 8080
    found = origins.of_header(origins.of_socket(("10.0.0.1", 5)), header)
    assert (found.peer, found.port) == ("10.0.0.1", 8080)


@pytest.mark.parametrize(
    ("header", "is_trusted"),
    [
        (ProxyHeader(50, "203.0.113.9", 4711, 443), False),
        (ProxyHeader(50, "2001:db8::9", 4711, 443), False),
        (ProxyHeader(50, "10.9.9.9", 4711, 443), True),
        (ProxyHeader(15), False),
        (ProxyHeader(16, is_local=True), True),
    ],
    ids=["user", "user-ipv6", "another-proxy", "unknown", "local"],
)
def test_a_user_is_not_trusted_because_a_proxy_forwards_its_bytes(header: ProxyHeader, is_trusted: bool) -> None:
    """A proxy in TCP mode passes the user's own X-Forwarded-For."""
    origins = Origins(TRUSTED, "http")
    assert origins.of_header(origins.of_socket(("10.0.0.1", 5)), header).is_trusted is is_trusted


def test_other_text_than_an_address_is_not_trusted() -> None:
    origins = Origins(("0.0.0.0/0",), "http")
    assert [origins.trusts(text) for text in ("10.0.0.1", "::ffff:10.0.0.1", "::1", "localhost", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
