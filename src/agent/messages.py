"""The two values that every room of the agent understands: a request's head, and where the request goes."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import asyncio

__all__ = ["Connect", "RequestHead", "Target"]

Connect = Callable[["asyncio.Protocol"], Awaitable["asyncio.Transport"]]
"""Opens a connection to a target that has no address: gets the protocol to drive, returns its transport when the
protocol's `connection_made` has been called. Raises TargetError or OSError."""


@dataclasses.dataclass(slots=True)
class RequestHead:
    """An HTTP/1.1 request without its body, as parsed and checked (RFC 9112, section 3).

    method: upper-case token. target: the raw request target in origin-form, before any percent-decoding. version: "1.0"
    or "1.1". headers: (name, value) in the order received; names as the client spelled them, values without
    surrounding white space. conn_id: which connection of the tunnel it came on. cluster: the agent's own cluster name,
    "" where there is none.
    """

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    conn_id: int = 0
    cluster: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where a request goes: `Target("https://host:port/path?query")`, or an ASGI application, `Target(app=app)`.

    url: absolute, http or https, without user information and fragment; its path and query are what the target gets.
    app: an ASGI 3 application in this process; `url` may then give the path and query, "" keeping the request's own.
    connect: opens the connection instead of dialling url's host and port (a hub reaches its agents so). preserve_host:
    the client's own Host header goes on, rather than url's.

    Raises ValueError where neither or both of url's origin and app are given, or url isn't as said.
    """

    url: str = ""
    app: Any = None
    connect: Connect | None = dataclasses.field(default=None, compare=True)
    preserve_host: bool = False
    scheme: str = dataclasses.field(init=False, default="")
    host: str = dataclasses.field(init=False, default="")
    port: int = dataclasses.field(init=False, default=0)
    path: bytes = dataclasses.field(init=False, default=b"")

    def __post_init__(self) -> None:
        if not self.url and self.app is None:
            raise ValueError("a Target needs a url or an app")
        parts = urlsplit(self.url)
        if self.url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"a Target's url must be an absolute http or https URL, not {self.url!r}")
        if "@" in parts.netloc or parts.fragment:
            raise ValueError("a Target's url can't hold user information or a fragment")
        if not self.url.isascii() or any(c <= " " for c in self.url):
            raise ValueError("a Target's url must be visible ASCII")
        # Taken off the text, not put together from its parts: an empty query's "?" is part of the path and query too.
        path = self.url[len(parts.scheme) + 3 + len(parts.netloc) :]
        if self.url and not path.startswith("/"):
            path = "/" + path
        set_field = object.__setattr__  # the class is frozen; these are derived once, here
        set_field(self, "scheme", parts.scheme)
        set_field(self, "host", parts.hostname or "")
        default_port = 443 if parts.scheme == "https" else 80
        set_field(self, "port", default_port if parts.port is None else parts.port)
        set_field(self, "path", path.encode("ascii"))
