"""The settings of the agent, the hub and the proxy command, each declared once.

A field, its flag, its variable and its TOML key have one name (`hub_address`, `--hub-address`, `AGENT_HUB_ADDRESS`). A
table's fields have the table's name in front (`--memory-comm-buffer-size`). The hub's variables begin with `HUB_`. The
constructors check all fields, and ConfigErrors names every wrong one. `loading.py` has the machinery.
"""

# ruff: noqa: RUF009  (each call makes one dataclass field, as dataclasses.field does)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, cast

from ..syntax import SOCKET_PATH_BYTES, Address, ConnectEntry, Route, is_loopback, parse_address, parse_connect_entry
from . import fields as kind
from .limits import ProxyLimits
from .listeners import Listener
from .loading import Checked, ConfigErrors, Rule

__all__ = [
    "COMMANDS",
    "AgentConfig",
    "ConfigErrors",
    "ForwardConfig",
    "HubConfig",
    "LimitsConfig",
    "MemoryCommConfig",
    "ProcessConfig",
    "ProxyConfig",
    "TargetLimitsConfig",
    "make_limits",
]

Routes = Sequence[str | tuple[str, str] | Mapping[str, str | bool]] | Mapping[str, str]

Listeners = Sequence[str | Mapping[str, str | bool] | Listener]

DRAIN_GRACE_S = 25.0
"""Below Kubernetes' default terminationGracePeriodSeconds of 30, so that DRAIN still goes out."""

_LIMITS = ProxyLimits()
_DAY_S = 86400.0
_AGENTS, _CLIENTS, _TARGETS, _PROCESS = "Agents", "Clients", "Targets", "Process"
_CONNECTIONS, _LIMITS_HEADING = "Connections from the tunnel to the proxy", "Limits of requests"
_DRAIN_HELP = "time for requests in flight after the first SIGTERM"
_ROUTE_HELP = (
    "a path prefix and the URL for requests below, repeatable, the longest prefix wins "
    "(more keys: [[routes]] in a file)"
)
_TARGET_HTTP2_HELP = "HTTP/2 to https targets of routes, if the target chooses it by ALPN"
_TARGET_CA_HELP = "PEM certificates to trust targets by, besides the system's, reloaded on change"
_TARGET_CERT_HELP = "PEM certificate to present to the targets of routes over TLS, reloaded on change"
_TARGET_KEY_HELP = "its private key, unless it is in the same file"


def _check_socket_path(path: str) -> None:
    if not 0 < len(path.encode()) <= SOCKET_PATH_BYTES:
        raise ValueError(f"must be a path of at most {SOCKET_PATH_BYTES} bytes, not {path!r}")


@dataclasses.dataclass(frozen=True)
class MemoryCommConfig(Checked):
    """The proposal's limits, which hold in both modes, and the share of connections through memory."""

    buffer_size: int = kind.applied(
        kind.integer(
            "buffer of a connection's pipe or socket in each direction, before its writer pauses",
            default=65536,
            low=4096,
            high=64 * 1024 * 1024,
            unit="bytes",
        )
    )
    max_connections: int = kind.applied(
        kind.integer(
            "connections at once, over memory or UDS, with 503 for requests past the limit",
            default=1000,
            low=1,
            high=1_000_000,
            unit="connections",
        )
    )
    enable_metrics: bool = kind.boolean("metrics at /metrics of the health address (needs the extra [metrics])")
    canary_percent: int | None = kind.applied(
        kind.integer(
            "share of new connections through memory, the others use Unix sockets",
            default=None,
            low=0,
            high=100,
            unit="percent",
            unset="default: 100 with use_memory_comm, else 0",
        )
    )


