"""What operators set: one declaration for each field of the agent, the hub and the proxy command.

A field, its flag, its variable and its TOML key are one name (`hub_address`, `--hub-address`, `AGENT_HUB_ADDRESS`); a
table's fields carry the table's name in front (`--memory-comm-buffer-size`). The hub's variables begin with `HUB_`.
Making one of these objects checks it: ConfigErrors names every wrong field. `settings.py` has the machinery.
"""

# ruff: noqa: RUF009  (each call makes one dataclass field, as dataclasses.field does)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, cast

from ..syntax import Address, Route, is_loopback, parse_address
from . import fields as kind
from .settings import Checked, ConfigErrors, Rule, load

__all__ = [
    "COMMANDS",
    "AgentConfig",
    "ConfigErrors",
    "HubConfig",
    "LimitsConfig",
    "MemoryCommConfig",
    "ProcessConfig",
    "ProxyConfig",
    "TargetLimitsConfig",
    "limits_of",
    "load_config",
]

T = TypeVar("T")
Routes = Sequence[str | tuple[str, str]] | Mapping[str, str]

DRAIN_GRACE_S = 25.0
"""Below Kubernetes' default terminationGracePeriodSeconds of 30, so that DRAIN still goes out."""

_DAY_S = 86400.0
_DRAIN_HELP = "how long requests in flight may go on after the first SIGTERM"
_ROUTE_HELP = "requests below this path prefix go to this URL (several times; the longest prefix wins)"
_TARGET_CA_HELP = "PEM certificates that targets are trusted by, beside the system's; reloaded when they change"
_TARGET_CERT_HELP = "PEM certificate that the targets of routes are shown over TLS; reloaded when it changes"
_TARGET_KEY_HELP = "its private key, where it isn't in the same file"


def _check_socket_path(path: str) -> None:
    # sun_path has 108 bytes on Linux and 104 on macOS and the BSDs, the closing NUL included.
    if not 0 < len(path.encode()) <= 103:
        raise ValueError(f"must be a path of at most 103 bytes, not {path!r}")


@dataclasses.dataclass(frozen=True)
class MemoryCommConfig(Checked):
    """The proposal's limits, which hold in both modes, and the share of connections that go through memory."""

    buffer_size: int = kind.integer(
        "bytes that a connection's pipe or socket holds in each direction before its writer is paused",
        default=65536,
        low=4096,
        high=64 * 1024 * 1024,
        unit="bytes",
    )
    max_connections: int = kind.integer(
        "connections open at once, over memory or UDS; past it requests are answered 503",
        default=1000,
        low=1,
        high=1_000_000,
        unit="connections",
    )
    enable_metrics: bool = kind.boolean(
        "measure requests, and show that and all counts at /metrics of the health address (needs the extra [metrics])"
    )
    canary_percent: int | None = kind.integer(
        "share of new connections that go through memory, the rest through Unix sockets",
        default=None,
        low=0,
        high=100,
        unit="percent",
        unset="default: 100 with use_memory_comm, else 0",
    )


@dataclasses.dataclass(frozen=True)
class LimitsConfig(Checked):
    """What clients may send, and how long everybody may take. What is established (a watch, an upgrade) has no end."""

    request_head_bytes: int = kind.integer(
        "a request's head; past it 431", default=65536, low=1024, high=1024 * 1024, unit="bytes"
    )
    request_fields: int = kind.integer(
        "header lines of a request; past it 431", default=256, low=8, high=10_000, unit="lines"
    )
    target_bytes: int = kind.integer(
        "a request's target; past it 414", default=16384, low=256, high=1024 * 1024, unit="bytes"
    )
    head_timeout_s: float = kind.seconds(
        "from a request head's first byte to its last; past it 408", default=10.0, low=0.1, high=3600
    )
    body_timeout_s: float = kind.seconds(
        "without a byte of a request's body that is due; past it 408", default=60.0, low=0.1, high=_DAY_S
    )
    keep_alive_s: float = kind.seconds(
        "how long a client's connection may be idle between requests", default=75.0, low=0.1, high=_DAY_S
    )
    write_timeout_s: float = kind.seconds(
        "how long a peer may take nothing of what is written to it", default=60.0, low=0.1, high=_DAY_S
    )
    half_closed_s: float = kind.seconds(
        "how long a target may send nothing once its client has sent its end; then the request ends",
        default=5.0,
        low=0.1,
        high=_DAY_S,
    )
    first_byte_timeout_s: float = kind.seconds(
        "from a request's end to the whole head of its response; past it 504", default=60.0, low=0.1, high=_DAY_S
    )
    connect_timeout_s: float = kind.seconds(
        "for a connection to a target; past it 504", default=10.0, low=0.1, high=3600
    )


