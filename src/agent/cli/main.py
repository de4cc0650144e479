"""The command line: the group of commands. Each command is a module, which is imported only when it runs.

Standard output has the lines that scripts wait for (`listening …`, `ready`) and nothing else. The log is on standard
error.
"""

from __future__ import annotations

from importlib import import_module

import click

from .output import DONE, PROGRAM, print_line

__all__ = ["main"]

COMMANDS = {
    "run": "The agent: dial a hub, serve its requests.",
    "hub": "A hub: for agents, and for their users.",
    "proxy": "The agent's proxy alone, on a TCP port.",
    "demo": "Hub, agent and target in one process: try it.",
    "check": "Try what `run` needs with these options.",
    "forward": "Local ports for targets behind a hub.",
    "version": "Versions, fastpipe's twin and the loop.",
}
"""Each command, in the order of the help, with its short help. The command is `command` in the module of its name."""


def main() -> None:
    """The console script. Never returns: raises SystemExit."""
    from ..runtime.descriptors import fill_standard_descriptors

    fill_standard_descriptors()
    _commands(prog_name=PROGRAM)


class _Commands(click.Group):
    """The commands, with a help that imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{cmd_name}", __package__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from importlib.metadata import version as version_of

        print_line(f"{PROGRAM} {version_of(PROGRAM)}")
        context.exit(DONE)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and exit. The command `version` prints more.",
)
def _commands() -> None:
    """A tunnel agent and its hub.

    Every option is also a key of the --config file (--hub-address: hub_address) and a variable (AGENT_HUB_ADDRESS). The
    variables of `hub` begin with HUB_. An option wins over the variable, and the variable over the file.
    """
