"""Paths without an agent get 503 if one is expected, and 404 if none ever was. 308 leads to a cluster's root."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Mapping

import aiohttp
import pytest

from agent.hub import known_clusters as known
from agent.hub.known_clusters import KnownClusters

from ..limits import scaled
from ..own_responses import reason_of
from .whole_cluster import Cluster, running_hub
from .whole_peers import running_origin

pytestmark = pytest.mark.parametrize(("hub_kind", "mode"), [("ours", "memory")], indirect=True)

HINT = "the first segment of the path must be a cluster's name"


async def ask(url: str, method: str = "GET") -> tuple[int, str, Mapping[str, str]]:
    async with aiohttp.ClientSession() as client, client.request(method, url, allow_redirects=False) as answer:
        return answer.status, await answer.text(), answer.headers


@pytest.fixture
def started_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "STARTING_S", 0.0)


@pytest.mark.usefixtures("started_long_ago")
@pytest.mark.parametrize("path", ["/", "/login", "/favicon.ico", "/UPPER/x", "/c%31/x", "/.well-known/x", "/?x"])
async def test_a_path_to_no_cluster_is_a_404_that_says_what_is_missing(cluster: Cluster, path: str) -> None:
    async with cluster.hub() as whole:
        status, text, headers = await ask(f"http://127.0.0.1:{whole.http_port}{path}")
        assert (status, HINT in text and known.HEARD in text, "Retry-After" in headers) == (404, True, False)


@pytest.mark.parametrize(("path", "status"), [("/login", 503), ("/favicon.ico", 404), ("/", 404)])
async def test_every_label_may_be_a_cluster_while_agents_come_back(cluster: Cluster, path: str, status: int) -> None:
    async with cluster.hub() as whole:
        found, _, headers = await ask(f"http://127.0.0.1:{whole.http_port}{path}")
        assert (found, "Retry-After" in headers) == (status, status == 503)


@pytest.mark.usefixtures("started_long_ago")
async def test_a_cluster_whose_agent_left_is_still_known(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        assert (await ask(f"{whole.url}/"))[0] == 200
        await whole.agents.pop().stop()
        status, _, headers = await ask(f"{whole.url}/")
        assert (status, headers["Retry-After"]) == (503, "1")
        assert (await ask(f"{whole.url}x/"))[0] == 404


@pytest.mark.usefixtures("started_long_ago")
async def test_the_log_has_what_was_asked(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Not the query, which may hold secrets. CONNECT has no path."""
    caplog.set_level("INFO", "agent.proxy.refusals")
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        await whole.agents.pop().stop()
        await ask(f"{whole.url}/{'x' * 200}?secret")
        await ask(f"http://127.0.0.1:{whole.http_port}/Upper/x")
        found = [vars(each) for each in caplog.records if each.name == "agent.proxy.refusals"]
        expected = {"peer": "127.0.0.1", "method": "GET", "host": f"127.0.0.1:{whole.http_port}", "stage": "policy"}
        assert [{name: each.get(name) for name in expected} for each in found] == [expected] * 2
        path = f"/{whole.cluster}/{'x' * 200}"[:100]
        assert [(each.get("cluster"), each["path"]) for each in found] == [(whole.cluster, path), (None, "/Upper/x")]


@pytest.mark.usefixtures("started_long_ago")
async def test_a_cluster_that_the_token_file_names_is_known(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("c1 a-token\n")
    async with running_hub(agent_token_file=str(tokens)) as (_, http_port):
        url = f"http://127.0.0.1:{http_port}"
        assert [(await ask(f"{url}/{name}/"))[0] for name in ("c1", "c2")] == [503, 404]
        tokens.write_text("c1 a-token\nc2 another-token\n")
        async with asyncio.timeout(scaled(30)):  # the file is looked at once a second
            while (await ask(f"{url}/c2/"))[0] != 503:  # noqa: ASYNC110  (a state of the hub's, seen from outside)
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("query", "location"), [("", "/{}/"), ("?a=/b&c=//d", "/{}/?a=/b&c=//d")])
async def test_a_clusters_name_alone_is_redirected_to_its_root(
    cluster: Cluster, method: str, query: str, location: str
) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        async with aiohttp.ClientSession() as client:
            async with client.request(method, f"{whole.url}{query}", allow_redirects=False) as answer:
                assert (answer.status, answer.headers["Location"]) == (308, location.format(whole.cluster))
            async with client.get(f"{whole.url}/below", allow_redirects=False) as answer:
                assert answer.status == 200, "the connection continues"
        assert origin.seen == ["GET /below"]


async def test_other_methods_go_on_as_they_came(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        assert (await ask(whole.url, "POST"))[0] == 200
        assert len(origin.seen) == 1


async def test_a_parser_of_ones_own_is_redirected_nowhere(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "STARTING_S", 0.0)
    async with running_origin() as origin, running_hub(cluster_parser=lambda head: "c1") as (grpc_port, http_port):
        url = f"http://127.0.0.1:{http_port}"
        status, text, _ = await ask(f"{url}/c1")
        assert (status, reason_of(text)) == (404, f"{known.UNKNOWN}\n")
        async with cluster.hub() as whole:
            await whole.start_agent(
                hub_address=f"127.0.0.1:{grpc_port}", cluster_name="c1", routes=(f"/={origin.url}",)
            )
            assert (await ask(f"{url}/c1"))[0] == 200


def test_a_cluster_is_forgotten_an_hour_after_its_last_agent(cluster: Cluster) -> None:
    now_s = 0.0
    clusters = KnownClusters(lambda _: False, clock=lambda: now_s)
    clusters.start()

    def status() -> int:
        return clusters.refusal("c1", hint=HINT).status

    assert status() == 503
    now_s = known.STARTING_S
    assert status() == 404
    clusters.seen("c1")
    now_s += known.REMEMBERED_S
    assert status() == 503
    now_s += 1
    assert status() == 404


def test_what_is_remembered_is_bounded(cluster: Cluster) -> None:
    now_s = 0.0
    clusters = KnownClusters(lambda _: False, clock=lambda: now_s)
    clusters.start()
    now_s = known.STARTING_S
    for number in range(known.MOST + 10):
        clusters.seen(f"c{number}")
    assert clusters.refusal("c9", hint=HINT).status == 404
    assert clusters.refusal("c10", hint=HINT).status == 503
