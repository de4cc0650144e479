"""Users' own Router, RequestProcessor and CertificateProvider, by name or as arguments, and the defaults."""

from __future__ import annotations

import logging
import ssl
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from agent import AgentConfig
from agent.errors import ConfigError, Refused
from agent.messages import RequestHead, Target
from agent.policy.assembly import make_policy
from agent.policy.identity import Anonymous
from agent.policy.kubernetes import KubernetesProcessor
from agent.policy.plugins import load_part
from agent.policy.router import KubernetesRouter, StaticRouter
from agent.policy.trust import FileTrust

from .gate import Answer, Gate, bearer

HUB: dict[str, Any] = {"hub_address": "127.0.0.1:1", "cluster_name": "c1", "insecure": True}


class OwnRouter:
    target = "http://127.0.0.1:1"

    def route(self, request: RequestHead) -> Target:
        return Target(self.target + request.target.decode())


class AsyncRouter(OwnRouter):
    async def route(self, request: RequestHead) -> Target:  # type: ignore[override]
        return super().route(request)


class OwnProcessor:
    def process(self, request: RequestHead, target: Target) -> RequestHead:
        request.headers.append((b"X-Own", b"1"))
        return request


class AsyncProcessor(OwnProcessor):
    async def process(self, request: RequestHead, target: Target) -> RequestHead:  # type: ignore[override]
        return super().process(request, target)


class Refuser:
    async def process(self, request: RequestHead, target: Target) -> RequestHead:
        raise Refused(403, "not you")


class Breaker:
    def process(self, request: RequestHead, target: Target) -> RequestHead:
        raise RuntimeError("a secret")