@dataclasses.dataclass(frozen=True)
class TargetLimitsConfig(LimitsConfig):
    """Limits where targets are dialled over the network."""

    tls_timeout_s: float = kind.seconds("for TLS with a target; past it 504", default=10.0, low=0.1, high=3600)
    upstream_idle_s: float = kind.seconds(
        "how long an unused connection to a target is kept", default=60.0, low=0.1, high=_DAY_S
    )
    idle_upstreams_per_target: int = kind.integer(
        "unused connections kept for each target", default=1000, low=1, high=100_000, unit="connections"
    )


def limits_of(config: LimitsConfig) -> dict[str, Any]:
    """The limits by name: the fields are called as the proxy's are."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


_TARGET_KEY_RULE = Rule(
    ("target_client_key_file", "target_client_cert_file"),
    lambda key, cert: key and not cert,
    "must be set together with target_client_cert_file",
)


class Targets:
    """What configurations with routes say of where these lead."""

    routes: Any
    target_ca_file: Any

    @property
    def static_routes(self) -> tuple[Route, ...]:
        """routes as (prefix, URL), without trailing slashes."""
        return cast("tuple[Route, ...]", self.routes)  # the field has made them so, however they were written

    @property
    def target_ca_files(self) -> tuple[str, ...]:
        """target_ca_file as paths."""
        return tuple(self.target_ca_file)


@dataclasses.dataclass(frozen=True)
class AgentConfig(Targets, Checked):
    """`fastpipe-agent run`: the hub, how it is dialled, and where requests go."""

    hub_address: str | Sequence[str] = kind.addresses("the hub's gRPC address; with several, a tunnel to each")
    cluster_name: str = kind.label("this cluster's name at the hub: one RFC 1123 label")
    insecure: bool = kind.boolean("dial the hub in plaintext (HTTP/2 with prior knowledge)")
    hub_ca_file: str = kind.file(
        "PEM certificates that the hub is trusted by, instead of the system's roots", holds="roots"
    )
    hub_client_cert_file: str = kind.file("PEM certificate that the agent shows to the hub", holds="certificate")
    hub_client_key_file: str = kind.file("its private key, where it isn't in the same file", holds="secret")
    hub_server_name: str = kind.text("the name in the hub's certificate, if not the address's", metavar="NAME")
    hub_token_file: str = kind.file(
        "a token, sent to the hub as `authorization: Bearer`; read for each session", holds="secret"
    )
    use_memory_comm: bool = kind.boolean("connect tunnel and proxy by pipes in memory rather than Unix sockets")
    memory_comm: MemoryCommConfig = kind.group(MemoryCommConfig)
    limits: TargetLimitsConfig = kind.group(TargetLimitsConfig)
    uds_socket_path: str = kind.text(
        "the proxy's Unix socket (default: in a private directory of its own)",
        metavar="PATH",
        check=_check_socket_path,
    )
    routes: Routes = kind.routes(_ROUTE_HELP, name="route")
    app: Any = kind.reference("an ASGI application in this process that gets every request")
    target_ca_file: str | Sequence[str] = kind.files(_TARGET_CA_HELP, holds="roots")
    target_client_cert_file: str = kind.file(_TARGET_CERT_HELP, holds="certificate")
    target_client_key_file: str = kind.file(_TARGET_KEY_HELP, holds="secret")
    system_roots: bool = kind.boolean("trust the system's roots for Kubernetes' services, too (other routes always do)")
    router: Any = kind.reference(
        "a Router of one's own, in place of routes", what="an object with `route`", methods=("route",)
    )
    request_processor: Any = kind.reference(
        "who asks, and as whom the request goes on: a RequestProcessor of one's own, or kubernetes for token reviews "
        "with routes or a router, too",
        what="an object with `process`",
        methods=("process",),
        words=("kubernetes",),
    )
    certificate_provider: Any = kind.reference(
        "a CertificateProvider of one's own: what targets are trusted by",
        what="an object with `ssl_context` and `generation`",
        methods=("ssl_context", "generation"),
    )
    kubeconfig: str = kind.file(
        "how this cluster's API server is reached (default: as a pod, by its service account)", holds="secret"
    )
    hub_kubeconfig: str = kind.file(
        "how the hub cluster's API server is asked who its users are (default: not at all)", holds="secret"
    )
    service_allow_file: str = kind.file(
        "services that may be reached: lines of NAMESPACE/SERVICE[:PORT]; read anew when it changes (default: none may)"
    )
    allow_hub_system_groups: str | Sequence[str] = kind.texts(
        "groups of the hub's that keep their names here although they start with system:", metavar="GROUP"
    )
    token_cache_s: float = kind.seconds("how long a token's review is remembered", default=10, low=0, high=300)
    token_review_timeout_s: float = kind.seconds(
        "how long a token's review may take; past it the answer is 503", default=10, low=0.1, high=60
    )
    token_reviews_at_once: int = kind.integer(
        "reviews of different tokens under way at once; more wait", default=32, low=1, high=1000, unit="reviews"
    )
    health_address: str = kind.address("where /healthz and /readyz are served (default: nowhere)", default="")
    drain_grace_s: float = kind.seconds(_DRAIN_HELP, default=DRAIN_GRACE_S, low=0, high=3600)

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
            "must be set together with route: other targets are shown a kubeconfig's, or a certificate_provider's",
        ),
        Rule(
            ("target_client_cert_file", "certificate_provider"),
            lambda cert, provider: cert and provider is not None,
            "must not be set with certificate_provider, which says itself what targets are shown",
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
        """The share of new connections that go through memory: the canary's where it is set, else all or none."""
        canary = self.memory_comm.canary_percent
        if canary is not None:
            return canary
        return 100 if self.use_memory_comm else 0

    @property
    def hub_addresses(self) -> tuple[Address, ...]:
        """hub_address as hosts and ports, at least one."""
        return tuple(map(parse_address, self.hub_address))


