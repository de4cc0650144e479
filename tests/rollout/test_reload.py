"""SIGHUP as an operator uses it: the file changes, the process reloads, open connections stay."""

from __future__ import annotations

import asyncio
import pathlib
from typing import Any

import aiohttp
import pytest

from ..limits import scaled
from ..whole.whole_peers import BaseHubProcess, running_origin
from .rollout_processes import AgentProcess, HubProcess, running_agent, scrape

pytestmark = pytest.mark.loops("asyncio")

READ = "the configuration was reloaded"


class Settings:
    """The agent's TOML file. `write` replaces everything except the base."""

    def __init__(self, path: pathlib.Path, base: str) -> None:
        self.path = path
        self._base = base
        self.write("")

    def write(self, text: str) -> None:
        self.path.write_text(self._base + text)


async def reloaded(agent: AgentProcess, settings: Settings, text: str) -> str:
    """Change the file and send SIGHUP. Returns what the process logged then."""
    before = agent.log
    settings.write(text)
    agent.signal("SIGHUP")
    await agent.logged(READ, before.count(READ) + 1)
    return agent.log[len(before) :]


@pytest.fixture
def settings(tmp_path: pathlib.Path, unused_port: int) -> Settings:
    return Settings(
        tmp_path / "agent.toml",
        f'health_address = "127.0.0.1:{unused_port}"\nmemory_comm.enable_metrics = true\n',
    )


async def get(url: str) -> int:
    """The status of a request on its own connection."""
    async with aiohttp.ClientSession() as client, client.get(url, headers={"Connection": "close"}) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize("before", ["uds", "memory"])
async def test_the_mode_changes_for_new_connections_and_drops_none(
    tmp_path: pathlib.Path, base_hub: BaseHubProcess, settings: Settings, unused_port: int, before: str
) -> None:
    after = "memory" if before == "uds" else "uds"
    modes = {"uds": "use_memory_comm = false\n", "memory": "use_memory_comm = true\n"}
    settings.write(modes[before])
    async with (
        running_origin() as origin,
        aiohttp.ClientSession() as client,
        asyncio.timeout(scaled(60)),
        running_agent(tmp_path, base_hub, f"--config={settings.path}", f"--route=/={origin.url}") as agent,
    ):
        stream = await client.get(f"{agent.url}/drip?pieces=2")
        await origin.arrived.acquire()
        said = await reloaded(agent, settings, modes[after])
        assert 'msg="setting changed" setting=use_memory_comm' in said
        assert "redials=false" in said
        assert await get(f"{agent.url}/hello") == 200
        page = await scrape(unused_port)
        assert page["connections_open", before] == 1
        assert page["connections_opened_total", before] == 1
        assert page["connections_opened_total", after] == 1

        await reloaded(agent, settings, modes[before])
        assert await get(f"{agent.url}/hello") == 200
        origin.go_on.release()
        origin.go_on.release()
        assert await stream.read() == b"data: 0\n\ndata: 1\n\n"
        page = await scrape(unused_port)
        assert page["connections_opened_total", before] == 2
        assert page["connections_opened_total", after] == 1
        assert page["hub_sessions_total", f"127.0.0.1:{base_hub.grpc_port}"] == 1
        assert base_hub.stats(agent.cluster)["streams"] == 1


@pytest.mark.parametrize("percent", [0, 1, 30, 100])
async def test_a_canary_gets_exactly_its_share_of_100(
    tmp_path: pathlib.Path, base_hub: BaseHubProcess, settings: Settings, unused_port: int, percent: int
) -> None:
    settings.write(f"memory_comm.canary_percent = {percent}\n")
    async with (
        running_origin() as origin,
        asyncio.timeout(scaled(60)),
        running_agent(tmp_path, base_hub, f"--config={settings.path}", f"--route=/={origin.url}") as agent,
    ):
        for _ in range(10):
            assert set(await asyncio.gather(*(get(f"{agent.url}/hello") for _ in range(10)))) == {200}
        page = await scrape(unused_port)
        assert page["connections_opened_total", "memory"] == percent
        assert page["connections_opened_total", "uds"] == 100 - percent
        assert page["memory_share_percent"] == percent
        if 0 < percent < 100:  # both side by side
            for mode in ("memory", "uds"):
                assert page["request_stage_seconds_count", mode, "whole"] == page["connections_opened_total", mode]
                assert page["responses_total", mode, "target", "2xx"] == page["connections_opened_total", mode]

        await reloaded(agent, settings, "memory_comm.canary_percent = 50\n")
        for _ in range(10):
            await get(f"{agent.url}/hello")
        page = await scrape(unused_port)
        assert page["connections_opened_total", "memory"] == percent + 5


