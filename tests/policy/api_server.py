"""A stand-in for a kube-apiserver: aiohttp behind TLS. It follows Kubernetes' API reference and records all."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trustme
from aiohttp import web

REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
RULES_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"

STOPPING = web.AppKey("stopping", asyncio.Event)

Fields = list[tuple[bytes, bytes]]


@dataclasses.dataclass
class Received:
    """A request that reached the server. names: lower-case. certificate: the common name its client showed."""

    method: str
    target: str
    headers: Fields
    body: bytes
    certificate: str

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def like(self, *prefixes: bytes) -> Fields:
        """Headers whose names begin so, with every mark read as "-"."""
        found = []
        for key, value in self.headers:
            plain = bytes(byte if chr(byte).isalnum() else ord("-") for byte in key.lower())
            if plain.startswith(prefixes):
                found.append((key, value))
        return found


class ApiServer:
    """An API server for an agent's cluster or a hub's, on a free port.

    users: the users by token.
    own_tokens: the tokens that may ask for reviews.
    reviews: the tokens of all reviews, in order.
    received: all requests except reviews.
    on_review: replaces the usual response to a TokenReview.
    denied: (verb, resource) that access reviews don't allow.
    rules: the response to rules reviews.
    """

    def __init__(self, ca: trustme.CA, directory: Path, name: str) -> None:
        self.name = name
        self.directory = directory
        self.users: dict[str, dict[str, Any]] = {}
        self.own_tokens = {f"{name}-own-token"}
        self.reviews: list[str] = []
        self.review_heads: list[Received] = []
        self.received: list[Received] = []
        self.denied: set[tuple[str, str]] = set()
        self.rules: list[dict[str, Any]] = []
        self.on_review: Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]] | None = None
        self.at_once = self.most_at_once = 0
        self.connections = 0
        self.ca = ca
        self.ca_file = directory / f"{name}-ca.pem"
        ca.cert_pem.write_to_path(self.ca_file)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(self._context)
        ca.configure_trust(self._context)
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app[STOPPING] = self._stopping = asyncio.Event()
        app.router.add_post(REVIEWS, self._review)
        app.router.add_post(ACCESS_REVIEWS, self._access_review)
        app.router.add_post(RULES_REVIEWS, self._rules_review)
        app.router.add_route("*", "/{rest:.*}", self._anything)
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "localhost", self.port, ssl_context=self._context, backlog=1024)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        self._stopping.set()
        await self._runner.cleanup()

    def kubeconfig(self, user: dict[str, Any] | None = None, name: str = "", **cluster: Any) -> str:
        """The path of a kubeconfig for this server. user: default the server's own token."""
        import yaml

        path = self.directory / (name or f"{self.name}.kubeconfig")
        user = {"token": f"{self.name}-own-token"} if user is None else user
        ca = base64.b64encode(self.ca_file.read_bytes()).decode()
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "it",
                    "contexts": [{"name": "it", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [
                        {"name": "c", "cluster": {"server": self.url, "certificate-authority-data": ca} | cluster}
                    ],
                    "users": [{"name": "u", "user": user}],
                }
            )
        )
        return str(path)

    async def _take(self, request: web.Request) -> Received:
        certificate = request.transport.get_extra_info("peercert") if request.transport is not None else None
        names = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
        return Received(
            request.method, request.raw_path, list(request.raw_headers), await request.read(), names[0] if names else ""
        )

    def _is_own(self, taken: Received) -> bool:
        if taken.certificate == f"{self.name}-own":
            return True
        return taken.values(b"authorization") in [[b"Bearer " + token.encode()] for token in self.own_tokens]

    async def _review(self, request: web.Request) -> web.StreamResponse:
        taken = await self._take(request)
        body = await request.json()
        self.review_heads.append(taken)
        self.reviews.append(body["spec"]["token"])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if not self._is_own(taken):
                return web.json_response({"kind": "Status", "apiVersion": "v1", "code": 401}, status=401)
            assert body["apiVersion"] == "authentication.k8s.io/v1"
            assert body["kind"] == "TokenReview"
            if self.on_review is not None:
                return await self.on_review(request, body)
            return web.json_response(body | {"status": self.status_of(body["spec"]["token"])}, status=201)
        finally:
            self.at_once -= 1

    def status_of(self, token: str) -> dict[str, Any]:
        user = self.users.get(token)
        if user is None:
            return {"user": {}, "error": "invalid bearer token"}
        return {"authenticated": True, "user": user, "audiences": ["https://kubernetes.default.svc"]}

    async def _access_review(self, request: web.Request) -> web.Response:
        taken = await self._take(request)
        if not self._is_own(taken):
            return web.json_response({"kind": "Status", "apiVersion": "v1", "code": 401}, status=401)
        body = await request.json()
        asked = body["spec"]["resourceAttributes"]
        allowed = (asked["verb"], asked["resource"]) not in self.denied
        return web.json_response(body | {"status": {"allowed": allowed}}, status=201)

    async def _rules_review(self, request: web.Request) -> web.Response:
        taken = await self._take(request)
        if not self._is_own(taken):
            return web.json_response({"kind": "Status", "apiVersion": "v1", "code": 401}, status=401)
        body = await request.json()
        assert body["spec"] == {"namespace": "default"}
        status = {"resourceRules": self.rules, "nonResourceRules": [], "incomplete": False}
        return web.json_response(body | {"status": status}, status=201)

    async def _anything(self, request: web.Request) -> web.Response:
        self.received.append(await self._take(request))
        return web.json_response({"from": self.name})


async def cut(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """A response that breaks off in the middle of its body."""
    response = web.StreamResponse(status=201, headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"kind": "TokenReview"')
    assert request.transport is not None
    request.transport.abort()
    return response


async def silent(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """No response at all, until the server stops."""
    await request.app[STOPPING].wait()
    return web.Response(status=500)
