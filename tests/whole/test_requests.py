"""Requests through the whole path, by curl, httpx and aiohttp, to nginx and aiohttp.web: what users of a hub do."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
from collections.abc import AsyncIterator

import aiohttp
import httpx
import pytest

from agent import MemoryCommConfig

from ..limits import scaled
from .whole_cluster import Cluster
from .whole_peers import BIG, BIG_SHA256, Nginx, curl, running_origin


def http_client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=20)


async def test_small_gets_on_one_kept_alive_connection(cluster: Cluster, nginx: Nginx) -> None:
    async with cluster.running(nginx.url) as whole, http_client() as client:
        for _ in range(20):
            answer = await client.get(f"{whole.url}/hello")
            assert (answer.status_code, answer.text) == (200, "hello from nginx\n")
        if whole.kind == "base":
            assert whole.stats()["connections"] == 1


async def test_path_query_and_headers_go_on_as_they_came(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        code, _, errors = await curl(
            "--path-as-is",
            "-H",
            "X-Mine: a  b",
            "-H",
            "Connection: X-Hop",
            "-H",
            "X-Hop: 1",
            "-H",
            "Impersonate-User: root",
            f"{whole.url}/a%2Fb//c?q=%20&r=1?",
        )
        assert (code, errors) == (0, b"")
        assert origin.seen == ["GET /a%2Fb//c?q=%20&r=1?"]
        assert origin.headers["x-mine"] == "a  b"
        assert origin.headers["host"] == f"127.0.0.1:{whole.http_port}"
        assert not {"x-hop", "impersonate-user"} & set(origin.headers)


@pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)
async def test_the_agent_believes_its_hub_over_every_carrier(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        await curl("-H", "X-Forwarded-For: 203.0.113.9", f"{whole.url}/x")
        assert origin.headers["x-forwarded-for"] == "127.0.0.1"
        assert origin.headers["x-forwarded-host"] == f"127.0.0.1:{whole.http_port}"


async def test_post_with_content_length_arrives_whole(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, http_client() as client:
        for size in (0, 1, 1000, 70_000):
            body = os.urandom(size)
            answer = await client.post(f"{whole.url}/digest", content=body)
            assert answer.json() == {"sha256": hashlib.sha256(body).hexdigest(), "length": size}


async def test_chunked_upload_arrives_whole(cluster: Cluster) -> None:
    pieces = [os.urandom(size) for size in (1, 100, 50_000, 3, 200_000)]

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    async with running_origin() as origin, cluster.running(origin.url) as whole, aiohttp.ClientSession() as client:
        for _ in range(3):  # with a base hub only the first comes with its packet's border as its end
            async with client.post(f"{whole.url}/digest", data=body()) as answer:
                assert await answer.json() == {"sha256": digest, "length": 250_104}


async def test_empty_chunked_upload_is_a_request_without_a_body(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        code, output, _ = await curl("-X", "POST", "-H", "Transfer-Encoding: chunked", "-d", "", f"{whole.url}/digest")
        assert code == 0
        assert json.loads(output)["length"] == 0


async def test_curl_is_told_to_continue_and_its_big_body_arrives(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        for framing in ([], ["-H", "Transfer-Encoding: chunked"]):
            code, output, errors = await curl(
                "-v",
                "-H",
                "Expect: 100-continue",
                "--expect100-timeout",
                "15",
                *framing,
                "--data-binary",
                "@-",
                f"{whole.url}/digest",
                stdin=BIG,
            )
            assert code == 0, errors
            assert json.loads(output) == {"sha256": BIG_SHA256, "length": len(BIG)}
            assert errors.count(b"100 Continue") == 1


async def test_ten_mib_up_and_down_keep_their_digest(cluster: Cluster, nginx: Nginx) -> None:
    async with cluster.running(nginx.url) as whole:
        code, output, errors = await curl(f"{whole.url}/big")
        assert (code, hashlib.sha256(output).hexdigest()) == (0, BIG_SHA256), errors
        code, _, errors = await curl("-f", "-T", "-", "-H", "Expect:", f"{whole.url}/up/{whole.cluster}", stdin=BIG)
        assert code == 0, errors
        stored = nginx.directory / "www" / "up" / whole.cluster
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == BIG_SHA256
        stored.unlink()


async def test_chunked_download_keeps_its_digest(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, aiohttp.ClientSession() as client:
        for path in ("chunked", "big"):
            async with client.get(f"{whole.url}/{path}") as answer:
                assert hashlib.sha256(await answer.read()).hexdigest() == BIG_SHA256
        if whole.kind == "base":
            seen = whole.stats()
            assert seen["dropped_packets"] == 0
            assert seen["largest_packet_in"] < 4 * 1024 * 1024


async def test_upload_and_download_on_one_kept_alive_connection(cluster: Cluster) -> None:
    """With a base hub the second request's body comes as raw packets rather than as one."""
    async with running_origin() as origin, cluster.running(origin.url) as whole, aiohttp.ClientSession() as client:
        for _ in range(3):
            async with client.post(f"{whole.url}/digest", data=io.BytesIO(BIG)) as answer:
                assert await answer.json() == {"sha256": BIG_SHA256, "length": len(BIG)}


