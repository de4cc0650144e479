"""The proxy: HTTP/1.1 on any asyncio transport, relayed to pooled connections to targets."""

from agent.twins import choose_twins

choose_twins(__path__)

from agent.proxy.apps import Apps  # noqa: E402 - after the choice, here and below
from agent.proxy.limits import ProxyLimits  # noqa: E402
from agent.proxy.measures import Measures  # noqa: E402
from agent.proxy.proxy import Proxy  # noqa: E402
from agent.proxy.upstream import Upstreams  # noqa: E402

__all__ = ["Apps", "Measures", "Proxy", "ProxyLimits", "Upstreams"]
