"""The agent's certificate for targets (target_client_cert_file). nginx asks for one and reports its subject."""

from __future__ import annotations

import logging
import os
import pathlib
import shutil
import socket
import subprocess
from collections.abc import Iterator

import pytest
import trustme

from agent.config.loading import ConfigErrors
from agent.config.schema import AgentConfig, ProxyConfig
from agent.errors import ConfigError
from agent.policy.trust import FileTrust

CHECK_S = 0.02


@pytest.fixture
def carrier() -> str:
    return "pipe"  # what the client's side runs on makes no difference here


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory, ca: trustme.CA) -> Iterator[str]:
    """The URL of an nginx that requires a certificate of this CA.

    It responds with the certificate's name.
    """
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    root = tmp_path_factory.mktemp("asking")
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(root / "server.pem")
    ca.cert_pem.write_to_path(root / "ca.pem")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = "".join(f"{name}_temp_path {root}/t; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (root / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {root}/pid; error_log {root}/error.log; events {{}}\n"
        f"http {{ access_log off; {paths} server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {root}/server.pem;"
        f" ssl_certificate_key {root}/server.pem; ssl_client_certificate {root}/ca.pem; ssl_verify_client on;"
        f" location / {{ return 200 $ssl_client_s_dn; }} }} }}\n"
    )
    process = subprocess.Popen([program, "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")])
    try:
        for _ in range(1000):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                process.poll()
                assert process.returncode is None, (root / "error.log").read_text()
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def put(path: pathlib.Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


def test_the_key_may_be_in_the_certificates_file(tmp_path, ca):
    both = tmp_path / "both.pem"
    both.write_bytes(ca.issue_cert("agent").private_key_and_cert_chain_pem.bytes())
    FileTrust(cert_file=str(both))
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with pytest.raises(ConfigError) as caught:
        FileTrust(cert_file=str(tmp_path / "ca.pem"))
    assert caught.value.field == "target_client_cert_file"


async def test_targets_are_shown_the_certificate_of_now(stack, eventually, asking, ca, tmp_path, caplog):
    roots, cert, key = tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem"
    ca.cert_pem.write_to_path(roots)

    def issue(name: str) -> tuple[bytes, bytes]:
        issued = ca.issue_cert(f"{name}.test", common_name=name)
        return b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes()

    for path, content in zip((cert, key), issue("first"), strict=True):
        path.write_bytes(content)
    bare = FileTrust([roots], system_roots=False)
    async with stack(asking, ssl_context=bare.ssl_context) as h:
        assert (await (await h.open()).get()).status == 400, "nginx: no required certificate was sent"
    trust = FileTrust([roots], system_roots=False, cert_file=str(cert), key_file=str(key), check_interval_s=CHECK_S)
    async with stack(asking, ssl_context=trust.ssl_context, generation=lambda: trust.generation) as h:
        client = await h.open()
        assert b"CN=first" in (await client.get()).body
        certificate, private = issue("second")
        put(cert, certificate)  # the key is still the old one, so the last good pair stays in use
        await eventually(lambda: trust.generation >= 0 and trust.problem)
        assert b"CN=first" in (await client.get()).body
        said = [record.levelno for record in caplog.records if record.name.startswith("agent.policy")]
        assert said == [logging.ERROR]
        generation = trust.generation
        put(key, private)
        await eventually(lambda: trust.generation > generation)
        assert b"CN=second" in (await client.get()).body


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda file: ProxyConfig(routes=[("/", "https://a")], target_client_key_file=file), "target_client_key_file"),
        (lambda file: AgentConfig("h:1", "c1", target_client_cert_file=file), "target_client_cert_file"),
        (
            lambda file: AgentConfig(
                "h:1",
                "c1",
                routes=[("/", "https://a")],
                target_client_cert_file=file,
                certificate_provider="module:provider",
            ),
            "target_client_cert_file",
        ),
    ],
)
def test_what_does_not_go_together_is_said(make, field):
    with pytest.raises((ConfigError, ConfigErrors)) as caught:
        make(__file__)
    assert field in str(caught.value)
