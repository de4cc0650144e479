"""Finds the cluster of a request, and writes the path that the cluster's agent gets.

    cluster_from    the user asks for                 the agent gets    stripped
    path            /c1/docs                          /c1/docs          /c1
    host            c1.tunnel.example.com /docs       /c1/docs
    a parser        /docs, and the parser names c1    /c1/docs
    a parser        /t/acme/docs, and it returns      /c1/docs          /t/acme
                    ("c1", b"/docs")

An agent gets `/<cluster>/…` in every mode. So agents need no setting for the hub's mode, and base agents work.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..errors import PolicyError, Redirected, Refused
from ..messages import RequestHead
from ..syntax import has_dot_segments, is_label, is_origin_form
from ..x509.certificate import names_in_pem
from .known_clusters import HEARD, UNKNOWN, UNKNOWN_SEGMENT

__all__ = ["ByHost", "ByParser", "ByPath", "ClusterParser", "Clusters", "Located", "host_name", "warn_of_certificate"]

logger = logging.getLogger(__name__)

ClusterParser = Callable[[RequestHead], "str | tuple[str, bytes]"]
"""Returns the cluster's name, one RFC 1123 label, or the name and the path that its application gets.

With a name alone, the hub puts `/<name>` before the path. If the path's first segment is the name, the path stays. A
pair's path has its query. It is bytes, as `RequestHead.target`, or text in ASCII.

Raises Refused for an error response to the client instead.
"""

REDIRECTED = ("GET", "HEAD")
"""Methods of requests that are redirected to a cluster's root. Requests with other methods are forwarded unchanged."""

MOST_LOCATED = 1000
"""Clusters whose first segment is kept. A user may ask for any."""

FOREIGN_HOST = "the hub does not serve this host: it must be <cluster>.%s"
UNKNOWN_HOST = (
    f"the hub knows no such cluster: the host must be a cluster's name before the domain, as in <cluster>.%s. {HEARD}"
)
PATH_RULE = "a name and a path in visible ASCII that begins with /, without #, backslashes and dot segments"

_PORT = re.compile(r":[0-9]*\Z", re.ASCII)


class Located(NamedTuple):
    """Where a request goes.

    cluster: its name. No agent may be connected for it, and a parser may return any text.
    path: with the query, for the agent. b"": the path that the user asked for.
    stripped: the part of the client's path before the application's own, as in `Target`.
    is_bare: the user's path is the cluster's name alone, without a slash behind it.
    """

    cluster: str
    path: bytes
    stripped: bytes
    is_bare: bool = False


class Clusters(Protocol):
    """A way to name clusters in requests."""

    @property
    def unknown(self) -> str:
        """The text of the response for an unknown cluster."""

    def locate(self, request: RequestHead) -> Located:
        """Find the cluster of a request. Raises Refused, PolicyError, Responded."""

    def check_root(self, request: RequestHead, located: Located) -> None:
        """Raises Redirected if a browser must ask for the cluster's root instead."""


class ByPath:
    """The first segment of the path is the cluster's name.

    respond_to_root: raises for a GET or HEAD of `/`, whose path names no cluster. None: 404, as for any such path.
    """

    unknown = UNKNOWN_SEGMENT

    def __init__(self, respond_to_root: Callable[[RequestHead], None] | None = None) -> None:
        self._respond_to_root = respond_to_root
        self._located: dict[bytes, Located] = {}  # by the first segment with its slash, since the same few repeat

    def locate(self, request: RequestHead) -> Located:
        target = request.target
        end = target.find(b"/", 1)  # -1 for `/c10`, which must not be read as `/c1`
        found = self._located.get(target[:end]) if end > 0 else None
        if found is not None:
            return found
        prefix = _first_segment(target)
        if not is_label(prefix[1:]):
            is_root = target == b"/" or target.startswith(b"/?")
            if is_root and request.method in REDIRECTED and self._respond_to_root is not None:
                self._respond_to_root(request)
            raise Refused(404, UNKNOWN_SEGMENT)
        is_bare = target[len(prefix) : len(prefix) + 1] != b"/"
        located = Located(prefix[1:].decode("ascii"), b"", prefix, is_bare)
        if not is_bare:
            if len(self._located) >= MOST_LOCATED:
                self._located.clear()
            self._located[prefix] = located
        return located

    def check_root(self, request: RequestHead, located: Located) -> None:
        end = len(located.stripped)
        if located.is_bare and request.method in REDIRECTED:
            raise Redirected(request.prefix.encode("ascii") + located.stripped + b"/" + request.target[end:])


