"""Maps URLs in fields between the paths of a target and the public paths of its route or app.

    public    /c1  /grafana  /d/1      the prefix of the hub, the prefix of the route, the rest
    target              /sub /d/1      the path of the route's URL, the rest

Responses go up this table: Location, Content-Location, Refresh and the Path of Set-Cookie. Requests go down:
Destination (WebDAV, RFC 4918, section 10.3). Bodies are never rewritten. All functions are pure, since their arguments
come from targets and users.

Three authorities are the target's own: the one in the route's URL, the Host that it got, and a mix. The mix is the name
in that Host with the port of the URL, to which nginx redirects. A target that got the user's Host may also know the
X-Forwarded-Host of a trusted proxy. The scheme does not count, because a target behind TLS often knows only `http`. So
the ports 80 and 443 also count as no port.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import Refused
from ..messages import RequestHead, Target
from ..syntax import has_dot_segments, split_target, without_plain_dots

__all__ = ["Rewriter", "map_cookie", "map_refresh", "map_url"]

Fields = list[tuple[bytes, bytes]]

MAX_VALUE_BYTES = 16 * 1024
"""A longer mapped value is dropped. It is also the default limit of a request target, so no request could follow it."""

_WITH_URL = frozenset({b"location", b"content-location", b"refresh"})
_PORTS = {b"http": b"80", b"https": b"443", b"ws": b"80", b"wss": b"443"}

_PORT = re.compile(rb":[0-9]*\Z")
_CONTROL = re.compile(rb"[\0-\x08\x0a-\x1f\x7f]")
# A URL with an authority, perhaps without its scheme: (authority, path and the rest). A browser also takes a backslash
# for a slash, so no authority contains one.
_ABSOLUTE = re.compile(rb"(?:(?:https?|wss?):)?//([^/?#\\\s]*)(.*)", re.IGNORECASE | re.DOTALL)
_PATH_END = re.compile(rb"[?#]|\Z")
_SEPARATOR = re.compile(rb"[/\\]")
_DOT = re.compile(rb"(?:\.|%2e)\Z", re.IGNORECASE)
_TWO_DOTS = re.compile(rb"(?:\.|%2e){2}\Z", re.IGNORECASE)
# The seconds, a separator, and perhaps `url=` with a quote (HTML, "shared declarative refresh steps").
_REFRESH = re.compile(rb"\s*[0-9.]*\s*[;,\s]\s*(?:url\s*=\s*)?([\"']?)\s*", re.IGNORECASE)
# Chromium takes a path in quotes for none, and curl removes the quotes.
_COOKIE_PATH = re.compile(rb"(;[ \t]*path[ \t]*=[ \t]*\"?)(/[^;\"]*)", re.IGNORECASE)
_DESTINATION = re.compile(rb"(https?)://([^/?#\\@\s]+)((?:[/?].*)?)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+)(?::[0-9]*)?")


def map_url(url: bytes, own: frozenset[bytes], prefix: bytes, above: bytes = b"") -> bytes:
    """Map a URL reference of a target to the public path.

    Relative references and other origins stay as they are.

    Args:
        url: the field's value, from the target.
        own: the target's authorities, each from `plain_authority`.
        prefix: the public path before the target's, b"" for none. It has no slash at its end.
        above: the path of the route's URL, which the public path does not have.

    Returns:
        The same URL, or a path-absolute reference with the prefix. A URL that has the prefix already keeps its path.
    """
    if url[:1] == b"/" and url[1:2] != b"/":
        return _map_path(url, prefix, above) if prefix or above else url
    match = _ABSOLUTE.fullmatch(url)
    if match is None or plain_authority(match[1]) not in own:
        return url
    path = match[2]
    return _map_path(b"/" + (path[1:] if path[:1] in (b"/", b"\\") else path), prefix, above)


def _map_path(reference: bytes, prefix: bytes, above: bytes) -> bytes:
    """Map a path with its query and fragment."""
    found = _PATH_END.search(reference)
    end = found.start() if found else len(reference)
    path, tail = reference[:end].replace(b"\t", b""), reference[end:]  # browsers remove tabs: `/\t/a` is `//a`
    if has_dot_segments(path):
        path = _without_dots(path)  # else `/../c2/` behind a prefix would climb out of it
    path = _public(path, prefix, above) or b"/"
    if path[:2] in (b"//", b"/\\"):
        path = b"/." + path  # or the second segment would be a host (WHATWG URL, "URL serializing")
    return path + tail


def _public(path: bytes, prefix: bytes, above: bytes) -> bytes:
    """The public path of a target's path. A path that has the prefix already stays.

    A path below both belongs to the longer one. `/api=http://h/api/v1` makes `/api/x` of the target's `/api/v1/x`.
    """
    is_public = bool(prefix) and _is_below(path, prefix)
    if above and _is_below(path, above) and not (is_public and len(prefix) >= len(above)):
        return prefix + path[len(above) :]
    return path if is_public else prefix + path


def _is_below(path: bytes, prefix: bytes) -> bool:
    """Whether `path` begins with the whole segments of `prefix`."""
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/")


def _without_dots(path: bytes) -> bytes:
    """Resolve dot segments as browsers do: also percent-encoded ones, and a backslash is a slash."""
    kept: list[bytes] = []
    segments = _SEPARATOR.split(path)[1:]
    for segment in segments:
        if _TWO_DOTS.match(segment):
            if kept:
                kept.pop()
        elif not _DOT.match(segment):
            kept.append(segment)
    if _DOT.match(segments[-1]) or _TWO_DOTS.match(segments[-1]):
        kept.append(b"")
    return b"/" + b"/".join(kept)


def map_refresh(value: bytes, own: frozenset[bytes], prefix: bytes, above: bytes = b"") -> bytes:
    """Map the URL in a Refresh field, as `5; url=/x`. The arguments are those of `map_url`."""
    match = _REFRESH.match(value)
    if match is None:
        return value
    start = match.end()
    end = value.find(match[1], start) if match[1] else len(value)
    if end < 0:
        end = len(value)
    return value[:start] + map_url(value[start:end], own, prefix, above) + value[end:]


def map_cookie(value: bytes, prefix: bytes, above: bytes = b"") -> bytes:
    """Map the Path attributes of a Set-Cookie field. All other bytes stay.

    `Path=/` becomes the prefix without a slash. So the browser also sends the cookie to the prefix itself (RFC 6265,
    section 5.1.4). A `__Host-` cookie keeps its Path, because browsers accept only `/` there.

    Args:
        prefix, above: as for `map_url`.
    """
    if value.lstrip(b" \t")[:7].lower() == b"__host-":
        return value

    def mapped(match: re.Match[bytes]) -> bytes:
        given: bytes = match[2].rstrip(b" \t")
        path = (prefix if given == b"/" else _public(given, prefix, above)) or b"/"
        kept: bytes = match[1] + path + match[2][len(given) :]
        return kept

    return _COOKIE_PATH.sub(mapped, value)


def plain_authority(authority: bytes) -> bytes:
    """An authority in lower case, without the default port of any scheme."""
    name, colon, port = authority.lower().rpartition(b":")
    return name if colon and port in (b"", b"80", b"443") else authority.lower()


def _own_authorities(head: RequestHead, target: Target) -> frozenset[bytes]:
    sent_host = _sent_host(head, target)
    others = [head.host.encode("latin-1", "replace")] if target.preserve_host and head.host else []
    name = _PORT.sub(b"", sent_host)
    return frozenset(map(plain_authority, (target.authority, sent_host, b"%b:%d" % (name, target.port), *others)))


class Rewriter:
    """Maps the fields of one route or app. Its two methods are a Target's `map_response` and `map_request`."""

    def __init__(
        self,
        stripped: bytes = b"",
        above: bytes = b"",
        leads_here: Callable[[bytes], bool] = lambda path: True,
        *,
        is_app: bool = False,
    ) -> None:
        """Set the paths.

        Args:
            stripped: the prefix that the route cuts, b"" for none.
            above: the path of the route's URL, without a slash at its end.
            leads_here: whether a path behind the cluster's name belongs to this route.
            is_app: the target sees the whole public path, with the hub's prefix.
        """
        self._stripped = stripped
        self._above = above
        self._leads_here = leads_here
        self._is_app = is_app

    def map_response(self, head: RequestHead, target: Target, fields: Fields) -> Fields:
        """Return the fields for the client. The result is `fields` itself if nothing changes."""
        prefix = head.prefix.encode("latin-1", "replace") + self._stripped
        above = self._above
        own: frozenset[bytes] | None = None
        changed = False
        out: Fields = []
        for field in fields:
            name, value = field
            lower = name.lower()
            if lower in _WITH_URL:
                if own is None:
                    own = _own_authorities(head, target)
                mapped = (map_refresh if lower == b"refresh" else map_url)(value, own, prefix, above)
            elif lower == b"set-cookie" and (self._stripped or above):
                mapped = map_cookie(value, prefix, above)
            else:
                out.append(field)
                continue
            if mapped == value:
                out.append(field)
                continue
            changed = True
            if len(mapped) <= MAX_VALUE_BYTES and _CONTROL.search(mapped) is None:
                out.append((name, mapped))
        return out if changed else fields

    def map_request(self, head: RequestHead, target: Target, fields: Fields) -> Fields:
        """Return the fields for the target, with its own URL in Destination.

        Raises:
            Refused: 502, if a Destination is malformed, or names another host, cluster or route. The reason names it.
        """
        out: Fields = []
        seen = False
        for name, value in fields:
            if name.lower() == b"destination":
                if seen:
                    raise _refused("the request has more than one Destination")
                seen = True
                out.append((name, self._map_destination(head, target, value)))
            else:
                out.append((name, value))
        return out

    def _map_destination(self, head: RequestHead, target: Target, value: bytes) -> bytes:
        if len(value) > MAX_VALUE_BYTES:
            raise _refused(f"the Destination has more than {MAX_VALUE_BYTES} bytes")
        reference = value
        match = _DESTINATION.fullmatch(value)
        if match is not None:
            if not _is_users_host(head, match[1].lower(), match[2]):
                raise _refused("the Destination names another host than the request")
            reference = match[3] if match[3][:1] == b"/" else b"/" + match[3]
        elif value[:1] != b"/" or value[1:2] == b"/":
            raise _refused("the Destination must be an absolute http or https URL, or a path")
        path, mark, query = reference.partition(b"?")
        try:
            path, query = split_target(without_plain_dots(path) + mark + query)
        except ValueError as error:
            raise _refused(f"the path of the Destination {error}") from None
        if b"\\" in path:
            raise _refused("the path of the Destination must have no backslash")
        prefix = head.prefix.encode("latin-1", "replace")
        if not _is_below(path, prefix):
            raise _refused("the Destination is outside the cluster of the request")
        behind = path[len(prefix) :] or b"/"
        if not self._leads_here(behind):
            raise _refused("the Destination belongs to another route than the request")
        if self._is_app:
            scheme, mapped = head.scheme.encode("latin-1", "replace"), prefix + behind
        else:
            scheme, mapped = target.http_scheme.encode("ascii"), self._above + behind[len(self._stripped) :] or b"/"
        url = b"".join((scheme, b"://", _sent_host(head, target), mapped, query))
        if len(url) > MAX_VALUE_BYTES:
            raise _refused(f"the Destination has more than {MAX_VALUE_BYTES} bytes at the target")
        return url


def _sent_host(head: RequestHead, target: Target) -> bytes:
    """The Host that the target gets."""
    if target.host_name:
        return target.host_name.encode("latin-1", "replace")
    if target.preserve_host:
        # Behind a trusted proxy, `head.host` is its X-Forwarded-Host, and the target gets the request's own Host.
        hosts = [value for name, value in head.headers if name.lower() == b"host"]
        host = hosts[0] if hosts else head.host.encode("latin-1", "replace")
        if _HOST.fullmatch(host):
            return host
    return target.authority


def _is_users_host(head: RequestHead, scheme: bytes, authority: bytes) -> bool:
    """Whether an authority is the one that the user sent. The default ports of both schemes count as none."""
    ports = (b"", _PORTS[scheme], _PORTS.get(head.scheme.encode("latin-1", "replace"), b""))

    def plain(text: bytes) -> bytes:
        name, colon, port = text.lower().rpartition(b":")
        return name if colon and port in ports else text.lower()

    return bool(head.host) and plain(authority) == plain(head.host.encode("latin-1", "replace"))


def _refused(reason: str) -> Refused:
    return Refused(502, reason, fault="client")
