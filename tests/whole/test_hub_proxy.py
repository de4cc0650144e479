"""Agents that reach their hub through an HTTP proxy by CONNECT: proxy.py, which nobody here wrote.

An agent never dials a loopback address through a proxy. So the hub is called 0.0.0.0 here, on Linux this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
import trustme

from agent import AgentConfig
from agent.cli.checks import run_checks

from .whole_cluster import RunningAgent, running_hub
from .whole_peers import START_TIMEOUT_S, free_port, running_origin, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="0.0.0.0 is dialled")
SECRET = "open-sesame"


class ProxyProcess:
    """proxy.py on a free port. log: its line for each connection that has ended."""

    def __init__(self, directory: pathlib.Path, *arguments: str) -> None:
        port_file, self._log = directory / "port", directory / "proxy.log"
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "proxy",
                "--hostname=127.0.0.1",
                "--port=0",
                f"--port-file={port_file}",
                f"--log-file={self._log}",
                f"--data-dir={directory}",
                "--num-workers=1",
                "--num-acceptors=1",
                "--timeout=60",
                *arguments,
            ],
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (port_file.exists() and port_file.read_text().strip()):
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.01)
        self.port = int(port_file.read_text())

    @property
    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    process = ProxyProcess(tmp_path_factory.mktemp("proxy"), f"--basic-auth=alibaba:{SECRET}")
    yield process
    process.close()


class Files:
    def __init__(self, directory: pathlib.Path) -> None:
        authority = trustme.CA()
        self.ca, self.cert, self.key = (str(directory / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        authority.cert_pem.write_to_path(self.ca)
        pair = authority.issue_cert("127.0.0.1", "localhost")
        pair.private_key_pem.write_to_path(self.key)
        for blob in pair.cert_chain_pems:
            blob.write_to_path(self.cert, append=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_proxy(tmp_path_factory: pytest.TempPathFactory, files: Files) -> Iterator[ProxyProcess]:
    directory = tmp_path_factory.mktemp("tls-proxy")
    process = ProxyProcess(directory, f"--cert-file={files.cert}", f"--key-file={files.key}")
    yield process
    process.close()


@contextlib.asynccontextmanager
async def agent_of(port: int, target: str = "http://127.0.0.1:9", **config: Any) -> AsyncIterator[RunningAgent]:
    agent = RunningAgent(
        **{
            "hub_address": f"0.0.0.0:{port}",
            "cluster_name": "c1",
            "routes": (f"/={target}",),
            "insecure": True,
            "use_memory_comm": True,
            "drain_grace_s": 2.0,
        }
        | config
    )
    try:
        yield agent
    finally:
        await agent.stop()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "agent.tunnel.client"]


async def serves(agent: RunningAgent, http_port: int) -> None:
    await agent.wait_ready()
    async with aiohttp.ClientSession() as client:
        for _ in range(2):
            assert (await client.get(f"http://127.0.0.1:{http_port}/c1/hello")).status == 200


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
async def test_through_a_proxy_that_asks_for_credentials(
    proxy: ProxyProcess, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tls: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://alibaba:{SECRET}@127.0.0.1:{proxy.port}")
    hub_tls = {"grpc_cert_file": files.cert, "grpc_key_file": files.key} if tls else {}
    own_tls = {"insecure": False, "hub_ca_file": files.ca, "hub_server_name": "localhost"} if tls else {}
    caplog.set_level(logging.DEBUG)
    async with running_origin() as origin, running_hub(**hub_tls) as (port, http_port):
        async with agent_of(port, origin.url, **own_tls) as agent:
            await serves(agent, http_port)
        await until(lambda: f"CONNECT 0.0.0.0:{port}" in proxy.log)
        assert SECRET not in caplog.text


@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "tls"])
async def test_through_a_proxy_that_is_spoken_to_by_tls(
    tls_proxy: ProxyProcess, files: Files, monkeypatch: pytest.MonkeyPatch, tls: bool
) -> None:
    monkeypatch.setenv("https_proxy", f"https://127.0.0.1:{tls_proxy.port}")
    monkeypatch.setenv("SSL_CERT_FILE", files.ca)  # the system's roots, for OpenSSL
    hub_tls = {"grpc_cert_file": files.cert, "grpc_key_file": files.key} if tls else {}
    own_tls = {"insecure": False, "hub_ca_file": files.ca, "hub_server_name": "localhost"} if tls else {}
    async with running_origin() as origin, running_hub(**hub_tls) as (port, http_port):
        async with agent_of(port, origin.url, **own_tls) as agent:
            await serves(agent, http_port)
        await until(lambda: f"CONNECT 0.0.0.0:{port}" in tls_proxy.log)


async def test_refused_credentials_are_said_once_and_tried_again_slowly(
    proxy: ProxyProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{proxy.port}"
    for credentials, said in (("", "asks for credentials"), ("alibaba:wr0ng@", "refused our credentials")):
        caplog.clear()
        monkeypatch.setenv("HTTPS_PROXY", url.replace("//", f"//{credentials}"))
        async with agent_of(8443):
            await until(lambda: messages(caplog))
            assert messages(caplog)[0].startswith(f"the proxy {url} {said} (407 Proxy Authentication Required); ")
            assert int(messages(caplog)[0].split()[-2]) >= 30
            assert "wr0ng" not in caplog.text


async def test_a_hub_that_the_proxy_can_not_reach(
    proxy: ProxyProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://alibaba:{SECRET}@127.0.0.1:{proxy.port}")
    async with agent_of(free_port()):
        await until(lambda: messages(caplog))
        said = f"the proxy http://127.0.0.1:{proxy.port} did not open a connection to the hub (502 Bad Gateway); "
        assert messages(caplog)[0].startswith(said)


async def test_a_proxy_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, unused_port: int
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{unused_port}")
    async with agent_of(8443):
        await until(lambda: messages(caplog))
        assert messages(caplog)[0].startswith(f"no connection to the proxy http://127.0.0.1:{unused_port}: ")


ANSWERS = [
    (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "did not respond to CONNECT in HTTP/1"),
    (b"HTTP/1.1 200", "closed the connection without a response to CONNECT"),
    (b"HTTP/1.1 200 OK\r\nX: " + bytes(20_000), "responded to CONNECT with a head that is too long"),
    (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "did not open a connection to the hub (403 Forbidden)"),
]


@pytest.mark.parametrize(("answer", "said"), ANSWERS)
async def test_what_is_no_proxy_is_told_from_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: bytes, said: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{port}")
    async with server, agent_of(8443):
        await until(lambda: messages(caplog))
        assert messages(caplog)[0].startswith(f"the proxy http://127.0.0.1:{port} {said}; ")


async def test_a_proxy_that_does_not_answer_is_not_waited_for_longer_than_for_a_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from agent.errors import HubError
    from agent.spoke.outbound_proxy import ConnectProxy
    from agent.tunnel.call import Call, HubEndpoint

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1000):
                pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint = HubEndpoint("hub", 8443, proxy=ConnectProxy("http", "127.0.0.1", port, "HTTPS_PROXY"))
    call = Call(endpoint, [], "test", window_bytes=65535, message_bytes=1000)
    async with server:
        with pytest.raises(HubError) as late:
            await call.dial(0.05, 0.05)
        assert late.value.reason == f"no connection to hub:8443 through the proxy http://127.0.0.1:{port} within 0.05 s"


async def test_check_names_the_proxy(proxy: ProxyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://alibaba:{SECRET}@127.0.0.1:{proxy.port}")
    async with running_hub() as (port, _):
        config = AgentConfig(hub_address=f"0.0.0.0:{port}", cluster_name="c1", insecure=True, routes=("/=http://a",))
        found = [str(result) async for result in run_checks(config) if result.what.startswith("hub")]
    url = f"http://127.0.0.1:{proxy.port}"
    assert found[0] == f"ok   hub 0.0.0.0:{port} proxy: through {url} (HTTPS_PROXY)"
    assert [line[:2] for line in found] == ["ok", "ok", "ok"]
    assert SECRET not in "".join(found)