class ByHost:
    """The first label of the host is the cluster's name, before `domain`. The path is the application's own.

    domain: in lower case without a trailing dot.
    """

    def __init__(self, domain: str) -> None:
        self._domain = domain
        self.unknown = UNKNOWN_HOST % domain

    def locate(self, request: RequestHead) -> Located:
        name = host_name(request.host)
        label, _, domain = name.partition(".")
        if (domain != self._domain and name != self._domain) or not request.host.isascii():
            raise Refused(421, FOREIGN_HOST % self._domain)  # RFC 9110, section 15.5.20
        if name == self._domain or not is_label(label.encode("ascii")):
            raise Refused(404, self.unknown)
        return Located(label, b"/" + label.encode("ascii") + request.target, b"")

    def check_root(self, request: RequestHead, located: Located) -> None:
        """A browser's request for a host always has a path."""


class ByParser:
    """A user's own function names the cluster."""

    unknown = UNKNOWN

    def __init__(self, parser: ClusterParser) -> None:
        self._parser = parser

    def locate(self, request: RequestHead) -> Located:
        found = self._parser(request)
        target = request.target
        if isinstance(found, str):
            prefix = b"/" + found.encode("utf-8", "replace")
            if _first_segment(target) == prefix:
                return Located(found, b"", prefix)
            return Located(found, prefix + target, b"")
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str)):
            raise PolicyError("cluster_parser", "a cluster's name, a str", type(found).__name__)
        cluster, path = found
        checked = _checked(path)
        prefix = b"/" + cluster.encode("utf-8", "replace")
        return Located(cluster, prefix + checked, _before(target, checked))

    def check_root(self, request: RequestHead, located: Located) -> None:
        """The parser alone decides about paths."""


def host_name(host: str) -> str:
    """The name in a `Host` value: in lower case, without its port and one trailing dot."""
    if host.endswith("]"):  # an IPv6 address without a port
        return host.lower()
    return _PORT.sub("", host).lower().removesuffix(".")


def warn_of_certificate(domain: str, cert_file: str) -> None:
    """Log a WARNING if the HTTP port's certificate is not for the clusters' host names.

    domain: of all clusters, "" for clusters by path. cert_file: "" without TLS. Then nothing is logged.
    """
    if not domain or not cert_file:
        return
    wildcard = f"*.{domain}"
    try:
        with open(cert_file, "rb") as file:
            names = names_in_pem(file.read())
    except OSError:
        names = []
    if wildcard not in names:
        extra = {"setting": "http_cert_file", "file": cert_file, "cluster_domain": domain, "missing": f"DNS:{wildcard}"}
        logger.warning("the certificate is not for the clusters' host names, so browsers reject it", extra=extra)


def _first_segment(target: bytes) -> bytes:
    """The path's first segment with the slash before it."""
    end = target.find(b"/", 1)
    segment = target if end < 0 else target[:end]
    return segment.partition(b"?")[0]


def _checked(path: object) -> bytes:
    """A parser's path. Raises PolicyError."""
    if isinstance(path, str) and path.isascii():
        path = path.encode("ascii")
    if not isinstance(path, bytes):
        raise PolicyError("cluster_parser", PATH_RULE, f"a path of the type {type(path).__name__}")
    if not is_origin_form(path) or has_dot_segments(path.partition(b"?")[0]):
        raise PolicyError("cluster_parser", PATH_RULE, "another path")
    return path


def _before(target: bytes, path: bytes) -> bytes:
    """The part of the client's path before the parser's path. b"" if the client's path doesn't end with that.

    Applications put the result before their own links. So `//host`, which names another host, gives b"". A semicolon
    would end a cookie's attribute, and gives b"", too.
    """
    whole, own = target.partition(b"?")[0], path.partition(b"?")[0]
    if not whole.endswith(own):
        return b""
    before = whole[: len(whole) - len(own)]
    return b"" if before.startswith(b"//") or before.endswith(b"/") or b";" in before else before
