"""HTTP/2 from users to our hub and on to a target: real clients, over UDS and memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import socket
import ssl
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trustme

from agent import HubConfig
from agent.hub.hub import Hub

from ..limits import scaled
from .whole_cluster import Cluster, RunningAgent, running_hub
from .whole_connect import credentials, tcp_target
from .whole_peers import Origin, curl, program, running_origin, until

OURS = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)

PRIOR = "--http2-prior-knowledge"
BODY = bytes(range(256)) * 8192  # 2 MiB


async def h2load(*arguments: str) -> str:
    """The output of nghttp2's load generator."""
    process = await asyncio.create_subprocess_exec(
        program("h2load"), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode()


@OURS
async def test_curl_by_prior_knowledge(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        shown = ("-w", "\n%{http_version} %{http_code}", PRIOR)
        code, output, errors = await curl(*shown, f"{whole.url}/hello", "-b", "a=1; b=2")
        assert (code, output) == (0, b"hello from the origin\n\n2 200"), errors
        assert origin.headers["cookie"] == "a=1; b=2"
        assert origin.headers["x-forwarded-for"] == "127.0.0.1"
        assert origin.headers["x-forwarded-host"] == f"127.0.0.1:{whole.http_port}"
        assert origin.headers["x-forwarded-prefix"] == f"/{whole.cluster}"
        assert len(origin.headers["x-request-id"]) == 32
        for sends in (("--data-binary", "@-"), ("-T", "-")):  # with a length, and without
            code, output, errors = await curl(PRIOR, *sends, f"{whole.url}/digest", stdin=BODY)
            assert code == 0, errors
            assert hashlib.sha256(BODY).hexdigest().encode() in output
        code, output, errors = await curl(PRIOR, f"{whole.url}/big")
        assert (code, len(output) > 1_000_000) == (0, True), errors
        code, output, _ = await curl(*shown, f"{whole.url[: -len(whole.cluster)]}none/")
        assert output.endswith(b"\n2 503")


@OURS
async def test_h2load_without_a_failure(cluster: Cluster) -> None:
    requests = 10_000 if os.environ.get("FASTPIPE_SOAK", "0") not in ("", "0") else 600
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        output = await h2load("-n", str(requests), "-c", "6", "-m", "20", f"{whole.url}/hello")
        assert f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" in output
        assert f"status codes: {requests} 2xx, 0 3xx, 0 4xx, 0 5xx" in output


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(the CA's file, the file of the hub's certificate and key)."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("127.0.0.1", "c1.example.com").private_key_and_cert_chain_pem.write_to_path(
        directory / "hub.pem"
    )
    return str(directory / "ca.pem"), str(directory / "hub.pem")


async def agent_of(mode: str, port: int, origin: Origin) -> RunningAgent:
    agent = RunningAgent(
        hub_address=f"127.0.0.1:{port}",
        cluster_name="c1",
        insecure=True,
        routes=(f"/={origin.url}",),
        use_memory_comm=mode == "memory",
    )
    await agent.wait_ready()
    return agent


@pytest.mark.parametrize("http2", [True, False])
async def test_curl_by_alpn_and_a_cluster_by_host(mode: str, tls: tuple[str, str], http2: bool) -> None:
    by_host: dict[str, Any] = {"cluster_from": "host", "cluster_domain": "example.com", "http2": http2}
    async with running_origin() as origin, running_hub(http_cert_file=tls[1], **by_host) as (grpc, http):
        agent = await agent_of(mode, grpc, origin)
        shown = ("-w", "\n%{http_version} %{http_code}", "--cacert", tls[0], "--http2")
        to = ("--resolve", f"c1.example.com:{http}:127.0.0.1", f"https://c1.example.com:{http}/hello")
        code, output, errors = await curl(*shown, *to)
        assert code == 0, errors
        assert output.endswith(b"\n2 200" if http2 else b"\n1.1 200")
        assert origin.headers["x-forwarded-proto"] == "https"
        assert origin.headers["host"] == f"c1.example.com:{http}"
        await agent.stop()


async def test_a_proxy_header_comes_before_tls_and_the_preface(mode: str, tls: tuple[str, str]) -> None:
    trusted: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "proxy_protocol": True}
    for secure in (False, True):
        extra = {"http_cert_file": tls[1]} if secure else {}
        async with running_origin() as origin, running_hub(**trusted, **extra) as (grpc, http):
            agent = await agent_of(mode, grpc, origin)
            sock = socket.create_connection(("127.0.0.1", http))
            sock.sendall(b"PROXY TCP4 192.0.2.9 198.51.100.1 56324 443\r\n")
            context = ssl.create_default_context(cafile=tls[0])
            context.set_alpn_protocols(["h2"])
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=context if secure else None, server_hostname="127.0.0.1" if secure else None
            )
            status = await one_request(reader, writer, "/c1/hello")
            assert status == b"200"
            assert origin.headers["x-forwarded-for"].startswith("192.0.2.9")
            writer.close()
            await agent.stop()