@dataclasses.dataclass(frozen=True)
class LimitsConfig(Checked):
    """Sizes of requests, and timeouts of all parties. An established watch or upgrade has no timeout."""

    request_head_bytes: int = kind.integer(
        "size of a request's head, else 431",
        default=_LIMITS.request_head_bytes,
        low=1024,
        high=1024 * 1024,
        unit="bytes",
    )
    request_fields: int = kind.integer(
        "header lines of a request, else 431", default=_LIMITS.request_fields, low=8, high=10_000, unit="lines"
    )
    target_bytes: int = kind.integer(
        "size of a request's target, else 414", default=_LIMITS.target_bytes, low=256, high=1024 * 1024, unit="bytes"
    )
    head_timeout_s: float = kind.seconds(
        "time from a request head's first byte to its last, else 408",
        default=_LIMITS.head_timeout_s,
        low=0.1,
        high=3600,
    )
    body_timeout_s: float = kind.seconds(
        "time without a byte of an expected request body before the response head, else 408",
        default=_LIMITS.body_timeout_s,
        low=0.1,
        high=_DAY_S,
    )
    keep_alive_s: float = kind.seconds(
        "idle time of a client's connection between requests", default=_LIMITS.keep_alive_s, low=0.1, high=_DAY_S
    )
    write_timeout_s: float = kind.seconds(
        "time without progress of a write to a peer", default=_LIMITS.write_timeout_s, low=0.1, high=_DAY_S
    )
    half_closed_s: float = kind.seconds(
        "time without a byte from a target after its client's FIN, before the request is cancelled",
        default=_LIMITS.half_closed_s,
        low=0.1,
        high=_DAY_S,
    )
    first_byte_timeout_s: float = kind.seconds(
        "time from a request's end to the whole head of its response, else 504",
        default=_LIMITS.first_byte_timeout_s,
        low=0.1,
        high=_DAY_S,
    )
    connect_timeout_s: float = kind.seconds(
        "time to connect to a target, else 504", default=_LIMITS.connect_timeout_s, low=0.1, high=3600
    )

    connect_idle_s: float | None = kind.seconds(
        "time without a byte from either side before a CONNECT's connection closes",
        default=_LIMITS.connect_idle_s,
        low=0.1,
        high=30 * _DAY_S,
        unset="default: no limit",
    )


@dataclasses.dataclass(frozen=True)
class TargetLimitsConfig(LimitsConfig):
    """The limits of commands that dial targets over the network."""

    tls_timeout_s: float = kind.seconds(
        "time for the TLS handshake with a target, else 504", default=_LIMITS.tls_timeout_s, low=0.1, high=3600
    )
    upstream_idle_s: float = kind.seconds(
        "idle time of a connection to a target before it closes", default=_LIMITS.upstream_idle_s, low=0.1, high=_DAY_S
    )
    idle_upstreams_per_target: int = kind.integer(
        "idle connections kept for each target",
        default=_LIMITS.idle_upstreams_per_target,
        low=1,
        high=100_000,
        unit="connections",
    )


def make_limits(config: LimitsConfig, **others: float) -> ProxyLimits:
    """Make the limits of a proxy from the operator's, whose fields have the same names.

    others: limits that are not settings of the command, by name.
    """
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return ProxyLimits(**(values | others))


_TARGET_KEY_RULE = Rule(
    ("target_client_key_file", "target_client_cert_file"),
    lambda key, cert: key and not cert,
    "must be set together with target_client_cert_file",
)


class Targets:
    """The properties of configurations with routes."""

    routes: Any
    target_ca_file: Any

    @property
    def static_routes(self) -> tuple[Route, ...]:
        """The routes, without trailing slashes."""
        return cast("tuple[Route, ...]", self.routes)  # converted by the field

    @property
    def target_ca_files(self) -> tuple[str, ...]:
        """The paths of target_ca_file."""
        return tuple(self.target_ca_file)


