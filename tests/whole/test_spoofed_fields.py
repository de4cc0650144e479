"""A user's forwarding fields never reach a target. A request has one id in both logs and in the response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from ..own_responses import reason_of
from ..proxy.test_forwarded_fields import NAMES, SPELLINGS
from .whole_cluster import Cluster

SPOOFED = "6.6.6.6"


class Heads:
    """A target that keeps the heads of its requests."""

    def __init__(self) -> None:
        self.url = ""
        self.heads: list[str] = []

    def fields(self) -> dict[str, str]:
        """The fields of the last request, by lower-case name."""
        lines = self.heads[-1].split("\r\n")[1:]
        found = [line.split(": ", 1) for line in lines if line]
        assert len({name.lower() for name, _ in found}) == len(found), lines
        return {name.lower(): value for name, value in found}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running_heads() -> AsyncIterator[Heads]:
    made = Heads()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield made


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_a_users_forwarding_fields_never_reach_a_target(cluster: Cluster, spelling: str) -> None:
    async with running_heads() as target, cluster.running(target.url) as whole, aiohttp.ClientSession() as client:
        for names in (NAMES, *([name] for name in NAMES)):
            headers = {SPELLINGS[spelling](name): SPOOFED for name in names}
            async with client.get(f"{whole.url}/x", headers=headers) as answer:
                assert answer.status == 200
            assert SPOOFED not in target.heads[-1]
        fields = target.fields()
        if cluster.hub_kind == "ours":
            assert fields["x-forwarded-for"] == "127.0.0.1"
            assert fields["x-forwarded-proto"] == "http"
            assert fields["x-forwarded-host"] == f"127.0.0.1:{whole.http_port}"
            assert fields["x-forwarded-port"] == str(whole.http_port)
        else:
            assert "x-forwarded-for" not in fields
        assert fields["x-forwarded-prefix"] == f"/{whole.cluster}"
        assert len(fields["x-request-id"]) == 32


async def test_an_id_is_in_both_logs_and_in_the_response(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dead = "http://127.0.0.1:1"
    async with cluster.running(dead) as whole, aiohttp.ClientSession() as client:
        answer = await client.get(f"{whole.url}/x")
        text = await answer.text()
        assert (answer.status, reason_of(text)) == (502, "the target refused the connection\n")
        made = answer.headers["X-Request-Id"]
        assert text.endswith(f"request id: {made}\n")
    lines: list[Any] = [each for each in caplog.records if getattr(each, "request_id", "") == made]
    said = {each.getMessage() for each in lines}
    expected = {"the target refused the connection"}
    if cluster.hub_kind == "ours":
        expected.add("the agent responded with a failure")
    assert said == expected


async def test_kept_alive_requests_have_ids_of_their_own(cluster: Cluster) -> None:
    async with running_heads() as target, cluster.running(target.url) as whole, aiohttp.ClientSession() as client:
        for number in range(20):
            async with client.get(f"{whole.url}/{number % 2}") as answer:
                assert answer.status == 200
        ids = [head.split("X-Request-Id: ")[1].split("\r\n")[0] for head in target.heads]
        assert len(set(ids)) == len(ids) == 20


async def test_a_user_with_too_many_fields_is_refused_at_the_hub(cluster: Cluster) -> None:
    if cluster.hub_kind != "ours":
        pytest.skip("a base hub has other limits")
    async with running_heads() as target, cluster.running(target.url) as whole, aiohttp.ClientSession() as client:
        most = {f"X-{number}": "1" for number in range(250)}  # with the client's own fields, near the limit of 256
        async with client.get(f"{whole.url}/x", headers=most) as answer:
            assert answer.status == 200  # the fields that the hub adds are allowed beyond the limit
        async with client.get(f"{whole.url}/x", headers=most | {f"Y-{number}": "1" for number in range(9)}) as answer:
            assert (answer.status, reason_of(await answer.text())) == (431, "too many header fields\n")