async def one_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    """The status of one GET, by the h2 library."""
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    peer.initiate_connection()
    head = [(":method", "GET"), (":scheme", "http"), (":path", path), (":authority", "hub")]
    peer.send_headers(1, head, end_stream=True)
    status = b""
    async with asyncio.timeout(scaled(20)):
        while True:
            writer.write(peer.data_to_send())
            data = await reader.read(65536)
            assert data, "the hub closed the connection"
            for event in peer.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    status = dict(event.headers)[b":status"]
                if isinstance(event, h2.events.StreamEnded):
                    return status


@OURS
async def test_a_connect_by_http2_reaches_what_the_agent_allows(cluster: Cluster) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.write_eof()

    async with tcp_target(echo) as port, cluster.hub() as whole:
        await whole.start_agent(connect_allow=(f"127.0.0.1:{port}",))
        reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
        peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        peer.initiate_connection()
        for stream, target in ((1, f"127.0.0.1:{port}"), (3, "127.0.0.1:9")):
            fields = [
                (":method", "CONNECT"),
                (":authority", target),
                ("proxy-authorization", credentials(whole.cluster)),
            ]
            peer.send_headers(stream, fields)
            peer.send_data(stream, b"both ways", end_stream=True)
        statuses: dict[int, bytes] = {}
        bodies: dict[int, bytes] = {1: b"", 3: b""}
        ended: set[int] = set()
        async with asyncio.timeout(scaled(20)):
            while ended != {1, 3}:
                writer.write(peer.data_to_send())
                for event in peer.receive_data(await reader.read(65536)):
                    if isinstance(event, h2.events.ResponseReceived):
                        statuses[event.stream_id or 0] = dict(event.headers)[b":status"]
                    elif isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id or 0] += event.data or b""
                    elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                        ended.add(event.stream_id or 0)
        assert statuses == {1: b"200", 3: b"403"}
        assert bodies[1] == b"BOTH WAYS"
        assert b"connect_allow" in bodies[3]
        writer.close()
        await until(lambda: whole.agent.agent.open_connections == 0)


async def test_a_drain_finishes_streams_and_ends_the_connection(mode: str) -> None:
    ports: dict[str, int] = {}
    config = HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0", drain_grace_s=20.0)
    hub = Hub(config, on_listening=lambda kind, _, port: ports.update({kind: port}))
    task = asyncio.ensure_future(hub.run())
    await until(lambda: len(ports) == 2)
    async with running_origin() as origin:
        agent = await agent_of(mode, ports["grpc"], origin)
        waiting = asyncio.ensure_future(curl(PRIOR, f"http://127.0.0.1:{ports['http']}/c1/hold"))
        await origin.arrived.acquire()
        task.cancel()
        await until(lambda: hub.proxy is not None and hub.proxy.draining)
        origin.go_on.release()
        code, output, errors = await waiting
        assert (code, output) == (0, b"held and let go\n"), errors
        await asyncio.wait([task], timeout=scaled(20))
        assert task.cancelled()
        await agent.stop()


@OURS
async def test_a_refused_request_has_one_log_line_with_its_id(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with cluster.hub() as whole:
        code, output, _ = await curl(PRIOR, f"http://127.0.0.1:{whole.http_port}/unknown/")
        assert code == 0
        found = re.search(rb"request id: (\w+)", output)
        assert found is not None
        lines = [each for each in caplog.records if vars(each).get("request_id") == found[1].decode()]
        assert [vars(each)["status"] for each in lines] == [503]
