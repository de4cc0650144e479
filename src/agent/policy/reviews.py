"""Finds the owner of a token by TokenReviews at the managed cluster and at the hub, and caches the verdicts.

    token ──► remembered? ──yes──────────────────────────────────────► verdict
                 │ no                                                     ▲
                 └──► under review?  ──yes── wait for that ───────────────┤
                         │ no                                             │
                         └──► managed: known? ──yes── MANAGED ────────────┤
                                  │ no                                    │
                                  └──► hub: known? ── HUB or UNKNOWN ─────┘

Invariants:
R1. No token is stored. The cache is keyed by a salted digest.
R2. A token has one review at a time, however many requests wait for it. A request that leaves cancels no review.
R3. Only a whole, well-formed response of the server makes a verdict. Everything else is a 503, and is not cached.
R4. Verdicts expire by the monotonic clock, from the start of their review. A step of the wall clock changes nothing.
R5. Verdicts on unknown tokens have a separate cache. So a flood of invented tokens evicts no user's verdict.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import hashlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from ..errors import Refused
from ..runtime.deadlines import timeout
from .api_client import ReviewError
from .impersonation import impersonation_headers

__all__ = ["Known", "ReviewCounters", "TokenReviews", "User", "Verdict", "parse_review", "review_of"]

logger = logging.getLogger(__name__)

REVIEW_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
REVIEW_API = "authentication.k8s.io/v1"
UNAVAILABLE = "the token review can't be had"

Post = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class Known(enum.Enum):
    """The cluster that knows a token."""

    MANAGED = "managed"
    HUB = "hub"
    UNKNOWN = "unknown"
    UNFIT = "unfit"  # the hub does, under a name that can't be passed on


@dataclasses.dataclass(frozen=True)
class User:
    """A token's user, as a TokenReview names them."""

    username: str
    groups: tuple[str, ...]


class Verdict:
    """The result of a review. headers: the `Impersonate-*` of a hub's user. until_s: on the monotonic clock."""

    __slots__ = ("headers", "known", "reason", "until_s")

    def __init__(self, known: Known, until_s: float, headers: tuple[tuple[bytes, bytes], ...] = (), reason: str = ""):
        self.known = known
        self.headers = headers
        self.reason = reason
        self.until_s = until_s


@dataclasses.dataclass
class ReviewCounters:
    """The counts for metrics.

    cache_hits: verdicts from the cache.
    shared: requests that waited for another request's review.
    reviews: by outcome, `managed`, `hub`, `unknown`, `unfit` or `failed`.
    """

    cache_hits: int = 0
    shared: int = 0
    reviews: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys([*(known.value for known in Known), "failed"], 0)
    )


def review_of(token: str) -> dict[str, Any]:
    """The TokenReview to post. No audiences: the API server's own are meant."""
    return {"apiVersion": REVIEW_API, "kind": "TokenReview", "spec": {"token": token}}


def parse_review(answer: dict[str, Any]) -> User | None:
    """Read the user from a TokenReview's status. None means that the server does not know the token.

    Raises ReviewError if the status does not match Kubernetes' API reference.
    """
    status = answer.get("status")
    wrong = ReviewError("the API server's TokenReview is malformed")
    if not isinstance(status, dict):
        raise wrong
    authenticated, error = status.get("authenticated", False), status.get("error", "")
    if not isinstance(authenticated, bool) or not isinstance(error, str):
        raise wrong
    if not authenticated or error:
        return None
    user = status.get("user")
    if not isinstance(user, dict):
        raise wrong
    username, groups = user.get("username"), user.get("groups") or []
    if not isinstance(username, str) or not username or not isinstance(groups, list):
        raise wrong
    if not all(isinstance(group, str) for group in groups):
        raise wrong
    return User(username, tuple(groups))


