"""The configuration in force, shown and compared: what is printed gives the same configuration again."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import fields as kind
from agent.config.dump import find_changes, get_value, merge, show_value, write_toml
from agent.config.fields import _field
from agent.config.loading import Checked, ConfigErrors, Setting, load, settings
from agent.config.schema import (
    AgentConfig,
    HubConfig,
    LimitsConfig,
    MemoryCommConfig,
    ProcessConfig,
    ProxyConfig,
    make_limits,
)
from agent.proxy import ProxyLimits
from agent.syntax import Route


def loaded(cls: type, tmp_path: Path, toml: str, **flags: Any) -> tuple[list[Any], dict[str, str]]:
    path = tmp_path / "given.toml"
    path.write_text(toml)
    return load((cls, ProcessConfig), flags=flags, environ={}, config_file=str(path))


EXAMPLES = [
    (
        AgentConfig,
        'hub_address = "a:1"\ncluster_name = "c1"\nuse_memory_comm = true\ndrain_grace_s = 0.5\nlog_level = "debug"\n'
        '[memory_comm]\nbuffer_size = 4096\ncanary_percent = 7\n[route]\n"/" = "http://h"\n"/a" = "http://g/x"\n'
        "[limits]\nkeep_alive_s = 3\n",
    ),
    (HubConfig, 'cluster_parser = "a.b:c"\nmax_clients = 5\nlimits.head_timeout_s = 2\n'),
    (HubConfig, 'trusted_proxies = ["10.0.0.0/8", "fd00::1"]\nproxy_protocol = true\n'),
    (ProxyConfig, 'route = ["/=http://h"]\nlisten = "[::1]:0"\n'),
    (
        ProxyConfig,
        'listen = "[::1]:0"\n[limits]\nkeep_alive_s = 3\n[[routes]]\nprefix = "/a"\nurl = "http://h/x"\n'
        'host = "a.name:81"\nstrip_prefix = false\n[[routes]]\nprefix = "/"\nurl = "https://g"\nrewrite = false\n',
    ),
]


@pytest.mark.parametrize(("cls", "toml"), EXAMPLES)
def test_what_is_printed_gives_the_same_configuration_again(cls: type, toml: str, tmp_path: Path) -> None:
    made, sources = loaded(cls, tmp_path, toml, loop="asyncio")
    text = write_toml(made, sources)
    again, _ = loaded(cls, tmp_path, text)
    assert again == made
    assert f"# {tmp_path}/given.toml" in text
    assert 'loop = "asyncio"  # --loop' in text
    assert "# default" in text


@given(st.text().filter(lambda text: "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)))
def test_any_text_survives_as_a_toml_string(text: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class Texts(Checked):
        value: str = kind.text("a text")

    printed = write_toml([Texts(text)], {"value": text + "\n"})
    assert tomllib.loads(printed) == {"value": text}


def secret(help_text: str) -> Any:
    return _field("", Setting(help_text, str, str, secret=True))


@dataclasses.dataclass(frozen=True)
class WithSecret(Checked):
    """A configuration with a secret. Our configurations have none so far, because they name files."""

    password: str = secret("for the test")
    plain: int = kind.integer("a number", default=1, low=0, high=9, unit="things")


def test_a_secret_is_never_shown() -> None:
    config = WithSecret(password="hunter2")
    text = write_toml([config], {"password": "AGENT_PASSWORD"})
    assert "hunter2" not in text
    assert "# password is set, and a secret  # AGENT_PASSWORD" in text
    assert show_value(config, "password") == "set, and a secret"
    assert find_changes(config, WithSecret()) == ["password"]


def test_changes_are_named_and_some_can_be_left_out() -> None:
    old = AgentConfig("h:1", "c1", routes=["/=http://a"])
    new = AgentConfig(
        "h:1", "c2", routes=["/=http://b"], memory_comm=MemoryCommConfig(buffer_size=4096, max_connections=3)
    )
    assert find_changes(old, new) == ["cluster_name", "memory_comm.buffer_size", "memory_comm.max_connections", "route"]
    assert get_value(new, "route") == (Route("/", "http://b"),)
    result = merge(old, new, ["cluster_name", "memory_comm.buffer_size"])
    assert find_changes(old, result) == ["memory_comm.max_connections", "route"]
    assert merge(old, new, []) == new
    with pytest.raises(KeyError):
        get_value(old, "no.such")


def test_routes_with_other_keys_than_the_short_form_are_printed_as_tables(tmp_path: Path) -> None:
    toml = '[[routes]]\nprefix = "/a"\nurl = "http://h"\nhost = "target"\n[[routes]]\nprefix = "/"\nurl = "https://g"\n'
    made, sources = loaded(ProxyConfig, tmp_path, toml)
    text = write_toml(made, sources)
    assert text.count("[[routes]]  # ") == 2
    assert tomllib.loads(text)["routes"] == [
        {"prefix": "/a", "url": "http://h", "host": "target", "strip_prefix": True, "rewrite": True},
        {"prefix": "/", "url": "https://g", "host": "target", "strip_prefix": True, "rewrite": True},
    ]
    shown = show_value(made[0], "route")
    assert tomllib.loads(f"route = {shown}")["route"] == [
        {"prefix": "/a", "url": "http://h", "host": "target", "strip_prefix": True, "rewrite": True},
        "/=https://g",
    ]


def test_a_route_that_only_changes_a_key_is_a_change() -> None:
    old = AgentConfig("h:1", "c1", routes=["/=http://a"])
    new = AgentConfig("h:1", "c1", routes=[{"prefix": "/", "url": "http://a", "host": "client"}])
    assert find_changes(old, new) == []
    for key, value in {"host": "target", "strip_prefix": False, "rewrite": False, "url": "h2c://a"}.items():
        changed = AgentConfig("h:1", "c1", routes=[{"prefix": "/", "url": "http://a", key: value}])
        assert find_changes(old, changed) == ["route"]


def test_what_is_left_out_may_break_the_rest() -> None:
    old = AgentConfig("h:1", "c1", insecure=True)
    new = AgentConfig("h:1", "c1", hub_server_name="hub")
    with pytest.raises(ConfigErrors, match="hub_server_name"):
        merge(old, new, ["insecure"])


@pytest.mark.parametrize("cls", [AgentConfig, HubConfig, ProxyConfig])
def test_limits_are_the_proxys_by_name_and_default(cls: type) -> None:
    group = next(field for field in dataclasses.fields(cls) if field.name == "limits")
    assert group.default_factory is not dataclasses.MISSING
    limits = group.default_factory()
    assert isinstance(limits, LimitsConfig)
    assert make_limits(limits) == ProxyLimits()
    names = [field.name for field in dataclasses.fields(limits)]
    assert len(names) >= 9
    for name in names:
        setting = next(each for each in settings(cls) if each.name == f"limits.{name}")
        assert setting.metavar, "it has a unit"


def test_the_share_by_memory_follows_the_canary_where_it_is_set() -> None:
    def percent(use_memory_comm: bool, canary: int | None) -> int:
        memory = MemoryCommConfig(canary_percent=canary)
        return AgentConfig("h:1", "c1", use_memory_comm=use_memory_comm, memory_comm=memory).memory_percent

    assert (percent(False, None), percent(True, None)) == (0, 100)
    assert (percent(False, 30), percent(True, 30)) == (30, 30)
    assert (percent(False, 0), percent(True, 0)) == (0, 0)
