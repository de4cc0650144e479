"""The hub: agents on one port, users on the other, and each user's request routed to its cluster.

    user ──HTTP──► Proxy ──route──► AgentSession.connect ──pipe, packets──► the cluster's agent

One of the few modules that import all rooms (`agent/spoke/agent.py` is another). The HTTP port is the same proxy that
the agent runs, with agents as its "targets". It parses every request, so no unparsed byte reaches a tunnel.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ..config.credentials import CredentialWatch
from ..config.schema import HubConfig, make_limits
from ..errors import ConfigError, Refused, listening
from ..messages import RequestHead, Target
from ..outcome import log_outcome
from ..policy.agent_identity import AgentPolicy
from ..policy.plugins import load_reference
from ..policy.trust import handshake_failure, server_context
from ..proxy import Proxy, ProxyLimits, RequestMetrics, Upstreams
from ..proxy.origin import NO_HOST
from ..runtime.acceptor import listening_sockets
from ..runtime.descriptors import Shares, descriptor_limit, share_out
from ..runtime.serving import run_beside, serve_until_cancelled
from ..syntax import is_loopback, parse_address
from ..telemetry.health import HealthServer
from ..telemetry.metrics import MetricsPage
from ..tunnel.budget import MessageBudget
from ..tunnel.features import CONNECT, FEATURES, FORWARDED
from ..tunnel.grpc import GrpcStatus, Status
from ..tunnel.liveness import LivenessTimes
from ..tunnel.server import TunnelServer
from ..tunnel.session import Tunnel
from .agent_door import AgentDoor
from .browser_isolation import Isolation
from .clusters import ByHost, ByParser, ByPath, ClusterParser, Clusters, warn_of_certificate
from .connect_clusters import cluster_of
from .connect_ports import ConnectPorts, listener_tls
from .entrance import Entrance
from .index import Index
from .known_clusters import UNKNOWN, KnownClusters
from .metrics import read
from .session import AgentSession, why_lost
from .user_door import UserDoor

__all__ = ["ClusterParser", "Hub"]

logger = logging.getLogger(__name__)

UPSTREAM_IDLE_S = 30.0
"""How long the hub keeps an unused connection to an agent. Agents close theirs after 75 s, and a base agent doesn't
report that. So the time is well below 75 s."""

IDLE_CONNECTIONS = 1000
"""Unused connections kept for each agent. They cost no descriptor, and the agent allows so many by default."""

BACKLOG = 4096
"""Connections that the kernel holds on each port until they are accepted. net.core.somaxconn may lower it."""

CARRIER = "tcp"
"""The name of users' connections in the metrics of requests."""

MOST_TARGETS = 64
"""Targets kept for each agent. A parser may name any prefix."""

UNGUARDED = "every client of the HTTP port reaches the agents, because the port requires no client certificate"

GRPC_STATUS = {400: Status.UNKNOWN, 401: Status.UNAUTHENTICATED, 403: Status.PERMISSION_DENIED}
"""The gRPC status for a rejected agent, by the HTTP status of the policy."""