async def test_what_changed_and_what_needs_a_restart_is_said_in_one_line_each(
    tmp_path: pathlib.Path, our_hub: HubProcess, settings: Settings
) -> None:
    settings.write('route = ["/=http://127.0.0.1:9"]\n')
    async with (
        asyncio.timeout(scaled(60)),
        running_origin() as origin,
        running_agent(tmp_path, our_hub, f"--config={settings.path}") as agent,
    ):
        said = await reloaded(
            agent,
            settings,
            f'route = ["/={origin.url}"]\nlog_level = "debug"\nloop = "asyncio"\ndrain_grace_s = 3\n'
            'uds_socket_path = "/tmp/elsewhere.sock"\nlimits.keep_alive_s = 9.5\nmemory_comm.max_connections = 5\n',
        )
        for name, value in {
            "route": f'"[\\"/={origin.url}\\"]"',
            "log_level": "debug",
            "drain_grace_s": "3.0",
            "limits.keep_alive_s": "9.5",
            "memory_comm.max_connections": "5",
        }.items():
            assert said.count(f'msg="setting changed" setting={name} value={value}\n') == 1, said
        for name in ("loop", "uds_socket_path"):
            assert said.count(f'msg="setting needs a restart" setting={name} ') == 1
        assert said.count("setting=") == 7
        assert await get(f"{agent.url}/hello") == 200  # by the new route


async def test_a_wrong_file_changes_nothing_and_every_error_is_said(
    tmp_path: pathlib.Path, our_hub: HubProcess, settings: Settings
) -> None:
    async with (
        running_origin() as origin,
        asyncio.timeout(scaled(60)),
        running_agent(tmp_path, our_hub, f"--config={settings.path}", f"--route=/={origin.url}") as agent,
    ):
        settings.write('use_memory_comm = "yes"\nmemory_comm.max_connections = 0\n')
        agent.signal("SIGHUP")
        await agent.logged("nothing of it was applied", 2)
        assert "use_memory_comm (from" in agent.log
        assert "memory_comm.max_connections (from" in agent.log
        assert await get(f"{agent.url}/hello") == 200
        said = await reloaded(agent, settings, "")
        assert "changed=0 redials=false" in said


async def test_a_hub_is_dialled_anew_only_where_its_settings_changed(
    tmp_path: pathlib.Path, base_hub: BaseHubProcess, settings: Settings
) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    settings.write(f'hub_token_file = "{token}"\n')
    async with (
        running_origin() as origin,
        asyncio.timeout(scaled(60)),
        running_agent(tmp_path, base_hub, f"--config={settings.path}", f"--route=/={origin.url}") as agent,
    ):
        held = asyncio.ensure_future(get(f"{agent.url}/hold"))
        await origin.arrived.acquire()
        same = f'hub_token_file = "{token}"\n'
        assert "redials=false" in await reloaded(agent, settings, same)
        token.write_text("second\n")
        assert "redials=true" in await reloaded(agent, settings, same)
        await agent.logged("the next session waits for the end of this one")
        assert base_hub.stats(agent.cluster)["streams"] == 1  # a second one could lock a Go hub up
        origin.go_on.release()
        assert await held == 200  # the first session continued until its requests finished
        stats: dict[str, Any] = await base_hub.until(agent.cluster, lambda seen: seen["streams"] == 2)
        assert ["authorization", "Bearer second"] in stats["metadata"]
        assert "Bearer" not in agent.log
        assert "second" not in agent.log


@pytest.mark.parametrize("mode", ["--use-memory-comm", "--no-use-memory-comm"])
async def test_past_max_connections_a_client_gets_503_and_is_counted(
    tmp_path: pathlib.Path, base_hub: BaseHubProcess, settings: Settings, unused_port: int, mode: str
) -> None:
    settings.write("memory_comm.max_connections = 2\n")
    name = "memory" if mode == "--use-memory-comm" else "uds"
    async with (
        running_origin() as origin,
        asyncio.timeout(scaled(60)),
        aiohttp.ClientSession() as client,
        running_agent(tmp_path, base_hub, f"--config={settings.path}", f"--route=/={origin.url}", mode) as agent,
    ):
        held = [asyncio.ensure_future(get(f"{agent.url}/hold")) for _ in range(2)]
        for _ in held:
            await origin.arrived.acquire()
        refused = await client.get(f"{agent.url}/hello")
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.headers["Connection"].lower() == "close"
        page = await scrape(unused_port)
        assert page["connections_refused_total", name, "max_connections"] == 1
        assert page["responses_total", name, "agent", "5xx"] == 1
        assert page["requests_in_flight"] == 2

        await reloaded(agent, settings, "memory_comm.max_connections = 3\n")
        assert await get(f"{agent.url}/hello") == 200
        for _ in held:
            origin.go_on.release()
        assert await asyncio.gather(*held) == [200, 200]
        assert origin.seen.count("GET /hello") == 1


