"""The command line: reads the configuration, starts an event loop, and turns signals and errors into exit codes.

Exit 0: done, or drained after a signal. 1: failed, or aborted by a second signal. 2: wrong usage or configuration.
Standard output has the lines that scripts wait for (`listening …`, `ready`) and nothing else; the log is on standard
error. What a command doesn't need isn't imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from ..config.dump import as_toml, changed, merged, shown
from ..config.schema import COMMANDS, AgentConfig, HubConfig, ProcessConfig, ProxyConfig
from ..config.settings import ConfigErrors, Setting, load, located, settings
from ..config.variables import Doubt, config_variables, doubts, outdated, renamed
from ..errors import AgentError, ConfigError
from ..syntax import Address

if TYPE_CHECKING:
    import asyncio

    from ..spoke.agent import Agent

__all__ = ["main"]

PROGRAM = "fastpipe-agent"
DONE, FAILED, USAGE = 0, 1, 2

LEAVE_S = 3.0
"""How long threads may take to end once a service has ended."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[..., None]


def main() -> None:
    """The console script. Never returns: raises SystemExit."""
    from ..runtime.descriptors import fill_standard_descriptors

    fill_standard_descriptors()
    _commands(prog_name=PROGRAM)


def _say_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from importlib.metadata import version as version_of

        _say(f"{PROGRAM} {version_of(PROGRAM)}")
        context.exit(DONE)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_say_version,
    help="Print the version and exit; the command `version` says more.",
)
def _commands() -> None:
    """A tunnel agent and its hub.

    Every option is also a variable (--hub-address: AGENT_HUB_ADDRESS; of `hub`, --grpc-address: HUB_GRPC_ADDRESS) and
    a key of the --config file (hub_address): an option wins over the variable, that over the file.
    """


def _option(setting: Setting) -> Callable[[Command], Command]:
    """A setting as click's option. Its text is checked by the schema, with everything else, not by click."""
    default = "" if setting.default in (None, "", (), False) else f"default: {_shown(setting.default)}; "
    if setting.unset:
        default = f"{setting.unset}; "
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


class _Configured(Generic[T]):
    """A command's configuration as it was given: it can be read again. process: the process's part, as in force.

    sources: where each set field came from.
    """

    process: ProcessConfig
    sources: Mapping[str, str]

    def __init__(self, cls: type[T], config_file: str, given: dict[str, Any]) -> None:
        self._cls = cls
        self._prefix: str = cls.variable_prefix  # type: ignore[attr-defined]  # every configuration is Checked
        self._config_file = config_file
        self._flags = {name.replace("__", "."): value for name, value in given.items()}

    def read(self) -> tuple[T, ProcessConfig, dict[str, str]]:
        """The configuration, the process's, and the source of each set field. Raises ConfigErrors."""
        (config, process), sources = load(
            (self._cls, ProcessConfig),
            flags=self._flags,
            environ=os.environ,
            config_file=self._config_file,
            others=COMMANDS,
        )
        return config, process, sources

    def warn(self, sources: Mapping[str, str]) -> None:
        """Say which variables nothing reads, though they look like ours, and which have another name now."""
        declared = {each.name: each for cls in (self._cls, ProcessConfig) for each in settings(cls, self._prefix)}
        for doubt in self._file_by_old_name():
            _log.warning("a variable has another name now", extra=doubt._asdict())
        for doubt in outdated(sources, declared):
            _log.warning("a variable has another name now", extra=doubt._asdict())
        for doubt in self.doubts():
            _log.warning("a variable is not read", extra=doubt._asdict())

    def doubts(self) -> list[Doubt]:
        """The variables that nothing reads, though they look like ours."""
        return doubts(os.environ, self._prefix, ProcessConfig, COMMANDS)

    def _file_by_old_name(self) -> list[Doubt]:
        """What is to be told where the variable that named the file has another name now."""
        variable, *old = config_variables(self._prefix)
        by_old_name = variable not in os.environ and any(os.environ.get(each) == self._config_file for each in old)
        return [renamed(old[0], variable)] if by_old_name and self._config_file else []

    def _note_doubts(self) -> None:
        for doubt in self._file_by_old_name():  # the file may be the other command's
            print(f"{PROGRAM}: {doubt.variable}: names the file; {doubt.reason}", file=sys.stderr)
        for doubt in self.doubts():
            print(f"{PROGRAM}: {doubt.variable}: a variable that is not read; {doubt.reason}", file=sys.stderr)

    def begin(self, print_config: bool) -> tuple[T, ProcessConfig]:
        """Read it, and set up logging by it. Exits 2, all errors said, where it is wrong; 0 where it is to be shown."""
        try:
            config, process, sources = self.read()
        except ConfigError as error:
            code = _report(error)
            self._note_doubts()  # one of them may be what is missing
            sys.exit(code)
        if print_config:
            try:
                lines = _proxies(config) if isinstance(config, AgentConfig) else []
            except ConfigError as error:
                sys.exit(_report(error))
            _say("\n".join([as_toml((config, process), sources).rstrip("\n"), *lines]))
            self._note_doubts()
            sys.exit(DONE)
        _set_up_logging(process)
        self.process = process
        self.sources = sources
        self.warn(sources)
        return config, process


