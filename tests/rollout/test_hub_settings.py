"""Settings of a hub's operator: names of clusters, users and their limits, and times."""

from __future__ import annotations

import asyncio
import pathlib
import socket
import ssl

import aiohttp
import pytest
import trustme

from agent import ConfigError, HubConfig
from agent.hub.hub import Hub

from ..limits import scaled
from ..own_responses import reason_of
from ..whole.whole_cluster import RunningAgent, running_hub
from ..whole.whole_peers import running_origin
from .rollout_processes import HubProcess

PARSERS = f"{pathlib.Path(__file__).parent}"


async def agent_of(cluster: str, grpc_port: int, target: str, stack: list[RunningAgent]) -> None:
    agent = RunningAgent(
        hub_address=f"127.0.0.1:{grpc_port}", cluster_name=cluster, insecure=True, routes=(f"/={target}",)
    )
    stack.append(agent)
    await agent.wait_ready()


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PARSERS)


async def test_a_cluster_parser_of_ones_own_is_asked_for_every_request(importable: None) -> None:
    agents: list[RunningAgent] = []
    async with (
        running_origin() as one,
        running_origin() as two,
        asyncio.timeout(scaled(30)),
        running_hub(cluster_parser="hub_parsers:by_header") as (grpc_port, http_port),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client,
    ):
        await agent_of("c1", grpc_port, one.url, agents)
        await agent_of("c2", grpc_port, two.url, agents)
        url = f"http://127.0.0.1:{http_port}"
        for cluster in ("c1", "c2", "c1", "c2"):  # one kept-alive connection that turns to another cluster each time
            answer = await client.get(f"{url}/{cluster}/hello", headers={"X-Cluster": cluster})
            assert answer.status == 200
            await answer.read()
        assert (one.seen, two.seen) == (["GET /hello"] * 2, ["GET /hello"] * 2)
        refused = await client.get(f"{url}/c1/hello")
        assert (refused.status, reason_of(await refused.text())) == (404, "name a cluster in X-Cluster\n")
        unknown = await client.get(f"{url}/c1/hello", headers={"X-Cluster": "../c1"})
        assert unknown.status == 503
        await unknown.read()
        for agent in agents:
            await agent.stop()


@pytest.mark.parametrize(
    ("parser", "said"), [("no_such_module:x", "no_such_module"), ("hub_parsers:NOT_CALLABLE", "must be a function")]
)
def test_a_parser_that_cannot_be_used_is_a_wrong_setting(importable: None, parser: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Hub(HubConfig(cluster_parser=parser))
    assert caught.value.field == "cluster_parser"


async def test_a_parser_that_names_nothing_is_a_503_and_one_clear_line(
    importable: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        asyncio.timeout(scaled(30)),
        running_hub(cluster_parser="hub_parsers:by_bytes") as (_, http_port),
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{http_port}/c1/hello") as answer,
    ):
        assert (answer.status, reason_of(await answer.text())) == (503, "the request could not be decided\n")
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.getMessage() == "cluster_parser must give a cluster's name, a str, not bytes"
    assert record.exc_info is None


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("certificates")
    for who in ("ours", "theirs"):
        ca = trustme.CA()
        ca.cert_pem.write_to_path(folder / f"{who}-ca.pem")
        ca.issue_cert(f"user@{who}.test").private_key_and_cert_chain_pem.write_to_path(folder / f"{who}-user.pem")
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / f"{who}-hub.pem")
    return folder


def user(certificates: pathlib.Path, certificate: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ours-ca.pem"))
    if certificate:
        context.load_cert_chain(str(certificates / certificate))
    return context


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("optional", [False, True])
async def test_users_show_a_certificate_where_that_is_asked_for(
    tmp_path: pathlib.Path, certificates: pathlib.Path, optional: bool
) -> None:
    arguments = [f"--http-cert-file={certificates}/ours-hub.pem", f"--user-ca-file={certificates}/ours-ca.pem"]
    hub = HubProcess(tmp_path / "log", *arguments, *["--allow-any-user"] * optional)
    url = f"https://127.0.0.1:{hub.http_port}/c1/hello"

    async def status(certificate: str) -> int:
        connector = aiohttp.TCPConnector(ssl=user(certificates, certificate))
        async with aiohttp.ClientSession(connector=connector) as client, client.get(url) as answer:
            return answer.status

    try:
        async with asyncio.timeout(scaled(30)):
            assert await status("ours-user.pem") == 503  # let in: there is only no agent
            assert await status("") == (503 if optional else 400)
            with pytest.raises(aiohttp.ClientError):
                await status("theirs-user.pem")
        assert "Traceback" not in hub.log
    finally:
        hub.close()


async def test_past_max_clients_a_user_gets_503() -> None:
    async with (
        running_hub(max_clients=1) as (_, http_port),
        asyncio.timeout(scaled(30)),
        aiohttp.ClientSession() as first,
        aiohttp.ClientSession() as second,
    ):
        url = f"http://127.0.0.1:{http_port}/c1/"
        assert reason_of(await (await first.get(url)).text()) == "no agent is connected for this cluster\n"
        refused = await second.get(url)
        assert (refused.status, reason_of(await refused.text())) == (503, "too many connections\n")
        assert int(refused.headers["Retry-After"]) > 0


async def test_the_hubs_times_are_as_configured() -> None:
    from agent.config.schema import LimitsConfig

    limits = LimitsConfig(head_timeout_s=0.1, keep_alive_s=0.2, request_head_bytes=1024)
    async with running_hub(limits=limits) as (_, http_port), asyncio.timeout(scaled(30)):

        async def answer(sent: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
            writer.write(sent)
            try:
                return await reader.read()  # to the end of the connection
            finally:
                writer.close()
                await writer.wait_closed()

        assert (await answer(b"GET / HT")).startswith(b"HTTP/1.1 408 ")
        assert (await answer(b"GET /c1/ HTTP/1.1\r\nHost: a\r\n\r\n")).startswith(b"HTTP/1.1 503 ")  # then it idles out
        assert (await answer(b"GET /c1/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2000)).startswith(b"HTTP/1.1 431 ")


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_tls_client_that_reads_nothing_keeps_no_hub_from_ending(
    tmp_path: pathlib.Path, certificates: pathlib.Path, loop: str
) -> None:
    """A TLS close waits for the peer's close, but nobody reads a client library's idle connection."""
    hub = HubProcess(
        tmp_path / "log", f"--http-cert-file={certificates / 'ours-hub.pem'}", "--drain-grace-s=25", f"--loop={loop}"
    )
    context = ssl.create_default_context(cafile=str(certificates / "ours-ca.pem"))

    def idle() -> ssl.SSLSocket:
        sock = context.wrap_socket(socket.create_connection(("127.0.0.1", hub.http_port)), server_hostname="127.0.0.1")
        sock.sendall(b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.1 503"
        return sock

    try:
        sock = await asyncio.to_thread(idle)
        hub.signal("SIGTERM")
        assert await hub.ends(15) == 0, hub.log  # 2 s, and much room for a busy machine
        sock.close()
    finally:
        hub.close()
