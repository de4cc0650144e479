"""The hub's own health address: ready, metrics, and no label that an agent or a client could fill."""

from __future__ import annotations

import asyncio
import pathlib
import subprocess
import sys

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ..limits import scaled
from ..whole.whole_peers import running_origin
from .rollout_processes import ENVIRON, HubProcess, running_agent

pytestmark = pytest.mark.loops("asyncio")

LABELS = {
    "version",
    "fastpipe",
    "python",
    "loop",
    "state",
    "agents",
    "reason",
    "source",
    "status",
    "stage",
    "le",
    "direction",
}


async def read(client: aiohttp.ClientSession, port: int) -> dict[tuple[str, ...], float]:
    answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status == 200
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(await answer.text()):
        for sample in family.samples:
            if sample.name.startswith("fastpipe_hub_"):
                assert set(sample.labels) <= LABELS
                found[sample.name.removeprefix("fastpipe_hub_"), *sample.labels.values()] = sample.value
    return found


async def test_a_hub_counts_agents_requests_and_bytes(tmp_path: pathlib.Path, unused_port: int) -> None:
    hub = HubProcess(tmp_path / "hub.log", f"--health-address=127.0.0.1:{unused_port}", "--enable-metrics")
    try:
        async with (
            asyncio.timeout(scaled(60)),
            running_origin() as origin,
            aiohttp.ClientSession() as client,
            running_agent(tmp_path, hub, f"--route=/={origin.url}") as first,
            running_agent(tmp_path, hub, f"--route=/={origin.url}") as second,
        ):
            for page, text in (("healthz", "ok\n"), ("readyz", "ready\n")):
                answer = await client.get(f"http://127.0.0.1:{unused_port}/{page}")
                assert (answer.status, await answer.text()) == (200, text)
            body = b"x" * 100_000
            answer = await client.post(f"{first.url}/echo", data=body)
            assert await answer.read() == body
            assert (await client.get(f"{second.url}/hello")).status == 200
            assert (await client.get(f"{first.url}x/hello")).status == 503
            held = asyncio.ensure_future(client.post(f"{first.url}/hold", data=b"x"))
            await origin.arrived.acquire()
            found = await read(client, unused_port)
            assert found["ready",] == found["requests_in_flight",] == 1
            assert found["agents", "serving"] == found["sessions_total",] == found["clusters", "1"] == 2
            assert found["agents", "draining"] == found["clusters", "2"] == found["clusters", "3+"] == 0
            assert found["responses_total", "agent", "2xx"] == 2
            assert found["responses_total", "hub", "5xx"] == 1
            assert 100_000 < found["carried_bytes_total", "from_agents"] < 102_000
            assert 100_000 < found["carried_bytes_total", "to_agents"] < 102_000
            assert found["client_connections",] >= 1
            assert found["request_stage_seconds_count", "whole"] == 2
            second.signal("SIGTERM")
            assert await second.ends() == 0
            after = await read(client, unused_port)
            assert after["agents", "serving"] == after["clusters", "1"] == 1
            assert after["carried_bytes_total", "to_agents"] >= found["carried_bytes_total", "to_agents"]

            hub.signal("SIGTERM")
            await hub.logged("agent drains", times=2)
            assert (await client.get(f"http://127.0.0.1:{unused_port}/readyz")).status == 503
            origin.go_on.release()
            assert (await held).status == 200
            assert await hub.ends() == 0
        assert "level=error" not in hub.log
    finally:
        hub.close()


async def test_metrics_without_an_address_are_warned_of(tmp_path: pathlib.Path) -> None:
    hub = HubProcess(tmp_path / "hub.log", "--enable-metrics")
    try:
        await hub.logged("health_address isn't set")
    finally:
        hub.close()


def test_a_health_address_that_is_taken_ends_the_hub(unused_port: int) -> None:
    import socket

    with socket.create_server(("127.0.0.1", unused_port)):
        command = [sys.executable, "-m", "agent", "hub", "--grpc-address=127.0.0.1:0", "--http-address=127.0.0.1:0"]
        done = subprocess.run(
            [*command, f"--health-address=127.0.0.1:{unused_port}"],
            capture_output=True,
            text=True,
            timeout=30,
            env=ENVIRON,
            check=False,
        )
        assert done.returncode == 1
        assert str(unused_port) in done.stderr
