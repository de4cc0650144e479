"""`fastpipe-agent check`: one line for each check, and an exit code that shows whether all is well."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from agent import AgentConfig, HubConfig
from agent.cli.checks import run_checks
from agent.hub.hub import Hub

from .api_server import silent

ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "HUB_", "KUBERNETES_"))}


@contextlib.asynccontextmanager
async def running_hub(**config: Any) -> AsyncIterator[int]:
    """A hub; the port of its gRPC side."""
    ports: list[int] = []
    hub = Hub(
        HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0", **config),
        on_listening=lambda kind, host, port: ports.append(port),
    )
    task = asyncio.create_task(hub.run())
    while len(ports) < 2 and not task.done():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    try:
        yield ports[0]
    finally:
        task.cancel()
        await asyncio.wait([task])


async def lines(config: AgentConfig) -> list[str]:
    return [str(result) async for result in run_checks(config)]


def starts(found: list[str]) -> list[str]:
    """The lines without what follows the colon."""
    return [line.split(": ")[0] for line in found]


async def test_everything_is_tried_in_its_order(clusters: Callable[..., Any]) -> None:
    async with clusters() as (managed, hub), running_hub() as port:
        config = AgentConfig(
            hub_address=f"localhost:{port}",
            cluster_name="c1",
            insecure=True,
            kubeconfig=managed.kubeconfig(),
            hub_kubeconfig=hub.kubeconfig(),
        )
        found = await lines(config)
        assert starts(found) == [
            "ok   configuration",
            f"ok   hub localhost:{port} name",
            f"ok   hub localhost:{port} connection",
            f"ok   hub localhost:{port} tunnel",
            "ok   managed cluster API server",
            "ok   managed cluster may create tokenreviews",
            "ok   managed cluster may impersonate users",
            "ok   managed cluster may impersonate groups",
            "ok   hub cluster API server",
            "ok   hub cluster may create tokenreviews",
        ]
        assert "own-token" not in "".join(found)
        assert managed.received == hub.received == []
        assert managed.reviews == hub.reviews == []


async def test_what_the_agent_may_not_do_fails(clusters: Callable[..., Any]) -> None:
    async with clusters() as (managed, hub), running_hub() as port:
        managed.denied = {("impersonate", "groups")}
        hub.own_tokens = set()
        config = AgentConfig(
            hub_address=f"localhost:{port}",
            cluster_name="c1",
            insecure=True,
            kubeconfig=managed.kubeconfig(),
            hub_kubeconfig=hub.kubeconfig(),
        )
        failed = [line for line in await lines(config) if line.startswith("FAIL")]
        assert failed == [
            "FAIL managed cluster may impersonate groups: denied to the agent's credentials",
            "FAIL hub cluster may create tokenreviews: the API server returned 401",
        ]


def rule(resource: str, *names: str, **more: Any) -> dict[str, Any]:
    return {"verbs": ["impersonate"], "apiGroups": [""], "resources": [resource], "resourceNames": list(names)} | more


@pytest.mark.parametrize(
    ("rules", "users", "groups"),
    [
        ([], "FAIL", "FAIL"),
        (
            [rule("users", "alice", "bob"), rule("groups", "devs", "system:authenticated")],
            "ok   managed cluster may impersonate users: allowed for alice, bob only",
            "ok   managed cluster may impersonate groups: allowed for devs, system:authenticated only",
        ),
        (
            [rule("users", *map(str, range(12))), rule("groups", "devs")],
            f"ok   managed cluster may impersonate users: allowed for {', '.join(map(str, range(10)))} and 2 more only",
            "FAIL managed cluster may impersonate groups: allowed for devs only, and not for system:authenticated, "
            "which every user has",
        ),
        (
            [rule("users", "a", verbs=["get"]), rule("groups", "b", apiGroups=["x"]), rule("uids", "c"), 7, {}],
            "FAIL",
            "FAIL",
        ),
        (
            [rule("*", "a", verbs=["*"], apiGroups=["*"])],
            "ok   managed cluster may impersonate users: allowed for a only",
            "FAIL",
        ),
    ],
)
async def test_a_role_that_names_whom_it_allows_is_read(
    clusters: Callable[..., Any], rules: list[Any], users: str, groups: str
) -> None:
    async with clusters() as (managed, hub), running_hub() as port:
        managed.denied = {("impersonate", "users"), ("impersonate", "groups")}
        managed.rules = rules
        config = AgentConfig(
            hub_address=f"localhost:{port}",
            cluster_name="c1",
            insecure=True,
            kubeconfig=managed.kubeconfig(),
            hub_kubeconfig=hub.kubeconfig(),
        )
        found = await lines(config)
        for resource, expected in (("users", users), ("groups", groups)):
            (line,) = [line for line in found if f"may impersonate {resource}" in line]
            assert line == expected or (expected == "FAIL" and line.startswith("FAIL"))


@pytest.mark.loops("uvloop")
async def test_an_api_server_with_another_ca_fails_and_says_why(clusters: Callable[..., Any]) -> None:
    async with clusters() as (managed, hub), running_hub() as port:
        hub.ca_file.write_bytes(trustme.CA().cert_pem.bytes())
        config = AgentConfig(
            hub_address=f"localhost:{port}",
            cluster_name="c1",
            insecure=True,
            kubeconfig=managed.kubeconfig(),
            hub_kubeconfig=hub.kubeconfig(),
        )
        (failed,) = [line for line in await lines(config) if line.startswith("FAIL")]
        assert failed.startswith("FAIL hub cluster API server: TLS with localhost:")
        assert "certificate" in failed


async def test_a_hub_over_tls(clusters: Callable[..., Any], tmp_path: Path, authority: trustme.CA) -> None:
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "hub.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "tokens").write_text("c1 right\n")
    (tmp_path / "token").write_text("right")
    (tmp_path / "wrong").write_text("wrong")
    files = {"grpc_cert_file": str(tmp_path / "hub.pem"), "agent_token_file": str(tmp_path / "tokens")}
    async with clusters() as (managed, _hub), running_hub(**files) as port:
        settings: dict[str, Any] = {
            "cluster_name": "c1",
            "hub_ca_file": str(tmp_path / "ca.pem"),
            "routes": [("/", managed.url)],
            "target_ca_file": str(managed.ca_file),
        }
        config = AgentConfig(hub_address=f"localhost:{port}", hub_token_file=str(tmp_path / "token"), **settings)
        assert {line[:4] for line in await lines(config)} == {"ok  "}
        config = AgentConfig(hub_address=f"localhost:{port}", hub_token_file=str(tmp_path / "wrong"), **settings)
        (failed,) = [line for line in await lines(config) if line.startswith("FAIL")]
        assert failed.startswith(f"FAIL hub localhost:{port} tunnel: ")


@pytest.mark.parametrize(("alpn", "expected"), [("h2", "ok"), ("http/1.1", "FAIL"), ("", "FAIL")])
@pytest.mark.loops("uvloop")
async def test_an_h2_route_needs_a_target_that_chooses_it(
    alpn: str, expected: str, tmp_path: Path, authority: trustme.CA
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    if alpn:
        tls.set_alpn_protocols([alpn])
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=tls)
    target = f"h2://localhost:{server.sockets[0].getsockname()[1]}"
    async with running_hub() as port:
        config = AgentConfig(
            hub_address=f"localhost:{port}",
            cluster_name="c1",
            insecure=True,
            routes=[("/", target)],
            target_ca_file=str(tmp_path / "ca.pem"),
        )
        (line,) = [line for line in await lines(config) if "route /" in line]
        assert line.startswith(expected)
        assert expected == "ok" or "does not choose HTTP/2 by ALPN" in line
    server.close()
    await server.wait_closed()


@pytest.mark.loops("uvloop")  # asyncio in debug mode reports each failed handshake at the server
async def test_certificates_with_wrong_dates_fail_and_are_named(tmp_path: Path, authority: trustme.CA) -> None:
    past = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    for name, ends in (
        ("hub", past),
        ("own", past),
        ("soon", datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)),
    ):
        issued = authority.issue_cert("localhost", common_name="localhost", not_after=ends)
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / name)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "tokens").write_text("c1 right\n")
    async with running_hub(grpc_cert_file=str(tmp_path / "hub"), agent_token_file=str(tmp_path / "tokens")) as port:
        common: dict[str, Any] = {
            "hub_address": f"localhost:{port}",
            "cluster_name": "c1",
            "hub_ca_file": str(tmp_path / "ca.pem"),
            "routes": [("/", "http://localhost:1")],
        }
        found = await lines(AgentConfig(hub_client_cert_file=str(tmp_path / "own"), **common))
        (own,) = [line for line in found if line.startswith("FAIL hub_client_cert_file: certificate has expired")]
        assert "not_after 2026-01-02T00:00:00Z" in own
        (hub,) = [line for line in found if line.startswith(f"FAIL hub localhost:{port} connection: ")]
        assert "the hub's certificate (" in hub
        assert hub.endswith("expired on 2026-01-02")
        found = await lines(AgentConfig(hub_client_cert_file=str(tmp_path / "soon"), **common))
        assert [line for line in found if line.startswith("note hub_client_cert_file: certificate expires soon")]


async def test_what_is_not_there_fails_and_the_rest_is_tried(clusters: Callable[..., Any], tmp_path: Path) -> None:
    async with running_hub() as port:
        (tmp_path / "token").write_text("two words")
        config = AgentConfig(
            hub_address=["no-such-name.invalid:1", f"localhost:{port}", "localhost:1"],
            cluster_name="c1",
            insecure=True,
            routes=[("/", "http://localhost:1")],
        )
        found = await lines(config)
        assert starts(found) == [
            "ok   configuration",
            "FAIL hub no-such-name.invalid:1 name",
            f"ok   hub localhost:{port} name",
            f"ok   hub localhost:{port} connection",
            f"ok   hub localhost:{port} tunnel",
            "ok   hub localhost:1 name",
            "FAIL hub localhost:1 connection",
            "FAIL route /",
        ]
        wrong = AgentConfig(
            hub_address=f"localhost:{port}",
            cluster_name="c1",
            insecure=True,
            routes=[("/", "http://localhost:1")],
            hub_token_file=str(tmp_path / "token"),
        )
        assert starts(await lines(wrong)) == ["FAIL configuration"]


async def test_a_silent_hub_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cli.checks.PROBE_TIMEOUT_S", 0.2)
    peers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda reader, writer: peers.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = AgentConfig(
        hub_address=f"127.0.0.1:{port}", cluster_name="c1", insecure=True, routes=[("/", f"http://127.0.0.1:{port}")]
    )
    assert [line for line in await lines(config) if line.startswith("FAIL")] == [
        f"FAIL hub 127.0.0.1:{port} tunnel: no reply to a probe within 0.2 s"
    ]
    server.close()
    for peer in peers:
        peer.close()
    await server.wait_closed()


async def test_a_silent_api_server_fails_in_time(clusters: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    async with clusters() as (managed, _hub), running_hub() as port:
        monkeypatch.setattr("agent.cli.checks.ACCESS_REVIEWS", "/apis/authentication.k8s.io/v1/tokenreviews")
        monkeypatch.setattr("agent.cli.checks.DIAL_TIMEOUT_S", 0.5)
        managed.on_review = silent
        managed.status_of = lambda token: {}
        config = AgentConfig(
            hub_address=f"localhost:{port}", cluster_name="c1", insecure=True, kubeconfig=managed.kubeconfig()
        )
        failed = [line for line in await lines(config) if line.startswith("FAIL")]
        assert len(failed) == 1
        assert failed[0].startswith("FAIL managed cluster may create tokenreviews: ")


# As a process -----------------------------------------------------------------------------------------------------


async def run_check(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent",
        "check",
        *arguments,
        env=ENVIRON,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode or 0, output.decode(), errors.decode()


@pytest.mark.loops("uvloop")
async def test_the_command_exits_0_1_or_2(clusters: Callable[..., Any]) -> None:
    async with clusters() as (managed, hub), running_hub() as port:
        flags = ["--hub-address", f"localhost:{port}", "--cluster-name", "c1", "--insecure"]
        kube = ["--kubeconfig", managed.kubeconfig(), "--hub-kubeconfig", hub.kubeconfig()]
        code, output, errors = await run_check(*flags, *kube)
        assert (code, errors) == (0, "")
        assert len(output.splitlines()) == 10
        managed.denied = {("create", "tokenreviews")}
        code, output, errors = await run_check(*flags, *kube)
        assert (code, errors) == (1, "")
        assert "FAIL managed cluster may create tokenreviews" in output
        code, output, errors = await run_check(*flags)
        assert (code, errors) == (1, "")
        assert output.startswith("FAIL configuration: route")
        assert "outside a cluster" in output
        code, output, errors = await run_check("--hub-address", "nowhere")
        assert (code, output) == (2, "")
        assert "hub_address (from --hub-address)" in errors