def _proxies(config: AgentConfig) -> list[str]:
    """Comments that say through which proxies hubs are dialled. Raises ConfigError."""
    from ..spoke.outbound_proxy import proxy_for

    found = [(address, proxy_for(address, os.environ)) for address in config.hub_addresses]
    lines = [f"# hub {address} is dialled through {proxy}  # {proxy.variable}" for address, proxy in found if proxy]
    return ["", *lines] if lines else []


def _set_up_logging(process: ProcessConfig) -> None:
    from ..telemetry.logs import configure, take_standard_error

    configure(process.log_level)
    take_standard_error()


_print_config = click.option(
    "--print-config",
    is_flag=True,
    help="print the values in force as TOML, each with where it came from, and exit",
)


@_commands.command(short_help="The agent: dial a hub, serve what it sends.")
@_options(AgentConfig, ProcessConfig)
@_print_config
def run(config_file: str, print_config: bool, **given: Any) -> None:
    """Run the agent: dial the hub, and serve what it sends by --route, --app or Kubernetes' paths.

    Prints `ready` when the hub has answered. SIGTERM and SIGINT drain, a second one aborts. SIGHUP reads the
    configuration again and applies what can change while it runs, without dropping a connection; it dials the hub anew
    where what it is dialled with has changed, or no tunnel is up.
    """
    configured = _Configured(AgentConfig, config_file, given)
    config, process = configured.begin(print_config)
    sys.path.insert(0, os.getcwd())  # where `module:name` is looked for first, as with `python -m`

    async def body() -> None:
        from ..spoke.agent import Agent

        said: list[bool] = []

        def on_ready() -> None:
            if not said:  # once, however often the hub is dialled anew
                said.append(True)
                _announce("ready")

        agent = Agent(config, on_ready=on_ready)
        with _on_hangup(lambda: _reload(configured, agent)):
            await agent.run()

    sys.exit(_serve(body, process, configured.sources))


@_commands.command(short_help="A hub: for agents, and for their users.")
@_options(HubConfig, ProcessConfig)
@_print_config
def hub(config_file: str, print_config: bool, **given: Any) -> None:
    """Run a hub: agents dial its gRPC port, users send requests for /<cluster>/… to its HTTP port.

    Prints `listening grpc HOST:PORT` and `listening http HOST:PORT`. SIGTERM and SIGINT drain, a second one aborts.
    """
    configured = _Configured(HubConfig, config_file, given)
    config, process = configured.begin(print_config)
    sys.path.insert(0, os.getcwd())  # where `module:name` is looked for first, as with `python -m`

    async def body() -> None:
        from ..hub.hub import Hub

        await Hub(config, on_listening=_say_listening).run()

    sys.exit(_serve(body, process, configured.sources))


