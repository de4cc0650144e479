"""Token reviews: what is remembered and how long, how many are made, what happens where one can't be had."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from agent.errors import Refused
from agent.policy.api_client import ReviewError
from agent.policy.reviews import Known, TokenReviews, User, parse_review

from .api_server import ApiServer, cut, silent
from .gate import Gate, bearer, until

Answer = Callable[[web.Request, dict[str, Any]], Any]


def status(code: int, **headers: str) -> Answer:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response({"kind": "Status", "apiVersion": "v1", "code": code}, status=code, headers=headers)

    return answer


def says(**status: Any) -> Answer:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response(body | {"status": status}, status=201)

    return answer


def whole(change: dict[str, Any], **arguments: Any) -> Answer:
    """A response that would let the token pass without this change to it."""
    right = {"status": {"authenticated": True, "user": {"username": "root", "groups": ["system:masters"]}}}

    async def answer(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.json_response(body | right | change, **({"status": 201} | arguments))

    return answer


def raw(content: bytes, **headers: str) -> Answer:
    async def answer(request: web.Request, body: dict[str, Any]) -> web.Response:
        return web.Response(body=content, status=201, headers=headers, content_type="application/json")

    return answer


ROOT = {"username": "root", "groups": ["system:masters"]}
FAILURES: dict[str, Answer] = {
    "silent": silent,
    "cut": cut,
    "400": status(400),
    "401": status(401),
    "403": status(403),
    "404": status(404),
    "409": status(409),
    "429": status(429, **{"Retry-After": "1"}),
    "500": status(500),
    "503": status(503),
    "302 elsewhere": status(302, Location="https://localhost:1/"),
    "307 elsewhere": status(307, Location="https://localhost:1/"),
    "204": raw(b""),
    "200 with a pass, and a status of 500": whole({}, status=500),
    "not JSON": raw(b"authenticated: true"),
    "half JSON": raw(b'{"kind": "TokenReview", "status": {"authenticated": true'),
    "a list": raw(b"[]"),
    "null": raw(b"null"),
    "deeply nested": raw(b"[" * 100_000),
    "not UTF-8": raw(b'{"kind": "\xff"}'),
    "encoded": raw(b"x", **{"Content-Encoding": "br"}),
    "enormous": raw(b" " * (5 * 1024 * 1024)),
    "another kind": whole({"kind": "SubjectAccessReview"}),
    "another version": whole({"apiVersion": "authentication.k8s.io/v2"}),
    "no kind": raw(json.dumps({"status": {"authenticated": True, "user": ROOT}}).encode()),
    "no status": raw(b'{"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1"}'),
    "status is a text": whole({"status": "authenticated"}),
    "authenticated is a text": says(authenticated="true", user=ROOT),
    "authenticated is a number": says(authenticated=1, user=ROOT),
    "authenticated is null": says(authenticated=None, user=ROOT),
    "error is a number": says(authenticated=True, user=ROOT, error=1),
    "no user": says(authenticated=True),
    "no name": says(authenticated=True, user={"groups": ["system:masters"]}),
    "an empty name": says(authenticated=True, user={"username": "", "groups": ["system:masters"]}),
    "a name that is a list": says(authenticated=True, user={"username": ["root"]}),
    "groups that are a text": says(authenticated=True, user={"username": "root", "groups": "system:masters"}),
    "a group that is a number": says(authenticated=True, user={"username": "root", "groups": [1]}),
}


@pytest.mark.parametrize("where", ["managed", "hub"])
@pytest.mark.parametrize("failure", list(FAILURES))
@pytest.mark.loops("uvloop")
async def test_a_review_that_cant_be_had_is_a_503_and_never_a_pass(
    gated: Callable[..., Any], failure: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with gated(token_review_timeout_s=0.5 if failure == "silent" else 10) as gate:
        server: ApiServer = getattr(gate, where)
        server.on_review = FAILURES[failure]
        answer = await gate.ask(bearer("bob"), b"Impersonate-User: admin")
        assert answer.status == 503
        assert gate.managed.received == []
        assert len(gate.hub.reviews) == (0 if where == "managed" else len(gate.hub.reviews))
        assert "bob" not in caplog.text
        assert "own-token" not in caplog.text
        # The gate didn't remember it either. When the server responds again, the gate does too.
        server.on_review = None
        assert (await gate.ask(bearer("bob"))).status == 200


@pytest.mark.parametrize("where", ["managed", "hub"])
async def test_an_api_server_that_isnt_there_is_a_503(gated: Callable[..., Any], where: str) -> None:
    async with gated() as gate:
        await getattr(gate, where).stop()
        assert (await gate.ask(bearer("bob"))).status == 503


@pytest.mark.loops("uvloop")
async def test_an_outage_is_said_once_and_so_is_its_end(
    gated: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with gated() as gate:
        with caplog.at_level("INFO", logger="agent.policy.reviews"):
            gate.managed.on_review = status(500)
            for number in range(5):
                assert (await gate.ask(bearer(f"t{number}"))).status == 503
            gate.managed.on_review = None
            for number in range(3):
                assert (await gate.ask(bearer(f"t{number}"))).status == 401
        said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name.endswith("reviews")]
        assert said == [
            ("ERROR", "token reviews at the managed cluster fail: the API server returned 500"),
            ("INFO", "token reviews at the managed cluster succeed again"),
        ]


async def test_an_error_in_the_review_means_unknown_however_authenticated(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        gate.managed.on_review = says(authenticated=True, user=ROOT, error="the webhook is down")
        assert (await gate.ask(bearer("bob"))).status == 200
        assert gate.managed.received[0].values(b"impersonate-user") == [b"bob"]
        gate.hub.on_review = gate.managed.on_review
        assert (await gate.ask(bearer("other"))).status == 401


async def test_without_a_hub_only_this_clusters_tokens_are_known(gated: Callable[..., Any]) -> None:
    async with gated(hub_kubeconfig="") as gate:
        assert (await gate.ask(bearer("bob"))).status == 401
        assert (await gate.ask(bearer("alice"))).status == 200
        assert gate.hub.reviews == []


async def test_a_connection_that_broke_is_made_anew_once(gated: Callable[..., Any]) -> None:
    async with gated() as gate:

        async def first_cut(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            gate.managed.on_review = None
            return await cut(request, body)

        gate.managed.on_review = first_cut
        assert (await gate.ask(bearer("alice"))).status == 200
        assert gate.managed.reviews == ["alice", "alice"]


async def test_reviews_share_kept_alive_connections(gated: Callable[..., Any]) -> None:
    async with gated(token_cache_s=0) as gate:
        peers = set()

        async def note(request: web.Request, body: dict[str, Any]) -> web.Response:
            assert request.transport is not None
            peers.add(request.transport.get_extra_info("peername"))
            return web.json_response(body | {"status": gate.managed.status_of(body["spec"]["token"])}, status=201)

        gate.managed.on_review = note
        for _ in range(5):
            assert (await gate.ask(bearer("alice"))).status == 200
        assert len(peers) == 1
        assert len(gate.managed.reviews) == 5


# How many ---------------------------------------------------------------------------------------------------------


async def test_500_requests_with_one_new_token_make_one_review(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        release = asyncio.Event()

        async def slow(request: web.Request, body: dict[str, Any]) -> web.Response:
            await release.wait()
            return web.json_response(body | {"status": gate.managed.status_of("bob")}, status=201)

        gate.managed.on_review = slow
        asking = [asyncio.create_task(gate.ask(bearer("bob"))) for _ in range(500)]
        await until(lambda: gate.policy.processor.counters.shared == 499)
        release.set()
        answers = await asyncio.gather(*asking)
        assert {answer.status for answer in answers} == {200}
        assert (gate.managed.reviews, gate.hub.reviews) == (["bob"], ["bob"])
        assert len(gate.managed.received) == 500
        counters = gate.policy.processor.counters
        assert (counters.reviews["hub"], counters.shared, counters.cache_hits) == (1, 499, 0)


async def test_no_more_reviews_than_allowed_are_under_way(gated: Callable[..., Any]) -> None:
    async with gated(token_reviews_at_once=3) as gate:

        async def note(request: web.Request, body: dict[str, Any]) -> web.Response:
            await asyncio.sleep(0.01)
            return web.json_response(body | {"status": gate.managed.status_of(body["spec"]["token"])}, status=201)

        gate.managed.on_review = note
        answers = await asyncio.gather(*(gate.ask(bearer(f"t{number}")) for number in range(30)))
        assert {answer.status for answer in answers} == {401}
        assert gate.managed.most_at_once == 3
        assert sorted(gate.managed.reviews) == sorted(f"t{number}" for number in range(30))


async def test_a_hundred_new_tokens_wait_for_no_rate_limit(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        for number in range(100):
            gate.managed.users[f"t{number}"] = {"username": f"u{number}"}
        began = time.monotonic()
        answers = await asyncio.gather(*(gate.ask(bearer(f"t{number}")) for number in range(100)))
        assert {answer.status for answer in answers} == {200}
        assert time.monotonic() - began < 10  # a limit of 5 a second would take 20 s


async def test_a_client_that_leaves_ends_nobodys_review(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        release = asyncio.Event()

        async def slow(request: web.Request, body: dict[str, Any]) -> web.Response:
            await release.wait()
            return web.json_response(body | {"status": gate.managed.status_of("alice")}, status=201)

        gate.managed.on_review = slow
        first = asyncio.create_task(gate.ask(bearer("alice")))
        await until(lambda: gate.managed.reviews)
        second = asyncio.create_task(gate.ask(bearer("alice")))
        await until(lambda: gate.policy.processor.counters.shared == 1)
        first.cancel()
        await asyncio.wait([first])
        await until(lambda: gate.proxy.open_connections == 1)
        release.set()
        assert (await second).status == 200
        assert gate.managed.reviews == ["alice"]


async def test_a_review_that_fails_with_nobody_waiting_is_no_news(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        release = asyncio.Event()

        async def slow(request: web.Request, body: dict[str, Any]) -> web.Response:
            await release.wait()
            return web.json_response({}, status=500)

        gate.managed.on_review = slow
        asking = asyncio.create_task(gate.ask(bearer("alice")))
        await until(lambda: gate.managed.reviews)
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: gate.proxy.open_connections == 0)
        release.set()
        await until(lambda: gate.policy.processor.counters.reviews["failed"])


async def test_closing_answers_who_waits(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        gate.managed.on_review = silent
        asking = asyncio.create_task(gate.ask(bearer("alice")))
        await until(lambda: gate.managed.reviews)
        await gate.policy.close()
        assert (await asking).status == 503


# Remembered verdicts -----------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """Two clusters' reviews in memory: users by token, and the token of every review."""

    def __init__(self, **arguments: Any) -> None:
        self.clock = Clock()
        self.managed_users: dict[str, dict[str, Any]] = {"alice": {"username": "alice"}}
        self.hub_users: dict[str, dict[str, Any]] = {"bob": {"username": "bob", "groups": ["team"]}}
        self.asked: list[str] = []
        self.reviews = TokenReviews(
            self._post(self.managed_users), self._post(self.hub_users), clock=self.clock, **arguments
        )

    def _post(self, users: dict[str, dict[str, Any]]) -> Any:
        async def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            token = body["spec"]["token"]
            if users is self.managed_users:
                self.asked.append(token)
            user = users.get(token)
            return body | {"status": {"authenticated": user is not None} | ({"user": user} if user else {})}

        return post

    async def known(self, token: str) -> Known:
        verdict = self.reviews.recall(token.encode()) or await self.reviews.review(token.encode())
        return verdict.known


