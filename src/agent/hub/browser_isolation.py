"""Keeps clusters behind one hub apart in a browser: their cookies, their service workers, and requests' Destination.

By host, each cluster has its own origin, and only a cookie's `Domain` reaches beyond it. By path, all clusters share an
origin. There the hub narrows every path in these fields:

    field                     by host                              by path
    Set-Cookie: Domain        removed unless it is the own name    removed
    Set-Cookie: Path          unchanged                            narrowed to the cluster's prefix
    Set-Cookie: __Host-…      unchanged                            dropped, with one WARNING for each cluster
    Service-Worker-Allowed    unchanged                            narrowed to the cluster's prefix
    Clear-Site-Data           unchanged                            dropped
    NEL, Report-To            unchanged                            dropped
    Alt-Svc                   dropped                              dropped

A request is by path if its target has a `stripped` prefix. A cluster parser without one is as by host.

Browsers read `Set-Cookie` by RFC 6265bis, section 5.6. They split at every semicolon, also within quotes. The last
attribute of a name counts, unless its value has more than 1024 bytes. A path in quotes is no path for Chromium, which
takes the default. curl removes a quote at each end, and takes `/` for a malformed path. So the hub narrows each
attribute, and in each reading.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import OrderedDict
from collections.abc import Callable

from ..errors import AgentError, Refused
from ..messages import RequestHead, Target
from ..syntax import has_dot_segments, is_origin_form, without_plain_dots
from .clusters import Located, host_name

__all__ = ["Isolation", "isolate_by_host", "isolate_by_path"]

logger = logging.getLogger(__name__)

Fields = list[tuple[bytes, bytes]]

MOST_WARNED = 10_000
"""Clusters that had their WARNING. Without tokens and certificates an agent may name any cluster."""
ATTRIBUTE_BYTES = 1024
"""Browsers ignore an attribute with a longer value."""

OF_ORIGIN = frozenset({b"alt-svc", b"clear-site-data", b"nel", b"report-to"})
"""Fields that hold for the whole origin. `NEL` would report each URL of the other clusters to a server of this one."""

HOST_PREFIX = b"__host-"
"""Browsers accept such a cookie only with `Path=/`, which reaches every cluster of the hub."""

_ABSOLUTE = re.compile(rb"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_DEFAULT_PORTS = {b"http": ":80", b"https": ":443"}
_BLANK = bytes(range(0x21)) + b"\x7f"
"""Browsers remove blanks and tabs around a name or value. The rest is not valid, and read as a blank by some."""


class Isolation:
    """The `map_request` and `map_response` of all requests at a hub.

    locate: finds the cluster of a request. Raises AgentError.
    """

    def __init__(self, locate: Callable[[RequestHead], Located]) -> None:
        self._locate = locate
        self._warned: OrderedDict[bytes, None] = OrderedDict()

    def map_response(self, head: RequestHead, target: Target, fields: Fields) -> Fields:
        """Return a response's fields with nothing in them that reaches other clusters."""
        if not target.stripped:
            return isolate_by_host(host_name(head.host), fields)
        prefix = head.prefix.encode("latin-1", "replace") + target.stripped
        path = head.prefix.encode("latin-1", "replace") + head.target.partition(b"?")[0]
        kept, dropped = isolate_by_path(prefix, path == prefix, fields)
        if dropped:
            self._warn((target.path or head.target)[1:].partition(b"?")[0].partition(b"/")[0])
        return kept

    def map_request(self, head: RequestHead, target: Target, fields: Fields) -> Fields:
        """Return the fields unchanged if each `Destination` is in the request's own cluster.

        The agent maps it to the target's own URL. Raises Refused: 502 (RFC 4918, section 9.9.4).
        """
        for name, value in fields:
            if name.lower() == b"destination":
                self._check_destination(head, target, value)
        return fields

    def _check_destination(self, head: RequestHead, target: Target, value: bytes) -> None:
        path = value
        absolute = _ABSOLUTE.fullmatch(value)
        if absolute is not None:
            scheme, authority, path = absolute.groups()
            port = _DEFAULT_PORTS[scheme.lower()]
            own, other = (_without_port(each, port) for each in (head.host, authority.decode("latin-1")))
            if not own or own != other:
                raise _refused("it is on another host than the request")
        if not is_origin_form(path) or path.startswith(b"//"):
            raise _refused("it is no absolute URL or path in visible ASCII, without a fragment")
        bare, mark, query = path.partition(b"?")
        bare = without_plain_dots(bare)
        if has_dot_segments(bare):
            raise _refused("it has dot segments")
        before = head.prefix.encode("latin-1", "replace")
        if not _is_below(bare, before + target.stripped):
            raise _refused("it is outside the request's cluster")
        own_path = bare[len(before) :] + mark + query
        try:
            located = self._locate(dataclasses.replace(head, target=own_path))
        except AgentError:
            raise _refused("it is in no cluster") from None
        if b"/" + located.cluster.encode("utf-8", "replace") != _first_segment(target.path or head.target):
            raise _refused("it is outside the request's cluster")

    def _warn(self, cluster: bytes) -> None:
        if cluster in self._warned:
            return
        self._warned[cluster] = None
        if len(self._warned) > MOST_WARNED:
            self._warned.popitem(last=False)
        logger.warning(
            "cookies whose names begin with __Host- are dropped, because by path they reach every cluster",
            extra={"cluster": cluster.decode("ascii", "replace"), "fault": "target", "limit": "cluster_from"},
        )


