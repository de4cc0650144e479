"""Puts an agent's policy together from its configuration: router, processor, trust, and what they share."""

from __future__ import annotations

import logging
import os
import ssl
from importlib.util import find_spec
from typing import Any

from ..config.schema import AgentConfig
from ..errors import ConfigError, PolicyError
from ..messages import Target
from .api_server import SERVICE_ACCOUNT, ApiAccess, extra_is_installed, in_cluster
from .identity import RequestProcessor
from .plugins import load_part, load_reference
from .router import API_SERVER, KubernetesRouter, Router, StaticRouter
from .selection import select_policy
from .services import ServiceAllowList
from .trust import CertificateProvider, FileTrust

__all__ = ["Policy", "make_policy"]

logger = logging.getLogger(__name__)

KUBERNETES = "kubernetes"
"""The name of the built-in processor, for use with routes or with a user's router."""


class Policy:
    """Everything that decides who may reach what.

    app: the ASGI application that gets every request, or None.
    services: the allow-list of Kubernetes' router, None for other routers.
    managed, hub: the access to the clusters' API servers, or None.
    """

    def __init__(
        self,
        router: Router,
        processor: RequestProcessor,
        trust: CertificateProvider,
        *,
        app: Any = None,
        services: ServiceAllowList | None = None,
        kubernetes: _Kubernetes | None = None,
    ) -> None:
        self.router = router
        self.processor = processor
        self.trust = trust
        self.app = app
        self.services = services
        self._kubernetes = kubernetes

    @property
    def managed(self) -> ApiAccess | None:
        return None if self._kubernetes is None else self._kubernetes.managed

    @property
    def hub(self) -> ApiAccess | None:
        return None if self._kubernetes is None else self._kubernetes.hub

    @property
    def generation(self) -> int:
        """Increases when the targets' roots of trust or our own certificate change."""
        own = 0
        if self._kubernetes is not None:
            self._kubernetes.managed.refresh()
            own = self._kubernetes.managed.generation
        return self.trust.generation + own

    def ssl_context(self, target: Target) -> ssl.SSLContext:
        """The context for a target: with the agent's certificate only for what goes out under the agent's authority.

        Raises PolicyError.
        """
        if target.client_identity and self._kubernetes is not None:
            return self._kubernetes.managed.own_context()
        context: object = self.trust.ssl_context(target)
        if not isinstance(context, ssl.SSLContext):  # a provider of the user's own
            raise PolicyError("ssl_context", "an ssl.SSLContext", type(context).__name__)
        return context

    async def close(self) -> None:
        """Stop the running reviews and close their connections, even if cancelled."""
        if self._kubernetes is not None:
            await self._kubernetes.close()


class _KubernetesTrust:
    """Trust the API server by its own roots, and services by the cluster's, the extra files' and the system's."""

    def __init__(self, managed: ApiAccess, services: FileTrust, api_server: tuple[str, int]) -> None:
        self._managed = managed
        self._services = services
        self._api_server = api_server

    @property
    def generation(self) -> int:
        return self._services.generation  # the access's own is counted by Policy

    def ssl_context(self, target: Target) -> ssl.SSLContext:
        if (target.host, target.port) == self._api_server:
            return self._managed.context()
        return self._services.ssl_context(target)


class _Kubernetes:
    """The two clusters' API servers, the reviews that are asked of them, and the processor that goes by these.

    url, api_server: the managed cluster's API server, as targets have it. Raises ConfigError, with `field` where there
    is no cluster.
    """

    def __init__(self, config: AgentConfig, field: str) -> None:
        _check_available(config, field)
        from .api_client import ApiClient
        from .kubernetes import KubernetesProcessor
        from .reviews import TokenReviews

        self.managed = _managed_access(config)
        self.url = self.managed.server if config.kubeconfig else API_SERVER
        target = Target(self.url)
        self.api_server = (target.host, target.port)
        self.hub: ApiAccess | None = None
        if config.hub_kubeconfig:
            self.hub = ApiAccess.from_kubeconfig(config.hub_kubeconfig, field="hub_kubeconfig")
        else:
            logger.info("without hub_kubeconfig, only this cluster's own tokens are known")
        at_once, timeout_s = config.token_reviews_at_once, config.token_review_timeout_s
        self.clients = [
            ApiClient(access, at_once=at_once, timeout_s=timeout_s)
            for access in (self.managed, self.hub)
            if access is not None
        ]
        self.reviews = TokenReviews(
            self.clients[0].create,
            self.clients[1].create if self.hub is not None else None,
            allowed_system_groups=config.allow_hub_system_groups,
            cache_s=config.token_cache_s,
            at_once=at_once,
            timeout_s=timeout_s,
        )
        self.processor = KubernetesProcessor(self.reviews, self.managed, api_server=self.api_server)

    async def close(self) -> None:
        await self.reviews.close()
        for client in self.clients:
            await client.close()


