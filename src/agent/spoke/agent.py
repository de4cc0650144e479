"""The agent: gives each room the parts that it needs of the others, and closes them in the right order.

    TunnelClient ──session──► conn manager ──pipe or Unix socket──► Proxy ──► Upstreams ──► targets
         │                        ▲                                   │
         │                        └──────── outcome(conn_id, …) ──────┘
         └─ one for each hub address; one manager for each session

No room imports another. This module imports them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

from ..config.credentials import CredentialWatch
from ..config.dump import find_changes, merge, show_value
from ..config.loading import settings_by_reload
from ..config.schema import AgentConfig, make_limits
from ..connections.carrier_policy import CarrierPolicy
from ..connections.counters import ConnectionCounters
from ..connections.inbound import FirstPacketBudget
from ..connections.manager import ConnManager
from ..connections.mixed import MixedConnManager
from ..errors import ConfigError
from ..policy.assembly import make_policy
from ..policy.connecting import ConnectPolicy
from ..policy.identity import RequestProcessor
from ..policy.router import Router
from ..policy.selection import select_policy
from ..policy.services import ServiceAllowList
from ..policy.trust import CertificateProvider
from ..proxy import Apps, HubOrigin, Proxy, ProxyLimits, RequestMetrics, Upstreams, resolve
from ..runtime.descriptors import descriptor_limit, open_descriptors
from ..runtime.serving import run_beside, serve_until_cancelled
from ..telemetry.health import HealthServer
from ..telemetry.metrics import MetricsPage
from ..tunnel.client import TunnelClient
from ..tunnel.features import CONNECT, FEATURES, FORWARDED
from ..tunnel.session import Tunnel
from ..tunnel.window import WindowBudget
from .capacity import most_opened, most_served
from .hub_endpoint import EndpointSource
from .links import HubLinks
from .metrics import MODES, read
from .own_addresses import OwnAddresses

__all__ = ["Agent"]

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 5.0
"""How long a hub may take to respond to DRAIN, and to end the stream after the last connection. The wait for the
response is also at most `drain_grace_s`, but at least 1 s."""

QUIET_S = 5.0
"""How long packets that a hub wrote before its DRAIN may be on their way. Until then, idle connections are open to
requests. Our hub closes its unused connections itself."""

SHARE_TOLD_S = 60.0
"""How often the agent logs the number of connections of each carrier, while both are in use."""

REQUESTS_PER_CONNECTION = 10
"""How many requests a connection serves while both carriers are in use. Hubs keep connections for as long as they are
open. With this limit, the percentage of connections is also the percentage of requests."""

_BY_RELOAD = settings_by_reload(AgentConfig)
"""The names of the settings, by the effect of a changed value."""


class Agent:
    """Serves the requests of hubs, by the configuration, until cancelled.

    router, request_processor, certificate_provider: the user's own, instead of the configuration's choice.
    on_ready: called whenever a hub has responded to a session's first probe.
    tunnel_features: the extensions that the agent offers to hubs. The attribute is set before `run`.

    Raises ConfigError if there are no routes, app or router, and for a file that can't be used.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        router: Router | None = None,
        request_processor: RequestProcessor | None = None,
        certificate_provider: CertificateProvider | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.config = config
        self.counters = ConnectionCounters()
        self.budget = FirstPacketBudget()
        self.managers: dict[Tunnel, ConnManager] = {}  # of all open sessions, and of some that have ended
        self.tunnel_features = FEATURES
        self.windows = WindowBudget()
        self._past_packets_received = self._past_packets_sent = 0  # of sessions that `managers` no longer has
        self._has_own_router = router is not None
        self.policy = make_policy(
            config,
            router=router,
            request_processor=request_processor,
            certificate_provider=certificate_provider,
        )
        self._router_in_force, self.processor = self.policy.router, self.policy.processor
        self._on_ready = on_ready or (lambda: None)
        self._draining = False
        self.credentials = CredentialWatch(config)
        self._endpoints = EndpointSource(config)
        self.links = HubLinks(self._client, lambda: self.config.hub_addresses, self._endpoints.is_proxied)
        limits = _limits(config)
        self.upstreams = Upstreams(
            ssl_context=self.policy.ssl_context, generation=lambda: self.policy.generation, limits=limits
        )
        self.request_metrics = {mode: RequestMetrics() for mode in MODES} if config.memory_comm.enable_metrics else {}
        self._page = self._make_page()
        self._apps = Apps()
        self._health = HealthServer(lambda: self.ready, self._page.render if self._page is not None else None)
        self._connect_policy = ConnectPolicy(
            config.connect_entries,
            cluster=config.cluster_name,
            resolve=self._resolve,
            is_own=OwnAddresses(lambda: self._health.addresses).has,
        )
        self.proxy = self._make_proxy(limits)
        self.carrier_policy = self._make_carrier_policy()
        self._descriptors_used = open_descriptors()  # none of them is a connection's
        self._served = self._bound()

    def _make_page(self) -> MetricsPage | None:
        if not self.config.memory_comm.enable_metrics:
            return None
        if not self.config.health_address:
            logger.warning("metrics are counted and shown nowhere: health_address isn't set")
            return None
        return MetricsPage(lambda: read(self))

    def _make_proxy(self, limits: ProxyLimits) -> Proxy:
        return Proxy(
            route=self._apps.routed(self._router_in_force.route),
            process=self.processor.process,
            connect_route=self._connect_policy.route,
            upstreams=self.upstreams,
            limits=_for_hub(limits),
            cluster=self.config.cluster_name,
            connections_limit="memory_comm.max_connections",
            metrics=self.request_metrics,
        )

    def _make_carrier_policy(self) -> CarrierPolicy:
        return CarrierPolicy(
            self.proxy.connection,
            accept_for=lambda features: functools.partial(self.proxy.connection, origin=self._origin_of(features)),
            memory_percent=self.config.memory_percent,
            buffer_bytes=self.config.memory_comm.buffer_size,
            socket_path=self.config.uds_socket_path,
        )

    def _origin_of(self, features: frozenset[str]) -> HubOrigin:
        """A hub with these features, as the proxy sees it."""
        return HubOrigin(
            is_base=not features,
            is_trusted=FORWARDED in features or self.config.trust_hub_fields,
            prefix=f"/{self.config.cluster_name}",
            sends_connect=CONNECT in features,
        )

    async def _resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        return await resolve(host, port, self.config.limits.connect_timeout_s)

    @property
    def ready(self) -> bool:
        """Whether a hub has responded to a probe within its deadline, and no drain has begun."""
        return not self._draining and any(client.ready for client in self.clients)

    @property
    def clients(self) -> list[TunnelClient]:
        """The links to hubs, one for each address."""
        return self.links.clients

    @property
    def open_connections(self) -> int:
        """Connections of all sessions that are open now."""
        return sum(manager.open_connections for manager in self.managers.values())

    @property
    def packets_received(self) -> int:
        """Packets that hubs have sent in all sessions so far."""
        return self._past_packets_received + sum(tunnel.packets_received for tunnel in self.managers)

    @property
    def packets_sent(self) -> int:
        """Packets that the agent has sent in all sessions so far."""
        return self._past_packets_sent + sum(tunnel.packets_sent for tunnel in self.managers)

    def reconnect_now(self) -> None:
        """Dial every hub again, without waiting for a back-off."""
        for client in self.clients:
            client.reconnect_now()

    async def run(self) -> None:
        """Serve until cancelled, then drain. An agent runs once.

        A draining agent is not ready, its responses have `Connection: close`, and requests in flight finish. Draining
        takes at most `drain_grace_s` and some seconds. A second cancellation ends it at once.

        Raises:
            ConfigError: the Unix socket can't be made.
            AgentError: the app does not start.
            ListenError: the agent can't listen on the health address.
        """
        # Closed in the reverse order, each even if a second cancellation has interrupted the one before it.
        async with contextlib.AsyncExitStack() as ends:
            ends.push_async_callback(self._health.close)
            ends.push_async_callback(self.carrier_policy.close)
            ends.push_async_callback(self.policy.close)
            ends.push_async_callback(self._apps.close)
            ends.push_async_callback(self.upstreams.close)
            ends.callback(self.proxy.close)
            run_beside(ends, self.credentials.run())
            run_beside(ends, self._tell_share_now_and_then())
            if self.policy.app is not None:
                await self._apps.start(self.policy.app)
            await self.carrier_policy.start()
            self._warn_of_bound()
            await self._health.listen(self.config.health_address)
            await serve_until_cancelled(self._drain, run_beside(ends, self.links.run()))

    async def _drain(self) -> None:
        """Leave all hubs.

        A hub with `goaway` gets DRAIN first. Connections that it opens before its response are served as before.
        A base hub gets DRAIN last. If it still lists a connection, DRAIN may lock it up (wire.md, "DRAIN to the hub").
        """
        self._draining = True
        self.links.hold()
        loop = asyncio.get_running_loop()
        grace_s = self.config.drain_grace_s
        deadline_s = loop.time() + grace_s
        answer_s = min(DRAIN_TIMEOUT_S, max(1.0, grace_s))
        asked = await asyncio.gather(*(client.announce_drain(answer_s) for client in self.clients))
        if any(asked):
            self.proxy.close_after_responses()
            quiet_s = min(QUIET_S, grace_s / 2)
            drained = [manager for tunnel, manager in self.managers.items() if tunnel.opens_no_more]
            await asyncio.gather(*(manager.wait_idle(quiet_s) for manager in drained))
        if self.shares or len(self.counters.opened_by) > 1:
            self._tell_share()
        logger.info("draining", extra={"connections": self.open_connections, "grace_s": grace_s})
        for manager in self.managers.values():
            manager.begin_drain()
        self.proxy.start_draining()
        self._apps.start_draining(self.upstreams.end_connect)
        left_s = max(0.0, deadline_s - loop.time())
        await asyncio.gather(*(manager.drain(left_s) for manager in self.managers.values()))
        await asyncio.gather(*(client.drain(answer_s) for client in self.clients))

    # -- while it runs

    async def reload(self, config: AgentConfig) -> None:
        """Apply the settings of `config` that can change while the agent runs. No connection is dropped.

        A changed setting is for new connections, new requests and the next dials. The log has one line for each changed
        setting. A setting that needs a restart keeps its value. If a changed value can't be used, nothing
        is applied, and the log has the reason. The agent reconnects if a setting or a file for its hubs changed, or if
        it has no session. If cancelled, either nothing or everything is applied. A draining agent ignores the call.
        """
        if self._draining:
            return
        old = self.config
        names = find_changes(old, config)
        kept = [name for name in names if not self._can_change(name, config)]
        try:
            new: AgentConfig = merge(old, config, kept)
            self._endpoints.check(new)
            router = self._router_in_force
            if (new.static_routes, new.target_http2) != (old.static_routes, old.target_http2):
                router, _ = select_policy(
                    cluster=new.cluster_name,
                    routes=new.static_routes,
                    http2=new.target_http2,
                    request_processor=self.processor,
                )
            services = self.policy.services
            if services is not None:
                ServiceAllowList(new.service_allow_file)  # raises before anything is applied
            await self.carrier_policy.change(
                memory_percent=new.memory_percent, buffer_bytes=new.memory_comm.buffer_size
            )
            if services is not None:
                services.use(new.service_allow_file)  # reads it again, even if it is the same file
        except ConfigError as error:
            logger.error("nothing of the changed configuration was applied", extra={"reason": str(error)})
            return
        before = self._served
        self._apply(new, router)
        if new.memory_percent != old.memory_percent:
            self._tell_share()
        if self._served != before:
            self._warn_of_bound()
        for name in names:
            if name in kept:
                extra = {"setting": name, "value": show_value(config, name), "in_force": show_value(old, name)}
                logger.warning("setting needs a restart", extra=extra)
            else:
                logger.info("setting changed", extra={"setting": name, "value": show_value(new, name)})
        redials = (
            self._endpoints.files_changed
            or not _BY_RELOAD["redial"].isdisjoint(set(names) - set(kept))
            or not self.ready
        )
        logger.info("the configuration was reloaded", extra={"changed": len(names) - len(kept), "redials": redials})
        self.credentials.look(again=True)
        self.links.look_again()
        if redials:
            self.reconnect_now()

    def _apply(self, config: AgentConfig, router: Router) -> None:
        """Hand every room the settings that it uses. The carriers and the allow list have theirs already."""
        self.config = self._endpoints.config = self.credentials.config = config
        self._router_in_force = router
        self._connect_policy.use(config.connect_entries)
        self.proxy.route = self._apps.routed(router.route)
        self.upstreams.limits = limits = _limits(config)
        self.proxy.use_limits(_for_hub(limits))
        self._served = self._bound()

    def _can_change(self, name: str, new: AgentConfig) -> bool:
        """Whether a reload applies this changed setting: by its declaration, except for those that depend on values."""
        if name == "hub_address":
            return len(new.hub_addresses) == len(self.config.hub_addresses)
        if name in ("route", "target_http2"):  # other routes, but the same kind of router
            return not self._has_own_router and bool(self.config.static_routes) and bool(new.static_routes)
        return name not in _BY_RELOAD["restart"]

    @property
    def shares(self) -> bool:
        """Whether new connections go both ways."""
        return 0 < self.carrier_policy.memory_percent < 100

    def _tell_share(self) -> None:
        """Log how many connections each carrier has had so far."""
        by = self.counters.opened_by
        extra = {"memory": by["memory"], "uds": by["uds"], "memory_percent": self.carrier_policy.memory_percent}
        logger.info("connections opened so far, by what carries them", extra=extra)

    async def _tell_share_now_and_then(self) -> None:
        told = 0
        while True:
            await asyncio.sleep(SHARE_TOLD_S)
            if self.shares and self.counters.opened_by.total() != told:
                told = self.counters.opened_by.total()
                self._tell_share()

    def _bound(self) -> int:
        """Bound connections, and the requests on each. Returns how many connections are served at once."""
        wanted, percent = self.config.memory_comm.max_connections, self.config.memory_percent
        served = most_served(wanted, unix_sockets=percent < 100, limit=descriptor_limit(), used=self._descriptors_used)
        self.proxy.max_connections = served
        self.carrier_policy.most_connections = most_opened(wanted)
        self.carrier_policy.most_sockets = served if served < wanted else None
        self.proxy.bound_requests(REQUESTS_PER_CONNECTION if 0 < percent < 100 else 0)
        return served

    def _warn_of_bound(self) -> None:
        wanted = self.config.memory_comm.max_connections
        if self._served < wanted:
            extra = {
                "setting": "memory_comm.max_connections",
                "value": wanted,
                "in_force": self._served,
                "limit": "RLIMIT_NOFILE",
                "descriptors": descriptor_limit(),
            }
            logger.warning("max_connections is lowered to what the descriptor limit allows", extra=extra)

    # -- sessions

    def _client(self, number: int, ip: str) -> TunnelClient:
        return TunnelClient(
            lambda: self._endpoints.endpoint(number, ip),
            cluster_name=self.config.cluster_name,
            metadata=self._endpoints.metadata,
            open_receiver=self._open_manager,
            on_ready=lambda _: self._on_ready(),
            features=self.tunnel_features,
            windows=self.windows,
            messages=self.budget,
            is_idle=lambda tunnel: self.managers[tunnel].is_idle,
            ask_idle=lambda tunnel: self.managers[tunnel].ask_idle(),
            settle=lambda tunnel: self.managers[tunnel].settle(),
        )

    def _open_manager(self, tunnel: Tunnel) -> ConnManager:
        """The connection manager of one session."""
        for other in [other for other in self.managers if other.lost]:
            del self.managers[other]
            self._past_packets_received += other.packets_received
            self._past_packets_sent += other.packets_sent
        manager = MixedConnManager(tunnel, self.carrier_policy, budget=self.budget, counters=self.counters)
        self.managers[tunnel] = manager
        return manager


def _limits(config: AgentConfig) -> ProxyLimits:
    return make_limits(config.limits, buffer_bytes=config.memory_comm.buffer_size)


def _for_hub(limits: ProxyLimits) -> ProxyLimits:
    """The limits of the hub's connections: hubs keep the same times for their users, and know them."""
    return limits.later("body_timeout_s", "write_timeout_s")
