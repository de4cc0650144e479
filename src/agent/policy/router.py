"""Router: from a request's head to its Target. There are two routers, for Kubernetes' paths and for static routes.

Both read the raw target, before any percent-decoding. Both check the cluster name of *every* request. A base hub pins a
client's connection to the cluster of its first request. Later requests may name another (wire.md, "misdirected").
They reject every path that is not plainly right:

1. 400: not origin-form, bytes outside visible ASCII, `#`, a `.` or `..` segment in any spelling. Also a wrong cluster
   name (RFC 1123).
2. 421: another cluster's path.
3. 404, 403, 400: the router's own rules.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from ..errors import ConfigError, Redirected, Refused
from ..messages import RequestHead, Target
from ..syntax import Route, check_label, check_route, is_label, split_target
from .rewriting import Rewriter

__all__ = ["API_SERVER", "AppRouter", "KubernetesRouter", "Router", "StaticRouter"]

API_SERVER = "https://kubernetes.default.svc"
_API_NAMESPACES = b"/api/v1/namespaces/"

_KEPT_TARGETS = 1024  # raw targets whose Target is kept, and how long they may be: at most some hundred KiB
_KEPT_BYTES = 256

_REDIRECTED = ("GET", "HEAD")
"""Methods of requests that are redirected to the root of a route. Clients repeat other requests only if asked to."""


@runtime_checkable
class Router(Protocol):
    """Decides where each request goes. One of the three interfaces that users replace."""

    def route(self, request: RequestHead) -> Target | Awaitable[Target]:
        """Return the target of `request`, or an awaitable of it.

        An awaitable is cancelled when the client leaves.

        Args:
            request: the head as parsed and checked. Its target is raw.

        Raises:
            Refused: the client gets this response instead.
            Exception: any other error is a fault of the router. It is logged, and the client gets a response without
                its text.
        """
        ...


class _ClusterPaths:
    """Splits a raw request target into the path behind the cluster's name, and the query."""

    def __init__(self, cluster: str | None) -> None:
        """cluster: the agent's own name, None if paths have no cluster name. Raises ConfigError."""
        try:
            self._prefix = b"" if cluster is None else b"/" + check_label(cluster).encode("ascii")
        except ValueError as error:
            raise ConfigError("cluster_name", "argument", str(error)) from None

    def split(self, target: bytes) -> tuple[bytes, bytes]:
        """(path, query): the path starts with "/", the query is empty or starts with "?". Raises Refused."""
        try:
            path, query = split_target(target)
        except ValueError as error:
            raise Refused(400, f"the request target {error}") from None
        prefix = self._prefix
        rest = path[len(prefix) :]
        if not path.startswith(prefix) or (rest and not rest.startswith(b"/")):
            if not is_label(path[1:].partition(b"/")[0]):
                raise Refused(400, "the path must start with a cluster's name, which is one RFC 1123 label")
            raise Refused(421, "this connection leads to another cluster")
        return rest or b"/", query


class _Entry:
    """One route, ready to use.

    prefix: b"" for "/", so that all prefixes end alike.
    stripped: the part of it that the target does not see.
    above: the URL's path, which the target sees in front.
    is_moved: a request for the prefix itself is one for `/` at the target. So the links of its page are relative to
        the prefix with a slash.
    """

    __slots__ = ("above", "is_moved", "prefix", "stripped", "target")

    def __init__(self, route: Route, http2: bool, leads_here: Callable[[_Entry, bytes], bool]) -> None:
        """Set up the route. Raises ValueError.

        http2: for a route without its own `http2`.
        leads_here: whether a path behind the cluster's name belongs to this entry.
        """
        self.prefix = route.prefix.rstrip("/").encode("ascii")
        self.stripped = self.prefix if route.strip_prefix else b""
        self.above = Target(route.url).path.rstrip(b"/")
        # By host, a prefix that begins with two slashes would name another host.
        is_safe = not self.stripped.startswith(b"//")
        self.is_moved = bool(self.stripped) and not self.above and route.rewrite and is_safe
        rewriter = Rewriter(self.stripped, self.above, functools.partial(leads_here, self))
        self.target = Target(
            route.url,
            preserve_host=route.host == "client",
            host_name="" if route.host in ("client", "target") else route.host,
            stripped=self.stripped,
            map_request=rewriter.map_request if route.rewrite else None,
            map_response=rewriter.map_response if route.rewrite else None,
            http2=http2 if route.http2 is None else route.http2,
        )


