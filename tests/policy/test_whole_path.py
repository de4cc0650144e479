"""Identity through the whole path: user, hub, tunnel, agent, API server, over both carriers. And an idle agent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from agent import Agent, AgentConfig, HubConfig, MemoryCommConfig
from agent.hub.hub import Hub

from .api_server import ApiServer
from .gate import Answer, ask_at, bearer, until
from .test_attacks import ATTACKS, Attack, check_identity

ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "KUBERNETES_"))}

PSS_MIB = {"without the extra": 38.0, "with the extra": 45.0}


class Behind:
    """The parts that `check_identity` needs, behind a hub."""

    def __init__(self, managed: ApiServer, hub: ApiServer, port: int) -> None:
        self.managed = managed
        self.hub = hub
        self.port = port

    async def ask(self, attack: Attack) -> Answer:
        lines = [f"{attack.method} {attack.path} HTTP/1.1".encode(), b"Host: hub", *attack.lines]
        return await ask_at(self.port, b"\r\n".join(lines) + b"\r\n\r\n" + attack.body)


@contextlib.asynccontextmanager
async def running_hub(**config: Any) -> AsyncIterator[tuple[int, int]]:
    """The ports of a hub: agents', users'."""
    ports: list[int] = []
    hub = Hub(
        HubConfig(grpc_address="127.0.0.1:0", http_address="127.0.0.1:0", drain_grace_s=0.1, **config),
        on_listening=lambda kind, host, port: ports.append(port),
    )
    task = asyncio.create_task(hub.run())
    await until(lambda: len(ports) == 2 or task.done())
    try:
        yield ports[0], ports[1]
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def whole_path(
    managed: ApiServer, hub: ApiServer, *, http_cert_file: str = "", **config: Any
) -> AsyncIterator[Behind]:
    async with running_hub(http_cert_file=http_cert_file) as (grpc_port, http_port):
        ready = asyncio.Event()
        agent = Agent(
            AgentConfig(
                hub_address=f"127.0.0.1:{grpc_port}",
                cluster_name="c1",
                insecure=True,
                drain_grace_s=0.1,
                kubeconfig=managed.kubeconfig(),
                hub_kubeconfig=hub.kubeconfig(),
                **config,
            ),
            on_ready=ready.set,
        )
        task = asyncio.create_task(agent.run())
        await asyncio.wait_for(ready.wait(), 20)
        try:
            yield Behind(managed, hub, http_port)
        finally:
            task.cancel()
            await asyncio.wait([task])


# The hub itself responds to these. It routes by the path's first segment, and checks framing.
HUBS_OWN = {"another cluster's path": 503, "dots lead out of the cluster": 503}
CHOSEN = [
    attack
    for number, attack in enumerate(ATTACKS)
    if number % 3 == 0 or attack.name in HUBS_OWN or "Connection" in attack.name or "trailer" in attack.name
]


@pytest.mark.parametrize("memory", [False, True], ids=["uds", "memory"])
@pytest.mark.loops("uvloop")
async def test_nobody_gains_an_identity_through_hub_and_agent(clusters: Callable[..., Any], memory: bool) -> None:
    async with clusters() as (managed, hub), whole_path(managed, hub, use_memory_comm=memory) as path:
        assert len(CHOSEN) >= 40
        for attack in CHOSEN:
            managed.received.clear()
            answer = await path.ask(attack)
            assert (answer.status >= 400) == (attack.status >= 400), (attack.name, answer.status, answer.body)
            if attack.name not in HUBS_OWN:
                assert answer.status == attack.status, (attack.name, answer.body)
            check_identity(path, attack)


async def test_a_kept_alive_client_changes_its_token_and_never_its_neighbours(clusters: Callable[..., Any]) -> None:
    """Many users' requests over few tunnel connections: each arrives as its own user."""
    async with clusters() as (managed, hub), whole_path(managed, hub, use_memory_comm=True) as path:
        for number in range(20):
            hub.users[f"h{number}"] = {"username": f"hub-{number}", "groups": [f"g{number}"]}
            managed.users[f"m{number}"] = {"username": f"managed-{number}"}

        async def client(first: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", path.port)
            for step in range(10):
                number = (first + step) % 20
                token = f"{'hm'[step % 2]}{number}"
                writer.write(
                    b"GET /c1/as/%b HTTP/1.1\r\nHost: hub\r\nImpersonate-Uid: 0\r\n%b\r\n\r\n"
                    % (token.encode(), bearer(token))
                )
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            writer.close()
            await writer.wait_closed()

        await asyncio.gather(*(client(number) for number in range(20)))
        assert len(managed.received) == 200
        for received in managed.received:
            token = received.target.rpartition("/")[2]
            if token.startswith("h"):
                assert received.values(b"authorization") == [b"Bearer managed-own-token"]
                assert received.like(b"impersonate-") == [
                    (b"Impersonate-User", f"hub-{token[1:]}".encode()),
                    (b"Impersonate-Group", f"g{token[1:]}".encode()),
                ]
            else:
                assert received.values(b"authorization") == [f"Bearer {token}".encode()]
                assert received.like(b"impersonate-") == [(b"Impersonate-Uid", b"0")]
        assert sorted(managed.reviews) == sorted({*managed.reviews})  # one review for each token


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl isn't on this machine")
@pytest.mark.parametrize("memory", [False, True], ids=["uds", "memory"])
@pytest.mark.loops("uvloop")
async def test_kubectl_is_who_its_token_says(
    clusters: Callable[..., Any], authority: trustme.CA, tmp_path: Path, memory: bool
) -> None:
    """Users have this client. Its own --as counts for this cluster's users, and never for a hub's."""
    certificate = tmp_path / "hub.pem"  # kubectl sends tokens over TLS only
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    async with (
        clusters() as (managed, hub),
        whole_path(managed, hub, use_memory_comm=memory, http_cert_file=str(certificate)) as path,
    ):

        async def kubectl(token: str, *arguments: str) -> tuple[int, bytes, bytes]:
            user_config = tmp_path / f"{token}.user"
            user_config.write_text(
                f"{{current-context: it, contexts: [{{name: it, context: {{cluster: c, user: u}}}}], "
                f"clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{path.port}/c1', "
                f"certificate-authority: '{managed.ca_file}'}}}}], "
                f"users: [{{name: u, user: {{token: {token}}}}}]}}"
            )
            process = await asyncio.create_subprocess_exec(
                "kubectl",
                "--kubeconfig",
                str(user_config),
                *arguments,
                env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            output, errors = await asyncio.wait_for(process.communicate(), 60)
            assert not errors or token == "mallory", errors
            return process.returncode or 0, output, errors

        get = ("get", "--raw", "/c1/api/v1/pods?limit=1")  # --raw drops the path of the server
        as_root = ("--as", "root", "--as-group", "system:masters")
        assert (await kubectl("bob", *as_root, *get))[:2] == (0, b'{"from": "managed"}')
        assert (await kubectl("alice", *as_root, *get))[0] == 0
        code, _, errors = await kubectl("mallory", *get)
        assert code == 1
        assert b"Unauthorized" in errors or b"logged in" in errors
        bob, alice = [each for each in managed.received if each.target == "/api/v1/pods?limit=1"]
        assert bob.values(b"authorization") == [b"Bearer managed-own-token"]
        assert bob.like(b"impersonate-") == [
            (b"Impersonate-User", b"bob"),
            (b"Impersonate-Group", b"team"),
            (b"Impersonate-Group", b"cluster:hub:system:masters"),
            (b"Impersonate-Group", b"system:authenticated"),
        ]
        assert alice.values(b"authorization") == [b"Bearer alice"]
        assert sorted(alice.like(b"impersonate-")) == [  # kubectl speaks HTTP/2, whose names are in lower case
            (b"impersonate-group", b"system:masters"),
            (b"impersonate-user", b"root"),
        ]


# As a process -----------------------------------------------------------------------------------------------------


def pss_mib(pid: int) -> float:
    """Proportional set size: what the process would give back, and its share of what others use too."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("extra", list(PSS_MIB))
@pytest.mark.loops("uvloop")
async def test_an_idle_agent_is_light(clusters: Callable[..., Any], extra: str) -> None:
    async with clusters() as (managed, hub), running_hub() as (grpc_port, http_port):
        flags = ["--hub-address", f"127.0.0.1:{grpc_port}", "--cluster-name", "c1", "--insecure"]
        if extra == "with the extra":
            flags += ["--kubeconfig", managed.kubeconfig(), "--hub-kubeconfig", hub.kubeconfig()]
        else:
            flags += ["--route", f"/={managed.url}", "--target-ca-file", str(managed.ca_file)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent",
            "run",
            *flags,
            env=ENVIRON,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 20) == b"ready\n"
            # It has served: reviews at both clusters over TLS, and a connection to the target.
            answer = await ask_at(http_port, b"GET /c1/a HTTP/1.1\r\nHost: hub\r\n" + bearer("bob") + b"\r\n\r\n")
            assert answer.status == 200
            assert pss_mib(process.pid) < PSS_MIB[extra]
        finally:
            process.terminate()
            await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0


WRONG_FILES: dict[str, tuple[str, str, list[str]]] = {
    "kubeconfig": ("users: own-secret", "kubeconfig", ["kubeconfig (from ", "must be a kubeconfig file"]),
    "hub_kubeconfig": ("a: [own-secret", "hub_kubeconfig", ["hub_kubeconfig (from ", "valid YAML"]),
    "service_allow_file": ("own-secret\n", "service_allow_file", ["service_allow_file (from ", "line 1 must be"]),
}


@pytest.mark.parametrize("name", list(WRONG_FILES))
@pytest.mark.loops("uvloop")
async def test_a_file_that_cant_be_used_exits_2_and_says_why(
    clusters: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    content, field, said = WRONG_FILES[name]
    async with clusters() as (managed, hub):
        (tmp_path / "wrong").write_text(content)
        files = {"kubeconfig": managed.kubeconfig(), "hub_kubeconfig": hub.kubeconfig()}
        files[field] = str(tmp_path / "wrong")
        flags = ["--hub-address", "127.0.0.1:1", "--cluster-name", "c1", "--insecure"]
        for key, value in files.items():
            flags += [f"--{key.replace('_', '-')}", value]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent",
            "run",
            *flags,
            env=ENVIRON,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, output) == (2, b"")
        for text in said:
            assert text in errors.decode()
        assert b"own-secret" not in errors
        assert b"Traceback" not in errors


async def test_reviews_are_on_the_metrics_page(clusters: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings: dict[str, Any] = {
        "memory_comm": MemoryCommConfig(enable_metrics=True),
        "health_address": address,
        "use_memory_comm": True,
    }
    async with clusters() as (managed, hub), whole_path(managed, hub, **settings) as path:
        for token in ("bob", "bob", "bob", "alice", "mallory", "mallory"):
            await ask_at(path.port, b"GET /c1/a HTTP/1.1\r\nHost: hub\r\n" + bearer(token) + b"\r\n\r\n")
        port = int(address.rpartition(":")[2])
        page = await ask_at(port, b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        found = dict(re.findall(rb'^\w*token_reviews_total\{outcome="(\w+)"\} (\S+)$', page.body, re.MULTILINE))
        assert {key: float(value) for key, value in found.items()} == {
            b"managed": 1,
            b"hub": 1,
            b"unknown": 1,
            b"unfit": 0,
            b"failed": 0,
        }
        assert b"bob" not in page.body
