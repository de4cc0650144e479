"""`fastpipe-agent check`: tries what an agent needs before it runs, one line for each thing tried.

It opens a tunnel under the cluster's name and closes it at once. A hub written in Go then takes this tunnel for the
cluster's newest agent. So don't check against such a hub while an agent serves.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..config.schema import AgentConfig, ProcessConfig
from .configured import Configured
from .options import GroupedCommand, options
from .output import DONE, FAILED, print_line
from .process import import_from_working_folder, serve

__all__ = ["command"]


@click.command("check", cls=GroupedCommand)
@options(AgentConfig, ProcessConfig)
def command(config_file: str, **given: Any) -> None:
    """Try what `run` needs with these options: hubs, targets, API servers and rights there. Prints a line for each.

    Exits with 0 if all is well, else 1. It opens a tunnel under the cluster's name and closes it at once. A hub written
    in Go then takes it for the cluster's newest agent. So don't check against such a hub while an agent serves.

    \b
    Example:
      fastpipe-agent check --hub-address hub.example.com:8443 --cluster-name c1 \\
        --route /=http://127.0.0.1:8000
    """
    if not os.environ.get("AGENT_LOG_LEVEL"):
        given["log_level"] = given["log_level"] or "error"  # the lines are the result
    configured = Configured(AgentConfig, config_file, given)
    config, process = configured.begin(False)
    import_from_working_folder()
    failed: list[str] = []

    for doubt in configured.find_doubts():
        print_line(f"note {doubt.variable}: a variable that is not read, {doubt.reason}")

    async def body() -> None:
        from .checks import run_checks

        async for result in run_checks(config, configured.sources):
            print_line(str(result))
            if not result.ok:
                failed.append(result.what)

    sys.exit(serve(body, process, configured.sources) or (FAILED if failed else DONE))
