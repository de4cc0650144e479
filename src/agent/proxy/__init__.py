"""The proxy: HTTP/1.1 on any asyncio transport, relayed to pooled connections to targets."""

from agent.proxy.apps import Apps
from agent.proxy.limits import ProxyLimits
from agent.proxy.measures import Measures
from agent.proxy.proxy import Proxy
from agent.proxy.upstream import Upstreams

__all__ = ["Apps", "Measures", "Proxy", "ProxyLimits", "Upstreams"]
