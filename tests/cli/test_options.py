"""The help of each command: options in groups, with defaults, units and an example."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from typing import Any

import click
import pytest
from click.testing import CliRunner

from agent.cli.main import COMMANDS as LISTED
from agent.config.loading import settings
from agent.config.schema import COMMANDS, ProcessConfig

CONFIGURATIONS = [*COMMANDS.values(), ProcessConfig]


def help_of(command: str) -> str:
    found: click.Command = import_module(f"agent.cli.{command}").command
    done = CliRunner().invoke(found, ["--help"], prog_name=f"fastpipe-agent {command}", terminal_width=200)
    assert done.exit_code == 0
    return done.output


def groups_of(text: str) -> dict[str, list[str]]:
    """The flags of each group in a help, by heading."""
    blocks = re.findall(r"^(\w[^\n]*):\n((?:  [^\n]*\n)+)", text, re.MULTILINE)
    return {heading: re.findall(r"^  (--[a-z0-9-]+)", body, re.MULTILINE) for heading, body in blocks}


@pytest.mark.parametrize("cls", CONFIGURATIONS, ids=lambda cls: cls.__name__)
def test_each_setting_has_a_heading(cls: Any) -> None:
    assert all(each.heading for each in settings(cls))
    assert set(cls.headings) <= {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_each_option_below_its_heading(command: str) -> None:
    groups = groups_of(help_of(command))
    assert groups["Configuration"] == ["--config", "--print-config"]
    for cls in (COMMANDS[command], ProcessConfig):
        for setting in settings(cls):
            assert setting.flag in groups[setting.heading]
    assert list(groups)[-1] == "Options"  # --help alone


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_each_default_and_unit(command: str) -> None:
    text = help_of(command)
    for setting in settings(COMMANDS[command]):
        line = next(each for each in text.splitlines() if re.match(rf"  {setting.flag}[ /]", each + " "))
        assert not setting.metavar or line.startswith(f"  {setting.flag} {setting.metavar}")
        if setting.default is True:
            assert f"[default: true; {setting.variable}]" in text
        elif isinstance(setting.default, int | float) and setting.default is not False:
            assert re.search(rf"\[default: {setting.default:g}; {setting.variable}\]", text)


@pytest.mark.parametrize("command", [each for each in LISTED if each != "version"])
def test_the_help_has_an_example_that_calls_the_command(command: str) -> None:
    example = help_of(command).partition("Example:\n")[2].partition("\n\n")[0]
    assert example.strip().startswith(f"fastpipe-agent {command}")
    flags = re.findall(r"--[a-z0-9-]+", example)
    assert set(flags) <= set(re.findall(r"^  (--[a-z0-9-]+)", help_of(command), re.MULTILINE))