@pytest.mark.parametrize("mode", ["uds", "memory"])
async def test_all_that_can_change_at_once_drops_no_request_in_flight(
    cluster: Any, tmp_path: pathlib.Path, unused_port: int, mode: str
) -> None:
    """Allow-list, mode, share, buffers, limits, log level and grace of an agent in front of an API server."""
    (tmp_path / "services").write_text("web/shop\n")
    (tmp_path / "others").write_text("web/other:8443\n")
    before = {
        "use_memory_comm": mode == "memory",
        "service_allow_file": str(tmp_path / "services"),
        "log_level": "warning",
        "health_address": f"127.0.0.1:{unused_port}",
        "memory_comm.enable_metrics": True,
    }
    after = {
        "use_memory_comm": True,
        "service_allow_file": str(tmp_path / "others"),
        "log_level": "info",
        "memory_comm.canary_percent": 50,
        "memory_comm.buffer_size": 8192,
        "limits.keep_alive_s": 30.0,
        "drain_grace_s": 7.0,
    }
    bob = {"Authorization": "Bearer bob"}

    async def held(client: aiohttp.ClientSession, url: str) -> tuple[int, str]:
        async with client.post(f"{url}/hold", headers=bob, data=b"x" * 100_000) as answer:
            return answer.status, await answer.text()

    async with (
        cluster() as it,
        asyncio.timeout(scaled(60)),
        aiohttp.ClientSession() as client,
        it.agent(**before, **it.kubernetes()) as agent,
    ):

        async def service(name: str) -> int:
            url = f"{agent.url}/api/v1/namespaces/web/services/https:{name}/proxy-service/"
            async with client.get(url, headers=bob) as answer:
                return answer.status

        # An allowed service has no address here and gets a 502. A denied one gets a 403.
        assert (await service("shop:443"), await service("other:8443")) == (502, 403)
        waiting = [asyncio.ensure_future(held(client, agent.url)) for _ in range(8)]
        for _ in waiting:
            await it.managed.arrived.acquire()
        assert "level=info" not in agent.log
        opened = (await scrape(unused_port))["connections_opened_total", mode]

        it.write(**{**before, **after, "cluster_name": "another", "health_address": "127.0.0.1:1"}, **it.kubernetes())
        agent.signal("SIGHUP")
        await agent.logged(READ)
        for name in after.keys() - {"use_memory_comm"}:
            if name != "log_level":
                line = f'level=info logger=agent.spoke.agent msg="setting changed" setting={name} '
                assert agent.log.count(line) == 1
        assert 'msg="setting changed" setting=log_level' in agent.log
        assert agent.log.count('msg="setting needs a restart" setting=') == 1
        assert 'msg="setting needs a restart" setting=health_address' in agent.log
        assert "cluster_name" not in agent.log  # a flag wins over the file
        assert "redials=false" in agent.log

        assert (await service("shop:443"), await service("other:8443")) == (403, 502)
        page = await scrape(unused_port)
        assert page["connections_open", mode] >= 8
        assert page["connections_opened_total", mode] >= opened
        for _ in range(4):
            assert await get(f"{agent.url}/healthz") == 401
        for _ in waiting:
            it.managed.go_on.release()
        assert await asyncio.gather(*waiting) == [(200, '{"from": "managed"}')] * 8
        assert [len(each.body) for each in it.managed.received] == [100_000] * 8
        hub = f"127.0.0.1:{it.grpc_port}"
        assert (await scrape(unused_port))["hub_sessions_total", hub] == 1

        (tmp_path / "others").write_text("no such line\n")  # a list that turns bad leaves the last good one
        agent.signal("SIGHUP")
        await agent.logged("nothing of the changed configuration was applied")
        assert (await service("shop:443"), await service("other:8443")) == (403, 502)
        assert "Bearer" not in agent.log
        agent.signal("SIGTERM")
        assert await agent.ends() == 0