class StaticRouter:
    """Sends each path below a prefix to that prefix's URL.

    The longest prefix of whole segments wins: `/api` matches `/api` and `/api/x`, not `/apix`. The URL's path replaces
    the prefix, or comes before the prefix if the route does not strip it. Trailing slashes of both are ignored, and an
    empty result is `/`. GET and HEAD of a prefix whose result is empty are redirected to the prefix with a slash.
    """

    def __init__(self, routes: Iterable[Route | tuple[str, str]], cluster: str | None, *, http2: bool = False) -> None:
        """Set the routes. Raises ConfigError for a duplicate or wrong prefix or URL.

        Args:
            routes: routes, or (prefix, URL) pairs. A URL has no query, fragment or user information.
            cluster: the first segment of all paths, None for none (`fastpipe-agent proxy`).
            http2: https targets may choose HTTP/2, unless their route forbids it.
        """
        self._paths = _ClusterPaths(cluster)
        found: dict[bytes, _Entry] = {}
        for given in routes:
            try:
                entry = _Entry(check_route(*given), http2, self._leads_to)
            except ValueError as error:
                raise ConfigError("route", "argument", str(error)) from None
            if entry.prefix in found:
                shown = entry.prefix.decode("ascii") or "/"
                raise ConfigError("route", "argument", f"must have the prefix {shown} once only")
            found[entry.prefix] = entry
        # Two prefixes that match one path are prefixes of each other, so the longer text has more segments.
        self._routes = sorted(found.values(), key=lambda entry: -len(entry.prefix))
        self._known: dict[bytes, Target] = {}  # recent decisions, if they depend on the raw target alone

    def route(self, request: RequestHead) -> Target:
        """The target of the longest prefix.

        Raises Refused: 400, 421, and 404 where no prefix matches. Raises Redirected for a prefix without its slash.
        """
        target = self._known.get(request.target)
        return self._decide(request) if target is None else target

    def _decide(self, request: RequestHead) -> Target:
        path, query = self._paths.split(request.target)
        entry = self._find(path)
        if entry is None:
            raise Refused(404, "no route for this path")
        target = entry.target.with_path((entry.above + path[len(entry.stripped) :] or b"/") + query)
        if entry.is_moved and path == entry.prefix:
            if request.method in _REDIRECTED and not _opens_websocket(request):
                raise Redirected(request.prefix.encode("ascii") + path + b"/" + query)
            return target  # not kept, since GET of the same path is redirected
        if len(request.target) <= _KEPT_BYTES:
            if len(self._known) >= _KEPT_TARGETS:
                self._known.clear()
            self._known[request.target] = target
        return target

    def _find(self, path: bytes) -> _Entry | None:
        for entry in self._routes:
            prefix = entry.prefix
            if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/"):
                return entry
        return None

    def _leads_to(self, entry: _Entry, path: bytes) -> bool:
        return self._find(path) is entry


def _opens_websocket(request: RequestHead) -> bool:
    """Whether a request is the handshake of a WebSocket. Browsers follow no redirect there."""
    return any(name.lower() == b"sec-websocket-key" for name, _ in request.headers)