class TokenReviews:
    """Verdicts on bearer tokens."""

    def __init__(
        self,
        managed: Post,
        hub: Post | None,
        *,
        allowed_system_groups: Collection[str] = (),
        cache_s: float = 10.0,
        cache_entries: int = 10_000,
        at_once: int = 32,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set up the reviews.

        Args:
            managed, hub: post a TokenReview to the cluster's API server. Without hub, its users are unknown.
            cache_s: how long a verdict is cached, 0 for no cache.
            cache_entries: how many tokens are cached, and as many unknown ones.
            at_once: the most reviews at a time, since more wait.
            timeout_s: for a verdict, with the wait.
            clock: monotonic, in seconds.
        """
        self._managed = managed
        self._hub = hub
        self._allowed_system_groups = frozenset(allowed_system_groups)
        self._cache_s = cache_s
        self._cache_entries = cache_entries
        self._timeout_s = timeout_s
        self._clock = clock
        self._gate = asyncio.Semaphore(at_once)
        self._salted = hashlib.sha256(os.urandom(64))
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._unknown: OrderedDict[bytes, Verdict] = OrderedDict()
        self._failing: dict[str, str] = {}
        self._under_way: dict[bytes, asyncio.Task[Verdict]] = {}
        self.counters = ReviewCounters()

    @property
    def remembered(self) -> int:
        """Verdicts in memory, those past their time included."""
        return len(self._known) + len(self._unknown)

    def recall(self, token: bytes) -> Verdict | None:
        """The verdict on a token where one is remembered."""
        salted = self._salted.copy()  # R1
        salted.update(token)
        digest = salted.digest()
        verdict = self._known.get(digest) or self._unknown.get(digest)
        if verdict is not None and self._clock() < verdict.until_s:
            self.counters.cache_hits += 1
            return verdict
        return None

    async def review(self, token: bytes) -> Verdict:
        """Return the verdict on a token, from the cache, a running review or a new one.

        Raises Refused 503 if the review fails. If cancelled, the review continues for the other waiting requests.
        """
        salted = self._salted.copy()
        salted.update(token)
        digest = salted.digest()
        task = self._under_way.get(digest)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._review(digest, token))
            self._under_way[digest] = task  # R2
            task.add_done_callback(lambda done: self._over(digest, done))
        else:
            self.counters.shared += 1
        await asyncio.wait([task])  # a cancellation ends the waiting, and not the task
        if task.cancelled():  # by `close`
            raise Refused(503, UNAVAILABLE)
        return task.result()

    async def close(self) -> None:
        """Stop the running reviews, even if cancelled. Waiting requests get a 503."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _over(self, digest: bytes, task: asyncio.Task[Verdict]) -> None:
        self._under_way.pop(digest, None)
        if not task.cancelled():
            task.exception()  # retrieved, since perhaps no request waits for it

    async def _review(self, digest: bytes, token: bytes) -> Verdict:
        try:
            async with timeout(self._timeout_s), self._gate:
                until_s = self._clock() + self._cache_s  # R4
                verdict = await self._ask(token.decode("ascii"), until_s)
        except TimeoutError:
            self.counters.reviews["failed"] += 1
            logger.error("no token review within %g s", self._timeout_s)
            raise Refused(503, UNAVAILABLE, limit="token_review_timeout_s") from None
        except ReviewError as error:
            self.counters.reviews["failed"] += 1
            raise Refused(503, UNAVAILABLE) from error
        self.counters.reviews[verdict.known.value] += 1
        if self._cache_s > 0:
            cache, other = self._known, self._unknown
            if verdict.known in (Known.UNKNOWN, Known.UNFIT):
                cache, other = other, cache  # R5
            other.pop(digest, None)
            cache[digest] = verdict
            cache.move_to_end(digest)
            while len(cache) > self._cache_entries:
                cache.popitem(last=False)
        return verdict

    async def _ask(self, token: str, until_s: float) -> Verdict:
        """Ask the managed cluster, then the hub. Raises ReviewError (R3)."""
        if await self._user("managed", self._managed, token) is not None:
            return Verdict(Known.MANAGED, until_s)
        user = None if self._hub is None else await self._user("hub", self._hub, token)
        if user is None:
            return Verdict(Known.UNKNOWN, until_s, reason="the bearer token isn't known")
        try:
            headers = impersonation_headers(
                user.username, user.groups, allowed_system_groups=self._allowed_system_groups
            )
        except Refused as refused:
            return Verdict(Known.UNFIT, until_s, reason=refused.reason)
        return Verdict(Known.HUB, until_s, headers)

    async def _user(self, where: str, post: Post, token: str) -> User | None:
        try:
            user = parse_review(await post(REVIEW_PATH, review_of(token)))
        except ReviewError as error:
            if self._failing.get(where) != error.reason:  # logged once, since each request fails with it
                self._failing[where] = error.reason
                logger.error("token reviews at the %s cluster fail: %s", where, error.reason)
            raise
        if self._failing.pop(where, None) is not None:
            logger.info("token reviews at the %s cluster succeed again", where)
        return user