@_commands.command(short_help="The agent's proxy alone, on a TCP port.")
@_options(ProxyConfig, ProcessConfig)
@_print_config
def proxy(config_file: str, print_config: bool, **given: Any) -> None:
    """Run the agent's proxy alone on a TCP port, with no cluster name in the paths: for trying routes.

    Prints `listening proxy HOST:PORT`. SIGTERM and SIGINT drain, a second one aborts.
    """
    configured = _Configured(ProxyConfig, config_file, given)
    config, process = configured.begin(print_config)

    async def body() -> None:
        from .proxy import run_proxy

        await run_proxy(config, _say_listening)

    sys.exit(_serve(body, process, configured.sources))


@_commands.command(short_help="Hub, agent and target in one process: try it.")
@_options(ProcessConfig)
def demo(config_file: str, **given: Any) -> None:
    """Send real requests through hub, agent and target in one process, over UDS and over memory; print a table."""
    if not os.environ.get("AGENT_LOG_LEVEL"):
        given["log_level"] = given["log_level"] or "error"  # the table is what this is for
    try:
        (process,), _ = load((ProcessConfig,), flags=given, environ=os.environ, config_file=config_file)
        _set_up_logging(process)
        from .demo import main as run_demo

        sys.exit(run_demo(_loop_factory(process.loop)))
    except ConfigError as error:
        sys.exit(_report(error))


@_commands.command(short_help="Try what `run` needs with these options.")
@_options(AgentConfig, ProcessConfig)
def check(config_file: str, **given: Any) -> None:
    """Try what `run` needs with these options: hubs, targets, API servers and rights there. One line for each thing.

    Exit 0 where all is well, else 1. A tunnel is opened under the cluster's name and left at once: a hub written in Go
    then takes this for the cluster's newest agent, so don't check against one beside an agent that serves.
    """
    if not os.environ.get("AGENT_LOG_LEVEL"):
        given["log_level"] = given["log_level"] or "error"  # the lines are what this is for
    configured = _Configured(AgentConfig, config_file, given)
    config, process = configured.begin(False)
    sys.path.insert(0, os.getcwd())  # where `module:name` is looked for first, as with `python -m`
    failed: list[str] = []

    for doubt in configured.doubts():
        _say(f"note {doubt.variable}: a variable that is not read; {doubt.reason}")

    async def body() -> None:
        from .check import checks

        async for result in checks(config, configured.sources):
            _say(str(result))
            if not result.ok:
                failed.append(result.what)

    sys.exit(_serve(body, process, configured.sources) or (FAILED if failed else DONE))


@_commands.command(short_help="Versions, fastpipe's twin and the loop.")
def version() -> None:
    """Print the versions of what is running, the twin of fastpipe that was picked, and the event loop."""
    import platform
    from importlib.metadata import version as version_of

    import fastpipe

    _say(f"{PROGRAM} {version_of(PROGRAM)}")
    _say(f"fastpipe {fastpipe.IMPLEMENTATION}")
    factory = _loop_factory("auto")
    library = "asyncio" if factory is None else factory.__module__.partition(".")[0]
    _say(f"loop {library}" if factory is None else f"loop {library} {version_of(library)}")
    _say(f"python {platform.python_version()} {platform.python_implementation()}")


@contextlib.contextmanager
def _on_hangup(reload: Callable[[], Coroutine[Any, Any, None]]) -> Iterator[None]:
    """Within the block, each SIGHUP runs `reload`, one after the other. Does nothing where there is no such signal."""
    import asyncio
    import signal

    if not hasattr(signal, "SIGHUP"):
        yield
        return
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    async def work() -> None:
        while True:
            await asked.wait()
            asked.clear()
            try:
                await reload()
            except Exception:
                _log.exception("a bug: please report it")

    worker = loop.create_task(work())
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it must not end a drain
        worker.cancel()


