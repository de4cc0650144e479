"""The command line: reads the configuration, starts an event loop, and turns signals and errors into exit codes.

Exit 0: done, or drained after a signal. 1: failed, or aborted by a second signal. 2: wrong usage or configuration.
Standard output has the lines that scripts wait for (`listening …`, `ready`) and nothing else; the log is on standard
error. What a command doesn't need isn't imported.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .config import AgentConfig, HubConfig, ProcessConfig, ProxyConfig, load_config
from .errors import AgentError, ConfigError
from .settings import ConfigErrors, Setting, load, settings
from .syntax import Address

if TYPE_CHECKING:
    import asyncio

__all__ = ["main"]

PROGRAM = "fastpipe-agent"
DONE, FAILED, USAGE = 0, 1, 2

_log = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[..., None]


def main() -> None:
    """The console script. Never returns: raises SystemExit."""
    _commands(prog_name=PROGRAM)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def _commands() -> None:
    """A tunnel agent and its hub.

    Every option is also a variable (--hub-address: AGENT_HUB_ADDRESS) and a key of the --config file (hub_address): an
    option wins over the variable, that over the file.
    """


def _option(setting: Setting) -> Callable[[Command], Command]:
    """A setting as click's option. Its text is checked by the schema, with everything else, not by click."""
    default = "" if setting.default in (None, "", (), False) else f"default: {_shown(setting.default)}; "
    help_text = f"{setting.help}  [{'required; ' if setting.required else default}{setting.variable}]"
    if setting.metavar:
        return click.option(
            setting.flag, _parameter(setting.name), help=help_text, metavar=setting.metavar, multiple=setting.many
        )
    switch = f"{setting.flag}/--no-{setting.flag[2:]}"  # the second overrides a file or a variable
    return click.option(switch, _parameter(setting.name), help=help_text, default=None)


def _shown(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def _parameter(name: str) -> str:
    return name.replace(".", "__")


def _options(*classes: type[Any]) -> Callable[[Command], Command]:
    """The options of some configurations, and --config."""

    def decorate(command: Command) -> Command:
        for cls in reversed(classes):
            for setting in reversed(list(settings(cls))):
                command = _option(setting)(command)
        return click.option(
            "--config", "config_file", metavar="FILE.toml", envvar="AGENT_CONFIG", default="",
            help="a TOML file with any of these fields  [AGENT_CONFIG]",
        )(command)

    return decorate


def _configured(cls: type[T], config_file: str, given: dict[str, Any]) -> tuple[T, ProcessConfig]:
    """The command's configuration, with logging set up by it. Exits 2, all errors said, where it is wrong."""
    flags = {name.replace("__", "."): value for name, value in given.items()}
    try:
        config, process = load_config(cls, flags=flags, environ=os.environ, config_file=config_file)
    except ConfigError as error:
        sys.exit(_report(error))
    _set_up_logging(process)
    return config, process


def _set_up_logging(process: ProcessConfig) -> None:
    from .telemetry.logs import configure

    configure(process.log_level)


@_commands.command()
@_options(AgentConfig, ProcessConfig)
def run(config_file: str, **given: Any) -> None:
    """Run the agent: dial the hub, and serve what it sends by --route, or Kubernetes' paths.

    Prints `ready` when the hub has answered. SIGTERM and SIGINT drain, a second one aborts, SIGHUP dials the hub anew.
    """
    config, process = _configured(AgentConfig, config_file, given)

    async def body() -> None:
        import asyncio
        import signal

        from .agent import Agent

        said: list[bool] = []

        def on_ready() -> None:
            if not said:  # once, however often the hub is dialled anew
                said.append(True)
                _say("ready")

        agent = Agent(config, on_ready=on_ready)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, agent.reconnect_now)
        await agent.run()

    sys.exit(_serve(body, process))


@_commands.command()
@_options(HubConfig, ProcessConfig)
def hub(config_file: str, **given: Any) -> None:
    """Run a hub: agents dial its gRPC port, users send requests for /<cluster>/… to its HTTP port.

    Prints `listening grpc HOST:PORT` and `listening http HOST:PORT`. SIGTERM and SIGINT drain, a second one aborts.
    """
    config, process = _configured(HubConfig, config_file, given)

    async def body() -> None:
        from .hub.hub import Hub

        await Hub(config, on_listening=_say_listening).run()

    sys.exit(_serve(body, process))


