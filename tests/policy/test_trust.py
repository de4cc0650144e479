"""Trust: real handshakes in memory, strict PEM, and files that change or break under a running agent."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

import pytest
import trustme

from agent.errors import ConfigError
from agent.messages import Target
from agent.policy.reloading import Reloaded, read_token
from agent.policy.trust import (
    CertificateProvider,
    FileTrust,
    client_context,
    parse_certificates,
    server_context,
)

TARGET = Target("https://svc.test")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca() -> trustme.CA:
    return trustme.CA()


def pem(ca: trustme.CA) -> bytes:
    return ca.cert_pem.bytes()


def write(path: Path, content: bytes) -> str:
    """Replace a file as Kubernetes does, by a new one under its name."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    os.replace(new, path)
    return str(path)


def server_for(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


def handshake(
    client_side: ssl.SSLContext, server_side: ssl.SSLContext, name: str = "svc.test"
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a handshake done in memory. Raises ssl.SSLError as the first end to fail does."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(3):
        for end in (client, server):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    client.write(b"x")
    assert server.read(1) == b"x"  # TLS 1.3: what is wrong with a client's certificate shows here
    return client, server


# Trusted authorities --------------------------------------------------------------------------------------------------


def test_a_file_ca_is_trusted_and_the_host_name_checked(tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA) -> None:
    trust = FileTrust([write(tmp_path / "ca.pem", pem(ca))], system_roots=False)
    assert isinstance(trust, CertificateProvider)
    context = trust.ssl_context(TARGET)
    handshake(context, server_for(ca, "svc.test"))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, server_for(ca, "else.test"))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, server_for(other_ca, "svc.test"))


def test_several_files_and_several_certificates_in_one_are_all_trusted(tmp_path: Path, ca: trustme.CA) -> None:
    more = [trustme.CA(), trustme.CA()]
    bundle = b"# a bundle\n" + b"\n".join(pem(each) for each in more) + b"\ntrailing text\n"
    trust = FileTrust([write(tmp_path / "a.pem", pem(ca)), write(tmp_path / "b.pem", bundle)], system_roots=False)
    for each in (ca, *more):
        handshake(trust.ssl_context(TARGET), server_for(each, "svc.test"))


def test_an_intermediate_alone_is_an_anchor(tmp_path: Path, ca: trustme.CA) -> None:
    intermediate = ca.create_child_ca()
    trust = FileTrust([write(tmp_path / "ca.pem", pem(intermediate))], system_roots=False)
    handshake(trust.ssl_context(TARGET), server_for(intermediate, "svc.test"))


