"""`fastpipe-agent hub`: a hub."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..config.schema import HubConfig, ProcessConfig
from .configured import Configured
from .options import GroupedCommand, options, print_config_option
from .output import announce_listening
from .process import import_from_working_folder, serve

__all__ = ["command"]


@click.command("hub", cls=GroupedCommand)
@options(HubConfig, ProcessConfig)
@print_config_option
def command(config_file: str, print_config: bool, **given: Any) -> None:
    """Run a hub: agents dial its gRPC port, users send requests for /<cluster>/… to its HTTP port.

    Prints `listening grpc HOST:PORT` and `listening http HOST:PORT`. The host `*` is every interface. The first SIGTERM
    or SIGINT drains, the second aborts.

    \b
    Example:
      fastpipe-agent hub --grpc-address :8443 --http-address 127.0.0.1:8080 \\
        --grpc-cert-file hub.pem --agent-token-file tokens
    """
    configured = Configured(HubConfig, config_file, given)
    config, process = configured.begin(print_config)
    import_from_working_folder()

    async def body() -> None:
        from ..hub.hub import Hub

        await Hub(config, on_listening=announce_listening).run()

    sys.exit(serve(body, process, configured.sources))