@_commands.command()
@_options(ProxyConfig, ProcessConfig)
def proxy(config_file: str, **given: Any) -> None:
    """Run the agent's proxy alone on a TCP port, with no cluster name in the paths: for trying routes.

    Prints `listening proxy HOST:PORT`. SIGTERM and SIGINT drain, a second one aborts.
    """
    config, process = _configured(ProxyConfig, config_file, given)

    async def body() -> None:
        from .proxy_server import run_proxy

        await run_proxy(config, _say_listening)

    sys.exit(_serve(body, process))


@_commands.command()
@_options(ProcessConfig)
def demo(config_file: str, **given: Any) -> None:
    """Send real requests through hub, agent and target in one process, over UDS and over memory; print a table."""
    if not os.environ.get("AGENT_LOG_LEVEL"):
        given["log_level"] = given["log_level"] or "warning"  # the table is what this is for
    try:
        (process,), _ = load((ProcessConfig,), flags=given, environ=os.environ, config_file=config_file)
        _set_up_logging(process)
        from .demo import main as run_demo

        sys.exit(run_demo(_loop_factory(process.loop)))
    except ConfigError as error:
        sys.exit(_report(error))


@_commands.command()
def version() -> None:
    """Print the versions of what is running, the twin of fastpipe that was picked, and the event loop."""
    import platform
    from importlib.metadata import version as version_of

    import fastpipe

    _say(f"{PROGRAM} {version_of(PROGRAM)}")
    _say(f"fastpipe {fastpipe.IMPLEMENTATION}")
    _say("loop asyncio" if _loop_factory("auto") is None else f"loop uvloop {version_of('uvloop')}")
    _say(f"python {platform.python_version()} {platform.python_implementation()}")


def _say(line: str) -> None:
    """One line on standard output, at once. A closed standard output is no reason to stop serving."""
    try:
        print(line, flush=True)
    except OSError as error:
        _log.warning("standard output is closed", extra={"line": line, "reason": error.strerror})
        # What print left in the buffer would fail once more at exit, and turn the exit code into 120.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _say_listening(kind: str, host: str, port: int) -> None:
    _say(f"listening {kind} {Address(host, port)}")


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop: uvloop's, or None for asyncio's. Raises ConfigError where uvloop is missing."""
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise ConfigError("loop", "--loop or AGENT_LOOP", "must be asyncio or auto: uvloop isn't there") from None
        return None
    return uvloop.new_event_loop


def _serve(body: Callable[[], Coroutine[Any, Any, None]], process: ProcessConfig) -> int:
    """Run a service to its end. Returns the exit code; what went wrong has been said."""
    import asyncio

    try:
        with asyncio.Runner(loop_factory=_loop_factory(process.loop)) as runner:
            return runner.run(_until_signalled(body))
    except Exception as error:
        return _report(error)


async def _until_signalled(body: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `body` until it ends. SIGTERM or SIGINT cancels it, which drains; the second cancels again, which aborts.

    The third kills the process, as it would without us. Returns DONE, or FAILED after an abort; raises what body
    raised.
    """
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    task = loop.create_task(body())
    signals: list[str] = []

    def on_signal(number: signal.Signals) -> None:
        signals.append(number.name)
        _log.info("draining" if len(signals) == 1 else "aborting", extra={"signal": number.name})
        if len(signals) == 2:
            for each in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        task.cancel()

    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, on_signal, each)
    await asyncio.wait([task])
    if len(signals) > 1:
        return FAILED
    if not task.cancelled():
        task.result()
    return DONE


def _report(error: Exception) -> int:
    """Say what went wrong, on standard error. Returns the exit code."""
    reasons = list(_reasons(error))
    for reason in reasons:
        if isinstance(reason, AgentError | OSError):
            print(f"{PROGRAM}: {reason}", file=sys.stderr, flush=True)
        else:
            _log.error("a bug: please report it", exc_info=reason)
    return USAGE if all(isinstance(reason, ConfigError) for reason in reasons) else FAILED


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """What an error holds: the members of an exception group (a task group raises those), and of ConfigErrors."""
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else getattr(error, "errors", ())
    if not members or not isinstance(error, BaseExceptionGroup | ConfigErrors):
        yield error
        return
    for member in members:
        yield from _reasons(member)