class AppRouter:
    """Sends every path to one ASGI application in this process, without the cluster's name."""

    def __init__(self, app: Any, cluster: str | None) -> None:
        """app: an ASGI 3 application. cluster: as in StaticRouter. Raises ConfigError."""
        rewriter = Rewriter(is_app=True)
        # Nothing dials the host. The application sees the client's own Host.
        self._target = Target(
            "http://app",
            app=app,
            preserve_host=True,
            map_request=rewriter.map_request,
            map_response=rewriter.map_response,
        )
        self._paths = _ClusterPaths(cluster)

    def route(self, request: RequestHead) -> Target:
        """The application, with the path behind the cluster's name. Raises Refused: 400, 421."""
        path, query = self._paths.split(request.target)
        return self._target.with_path(path + query)


class KubernetesRouter:
    """wire.md's table of paths: services by `proxy-service`, and the API server for everything else.

    `/<cluster>/api/v1/namespaces/<ns>/services/<https:name[:port]>/proxy-service/<path>` goes to
    `https://<name>.<ns>.svc:<port>/<path>`, all else to `https://kubernetes.default.svc/`. Never run it without a
    RequestProcessor that authenticates (see `selection.select_policy`).
    """

    def __init__(
        self,
        cluster: str,
        *,
        allows: Callable[[bytes, bytes, int], bool] = lambda namespace, service, port: False,
        api_server: str = API_SERVER,
    ) -> None:
        """Set up the router. Raises ConfigError.

        Args:
            cluster: the agent's own name, the first segment of every path.
            allows: whether a service (namespace, name, port) is allowed, such as the method of
                `services.ServiceAllowList`. By default none is.
            api_server: `https://host[:port]`, perhaps with a path. The default is the cluster's own name for it.
        """
        self._paths = _ClusterPaths(cluster)
        self._allows = allows
        self._api_server = Target(api_server)
        self._above = self._api_server.path.rstrip(b"/")

    def route(self, request: RequestHead) -> Target:
        """The service or the API server. Raises Refused: 400, 403, 421."""
        path, query = self._paths.split(request.target)
        if path.startswith(_API_NAMESPACES):
            # 0 "", 1 api, 2 v1, 3 namespaces, 4 <ns>, 5 services, 6 <service>, 7 proxy-service, 8 <path…>
            parts = path.split(b"/", 8)
            if len(parts) >= 8 and parts[5] == b"services" and parts[7] == b"proxy-service":
                name, port = _service(namespace=parts[4], service=parts[6])
                if not self._allows(parts[4], name, port):
                    raise Refused(403, "this service isn't on the cluster's list of those that may be reached")
                host = f"{name.decode('ascii')}.{parts[4].decode('ascii')}.svc"
                rest = b"/" + (parts[8] if len(parts) > 8 else b"")
                return Target(f"https://{host}:{port}" + (rest + query).decode("ascii"))
        return self._api_server.with_path(self._above + path + query)


def _service(namespace: bytes, service: bytes) -> tuple[bytes, int]:
    """Read name and port of `https:name[:port]` in a namespace, by wire.md's grammar. Raises Refused.

    Kubernetes' own `name[:port]`, without a scheme, is a 403 rather than a 400.
    """
    if not is_label(namespace):
        raise Refused(400, "the namespace must be one RFC 1123 label")
    parts = service.split(b":")
    scheme = parts.pop(0) if len(parts) == 3 or (len(parts) == 2 and parts[0] in (b"https", b"http")) else b""
    if len(parts) > 2 or scheme not in (b"https", b"http", b""):
        raise Refused(400, "the service must be https:name or https:name:port")
    name = parts[0]
    if not is_label(name):
        raise Refused(400, "the service's name must be one RFC 1123 label")
    if scheme != b"https":
        raise Refused(403, "only services reached by https are served: https:name:port")
    port_text = parts[1] if len(parts) > 1 else b""
    if not port_text:
        port = 443
    elif port_text.isdigit() and len(port_text) <= 5 and 1 <= int(port_text) <= 65535:
        port = int(port_text)
    else:
        raise Refused(400, "the service's port must be a number from 1 to 65535")
    if (name, namespace) == (b"kubernetes", b"default"):
        raise Refused(403, "the API server isn't reached as a service")  # that way leads past the review
    return name, port
