"""A hub's name with several addresses: a tunnel to each, as DNS knows them."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sys
from typing import Any

import aiohttp
import pytest

import agent.spoke.links
from agent import HubConfig
from agent.hub.hub import Hub
from agent.spoke.links import resolve
from agent.syntax import Address

from ..limits import scaled
from .whole_cluster import RunningAgent
from .whole_peers import free_port, running_origin, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is no address of other systems' loopback")


class RunningHub:
    """A hub on an address of the loopback's."""

    def __init__(self, host: str, grpc_port: int) -> None:
        self.http_port = 0
        config = HubConfig(grpc_address=f"{host}:{grpc_port}", http_address="127.0.0.1:0", drain_grace_s=0.1)
        self._hub = Hub(config, on_listening=self._listening)
        self._task = asyncio.ensure_future(self._hub.run())

    def _listening(self, kind: str, _host: str, port: int) -> None:
        if kind == "http":
            self.http_port = port

    def tunnels(self) -> int:
        """So far."""
        return self._hub.sessions_opened

    def agents(self) -> int:
        return len(self._hub._sessions.get("c1", ()))

    async def serves(self) -> None:
        await until(lambda: self.http_port and self.agents())
        async with aiohttp.ClientSession() as client:
            assert (await client.get(f"http://127.0.0.1:{self.http_port}/c1/hello")).status == 200

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def test_each_address_of_a_name_has_a_tunnel(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    names = {"hubs.test": ["127.0.0.1"]}

    async def known(host: str) -> list[str]:
        return names[host]

    monkeypatch.setattr(agent.spoke.links, "resolve", known)
    monkeypatch.setattr(agent.spoke.links, "RESOLVE_INTERVAL_S", 0.05)
    names["hubs.test"] = ["127.0.0.1", "127.0.0.2"]
    port = free_port()
    async with running_origin() as origin, asyncio.timeout(scaled(30)):
        hubs = {number: RunningHub(f"127.0.0.{number}", port) for number in (1, 2, 3)}
        running = RunningAgent(
            hub_address=f"hubs.test:{port}",
            cluster_name="c1",
            insecure=True,
            routes=(f"/={origin.url}",),
            use_memory_comm=mode == "memory",
            drain_grace_s=2.0,
        )
        try:
            await running.wait_ready()
            await hubs[1].serves()
            await hubs[2].serves()
            assert hubs[3].agents() == 0
            names["hubs.test"] = ["127.0.0.2", "127.0.0.3"]
            await hubs[3].serves()
            assert hubs[1].agents() == 1  # DNS does not name it now, but it responds
            await hubs[1].stop()
            await until(lambda: len(running.agent.clients) == 2)
            await hubs[2].serves()
            assert hubs[2].agents() == hubs[3].agents() == 1
        finally:
            await running.stop()
            for hub in hubs.values():
                await hub.stop()


async def test_addresses_that_come_and_go_leave_the_others_their_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"hubs.test": ["127.0.0.1"]}
    loop = asyncio.get_running_loop()
    create = loop.create_connection

    async def connect(factory: Any, host: Any = None, *args: Any, **options: Any) -> Any:
        return await create(factory, names["hubs.test"][0] if host == "hubs.test" else host, *args, **options)

    asked = 0

    async def known(host: str) -> list[str]:
        nonlocal asked
        asked += 1
        return names[host]

    monkeypatch.setattr(loop, "create_connection", connect, raising=False)
    monkeypatch.setattr(agent.spoke.links, "resolve", known)
    monkeypatch.setattr(agent.spoke.links, "RESOLVE_INTERVAL_S", 0.05)
    port = free_port()
    async with running_origin() as origin, asyncio.timeout(scaled(30)):
        hubs = {number: RunningHub(f"127.0.0.{number}", port) for number in (1, 2)}
        running = RunningAgent(
            hub_address=f"hubs.test:{port}",
            cluster_name="c1",
            insecure=True,
            routes=(f"/={origin.url}",),
            use_memory_comm=True,
            drain_grace_s=2.0,
        )
        try:
            await hubs[1].serves()
            names["hubs.test"] = ["127.0.0.1", "127.0.0.2"]
            await hubs[2].serves()
            seen = asked
            await until(lambda: asked >= seen + 3)
            assert hubs[1].tunnels() == hubs[2].tunnels() == 1
            names["hubs.test"] = ["127.0.0.2"]
            await hubs[1].stop()
            await until(lambda: len(running.agent.clients) == 1)
            seen = asked
            await until(lambda: asked >= seen + 3)
            await hubs[2].serves()
            assert hubs[2].tunnels() == 1
            await hubs[2].stop()  # and where that one is lost, the name is dialled
            hubs[2] = RunningHub("127.0.0.2", port)
            names["hubs.test"] = ["127.0.0.1"]
            await until(lambda: [link.ip for link in running.agent.links._links] == [""])
        finally:
            await running.stop()
            for hub in hubs.values():
                await hub.stop()


