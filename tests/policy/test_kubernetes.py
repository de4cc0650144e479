"""Users, and the names under which the real proxy forwards their requests, as the API server received them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .gate import bearer

OWN = b"Bearer managed-own-token"


async def test_a_managed_clusters_user_goes_on_with_their_own_token(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        answer = await gate.ask(bearer("alice"), path="/c1/api/v1/pods?limit=5")
        assert (answer.status, answer.body) == (200, b'{"from": "managed"}')
        (received,) = gate.managed.received
        assert received.target == "/api/v1/pods?limit=5"
        assert received.values(b"authorization") == [b"Bearer alice"]
        assert not received.like(b"impersonate-")
        assert gate.hub.reviews == []


async def test_a_hubs_user_goes_on_under_the_agents_token_and_their_name(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        answer = await gate.ask(bearer("bob"))
        assert answer.status == 200
        (received,) = gate.managed.received
        assert received.values(b"authorization") == [OWN]
        assert received.like(b"impersonate-") == [
            (b"Impersonate-User", b"bob"),
            (b"Impersonate-Group", b"team"),
            (b"Impersonate-Group", b"cluster:hub:system:masters"),
            (b"Impersonate-Group", b"system:authenticated"),
        ]
        assert (gate.managed.reviews, gate.hub.reviews) == (["bob"], ["bob"])


async def test_a_token_that_nobody_knows_is_a_401_with_a_challenge(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        answer = await gate.ask(bearer("mallory"))
        assert answer.status == 401
        assert b"WWW-Authenticate: Bearer\r\n" in answer.head
        assert b"mallory" not in answer.head + answer.body
        assert gate.managed.received == []
