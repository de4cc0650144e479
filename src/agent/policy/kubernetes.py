"""RequestProcessor for Kubernetes: who asks, by TokenReview; and under whose name the request goes on.

| the token is known | Authorization | the client's Impersonate-* |
| --- | --- | --- |
| at the managed cluster | stays the client's | pass: the API server decides whether it may impersonate |
| at the hub | becomes the agent's | all go; those of the hub's user are set |
| nowhere | 401 | |

On every request X-Remote-* goes; on those that don't go to the API server (services), Impersonate-* as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable
from typing import Protocol

from ..errors import Refused
from ..messages import RequestHead, Target
from .access import AccessError, Headers
from .identity import is_identity_header
from .reviews import Known, ReviewCounters, TokenReviews, Verdict

__all__ = ["AGENT", "KubernetesProcessor"]

logger = logging.getLogger(__name__)

AGENT = "agent"
"""The client identity of connections that may present the agent's own certificate (wire.md, safety rule 5)."""

TOKEN_BYTES = 32 * 1024
"""Past this a token isn't even looked at: those of identity providers with hundreds of groups stay below 20 KiB."""

_UNFIT = re.compile(rb"[^!-~]")
_FIRST_LETTERS = frozenset([b"a", b"A", b"i", b"I", b"x", b"X", b"s", b"S"])
"""Of the headers that are looked at; the others go on without a further look."""

_WEBSOCKET_TOKEN = b"base64url.bearer.authorization.k8s.io."
"""How browsers' WebSockets bring a token: as a subprotocol, which API servers take where Authorization fails."""


class OwnCredentials(Protocol):
    """The agent's own credentials at the managed cluster (`access.ApiAccess` has them)."""

    @property
    def has_certificate(self) -> bool: ...
    def headers(self) -> Headers | None: ...
    async def renew(self) -> Headers: ...


class KubernetesProcessor:
    """Authenticates what goes to the API server, by its bearer token; what goes elsewhere keeps its Authorization."""

    def __init__(self, reviews: TokenReviews, own: OwnCredentials, *, api_server: tuple[str, int]) -> None:
        """own: what hubs' users' requests go on with. api_server: host and port, as the router's targets have them."""
        self.reviews = reviews
        self._own = own
        host, port = api_server
        self._api_server = (host.lower().rstrip("."), port)

    @property
    def counters(self) -> ReviewCounters:
        """What the reviews have counted, for metrics."""
        return self.reviews.counters

    def process(self, request: RequestHead, target: Target) -> RequestHead | Awaitable[RequestHead]:
        """The head as it goes on; an awaitable where the token has to be reviewed first.

        Raises Refused: 401 without a token that is known, 403 for a name that can't be passed on, 503 where the review
        can't be had. Never the head as it came.
        """
        if not self._is_api_server(target):
            kept = [header for header in request.headers if not is_identity_header(header[0])]
            return _with_headers(request, kept)
        parts = _Parts(request.headers)
        token = _bearer_token(parts.authorization)
        verdict = self.reviews.recall(token)
        if verdict is None:
            return self._process_later(request, parts, token)
        if verdict.known is Known.HUB:
            own = self._own.headers()
            if own is None:
                return self._process_later(request, parts, token)
            return self._impersonated(request, parts, own, verdict)
        return _passed(request, parts, verdict)

    def _is_api_server(self, target: Target) -> bool:
        if target.app is not None or target.connect is not None:
            return False
        found = (target.host, target.port)
        return found == self._api_server or (target.host.lower().rstrip("."), target.port) == self._api_server

    async def _process_later(self, request: RequestHead, parts: _Parts, token: bytes) -> RequestHead:
        verdict = self.reviews.recall(token) or await self.reviews.review(token)
        if verdict.known is not Known.HUB:
            return _passed(request, parts, verdict)
        own = self._own.headers()
        if own is None:
            try:
                own = await self._own.renew()
            except AccessError as error:
                logger.error("the agent's own credentials can't be had: %s", error)
                raise Refused(503, "the agent's own credentials can't be had") from None
        return self._impersonated(request, parts, own, verdict)

    def _impersonated(self, request: RequestHead, parts: _Parts, own: Headers, verdict: Verdict) -> RequestHead:
        """The head under the agent's authority, in the hub user's name: its credentials go, ours are set last."""
        headers = parts.kept
        for name, value in parts.websocket:
            protocols = [each for each in value.split(b",") if not each.strip().lower().startswith(_WEBSOCKET_TOKEN)]
            if protocols:
                headers.append((name, b",".join(protocols).strip()))
        headers += own
        headers += verdict.headers
        head = _with_headers(request, headers)
        if self._own.has_certificate:
            head.client_identity = AGENT
        return head


class _Parts:
    """A request's headers, sorted by what becomes of them. kept: in their order, for good. claims: `Impersonate-*`.

    websocket: `Sec-WebSocket-Protocol`. dropped: whether anything is in none of these.
    """

    __slots__ = ("authorization", "claims", "dropped", "kept", "websocket")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.kept: list[tuple[bytes, bytes]] = []
        self.authorization: list[tuple[bytes, bytes]] = []
        self.claims: list[tuple[bytes, bytes]] = []
        self.websocket: list[tuple[bytes, bytes]] = []
        self.dropped = False
        keep = self.kept.append
        for header in headers:
            name = header[0]
            if name[:1] not in _FIRST_LETTERS:
                keep(header)
                continue
            lower = name.lower()
            if lower == b"authorization":
                self.authorization.append(header)
            elif lower == b"sec-websocket-protocol":
                self.websocket.append(header)
            elif not is_identity_header(name):
                keep(header)
            elif lower.startswith(b"impersonate-"):
                self.claims.append(header)
            else:  # X-Remote-*, and spellings that only a careless server takes for Impersonate-*
                self.dropped = True


def _bearer_token(authorization: list[tuple[bytes, bytes]]) -> bytes:
    """The token of the one Authorization header (RFC 6750, section 2.1). Raises Refused 401.

    One space, then visible ASCII to the end: where the API server would read another token out of the same header than
    the one that was reviewed, there is none.
    """
    if not authorization:
        raise Refused(401, "a bearer token is needed")
    if len(authorization) > 1:
        raise Refused(401, "there must be one Authorization header")
    value = authorization[0][1]
    token = value[7:]
    if value[:7].lower() != b"bearer " or not token or len(token) > TOKEN_BYTES or _UNFIT.search(token):
        raise Refused(401, "the Authorization header must be a bearer token")
    return token


def _passed(request: RequestHead, parts: _Parts, verdict: Verdict) -> RequestHead:
    """The head of a managed cluster's user: their own credentials and claims go on. Raises Refused for all others."""
    if verdict.known is Known.MANAGED:
        if not parts.dropped:
            return request
        return _with_headers(request, [*parts.kept, *parts.websocket, *parts.authorization, *parts.claims])
    raise Refused(403 if verdict.known is Known.UNFIT else 401, verdict.reason)


def _with_headers(request: RequestHead, headers: list[tuple[bytes, bytes]]) -> RequestHead:
    return RequestHead(
        request.method, request.target, request.version, headers, request.conn_id, request.cluster
    )
