"""The agent: hands each room what it needs of the others, and ends them in the right order.

    TunnelClient ──session──► conn manager ──pipe or Unix socket──► Proxy ──► Upstreams ──► targets
         │                        ▲                                   │
         │                        └──────── outcome(conn_id, …) ──────┘
         └─ one for each hub address; one manager for each session

No room imports another; this module knows them all.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from .config import AgentConfig
from .connections.counters import ConnectionCounters
from .connections.inbound import FirstPacketBudget
from .connections.manager import ConnManager
from .connections.memory import MemoryConnManager
from .connections.uds import UDSAcceptor, UDSConnManager
from .errors import ConfigError
from .policy.identity import RequestProcessor
from .policy.router import Router
from .policy.selection import select_policy
from .policy.trust import CertificateProvider, FileTrust, client_context
from .proxy import Proxy, ProxyLimits, Upstreams
from .syntax import Address, parse_address, parse_reference
from .telemetry.health import HealthServer
from .tunnel.client import HubEndpoint, TunnelClient
from .tunnel.session import Tunnel

__all__ = ["Agent"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
Metadata = list[tuple[str, str | bytes]]

DRAIN_TIMEOUT_S = 5.0
"""How long the hub may take to end the stream after DRAIN."""


class Agent:
    """Serves what hubs send, by the configuration, until cancelled.

    router, request_processor, certificate_provider: the user's own, in place of what the configuration would choose.
    on_ready: called whenever a hub has answered a session's first probe.
    Raises ConfigError where the parts given don't make a whole: no routes, app or router, a file that can't be used.
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
        self._router, self._processor = select_policy(
            cluster=config.cluster_name,
            routes=config.static_routes,
            app=_application(config.app),
            router=router,
            request_processor=request_processor,
        )
        self._trust = certificate_provider or FileTrust(config.target_ca_files)
        self._on_ready = on_ready or (lambda: None)
        self._budget = FirstPacketBudget()
        self._clients: list[TunnelClient] = []
        self._managers: dict[Tunnel, ConnManager] = {}  # of the sessions that are not over
        self._draining = False
        # What hubs are dialled with, the last good one: a file that turns bad later ends no running agent.
        self._tls = self._read_tls()
        self._metadata = self._read_metadata()

    @property
    def ready(self) -> bool:
        """Whether a hub has answered a probe within its deadline, and no drain has begun."""
        return not self._draining and any(client.ready for client in self._clients)

    @property
    def open_connections(self) -> int:
        """Connections of all sessions that are open now."""
        return sum(manager.open_connections for manager in self._managers.values())

    def reconnect_now(self) -> None:
        """Dial every hub anew, without waiting for a back-off."""
        for client in self._clients:
            client.reconnect_now()

    async def run(self) -> None:
        """Serve until cancelled; then drain: not ready, answers say `Connection: close`, requests in flight finish.

        Draining takes at most `drain_grace_s` and some seconds; a second cancellation ends it at once. Raises
        ConfigError where the Unix socket can't be made, OSError where the health address can't be listened on.
        """
        config = self.config
        limits = ProxyLimits(buffer_bytes=config.memory_comm.buffer_size)
        upstreams = Upstreams(
            ssl_context=self._trust.ssl_context, generation=lambda: self._trust.generation, limits=limits
        )
        proxy = Proxy(
            route=self._router.route,
            process=self._processor.process,
            upstreams=upstreams,
            limits=limits,
            cluster=config.cluster_name,
            max_connections=config.memory_comm.max_connections,
        )
        acceptor = None
        if not config.use_memory_comm:
            acceptor = UDSAcceptor(
                proxy.connection, socket_path=config.uds_socket_path, buffer_size=config.memory_comm.buffer_size
            )
        health = HealthServer(lambda: self.ready)
        self._clients = [self._client(address, proxy, acceptor) for address in config.hub_addresses]
        sessions: list[asyncio.Task[None]] = []
        try:
            if acceptor is not None:
                await acceptor.start()
            if config.health_address:
                address = parse_address(config.health_address, listen=True)
                await health.start(address.host, address.port)
            sessions = [asyncio.create_task(client.run()) for client in self._clients]
            try:
                await asyncio.wait(sessions, return_when=asyncio.FIRST_COMPLETED)  # they only end by an error
            except asyncio.CancelledError:
                await self._drain(proxy)
                raise
            for session in sessions:
                if session.done():
                    session.result()
        finally:
            for session in sessions:
                session.cancel()
            if sessions:
                await asyncio.wait(sessions)
            proxy.close()
            await upstreams.close()
            if acceptor is not None:
                await acceptor.close()
            await health.close()

    async def _drain(self, proxy: Proxy) -> None:
        """wire.md, "DRAIN to the hub": in this order, for a base hub may lock up where requests are still open."""
        self._draining = True
        logger.info("draining", extra={"connections": self.open_connections, "grace_s": self.config.drain_grace_s})
        proxy.start_draining()
        await asyncio.gather(*(manager.drain(self.config.drain_grace_s) for manager in self._managers.values()))
        await asyncio.gather(*(client.drain(DRAIN_TIMEOUT_S) for client in self._clients))

    def _client(self, address: Address, proxy: Proxy, acceptor: UDSAcceptor | None) -> TunnelClient:
        def endpoint() -> HubEndpoint:
            self._tls = _or_last_good(self._read_tls, self._tls)
            return HubEndpoint(address.host, address.port, self._tls, self.config.hub_server_name or None)

        def metadata() -> Metadata:
            self._metadata = _or_last_good(self._read_metadata, self._metadata)
            return self._metadata

        return TunnelClient(
            endpoint,
            cluster_name=self.config.cluster_name,
            metadata=metadata,
            open_receiver=lambda tunnel: self._open_manager(tunnel, proxy, acceptor),
            on_ready=lambda _: self._on_ready(),
        )

    def _open_manager(self, tunnel: Tunnel, proxy: Proxy, acceptor: UDSAcceptor | None) -> ConnManager:
        """The connection manager of one session, over memory or over the Unix socket."""
        manager: ConnManager
        buffer_bytes = self.config.memory_comm.buffer_size
        if acceptor is None:
            manager = MemoryConnManager(
                tunnel, proxy.connection, buffer_size=buffer_bytes, budget=self._budget, counters=self.counters
            )
        else:
            manager = UDSConnManager(
                tunnel, acceptor, buffer_size=buffer_bytes, budget=self._budget, counters=self.counters
            )
        self._managers = {other: its for other, its in self._managers.items() if not other.lost}
        self._managers[tunnel] = manager
        return manager

    def _read_tls(self) -> ssl.SSLContext | None:
        """The context to dial the hub with, from the files as they are now; None for plaintext."""
        config = self.config
        if config.insecure:
            return None
        return client_context(
            ca_file=config.hub_ca_file, cert_file=config.hub_client_cert_file, key_file=config.hub_client_key_file
        )

    def _read_metadata(self) -> Metadata:
        """The token file's content as it is now, as `authorization`. Raises ConfigError."""
        path = self.config.hub_token_file
        if not path:
            return []
        try:
            with open(path, "rb") as file:
                token = file.read().strip()
        except OSError as error:
            raise ConfigError("hub_token_file", path, f"must be a readable file ({error.strerror})") from None
        if not token or any(not 0x21 <= byte <= 0x7E for byte in token):
            raise ConfigError("hub_token_file", path, "must hold one token of visible ASCII")
        return [("authorization", f"Bearer {token.decode('ascii')}")]


def _or_last_good(read: Callable[[], T], last: T) -> T:
    """What `read` gives, or `last` where its files can't be used now: then that is said loudly."""
    try:
        return read()
    except ConfigError as error:
        logger.error("%s; what was read before is used", error)
        return last


def _application(app: Any) -> Any:
    """The ASGI application: as given, or imported where it is named `module:name`. Raises ConfigError."""
    if not isinstance(app, str):
        return app
    module, name = parse_reference(app)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError("app", app, f"must be an importable application ({error})") from None
    return found