def isolate_by_host(host: str, fields: Fields) -> Fields:
    """Return a response's fields, for a cluster that has its own host.

    host: in lower case without a port and a trailing dot. "" for none.
    """
    kept: Fields = []
    for name, value in fields:
        lower = name.lower()
        if lower == b"alt-svc":
            continue
        is_cookie = lower == b"set-cookie"
        kept.append((name, _cookie_of_host(host.encode("latin-1", "replace"), value) if is_cookie else value))
    return kept


def isolate_by_path(prefix: bytes, is_root: bool, fields: Fields) -> tuple[Fields, int]:
    """Return a response's fields, for a cluster that shares its host with others, and the number of dropped cookies.

    prefix: the cluster's path without a slash at its end.
    is_root: the request's path is the prefix itself. A browser's default for a cookie's path is then above the prefix.
    """
    kept: Fields = []
    dropped = 0
    for name, value in fields:
        lower = name.lower()
        if lower in OF_ORIGIN:
            continue
        if lower == b"set-cookie":
            cookie = _cookie_of_root(prefix, value) if is_root else _cookie_of_path(prefix, value)
            if _is_host_cookie(cookie):
                dropped += 1
            else:
                kept.append((name, cookie))
        elif lower == b"service-worker-allowed":
            scope = _scope_of_path(prefix, value)
            if scope:
                kept.append((name, scope))
        else:
            kept.append((name, value))
    return kept, dropped


# -- cookies


def _attribute(part: bytes) -> tuple[bytes, bytes]:
    """(name in lower case, value) of one attribute of a cookie."""
    name, _, value = part.partition(b"=")
    return name.strip(_BLANK).lower(), value.strip(_BLANK)


def _is_host_cookie(cookie: bytes) -> bool:
    """Whether a reading of a cookie, as it is sent on, has a name that begins with `__Host-`."""
    # A cookie without a name is sent as its value alone, so its value can look like another cookie.
    return cookie.lstrip(_BLANK + b"=;").lower().startswith(HOST_PREFIX)


def _cookie_of_host(host: bytes, cookie: bytes) -> bytes:
    """Remove each Domain that is not the host's name, or below it."""
    pair, *attributes = cookie.split(b";")
    kept = [pair]
    for part in attributes:
        name, value = _attribute(part)
        if name == b"domain" and value:
            domain = value.strip(b'"').lstrip(b".").lower()
            if not host or (domain != host and not domain.endswith(b"." + host)):
                continue
        kept.append(part)
    return b";".join(kept)


def _cookie_of_path(prefix: bytes, cookie: bytes) -> bytes:
    """Remove each Domain, and narrow each Path. A malformed Path is removed, with those before it."""
    pair, *parts = cookie.split(b";")
    attributes = [(part, *_attribute(part)) for part in parts]
    first = 0  # the attribute from which a Path counts
    for at, (_, name, value) in enumerate(attributes):
        if name == b"path" and not _unquoted(value).startswith(b"/"):
            first = at + 1
    kept = [pair]
    for at, (part, name, value) in enumerate(attributes):
        if name == b"path":
            if at >= first:
                kept.append(_narrow(part, value, prefix))
        elif name != b"domain":
            kept.append(part)
    return b";".join(kept)


def _unquoted(value: bytes) -> bytes:
    return value.removeprefix(b'"').removesuffix(b'"')


def _narrow(part: bytes, value: bytes, prefix: bytes) -> bytes:
    """Return a `Path` attribute with the prefix before its value."""
    path = _unquoted(value)
    if _is_below(path, prefix):
        return part
    return part.replace(value, prefix + path)  # the name and the blanks around have no slash


def _cookie_of_root(prefix: bytes, cookie: bytes) -> bytes:
    """As `_cookie_of_path`, where the browser's default path is above the prefix. So one Path stays, in front."""
    pair, *attributes = _cookie_of_path(prefix, cookie).split(b";")
    kept: list[bytes] = []
    path = prefix + b"/"
    for part in attributes:
        name, value = _attribute(part)
        if name != b"path":
            kept.append(part)
        elif value.startswith(prefix) and len(value) <= ATTRIBUTE_BYTES:
            path = value
        else:
            path = prefix + b"/"
    return b";".join([pair, b" Path=" + path, *kept])


# -- paths


def _is_below(path: bytes, prefix: bytes) -> bool:
    return path == prefix or path.startswith(prefix + b"/")


def _scope_of_path(prefix: bytes, value: bytes) -> bytes:
    """Narrow the widest scope of a service worker. b"" if it can't be narrowed.

    Without the field, the widest scope is the script's own folder, which is below the prefix. Browsers compare scopes
    as text, so `/c1` without a slash reaches `/c10/`, too.
    """
    if not is_origin_form(value) or value.startswith(b"//") or has_dot_segments(value):
        return b""
    if value == prefix:
        return value + b"/"
    return value if value.startswith(prefix + b"/") else prefix + value


def _first_segment(path: bytes) -> bytes:
    return b"/" + path[1:].partition(b"?")[0].partition(b"/")[0]


def _without_port(authority: str, port: str) -> str:
    """An authority in lower case, without this port and without a trailing dot of its name."""
    authority = authority.lower().removesuffix(port)
    name, colon, rest = authority.rpartition(":") if not authority.endswith("]") else (authority, "", "")
    return (name.removesuffix(".") + colon + rest) if colon else authority.removesuffix(".")


def _refused(why: str) -> Refused:
    return Refused(502, f"the Destination is refused: {why}", fault="client")
