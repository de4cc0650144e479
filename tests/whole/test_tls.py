"""TLS on each of the three links: agent to hub, users to hub, agent to target."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import pathlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trustme
from aiohttp import web

from agent.cli.checks import run_checks
from agent.x509.peer import whose_dates

from ..own_responses import reason_of
from .whole_cluster import RunningAgent, running_hub
from .whole_peers import BaseHubProcess, curl, free_port, program, running_origin, until

HELLO = (0, b"hello from the origin\n")


class Files:
    """PEM files: a CA, a certificate of 127.0.0.1 and localhost, and an agent's certificate for cluster c1."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.authority = trustme.CA()
        self.ca = str(directory / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)
        pair = self.authority.issue_cert("127.0.0.1", "localhost")
        self.cert, self.key = str(directory / "cert.pem"), str(directory / "key.pem")
        pair.private_key_pem.write_to_path(self.key)
        for blob in pair.cert_chain_pems:
            blob.write_to_path(self.cert, append=True)
        self.named = str(directory / "named.pem")  # certificate and key of localhost alone
        self.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(self.named)
        agent = self.authority.issue_cert("c1", common_name="c1")
        self.agent = str(directory / "agent.pem")
        agent.private_key_and_cert_chain_pem.write_to_path(self.agent)
        self.other_ca = str(directory / "other.pem")
        trustme.CA().cert_pem.write_to_path(self.other_ca)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def tls_base_hub(files: Files) -> Iterator[BaseHubProcess]:
    process = BaseHubProcess(files.cert, files.key)
    yield process
    process.close()


@contextlib.asynccontextmanager
async def running_agent(mode: str, port: int, target: str, **config: object) -> AsyncIterator[RunningAgent]:
    agent = RunningAgent(
        routes=(f"/={target}",),
        use_memory_comm=mode == "memory",
        drain_grace_s=2.0,
        **({"cluster_name": "c1", "hub_address": f"127.0.0.1:{port}"} | config),
    )
    try:
        yield agent
    finally:
        await agent.stop()


async def test_our_hub_with_tls_on_both_ports(mode: str, files: Files) -> None:
    async with (
        running_origin() as origin,
        running_hub(
            grpc_cert_file=files.cert, grpc_key_file=files.key, http_cert_file=files.cert, http_key_file=files.key
        ) as (grpc_port, http_port),
        running_agent(mode, grpc_port, origin.url, hub_ca_file=files.ca) as agent,
    ):
        await agent.wait_ready()
        code, output, errors = await curl("--cacert", files.ca, f"https://127.0.0.1:{http_port}/c1/hello")
        assert (code, output) == HELLO, errors


async def test_base_hub_with_tls(mode: str, files: Files, tls_base_hub: BaseHubProcess) -> None:
    cluster = f"tls-{mode}"
    async with (
        running_origin() as origin,
        running_agent(
            mode,
            tls_base_hub.grpc_port,
            origin.url,
            hub_ca_file=files.ca,
            hub_server_name="localhost",
            cluster_name=cluster,
        ) as agent,
    ):
        await agent.wait_ready()
        assert (await curl(f"http://127.0.0.1:{tls_base_hub.http_port}/{cluster}/hello"))[:2] == HELLO


async def test_agents_certificate_lets_it_in_for_its_cluster_only(
    mode: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_origin() as origin,
        running_hub(grpc_cert_file=files.cert, grpc_key_file=files.key, agent_ca_file=files.ca) as (port, http_port),
        running_agent(mode, port, origin.url, hub_ca_file=files.ca, hub_client_cert_file=files.agent) as agent,
    ):
        await agent.wait_ready()
        assert (await curl(f"http://127.0.0.1:{http_port}/c1/hello"))[:2] == HELLO
        async with running_agent(
            mode, port, origin.url, hub_ca_file=files.ca, hub_client_cert_file=files.agent, cluster_name="c2"
        ):
            await until(lambda: [each for each in caplog.records if "PERMISSION_DENIED" in each.getMessage()])
            assert (await curl(f"http://127.0.0.1:{http_port}/c1/hello"))[:2] == HELLO
            _, output, _ = await curl("-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{http_port}/c2/")
            assert output == b"503"


