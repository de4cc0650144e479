"""Errors of certificate and key files that make no pair name the file and what to change."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from agent.errors import ConfigError
from agent.policy.chains import load_chain
from agent.policy.trust import client_context, parse_certificates, server_context


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    ca = trustme.CA()
    issued, other = ca.issue_cert("a.test"), ca.issue_cert("b.test")
    cert, key = issued.cert_chain_pems[0].bytes(), issued.private_key_pem.bytes()
    loaded = serialization.load_pem_private_key(key, None)
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    older = serialization.PrivateFormat.TraditionalOpenSSL
    secret = serialization.BestAvailableEncryption(b"secret")
    return {
        "none": b"",
        "blank": b"\n \n",
        "text": b"certificate goes here\n",
        "cert": cert,
        "key": key,
        "both": cert + key,
        "cert of another": other.cert_chain_pems[0].bytes(),
        "key of another": other.private_key_pem.bytes(),
        "cert in DER": ssl.PEM_cert_to_DER_cert(cert.decode()),
        "key in DER": loaded.private_bytes(serialization.Encoding.DER, pkcs8, plain),
        "key encrypted": loaded.private_bytes(serialization.Encoding.PEM, pkcs8, secret),
        "key encrypted, older form": loaded.private_bytes(serialization.Encoding.PEM, older, secret),
        "public key": loaded.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
        "request": b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        "cut": cert[: len(cert) // 2] + b"\n" + key,
    }


CASES = [
    ("cert", None, "{cert} has no private key: set hub_client_key_file"),
    ("none", "key", "{cert} is empty"),
    ("blank", None, "{cert} is empty"),
    ("cert", "none", "{key} is empty"),
    ("key", "cert", "{cert} holds a private key and {key} a certificate, so the two are swapped"),
    ("key", None, "{cert} must hold a PEM certificate, not a "),
    ("request", "key", "{cert} must hold a PEM certificate, not a CERTIFICATE REQUEST"),
    ("text", "key", "{cert} must hold a PEM certificate"),
    ("cert in DER", "key", "{cert} must hold a PEM certificate, not DER: openssl x509 -inform der"),
    ("cert", "key in DER", "{key} must hold a PEM private key, not DER or PKCS #12"),
    ("cert", "cert", "{key} must hold a PEM private key, not a CERTIFICATE"),
    ("cert", "public key", "{key} must hold a PEM private key, not a PUBLIC KEY"),
    ("cert", "key encrypted", "{key} must hold an unencrypted private key"),
    ("cert", "key encrypted, older form", "{key} must hold an unencrypted private key"),
    ("cert", "key of another", "the private key in {key} must be that of the first certificate in {cert} ("),
    ("cert of another", "key", "the private key in {key} must be that of the first certificate in {cert} ("),
    ("cut", None, "{cert} must hold a PEM certificate and {cert} its private key (a block in it is broken)"),
]


@pytest.mark.parametrize(("certificate", "key", "said"), CASES, ids=[f"{cert}-{key}" for cert, key, _ in CASES])
def test_each_wrong_pair_is_said_in_words(
    tmp_path: Path, files: dict[str, bytes], certificate: str, key: str | None, said: str
) -> None:
    cert_file, key_file = str(tmp_path / "c.pem"), str(tmp_path / "k.pem") if key else ""
    Path(cert_file).write_bytes(files[certificate])
    if key:
        Path(key_file).write_bytes(files[key])
    with pytest.raises(ConfigError) as caught:
        client_context(cert_file=cert_file, key_file=key_file)
    assert caught.value.field == "hub_client_cert_file"
    assert caught.value.expected.startswith(said.format(cert=cert_file, key=key_file))
    assert "_ssl.c" not in str(caught.value)


def test_a_hubs_certificate_without_its_key_names_the_hubs_setting(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "hub.pem").write_bytes(files["cert"])
    with pytest.raises(ConfigError, match=r"has no private key: set http_key_file$"):
        server_context(str(tmp_path / "hub.pem"), "", cert_field="http_cert_file")


def test_a_pair_that_fits_is_taken_in_one_file_and_in_two(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name in ("cert", "key", "both"):
        (tmp_path / name).write_bytes(files[name])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, str(tmp_path / "both"), "", "grpc_cert_file")
    load_chain(context, str(tmp_path / "cert"), str(tmp_path / "key"), "grpc_cert_file")


def test_a_ca_file_in_der_is_said(files: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match=r"must hold at least one PEM certificate, not DER: openssl x509"):
        parse_certificates(files["cert in DER"])