@pytest.mark.parametrize(("token", "known"), [("alice", Known.MANAGED), ("bob", Known.HUB), ("eve", Known.UNKNOWN)])
async def test_a_verdict_is_remembered_for_ten_seconds(token: str, known: Known) -> None:
    desk = Desk()
    assert await desk.known(token) is known
    desk.clock.now_s += 9.999
    assert await desk.known(token) is known
    assert desk.asked == [token]
    assert desk.reviews.counters.cache_hits == 1
    desk.clock.now_s += 0.002
    assert await desk.known(token) is known
    assert desk.asked == [token, token]


async def test_a_revoked_token_is_refused_after_ten_seconds() -> None:
    desk = Desk()
    assert await desk.known("bob") is Known.HUB
    del desk.hub_users["bob"]
    assert await desk.known("bob") is Known.HUB
    desk.clock.now_s += 10.001
    assert await desk.known("bob") is Known.UNKNOWN
    desk.hub_users["bob"] = {"username": "bob"}
    desk.clock.now_s += 10.001
    assert await desk.known("bob") is Known.HUB


@pytest.mark.parametrize("jump_s", [-1e9, -86400.0, 86400.0, 1e9])
async def test_the_wall_clock_may_jump(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    """Neither does a step lengthen a verdict's life, nor does it end one: the wall clock isn't asked."""
    desk = Desk()
    assert await desk.known("bob") is Known.HUB
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + jump_s)
    assert await desk.known("bob") is Known.HUB
    assert desk.asked == ["bob"]
    desk.clock.now_s += 10.001
    assert await desk.known("bob") is Known.HUB
    assert desk.asked == ["bob", "bob"]