@dataclasses.dataclass(frozen=True)
class AgentConfig(Targets, Checked):
    """`fastpipe-agent run`: the hubs, the credentials for them, and the targets of requests."""

    headings: ClassVar = {
        "hub_address": "Hub",
        "use_memory_comm": _CONNECTIONS,
        "limits": _LIMITS_HEADING,
        "uds_socket_path": _CONNECTIONS,
        "routes": _TARGETS,
        "kubeconfig": "Kubernetes",
        "health_address": _PROCESS,
    }

    hub_address: str | Sequence[str] = kind.redials(
        kind.addresses("the hub's gRPC address, repeatable for a tunnel to each hub")
    )
    cluster_name: str = kind.label("this cluster's name at the hub, an RFC 1123 label")
    insecure: bool = kind.redials(kind.boolean("plaintext to the hub (HTTP/2 with prior knowledge)"))
    hub_ca_file: str = kind.redials(
        kind.file("PEM certificates to trust the hub by, instead of the system's roots", holds="roots")
    )
    hub_client_cert_file: str = kind.redials(kind.file("PEM certificate to present to the hub", holds="certificate"))
    hub_client_key_file: str = kind.redials(kind.file("its private key, unless it is in the same file", holds="secret"))
    hub_server_name: str = kind.redials(
        kind.text("the name in the hub's certificate, if it differs from the address", metavar="NAME")
    )
    hub_token_file: str = kind.redials(
        kind.file(
            "a file with the token for the hub, sent as `authorization: Bearer` and read for each session",
            holds="secret",
        )
    )
    trust_hub_fields: bool = kind.boolean(
        "belief in the forwarding, identity and request-id fields of a hub that does not offer to clean them"
    )
    use_memory_comm: bool = kind.applied(
        kind.boolean("pipes in memory between tunnel and proxy, instead of Unix sockets")
    )
    memory_comm: MemoryCommConfig = kind.group(MemoryCommConfig)
    limits: TargetLimitsConfig = kind.group(TargetLimitsConfig, on_reload="apply")
    uds_socket_path: str = kind.text(
        "the proxy's Unix socket (default: in a new private directory)",
        metavar="PATH",
        check=_check_socket_path,
    )
    routes: Routes = kind.applied(kind.routes(_ROUTE_HELP, name="route"))
    target_http2: bool = kind.applied(kind.boolean(_TARGET_HTTP2_HELP))
    app: Any = kind.reference("an ASGI application in this process for all requests")
    target_ca_file: str | Sequence[str] = kind.files(_TARGET_CA_HELP, holds="roots")
    target_client_cert_file: str = kind.file(_TARGET_CERT_HELP, holds="certificate")
    target_client_key_file: str = kind.file(_TARGET_KEY_HELP, holds="secret")
    system_roots: bool = kind.boolean(
        "trust of the system's roots for Kubernetes' services too (other routes always have it)"
    )
    router: Any = kind.reference(
        "a custom Router, instead of routes", what="an object with `route`", methods=("route",)
    )
    request_processor: Any = kind.reference(
        "a custom RequestProcessor, which authenticates users, or kubernetes for token reviews with routes or a router",
        what="an object with `process`",
        methods=("process",),
        words=("kubernetes",),
    )
    certificate_provider: Any = kind.reference(
        "a custom CertificateProvider, which decides about trust in targets",
        what="an object with `ssl_context` and `generation`",
        methods=("ssl_context", "generation"),
    )
    connect_allow: str | Sequence[str] = kind.applied(
        kind.connect_entries(
            "a name or network and its ports that CONNECT may reach, as db.prod.svc:5432, *.svc:1-65535 or "
            "10.0.0.0/8:443, repeatable (default: none)"
        )
    )
    kubeconfig: str = kind.file(
        "kubeconfig file for this cluster's API server (default: the pod's service account)", holds="secret"
    )
    hub_kubeconfig: str = kind.file(
        "kubeconfig file for the hub cluster's API server, for reviews of its users' tokens", holds="secret"
    )
    service_allow_file: str = kind.applied(
        kind.file("allowed services, lines of NAMESPACE/SERVICE[:PORT], reloaded on change (default: none)")
    )
    allow_hub_system_groups: str | Sequence[str] = kind.texts(
        "groups of the hub that keep their names here despite their prefix system:", metavar="GROUP"
    )
    token_cache_s: float = kind.seconds("lifetime of a token's review in the cache", default=10, low=0, high=300)
    token_review_timeout_s: float = kind.seconds("time for a token's review, else 503", default=10, low=0.1, high=60)
    token_reviews_at_once: int = kind.integer(
        "reviews of different tokens at once, others wait", default=32, low=1, high=1000, unit="reviews"
    )
    health_address: str = kind.address("address of /healthz and /readyz (default: none)", default="")
    drain_grace_s: float = kind.applied(kind.seconds(_DRAIN_HELP, default=DRAIN_GRACE_S, low=0, high=3600))

    rules: ClassVar = (
        Rule(("hub_ca_file", "insecure"), lambda ca, insecure: ca and insecure, "must not be set with insecure"),
        Rule(
            ("hub_client_cert_file", "insecure"),
            lambda cert, insecure: cert and insecure,
            "must not be set with insecure",
        ),
        Rule(
            ("hub_server_name", "insecure"), lambda name, insecure: name and insecure, "must not be set with insecure"
        ),
        Rule(
            ("hub_client_key_file", "hub_client_cert_file"),
            lambda key, cert: key and not cert,
            "must be set together with hub_client_cert_file",
        ),
        _TARGET_KEY_RULE,
        Rule(
            ("target_client_cert_file", "route"),
            lambda cert, routes: cert and not routes,
            "must be set together with route, since a kubeconfig or certificate_provider has its own certificate",
        ),
        Rule(
            ("target_client_cert_file", "certificate_provider"),
            lambda cert, provider: cert and provider is not None,
            "must not be set with certificate_provider, which presents its own certificate",
        ),
        Rule(("app", "route"), lambda app, routes: app is not None and routes, "must not be set together with route"),
        Rule(
            ("router", "route", "app"),
            lambda router, routes, app: router is not None and (routes or app is not None),
            "must not be set together with route or app",
        ),
    )

    @property
    def memory_percent(self) -> int:
        """The share of new connections through memory: canary_percent if set, else all or none."""
        canary = self.memory_comm.canary_percent
        if canary is not None:
            return canary
        return 100 if self.use_memory_comm else 0

    @property
    def hub_addresses(self) -> tuple[Address, ...]:
        """hub_address as hosts and ports, at least one."""
        return tuple(map(parse_address, self.hub_address))

    @property
    def connect_entries(self) -> tuple[ConnectEntry, ...]:
        """The entries of connect_allow."""
        return tuple(map(parse_connect_entry, self.connect_allow))