class OwnTrust:
    generation = 7

    def __init__(self) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def ssl_context(self, target: Target) -> ssl.SSLContext:
        return self.context


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module `users_own` with everything above in it."""
    found = types.ModuleType("users_own")
    for each in (OwnRouter, AsyncRouter, OwnProcessor, AsyncProcessor, Refuser, Breaker, OwnTrust):
        setattr(found, each.__name__, each)
    found.router = OwnRouter()  # type: ignore[attr-defined]
    found.make_router = lambda: found.router  # type: ignore[attr-defined]
    found.nothing = object()  # type: ignore[attr-defined]
    found.fails = lambda: 1 / 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_own", found)
    return found


@pytest.mark.parametrize("name", ["router", "OwnRouter", "make_router", "AsyncRouter"])
def test_a_part_is_an_object_a_class_or_a_function_that_gives_it(module: types.ModuleType, name: str) -> None:
    policy = make_policy(AgentConfig(router=f"users_own:{name}", **HUB))
    assert isinstance(policy.router, OwnRouter)
    assert isinstance(policy.processor, Anonymous)


def test_every_part_can_be_ones_own(module: types.ModuleType) -> None:
    policy = make_policy(
        AgentConfig(
            router="users_own:OwnRouter",
            request_processor="users_own:OwnProcessor",
            certificate_provider="users_own:OwnTrust",
            **HUB,
        )
    )
    assert isinstance(policy.processor, OwnProcessor)
    assert isinstance(policy.trust, OwnTrust)
    assert policy.generation == 7
    assert policy.ssl_context(Target("https://h")) is policy.trust.context


def test_arguments_win_over_names(module: types.ModuleType) -> None:
    router, processor, trust = OwnRouter(), OwnProcessor(), OwnTrust()
    policy = make_policy(
        AgentConfig(router="users_own:nothing", request_processor="users_own:nothing", **HUB),
        router=router,
        request_processor=processor,
        certificate_provider=trust,
    )
    assert (policy.router, policy.processor, policy.trust) == (router, processor, trust)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("router", "users_own:nothing", "has no route"),
        ("router", "users_own:missing", "module:name"),
        ("router", "no_such_module:x", "no_such_module"),
        ("router", "users_own:fails", "without arguments"),
        ("router", "users_own:OwnProcessor", "has no route"),
        ("request_processor", "users_own:OwnRouter", "has no process"),
        ("certificate_provider", "users_own:OwnRouter", "has no ssl_context"),
    ],
)
def test_a_part_that_isnt_one_names_its_field(module: types.ModuleType, field: str, value: str, said: str) -> None:
    settings: dict[str, Any] = {"routes": [("/", "http://h")]} if field != "router" else {}
    with pytest.raises(ConfigError, match=said) as caught:
        make_policy(AgentConfig(**{field: value, **settings, **HUB}))
    assert (caught.value.field, caught.value.source) == (field, value)


@pytest.mark.parametrize("value", ["nomodule", "a:", ":b", 5])
def test_a_name_that_is_none_is_said_by_the_configuration(value: Any) -> None:
    with pytest.raises(ConfigError, match="module:name"):
        AgentConfig(router=value, **HUB)


def test_a_router_and_routes_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="together"):
        AgentConfig(router="a:b", routes=[("/", "http://h")], **HUB)


def test_none_stays_none() -> None:
    assert load_part("router", None, "route") is None


@pytest.mark.parametrize(
    ("router", "processor", "status"),
    [
        ("OwnRouter", "OwnProcessor", 200),
        ("AsyncRouter", "OwnProcessor", 200),
        ("OwnRouter", "AsyncProcessor", 200),
        ("AsyncRouter", "AsyncProcessor", 200),
        ("AsyncRouter", "Refuser", 403),
        ("AsyncRouter", "Breaker", 503),
        ("OwnRouter", "Breaker", 503),
    ],
)
async def test_sync_and_async_parts_serve(
    module: types.ModuleType, clusters: Callable[..., Any], router: str, processor: str, status: int
) -> None:
    async with clusters() as (managed, hub):
        module.OwnRouter.target = managed.url
        async with Gate(
            managed,
            hub,
            router=f"users_own:{router}",
            request_processor=f"users_own:{processor}",
            target_ca_file=[str(managed.ca_file)],
        ) as gate:
            answer: Answer = await gate.ask(bearer("anything"), path="/x?y")
            assert answer.status == status
            assert b"secret" not in answer.body
            if status == 200:
                (received,) = managed.received
                assert (received.target, received.values(b"x-own")) == ("/x?y", [b"1"])
            else:
                assert managed.received == []


# The defaults ------------------------------------------------------------------------------------------------


def test_routes_alone_authenticate_nobody_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        policy = make_policy(AgentConfig(routes=[("/", "http://h")], **HUB))
    assert isinstance(policy.router, StaticRouter)
    assert isinstance(policy.trust, FileTrust)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (policy.managed, policy.hub, policy.services) == (None, None, None)


async def test_kubernetes_is_what_runs_without_routes(gated: Callable[..., Any]) -> None:
    async with gated() as gate:
        assert isinstance(gate.policy.router, KubernetesRouter)
        assert isinstance(gate.policy.processor, KubernetesProcessor)


def test_ones_own_processor_serves_kubernetes_paths(module: types.ModuleType) -> None:
    policy = make_policy(AgentConfig(request_processor="users_own:OwnProcessor", **HUB))
    assert isinstance(policy.router, KubernetesRouter)
    assert isinstance(policy.processor, OwnProcessor)
    assert policy.managed is None


@pytest.mark.parametrize("installed", [True, False])
def test_outside_a_cluster_or_without_the_extra_the_reason_is_said(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("agent.policy.assembly.extra_is_installed", lambda: installed)
    with pytest.raises(ConfigError) as caught:
        make_policy(AgentConfig(**HUB))
    assert "outside a cluster" in str(caught.value)
    assert ("fastpipe-agent[kubernetes]" in str(caught.value)) is not installed
    assert "--route" in str(caught.value)


def test_connect_allow_alone_needs_no_routes_outside_a_cluster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    policy = make_policy(AgentConfig(connect_allow="db:5432", **HUB))
    assert isinstance(policy.router, StaticRouter)
    with pytest.raises(Refused, match="404"):
        policy.router.route(RequestHead("GET", b"/c1/", "1.1", []))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("agent.policy.assembly.extra_is_installed", lambda: False)
    with pytest.raises(ConfigError, match="Kubernetes"):
        make_policy(AgentConfig(connect_allow="db:5432", **HUB))


def test_in_a_cluster_without_the_extra_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr("agent.policy.assembly.extra_is_installed", lambda: False)
    with pytest.raises(ConfigError) as caught:
        make_policy(AgentConfig(**HUB))
    assert "outside" not in str(caught.value)
    assert "pip install 'fastpipe-agent[kubernetes]'" in str(caught.value)
