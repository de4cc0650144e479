"""Files that a configuration names: certificates that end, and secrets that everybody can read, are warned of."""

from __future__ import annotations

import datetime
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from agent.config import credentials
from agent.config.credentials import EXPIRED, EXPOSED, NOT_YET, SOON, CredentialWatch, check_credentials
from agent.config.schema import AgentConfig, HubConfig, ProxyConfig

DAY = datetime.timedelta(days=1)
Write = Callable[..., str]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes a file that only its owner can read, or with another mode. Returns its path."""

    def write(name: str, content: bytes, mode: int = 0o600) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(mode)
        return str(path)

    return write


def pair(ca: trustme.CA, ends: datetime.timedelta, begins: datetime.timedelta = -40 * DAY) -> bytes:
    """A chain and its key."""
    now = datetime.datetime.now(datetime.UTC)
    issued = ca.issue_cert("hub.test", common_name="hub.test", not_before=now + begins, not_after=now + ends)
    return issued.private_key_and_cert_chain_pem.bytes()


def agent(**given: Any) -> AgentConfig:
    return AgentConfig("hub:1", "c1", routes=["/=http://a"], **given)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """Gives (text, setting) of the warnings since it was asked last."""
    caplog.set_level(logging.WARNING, logger="agent.config.credentials")

    def since() -> list[tuple[str, str]]:
        found = [(record.getMessage(), record.__dict__["setting"]) for record in caplog.records]
        caplog.clear()
        return found

    return since


# Dates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "begins", "text"),
    [
        (-DAY, -40 * DAY, EXPIRED),
        (-datetime.timedelta(seconds=2), -40 * DAY, EXPIRED),
        (400 * DAY, DAY, NOT_YET),
        (13 * DAY, -40 * DAY, SOON),
        (15 * DAY, -40 * DAY, ""),
    ],
    ids=["a day ago", "just now", "not yet", "in 13 days", "in 15 days"],
)
def test_each_state_of_a_certificate_is_found(
    ca: trustme.CA, write: Write, ends: datetime.timedelta, begins: datetime.timedelta, text: str
) -> None:
    path = write("hub.pem", pair(ca, ends, begins))
    for config, setting in (
        (HubConfig(grpc_cert_file=path), "grpc_cert_file"),
        (HubConfig(http_cert_file=path), "http_cert_file"),
        (agent(hub_client_cert_file=path), "hub_client_cert_file"),
        (agent(target_client_cert_file=path), "target_client_cert_file"),
        (ProxyConfig(routes=["/=http://a"], target_client_cert_file=path), "target_client_cert_file"),
    ):
        found = check_credentials(config)
        assert [(each.setting, each.text) for each in found] == ([(setting, text)] if text else [])
        for each in found:
            assert "CN=hub.test" in each.details["subject"]
            assert list(each.details)[1] == ("not_before" if text == NOT_YET else "not_after")


def test_a_chain_is_as_good_as_its_worst_certificate(ca: trustme.CA, write: Write) -> None:
    good, bad = pair(ca, 400 * DAY), pair(ca, -DAY)
    found = check_credentials(HubConfig(grpc_cert_file=write("hub.pem", good + bad)))
    assert [each.text for each in found] == [EXPIRED]


def test_of_roots_one_that_is_valid_is_enough(ca: trustme.CA, write: Write) -> None:
    good, bad = pair(ca, 400 * DAY), pair(ca, -DAY)
    config = agent(hub_ca_file=write("ca.pem", bad + good), target_ca_file=[write("b.pem", good)])
    assert check_credentials(config) == []
    targets = [write("b.pem", good), write("c.pem", bad)]
    found = check_credentials(agent(hub_ca_file=write("ca.pem", bad), target_ca_file=targets))
    assert [(each.setting, each.text) for each in found] == [("hub_ca_file", EXPIRED), ("target_ca_file", EXPIRED)]
    assert found[1].path.endswith("c.pem")


def test_a_date_is_told_at_once_then_once_a_day_and_at_each_reload(
    ca: trustme.CA, write: Write, warnings: Callable[[], list[tuple[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = time.time()
    monkeypatch.setattr(credentials.time, "time", lambda: now_s)
    watch = CredentialWatch(HubConfig(grpc_cert_file=write("hub.pem", pair(ca, 3 * DAY))))
    told = []
    for hours in range(0, 100, 3):
        now_s += 3 * 3600 if hours else 0
        watch.look()
        told += [(hours, text) for text, _ in warnings()]
    assert told == [(0, SOON), (24, SOON), (48, SOON), (72, EXPIRED), (96, EXPIRED)]
    watch.look(again=True)
    assert warnings() == [(EXPIRED, "grpc_cert_file")]
    watch.look()
    assert warnings() == []


def test_a_certificate_that_is_renewed_is_told_no_more(
    ca: trustme.CA, write: Write, warnings: Callable[[], list[tuple[str, str]]]
) -> None:
    watch = CredentialWatch(HubConfig(grpc_cert_file=write("hub.pem", pair(ca, -DAY))))
    watch.look()
    assert warnings() == [(EXPIRED, "grpc_cert_file")]
    ends_s = watch.expiries["grpc_cert_file"]
    write("hub.pem", pair(ca, 100 * DAY))
    watch.look(again=True)
    assert warnings() == []
    assert watch.expiries["grpc_cert_file"] > ends_s + 100 * 86400
    write("hub.pem", pair(ca, -2 * DAY))
    watch.look()
    assert warnings() == [(EXPIRED, "grpc_cert_file")]


def test_a_file_that_is_gone_or_no_certificate_is_told_by_others(
    ca: trustme.CA, write: Write, warnings: Callable[[], list[tuple[str, str]]]
) -> None:
    path = write("hub.pem", pair(ca, -DAY))
    watch = CredentialWatch(HubConfig(grpc_cert_file=path))
    os.unlink(path)
    watch.look()
    write("hub.pem", b"nothing")
    watch.look()
    assert warnings() == []
    assert watch.expiries == {}


# Modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "warns"),
    [(0o600, False), (0o400, False), (0o440, False), (0o640, False), (0o644, True), (0o604, True), (0o602, True)],
    ids=oct,
)
def test_a_secret_that_everybody_can_read_is_found(ca: trustme.CA, write: Write, mode: int, warns: bool) -> None:
    found = [
        *check_credentials(agent(hub_token_file=write("token", b"t", mode))),
        *check_credentials(HubConfig(agent_token_file=write("tokens", b"c1 t\n", mode))),
        *check_credentials(HubConfig(grpc_cert_file=write("c", b""), grpc_key_file=write("key", b"key", mode))),
        *check_credentials(agent(kubeconfig=write("kubeconfig", b"", mode))),
    ]
    names = ["hub_token_file", "agent_token_file", "grpc_key_file", "kubeconfig"]
    assert [(each.setting, each.text) for each in found] == ([(name, EXPOSED) for name in names] if warns else [])
    assert all(each.details["mode"] == f"{mode:04o}" for each in found)


def test_a_certificate_is_a_secret_only_where_its_key_is_in_the_same_file(ca: trustme.CA, write: Write) -> None:
    both = pair(ca, 400 * DAY)
    alone = both[both.index(b"-----BEGIN CERTIFICATE") :]
    assert check_credentials(HubConfig(grpc_cert_file=write("alone.pem", alone, 0o644))) == []
    (found,) = check_credentials(HubConfig(grpc_cert_file=write("both.pem", both, 0o644)))
    assert (found.setting, found.text) == ("grpc_cert_file", EXPOSED)


def test_the_mode_is_that_of_the_file_behind_a_volumes_links(write: Write, tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    write("..2026/token", b"t", 0o440)
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "token").symlink_to("..data/token")
    assert check_credentials(agent(hub_token_file=str(tmp_path / "token"))) == []
    (tmp_path / "..2026" / "token").chmod(0o444)
    assert [each.text for each in check_credentials(agent(hub_token_file=str(tmp_path / "token")))] == [EXPOSED]


def test_an_exposed_secret_is_told_at_start_at_each_reload_and_when_it_becomes_so(
    write: Write, warnings: Callable[[], list[tuple[str, str]]]
) -> None:
    path = write("token", b"t", 0o644)
    watch = CredentialWatch(agent(hub_token_file=path))
    watch.look()
    watch.look()
    assert warnings() == [(EXPOSED, "hub_token_file")]
    watch.look(again=True)
    assert warnings() == [(EXPOSED, "hub_token_file")]
    os.chmod(path, 0o600)
    watch.look()
    assert warnings() == []
    os.chmod(path, 0o604)
    watch.look()
    assert warnings() == [(EXPOSED, "hub_token_file")]
