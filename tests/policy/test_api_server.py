"""How API servers are reached: kubeconfig files with tokens, certificates or plugins, service accounts, changes."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from agent.errors import ConfigError
from agent.policy.api_server import AccessError, ApiAccess
from agent.policy.exec_plugin import API_VERSIONS, ExecCredential, ExecPlugin, PluginError, parse_credential

from .gate import Gate, bearer

V1 = API_VERSIONS[0]


def own_certificate(ca: trustme.CA, name: str) -> dict[str, str]:
    """A kubeconfig's user with a client certificate whose common name is `name`."""
    issued = ca.issue_cert(common_name=name)
    return {
        "client-certificate-data": base64.b64encode(b"".join(p.bytes() for p in issued.cert_chain_pems)).decode(),
        "client-key-data": base64.b64encode(issued.private_key_pem.bytes()).decode(),
    }


def plugin(directory: Path, code: str, **fields: Any) -> dict[str, Any]:
    """A kubeconfig's user with an exec plugin that runs this Python. Each run appends a line to `runs`."""
    script = directory / "plugin.py"
    script.write_text(
        "import json, os, sys\n"
        f"open({str(directory / 'runs')!r}, 'a').write('run\\n')\n"
        f"def say(**status): print(json.dumps({{'apiVersion': {V1!r}, 'kind': 'ExecCredential', 'status': status}}))\n"
        + code
    )
    return {"exec": {"apiVersion": V1, "command": sys.executable, "args": [str(script)]} | fields}


def runs(directory: Path) -> int:
    return (directory / "runs").read_text().count("run")


# As whom ----------------------------------------------------------------------------------------------------------


async def test_a_token_file_beside_the_kubeconfig_is_read_anew(clusters: Callable[..., Any], tmp_path: Path) -> None:
    async with clusters() as (managed, hub):
        token = tmp_path / "token"
        token.write_text("managed-own-token\n")
        path = managed.kubeconfig({"tokenFile": "token"})
        async with Gate(managed, hub, kubeconfig=path, token_cache_s=0) as gate:
            assert (await gate.ask(bearer("bob"))).status == 200
            # Rotated: the old one is refused from now on, and nobody waits for the next look at the file.
            managed.own_tokens = {"rotated"}
            token.write_text("rotated\n")
            assert (await gate.ask(bearer("bob"))).status == 200
            assert [each.values(b"authorization") for each in managed.received] == [
                [b"Bearer managed-own-token"],
                [b"Bearer rotated"],
            ]
            # Gone: the last good one stays.
            token.unlink()
            assert (await gate.ask(bearer("bob"))).status == 200
            # Wrong for good: no review, no pass.
            managed.own_tokens = {"a third"}
            assert (await gate.ask(bearer("bob"))).status == 503


async def test_a_client_certificate_is_shown_for_hub_users_and_for_nobody_else(
    clusters: Callable[..., Any], authority: trustme.CA
) -> None:
    """wire.md, safety rule 5: the API server believes a certificate before a token."""
    async with clusters() as (managed, hub):
        path = managed.kubeconfig(own_certificate(authority, "managed-own"))
        async with Gate(managed, hub, kubeconfig=path) as gate:
            for _ in range(3):
                for token in ("alice", "bob"):
                    assert (await gate.ask(bearer(token))).status == 200
            seen = [(each.certificate, each.values(b"authorization")) for each in managed.received]
            assert seen == [("", [b"Bearer alice"]), ("managed-own", [])] * 3
            assert all(head.certificate == "managed-own" for head in managed.review_heads)
            for each in managed.received[1::2]:
                assert each.values(b"impersonate-user") == [b"bob"]
            # Kept alive and shared among clients, and still never across identities.
            assert gate.upstreams.idle_connections == 2