class Hub:
    """Runs a hub until cancelled.

    cluster_parser: the user's own, instead of the one that the configuration names.
    on_listening: called with "grpc", then "http" and then "listener" for each listener, the configured host and the
        port. A Unix socket has `unix:` with its path, and 0.
    tunnel_features: the extensions that the hub uses with agents that offer them.
    liveness: the times after which a silent agent gets a PING, is suspected, and loses its session.

    `tunnel_features` and `liveness` are attributes, set before `run`.
    Raises ConfigError for certificate, key and token files that can't be used, and a parser that can't be imported.
    """

    def __init__(
        self,
        config: HubConfig,
        *,
        cluster_parser: ClusterParser | None = None,
        on_listening: Callable[[str, str, int], None] = lambda *_: None,
    ) -> None:
        self._config = config
        self._on_listening = on_listening
        self._sessions: dict[str, list[AgentSession]] = {}  # by cluster, the newest last
        self._ids = itertools.count(1)
        self._upstreams = Upstreams()
        self.proxy: Proxy | None = None
        self.ready = False
        self.sessions_opened = 0
        self._open_sessions = 0
        self._max_agents = config.max_agents
        self.refused: Counter[str] = Counter()
        """Agents refused, by reason: `policy`, `tls`, `max_agents`, `max_sessions_per_cluster`."""
        self.agent_door: AgentDoor | None = None
        self.user_door: UserDoor | None = None
        self.connect_ports: ConnectPorts | None = None
        self.request_metrics = RequestMetrics()
        self._past_bytes = [0, 0]  # of sessions that have ended
        self._page: MetricsPage | None = None
        if config.enable_metrics:
            self._page = MetricsPage(lambda: read(self), prefix="fastpipe_hub_", field="enable_metrics")
            if not config.health_address:
                logger.warning("metrics are counted and shown nowhere: health_address isn't set")
        self.messages = MessageBudget()
        self.tunnel_features = FEATURES
        self.liveness = LivenessTimes()
        self.credentials = CredentialWatch(config)
        self._agents = AgentPolicy(
            certificates=bool(config.agent_ca_file), token_file=config.agent_token_file, anyone=config.lets_anyone_in
        )
        self._known = KnownClusters(lambda name: name in self._sessions or self._agents.names(name))
        self._grpc_tls = config.grpc_cert_file and server_context(
            config.grpc_cert_file,
            config.grpc_key_file,
            cert_field="grpc_cert_file",
            client_ca_file=config.agent_ca_file,
            client_required=not config.agent_token_file and not config.allow_any_agent,
            alpn=["h2"],
        )
        self._http_tls = config.http_cert_file and server_context(
            config.http_cert_file,
            config.http_key_file,
            cert_field="http_cert_file",
            client_ca_file=config.user_ca_file,
            client_ca_field="user_ca_file",
            client_required=False,  # the door responds to users without one
            alpn=["h2", "http/1.1"] if config.http2 else ["http/1.1"],
        )
        self._listeners = [(each, listener_tls(each)) for each in config.listener_entries]
        self._clusters = self._make_clusters(cluster_parser or config.cluster_parser)
        self._isolation = Isolation(self._clusters.locate)

    def _make_clusters(self, parser: Any) -> Clusters:
        """The way to name clusters that the configuration chooses. parser: a function, or its name, or None."""
        if parser is not None:
            if self._config.cluster_from == "host":
                raise ConfigError("cluster_parser", "argument", "must not be set with cluster_from = host")
            found = load_reference("cluster_parser", parser) if isinstance(parser, str) else parser
            if not callable(found):
                rule = "must be a function from a RequestHead to a cluster's name"
                raise ConfigError("cluster_parser", str(parser), rule)
            return ByParser(found)
        if self._config.cluster_from == "host":
            return ByHost(self._config.cluster_domain)
        return ByPath(Index(lambda: self._sessions, self.may_see).respond if self._config.index else None)

    def may_see(self, request: RequestHead, cluster: str) -> bool:
        """Whether the page at `/` shows a cluster to the user of this request."""
        return True

    async def run(self) -> None:
        """Listen and serve until cancelled, then let requests in flight finish for up to `drain_grace_s`.

        A second cancellation ends the drain at once. Raises ListenError if the hub can't listen on an address.
        """
        self._known.start()
        warn_of_certificate(self._config.cluster_domain, self._config.http_cert_file)
        shares = self._shares()
        self._max_agents = shares.agents
        limits = self._limits()
        # Agents keep the same times for their targets, and know them.
        self._upstreams = Upstreams(limits=limits.later("write_timeout_s"))
        proxy = self.proxy = self._make_proxy(limits.later("first_byte_timeout_s"), shares)
        tunnels = TunnelServer(
            open_tunnel=self.open_tunnel,
            features=self.tunnel_features,
            liveness=self.liveness,
            messages=self.messages,
        )
        agent_door = self.agent_door = self._make_agent_door(tunnels, shares)
        entrance = Entrance(max(1, (shares.clients + shares.spare_clients) // 2))
        user_door = self.user_door = self._make_user_door(proxy, shares, entrance)
        connect_ports = self.connect_ports = self._make_connect_ports(proxy, shares, entrance)
        health = HealthServer(lambda: self.ready, self._page.render if self._page is not None else None)

        async def drain() -> None:
            self.ready = False
            connect_ports.stop()
            agent_door.stop()
            user_door.stop()
            proxy.start_draining()
            for session in self.sessions:
                session.drain()
            await proxy.wait_drained(self._config.drain_grace_s)

        # Closed in the reverse order, each even if a second cancellation has interrupted the one before it.
        async with contextlib.AsyncExitStack() as ends:
            ends.push_async_callback(health.close)
            ends.push_async_callback(tunnels.close)
            ends.push_async_callback(self._upstreams.close)
            ends.push_async_callback(agent_door.close)
            ends.push_async_callback(user_door.close)
            ends.push_async_callback(connect_ports.close)
            ends.callback(proxy.close)
            ends.callback(connect_ports.stop)
            ends.callback(user_door.stop)
            ends.callback(agent_door.stop)
            run_beside(ends, self.credentials.run())
            await self._open_doors(agent_door, user_door, connect_ports)
            await health.listen(self._config.health_address)
            self.ready = True
            await serve_until_cancelled(drain)

    def _limits(self) -> ProxyLimits:
        return make_limits(
            self._config.limits,
            upstream_idle_s=UPSTREAM_IDLE_S,
            idle_upstreams_per_target=IDLE_CONNECTIONS,
            unanswered_s=self.liveness.unanswered_s,
        )

    def _make_proxy(self, limits: ProxyLimits, shares: Shares) -> Proxy:
        return Proxy(
            route=self.route,
            process=None,
            connect_route=self.route_connect,
            upstreams=self._upstreams,
            limits=limits,
            max_connections=shares.clients,
            party="hub",
            owns_clients=True,
            http2_max_streams=self._config.http2_max_streams if self._config.http2 else 0,
            metrics={CARRIER: self.request_metrics} if self._page is not None else None,
        )

    def _make_agent_door(self, tunnels: TunnelServer, shares: Shares) -> AgentDoor:
        return AgentDoor(
            protocol=tunnels.protocol,
            tls=self._grpc_tls or None,
            max_connections=shares.agents + shares.strangers,
            strangers=shares.strangers,
            reason_of=handshake_failure,
            on_tls_failed=self._tls_failed,
        )

    def _make_user_door(self, proxy: Proxy, shares: Shares, entrance: Entrance) -> UserDoor:
        return UserDoor(
            protocol=lambda origin: proxy.connection(next(self._ids), log_outcome, CARRIER, origin),
            open_connections=lambda: proxy.open_connections,
            make_room=proxy.make_room,
            max_connections=shares.clients + shares.spare_clients,
            tls=self._http_tls or None,
            certificate_required=bool(self._config.user_ca_file) and not self._config.allow_any_user,
            reason_of=handshake_failure,
            trusted_proxies=tuple(self._config.trusted_proxies),
            proxy_protocol=self._config.proxy_protocol,
            header_timeout_s=self._config.limits.head_timeout_s,
            entrance=entrance,
        )

    def _make_connect_ports(self, proxy: Proxy, shares: Shares, entrance: Entrance) -> ConnectPorts:
        return ConnectPorts(
            self._listeners,
            proxy=proxy,
            route=self.route_connect,
            serve=lambda make, origin: make(next(self._ids), log_outcome, CARRIER, origin),
            max_connections=shares.clients + shares.spare_clients,
            entrance=entrance,
        )

    async def _open_doors(self, agent_door: AgentDoor, user_door: UserDoor, connect_ports: ConnectPorts) -> None:
        """Listen on all ports before any door accepts. Raises ListenError. Then no port is open."""
        grpc = parse_address(self._config.grpc_address, listen=True)
        http = parse_address(self._config.http_address, listen=True)
        with contextlib.ExitStack() as unopened:
            with listening("grpc_address", grpc):
                for_agents = await listening_sockets(grpc.host, grpc.port, backlog=BACKLOG)
            for sock in for_agents:
                unopened.callback(sock.close)
            with listening("http_address", http):
                for_users = await listening_sockets(http.host, http.port, backlog=BACKLOG)
            for sock in for_users:
                unopened.callback(sock.close)
            await connect_ports.listen(BACKLOG)
            unopened.pop_all()  # the doors own the sockets from here on
        grpc_port, http_port = agent_door.open(for_agents), user_door.open(for_users)
        if not (is_loopback(http.host) or self._config.user_ca_file):
            logger.warning(UNGUARDED, extra={"http_address": str(http)})
        self._on_listening("grpc", grpc.host, grpc_port)
        self._on_listening("http", http.host, http_port)
        connect_ports.open(self._on_listening)

    def open_tunnel(self, tunnel: Tunnel, metadata: Sequence[tuple[bytes, bytes]]) -> AgentSession:
        """Open an agent's session for the cluster that it names. Raises GrpcStatus if the hub rejects the agent."""
        found = dict(metadata)
        cluster = found[b"cluster-name"]  # the tunnel's server refuses a call without it
        try:
            identity = self._agents.identify(cluster, found.get(b"authorization"), tunnel.get_extra_info("peercert"))
        except Refused as refused:
            extra = {"cluster": cluster[:63].decode("latin-1"), "peer": tunnel.peername, "reason": refused.reason}
            logger.warning("agent refused", extra=extra)
            self.refused["policy"] += 1
            raise GrpcStatus(GRPC_STATUS[refused.status], refused.reason, logged=True) from None
        name = cluster.decode("ascii")
        sessions = self._sessions.get(name, [])
        if any(session.identity != identity for session in sessions):
            extra = {"cluster": name, "peer": tunnel.peername}
            logger.warning("agent refused: another identity holds the cluster", extra=extra)
            self.refused["policy"] += 1
            raise GrpcStatus(Status.PERMISSION_DENIED, "another identity holds this cluster", logged=True)
        for setting, open_now, most, whose in (
            ("max_sessions_per_cluster", len(sessions), self._config.max_sessions_per_cluster, "this cluster"),
            ("max_agents", self._open_sessions, self._max_agents, "this hub"),
        ):
            if open_now >= most:
                self.refused[setting] += 1
                extra = {"cluster": name, "peer": tunnel.peername, "limit": setting, "most": most}
                logger.warning("agent refused: too many sessions", extra=extra)
                reason = f"{whose} has {open_now} sessions, the most that are allowed ({setting})"
                raise GrpcStatus(Status.RESOURCE_EXHAUSTED, reason, logged=True)
        session = AgentSession(tunnel, name, identity, self._lost, on_draining=self._draining, successor=self._newest)
        self._sessions.setdefault(name, sessions).append(session)
        self.sessions_opened += 1
        self._open_sessions += 1
        logger.info("agent connected", extra={"cluster": name, "peer": tunnel.peername})
        if len(sessions) > 1:
            extra = {"cluster": name, "peer": tunnel.peername, "sessions": len(sessions)}
            logger.info("a cluster has several agents, and the newest gets new requests", extra=extra)
        return session

    def _tls_failed(self, peer: Any, reason: str) -> None:
        self.refused["tls"] += 1
        logger.warning("an agent's TLS handshake failed", extra={"peer": peer, "reason": reason})

    def _shares(self) -> Shares:
        """The configured limits of users and agents, lowered to the process's limit of descriptors."""
        config = self._config
        limit = descriptor_limit()
        shares = share_out(limit, config.max_clients, config.max_agents)
        for setting, asked, allowed in (
            ("max_clients", config.max_clients, shares.clients),
            ("max_agents", config.max_agents, shares.agents),
        ):
            if allowed < asked:
                logger.warning(
                    "%s is lowered from %d to %d: the process may open %d file descriptors (ulimit -n)",
                    setting,
                    asked,
                    allowed,
                    limit,
                )
        return shares

    def route(self, request: RequestHead) -> Target:
        """The newest agent of the cluster that this request is for. Earlier requests on its connection have no effect.

        Draining agents get no new requests. Suspected agents get them only if no other agent is left.

        Raises:
            Refused: 400, 404, 421, 503, or the cluster parser's own status.
            Redirected: to a cluster's root.
            Responded: with the page at `/`.
            PolicyError: the parser returns no name, or a wrong path.
        """
        clusters = self._clusters
        located = clusters.locate(request)
        session = self._newest_of(located.cluster)
        if session is None:
            raise self._known.refusal(located.cluster, hint=clusters.unknown)
        if located.is_bare:
            clusters.check_root(request, located)
        target = session.targets.get(located.stripped)
        if target is None:
            target = self._make_target(session, located.stripped)
        return target.with_path(located.path) if located.path else target

    def route_connect(self, request: RequestHead) -> Target:
        """The newest agent that serves CONNECT, of the cluster that this one names. The agent checks its target.

        Raises Refused: 400, 404, 407, 501, 503.
        """
        cluster = cluster_of(request)
        session = self._newest_of(cluster, CONNECT)
        if session is None:
            if self._newest_of(cluster) is not None:
                raise Refused(501, "the agent of this cluster does not serve CONNECT", fault="agent", cluster=cluster)
            raise self._known.refusal(cluster, hint=UNKNOWN)
        return Target("http://agent", connect=session.connect, cluster=cluster, party="agent")

    def _make_target(self, session: AgentSession, stripped: bytes) -> Target:
        """Make the target of all requests for an agent with the same public prefix. It has no path."""
        # The host is never dialled. `connect` opens the connection, and the client's own Host is forwarded.
        made = Target(
            f"http://{NO_HOST.decode()}",
            stripped=stripped,
            map_request=self._isolation.map_request,
            map_response=self._isolation.map_response,
            connect=session.connect,
            preserve_host=True,
            answers_expect=not session.tunnel.features,
            bounds_head=FORWARDED not in session.tunnel.features,
            party="agent",
        ).with_path(b"")
        if len(session.targets) >= MOST_TARGETS:
            session.targets.clear()
        session.targets[stripped] = made
        return made

    @property
    def sessions(self) -> list[AgentSession]:
        """Agents' tunnels that are open."""
        return [session for sessions in self._sessions.values() for session in sessions]

    @property
    def carried_bytes(self) -> tuple[int, int]:
        """Clients' bytes from agents and to them, so far."""
        each = [session.carried_bytes for session in self.sessions]
        return (
            self._past_bytes[0] + sum(from_agent for from_agent, _ in each),
            self._past_bytes[1] + sum(to_agent for _, to_agent in each),
        )

    def _newest_of(self, cluster: str, feature: str = "") -> AgentSession | None:
        """The session for new connections, or None if the cluster has no agent or all its agents drain.

        feature: one that the session must have, "" for any session.

        A suspected session is used only if no other is left. Its requests fail if the agent doesn't respond again.
        """
        silent: AgentSession | None = None
        for session in reversed(self._sessions.get(cluster, ())):
            if session.draining or (feature and feature not in session.tunnel.features):
                continue
            if not session.suspected:
                return session
            silent = silent or session
        return silent

    def _newest(self, other: AgentSession) -> AgentSession | None:
        return self._newest_of(other.cluster)

    def _draining(self, session: AgentSession) -> None:
        logger.info("agent drains", extra={"cluster": session.cluster, "connections": session.open_connections})
        self._upstreams.end_connect(session.connect)

    def _lost(self, session: AgentSession, error: Exception | None) -> None:
        self._upstreams.forget_connect(session.connect)
        self._known.seen(session.cluster)
        sessions = self._sessions[session.cluster]
        sessions.remove(session)
        self._open_sessions -= 1
        self._past_bytes = [past + own for past, own in zip(self._past_bytes, session.carried_bytes, strict=True)]
        if not sessions:
            del self._sessions[session.cluster]
        extra = {"cluster": session.cluster, "peer": session.tunnel.peername}
        if error is None:
            logger.info("agent disconnected", extra=extra)
        else:
            fault, reason = why_lost(error)
            logger.warning("agent disconnected", extra={**extra, "reason": reason, "fault": fault})