@dataclasses.dataclass(frozen=True)
class HubConfig(Checked):
    """`fastpipe-agent hub`: its two ports, and the rules for agents."""

    variable_prefix: ClassVar = "HUB_"
    headings: ClassVar = {
        "grpc_address": "Ports",
        "user_ca_file": "Users",
        "listeners": "Listeners for CONNECT",
        "max_clients": "Users",
        "max_agents": _AGENTS,
        "limits": _LIMITS_HEADING,
        "agent_ca_file": _AGENTS,
        "health_address": _PROCESS,
    }

    grpc_address: str = kind.address("address for agents' tunnels (port 0: a free port)", default="127.0.0.1:8443")
    http_address: str = kind.address("address for users' requests", default="127.0.0.1:8080")
    grpc_cert_file: str = kind.file("PEM certificate chain of the gRPC port (default: plaintext)", holds="certificate")
    grpc_key_file: str = kind.file("its private key, unless it is in the same file", holds="secret")
    http_cert_file: str = kind.file("PEM certificate chain of the HTTP port (default: plaintext)", holds="certificate")
    http_key_file: str = kind.file("its private key, unless it is in the same file", holds="secret")
    user_ca_file: str = kind.file("PEM CA of users' certificates, which the HTTP port then requires", holds="roots")
    allow_any_user: bool = kind.boolean("admission of users without a certificate, despite user_ca_file")
    trusted_proxies: str | Sequence[str] = kind.networks(
        "addresses and networks of proxies in front of the hub, whose forwarding fields it believes (default: none)"
    )
    proxy_protocol: bool = kind.boolean(
        "a PROXY header (version 1 or 2) at the start of each connection from trusted_proxies, else 400"
    )
    cluster_from: str = kind.choice(
        "the part of a request that names its cluster, its path's first segment or its host's first label",
        ("path", "host"),
        default="path",
    )
    cluster_domain: str = kind.domain("the domain of all clusters' host names, with cluster_from = host")
    cluster_parser: Any = kind.reference(
        "a function for the cluster of a request, instead of cluster_from",
        what="a function from a RequestHead to a cluster's name",
    )
    index: bool = kind.boolean("a page at / with links to all connected clusters")
    listeners: Listeners = kind.listeners(
        "a port for CONNECT to a cluster, or a fixed port for one target, repeatable (TLS: [[listeners]] in a file)",
        name="listener",
    )
    max_clients: int = kind.integer(
        "users' connections at once, else 503",
        default=10_000,
        low=1,
        high=1_000_000,
        unit="connections",
    )
    http2: bool = kind.boolean("HTTP/2 for users, by ALPN or prior knowledge", default=True)
    http2_max_streams: int = kind.integer(
        "requests at once on one connection by HTTP/2, others are refused",
        default=128,
        low=1,
        high=100_000,
        unit="requests",
    )
    max_agents: int = kind.integer(
        "agents' tunnels at once, others are refused",
        default=5000,
        low=1,
        high=1_000_000,
        unit="tunnels",
    )
    max_sessions_per_cluster: int = kind.integer(
        "tunnels of one cluster at once, others are refused",
        default=32,
        low=1,
        high=100_000,
        unit="tunnels",
    )
    limits: LimitsConfig = kind.group(LimitsConfig)
    agent_ca_file: str = kind.file(
        "PEM CA of agents' certificates, with the cluster's name as CN or DNS name", holds="roots"
    )
    agent_token_file: str = kind.file(
        "agents' tokens, lines of a cluster's name, white space and its token", holds="secret"
    )
    allow_any_agent: bool = kind.boolean("admission of agents without credentials, also off loopback")
    health_address: str = kind.address("address of /healthz and /readyz (default: none)", default="")
    enable_metrics: bool = kind.boolean("metrics at /metrics of the health address (needs the extra [metrics])")
    drain_grace_s: float = kind.seconds(_DRAIN_HELP, default=DRAIN_GRACE_S, low=0, high=3600)

    rules: ClassVar = (
        Rule(
            ("grpc_key_file", "grpc_cert_file"),
            lambda key, cert: key and not cert,
            "must be set together with grpc_cert_file",
        ),
        Rule(
            ("http_key_file", "http_cert_file"),
            lambda key, cert: key and not cert,
            "must be set together with http_cert_file",
        ),
        Rule(
            ("user_ca_file", "http_cert_file"),
            lambda ca, cert: ca and not cert,
            "must be set together with http_cert_file, since only TLS has client certificates",
        ),
        Rule(
            ("allow_any_user", "user_ca_file"),
            lambda anyone, ca: anyone and not ca,
            "must be set together with user_ca_file, since without one every user is admitted",
        ),
        Rule(
            ("cluster_domain", "cluster_from"),
            lambda domain, source: domain and source != "host",
            "must be set together with cluster_from = host",
        ),
        Rule(
            ("cluster_from", "cluster_domain"),
            lambda source, domain: source == "host" and not domain,
            "must be set together with cluster_domain, the clusters' domain, as tunnel.example.com",
        ),
        Rule(
            ("cluster_parser", "cluster_from"),
            lambda parser, source: parser is not None and source == "host",
            "must not be set with cluster_from = host, since the parser names the cluster",
        ),
        Rule(
            ("index", "cluster_from", "cluster_parser"),
            lambda index, source, parser: index and (source == "host" or parser is not None),
            "must not be set with cluster_from = host or cluster_parser, since only paths have a page at /",
        ),
        Rule(
            ("proxy_protocol", "trusted_proxies"),
            lambda protocol, proxies: protocol and not proxies,
            "must be set together with trusted_proxies, since only those may send a PROXY header",
        ),
        Rule(
            ("agent_ca_file", "grpc_cert_file"),
            lambda ca, cert: ca and not cert,
            "must be set together with grpc_cert_file, since only TLS has client certificates",
        ),
        Rule(
            ("grpc_address", "agent_ca_file", "agent_token_file", "allow_any_agent"),
            lambda address, ca, tokens, anyone: (
                not (ca or tokens or anyone or is_loopback(parse_address(address, listen=True).host))
            ),
            "must be a loopback address, or agents must be authenticated (--agent-ca-file, --agent-token-file). "
            "Otherwise any agent could take any cluster's requests. --allow-any-agent allows that",
        ),
    )

    @property
    def listener_entries(self) -> tuple[Listener, ...]:
        """The listeners."""
        return cast("tuple[Listener, ...]", self.listeners)  # converted by the field

    @property
    def authenticates_agents(self) -> bool:
        """Whether agents can authenticate."""
        return bool(self.agent_ca_file or self.agent_token_file)

    @property
    def lets_anyone_in(self) -> bool:
        """Whether an agent without credentials is admitted, by allow_any_agent or without any CA and tokens."""
        return self.allow_any_agent or not self.authenticates_agents


