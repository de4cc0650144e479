"""The two values that every room of the agent understands: a request's head, and where the request goes."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import asyncio

__all__ = ["TLS_SCHEMES", "URL_SCHEMES", "Connect", "MapFields", "Path", "RequestHead", "Target"]

Connect = Callable[["asyncio.Protocol"], Awaitable["asyncio.Transport"]]
"""Opens a connection to a target that has no address. It gets the protocol, calls the protocol's `connection_made`, and
returns the transport. Raises TargetError or OSError."""

MapFields = Callable[["RequestHead", "Target", list[tuple[bytes, bytes]]], list[tuple[bytes, bytes]]]
"""Returns the end-to-end fields of a request or response with other URLs in them. It must not change its arguments."""


class Path(Protocol):
    """The way that a `connect` opened a connection on, where that way can fall silent: its transport's extra info
    `path`."""

    @property
    def connect(self) -> Connect:
        """The opener of this connection, which may be another one than the caller asked."""

    def waits(self) -> bool:
        """A request has waited for `unanswered_s` without a response head. Returns whether the way is suspected to be
        dead and there is another: then `connect` opens that one.
        """


@dataclasses.dataclass(slots=True)
class RequestHead:
    """An HTTP/1.1 request without its body, as parsed and checked (RFC 9112, section 3).

    method: an upper-case token.
    target: the raw request target in origin-form, before any percent-decoding. For CONNECT: in authority-form.
    version: "1.0" or "1.1".
    headers: (name, value) in the order received. Names have the client's spelling, values no surrounding white space.
    conn_id: the tunnel's connection.
    cluster: the agent's own cluster name. At a hub: the cluster of the request's listener, "" for none.
    client_identity: set by a RequestProcessor if the head carries the agent's own authority. The connection to the
        target then presents that client certificate, and no other identity shares it.
    peer: the user's IP address, "" if unknown.
    scheme: the user's, "http" or "https".
    host: the user's Host with its port, "" if the user sent none.
    prefix: the public path before `target` without the cluster's name at an agent ("/c1"), "" for none. It never ends
        with a slash.
    request_id: of this request, for logs.

    At an agent the last five come from the hub, if the agent believes the hub (`forwarded` in wire.md). Otherwise the
    peer is "", the scheme "http", and the prefix the cluster's own path.
    """

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    conn_id: int = 0
    cluster: str = ""
    client_identity: str = ""
    peer: str = ""
    scheme: str = "http"
    host: str = ""
    prefix: str = ""
    request_id: str = ""


TLS_SCHEMES = frozenset({"https", "h2"})
"""Schemes of targets over TLS. `h2` and `h2c` are HTTP/2, by ALPN and by prior knowledge (RFC 9113, section 3)."""

URL_SCHEMES = ("http", "https", "h2", "h2c")

# An absolute URL of these schemes in visible ASCII, without a fragment: (its origin, its path and query).
_URL = re.compile(r"((?:https?|h2c?)://[^/?#\s]+)((?:[/?][!\"$-~]*)?)", re.ASCII)
_URL_RULE = "a Target's url must be an absolute http, https, h2 or h2c URL in visible ASCII, not"


@functools.lru_cache(maxsize=4096)
def _origin(text: str) -> tuple[str, str, int, bytes]:
    """(scheme, host, port, authority) of an origin. Raises ValueError."""
    parts = urlsplit(text)
    if not text.isascii() or not text.isprintable() or not parts.hostname:
        raise ValueError(f"{_URL_RULE} {text!r}")
    if "@" in parts.netloc:
        raise ValueError("a Target's url can't hold user information")
    default_port = 443 if parts.scheme in TLS_SCHEMES else 80
    port = default_port if parts.port is None else parts.port
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, parts.hostname, port, (name if port == default_port else f"{name}:{port}").encode()


@dataclasses.dataclass(slots=True)
class Target:
    """Where a request goes: `Target("https://host:port/path?query")`, or an ASGI application, `Target(app=app)`.

    A Target is made once for each request, and never changes.

    Args:
        url: absolute, in visible ASCII, without user information and fragment. Its scheme is http, https, h2 (HTTP/2
            over TLS) or h2c (HTTP/2 without TLS). The target gets its path and query unchanged.
        app: an ASGI 3 application in this process. `url` may then give the path and query. With "" the application
            gets the request's own, behind the cluster's name. The public prefix is in its scope's `root_path`.
        connect: opens the connection instead of a dial to the URL's host and port. A hub reaches its agents with it.
        preserve_host: the target gets the client's Host header rather than the URL's.
        host_name: the Host that the target gets, instead of either. TLS and the pool still use the URL's.
        stripped: the part of the public path that the target does not see, beyond `RequestHead.prefix`. Both together
            are the target's X-Forwarded-Prefix.
        bounds_head: the head, as it is sent, must fit the proxy's own limits. Else the user gets 414 or 431.
        map_request: changes fields that name URLs (`Destination`). It gets the head and this target, and returns the
            fields. Raises Refused. It is called only for a request with such a field.
        map_response: the same for a response's fields: Location, Content-Location, Refresh, Set-Cookie, Alt-Svc,
            Clear-Site-Data, Service-Worker-Allowed, NEL, Report-To. It is called only for a response with one of them.
        client_identity: the client certificate that the connection presents, "" for none. It comes from the processed
            head, and is part of the pool key (wire.md, safety rule 5).
        answers_expect: the proxy itself responds to `Expect: 100-continue`, and the target never sees it.
        party: the party behind `connect`, at fault if the connection fails.
        cluster: the cluster's name, which a CONNECT to its agent carries.
        is_raw: the target of a CONNECT, and no HTTP server. Behind the proxy's own 200 the connection's bytes are the
            client's. Otherwise the target gets the CONNECT, and responds to it.
        addresses: the addresses to dial, as `getaddrinfo` returns them, instead of looking up the URL's host.
        http2: an https target may choose HTTP/2 by ALPN. It is always true for h2 and h2c.

    Attributes:
        scheme, host, port, path: the URL's parts, path with the query.
        origin: the URL without its path.
        authority: the URL's `Host`, without the scheme's default port.
        fixed_host: the Host that the target gets whatever the client sent, b"" for the client's.

    Raises:
        ValueError: url and app are both missing, or url is malformed.
    """

    url: str = ""
    app: Any = None
    connect: Connect | None = None
    preserve_host: bool = False
    client_identity: str = ""
    answers_expect: bool = False
    party: Literal["target", "agent"] = "target"
    host_name: str = ""
    stripped: bytes = b""
    bounds_head: bool = False
    map_request: MapFields | None = None
    map_response: MapFields | None = None
    cluster: str = ""
    is_raw: bool = False
    addresses: tuple[tuple[Any, ...], ...] = ()
    http2: bool = False
    scheme: str = dataclasses.field(init=False, default="")
    host: str = dataclasses.field(init=False, default="")
    port: int = dataclasses.field(init=False, default=0)
    path: bytes = dataclasses.field(init=False, default=b"")
    origin: str = dataclasses.field(init=False, default="", repr=False, compare=False)
    authority: bytes = dataclasses.field(init=False, default=b"", repr=False, compare=False)
    fixed_host: bytes = dataclasses.field(init=False, default=b"", repr=False, compare=False)

    def __post_init__(self) -> None:
        self.fixed_host = self.host_name.encode("ascii")
        if not self.url:
            if self.app is None:
                raise ValueError("a Target needs a url or an app")
            return
        match = _URL.fullmatch(self.url)
        if match is None:
            raise ValueError(f"{_URL_RULE} {self.url!r}")
        origin, path = match.groups()
        self.origin = origin
        self.scheme, self.host, self.port, self.authority = _origin(origin)
        self.http2 = self.scheme in ("h2", "h2c") or (self.http2 and self.scheme == "https")
        if not self.host_name and not self.preserve_host:
            self.fixed_host = self.authority
        # Unchanged, not joined from its parts, since the "?" of an empty query belongs to it too.
        self.path = (path if path[:1] == "/" else "/" + path).encode("ascii")

    @property
    def http_scheme(self) -> str:
        """The scheme that the target knows itself by, "http" or "https"."""
        return "https" if self.scheme in TLS_SCHEMES else "http"

    def with_path(self, path: bytes) -> Target:
        """The same with another path and query.

        path: begins with "/" and is visible ASCII without "#", as a checked request target is. It is not checked again.
            b"": the target gets the request's own.
        """
        made = self._copy()
        made.url = self.origin + path.decode("ascii")
        made.path = path
        return made

    def with_identity(self, client_identity: str) -> Target:
        """The same with another client identity."""
        made = self._copy()
        made.client_identity = client_identity
        return made

    def for_upgrade(self) -> Target:
        """The same for a request that asks for an upgrade. An https target then gets an HTTP/1.1 connection."""
        if not self.http2 or self.scheme != "https":
            return self
        made = self._copy()
        made.http2 = False
        return made

    def _copy(self) -> Target:
        made = object.__new__(Target)
        made.url, made.app, made.connect = self.url, self.app, self.connect
        made.preserve_host, made.client_identity = self.preserve_host, self.client_identity
        made.answers_expect, made.party = self.answers_expect, self.party
        made.host_name, made.stripped = self.host_name, self.stripped
        made.bounds_head = self.bounds_head
        made.cluster = self.cluster
        made.is_raw, made.addresses, made.http2 = self.is_raw, self.addresses, self.http2
        made.map_request, made.map_response = self.map_request, self.map_response
        made.scheme, made.host, made.port, made.path = self.scheme, self.host, self.port, self.path
        made.origin, made.authority = self.origin, self.authority
        made.fixed_host = self.fixed_host
        return made
