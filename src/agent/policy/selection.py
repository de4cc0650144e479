"""Which router and which processor an agent runs with: the one place where "nothing is authenticated" is decided."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..syntax import Route
from .identity import Anonymous, RequestProcessor
from .router import AppRouter, KubernetesRouter, Router, StaticRouter

__all__ = ["UNAUTHENTICATED", "select_policy"]

UNAUTHENTICATED = "nothing is authenticated: requests reach their targets as they come, Impersonate-* is removed"

logger = logging.getLogger(__name__)


def select_policy(
    *,
    cluster: str | None,
    routes: Sequence[Route | tuple[str, str]] = (),
    http2: bool = False,
    app: Any = None,
    router: Router | None = None,
    request_processor: RequestProcessor | None = None,
) -> tuple[Router, RequestProcessor]:
    """Select the router and the processor to run with.

    With a router, routes or an app but no processor, nobody is authenticated, and one WARNING is logged.

    Args:
        cluster: the agent's name, None for paths without one.
        routes: routes, or (prefix, URL) pairs.
        http2: https targets of routes may choose HTTP/2.
        app: an ASGI application.
        router, request_processor: the user's own, which win.

    Raises:
        ConfigError: a route or name is wrong, or Kubernetes' paths would run without a processor. They are never served
            unauthenticated.
    """
    if router is None and (routes or app is not None):
        router = StaticRouter(routes, cluster, http2=http2) if routes else AppRouter(app, cluster)
    if (router is None or isinstance(router, KubernetesRouter)) and request_processor is None:
        raise _kubernetes_unavailable()
    if router is None:
        if cluster is None:
            raise ConfigError("route", "argument", "must be set: Kubernetes' paths start with a cluster's name")
        router = KubernetesRouter(cluster)
    if request_processor is None:
        logger.warning(UNAUTHENTICATED)
        request_processor = Anonymous()
    return router, request_processor


def _kubernetes_unavailable() -> ConfigError:
    """Kubernetes' paths without a processor: `setup.make_policy` brings one, where there is a cluster."""
    where = "in a cluster" if os.environ.get("KUBERNETES_SERVICE_HOST") else "outside a cluster"
    return ConfigError(
        "route",
        "--route",
        f"without routes, the targets are Kubernetes' ({where}), and those are served only by a request processor that "
        "authenticates: give --route PREFIX=URL, or request_processor",
    )