@dataclasses.dataclass(frozen=True)
class ProxyConfig(Targets, Checked):
    """`fastpipe-agent proxy`: the agent's proxy alone on a TCP port, without a cluster name in the paths."""

    headings: ClassVar = {
        "listen": _CLIENTS,
        "routes": _TARGETS,
        "max_clients": _CLIENTS,
        "limits": _LIMITS_HEADING,
        "drain_grace_s": _PROCESS,
    }

    listen: str = kind.address("address of the proxy (port 0: a free port)", default="127.0.0.1:8080")
    routes: Routes = kind.routes(_ROUTE_HELP, name="route")
    target_http2: bool = kind.boolean(_TARGET_HTTP2_HELP)
    target_ca_file: str | Sequence[str] = kind.files(_TARGET_CA_HELP, holds="roots")
    target_client_cert_file: str = kind.file(_TARGET_CERT_HELP, holds="certificate")
    target_client_key_file: str = kind.file(_TARGET_KEY_HELP, holds="secret")
    max_clients: int = kind.integer(
        "clients' connections at once, else 503",
        default=10_000,
        low=1,
        high=1_000_000,
        unit="connections",
    )
    http2: bool = kind.boolean("HTTP/2 for clients, by ALPN or prior knowledge", default=True)
    http2_max_streams: int = kind.integer(
        "requests at once on one connection by HTTP/2, others are refused",
        default=128,
        low=1,
        high=100_000,
        unit="requests",
    )
    limits: TargetLimitsConfig = kind.group(TargetLimitsConfig)
    drain_grace_s: float = kind.seconds(_DRAIN_HELP, default=DRAIN_GRACE_S, low=0, high=3600)

    rules: ClassVar = (
        Rule(("route",), lambda routes: not routes, "must be set: at least one PREFIX=URL"),
        _TARGET_KEY_RULE,
    )


