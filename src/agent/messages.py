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

__all__ = ["Connect", "Path", "RequestHead", "Target"]

Connect = Callable[["asyncio.Protocol"], Awaitable["asyncio.Transport"]]
"""Opens a connection to a target that has no address: gets the protocol to drive, returns its transport when the
protocol's `connection_made` has been called. Raises TargetError or OSError."""


class Path(Protocol):
    """The way that a `connect` opened a connection on, where that way can fall silent: its transport's extra info
    `path`."""

    @property
    def connect(self) -> Connect:
        """What opens connections on this way: another one may have opened it than was asked to."""

    def waits(self) -> bool:
        """A request has waited for `unanswered_s` without a response head. Returns whether the way is suspected to be
        dead and there is another: then `connect` opens that one.
        """


@dataclasses.dataclass(slots=True)
class RequestHead:
    """An HTTP/1.1 request without its body, as parsed and checked (RFC 9112, section 3).

    method: upper-case token. target: the raw request target in origin-form, before any percent-decoding. version: "1.0"
    or "1.1". headers: (name, value) in the order received; names as the client spelled them, values without
    surrounding white space. conn_id: which connection of the tunnel it came on. cluster: the agent's own cluster name,
    "" where there is none. client_identity: set by a RequestProcessor where the head carries the agent's own
    authority: the connection it goes out on presents that client certificate, and is shared with no other identity.
    """

    method: str
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    conn_id: int = 0
    cluster: str = ""
    client_identity: str = ""


# An absolute http or https URL in visible ASCII, without a fragment: (its origin, its path and query).
_URL = re.compile(r"(https?://[^/?#\s]+)((?:[/?][!\"$-~]*)?)", re.ASCII)


@functools.lru_cache(maxsize=4096)
def _origin(text: str) -> tuple[str, str, int, bytes]:
    """(scheme, host, port, authority) of an origin. Raises ValueError."""
    parts = urlsplit(text)
    if not text.isascii() or not text.isprintable() or not parts.hostname:
        raise ValueError(f"a Target's url must be an absolute http or https URL in visible ASCII, not {text!r}")
    if "@" in parts.netloc:
        raise ValueError("a Target's url can't hold user information")
    default_port = 443 if parts.scheme == "https" else 80
    port = default_port if parts.port is None else parts.port
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, parts.hostname, port, (name if port == default_port else f"{name}:{port}").encode()


@dataclasses.dataclass(slots=True)
class Target:
    """Where a request goes: `Target("https://host:port/path?query")`, or an ASGI application, `Target(app=app)`.

    A value: made once for each request, and not to be changed. url: absolute, http or https, in visible ASCII, without
    user information and fragment; its path and query are what the target gets, to the letter. app: an ASGI 3
    application in this process; `url` may then give the path and query, "" keeping the request's own. connect: opens
    the connection instead of dialling url's host and port (a hub reaches its agents so). preserve_host: the client's
    own Host header goes on, rather than url's. client_identity: which client certificate the connection presents, ""
    for none; set from the processed head, and part of what connections are pooled by (wire.md, safety rule 5).
    answers_expect: the proxy answers `Expect: 100-continue` itself at once, and the target never sees it. party: who is
    at the other end of `connect`, and at fault where the connection fails.

    scheme, host, port, path: what url says, path with the query. origin: url without the path. authority: its `Host`,
    without a port that is the scheme's own. Raises ValueError where neither url nor app is given, or url isn't as said.
    """

    url: str = ""
    app: Any = None
    connect: Connect | None = None
    preserve_host: bool = False
    client_identity: str = ""
    answers_expect: bool = False
    party: Literal["target", "agent"] = "target"
    scheme: str = dataclasses.field(init=False, default="")
    host: str = dataclasses.field(init=False, default="")
    port: int = dataclasses.field(init=False, default=0)
    path: bytes = dataclasses.field(init=False, default=b"")
    origin: str = dataclasses.field(init=False, default="", repr=False, compare=False)
    authority: bytes = dataclasses.field(init=False, default=b"", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.url:
            if self.app is None:
                raise ValueError("a Target needs a url or an app")
            return
        match = _URL.fullmatch(self.url)
        if match is None:
            raise ValueError(f"a Target's url must be an absolute http or https URL in visible ASCII, not {self.url!r}")
        origin, path = match.groups()
        self.origin = origin
        self.scheme, self.host, self.port, self.authority = _origin(origin)
        # As it stands, not put together from its parts: an empty query's "?" is part of the path and query too.
        self.path = (path if path[:1] == "/" else "/" + path).encode("ascii")

    def with_path(self, path: bytes) -> Target:
        """The same with another path and query.

        path: begins with "/" and is visible ASCII without "#", as a checked request target is: not checked again.
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

    def _copy(self) -> Target:
        made = object.__new__(Target)
        made.url, made.app, made.connect = self.url, self.app, self.connect
        made.preserve_host, made.client_identity = self.preserve_host, self.client_identity
        made.answers_expect, made.party = self.answers_expect, self.party
        made.scheme, made.host, made.port, made.path = self.scheme, self.host, self.port, self.path
        made.origin, made.authority = self.origin, self.authority
        return made