async def test_fifty_clients_at_once_each_get_their_own_answer(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        connector = aiohttp.TCPConnector(limit=50)
        async with aiohttp.ClientSession(connector=connector) as client:

            async def one(number: int) -> None:
                for turn in range(4):
                    body = f"{number}-{turn} ".encode() * 100
                    async with client.post(f"{whole.url}/echo", data=body) as answer:
                        assert await answer.read() == body

            await asyncio.gather(*(one(number) for number in range(50)))
        if whole.kind == "base":
            assert whole.stats()["connections"] == 50


async def test_head_has_the_length_and_no_body(cluster: Cluster, nginx: Nginx) -> None:
    async with cluster.running(nginx.url) as whole, http_client() as client:
        for _ in range(2):  # the second shows that the connection is where it should be
            answer = await client.head(f"{whole.url}/big")
            assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, str(len(BIG)), b"")
        assert (await client.get(f"{whole.url}/hello")).text == "hello from nginx\n"


async def test_ranges_and_not_modified(cluster: Cluster, nginx: Nginx) -> None:
    async with cluster.running(nginx.url) as whole, http_client() as client:
        part = await client.get(f"{whole.url}/big", headers={"Range": "bytes=1000-70999"})
        assert (part.status_code, part.content) == (206, BIG[1000:71000])
        unchanged = await client.get(f"{whole.url}/big", headers={"If-None-Match": part.headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert (await client.get(f"{whole.url}/missing")).status_code == 404


async def test_http_1_0_client_is_answered_and_closed(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole:
        code, output, errors = await curl("-0", f"{whole.url}/hello")
        assert (code, output) == (0, b"hello from the origin\n"), errors
        code, output, errors = await curl("-0", "--data-binary", "@-", f"{whole.url}/digest", stdin=BIG[:100_000])
        assert json.loads(output)["length"] == 100_000, errors


async def test_streamed_answer_arrives_piece_by_piece(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, aiohttp.ClientSession() as client:
        answer = await client.get(f"{whole.url}/drip?pieces=4")
        async with asyncio.timeout(scaled(15)):
            for number in range(4):
                assert await answer.content.readuntil(b"\n\n") == b"data: %d\n\n" % number
                origin.go_on.release()  # the next piece isn't even written before this one has come
            assert await answer.content.read() == b""


async def test_websocket_carries_messages_both_ways(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, aiohttp.ClientSession() as client:
        socket = await client.ws_connect(f"{whole.url}/ws")
        async with asyncio.timeout(scaled(15)):
            for number in range(20):
                await socket.send_str(str(number))
                assert await socket.receive_str() == f"echo {number}"
            for size in (0, 1, 70_000, 1_000_000):
                await socket.send_bytes(BIG[:size])
                assert await socket.receive_bytes() == BIG[:size]
            await socket.close()
            assert socket.close_code == 1000


async def test_cluster_without_an_agent_is_a_503(cluster: Cluster) -> None:
    async with cluster.hub() as whole:
        _, output, _ = await curl("-o", "/dev/null", "-w", "%{http_code}", f"{whole.url}/hello")
        assert output == b"503"


async def test_path_without_a_route_is_a_404(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.hub() as whole:
        await whole.start_agent(routes=(f"/api={origin.url}/v1",))
        async with http_client() as client:
            assert (await client.get(f"{whole.url}/apix")).status_code == 404
            assert (await client.get(f"{whole.url}/")).status_code == 404
            assert (await client.get(f"{whole.url}/api/x")).status_code == 200
        assert origin.seen == ["GET /v1/x"]


async def test_target_that_is_down_is_a_502(cluster: Cluster, unused_port: int) -> None:
    async with cluster.running(f"http://127.0.0.1:{unused_port}") as whole, http_client() as client:
        for _ in range(2):
            answer = await client.get(f"{whole.url}/")
            assert answer.status_code == 502
            assert answer.headers["content-type"].startswith("text/plain")
            assert str(unused_port) not in answer.text
        assert (await client.post(f"{whole.url}/", content=BIG[:500_000])).status_code == 502


async def test_past_max_connections_is_a_503_with_retry_after(cluster: Cluster) -> None:
    async with (
        running_origin() as origin,
        cluster.running(origin.url, memory_comm=MemoryCommConfig(max_connections=2)) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(15)),
    ):
        held = [asyncio.ensure_future(client.get(f"{whole.url}/hold")) for _ in range(2)]
        for _ in held:
            await origin.arrived.acquire()
        refused = await client.get(f"{whole.url}/hello")
        assert (refused.status, int(refused.headers["Retry-After"]) > 0) == (503, True)
        for _ in held:
            origin.go_on.release()
        for answer in await asyncio.gather(*held):
            assert (answer.status, await answer.read()) == (200, b"held and let go\n")
        again = await client.get(f"{whole.url}/hello")  # on a connection that was let in
        assert again.status == 200


@pytest.mark.parametrize("hub_kind", ["base"], indirect=True)
async def test_other_clusters_path_on_a_pinned_connection_is_a_421(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, http_client() as client:
        assert (await client.get(f"{whole.url}/hello")).status_code == 200
        answer = await client.get(f"http://127.0.0.1:{whole.http_port}/another/secret")
        assert (answer.status_code, answer.headers["connection"].lower()) == (421, "close")
        assert origin.seen == ["GET /hello"]


@pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)
async def test_our_hub_routes_each_request_by_its_own_path(cluster: Cluster) -> None:
    async with running_origin() as one, running_origin() as two, cluster.running(one.url) as whole:
        other = await whole.start_agent(cluster_name="other", routes=(f"/={two.url}",))
        async with http_client() as client:
            for _ in range(2):
                assert (await client.get(f"{whole.url}/a")).status_code == 200
                assert (await client.get(f"http://127.0.0.1:{whole.http_port}/other/b")).status_code == 200
            assert (await client.get(f"http://127.0.0.1:{whole.http_port}/third/c")).status_code == 503
        assert (one.seen, two.seen) == (["GET /a"] * 2, ["GET /b"] * 2)
        await other.stop()


async def test_pipelined_requests_are_answered_in_order(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, asyncio.timeout(scaled(15)):
        reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
        bodies = [f"body {number}".encode() for number in range(10)]
        writer.write(
            b"".join(
                b"POST /%s/echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s"
                % (whole.cluster.encode(), len(body), body)
                for body in bodies
            )
        )
        for body in bodies:
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(len(body)) == body
        writer.close()
        await writer.wait_closed()
