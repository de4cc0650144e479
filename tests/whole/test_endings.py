"""How a response that can't be completed ends for the client, by wire.md's table: never as if it were whole."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest

from ..limits import scaled
from .whole_cluster import Cluster
from .whole_peers import CUT, curl, running_origin, running_rude_origin, until

only_base_hub = pytest.mark.parametrize("hub_kind", ["base"], indirect=True)
only_our_hub = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello"


async def test_chunked_body_that_breaks_off_is_an_error_for_the_client(cluster: Cluster) -> None:
    async with running_rude_origin(CHUNKED) as url, cluster.running(url) as whole:
        code, output, errors = await curl("-f", f"{whole.url}/")
        # 22: a 502, if the failure overtook the first bytes. 18, 56: the body broke off, or is no longer chunked.
        assert code in (18, 22, 56), errors
        assert output in (b"", b"hello")
        if whole.kind == "base":
            assert len(whole.stats()["errors"]) == 1


@only_base_hub
async def test_sized_body_that_breaks_off_is_not_filled_up_by_an_error_text(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_rude_origin(SIZED) as url, cluster.running(url) as whole, asyncio.timeout(scaled(20)):
        reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
        writer.write(f"GET /{whole.cluster}/ HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\nhello")
        await until(lambda: whole.agent.agent.open_connections == 0)
        assert whole.stats()["errors"] == []
        assert [each for each in caplog.records if "truncated" in each.getMessage()]
        cluster.base.command(f"drop {whole.cluster}")  # the base hub closes its clients only now
        assert await reader.read() == b""
        writer.close()


@only_our_hub
@pytest.mark.loops("uvloop")
async def test_sized_body_that_breaks_off_ends_short_at_our_hub(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our hub finds out by its probe, as it would with any base agent: within two intervals of 10 s."""
    monkeypatch.setattr("agent.hub.session.PROBE_INTERVAL_S", 0.1)
    async with (
        running_rude_origin(SIZED) as url,
        cluster.running(url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        answer = await client.get(f"{whole.url}/")
        with pytest.raises(CUT):
            await answer.read()


async def test_target_that_answers_nothing_is_a_502(cluster: Cluster) -> None:
    async with (
        running_rude_origin(b"") as url,
        cluster.running(url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        assert (await client.post(f"{whole.url}/", data=b"x")).status == 502


async def test_target_that_answers_garbage_is_a_502(cluster: Cluster) -> None:
    async with (
        running_rude_origin(b"SSH-2.0-OpenSSH_9.2\r\n") as url,
        cluster.running(url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        answer = await client.get(f"{whole.url}/")
        assert answer.status == 502
        assert "OpenSSH" not in await answer.text()


async def test_body_that_its_target_ends_by_closing_arrives_whole(cluster: Cluster) -> None:
    body = b"until the end " * 10_000
    async with (
        running_rude_origin(b"HTTP/1.1 200 OK\r\n\r\n" + body) as url,
        cluster.running(url) as whole,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(20)),
    ):
        for _ in range(2):
            answer = await client.get(f"{whole.url}/")
            assert (answer.status, await answer.read()) == (200, body)


async def test_client_that_goes_away_ends_its_request_at_the_target(cluster: Cluster) -> None:
    """A base hub reports it only when the next piece comes. Our hub reports it at once."""
    async with running_origin() as origin, cluster.running(origin.url) as whole, asyncio.timeout(scaled(20)):
        async with aiohttp.ClientSession() as client:
            answer = await client.get(f"{whole.url}/drip?pieces=100000")
            await origin.arrived.acquire()
            answer.close()
        while origin.broken.locked():
            origin.go_on.release()
            await asyncio.sleep(0.001)  # one piece, and the time it takes to find that nobody wants it
        await until(lambda: whole.agent.agent.open_connections == 0)
        if whole.kind == "base":
            assert whole.stats()["errors"] == []  # an ERROR never gets one back


@only_base_hub
async def test_client_that_resets_in_the_middle_of_an_upload_leaves_nothing_open(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A base hub doesn't report it, and no byte is on its way back. DRAIN's own probes find it."""
    caplog.set_level(logging.ERROR)
    async with (
        running_origin() as origin,
        cluster.running(origin.url, drain_grace_s=30.0) as whole,
        asyncio.timeout(scaled(20)),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
        writer.write(f"GET /{whole.cluster}/hello HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        await reader.readuntil(b"hello from the origin\n")
        writer.write(f"POST /{whole.cluster}/digest HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n".encode())
        writer.write(b"x" * 100_000)
        await until(lambda: origin.seen == ["GET /hello", "POST /digest"])
        writer.transport.abort()
        await cluster.base.until(whole.cluster, lambda seen: seen["open_connections"] == 0)
        await whole.agent.stop(timeout_s=10)
        assert [each for each in caplog.records if each.name.startswith("agent")] == []


@only_our_hub
async def test_client_that_resets_in_the_middle_of_an_upload_is_told_at_once(cluster: Cluster) -> None:
    async with running_origin() as origin, cluster.running(origin.url) as whole, asyncio.timeout(scaled(20)):
        _, writer = await asyncio.open_connection("127.0.0.1", whole.http_port)
        writer.write(f"POST /{whole.cluster}/digest HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n".encode())
        writer.write(b"x" * 100_000)
        await until(lambda: origin.seen == ["POST /digest"])
        writer.transport.abort()
        await until(lambda: whole.agent.agent.open_connections == 0, timeout_s=5)
