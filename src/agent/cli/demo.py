"""`fastpipe-agent demo`: a hub, an agent and a target in one process, and real requests through the whole path."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ..config.loading import load
from ..config.schema import ProcessConfig
from ..errors import ConfigError
from .configured import set_up_logging
from .options import GroupedCommand, options
from .output import report
from .process import choose_loop

__all__ = ["command"]


@click.command("demo", cls=GroupedCommand)
@options(ProcessConfig)
def command(config_file: str, **given: Any) -> None:
    """Send real requests through hub, agent and target in one process, over UDS and over memory. Prints a table.

    \b
    Example:
      fastpipe-agent demo
    """
    if not os.environ.get("AGENT_LOG_LEVEL"):
        given["log_level"] = given["log_level"] or "error"  # the table is the result
    try:
        (process,), _ = load((ProcessConfig,), flags=given, environ=os.environ, config_file=config_file)
        set_up_logging(process)
        from .demonstration import run_demo

        code = run_demo(choose_loop(process.loop))
    except ConfigError as error:
        code = report(error)
    sys.exit(code)
