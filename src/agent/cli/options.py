"""Makes click's options from the schema: one for each setting, and `--config` and `--print-config`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from ..config.settings import Setting, settings
from ..config.variables import config_variables

__all__ = ["options", "parameter_of", "print_config_option"]

Command = Callable[..., None]

print_config_option = click.option(
    "--print-config",
    is_flag=True,
    help="print the values in force as TOML, each with its source, and exit",
)


def options(*classes: type[Any]) -> Callable[[Command], Command]:
    """Decorate a command with the options of some configurations, and with --config."""
    prefix = classes[0].variable_prefix
    variables = config_variables(prefix)

    def from_environment(_: click.Context, __: click.Parameter, given: str | None) -> str:
        if given is not None:
            return given
        return next((os.environ[each] for each in variables if each in os.environ), "")

    def decorate(command: Command) -> Command:
        for cls in reversed(classes):
            for setting in reversed(list(settings(cls, prefix))):
                command = _option(setting)(command)
        return click.option(
            "--config",
            "config_file",
            metavar="FILE.toml",
            default=None,
            callback=from_environment,
            help=f"a TOML file with any of these fields  [{variables[0]}]",
        )(command)

    return decorate


def parameter_of(name: str) -> str:
    """The name of a setting as a parameter of a Python function."""
    return name.replace(".", "__")


def _option(setting: Setting) -> Callable[[Command], Command]:
    """A setting as click's option. The schema checks its text, with everything else, and click does not."""
    default = "" if setting.default in (None, "", (), False) else f"default: {_shown(setting.default)}; "
    if setting.unset:
        default = f"{setting.unset}; "
    help_text = f"{setting.help}  [{'required; ' if setting.required else default}{setting.variable}]"
    if setting.metavar:
        return click.option(
            setting.flag, parameter_of(setting.name), help=help_text, metavar=setting.metavar, multiple=setting.many
        )
    switch = f"{setting.flag}/--no-{setting.flag[2:]}"  # the second overrides a file or a variable
    return click.option(switch, parameter_of(setting.name), help=help_text, default=None)


def _shown(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)
