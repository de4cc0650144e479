"""A user's own parts by `module:name`, with a real process, a TLS API server and a hub."""

from __future__ import annotations

import asyncio
import json
import pathlib
from typing import Any

import aiohttp
import pytest

from ..limits import scaled
from ..own_responses import reason_of
from .rollout_clusters import BESIDE
from .rollout_processes import AgentProcess, HubProcess

pytestmark = pytest.mark.loops("asyncio")

MODES = ["--use-memory-comm", "--no-use-memory-comm"]


async def get(url: str, **headers: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
        text = await answer.text()
        return answer.status, text if answer.ok else reason_of(text)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("router", ["Renaming", "AsyncRenaming"])
async def test_a_router_of_ones_own_with_kubernetes_processor(cluster: Any, router: str, mode: str) -> None:
    async with (
        cluster() as it,
        asyncio.timeout(scaled(60)),
        it.agent(mode, router=f"own_parts:{router}", request_processor="kubernetes", **it.kubernetes()) as agent,
    ):
        claims = {"Impersonate-User": "root", "X-Remote-User": "root"}
        assert (await get(f"{agent.url}/one/pods", Authorization="Bearer bob", **claims))[0] == 200
        assert (await get(f"{agent.url}/one/pods", Authorization="Bearer alice", **claims))[0] == 200
        assert (await get(f"{agent.url}/one/pods", Authorization="Bearer eve", **claims))[0] == 401
        assert (await get(f"{agent.url}/one/pods", **claims))[0] == 401
        assert await get(f"{agent.url}/two/pods", Authorization="Bearer bob") == (404, "only /one/ is here\n")
        bob, alice = it.managed.received
        assert bob.target == alice.target == "/api/v1/pods"
        assert bob.values(b"authorization") == [b"Bearer managed-own-token"]
        assert bob.like(b"impersonate-", b"x-remote-") == [
            (b"Impersonate-User", b"bob"),
            (b"Impersonate-Group", b"cluster:hub:system:masters"),
        ]
        assert alice.values(b"authorization") == [b"Bearer alice"]
        assert alice.like(b"impersonate-", b"x-remote-") == [(b"Impersonate-User", b"root")]
        assert "nothing is authenticated" not in agent.log
        assert "level=error" not in agent.log


@pytest.mark.parametrize("mode", MODES)
async def test_routes_with_kubernetes_processor(cluster: Any, mode: str) -> None:
    async with (
        cluster() as it,
        asyncio.timeout(scaled(60)),
        it.agent(
            mode, route=[f"/api={it.managed.url}/api"], request_processor="kubernetes", **it.kubernetes()
        ) as agent,
    ):
        assert (await get(f"{agent.url}/api/v1/pods", Authorization="Bearer bob"))[0] == 200
        assert (await get(f"{agent.url}/api/v1/pods"))[0] == 401
        assert (await get(f"{agent.url}/apis", Authorization="Bearer bob"))[0] == 404
        (received,) = it.managed.received
        assert received.values(b"impersonate-user") == [b"bob"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("router", "processor"), [("Renaming", "AsyncMarking"), ("AsyncRenaming", "Marking")])
async def test_every_part_of_ones_own(cluster: Any, router: str, processor: str, mode: str) -> None:
    async with (
        cluster() as it,
        asyncio.timeout(scaled(60)),
        it.agent(
            mode,
            router=f"own_parts:{router}",
            request_processor=f"own_parts:{processor}",
            certificate_provider="own_parts:Trust",
        ) as agent,
    ):
        assert (await get(f"{agent.url}/one/pods"))[0] == 200
        assert await get(f"{agent.url}/one/pods", **{"X-Refuse": "1"}) == (403, "refused as asked\n")
        (received,) = it.managed.received
        assert received.values(b"x-marked") == [b"localhost"]


@pytest.mark.loops("uvloop")  # asyncio's server reports a client that hangs up in the handshake
@pytest.mark.parametrize("mode", MODES)
async def test_a_target_that_own_roots_dont_know_is_a_502(cluster: Any, mode: str) -> None:
    async with cluster() as it, asyncio.timeout(scaled(60)), it.agent(mode, router="own_parts:Renaming") as agent:
        status, said = await get(f"{agent.url}/one/pods")
        assert (status, said) == (502, "the target's certificate was not accepted\n")
        assert it.managed.received == []


ROUTES = {"none": "NoneType", "text": "str", "later": "bytes"}
PROCESSES = {
    "none": "a RequestHead or an awaitable of one, not NoneType",
    "other": "not dict",
    "later": "not list",
    "text": "headers as pairs of bytes",
}


async def test_a_part_that_gives_the_wrong_thing_is_a_503_and_one_clear_line(cluster: Any) -> None:
    async with cluster() as it, asyncio.timeout(scaled(60)):
        async with it.agent(router="own_parts:Wrong") as agent:
            for path, kind in ROUTES.items():
                assert await get(f"{agent.url}/{path}") == (503, "the request could not be decided\n")
                await agent.logged(f'"route must give a Target or an awaitable of one, not {kind}"')
            assert agent.log.count("level=error") == len(ROUTES)
        async with it.agent(router="own_parts:Wrong", request_processor="kubernetes", **it.kubernetes()) as agent:
            assert (await get(f"{agent.url}/plain", Authorization="Bearer bob"))[0] == 503
            await agent.logged("route must give an https URL for the API server, not http")
        async with it.agent(route=[f"/={it.managed.url}"], request_processor="own_parts:WrongProcessor") as other:
            for path, said in PROCESSES.items():
                assert await get(f"{other.url}/{path}") == (503, "the request could not be decided\n")
                await other.logged(said)
            assert other.log.count("level=error") == len(PROCESSES)
        async with it.agent(router="own_parts:Renaming", certificate_provider="own_parts:WrongTrust") as third:
            assert await get(f"{third.url}/one/pods") == (503, "the request could not be decided\n")
            await third.logged("ssl_context must give an ssl.SSLContext, not str")
            assert third.log.count("level=error") == 1
        assert "Traceback" not in agent.log + other.log + third.log
        assert "secret" not in agent.log + other.log + third.log
        assert it.managed.received == it.managed.reviews == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"router": "own_parts:Missing"}, "agent.toml: own_parts:Missing): must be importable"),
        ({"router": "own_parts:Marking"}, "has no route"),
        ({"router": "own_parts:Wrong", "request_processor": "own_parts:Wrong"}, "has no process"),
        ({"router": "own_parts:Renaming", "certificate_provider": "own_parts:Wrong"}, "has no ssl_context"),
        ({"router": "own_parts:Renaming", "certificate_provider": "own_parts:WrongNumber"}, "a whole number, not str"),
        ({"router": "own_parts:Renaming", "request_processor": "kubernetes"}, "request_processor (from"),
        ({"request_processor": "kubernete"}, "request_processor (from"),
    ],
    ids=str,
)
def test_a_part_that_cant_be_used_exits_2(
    tmp_path: pathlib.Path, our_hub: HubProcess, settings: dict[str, str], said: str
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    agent = AgentProcess(tmp_path, our_hub, f"--config={path}", cwd=BESIDE)
    try:
        assert agent.process.wait(30) == 2
        assert said in agent.log
        assert "Traceback" not in agent.log
    finally:
        agent.close()
