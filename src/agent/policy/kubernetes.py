"""RequestProcessor for Kubernetes. It authenticates users by TokenReview, and sets their identity for the API server.

| the token is known | Authorization | the client's Impersonate-* |
| --- | --- | --- |
| at the managed cluster | stays the client's | pass, since the API server decides about impersonation |
| at the hub | becomes the agent's | are replaced by those of the hub's user |
| nowhere | 401 | |

Every request loses X-Remote-*. Requests to services lose Impersonate-* too.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Awaitable
from typing import Protocol

from ..errors import PolicyError, Refused
from ..messages import RequestHead, Target
from .api_server import AccessError
from .api_server import Headers as OwnHeaders
from .identity import is_identity_header
from .reviews import Known, ReviewCounters, TokenReviews, Verdict

__all__ = ["AGENT", "KubernetesProcessor"]

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

AGENT = "agent"
"""The client identity of connections that may present the agent's own certificate (wire.md, safety rule 5)."""

TOKEN_BYTES = 32 * 1024
"""A longer token, scheme included, is rejected unread. Identity providers' tokens with hundreds of groups are shorter
than 20 KiB."""

_UNFIT = re.compile(rb"[^!-~]")

MEMO_NAMES = 1024
MEMO_NAME_BYTES = 64
"""How many harmless header names are remembered, and how long ones: clients choose them."""

_WEBSOCKET_TOKEN = b"base64url.bearer.authorization.k8s.io."
"""How browsers' WebSockets bring a token: as a subprotocol, which API servers take where Authorization fails."""


_AUTHORIZATIONS = frozenset([b"Authorization", b"authorization"])
_BEARERS = frozenset(bytes(letters) for letters in itertools.product(*zip(b"bearer ", b"BEARER ", strict=True)))
_LOOKED_AT = frozenset([b"authorization", b"sec-websocket-protocol"])
_HUB = Known.HUB


class OwnCredentials(Protocol):
    """The agent's own credentials at the managed cluster (`access.ApiAccess` has them)."""

    @property
    def has_certificate(self) -> bool: ...
    def headers(self) -> OwnHeaders | None: ...
    async def renew(self) -> OwnHeaders: ...


class KubernetesProcessor:
    """Authenticates requests to the API server by their bearer token. Other requests keep their Authorization."""

    def __init__(self, reviews: TokenReviews, own: OwnCredentials, *, api_server: tuple[str, int]) -> None:
        """own: the credentials for requests of hubs' users. api_server: host and port, as in the router's targets."""
        self.reviews = reviews
        self._own = own
        self._host = api_server[0].lower().rstrip(".")
        self._port = api_server[1]
        self._harmless: set[bytes] = set()

    @property
    def counters(self) -> ReviewCounters:
        """The reviews' counts, for metrics."""
        return self.reviews.counters

    def process(self, request: RequestHead, target: Target) -> RequestHead | Awaitable[RequestHead]:
        """Return the head for the target, or an awaitable if the token needs a review first.

        Raises Refused: 401 without a known token, 403 for a name that can't pass, 503 if the review fails.
        """
        harmless = self._harmless
        headers = request.headers
        others = [header for header in headers if header[0] not in harmless]
        if not self._is_api_server(target):
            return request if not others else _with_headers(request, self._without_claims(headers))
        if len(others) == 1 and others[0][0] in _AUTHORIZATIONS:  # what nearly every request is
            authorization = others[0]
            parts = None
        else:
            parts = self._sort(headers)
            authorization = parts.the_authorization()
        value = authorization[1]
        if value[:7] not in _BEARERS or len(value) > TOKEN_BYTES:
            raise Refused(401, "the Authorization header must be a bearer token")
        token = value[7:]
        verdict = self.reviews.recall(token)
        if verdict is None:
            # One space, then visible ASCII to the end. So the API server can't read another token from the same header
            # than the reviewed one.
            if not token or _UNFIT.search(token):
                raise Refused(401, "the Authorization header must be a bearer token")
            return self._process_later(request, parts or self._sort(headers), token)
        if verdict.known is _HUB:
            own = self._own.headers()
            if own is None:
                return self._process_later(request, parts or self._sort(headers), token)
            if parts is None and not self._own.has_certificate:
                kept = headers.copy()
                kept.remove(authorization)
                kept += own
                kept += verdict.headers
                return RequestHead(
                    request.method, request.target, request.version, kept, request.conn_id, request.cluster
                )
            return self._impersonated(request, parts or self._sort(headers), own, verdict)
        return _passed(request, parts, verdict)

    def _is_api_server(self, target: Target) -> bool:
        if target.connect is not None or target.app is not None or target.port != self._port:
            return False
        if target.host != self._host and target.host.lower().rstrip(".") != self._host:
            return False
        if target.scheme != "https":  # a router's of the user's own: tokens never travel in plaintext
            raise PolicyError("route", "an https URL for the API server", target.scheme)
        return True

    def _without_claims(self, headers: Headers) -> Headers:
        return [header for header in headers if self._is_harmless(header[0]) or not is_identity_header(header[0])]

    def _is_harmless(self, name: bytes) -> bool:
        """Whether a header of this name passes for every user. Such names are remembered."""
        if name in self._harmless:
            return True
        if name.lower() in _LOOKED_AT or is_identity_header(name):
            return False
        if len(self._harmless) < MEMO_NAMES and len(name) <= MEMO_NAME_BYTES:
            self._harmless.add(bytes(name))
        return True

    def _sort(self, headers: Headers) -> _Parts:
        """Each header by what becomes of it."""
        parts = _Parts()
        for header in headers:
            name = header[0]
            if self._is_harmless(name):
                parts.kept.append(header)
                continue
            lower = name.lower()
            if lower == b"authorization":
                parts.authorization.append(header)
            elif lower == b"sec-websocket-protocol":
                parts.websocket.append(header)
            elif lower.startswith(b"impersonate-"):
                parts.claims.append(header)
            else:  # X-Remote-*, and spellings that only a careless server takes for Impersonate-*
                parts.dropped = True
        return parts

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

    def _impersonated(self, request: RequestHead, parts: _Parts, own: OwnHeaders, verdict: Verdict) -> RequestHead:
        """The head under the agent's authority, in the hub user's name: its credentials go, ours are set last."""
        headers = parts.kept
        for name, value in parts.websocket:
            protocols = [each for each in value.split(b",") if _WEBSOCKET_TOKEN not in each.lower()]
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

    def __init__(self) -> None:
        self.kept: Headers = []
        self.authorization: Headers = []
        self.claims: Headers = []
        self.websocket: Headers = []
        self.dropped = False

    def the_authorization(self) -> tuple[bytes, bytes]:
        """The one `Authorization`. Raises Refused 401."""
        if len(self.authorization) == 1:
            return self.authorization[0]
        if self.authorization:
            raise Refused(401, "there must be one Authorization header")
        raise Refused(401, "a bearer token is needed")


def _passed(request: RequestHead, parts: _Parts | None, verdict: Verdict) -> RequestHead:
    """The head of a managed cluster's user, with the user's own credentials and claims. Raises Refused for others."""
    if verdict.known is Known.MANAGED:
        if parts is None or not parts.dropped:
            return request
        return _with_headers(request, [*parts.kept, *parts.websocket, *parts.authorization, *parts.claims])
    raise Refused(403 if verdict.known is Known.UNFIT else 401, verdict.reason)


def _with_headers(request: RequestHead, headers: Headers) -> RequestHead:
    return RequestHead(request.method, request.target, request.version, headers, request.conn_id, request.cluster)