async def test_a_slow_review_lives_no_longer_for_it() -> None:
    desk = Desk()

    async def slow(path: str, body: dict[str, Any]) -> dict[str, Any]:
        desk.clock.now_s += 8  # while the server thought about it
        return body | {"status": {"authenticated": True, "user": {"username": "alice"}}}

    desk.reviews._managed = slow
    assert await desk.known("alice") is Known.MANAGED
    desk.clock.now_s += 2.001
    assert desk.reviews.recall(b"alice") is None


async def test_the_memory_is_bounded_and_unknown_tokens_push_nobody_out() -> None:
    desk = Desk(cache_entries=10)
    await desk.known("alice")
    await desk.known("bob")
    for number in range(100):
        assert await desk.known(f"made-up-{number}") is Known.UNKNOWN
    assert desk.reviews.remembered == 12
    assert desk.reviews.recall(b"alice") is not None
    assert desk.reviews.recall(b"bob") is not None
    assert desk.reviews.recall(b"made-up-99") is not None
    assert desk.reviews.recall(b"made-up-89") is None
    for number in range(20):
        desk.managed_users[f"user-{number}"] = {"username": "u"}
        await desk.known(f"user-{number}")
    assert desk.reviews.remembered == 20
    assert desk.reviews.recall(b"user-19") is not None
    assert desk.reviews.recall(b"alice") is None


