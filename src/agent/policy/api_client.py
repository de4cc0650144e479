"""Creates Kubernetes objects that hold the API server's verdict: a TokenReview, a SelfSubjectAccessReview.

It uses httpx2, a dependency of lightkube: kept-alive connections, TLS, a bound on connections. There is no limit on
requests per second.
"""

from __future__ import annotations

import asyncio
import json
import logging
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import AgentError
from ..runtime.deadlines import timeout
from .api_server import AccessError, ApiAccess, Headers

if TYPE_CHECKING:
    import httpx2

__all__ = ["ApiClient", "ReviewError"]

logger = logging.getLogger(__name__)

ANSWER_BYTES = 4 * 1024 * 1024
IDLE_S = 60.0
"""How long an unused connection is kept: Go's servers keep theirs for 90 s and more."""


class ReviewError(AgentError):
    """The API server gave no usable response: its fault, or that of the agent's own credentials.

    reason: in words without secrets. status: of the response, 0 if there was none.
    """

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


class _Pool:
    """The connections of one set of certificates. They close after the last request on them."""

    def __init__(self, client: httpx2.AsyncClient, generation: int) -> None:
        self.client = client
        self.generation = generation
        self.users = 0


class ApiClient:
    """Posts objects to one API server under the agent's own credentials."""

    def __init__(self, access: ApiAccess, *, at_once: int = 32, timeout_s: float = 10.0) -> None:
        """at_once: the most connections, since further requests wait. timeout_s: for one response, with the wait."""
        import httpx2  # only where it is used: 6 MiB

        self.access = access
        self._httpx: ModuleType = httpx2
        self._at_once = at_once
        self._timeout_s = timeout_s
        self._pool: _Pool | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST an object to `path` and return the object in the response.

        If a connection breaks before the response is whole, the request is sent once more on another connection. That
        is safe, since the server does not store these objects. A 401 is retried too if newer credentials exist. Raises
        ReviewError, after `timeout_s` at the latest. If cancelled, the connection is closed.
        """
        content = json.dumps(body).encode()
        try:
            async with timeout(self._timeout_s):
                headers = self.access.headers()
                if headers is None:
                    headers = await self.access.renew()
                status, answer = await self._post_twice(path, content, headers)
                if status == 401:
                    newer = await self.access.renew(headers)
                    if newer != headers:
                        status, answer = await self._post_twice(path, content, newer)
        except TimeoutError:
            raise ReviewError(f"no response within {self._timeout_s:g} s") from None
        except AccessError as error:
            raise ReviewError(str(error)) from None
        if status not in (200, 201, 202):
            raise ReviewError(f"the API server returned {status}", status=status)
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            raise ReviewError("the API server's response is not JSON") from None
        if not isinstance(found, dict) or (found.get("apiVersion"), found.get("kind")) != (
            body["apiVersion"],
            body["kind"],
        ):
            raise ReviewError(f"the API server's response is not a {body['kind']} of {body['apiVersion']}")
        return found

    async def close(self) -> None:
        """Close every connection, even if cancelled."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.client.aclose()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _post_twice(self, path: str, content: bytes, headers: Headers) -> tuple[int, bytes]:
        httpx2 = self._httpx
        broken = (httpx2.ReadError, httpx2.WriteError, httpx2.CloseError, httpx2.RemoteProtocolError)
        try:
            return await self._post(path, content, headers)
        except broken as error:
            logger.info("asking the API server once more", extra={"reason": type(error).__name__})
        except httpx2.HTTPError as error:
            raise ReviewError(f"the API server can't be reached ({type(error).__name__})") from error
        try:
            return await self._post(path, content, headers)
        except httpx2.HTTPError as error:
            raise ReviewError(f"the API server's response was truncated ({type(error).__name__})") from error

    async def _post(self, path: str, content: bytes, headers: Headers) -> tuple[int, bytes]:
        """(status, body). Raises httpx2.HTTPError, ReviewError."""
        pool = self._current()
        pool.users += 1
        try:
            async with pool.client.stream(
                "POST", self.access.server + path, content=content, headers=list(headers)
            ) as response:
                answer = bytearray()
                async for piece in response.aiter_raw():
                    answer += piece
                    if len(answer) > ANSWER_BYTES:
                        raise ReviewError("the API server's response is too large")
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise ReviewError("the API server's response has an encoding that was not offered")
                return response.status_code, bytes(answer)
        finally:
            pool.users -= 1
            if pool is not self._pool and not pool.users:  # newer certificates are in force
                await pool.client.aclose()

    def _current(self) -> _Pool:
        """The connections of the certificates in force. Requests on older connections finish there."""
        context = self.access.own_context()
        pool = self._pool
        if pool is None or pool.generation != self.access.generation:
            httpx2 = self._httpx
            client = httpx2.AsyncClient(
                verify=context,
                trust_env=False,  # no proxy and no roots from the environment: a token goes to its server alone
                timeout=None,
                follow_redirects=False,
                limits=httpx2.Limits(
                    max_connections=self._at_once, max_keepalive_connections=self._at_once, keepalive_expiry=IDLE_S
                ),
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "Content-Type": "application/json",
                    "User-Agent": "fastpipe-agent",
                },
            )
            old, self._pool = pool, _Pool(client, self.access.generation)
            if old is not None and not old.users:
                task = asyncio.get_running_loop().create_task(old.client.aclose())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            pool = self._pool
        return pool