@pytest.mark.loops("uvloop")  # asyncio in debug mode reports each failed handshake at the server
async def test_hub_that_another_ca_has_signed_is_not_spoken_to(
    mode: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running_hub(grpc_cert_file=files.cert, grpc_key_file=files.key) as (port, _),
        running_agent(mode, port, "http://127.0.0.1:9", hub_ca_file=files.other_ca) as agent,
    ):
        said = "unable to get local issuer certificate"
        await until(lambda: [each for each in caplog.records if said in each.getMessage()])
        assert not agent.ready.is_set()


MISTAKES = [
    ("no ca", {}, "unable to get local issuer certificate (hub_ca_file sets the trusted CAs)"),
    ("by address", {"hub_ca_file": "ca", "host": "127.0.0.1"}, "(hub_server_name sets another name)"),
    ("plaintext", {"insecure": True}, "before its first byte. If it speaks TLS there, unset insecure"),
    ("tls", {"hub_ca_file": "ca", "plain": True}, "the hub doesn't speak TLS there (insecure dials in plaintext)"),
    ("http port", {"hub_ca_file": "ca", "http": True}, "perhaps this is the hub's HTTP port"),
    ("plain http port", {"hub_ca_file": "ca", "http": True, "plain": True}, "perhaps this is the hub's HTTP port"),
    ("both plain", {"insecure": True, "http": True, "plain": True}, "perhaps this is the hub's HTTP port"),
]


@pytest.mark.loops("uvloop")  # as above
@pytest.mark.parametrize(("given", "said"), [each[1:] for each in MISTAKES], ids=[each[0] for each in MISTAKES])
async def test_what_is_wrong_with_a_dial_is_said_with_what_helps(
    given: dict[str, Any], said: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    served = {} if given.get("plain") else {"grpc_cert_file": files.named, "http_cert_file": files.named}
    config = {"insecure": given.get("insecure", False)}
    if "hub_ca_file" in given:
        config["hub_ca_file"] = files.ca
    async with running_hub(**served) as (port, http_port):
        address = f"{given.get('host', 'localhost')}:{http_port if 'http' in given else port}"
        async with running_agent("memory", port, "http://127.0.0.1:9", hub_address=address, **config):
            await until(lambda: [each for each in caplog.records if said in each.getMessage()])


@pytest.mark.loops("uvloop")
async def test_https_target_is_verified(mode: str, files: Files, base_hub_process: BaseHubProcess) -> None:
    async def hello(_request: web.BaseRequest) -> web.Response:
        return web.Response(text="hello from the origin\n")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.cert, files.key)
    runner = web.ServerRunner(web.Server(hello, access_log=None), shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    target = f"https://127.0.0.1:{runner.addresses[0][1]}"
    port = base_hub_process.grpc_port
    try:
        for number, (trusted, expected) in enumerate([(files.ca, b"200"), (files.other_ca, b"502")]):
            cluster = f"target-{mode}-{number}-{id(runner)}"
            config = {"target_ca_file": trusted, "cluster_name": cluster, "insecure": True}
            async with running_agent(mode, port, target, **config) as agent:
                await agent.wait_ready()
                url = f"http://127.0.0.1:{base_hub_process.http_port}/{cluster}/hello"
                for _ in range(2):
                    assert (await curl("-o", "/dev/null", "-w", "%{http_code}", url))[1] == expected
    finally:
        await runner.cleanup()
        await asyncio.sleep(0)


REFUSALS = [
    ("none", "the client showed no certificate"),
    ("other", "the client's certificate was refused: unable to get local issuer certificate"),
    ("expired", "the client's certificate was refused: certificate has expired"),
]


@pytest.mark.loops("uvloop")  # asyncio in debug mode reports each failed handshake at the server
@pytest.mark.parametrize(("kind", "said"), REFUSALS)
async def test_a_refused_certificate_is_named_at_both_ends(
    files: Files, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, kind: str, said: str
) -> None:
    own = {}
    if kind != "none":
        authority = trustme.CA() if kind == "other" else files.authority
        until_when = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) if kind == "expired" else None
        pair = authority.issue_cert("c1", common_name="c1", not_after=until_when)
        own["hub_client_cert_file"] = str(tmp_path / "agent.pem")
        pair.private_key_and_cert_chain_pem.write_to_path(own["hub_client_cert_file"])
    async with (
        running_hub(grpc_cert_file=files.cert, grpc_key_file=files.key, agent_ca_file=files.ca) as (port, _),
        running_agent("memory", port, "http://127.0.0.1:9", hub_ca_file=files.ca, **own),
    ):
        await until(lambda: [each for each in caplog.records if each.name == "agent.tunnel.client"])
        told = next(each for each in caplog.records if each.name == "agent.tunnel.client").getMessage()
        assert "refused our certificate" in told
        assert "hub_client_cert_file" in told
        own_is_named = "CN=c1" in told and "expired on 2020-01-01" in told
        assert own_is_named == (kind == "expired")
        hub = [each for each in caplog.records if each.getMessage() == "an agent's TLS handshake failed"]
        assert vars(hub[0])["reason"] == said