@dataclasses.dataclass(frozen=True)
class HubConfig(Checked):
    """`fastpipe-agent hub`: its two ports, and which agents it lets in."""

    variable_prefix: ClassVar = "HUB_"

    grpc_address: str = kind.address("where agents open their tunnels (port 0: a free one)", default="127.0.0.1:8443")
    http_address: str = kind.address("where users send requests to /<cluster>/…", default="127.0.0.1:8080")
    grpc_cert_file: str = kind.file("PEM certificate chain of the gRPC port (none: plaintext)", holds="certificate")
    grpc_key_file: str = kind.file("its private key, where it isn't in the same file", holds="secret")
    http_cert_file: str = kind.file("PEM certificate chain of the HTTP port (none: plaintext)", holds="certificate")
    http_key_file: str = kind.file("its private key, where it isn't in the same file", holds="secret")
    user_ca_file: str = kind.file("PEM CA of users' certificates: each must show one at the HTTP port", holds="roots")
    allow_any_user: bool = kind.boolean("with user_ca_file, let users in that show no certificate")
    cluster_parser: Any = kind.reference(
        "what names a request's cluster, in place of the first segment of its path",
        what="a function from a RequestHead to a cluster's name",
    )
    max_clients: int = kind.integer(
        "users' connections at once; past it the answer is 503",
        default=10_000,
        low=1,
        high=1_000_000,
        unit="connections",
    )
    max_agents: int = kind.integer(
        "agents' tunnels at once; past it new ones are refused",
        default=5000,
        low=1,
        high=1_000_000,
        unit="tunnels",
    )
    max_sessions_per_cluster: int = kind.integer(
        "tunnels of one cluster at once; past it new ones are refused",
        default=32,
        low=1,
        high=100_000,
        unit="tunnels",
    )
    limits: LimitsConfig = kind.group(LimitsConfig)
    agent_ca_file: str = kind.file(
        "PEM CA of agents' certificates, whose CN or DNS name is their cluster's name", holds="roots"
    )
    agent_token_file: str = kind.file(
        "agents' tokens: lines of a cluster's name, white space, its token", holds="secret"
    )
    allow_any_agent: bool = kind.boolean("let agents in that show nothing, also off loopback")
    health_address: str = kind.address("where /healthz and /readyz are served (default: nowhere)", default="")
    enable_metrics: bool = kind.boolean(
        "measure requests, and show that and all counts at /metrics of the health address (needs the extra [metrics])"
    )
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
            "must be set together with http_cert_file: a client certificate is only shown over TLS",
        ),
        Rule(
            ("allow_any_user", "user_ca_file"),
            lambda anyone, ca: anyone and not ca,
            "must be set together with user_ca_file: without one anybody is let in",
        ),
        Rule(
            ("agent_ca_file", "grpc_cert_file"),
            lambda ca, cert: ca and not cert,
            "must be set together with grpc_cert_file: a client certificate is only shown over TLS",
        ),
        Rule(
            ("grpc_address", "agent_ca_file", "agent_token_file", "allow_any_agent"),
            lambda address, ca, tokens, anyone: (
                not (ca or tokens or anyone or is_loopback(parse_address(address, listen=True).host))
            ),
            "must be a loopback address, or agents must be authenticated (--agent-ca-file, --agent-token-file): "
            "any agent could take any cluster's requests. --allow-any-agent allows that",
        ),
    )

    @property
    def authenticates_agents(self) -> bool:
        """Whether an agent can show who it is."""
        return bool(self.agent_ca_file or self.agent_token_file)

    @property
    def lets_anyone_in(self) -> bool:
        """Whether an agent that shows nothing is let in: asked for, or on loopback with nothing to show."""
        return self.allow_any_agent or not self.authenticates_agents