def test_contexts_verify_and_speak_tls_1_2_or_newer(tmp_path: Path, ca: trustme.CA) -> None:
    path = write(tmp_path / "ca.pem", pem(ca))
    ours = (FileTrust([path]), FileTrust())
    for context in (*(trust.ssl_context(TARGET) for trust in ours), client_context(ca_file=path)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname


def test_system_roots_are_trusted_unless_switched_off() -> None:
    assert not FileTrust(system_roots=False).ssl_context(TARGET).cert_store_stats()["x509"]


# Strict PEM -------------------------------------------------------------------------------------------------------


def broken_files(good: bytes, key: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "text": b"no certificate at all\n",
        "cut": good[: len(good) // 2],
        "cut after a whole one": good + good[: len(good) // 2],
        "cut before a whole one": good[: len(good) // 2] + good,
        "no base64": good.replace(b"A", b"!", 1),
        "bad padding": good.replace(b"-----END", b"=\n-----END"),
        "no certificate inside": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "nothing inside": b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
        "a key": key,
        "a key behind a certificate": good + key,
        "another label": good.replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE"),
        "labels that differ": good.replace(b"END CERTIFICATE", b"END CERTIFICATES"),
        "binary": bytes(range(256)) * 4,
    }


@pytest.mark.parametrize("kind", list(broken_files(b"", b"")))
def test_a_file_that_is_not_whole_certificates_is_refused(tmp_path: Path, ca: trustme.CA, kind: str) -> None:
    broken = broken_files(pem(ca), ca.private_key_pem.bytes())[kind]
    with pytest.raises(ValueError, match="the file"):
        parse_certificates(broken)
    with pytest.raises(ConfigError) as caught:
        FileTrust([write(tmp_path / "ca.pem", broken)])
    assert caught.value.field == "target_ca_file"
    assert caught.value.source == str(tmp_path / "ca.pem")


def test_windows_line_ends_are_right(ca: trustme.CA) -> None:
    assert parse_certificates(pem(ca).replace(b"\n", b"\r\n")) == parse_certificates(pem(ca))


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a readable file"):
        FileTrust([tmp_path / "none.pem"])


# Changing files ---------------------------------------------------------------------------------------------------


def test_a_changed_file_counts_the_generation_up_and_is_trusted(
    tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA
) -> None:
    path = tmp_path / "ca.pem"
    trust = FileTrust([write(path, pem(ca))], system_roots=False, check_interval_s=0)
    first = trust.ssl_context(TARGET)
    assert trust.ssl_context(TARGET) is first
    assert trust.generation == 0

    write(path, pem(other_ca))
    assert trust.generation == 1
    handshake(trust.ssl_context(TARGET), server_for(other_ca, "svc.test"))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(trust.ssl_context(TARGET), server_for(ca, "svc.test"))


def test_the_same_content_anew_is_no_new_generation(tmp_path: Path, ca: trustme.CA) -> None:
    path = tmp_path / "ca.pem"
    trust = FileTrust([write(path, pem(ca))], check_interval_s=0)
    write(path, pem(ca))
    assert trust.generation == 0
    assert trust.problem is None


@pytest.mark.parametrize("kind", ["cut", "empty", "gone"])
def test_a_broken_file_keeps_the_last_good_one_and_says_so_once(
    tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.pem"
    trust = FileTrust([write(path, pem(ca))], system_roots=False, check_interval_s=0)
    if kind == "gone":
        path.unlink()
    else:
        write(path, broken_files(pem(other_ca), b"")[kind])
    for _ in range(3):
        assert trust.generation == 0
        handshake(trust.ssl_context(TARGET), server_for(ca, "svc.test"))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "last good" in caplog.text
    assert trust.problem

    write(path, pem(other_ca))
    assert trust.generation == 1
    handshake(trust.ssl_context(TARGET), server_for(other_ca, "svc.test"))
    assert trust.problem is None


def test_files_are_looked_at_no_more_often_than_the_interval(tmp_path: Path) -> None:
    path = tmp_path / "value"
    value = Reloaded([write(path, b"1")], lambda contents: contents[0], field="f", check_interval_s=3600)
    write(path, b"22")
    assert value.refresh() == b"1"
    assert value.refresh(now=True) == b"22"


def test_a_file_past_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(16 * 1024 * 1024 + 1)
    with pytest.raises(ConfigError, match="at most 16777216 bytes"):
        Reloaded([str(path)], lambda contents: contents, field="f")


# The hub link and the hub's ports ---------------------------------------------------------------------------------


def test_agent_and_hub_show_each_other_certificates(tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA) -> None:
    ca_file = write(tmp_path / "ca.pem", pem(ca))
    hub = ca.issue_cert("hub.test")
    agent = ca.issue_cert("c1", common_name="c1")
    hub_cert = write(tmp_path / "hub.pem", b"".join(blob.bytes() for blob in hub.cert_chain_pems))
    hub_key = write(tmp_path / "hub.key", hub.private_key_pem.bytes())
    agent_both = write(tmp_path / "agent.pem", agent.private_key_and_cert_chain_pem.bytes())
    port = server_context(hub_cert, hub_key, cert_field="grpc_cert_file", client_ca_file=ca_file, alpn=["h2"])

    _, seen = handshake(client_context(ca_file=ca_file, cert_file=agent_both), port, "hub.test")
    assert seen.selected_alpn_protocol() == "h2"
    assert ("DNS", "c1") in (seen.getpeercert() or {})["subjectAltName"]
    with pytest.raises(ssl.SSLError):
        handshake(client_context(ca_file=ca_file), port, "hub.test")
    stranger = write(tmp_path / "stranger.pem", other_ca.issue_cert("c1").private_key_and_cert_chain_pem.bytes())
    with pytest.raises(ssl.SSLError):
        handshake(client_context(ca_file=ca_file, cert_file=stranger), port, "hub.test")

    optional = server_context(
        hub_cert, hub_key, cert_field="grpc_cert_file", client_ca_file=ca_file, client_required=False
    )
    _, seen = handshake(client_context(ca_file=ca_file), optional, "hub.test")
    assert not seen.getpeercert()


def test_a_port_serves_new_connections_with_its_files_of_that_time(
    tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    def chain(name: str) -> tuple[bytes, bytes]:
        issued = ca.issue_cert(name)
        return b"".join(blob.bytes() for blob in issued.cert_chain_pems), issued.private_key_pem.bytes()

    first, second = chain("first.test"), chain("second.test")
    cert, key, clients = tmp_path / "hub.pem", tmp_path / "hub.key", tmp_path / "clients.pem"
    roots = write(tmp_path / "roots.pem", pem(ca))
    ours = write(tmp_path / "ours.pem", ca.issue_cert("c1").private_key_and_cert_chain_pem.bytes())
    theirs = write(tmp_path / "theirs.pem", other_ca.issue_cert("c1").private_key_and_cert_chain_pem.bytes())
    port = server_context(
        write(cert, first[0]),
        write(key, first[1]),
        cert_field="grpc_cert_file",
        client_ca_file=write(clients, pem(ca)),
        alpn=["h2"],
        check_interval_s=0,
    )

    def connect(name: str, shown: str) -> None:
        _, seen = handshake(client_context(ca_file=roots, cert_file=shown), port, name)
        assert seen.selected_alpn_protocol() == "h2"

    connect("first.test", ours)
    write(cert, second[0])  # and not yet its key
    connect("first.test", ours)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    write(key, second[1])
    connect("second.test", ours)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect("first.test", ours)

    with pytest.raises(ssl.SSLError):
        connect("second.test", theirs)
    write(clients, pem(other_ca))
    connect("second.test", theirs)
    with pytest.raises(ssl.SSLError):
        connect("second.test", ours)


def test_a_wrong_certificate_or_key_is_a_config_error(tmp_path: Path, ca: trustme.CA) -> None:
    cert = write(tmp_path / "cert.pem", ca.issue_cert("a").cert_chain_pems[0].bytes())
    other_key = write(tmp_path / "other.key", ca.issue_cert("b").private_key_pem.bytes())
    for key in (other_key, cert, ""):
        with pytest.raises(ConfigError) as caught:
            server_context(cert, key, cert_field="grpc_cert_file")
        assert caught.value.field == "grpc_cert_file"
    with pytest.raises(ConfigError, match="hub_client_cert_file"):
        client_context(cert_file=cert, key_file=other_key)
    with pytest.raises(ConfigError, match="hub_ca_file"):
        client_context(ca_file=other_key)


def test_an_encrypted_key_is_an_error_and_never_asks_on_the_terminal(tmp_path: Path, ca: trustme.CA) -> None:
    from cryptography.hazmat.primitives import serialization

    issued = ca.issue_cert("a")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    cert = write(tmp_path / "cert.pem", issued.cert_chain_pems[0].bytes())
    with pytest.raises(ConfigError, match="unencrypted"):
        server_context(cert, write(tmp_path / "key.pem", encrypted), cert_field="grpc_cert_file")


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"a\nb", b"x\x00", b"t\xc3\xa9", b"a" * 65537])
def test_a_token_file_holds_one_token(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match="hub_token_file") as caught:
        read_token(write(tmp_path / "token", content), field="hub_token_file")
    assert "two words" not in str(caught.value)


def test_a_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    assert read_token(write(tmp_path / "token", b" abc.def-_~+/= \r\n"), field="hub_token_file") == "abc.def-_~+/="