DATES = {
    "expired": (datetime.datetime(2020, 1, 1), datetime.datetime(2026, 1, 2), "expired on 2026-01-02"),
    "not yet": (datetime.datetime(2090, 1, 2), datetime.datetime(2091, 1, 1), "is not valid before 2090-01-02"),
}


def dated(files: Files, path: pathlib.Path, kind: str) -> str:
    """A certificate of localhost with such dates, and its key, in a file."""
    begins, ends, _ = DATES[kind]
    issued = files.authority.issue_cert("localhost", common_name="localhost", not_before=begins, not_after=ends)
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.loops("uvloop")  # asyncio in debug mode reports each failed handshake at the server
@pytest.mark.parametrize("kind", list(DATES))
async def test_an_agent_says_whose_certificate_has_expired_and_when(
    files: Files, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (tmp_path / "token").write_text("secret")
    cert = dated(files, tmp_path / "hub.pem", kind)
    async with (
        running_hub(grpc_cert_file=cert, agent_ca_file=files.ca) as (port, _),
        running_agent(
            "memory",
            port,
            "http://127.0.0.1:9",
            hub_ca_file=files.ca,
            hub_client_cert_file=files.agent,
            hub_token_file=str(tmp_path / "token"),
            hub_server_name="localhost",
        ),
    ):
        await until(lambda: [each for each in caplog.records if each.name == "agent.tunnel.client"])
        told = next(each for each in caplog.records if each.name == "agent.tunnel.client").getMessage()
        assert "the hub's certificate (" in told
        assert "CN=localhost" in told
        assert DATES[kind][2] in told
        # The second connection is given up before the hub could miss a certificate on it.
        assert "the client showed no certificate" not in caplog.text
        found = [vars(each) for each in caplog.records if each.getMessage().startswith("certificate ")]
        assert [each["setting"] for each in found] == ["grpc_cert_file"]


@pytest.mark.loops("uvloop")  # as above
async def test_a_hub_is_asked_for_its_certificate_once_a_minute_not_at_each_dial(
    files: Files, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def count(*arguments: Any) -> str:
        nonlocal asked
        asked += 1
        return await whose_dates(*arguments)

    def told() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.name == "agent.tunnel.client"]

    async def dial_again() -> None:
        before = len(told())
        agent.agent.reconnect_now()
        await until(lambda: len(told()) > before)

    monkeypatch.setattr("agent.tunnel.call.whose_dates", count)
    cert = dated(files, tmp_path / "hub.pem", "expired")
    async with (
        running_hub(grpc_cert_file=cert, allow_any_agent=True) as (port, _),
        running_agent("memory", port, "http://127.0.0.1:9", hub_ca_file=files.ca, hub_server_name="localhost") as agent,
    ):
        await until(lambda: bool(told()))
        for _ in range(4):
            await dial_again()
        assert asked == 1
        assert all(DATES["expired"][2] in each for each in told())
        monkeypatch.setattr("agent.tunnel.call._ASK_AGAIN_S", 0.0)
        for _ in range(2):
            await dial_again()
        assert asked > 1


@pytest.mark.loops("uvloop")
@pytest.mark.parametrize("kind", list(DATES))
async def test_a_targets_certificate_is_named_in_the_log_once_and_not_to_its_clients(
    files: Files, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO, logger="agent.proxy.dial")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(dated(files, tmp_path / "target.pem", kind))
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    target = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    async with (
        running_hub() as (port, http_port),
        running_agent("memory", port, target, insecure=True, target_ca_file=files.ca) as agent,
    ):
        await agent.wait_ready()
        for _ in range(3):
            _, output, _ = await curl(f"http://127.0.0.1:{http_port}/c1/")
            assert reason_of(output) == b"the target's certificate was not accepted\n"
        said = "a target's certificate was not accepted"
        (told,) = [vars(each) for each in caplog.records if each.getMessage() == said]
        assert told["target"] == target.removeprefix("https://")
        assert "the target's certificate (" in told["reason"]
        assert DATES[kind][2] in told["reason"]
    server.close()


@pytest.mark.loops("uvloop")
async def test_a_target_of_an_unknown_ca_names_the_setting(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agent.proxy.dial")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.named)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    target = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    said = "unable to get local issuer certificate (target_ca_file sets the trusted CAs)"
    async with running_hub() as (port, http_port), running_agent("memory", port, target, insecure=True) as agent:
        await agent.wait_ready()
        await curl(f"http://127.0.0.1:{http_port}/c1/")
        assert [each.__dict__["reason"] for each in caplog.records if each.name == "agent.proxy.dial"] == [said]
        results = [str(each) async for each in run_checks(agent.agent.config)]
    assert f"FAIL route /: TLS with {target.removeprefix('https://')} failed: {said}" in results
    server.close()


@pytest.mark.loops("uvloop")
async def test_the_alert_of_a_hub_that_sends_one_is_told_in_words(
    files: Files, tls_alerting_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_agent("memory", tls_alerting_port, "http://127.0.0.1:9", hub_ca_file=files.ca):
        await until(lambda: [each for each in caplog.records if each.name == "agent.tunnel.client"])
        told = next(each for each in caplog.records if each.name == "agent.tunnel.client")
        assert "the hub refused our certificate (hub_client_cert_file): it asks for one; trying" in told.getMessage()
        assert told.levelname == "ERROR"


@pytest.fixture
def tls_alerting_port(files: Files) -> Iterator[int]:
    """OpenSSL's `s_server`, which asks for a certificate and sends an alert if it gets none."""
    port = free_port()
    command = [program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-cert", files.cert, "-key", files.key]
    command += ["-Verify", "1", "-CAfile", files.ca, "-verify_return_error", "-alpn", "h2", "-quiet"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    try:
        yield port
    finally:
        process.kill()
        process.communicate()


@pytest.mark.loops("uvloop")
async def test_files_are_read_anew_for_each_dial(mode: str, files: Files, tmp_path: pathlib.Path) -> None:
    ca, own = tmp_path / "ca.pem", tmp_path / "own.pem"
    shutil.copyfile(files.other_ca, ca)
    other = trustme.CA().issue_cert("c1", common_name="c1")
    other.private_key_and_cert_chain_pem.write_to_path(str(own))
    async with (
        running_hub(grpc_cert_file=files.cert, grpc_key_file=files.key, agent_ca_file=files.ca) as (port, _),
        running_agent(mode, port, "http://127.0.0.1:9", hub_ca_file=str(ca), hub_client_cert_file=str(own)) as agent,
    ):
        await until(lambda: agent.agent.clients and agent.agent.clients[0].redials["tls"])
        shutil.copyfile(files.ca, ca)
        shutil.copyfile(files.agent, own)
        agent.agent.reconnect_now()
        await agent.wait_ready()
