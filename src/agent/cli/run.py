"""`fastpipe-agent run`: the agent."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from ..config.dump import find_changes, merge, show_value
from ..config.loading import settings_by_reload
from ..config.schema import AgentConfig, ProcessConfig
from ..errors import ConfigError
from .configured import Configured, set_up_logging
from .options import GroupedCommand, options, print_config_option
from .output import announce, split_errors
from .process import import_from_working_folder, on_hangup, serve

if TYPE_CHECKING:
    from ..spoke.agent import Agent

__all__ = ["command"]

logger = logging.getLogger(__name__)


@click.command("run", cls=GroupedCommand)
@options(AgentConfig, ProcessConfig)
@print_config_option
def command(config_file: str, print_config: bool, **given: Any) -> None:
    """Run the agent: dial the hub, and serve its requests by --route, --app or Kubernetes' paths.

    Prints `ready` when the hub has accepted the tunnel. The first SIGTERM or SIGINT drains, the second aborts. SIGHUP
    reloads the configuration and applies what can change, without dropping a connection. The agent reconnects only if
    its hub settings or files changed, or if it has no tunnel.

    \b
    Example:
      fastpipe-agent run --hub-address hub.example.com:8443 --cluster-name c1 \\
        --route /=http://127.0.0.1:8000
    """
    configured = Configured(AgentConfig, config_file, given)
    config, process = configured.begin(print_config)
    import_from_working_folder()

    async def body() -> None:
        from ..spoke.agent import Agent

        announced: list[bool] = []

        def on_ready() -> None:
            if not announced:  # once, however often the agent reconnects
                announced.append(True)
                announce("ready")

        agent = Agent(config, on_ready=on_ready)
        with on_hangup(lambda: _reload(configured, agent)):
            await agent.run()

    sys.exit(serve(body, process, configured.sources))


async def _reload(configured: Configured[AgentConfig], agent: Agent) -> None:
    """Reload the configuration, and apply what can change. A wrong one changes nothing, and all errors are logged."""
    try:
        config, process, sources = configured.read()
    except ConfigError as error:
        for reason in split_errors(error):
            logger.error("the configuration is wrong, and nothing of it was applied", extra={"reason": str(reason)})
        return
    for name in find_changes(configured.process, process):
        extra = {"setting": name, "value": show_value(process, name)}
        if name == "log_level":
            set_up_logging(process)
            logger.warning("setting changed", extra=extra)  # as a warning, so that most levels show it
        else:
            logger.warning("setting needs a restart", extra=extra)
    configured.process = merge(configured.process, process, settings_by_reload(ProcessConfig)["restart"])
    configured.warn(sources)
    await agent.reload(config)