@dataclasses.dataclass(frozen=True)
class ProxyConfig(Targets, Checked):
    """`fastpipe-agent proxy`: the agent's proxy alone on a TCP port, no cluster name in the paths."""

    listen: str = kind.address("where the proxy listens (port 0: a free one)", default="127.0.0.1:8080")
    routes: Routes = kind.routes(_ROUTE_HELP, name="route")
    target_ca_file: str | Sequence[str] = kind.files(_TARGET_CA_HELP, holds="roots")
    target_client_cert_file: str = kind.file(_TARGET_CERT_HELP, holds="certificate")
    target_client_key_file: str = kind.file(_TARGET_KEY_HELP, holds="secret")
    max_clients: int = kind.integer(
        "clients' connections at once; past it the answer is 503",
        default=10_000,
        low=1,
        high=1_000_000,
        unit="connections",
    )
    limits: TargetLimitsConfig = kind.group(TargetLimitsConfig)
    drain_grace_s: float = kind.seconds(_DRAIN_HELP, default=DRAIN_GRACE_S, low=0, high=3600)

    rules: ClassVar = (
        Rule(("route",), lambda routes: not routes, "must be set: at least one PREFIX=URL"),
        _TARGET_KEY_RULE,
    )


@dataclasses.dataclass(frozen=True)
class ProcessConfig(Checked):
    """What the command line itself uses: nothing of this matters to who runs an Agent in a loop of their own."""

    log_level: str = kind.choice(
        "what is logged to standard error", ("debug", "info", "warning", "error"), default="info"
    )
    loop: str = kind.choice(
        "the event loop; auto is uvloop where it is installed, on Windows winloop",
        ("auto", "uvloop", "asyncio"),
        default="auto",
    )


COMMANDS: Mapping[str, type[Checked]] = MappingProxyType({"run": AgentConfig, "hub": HubConfig, "proxy": ProxyConfig})
"""Each command's configuration: what is a setting of one is an error in the file of another."""


def load_config(
    cls: type[T], *, flags: Mapping[str, Any], environ: Mapping[str, str], config_file: str = ""
) -> tuple[T, ProcessConfig]:
    """A command's configuration and its process's, from flags, environment, TOML file and defaults.

    flags: by field name (`memory_comm.buffer_size`), None where not given. Raises ConfigErrors with all that is wrong.
    """
    (config, process), _sources = load(
        (cls, ProcessConfig), flags=flags, environ=environ, config_file=config_file, others=COMMANDS
    )
    return config, process
