"""The hub identifies an agent by certificate or token, or lets anyone in if allowed, each for one cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ConfigError, Refused
from agent.policy.agent_identity import ANYONE, AgentPolicy

TOKENS = b"""\
# cluster  token
c1   token-one
c1\ttoken-one-next
c2   token-two   \r
both shared
c3   shared
"""
CERTIFICATE = {
    "subject": ((("organizationName", "c9"),), (("commonName", "c1"),)),
    "subjectAltName": (("DNS", "c2"), ("DNS", "*.example"), ("URI", "c7"), ("email", "c8")),
}


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_bytes(TOKENS)
    return path


def verdict(policy: AgentPolicy, cluster: bytes, authorization: bytes | None = None, certificate: Any = None) -> Any:
    try:
        return policy.identify(cluster, authorization, certificate)
    except Refused as refused:
        return refused.status


@pytest.mark.parametrize(
    ("cluster", "authorization", "expected"),
    [
        (b"c1", b"Bearer token-one", "token:c1"),
        (b"c1", b"bearer token-one-next", "token:c1"),
        (b"c1", b"BEARER  token-one ", "token:c1"),
        (b"c2", b"Bearer token-two", "token:c2"),
        (b"both", b"Bearer shared", "token:both"),
        (b"c3", b"Bearer shared", "token:c3"),
        (b"c2", b"Bearer token-one", 403),
        (b"c1", b"Bearer token-on", 403),
        (b"c1", b"Bearer token-onee", 403),
        (b"c1", b"Bearer ", 403),
        (b"c1", b"", 403),
        (b"c1", b"token-one", 403),
        (b"c1", b"Basic token-one", 403),
        (b"c4", b"Bearer token-one", 403),
        (b"c1", None, 401),
        (b"", b"Bearer token-one", 400),
        (b"C1", b"Bearer token-one", 400),
        (b"c1/x", b"Bearer token-one", 400),
        (b"c1\n", b"Bearer token-one", 400),
        (b"\xff", b"Bearer token-one", 400),
    ],
)
def test_a_token_opens_its_own_cluster(
    token_file: Path, cluster: bytes, authorization: bytes | None, expected: str | int
) -> None:
    assert verdict(AgentPolicy(token_file=str(token_file)), cluster, authorization) == expected


@pytest.mark.parametrize(
    ("cluster", "certificate", "expected"),
    [
        (b"c1", CERTIFICATE, "certificate:c1"),
        (b"c2", CERTIFICATE, "certificate:c2"),
        (b"c3", CERTIFICATE, 403),
        (b"c7", CERTIFICATE, 403),
        (b"c8", CERTIFICATE, 403),
        (b"c9", CERTIFICATE, 403),
        (b"a", {"subjectAltName": (("DNS", "*"),)}, 403),
        (b"a", {"serialNumber": "1"}, 403),
        (b"c1", None, 401),
        (b"c1", {}, 401),
    ],
)
def test_a_certificate_opens_the_clusters_it_names(cluster: bytes, certificate: Any, expected: str | int) -> None:
    assert verdict(AgentPolicy(certificates=True), cluster, None, certificate) == expected


def test_a_certificate_that_nobody_verified_says_nothing() -> None:
    assert verdict(AgentPolicy(), b"c1", None, CERTIFICATE) == 401
    assert verdict(AgentPolicy(anyone=True), b"c1", None, CERTIFICATE) == ANYONE


def test_either_credential_is_enough_and_they_are_not_the_same_identity(token_file: Path) -> None:
    policy = AgentPolicy(certificates=True, token_file=str(token_file))
    by_certificate = verdict(policy, b"c1", None, CERTIFICATE)
    by_token = verdict(policy, b"c1", b"Bearer token-one", None)
    assert by_certificate != by_token
    assert verdict(policy, b"c3", b"Bearer shared", CERTIFICATE) == "token:c3"
    assert verdict(policy, b"c3", b"Bearer wrong", CERTIFICATE) == 403


def test_wrong_credentials_are_refused_even_where_none_are_needed(token_file: Path) -> None:
    policy = AgentPolicy(token_file=str(token_file), anyone=True)
    assert verdict(policy, b"c1") == ANYONE
    assert verdict(policy, b"c1", b"Bearer wrong") == 403


def test_without_anything_to_show_only_anyone_lets_in() -> None:
    assert verdict(AgentPolicy(anyone=True), b"c1", b"Bearer ignored") == ANYONE
    assert verdict(AgentPolicy(), b"c1", b"Bearer ignored") == 401


def test_a_changed_token_file_counts_at_once_and_a_broken_one_not_at_all(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = AgentPolicy(token_file=str(token_file))

    def replace(content: bytes) -> None:
        new = token_file.with_suffix(".new")
        new.write_bytes(content)
        os.replace(new, token_file)

    replace(b"c1 rotated\n")
    assert verdict(policy, b"c1", b"Bearer rotated") == "token:c1"
    assert verdict(policy, b"c1", b"Bearer token-one") == 403
    replace(b"c1 broken secret line\n")
    assert verdict(policy, b"c1", b"Bearer rotated") == "token:c1"
    assert "line 1" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b"c1\n", b"c1 a b\n", b"C1 token\n", b"c1 tok\xc3\xa9n\n", b"c.1 token\n"]
)
def test_a_wrong_token_file_is_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="agent_token_file"):
        AgentPolicy(token_file=str(path))


def test_a_certificate_that_has_expired_since_its_handshake_names_nobody(token_file: Path) -> None:
    """A TLS session that is resumed has the certificate of its first handshake, whatever the time."""
    policy = AgentPolicy(certificates=True, token_file=str(token_file), anyone=True)
    valid, expired = ({**CERTIFICATE, "notAfter": f"Jan  1 00:00:00 {year} GMT"} for year in (9999, 2020))
    assert verdict(policy, b"c1", None, valid) == "certificate:c1"
    assert verdict(policy, b"c1", None, expired) == 403
