"""The other end of a client connection, read from its socket."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.proxy.origin import ClientOrigin, origin_of


class FakeTransport(asyncio.BaseTransport):
    """A transport of this extra information alone."""


@pytest.mark.parametrize(
    ("extra", "origin"),
    [
        ({"peername": ("192.0.2.1", 5), "sockname": ("10.0.0.1", 8080)}, ClientOrigin("192.0.2.1", "http", 8080)),
        (
            {"peername": ("::ffff:192.0.2.1", 5, 0, 0), "sockname": ("::", 80, 0, 0)},
            ClientOrigin("192.0.2.1", "http", 80),
        ),
        ({"peername": ("fe80::1%eth0", 5, 0, 2), "ssl_object": object()}, ClientOrigin("fe80::1", "https", 0)),
        ({"peername": "", "sockname": "/run/hub.sock"}, ClientOrigin("", "http", 0)),
    ],
)
def test_the_socket_names_the_user(extra: dict[str, Any], origin: ClientOrigin) -> None:
    assert origin_of(FakeTransport(extra)) == origin
