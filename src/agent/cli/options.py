"""Makes click's options from the schema: one for each setting, and `--config` and `--print-config`.

The help shows the options in groups, which are the settings' headings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from ..config.loading import Setting, settings
from ..config.variables import list_config_variables

__all__ = ["GroupedCommand", "GroupedOption", "options", "print_config_option"]

Command = Callable[..., None]

_CONFIGURATION = "Configuration"
_OTHERS = "Options"


class GroupedOption(click.Option):
    """An option with the heading of its group in the help."""

    def __init__(self, *args: Any, heading: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading


class GroupedCommand(click.Command):
    """A command whose help shows its options in groups, in the order of their first options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx) if isinstance(each, click.Option) else None
            if record is not None:
                heading = each.heading if isinstance(each, GroupedOption) else _OTHERS
                groups.setdefault(heading, []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)


print_config_option = click.option(
    "--print-config",
    cls=GroupedOption,
    heading=_CONFIGURATION,
    is_flag=True,
    help="print the values in force as TOML, each with its source, and exit",
)


def options(*classes: type[Any]) -> Callable[[Command], Command]:
    """Decorate a command with the options of some configurations, and with --config."""
    prefix = classes[0].variable_prefix
    variables = list_config_variables(prefix)

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
            cls=GroupedOption,
            heading=_CONFIGURATION,
            metavar="FILE.toml",
            default=None,
            callback=from_environment,
            help=f"a TOML file with any of these fields  [{variables[0]}]",
        )(command)

    return decorate


def _option(setting: Setting) -> Callable[[Command], Command]:
    """A setting as click's option. The schema checks its text, with everything else, and click does not."""
    default = "" if setting.default in (None, "", (), False) else f"default: {_shown(setting.default)}; "
    if setting.unset:
        default = f"{setting.unset}; "
    shared: dict[str, Any] = {
        "cls": GroupedOption,
        "heading": setting.heading,
        "help": f"{setting.help}  [{'required; ' if setting.required else default}{setting.variable}]",
    }
    parameter = setting.name.replace(".", "__")
    if setting.metavar:
        return click.option(setting.flag, parameter, metavar=setting.metavar, multiple=setting.many, **shared)
    switch = f"{setting.flag}/--no-{setting.flag[2:]}"  # the second overrides a file or a variable
    return click.option(switch, parameter, default=None, **shared)


def _shown(default: Any) -> str:
    if default is True:
        return "true"
    return f"{default:g}" if isinstance(default, float) else str(default)