async def test_one_client_that_changes_its_token_never_gets_the_agents_connection(
    clusters: Callable[..., Any], authority: trustme.CA
) -> None:
    async with clusters() as (managed, hub):
        path = managed.kubeconfig(own_certificate(authority, "managed-own"))
        async with Gate(managed, hub, kubeconfig=path) as gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", gate.port)
            for token in ("bob", "alice", "bob", "alice", "mallory"):
                head = f"GET /c1/api HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {token}\r\n\r\n"
                writer.write(head.encode())
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                await reader.readexactly(length)
                assert answer.startswith(b"HTTP/1.1 401" if token == "mallory" else b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()
            assert [each.certificate for each in managed.received] == ["managed-own", "", "managed-own", ""]


async def test_a_plugins_token_is_used_until_it_is_refused(
    clusters: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.policy.api_server.SHORTEST_LIFE_S", 0.0)
    async with clusters() as (managed, hub):
        managed.own_tokens = {"given-1", "given-2"}
        code = (
            f"number = open({str(tmp_path / 'runs')!r}).read().count('run')\n"
            "say(token=f'given-{number}', expirationTimestamp=None)\n"
        )
        path = managed.kubeconfig(plugin(tmp_path, code))
        async with Gate(managed, hub, kubeconfig=path, token_cache_s=0) as gate:
            answers = await asyncio.gather(*(gate.ask(bearer("bob")) for _ in range(5)))
            assert {answer.status for answer in answers} == {200}
            assert runs(tmp_path) == 1
            managed.own_tokens = {"given-2"}  # refused, so the plugin must give another
            assert (await gate.ask(bearer("bob"))).status == 200
            assert runs(tmp_path) == 2
            assert managed.received[-1].values(b"authorization") == [b"Bearer given-2"]


async def test_a_token_that_has_run_out_is_asked_for_anew(
    clusters: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.policy.api_server.SHORTEST_LIFE_S", 0.0)
    async with clusters() as (managed, _hub):
        code = "say(token='managed-own-token', expirationTimestamp='2020-01-01T00:00:00Z')\n"
        access = ApiAccess.from_kubeconfig(managed.kubeconfig(plugin(tmp_path, code)), field="kubeconfig")
        assert access.headers() is None
        assert await access.renew() == ((b"Authorization", b"Bearer managed-own-token"),)
        assert access.headers() is None  # past its time already
        await access.renew()
        assert runs(tmp_path) == 2


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("say(token='managed-own-token', expirationTimestamp='2020-01-01T00:00:00Z')", 200),  # our clock has jumped
        ("say(token='refused')", 503),
        ("sys.exit(1)", 503),
    ],
)
async def test_no_flood_of_requests_is_one_of_plugins(
    clusters: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, status: int
) -> None:
    monkeypatch.setattr("agent.policy.api_server.SHORTEST_LIFE_S", 30.0)
    async with clusters() as (managed, hub):
        path = managed.kubeconfig(plugin(tmp_path, code + "\n"))
        async with Gate(managed, hub, kubeconfig=path, token_cache_s=0) as gate:
            for _ in range(3):
                answers = await asyncio.gather(*(gate.ask(bearer(token)) for token in ("bob", "alice", "carol")))
                assert {answer.status for answer in answers} - {401} == {status}
            assert runs(tmp_path) == 1


async def test_a_plugins_certificate_is_shown(
    clusters: Callable[..., Any], tmp_path: Path, authority: trustme.CA
) -> None:
    async with clusters() as (managed, hub):
        issued = authority.issue_cert(common_name="managed-own")
        status = {
            "clientCertificateData": issued.cert_chain_pems[0].bytes().decode(),
            "clientKeyData": issued.private_key_pem.bytes().decode(),
        }
        path = managed.kubeconfig(plugin(tmp_path, f"say(**{status!r})\n"))
        async with Gate(managed, hub, kubeconfig=path) as gate:
            assert (await gate.ask(bearer("bob"))).status == 200
            assert (await gate.ask(bearer("alice"))).status == 200
            assert [each.certificate for each in managed.received] == ["managed-own", ""]
            assert runs(tmp_path) == 1


@pytest.mark.parametrize(
    "code",
    [
        "sys.exit(3)",
        "print('own-secret')",
        "print('{}')",
        "say()",
        "say(token=5)",
        "say(token='a b')",
        "say(clientCertificateData='x')",
        "say(clientCertificateData='x', clientKeyData='y')",
        "say(token='x', expirationTimestamp='soon')",
        "print('x' * 2_000_000)",
    ],
)
async def test_a_plugin_that_gives_nothing_is_a_503(
    clusters: Callable[..., Any], tmp_path: Path, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with clusters() as (managed, hub):
        path = managed.kubeconfig(plugin(tmp_path, code + "\n"))
        async with Gate(managed, hub, kubeconfig=path) as gate:
            assert (await gate.ask(bearer("bob"))).status == 503
            assert managed.reviews == []
        assert "own-secret" not in caplog.text


async def test_a_plugin_gets_what_kubernetes_says_and_is_found_beside_the_file(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "login"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\nimport json, os\n"
        "info = json.loads(os.environ['KUBERNETES_EXEC_INFO'])\n"
        "spec = info['spec']\n"
        "token = f\"{info['apiVersion']}|{spec['interactive']}|{spec['cluster']['server']}|{os.environ['A']}\"\n"
        f"print(json.dumps({{'apiVersion': {V1!r}, 'kind': 'ExecCredential', 'status': {{'token': token}}}}))\n"
    )
    script.chmod(0o700)
    document = kubeconfig_of(
        user={
            "exec": {
                "apiVersion": V1,
                "command": "./bin/login",
                "env": [{"name": "A", "value": "b"}],
                "provideClusterInfo": True,
                "interactiveMode": "IfAvailable",
            }
        }
    )
    (tmp_path / "config").write_text(yaml.safe_dump(document))
    access = ApiAccess.from_kubeconfig(str(tmp_path / "config"), field="kubeconfig")
    assert await access.renew() == ((b"Authorization", f"Bearer {V1}|False|https://h:6443|b".encode()),)


async def test_a_plugin_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.policy.exec_plugin.TIMEOUT_S", 0.2)
    with pytest.raises(PluginError, match="took more than"):
        await ExecPlugin(sys.executable, ["-c", "import time; time.sleep(60)"]).run()
    with pytest.raises(PluginError, match="can't be run"):
        await ExecPlugin("/no/such/plugin").run()


@pytest.mark.parametrize(("lifetime_s", "expected"), [(3600, 3600), (-5, -5), (None, None)])
def test_an_expiry_is_a_lifetime(lifetime_s: float | None, expected: float | None) -> None:
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    status: dict[str, Any] = {"token": "t"}
    if lifetime_s is not None:
        expires = now + datetime.timedelta(seconds=lifetime_s)
        status["expirationTimestamp"] = expires.isoformat().replace("+00:00", "Z")
    answer = json.dumps({"apiVersion": V1, "kind": "ExecCredential", "status": status}).encode()
    assert parse_credential(answer, V1, now=now) == ExecCredential("t", lifetime_s=expected)


# Unusable kubeconfigs ---------------------------------------------------------------------------------------------


def kubeconfig_of(*, user: Any = None, cluster: Any = None, **top: Any) -> dict[str, Any]:
    return {
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://h:6443"} | (cluster or {})}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
    } | top


WRONG: dict[str, tuple[Any, str]] = {
    "not YAML": ("a: [", "valid YAML"),
    "a list": ([], "kubeconfig"),
    "empty": ("", "kubeconfig"),
    "no clusters": ({"current-context": "it"}, "kubeconfig"),
    "no current context": (kubeconfig_of(**{"current-context": None}), "current context"),
    "another context": (kubeconfig_of(**{"current-context": "other"}), "current context"),
    "plaintext": (kubeconfig_of(cluster={"server": "http://h"}), "https://"),
    "user info": (kubeconfig_of(cluster={"server": "https://u:p-own-secret@h"}), "https://"),
    "insecure": (kubeconfig_of(cluster={"insecure-skip-tls-verify": True}), "insecure-skip-tls-verify"),
    "server name": (kubeconfig_of(cluster={"tls-server-name": "x"}), "tls-server-name"),
    "proxy": (kubeconfig_of(cluster={"proxy-url": "http://p"}), "proxy-url"),
    "CA not base64": (kubeconfig_of(cluster={"certificate-authority-data": "%"}), "certificate-authority-data"),
    "CA not PEM": (kubeconfig_of(cluster={"certificate-authority-data": "eHg="}), "certificate"),
    "no CA file": (kubeconfig_of(cluster={"certificate-authority": "none.pem"}), "readable file"),
    "no credentials": (kubeconfig_of(user={}), "token, a certificate, or an exec plugin"),
    "a password": (kubeconfig_of(user={"username": "u", "password": "own-secret"}), "token"),
    "auth-provider": (kubeconfig_of(user={"auth-provider": {"name": "gcp"}}), "exec plugin"),
    "token not a token": (kubeconfig_of(user={"token": "own secret"}), "visible ASCII"),
    "token file missing": (kubeconfig_of(user={"tokenFile": "none"}), "readable file"),
    "certificate without key": (kubeconfig_of(user={"client-certificate-data": "eHg="}), "together"),
    "certificate not PEM": (
        kubeconfig_of(user={"client-certificate-data": "eHg=", "client-key-data": "eHg="}),
        "client certificate",
    ),
    "plugin of long ago": (
        kubeconfig_of(user={"exec": {"apiVersion": V1 + "alpha1", "command": "x"}}),
        "v1beta1",
    ),
    "plugin with a terminal": (
        kubeconfig_of(user={"exec": {"apiVersion": V1, "command": "x", "interactiveMode": "Always"}}),
        "terminal",
    ),
    "plugin without a command": (kubeconfig_of(user={"exec": {"apiVersion": V1}}), "kubeconfig"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_kubeconfig_that_cant_be_kept_to_is_a_config_error(name: str, tmp_path: Path) -> None:
    content, said = WRONG[name]
    path = tmp_path / "config"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        ApiAccess.from_kubeconfig(str(path), field="hub_kubeconfig")
    assert (caught.value.field, caught.value.source) == ("hub_kubeconfig", str(path))
    assert said in str(caught.value)
    assert "own secret" not in str(caught.value)
    assert "own-secret" not in str(caught.value)


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(kubeconfig_of(user={"token": "own-secret"})))
    access = ApiAccess.from_kubeconfig(str(path), field="kubeconfig")
    assert "own-secret" not in repr(access._spec.value) + repr(ExecCredential("own-secret", b"", b"own-secret"))


# Files that change ------------------------------------------------------------------------------------------------


@pytest.mark.loops("uvloop")  # asyncio reports the stand-in's failed handshake as unhandled
async def test_another_ca_in_the_kubeconfig_is_for_the_next_connections(
    clusters: Callable[..., Any], authority: trustme.CA
) -> None:
    async with clusters() as (managed, hub), Gate(managed, hub, token_cache_s=0) as gate:
        assert (await gate.ask(bearer("alice"))).status == 200
        generation = gate.policy.generation
        other = base64.b64encode(trustme.CA().cert_pem.bytes()).decode()
        managed.kubeconfig(**{"certificate-authority-data": other})
        assert gate.policy.managed is not None
        gate.policy.managed.refresh(now=True)
        assert gate.policy.generation == generation + 1
        assert (await gate.ask(bearer("alice"))).status == 503  # no review or request reaches it now
        managed.kubeconfig()
        gate.policy.managed.refresh(now=True)
        assert (await gate.ask(bearer("alice"))).status == 200


async def test_a_kubeconfig_that_turns_bad_leaves_the_last_good_one(
    clusters: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with clusters() as (managed, hub), Gate(managed, hub, token_cache_s=0) as gate:
        managed.kubeconfig(server="https://elsewhere:1")
        assert gate.policy.managed is not None
        gate.policy.managed.refresh(now=True)
        assert "the server can't change" in caplog.text
        (tmp_path / "managed.kubeconfig").write_text("a: [")
        gate.policy.managed.refresh(now=True)
        assert gate.policy.managed.problem is not None
        assert (await gate.ask(bearer("alice"))).status == 200


# In a cluster -----------------------------------------------------------------------------------------------------


def service_account(directory: Path, ca: trustme.CA, token: str) -> Path:
    directory.mkdir()
    (directory / "token").write_text(token)
    (directory / "namespace").write_text("agents")
    ca.cert_pem.write_to_path(directory / "ca.crt")
    return directory


async def test_a_pod_uses_its_service_account(
    clusters: Callable[..., Any], authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with clusters() as (managed, hub):
        directory = service_account(tmp_path / "sa", authority, "managed-own-token")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(managed.port))
        monkeypatch.setattr("agent.policy.assembly.SERVICE_ACCOUNT", str(directory))
        monkeypatch.setattr("agent.policy.assembly.API_SERVER", managed.url)  # the default has no address here
        async with Gate(managed, hub, kubeconfig="", token_cache_s=0) as gate:
            for token in ("alice", "bob"):
                assert (await gate.ask(bearer(token))).status == 200
            # The kubelet rotates the token: by a symlink swap, which is another file under the same name.
            managed.own_tokens = {"rotated"}
            (directory / "new").write_text("rotated")
            (directory / "new").replace(directory / "token")
            assert (await gate.ask(bearer("bob"))).status == 200
            assert managed.received[-1].values(b"authorization") == [b"Bearer rotated"]


def test_a_pod_without_a_service_account_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ConfigError, match="service account"):
        ApiAccess.from_service_account(str(tmp_path / "none"))


def test_an_ipv6_service_address_is_bracketed(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    access = ApiAccess.from_service_account(str(service_account(tmp_path / "sa", authority, "t")))
    assert (access.server, access.address) == ("https://[fd00::1]:443", ("fd00::1", 443))
    assert access.context().verify_mode is ssl.CERT_REQUIRED
    assert not access.has_certificate


async def test_no_credentials_is_an_access_error(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(kubeconfig_of(user={"exec": {"apiVersion": V1, "command": "/no/such"}})))
    with pytest.raises(AccessError):
        await ApiAccess.from_kubeconfig(str(path), field="kubeconfig").renew()
