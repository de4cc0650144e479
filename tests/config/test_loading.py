"""The schema's machinery: each value is converted once, and each setting declares the effect of a reload."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest

from agent.config.limits import ProxyLimits
from agent.config.loading import SETTING, load, settings, settings_by_reload
from agent.config.schema import AgentConfig, LimitsConfig, ProcessConfig, TargetLimitsConfig

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"


def test_a_given_value_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    converted: list[Any] = []
    field = next(each for each in dataclasses.fields(AgentConfig) if each.name == "cluster_name")
    setting = field.metadata[SETTING]

    def count(value: Any) -> Any:
        converted.append(value)
        return setting.convert(value)

    monkeypatch.setattr(field, "metadata", {SETTING: dataclasses.replace(setting, convert=count)})
    flags = {"hub_address": ("h:1",), "cluster_name": "c1"}
    (config, _), _ = load((AgentConfig, ProcessConfig), flags=flags, environ={})
    assert (config.cluster_name, converted) == ("c1", ["c1"])


def test_a_loaded_configuration_equals_a_constructed_one() -> None:
    flags = {"hub_address": ("h:1",), "cluster_name": "c1", "limits.keep_alive_s": "5", "route": ("/=http://t",)}
    (config, _), _ = load((AgentConfig, ProcessConfig), flags=flags, environ={})
    limits = TargetLimitsConfig(keep_alive_s=5)
    assert config == AgentConfig("h:1", "c1", limits=limits, routes=["/=http://t"])


@pytest.mark.parametrize("cls", [LimitsConfig, TargetLimitsConfig])
def test_the_limits_have_the_proxys_defaults(cls: type[Any]) -> None:
    defaults = ProxyLimits()
    assert all(getattr(cls(), each.name) == getattr(defaults, each.name) for each in settings(cls))


def test_each_setting_has_one_effect_on_reload() -> None:
    by_reload = settings_by_reload(AgentConfig)
    assert set().union(*by_reload.values()) == {each.name for each in settings(AgentConfig)}
    assert "hub_token_file" in by_reload["redial"]
    assert {"limits.keep_alive_s", "memory_comm.canary_percent", "route"} <= by_reload["apply"]
    assert {"cluster_name", "uds_socket_path"} <= by_reload["restart"]


def test_the_page_lists_exactly_the_settings_that_a_reload_applies() -> None:
    """The list has patterns. `[limits]` is a table, and `hub_client_*` has two settings."""
    listed = PAGE.read_text("utf-8").partition("These apply without a restart:\n\n")[2].partition("\n\n")[0]
    patterns = [re.sub(r"\[(\w+)\]", r"\1.*", each) for each in re.findall(r"`([^`]+)`", listed)]
    every = [each for cls in (AgentConfig, ProcessConfig) for each in settings(cls)]
    by_page = {each.name for each in every if any(fnmatch.fnmatch(each.name, pattern) for pattern in patterns)}
    assert by_page == {each.name for each in every if each.on_reload != "restart"}
