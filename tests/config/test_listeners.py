"""`[[listeners]]`: the forms of an entry, and the rules within one."""

from __future__ import annotations

import pathlib
import tomllib
from typing import Any

import pytest

from agent.config.credentials import check_credentials
from agent.config.dump import write_toml
from agent.config.listeners import Listener, parse_listener
from agent.config.loading import load
from agent.config.schema import ConfigErrors, HubConfig


@pytest.fixture
def pem(tmp_path: pathlib.Path) -> str:
    (tmp_path / "pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    (tmp_path / "pem").chmod(0o644)
    return str(tmp_path / "pem")


@pytest.mark.parametrize(
    ("text", "listener"),
    [
        ("127.0.0.1:5432=c1/db.prod.svc:5432", Listener("127.0.0.1:5432", "c1", "db.prod.svc:5432")),
        ("[::1]:0=c1/[fd00::1]:22", Listener("[::1]:0", "c1", "[fd00::1]:22")),
        ("localhost:8131=c1", Listener("localhost:8131", "c1")),
        ("unix:/run/a=b.sock=c1", Listener("unix:/run/a=b.sock", "c1")),
    ],
)
def test_the_short_form_is_read_and_written(text: str, listener: Listener) -> None:
    assert parse_listener(text) == listener
    assert listener.short_form == text
    (config,), _ = load([HubConfig], flags={}, environ={"HUB_LISTENER": text})
    assert config.listener_entries == (listener,)
    written = tomllib.loads(write_toml([config], {}))
    assert HubConfig(listeners=written["listener"]).listener_entries == (listener,)


def test_every_key_is_read_from_a_file_and_written_again(tmp_path: pathlib.Path, pem: str) -> None:
    entries = f"""
        [[listeners]]
        address = ":8131"
        cluster = "c1"
        cert_file = "{pem}"
        key_file = "{pem}"
        client_ca_file = "{pem}"

        [[listeners]]
        address = "10.0.0.1:5432"
        cluster = "c2"
        target = "db:5432"
        allow_any_user = true
    """
    file = tmp_path / "hub.toml"
    file.write_text(entries)
    (config,), sources = load([HubConfig], flags={}, environ={}, config_file=str(file))
    first, second = config.listener_entries
    assert first.requires_certificate
    assert not second.requires_certificate
    file.write_text(write_toml([config], sources))
    (again,), _ = load([HubConfig], flags={}, environ={}, config_file=str(file))
    assert again == config


WRONG: list[tuple[Any, str]] = [
    ("127.0.0.1:1", "must be ADDRESS=CLUSTER"),
    ("127.0.0.1:1=c1/", "behind the slash"),
    ("127.0.0.1:1=c1/db", "the target must be HOST:PORT"),
    ("127.0.0.1:1=c1/db:0", "the target"),
    ("127.0.0.1:1=C1", "the cluster must be one RFC 1123 label"),
    ("127.0.0.1=c1", "HOST:PORT"),
    ("unix:=c1", "unix:"),
    (f"unix:/{'x' * 110}=c1", "at most 103 bytes"),
    (":8131=c1", "client_ca_file"),
    ("0.0.0.0:8131=c1/db:1", "allow_any_user = true"),
    ("hub.example.com:8131=c1", "loopback"),
    (["127.0.0.1:1=c1", "127.0.0.1:1=c2"], "127.0.0.1:1 once only"),
    ({"address": "127.0.0.1:1", "cluster": "c1"}, r"\[\[listeners\]\]"),
    ([{"address": "127.0.0.1:1"}], "must have the key cluster"),
    ([{"address": "127.0.0.1:1", "cluster": "c1", "targt": "db:1"}], "perhaps target is meant"),
    ([{"address": "127.0.0.1:1", "cluster": "c1", "allow_any_user": "yes"}], "true or false"),
    ([{"address": "127.0.0.1:1", "cluster": "c1", "client_ca_file": "/etc/hostname"}], "cert_file"),
    ([{"address": "127.0.0.1:1", "cluster": "c1", "key_file": "/etc/hostname"}], "cert_file"),
    ([{"address": "127.0.0.1:1", "cluster": "c1", "cert_file": "/nowhere"}], "readable file for cert_file"),
    ([17], "must be ADDRESS=CLUSTER"),
]


@pytest.mark.parametrize(("value", "reason"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_listener_is_an_error_that_names_the_rule(value: Any, reason: str) -> None:
    with pytest.raises(ConfigErrors, match=reason) as raised:
        HubConfig(listeners=value)
    assert raised.value.field == "listener"


def test_free_ports_and_unix_sockets_may_repeat_and_pass() -> None:
    HubConfig(listeners=["127.0.0.1:0=c1", "127.0.0.1:0=c1", "unix:/run/x=c1"])


def test_the_watch_of_credentials_reads_the_files_of_listeners(pem: str) -> None:
    config = HubConfig(listeners=[{"address": "127.0.0.1:1", "cluster": "c1", "cert_file": pem, "key_file": pem}])
    assert {(each.setting, each.path) for each in check_credentials(config)} == {("listener", pem)}
