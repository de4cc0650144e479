"""`fastpipe-agent proxy`: the agent's proxy alone, on a TCP port."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..config.schema import ProcessConfig, ProxyConfig
from .configured import Configured
from .options import GroupedCommand, options, print_config_option
from .output import announce_listening
from .process import serve

__all__ = ["command"]


@click.command("proxy", cls=GroupedCommand)
@options(ProxyConfig, ProcessConfig)
@print_config_option
def command(config_file: str, print_config: bool, **given: Any) -> None:
    """Run the agent's proxy alone on a TCP port, with no cluster name in the paths, to try routes.

    Prints `listening proxy HOST:PORT`. The host `*` is every interface. The first SIGTERM or SIGINT drains, the second
    aborts.

    \b
    Example:
      fastpipe-agent proxy --listen 127.0.0.1:8080 --route /api=http://127.0.0.1:8000
    """
    configured = Configured(ProxyConfig, config_file, given)
    config, process = configured.begin(print_config)

    async def body() -> None:
        from .proxy_server import run_proxy

        await run_proxy(config, announce_listening)

    sys.exit(serve(body, process, configured.sources))
