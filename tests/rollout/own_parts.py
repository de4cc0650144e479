"""A user's own parts, which an agent imports by name. The environment sets their targets."""

from __future__ import annotations

import os
import ssl
from typing import Any

from agent import Refused, RequestHead, Target

API_SERVER = os.environ.get("OWN_API_SERVER", "")


class Renaming:
    """`/<cluster>/one/…` is the API server's `/api/v1/…`."""

    def route(self, request: RequestHead) -> Target:
        path = request.target.decode("ascii").removeprefix(f"/{request.cluster}")
        if not path.startswith("/one/"):
            raise Refused(404, "only /one/ is here")
        return Target(f"{API_SERVER}/api/v1/{path.removeprefix('/one/')}")


class AsyncRenaming(Renaming):
    async def route(self, request: RequestHead) -> Target:  # type: ignore[override]
        return super().route(request)


class Marking:
    """Adds a header, and rejects each request that asks for it."""

    def process(self, request: RequestHead, target: Target) -> RequestHead:
        if (b"X-Refuse", b"1") in request.headers:
            raise Refused(403, "refused as asked")
        request.headers.append((b"X-Marked", target.host.encode()))
        return request


class AsyncMarking(Marking):
    async def process(self, request: RequestHead, target: Target) -> RequestHead:  # type: ignore[override]
        return super().process(request, target)


class Trust:
    """Trusts one file's certificates."""

    generation = 1

    def __init__(self) -> None:
        self._context = ssl.create_default_context(cafile=os.environ["OWN_CA_FILE"])

    def ssl_context(self, target: Target) -> ssl.SSLContext:
        return self._context


class Wrong:
    """Gives what the path asks for, and never a Target."""

    def route(self, request: RequestHead) -> Any:
        kind = request.target.rpartition(b"/")[2]
        if kind == b"text":
            return "https://secret.example/"
        if kind == b"later":
            return self._later()
        if kind == b"plain":
            return Target(API_SERVER.replace("https:", "http:"))
        return None

    async def _later(self) -> Any:
        return b"secret"


class WrongProcessor:
    """Gives no head, or a head without valid fields."""

    def process(self, request: RequestHead, target: Target) -> Any:
        kind = request.target.rpartition(b"/")[2]
        if kind == b"later":
            return self._later()
        if kind == b"text":
            request.headers.append(("X-Secret", "secret"))  # type: ignore[arg-type]
            return request
        return None if kind == b"none" else {"secret": 1}

    async def _later(self) -> Any:
        return ["secret"]


class WrongTrust:
    """Gives a file's name, and a number that isn't one."""

    generation = 0

    def ssl_context(self, target: Target) -> Any:
        return "/secret/ca.pem"


class WrongNumber(WrongTrust):
    generation = "one"  # type: ignore[assignment]
