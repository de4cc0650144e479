"""The scope of an ASGI app behind a proxy: the user's view of a request, from the forwarding fields.

| field | of the scope |
| --- | --- |
| X-Forwarded-Prefix | `root_path`, and the beginning of `path` and `raw_path` |
| X-Forwarded-For (its first element) | `client` |
| X-Forwarded-Proto | `scheme` |
| X-Forwarded-Host, or Host, with X-Forwarded-Port | `server` |

Each field counts alone. A missing or malformed field leaves its part of the scope as it was.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

__all__ = ["ForwardedScope"]

App = Callable[..., Awaitable[None]]

MOST_BYTES = 2048
"""A longer prefix, address or host is malformed. It also bounds what the caches keep."""
KEPT = 256
"""Values of each kind whose reading is kept: they repeat with every request of a user."""

# RFC 3986, section 3.3: segments of pchar, none of them empty. So a prefix never begins with "//", an authority.
_PREFIX = re.compile(rb"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+)+")
# Decoded, these would make other segments, a query or a fragment of the prefix, or break a line.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f/\\\\?#]")
_HOST = re.compile(r"(?:([A-Za-z0-9._-]{1,255})|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]*))?")
_ADDRESS = re.compile(r"([0-9.]{7,15})(?::([0-9]+))?|\[([^]]+)\](?::([0-9]+))?|([^][]+)")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,16}")  # an interface's name has at most 15 characters on Linux

_SCHEMES = {b"http": ("http", "ws"), b"https": ("https", "wss")}
_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_OF_FORWARDING = frozenset(
    {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-proto", b"host"}
)


class ForwardedScope:
    """ASGI middleware that believes the forwarding fields of `http` and `websocket` scopes.

    Use it only behind a proxy that drops these fields from what users send, and writes its own. It changes the scope in
    place. So the server's access log names the same client and path as the app. All other scopes pass untouched.
    """

    def __init__(self, app: App) -> None:
        """app: an ASGI 3 callable."""
        self._app = app

    def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> Awaitable[None]:
        """Call the app with the user's view of the request."""
        if scope["type"] in ("http", "websocket"):
            apply_forwarded(scope)
        return self._app(scope, receive, send)


def apply_forwarded(scope: MutableMapping[str, Any]) -> None:
    """Write what the forwarding fields name into the scope (the table above).

    scope: of type `http` or `websocket`. Its `headers` stay as they are. If a name occurs twice, the first one counts.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in _OF_FORWARDING:
            fields.setdefault(name, value)

    if (prefix := fields.get(b"x-forwarded-prefix")) is not None:
        _put_below(scope, prefix.rstrip(b"/"))
    client = _address(_first(fields, b"x-forwarded-for"))
    if client is not None:
        scope["client"] = client
    schemes = _SCHEMES.get(_first(fields, b"x-forwarded-proto").lower())
    if schemes is not None:
        scope["scheme"] = schemes[scope["type"] == "websocket"]
    server = _host(_first(fields, b"x-forwarded-host")) or _host(_first(fields, b"host"))
    if server is not None:
        name, port = server
        # The host's own port first: the proxy's port may be behind a mapping that the user does not know.
        port = port or _port(_first(fields, b"x-forwarded-port").decode("latin-1"))
        scope["server"] = (name, port or _DEFAULT_PORTS.get(scope.get("scheme", "http"), 80))


def _put_below(scope: MutableMapping[str, Any], prefix: bytes) -> None:
    """Put the prefix before the scope's paths, as `uvicorn --root-path` does. A malformed prefix changes nothing."""
    root_path = _decoded(prefix) if len(prefix) <= MOST_BYTES else ""
    if root_path and scope["path"].startswith("/"):
        scope["root_path"] = root_path + scope.get("root_path", "")
        scope["path"] = root_path + scope["path"]
        if scope.get("raw_path") is not None:
            scope["raw_path"] = prefix + scope["raw_path"]


@functools.lru_cache(maxsize=KEPT)
def _decoded(prefix: bytes) -> str:
    """The prefix without percent-encoding. Empty if any segment is malformed or ambiguous."""
    if not _PREFIX.fullmatch(prefix):
        return ""
    segments = prefix[1:].split(b"/")
    if b"%" in prefix:
        segments = [unquote_to_bytes(segment) for segment in segments]
    try:
        decoded = [segment.decode() for segment in segments]
    except UnicodeDecodeError:
        return ""
    for segment in decoded:
        if segment.partition(";")[0] in ("", ".", "..") or _UNFIT.search(segment):
            return ""
    return "/" + "/".join(decoded)


def _first(fields: dict[bytes, bytes], name: bytes) -> bytes:
    """The first element of a list, which the proxy nearest to the user wrote. Empty if there is none."""
    element = fields.get(name, b"").partition(b",")[0].strip(b" \t")
    return element if len(element) <= MOST_BYTES else b""


def _port(text: str) -> int:
    """The port. 0 if the text is malformed."""
    if 0 < len(text) <= 5 and text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    return 0


@functools.lru_cache(maxsize=KEPT)
def _host(value: bytes) -> tuple[str, int] | None:
    """(name, port) of `name[:port]` or `[IPv6][:port]`. The port is 0 if there is none. None: malformed."""
    match = _HOST.fullmatch(value.decode("latin-1"))
    if match is None:
        return None
    name, literal, port = match.groups()
    if literal is not None and not _is_address(literal, 6):
        return None
    if port and not _port(port):
        return None
    return name or literal, _port(port or "")


@functools.lru_cache(maxsize=KEPT)
def _address(value: bytes) -> tuple[str, int] | None:
    """(address, port) of an IP address, IPv6 with or without brackets. The port is 0 if there is none. None: malformed.

    An IPv6 address has a port only behind brackets.
    """
    match = _ADDRESS.fullmatch(value.decode("latin-1"))
    if match is None:
        return None
    plain, plain_port, bracketed, bracketed_port, bare = match.groups()
    address = plain or bracketed or bare
    port = plain_port or bracketed_port
    if not _is_address(address, 4 if plain else 6):
        return None
    if port and not _port(port):
        return None
    return address, _port(port or "")


def _is_address(text: str, version: int) -> bool:
    """Whether this is an IPv4 or IPv6 address. An IPv6 address may have a zone (`fe80::1%eth0`)."""
    text, mark, zone = text.partition("%")
    if mark and (version == 4 or not _ZONE.fullmatch(zone)):
        return False
    try:
        (ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address)(text)
    except ValueError:
        return False
    return True
