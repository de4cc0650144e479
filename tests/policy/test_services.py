"""The allow-list of services: requests reach only services on it, and a change reloads it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError, Refused
from agent.messages import RequestHead, Target
from agent.policy.router import KubernetesRouter
from agent.policy.services import ServiceAllowList, parse_services

from .gate import Gate, bearer

CONTENT = """\
# what the hub's users may reach
monitoring/prometheus:9090
  web/shop   # every port

web/api:443
"""


def listed(path: Path, content: str = CONTENT) -> ServiceAllowList:
    path.write_text(content)
    return ServiceAllowList(str(path), check_interval_s=0)


@pytest.mark.parametrize(
    ("namespace", "service", "port", "allowed"),
    [
        (b"monitoring", b"prometheus", 9090, True),
        (b"monitoring", b"prometheus", 9091, False),
        (b"monitoring", b"prometheus", 443, False),
        (b"web", b"shop", 443, True),
        (b"web", b"shop", 8443, True),
        (b"web", b"api", 443, True),
        (b"web", b"api", 8443, False),
        (b"web", b"prometheus", 9090, False),
        (b"monitoring", b"shop", 443, False),
        (b"", b"", 0, False),
    ],
)
def test_only_what_is_listed_is_allowed(
    namespace: bytes, service: bytes, port: int, allowed: bool, tmp_path: Path
) -> None:
    assert listed(tmp_path / "list").allows(namespace, service, port) is allowed


@pytest.mark.parametrize("content", ["", "# nothing\n", "\n\n"])
def test_an_empty_list_allows_nothing(content: str, tmp_path: Path) -> None:
    assert not listed(tmp_path / "list", content).allows(b"web", b"shop", 443)


def test_without_a_file_nothing_is_allowed() -> None:
    assert not ServiceAllowList().allows(b"web", b"shop", 443)


@pytest.mark.parametrize(
    "line",
    [
        "web",
        "web/",
        "/shop",
        "web/shop:",
        "web/shop:0",
        "web/shop:65536",
        "web/shop:https",
        "web/shop:-1",
        "Web/shop",
        "web/shop.x",
        "*/shop",
        "web/*",
        "web/shop:443:1",
        "web shop",
        "web/shop 443",
        "a/b/c",
        "web/sh%6fp",
        "wéb/shop",
    ],
)
def test_a_wrong_line_is_named(line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 2 must be") as caught:
        listed(tmp_path / "list", f"web/shop\n{line}\n")
    assert caught.value.field == "service_allow_file"
    with pytest.raises(ValueError, match="line 1"):
        parse_services([line.encode()])


def test_a_missing_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readable file"):
        ServiceAllowList(str(tmp_path / "none"))


def test_a_change_is_seen_and_a_broken_one_leaves_the_last_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "list"
    services = listed(path)
    assert not services.allows(b"web", b"new", 443)
    path.write_text("web/new\n")
    assert services.allows(b"web", b"new", 443)
    assert not services.allows(b"web", b"shop", 443)
    for _ in range(3):
        path.write_text("everything\n")
        assert services.allows(b"web", b"new", 443)
    assert services.problem is not None
    assert [record.levelno for record in caplog.records].count(logging.ERROR) <= 3
    path.unlink()
    assert services.allows(b"web", b"new", 443)
    path.write_text("")
    assert not services.allows(b"web", b"new", 443)
    assert services.problem is None


def test_another_file_is_taken_or_nothing_changes(tmp_path: Path) -> None:
    services = listed(tmp_path / "list")
    (tmp_path / "other").write_text("web/other")
    services.use(str(tmp_path / "other"))
    assert services.allows(b"web", b"other", 1)
    (tmp_path / "broken").write_text("x")
    with pytest.raises(ConfigError):
        services.use(str(tmp_path / "broken"))
    assert services.allows(b"web", b"other", 1)
    services.use("")
    assert not services.allows(b"web", b"other", 1)


# In the router ----------------------------------------------------------------------------------------------------


def routed(router: KubernetesRouter, target: str) -> str | int:
    try:
        found = router.route(RequestHead("GET", target.encode(), "1.1", []))
    except Refused as refused:
        return refused.status
    assert isinstance(found, Target)
    return found.url


def test_the_router_goes_by_the_list(tmp_path: Path) -> None:
    path = "/c1/api/v1/namespaces/{}/services/{}/proxy-service/x?y"
    router = KubernetesRouter("c1", allows=listed(tmp_path / "list").allows)
    assert routed(router, path.format("web", "https:shop:8443")) == "https://shop.web.svc:8443/x?y"
    assert routed(router, path.format("web", "https:api")) == "https://api.web.svc:443/x?y"
    assert routed(router, path.format("web", "https:api:8443")) == 403
    assert routed(router, path.format("web", "http:shop:80")) == 403
    assert routed(router, path.format("kube-system", "https:shop:443")) == 403
    assert routed(KubernetesRouter("c1"), path.format("web", "https:shop:8443")) == 403


def test_listing_the_api_server_opens_nothing(tmp_path: Path) -> None:
    router = KubernetesRouter("c1", allows=listed(tmp_path / "list", "default/kubernetes\n").allows)
    path = "/c1/api/v1/namespaces/default/services/https:kubernetes:443/proxy-service/api"
    assert routed(router, path) == 403


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.loops("uvloop")  # asyncio reports the stand-in's failed handshake as unhandled
async def test_a_service_gets_the_clients_authorization_and_no_claims(
    clusters: Callable[..., Any], tmp_path: Path, trusted: bool
) -> None:
    """Through the real proxy. The hub's stand-in plays the service, whose name has no address here."""
    (tmp_path / "list").write_text("ns/web\n")
    async with clusters() as (managed, service):
        trust = [str(service.ca_file)] if trusted else []
        async with Gate(managed, service, service_allow_file=str(tmp_path / "list"), target_ca_file=trust) as gate:
            route = gate.policy.router.route

            def to_the_stand_in(request: RequestHead) -> Target:
                target = route(request)
                assert isinstance(target, Target)
                assert target.host == "web.ns.svc"
                return Target(service.url + target.path.decode())

            gate.proxy.route = to_the_stand_in
            answer = await gate.ask(
                bearer("whoever"),
                b"Impersonate-User: root",
                b"X-Remote-User: root",
                path="/c1/api/v1/namespaces/ns/services/https:web:443/proxy-service/a?b",
            )
            assert answer.status == (200 if trusted else 502)
            assert managed.received == managed.reviews == service.reviews == []
            if trusted:
                (received,) = service.received
                assert received.target == "/a?b"
                assert received.values(b"authorization") == [b"Bearer whoever"]
                assert not received.like(b"impersonate-", b"x-remote-")
            denied = await gate.ask(path="/c1/api/v1/namespaces/ns/services/https:other:443/proxy-service/")
            assert denied.status == 403
