"""The agent's proxy alone, on a TCP port."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable

from ..config.credentials import CredentialWatch
from ..config.schema import ProxyConfig, make_limits
from ..errors import listening
from ..outcome import log_outcome
from ..policy.selection import select_policy
from ..policy.trust import FileTrust
from ..proxy import A_USER, Proxy, Upstreams
from ..runtime.serving import run_beside, serve_until_cancelled
from ..syntax import parse_address

__all__ = ["run_proxy"]


async def run_proxy(config: ProxyConfig, on_listening: Callable[[str, str, int], None]) -> None:
    """Serve static routes on a TCP port until cancelled, then drain.

    on_listening: called with "proxy", the host as configured and the port. A second cancellation ends the drain at
    once. Raises ConfigError for a wrong route or CA file, ListenError where the address can't be listened on.
    """
    router, processor = select_policy(cluster=None, routes=config.static_routes, http2=config.target_http2)
    trust = FileTrust(
        config.target_ca_files, cert_file=config.target_client_cert_file, key_file=config.target_client_key_file
    )
    limits = make_limits(config.limits)
    upstreams = Upstreams(ssl_context=trust.ssl_context, generation=lambda: trust.generation, limits=limits)
    proxy = Proxy(
        route=router.route,
        process=processor.process,
        upstreams=upstreams,
        limits=limits,
        max_connections=config.max_clients,
        owns_clients=True,
        http2_max_streams=config.http2_max_streams if config.http2 else 0,
    )
    ids = itertools.count(1)
    address = parse_address(config.listen, listen=True)

    async def drain() -> None:
        server.close()
        proxy.start_draining()
        await proxy.wait_drained(config.drain_grace_s)

    async with contextlib.AsyncExitStack() as ends:
        ends.push_async_callback(upstreams.close)
        ends.callback(proxy.close)
        run_beside(ends, CredentialWatch(config).run())
        with listening("listen", address):
            server = await asyncio.get_running_loop().create_server(
                lambda: proxy.connection(next(ids), log_outcome, origin=A_USER),
                address.host or None,
                address.port,
                backlog=4096,
            )
        ends.callback(server.close)
        on_listening("proxy", address.host, server.sockets[0].getsockname()[1])
        await serve_until_cancelled(drain)
