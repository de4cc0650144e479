"""A hub with 300 descriptors serves users and new agents although other peers take all they can get."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator

import aiohttp
import pytest
import trustme

from ..limits import scaled
from ..own_responses import reason_of
from ..whole.whole_peers import free_port, running_origin
from .rollout_processes import AgentProcess, HubProcess, running_agent, scrape

pytestmark = [
    pytest.mark.loops("asyncio"),
    pytest.mark.skipif(sys.platform != "linux", reason="the limits' effects are Linux's"),
]

DESCRIPTORS = 300
FLOOD = 400
CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=20)


@contextlib.contextmanager
def flood(port: int, said: bytes = b"", pause_s: float = 0.0) -> Iterator[list[socket.socket]]:
    """Connections that send these bytes and no more. pause_s: between two, so that a short backlog does not fill.

    The kernel repeats a SYN that finds the backlog full a second later.
    """
    sockets: list[socket.socket] = []
    try:
        for _ in range(FLOOD):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            sockets.append(sock)
            with contextlib.suppress(OSError):  # closed already
                sock.send(said)
            time.sleep(pause_s)
        yield sockets
    finally:
        for sock in sockets:
            sock.close()


@contextlib.contextmanager
def few(directory: pathlib.Path, *arguments: str, leaked: int = 0) -> Iterator[HubProcess]:
    hub = HubProcess(directory / "hub.log", *arguments, descriptors=DESCRIPTORS, leaked=leaked)
    try:
        yield hub
        assert hub.process.poll() is None
        assert "Traceback" not in hub.log
    finally:
        print(f"the hub's code {hub.process.poll()}, and the end of its log:", hub.log[-10_000:])  # if the test fails
        hub.close()


async def get(url: str, **options: object) -> tuple[int, str]:
    """One request on its own connection."""
    async with (
        aiohttp.ClientSession(timeout=CLIENT_TIMEOUT) as client,
        client.get(url, **options) as answer,  # type: ignore[arg-type]  # the call's own keywords
    ):
        return answer.status, await answer.text()


async def served(url: str, **options: object) -> None:
    """Wait until the user gets a 200. Until then each response must be a 503."""
    async with asyncio.timeout(scaled(40)):
        while (status := (await get(url, **options))[0]) != 200:
            assert status == 503
            await asyncio.sleep(0.05)


async def test_what_the_limit_does_not_allow_is_lowered_and_said(tmp_path: pathlib.Path) -> None:
    with few(tmp_path) as hub:
        for setting, asked in (("max_clients", 10000), ("max_agents", 5000)):
            await hub.logged(f"{setting} is lowered")
            (line,) = [line for line in hub.log.splitlines() if f"{setting} is lowered" in line]
            assert f"from {asked} to " in line
            assert "level=warning" in line
            assert f"may open {DESCRIPTORS} file descriptors" in line
    with few(tmp_path, "--max-clients=50", "--max-agents=20") as hub:
        assert "is lowered" not in hub.log


@pytest.mark.parametrize("said", [b"", b"PRI * HTTP/2.0\r\n"])
async def test_mute_connections_to_the_grpc_port_take_nothing_from_users_and_agents(
    tmp_path: pathlib.Path, said: bytes
) -> None:
    async with running_origin() as origin:
        with few(tmp_path) as hub:
            async with running_agent(tmp_path, hub, f"--route=/={origin.url}") as first:
                with flood(hub.grpc_port, said):
                    for _ in range(20):
                        assert (await get(f"{first.url}/hello"))[0] == 200
                    async with running_agent(tmp_path, hub, f"--route=/={origin.url}") as second:
                        assert (await get(f"{second.url}/hello"))[0] == 200
                    assert (await get(f"{first.url}/hello"))[0] == 200
                    await hub.logged("connection")  # which limit it was
            assert (
                "too many connections from agents, so some are closed" in hub.log or "the oldest are closed" in hub.log
            )


async def test_slow_tls_handshakes_on_the_grpc_port_keep_no_agent_out(
    tmp_path: pathlib.Path, certificates: Callable[[str], str]
) -> None:
    with (
        few(tmp_path, f"--grpc-cert-file={certificates('hub')}", "--allow-any-agent") as hub,
        flood(hub.grpc_port, b"\x16"),
    ):
        agent = AgentProcess(
            tmp_path, hub, "--route=/=http://127.0.0.1:9", "--no-insecure", f"--hub-ca-file={certificates('ca')}"
        )
        try:
            async with asyncio.timeout(scaled(60)):
                assert await asyncio.to_thread(agent.line) == "ready"
        finally:
            agent.close()


async def test_mute_connections_to_the_http_port_make_room_for_users(tmp_path: pathlib.Path) -> None:
    async with running_origin() as origin:
        with few(tmp_path) as hub:
            async with running_agent(tmp_path, hub, f"--route=/={origin.url}") as agent:
                with flood(hub.http_port) as mute:
                    await served(f"{agent.url}/hello")
                    for sock in mute[-3:]:  # those without room got a 503 at once
                        sock.settimeout(10)
                        assert sock.recv(4096).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                    async with running_agent(tmp_path, hub, f"--route=/={origin.url}") as second:
                        await served(f"{second.url}/hello")


async def test_slow_tls_handshakes_on_the_http_port_make_room_for_users(
    tmp_path: pathlib.Path, certificates: Callable[[str], str]
) -> None:
    tls = ssl.create_default_context(cafile=certificates("ca"))
    async with running_origin() as origin:
        with few(tmp_path, f"--http-cert-file={certificates('hub')}") as hub:
            async with running_agent(tmp_path, hub, f"--route=/={origin.url}") as agent:
                for said in (b"", b"\x16\x03\x01"):
                    with flood(hub.http_port, said):
                        url = f"https://127.0.0.1:{hub.http_port}/{agent.cluster}/hello"
                        for _ in range(5):
                            assert (await get(url, ssl=tls))[0] == 200


async def test_mute_connections_to_the_health_port_do_not_hide_the_hub(tmp_path: pathlib.Path) -> None:
    port = free_port()
    with few(tmp_path, f"--health-address=127.0.0.1:{port}") as hub:
        await hub.logged("health checks are served")
        with flood(port, pause_s=0.001):
            for _ in range(5):
                assert (await get(f"http://127.0.0.1:{port}/healthz"))[0] == 200
            assert (await get(f"http://127.0.0.1:{hub.http_port}/c1/"))[0] == 503  # there is no agent


async def test_with_no_descriptor_left_users_get_503_and_the_log_says_why(tmp_path: pathlib.Path) -> None:
    """The shares don't count descriptors that an operator's own part has opened."""
    port = free_port()
    arguments = [f"--health-address=127.0.0.1:{port}", "--enable-metrics"]
    async with running_origin() as origin:
        with few(tmp_path, *arguments, leaked=220) as hub:
            async with running_agent(tmp_path, hub, f"--route=/={origin.url}") as agent:
                with flood(hub.http_port, b"GET ") as sockets:
                    for sock in sockets[-20:]:
                        sock.settimeout(20)
                        told = sock.recv(4096)
                        assert told.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                        assert b"\r\nRetry-After: " in told
                    await hub.logged("no file descriptor is left (ulimit -n)")
                    status, text = await get(f"{agent.url}/hello")
                    assert (status, reason_of(text)) == (503, "too many connections\n")
                await served(f"{agent.url}/hello")
            page = await scrape(port)
            assert page.samples["fastpipe_hub_connections_refused_total",] >= 20
    lines = [line for line in hub.log.splitlines() if "no file descriptor is left" in line]
    assert all("level=error" in line and "port=http" in line for line in lines)
    assert len(lines) < 60  # one a second


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "hub.pem")
    return lambda name: str(folder / f"{name}.pem")
