"""The proxy: HTTP/1.1 on any asyncio transport, relayed to pooled connections to targets."""

from fastpipe.extensions import select_twins

select_twins(__path__)

from ..config.limits import ProxyLimits  # noqa: E402
from .apps import Apps  # noqa: E402 - after the choice, here and below
from .dial import resolve  # noqa: E402
from .metrics import RequestMetrics  # noqa: E402
from .origin import A_USER, ClientOrigin, HubOrigin, Origin  # noqa: E402
from .proxy import Proxy  # noqa: E402
from .upstream import Upstreams  # noqa: E402

__all__ = [
    "A_USER",
    "Apps",
    "ClientOrigin",
    "HubOrigin",
    "Origin",
    "Proxy",
    "ProxyLimits",
    "RequestMetrics",
    "Upstreams",
    "resolve",
]