async def _reload(configured: _Configured[AgentConfig], agent: Agent) -> None:
    """Read the configuration again, and apply what can change. A wrong one changes nothing, and every error is said."""
    try:
        config, process, sources = configured.read()
    except ConfigError as error:
        for reason in _reasons(error):
            _log.error("the configuration is wrong and nothing of it was applied", extra={"reason": str(reason)})
        return
    for name in changed(configured.process, process):
        extra = {"setting": name, "value": shown(process, name)}
        if name == "log_level":
            _set_up_logging(process)
            _log.warning("setting changed", extra=extra)  # as a warning, so that most levels show it
        else:
            _log.warning("setting needs a restart", extra=extra)
    configured.process = merged(configured.process, process, ["loop"])
    configured.warn(sources)
    await agent.reload(config)


def _say(line: str) -> None:
    """Print one line on standard output, at once: the result of a command, which waits for its reader."""
    try:
        print(line, flush=True)
    except OSError as error:
        _log.warning("standard output is closed", extra={"line": line, "reason": error.strerror})
        # What print left in the buffer would fail once more at exit, and turn the exit code into 120.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _announce(line: str) -> None:
    """Put one line of a service on standard output. Neither a reader that doesn't read nor a closed one stops it."""
    from ..telemetry.logs import announce

    announce(line)


def _say_listening(kind: str, host: str, port: int) -> None:
    _announce(f"listening {kind} {Address(host, port)}")


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop: uvloop's (on Windows its port winloop's), or None for asyncio's.

    Raises ConfigError where uvloop was asked for and is missing.
    """
    if name == "asyncio":
        return None
    from importlib import import_module

    library = "winloop" if name == "auto" and sys.platform == "win32" else "uvloop"
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = import_module(library).new_event_loop
    except ImportError:
        if name == "uvloop":
            raise ConfigError("loop", "configuration", "must be asyncio or auto: uvloop isn't there") from None
        return None
    return factory


def _serve(
    body: Callable[[], Coroutine[Any, Any, None]], process: ProcessConfig, sources: Mapping[str, str] | None = None
) -> int:
    """Run a service to its end. Returns the exit code; what went wrong has been said, with the value's source."""
    import asyncio

    from ..runtime.descriptors import open_more_descriptors
    from .allocator import keep_freed_memory

    keep_freed_memory()
    open_more_descriptors()

    async def serve() -> int:
        try:
            code = await _until_signalled(body)
        except Exception as error:
            code = _report(error, sources)
        _leave(code)
        return code

    try:
        with asyncio.Runner(loop_factory=_loop_factory(process.loop)) as runner:
            return runner.run(serve())
    except Exception as error:
        return _report(error, sources)


def _leave(code: int) -> None:
    """Have the process end within LEAVE_S and what the log takes, with this code.

    Threads that nothing can end would hold it: a look-up of a name whose server doesn't answer takes up to a minute,
    and both loops and Python wait for it.
    """
    import threading
    import time

    def end() -> None:
        time.sleep(LEAVE_S)
        from ..telemetry.logs import finish

        finish()
        os._exit(code)

    threading.Thread(target=end, name="end of the process", daemon=True).start()


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
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        task.cancel()

    for each in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(each, on_signal, each)
        except NotImplementedError:  # on Windows, where Ctrl-C is all there is
            signal.signal(each, lambda number, _: loop.call_soon_threadsafe(on_signal, signal.Signals(number)) and None)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        # What has something to read anew sets a handler of its own in place of this one; its default would be to kill.
        loop.add_signal_handler(signal.SIGHUP, _log.warning, "SIGHUP is ignored: this command reads nothing anew")
    await asyncio.wait([task])
    if len(signals) > 1:
        return FAILED
    if not task.cancelled():
        task.result()
    return DONE


def _report(error: Exception, sources: Mapping[str, str] | None = None) -> int:
    """Say what went wrong, on standard error. sources: of the set fields. Returns the exit code."""
    given = sources or {}
    reasons = [located(each, given) if isinstance(each, ConfigError) else each for each in _reasons(error)]
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