def make_policy(
    config: AgentConfig,
    *,
    router: Router | None = None,
    request_processor: RequestProcessor | None = None,
    certificate_provider: CertificateProvider | None = None,
) -> Policy:
    """Build the policy of an agent. The user's own parts win, given here or named in the configuration.

    Raises ConfigError for an unusable part, and if Kubernetes' paths could only be served without authentication.
    """
    router = router or load_part("router", config.router, "route")
    processor, kubernetes = request_processor, None
    reviewed = processor is None and config.request_processor == KUBERNETES
    if not reviewed:
        processor = processor or load_part("request_processor", config.request_processor, "process")
    trust = certificate_provider or load_part(
        "certificate_provider", config.certificate_provider, "ssl_context", "generation"
    )
    if trust is not None and not isinstance(trust.generation, int):
        expected = f"must have a generation that is a whole number, not {type(trust.generation).__name__}"
        raise ConfigError("certificate_provider", "argument", expected)
    app = _load_app(config)
    if router is None and not config.static_routes and app is None:
        if processor is None and not reviewed and _serves_connect_alone(config):
            router = StaticRouter((), config.cluster_name)
        else:
            return _kubernetes_policy(config, processor, trust)
    if reviewed:
        kubernetes = _Kubernetes(config, "request_processor")
        processor = kubernetes.processor
    router, processor = select_policy(
        cluster=config.cluster_name,
        routes=config.static_routes,
        http2=config.target_http2,
        app=app,
        router=router,
        request_processor=processor,
    )
    if trust is None:
        files = FileTrust(
            config.target_ca_files, cert_file=config.target_client_cert_file, key_file=config.target_client_key_file
        )
        trust = files if kubernetes is None else _KubernetesTrust(kubernetes.managed, files, kubernetes.api_server)
    return Policy(router, processor, trust, app=app, kubernetes=kubernetes)


def _kubernetes_policy(
    config: AgentConfig, processor: RequestProcessor | None, trust: CertificateProvider | None
) -> Policy:
    """Kubernetes' router, with our processor unless the user brings one."""
    kubernetes = _Kubernetes(config, "route") if processor is None else None
    services = ServiceAllowList(config.service_allow_file)
    url = API_SERVER if kubernetes is None else kubernetes.url
    router = KubernetesRouter(config.cluster_name, allows=services.allows, api_server=url)
    if trust is None:
        files = [*config.target_ca_files]
        cluster_ca = os.path.join(SERVICE_ACCOUNT, "ca.crt")
        if os.path.exists(cluster_ca):
            files.insert(0, cluster_ca)
        services_trust = FileTrust(files, system_roots=config.system_roots)
        trust = services_trust
        if kubernetes is not None:
            trust = _KubernetesTrust(kubernetes.managed, services_trust, kubernetes.api_server)
    if kubernetes is not None:
        processor = kubernetes.processor
    assert processor is not None
    return Policy(router, processor, trust, services=services, kubernetes=kubernetes)


def _load_app(config: AgentConfig) -> Any:
    """The application of the configuration, or None. Raises ConfigError, also without the extra that serves it."""
    if config.app is not None and find_spec("uvicorn") is None:
        raise ConfigError("app", "argument", "the extra is missing (pip install 'fastpipe-agent[asgi]')")
    return load_reference("app", config.app) if isinstance(config.app, str) else config.app


def _serves_connect_alone(config: AgentConfig) -> bool:
    """Whether the agent is for CONNECT, with no API server that it could be for. Every path is then 404."""
    return bool(config.connect_allow) and not (config.kubeconfig or config.service_allow_file or in_cluster())


def _managed_access(config: AgentConfig) -> ApiAccess:
    if config.kubeconfig:
        return ApiAccess.from_kubeconfig(config.kubeconfig, field="kubeconfig")
    return ApiAccess.from_service_account(SERVICE_ACCOUNT)


def _check_available(config: AgentConfig, field: str) -> None:
    """Raise ConfigError where Kubernetes' API server can't be asked: why, and what can be done instead."""
    reasons = []
    if not config.kubeconfig and not in_cluster():
        reasons.append("this is outside a cluster (set --kubeconfig FILE)")
    if not extra_is_installed():
        reasons.append("the extra is missing (pip install 'fastpipe-agent[kubernetes]')")
    if not reasons:
        return
    said = ", and ".join(reasons)
    if field == "route":
        expected = (
            f"without routes, the targets are Kubernetes', which can't be authenticated for: {said}. "
            "Else give --route PREFIX=URL, or --connect-allow for CONNECT alone"
        )
    else:
        expected = f"{KUBERNETES} asks a cluster's API server who a request's user is: {said}"
    raise ConfigError(field, "--route" if field == "route" else "configuration", expected)
