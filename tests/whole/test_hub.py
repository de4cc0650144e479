"""Our hub: which agents it lets in, which of them gets a request, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import ssl

import aiohttp
import pytest
import trustme

from .whole_cluster import Cluster, RunningAgent, running_hub
from .whole_peers import running_origin, until

pytestmark = pytest.mark.parametrize(("hub_kind", "mode"), [("ours", "memory")], indirect=True)


async def fetch(url: str, **options: object) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.get(url, **options) as answer:  # type: ignore[arg-type]
        return answer.status, await answer.text()


async def test_the_newest_agent_gets_the_request_and_the_older_one_after_it_has_gone(cluster: Cluster) -> None:
    async with running_origin() as old, running_origin() as new, cluster.running(old.url) as whole:
        await fetch(f"{whole.url}/before")
        newest = await whole.start_agent(routes=(f"/={new.url}",))
        assert (await fetch(f"{whole.url}/during"))[0] == 200
        await newest.stop()
        whole.agents.remove(newest)
        assert (await fetch(f"{whole.url}/after"))[0] == 200
        assert old.seen == ["GET /before", "GET /after"]
        assert new.seen == ["GET /during"]


async def test_a_kept_alive_client_is_routed_by_each_requests_own_path(cluster: Cluster) -> None:
    async with running_origin() as one, running_origin() as two, cluster.running(one.url) as whole:
        await whole.start_agent(cluster_name="other", routes=(f"/={two.url}",))
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as client:
            for path in (f"/{whole.cluster}/1", "/other/2", f"/{whole.cluster}/3", "/nobody/4", "/other/5"):
                async with client.get(f"http://127.0.0.1:{whole.http_port}{path}") as answer:
                    assert answer.status == (503 if "nobody" in path else 200)
        assert one.seen == ["GET /1", "GET /3"]
        assert two.seen == ["GET /2", "GET /5"]


@pytest.mark.parametrize(
    ("path", "status"), [("/", 404), ("/UPPER/x", 404), ("/c%31/x", 404), ("/nobody", 503), ("/nobody?x", 503)]
)
async def test_paths_without_an_agent_are_refused(cluster: Cluster, path: str, status: int) -> None:
    async with cluster.hub() as whole:
        reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: hub\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())


async def test_tokens_say_which_cluster_an_agent_may_serve(
    cluster: Cluster, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("c1 right-token\nc2 other-token\n")
    for name, token in (("right", "right-token"), ("other", "other-token"), ("wrong", "no-token-of-anybody")):
        (tmp_path / name).write_text(token + "\n")
    async with running_origin() as origin, running_hub(agent_token_file=str(tokens)) as (grpc_port, http_port):
        base = {
            "hub_address": f"127.0.0.1:{grpc_port}",
            "cluster_name": "c1",
            "insecure": True,
            "use_memory_comm": True,
            "routes": (f"/={origin.url}",),
        }
        right = RunningAgent(**base, hub_token_file=str(tmp_path / "right"))
        await right.wait_ready()
        strangers = [RunningAgent(**base, hub_token_file=str(tmp_path / name)) for name in ("other", "wrong")]
        strangers.append(RunningAgent(**base))
        await until(lambda: [r for r in caplog.records if r.levelno >= logging.ERROR], lambda found: len(found) >= 3)
        assert all(
            "PERMISSION_DENIED" in r.getMessage() or "UNAUTHENTICATED" in r.getMessage()
            for r in caplog.records
            if r.levelno >= logging.ERROR
        )
        assert not any(agent.times_ready for agent in strangers)
        assert "token" not in " ".join(r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR).replace(
            "a token", ""
        )
        assert (await fetch(f"http://127.0.0.1:{http_port}/c1/x"))[0] == 200
        for agent in [*strangers, right]:
            await agent.stop()


async def test_certificates_say_which_cluster_an_agent_may_serve(
    cluster: Cluster, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("localhost", "c1", "c2"):
        authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(tmp_path / f"{name}.pem")
    hub = {
        "grpc_cert_file": str(tmp_path / "localhost.pem"),
        "http_cert_file": str(tmp_path / "localhost.pem"),
        "agent_ca_file": str(tmp_path / "ca.pem"),
    }
    async with running_origin() as origin, running_hub(**hub) as (grpc_port, http_port):
        base = {
            "hub_address": f"127.0.0.1:{grpc_port}",
            "hub_server_name": "localhost",
            "hub_ca_file": str(tmp_path / "ca.pem"),
            "cluster_name": "c1",
            "use_memory_comm": True,
            "routes": (f"/={origin.url}",),
        }
        right = RunningAgent(**base, hub_client_cert_file=str(tmp_path / "c1.pem"))
        await right.wait_ready()
        wrong = RunningAgent(**base, hub_client_cert_file=str(tmp_path / "c2.pem"))
        await until(lambda: [r for r in caplog.records if "PERMISSION_DENIED" in r.getMessage()])
        assert not wrong.times_ready
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        url = f"https://localhost:{http_port}/c1/x"
        assert (await fetch(url, ssl=trusting))[0] == 200
        await wrong.stop()
        await right.stop()


async def test_a_cluster_is_taken_over_only_by_the_same_identity(
    cluster: Cluster, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("c1 right-token\n")
    (tmp_path / "right").write_text("right-token")
    hub = {"agent_token_file": str(tokens), "allow_any_agent": True}
    async with running_origin() as origin, running_hub(**hub) as (grpc_port, _):
        base = {
            "hub_address": f"127.0.0.1:{grpc_port}",
            "cluster_name": "c1",
            "insecure": True,
            "use_memory_comm": True,
            "routes": (f"/={origin.url}",),
        }
        first = RunningAgent(**base, hub_token_file=str(tmp_path / "right"))
        await first.wait_ready()
        anyone = RunningAgent(**base)
        await until(lambda: [r for r in caplog.records if "another identity" in r.getMessage()])
        assert not anyone.times_ready
        same = RunningAgent(**base, hub_token_file=str(tmp_path / "right"))
        await same.wait_ready()
        for agent in (anyone, first, same):
            await agent.stop()


async def test_a_hub_that_ends_lets_requests_in_flight_finish(cluster: Cluster) -> None:
    async with running_origin() as origin:
        async with running_hub(drain_grace_s=10.0) as (grpc_port, http_port):
            agent = RunningAgent(
                hub_address=f"127.0.0.1:{grpc_port}",
                cluster_name="c1",
                insecure=True,
                use_memory_comm=True,
                routes=(f"/={origin.url}",),
            )
            await agent.wait_ready()
            held = asyncio.ensure_future(fetch(f"http://127.0.0.1:{http_port}/c1/hold"))
            await origin.arrived.acquire()
            asyncio.get_running_loop().call_later(0.2, origin.go_on.release)
        assert await held == (200, "held and let go\n")
        await agent.stop()