async def test_nothing_is_remembered_where_that_is_asked_for() -> None:
    desk = Desk(cache_s=0)
    await desk.known("alice")
    await desk.known("alice")
    assert desk.asked == ["alice", "alice"]
    assert desk.reviews.remembered == 0


async def test_no_token_is_kept() -> None:
    import gc

    secret = "a-token-that-is-looked-for"
    desk = Desk()
    desk.hub_users[secret] = {"username": "bob"}
    assert await desk.known(secret) is Known.HUB
    desk.asked.clear()
    desk.hub_users.clear()
    gc.collect()
    held = [*desk.reviews._known.items(), *desk.reviews._unknown.items()]
    assert secret not in repr([(key, verdict.headers, verdict.reason) for key, verdict in held])
    assert all(len(key) == 32 for key, _ in held)


async def test_waiting_for_a_turn_counts_against_the_timeout() -> None:
    desk = Desk(at_once=1, timeout_s=0.05)

    async def never(path: str, body: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(30)
        raise AssertionError

    desk.reviews._managed = never
    found = await asyncio.gather(*(desk.known(f"t{number}") for number in range(5)), return_exceptions=True)
    assert [error.status for error in found if isinstance(error, Refused)] == [503] * 5
    assert desk.reviews.counters.reviews["failed"] == 5


@pytest.mark.parametrize(
    ("status", "user"),
    [
        ({"authenticated": True, "user": {"username": "u", "groups": ["g"]}}, User("u", ("g",))),
        ({"authenticated": True, "user": {"username": "u"}}, User("u", ())),
        ({"authenticated": True, "user": {"username": "u", "groups": None}, "error": ""}, User("u", ())),
        ({"authenticated": False, "user": {"username": "u"}}, None),
        ({"user": {}}, None),
        ({}, None),
        ({"error": "token expired"}, None),
    ],
)
def test_a_status_is_read_as_the_api_reference_has_it(status: dict[str, Any], user: User | None) -> None:
    assert parse_review({"status": status}) == user


def test_a_malformed_status_is_an_error() -> None:
    with pytest.raises(ReviewError):
        parse_review({"status": {"authenticated": True, "user": []}})


async def test_the_gate_is_a_gate(gated: Callable[..., Any]) -> None:
    """The stand-in requires the agent's own token before it reviews anything. The tests above rely on that."""
    async with gated() as gate:
        assert isinstance(gate, Gate)
        gate.managed.own_tokens = {"another"}
        assert (await gate.ask(bearer("alice"))).status == 503