@dataclasses.dataclass(frozen=True)
class ForwardConfig(Checked):
    """`fastpipe-agent forward`: local ports for targets behind a hub, by CONNECT."""

    variable_prefix: ClassVar = "FORWARD_"
    headings: ClassVar = {"hub": "Hub", "max_connections": "Local ports", "drain_grace_s": _PROCESS}

    hub: str = kind.hub_url("the hub's HTTP port, as https://hub.example.com")
    cluster: str = kind.label("the cluster of all targets, an RFC 1123 label")
    token_file: str = kind.file(
        "a file with the user's token for the hub, read for each connection, else the variable FORWARD_TOKEN",
        holds="secret",
    )
    ca_file: str = kind.file("PEM certificates to trust the hub by, instead of the system's roots", holds="roots")
    client_cert_file: str = kind.file("PEM certificate to present to the hub", holds="certificate")
    client_key_file: str = kind.file("its private key, unless it is in the same file", holds="secret")
    server_name: str = kind.text("the name in the hub's certificate, if it differs from the URL", metavar="NAME")
    connect_timeout_s: float = kind.seconds(
        "time from the dial to the hub's response", default=30.0, low=0.1, high=3600
    )
    max_connections: int = kind.integer(
        "local connections at once, others are reset", default=1000, low=1, high=1_000_000, unit="connections"
    )
    drain_grace_s: float = kind.seconds(_DRAIN_HELP, default=DRAIN_GRACE_S, low=0, high=3600)

    rules: ClassVar = (
        Rule(
            ("client_key_file", "client_cert_file"),
            lambda key, cert: key and not cert,
            "must be set together with client_cert_file",
        ),
        *(
            Rule(
                (name, "hub"),
                lambda value, hub: value and hub.startswith("http:"),
                "must be set together with an https URL for hub",
            )
            for name in ("ca_file", "client_cert_file", "server_name")
        ),
    )


@dataclasses.dataclass(frozen=True)
class ProcessConfig(Checked):
    """The settings of the command line itself. They have no effect on an Agent in another program's loop."""

    headings: ClassVar = {"log_level": _PROCESS}

    log_level: str = kind.applied(
        kind.choice("lowest level of the log on standard error", ("debug", "info", "warning", "error"), default="info")
    )
    loop: str = kind.choice(
        "the event loop, where auto is uvloop if it is installed, or winloop on Windows",
        ("auto", "uvloop", "asyncio"),
        default="auto",
    )


COMMANDS: Mapping[str, type[Checked]] = MappingProxyType(
    {"run": AgentConfig, "hub": HubConfig, "proxy": ProxyConfig, "forward": ForwardConfig}
)
"""Each command's configuration. A setting of one command is an error in the file of another."""
