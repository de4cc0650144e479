"""`fastpipe-agent forward`: local ports for targets behind a hub, and ssh's ProxyCommand.

The command imports little, because each `ssh` starts it again.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ..config.schema import ForwardConfig, ProcessConfig
from ..errors import ForwardError
from .configured import Configured
from .options import GroupedCommand, GroupedOption, options, print_config_option
from .output import PROGRAM, USAGE, announce_listening
from .process import serve

if TYPE_CHECKING:
    from ..forward.addresses import Forward
    from ..syntax import Address

__all__ = ["command"]

TOKEN = "FORWARD_TOKEN"  # noqa: S105 - the name of a variable


@click.command("forward", cls=GroupedCommand)
@options(ForwardConfig, ProcessConfig)
@print_config_option
@click.option(
    "--stdio",
    cls=GroupedOption,
    heading="Local ports",
    metavar="HOST:PORT",
    help="standard input and output for one connection, instead of local ports (ssh's ProxyCommand)",
)
@click.argument("forwards", nargs=-1, metavar="[LOCAL=]HOST:PORT...")
def command(config_file: str, print_config: bool, forwards: tuple[str, ...], stdio: str | None, **given: Any) -> None:
    """Open local ports whose connections reach targets behind a hub, by CONNECT.

    LOCAL is a port of 127.0.0.1, or HOST:PORT. Its default is the target's port. The agent's connect_allow decides
    which targets it reaches. Prints `listening forward HOST:PORT` for each port.

    \b
    Example:
      fastpipe-agent forward --hub https://hub.example.com --cluster c1 5433=db.prod.svc:5432
      ssh -o ProxyCommand='fastpipe-agent forward --hub https://hub.example.com --cluster c1 --stdio %h:%p' host
    """
    configured = Configured(ForwardConfig, config_file, given)
    config, process = configured.begin(print_config)
    ports, target = _arguments(forwards, stdio)

    async def serve_ports() -> None:
        from ..forward.local_ports import LocalPorts
        from ..forward.setup import make_carrier

        await LocalPorts(
            ports,
            make_carrier(config, os.environ.get(TOKEN, "")),
            max_connections=config.max_connections,
            drain_grace_s=config.drain_grace_s,
            on_listening=lambda host, port: announce_listening("forward", host, port),
        ).run()

    async def serve_stdio() -> None:
        from ..forward.setup import make_carrier
        from ..forward.standard_streams import forward_standard_streams

        assert target is not None
        if not await forward_standard_streams(make_carrier(config, os.environ.get(TOKEN, "")), target):
            raise ForwardError(f"the connection to {target} was lost", fault="target")

    sys.exit(serve(serve_ports if target is None else serve_stdio, process, configured.sources))


def _arguments(forwards: tuple[str, ...], stdio: str | None) -> tuple[list[Forward], Address | None]:
    """Return (the local ports, the target of --stdio). Exits with 2 if they are wrong."""
    from ..forward.addresses import parse_forward, parse_target

    wrong: list[str] = []
    ports: list[Forward] = []
    target = None
    if bool(forwards) == (stdio is not None):
        wrong.append("must have at least one [LOCAL=]HOST:PORT, or --stdio HOST:PORT and nothing else")
    for text in forwards:
        try:
            ports.append(parse_forward(text))
        except ValueError as error:
            wrong.append(str(error))
    try:
        target = parse_target(stdio) if stdio is not None else None
    except ValueError as error:
        wrong.append(f"--stdio: {error}")
    for reason in wrong:
        print(f"{PROGRAM}: forward: {reason}", file=sys.stderr)
    if wrong:
        sys.exit(USAGE)
    return ports, target