async def test_an_address_that_is_left_can_be_wanted_again_before_it_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = ["hubs.test"]

    async def known(host: str) -> list[str]:
        return {"hubs.test": ["127.0.0.1", "127.0.0.2"], "others.test": ["127.0.0.3", "127.0.0.4"]}[host]

    monkeypatch.setattr(agent.spoke.links, "resolve", known)
    port = free_port()
    async with running_origin() as origin, aiohttp.ClientSession() as client, asyncio.timeout(scaled(30)):
        hub = RunningHub("127.0.0.1", port)
        running = RunningAgent(
            hub_address=f"hubs.test:{port}",
            cluster_name="c1",
            insecure=True,
            routes=(f"/={origin.url}",),
            use_memory_comm=True,
            drain_grace_s=2.0,
        )
        links = running.agent.links
        monkeypatch.setattr(links, "_addresses", lambda: (Address(configured[0], port),))
        try:
            await hub.serves()
            held = asyncio.ensure_future(client.post(f"http://127.0.0.1:{hub.http_port}/c1/hold", data=b"held"))
            await origin.arrived.acquire()
            for host in ("others.test", "hubs.test"):
                configured[0] = host
                links.look_again()
                await until(lambda host=host: {each.host for each in links._links if not each.left} == {host})
            await until(lambda: hub.tunnels() == 2)
            await hub.serves()
            origin.go_on.release()
            assert await (await held).read() == b"held"
            await until(lambda: not [each for each in links._links if each.left])
        finally:
            await running.stop()
            await hub.stop()


async def test_the_addresses_of_a_name_that_was_replaced_are_not_dialled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even during the lookup of the new name, because they would get the token under the new name."""
    names = {"old.test": ["127.0.0.1", "127.0.0.2"], "new.test": ["127.0.0.3", "127.0.0.4"]}
    asked, known = asyncio.Event(), asyncio.Event()

    async def look(host: str) -> list[str]:
        if host == "new.test":
            asked.set()
            await known.wait()
        return names[host]

    monkeypatch.setattr(agent.spoke.links, "resolve", look)
    port = free_port()
    async with running_origin() as origin, asyncio.timeout(scaled(30)):
        hubs = {number: RunningHub(f"127.0.0.{number}", port) for number in (1, 2, 3, 4)}
        running = RunningAgent(
            hub_address=f"old.test:{port}",
            cluster_name="c1",
            insecure=True,
            routes=(f"/={origin.url}",),
            use_memory_comm=True,
            drain_grace_s=2.0,
        )
        try:
            await running.wait_ready()
            await hubs[1].serves()
            await hubs[2].serves()
            await running.agent.reload(dataclasses.replace(running.agent.config, hub_address=f"new.test:{port}"))
            await asked.wait()
            await until(lambda: hubs[1].agents() == hubs[2].agents() == 0)  # the agent has left the old name's hubs
            known.set()
            await hubs[3].serves()
            await hubs[4].serves()
            assert [hub.tunnels() for hub in hubs.values()] == [1, 1, 1, 1]
        finally:
            known.set()
            await running.stop()
            for hub in hubs.values():
                await hub.stop()


async def test_a_name_that_nobody_knows_is_said_and_dialled_again(caplog: pytest.LogCaptureFixture) -> None:
    running = RunningAgent(
        hub_address="hub.invalid:8443",
        cluster_name="c1",
        insecure=True,
        routes=("/=http://127.0.0.1:9",),
        use_memory_comm=True,
    )
    said = "no connection to hub.invalid:8443"
    await until(lambda: [record for record in caplog.records if said in record.getMessage()])
    await running.stop()


async def test_localhost_is_one_hub_whatever_its_families() -> None:
    assert len(await resolve("localhost")) == 1
    assert await resolve("127.0.0.1") == ["127.0.0.1"]


async def test_of_two_families_the_one_with_more_addresses_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    v4, v6 = socket.AF_INET, socket.AF_INET6
    found = [(v6, "fd00::1"), (v4, "10.0.0.1"), (v4, "10.0.0.2"), (v4, "10.0.0.2"), (v6, "fd00::2"), (v6, "fd00::3")]

    async def getaddrinfo(*_: object, **__: object) -> list[object]:
        return [(family, socket.SOCK_STREAM, 6, "", (ip, 0)) for family, ip in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    assert await resolve("hubs.test") == ["fd00::1", "fd00::2", "fd00::3"]
