"""Reads a command's configuration from flags, environment and file, and warns about doubtful variables."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from ..config.dump import write_toml
from ..config.loading import load, settings
from ..config.schema import COMMANDS, AgentConfig, ProcessConfig
from ..config.variables import Doubt, describe_rename, find_doubts, find_outdated, list_config_variables
from ..errors import ConfigError
from .output import DONE, PROGRAM, print_line, report

__all__ = ["Configured", "set_up_logging"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Configured(Generic[T]):
    """A command's configuration and where it comes from. It can be read again.

    process: the process's part in force.
    sources: the source of each set field.
    """

    process: ProcessConfig
    sources: Mapping[str, str]

    def __init__(self, cls: type[T], config_file: str, given: dict[str, Any]) -> None:
        self._cls = cls
        self._prefix: str = cls.variable_prefix  # type: ignore[attr-defined]  # every configuration is Checked
        self._config_file = config_file
        self._flags = {name.replace("__", "."): value for name, value in given.items()}

    def read(self) -> tuple[T, ProcessConfig, dict[str, str]]:
        """Read (configuration, the process's part, the source of each set field). Raises ConfigErrors."""
        (config, process), sources = load(
            (self._cls, ProcessConfig),
            flags=self._flags,
            environ=os.environ,
            config_file=self._config_file,
            others=COMMANDS,
        )
        return config, process, sources

    def warn(self, sources: Mapping[str, str]) -> None:
        """Log variables that look like ours but nothing reads, and variables that have a new name."""
        declared = {each.name: each for cls in (self._cls, ProcessConfig) for each in settings(cls, self._prefix)}
        for doubt in self._file_by_old_name():
            logger.warning("a variable has a new name", extra=doubt._asdict())
        for doubt in find_outdated(sources, declared):
            logger.warning("a variable has a new name", extra=doubt._asdict())
        for doubt in self.find_doubts():
            logger.warning("a variable is not read", extra=doubt._asdict())

    def find_doubts(self) -> list[Doubt]:
        """The variables that look like ours but nothing reads."""
        return find_doubts(os.environ, self._prefix, ProcessConfig, COMMANDS)

    def _file_by_old_name(self) -> list[Doubt]:
        """The doubt about the variable of the file, if it has its old name."""
        variable, *old = list_config_variables(self._prefix)
        by_old_name = variable not in os.environ and any(os.environ.get(each) == self._config_file for each in old)
        return [describe_rename(old[0], variable)] if by_old_name and self._config_file else []

    def _note_doubts(self) -> None:
        for doubt in self._file_by_old_name():  # the file may be the other command's
            print(f"{PROGRAM}: {doubt.variable}: names the file, {doubt.reason}", file=sys.stderr)
        for doubt in self.find_doubts():
            print(f"{PROGRAM}: {doubt.variable}: a variable that is not read, {doubt.reason}", file=sys.stderr)

    def begin(self, print_config: bool) -> tuple[T, ProcessConfig]:
        """Read the configuration and set up logging.

        Exits with 2 and reports all errors if it is wrong. Exits with 0 after printing it for print_config.
        """
        try:
            config, process, sources = self.read()
        except ConfigError as error:
            code = report(error)
            self._note_doubts()  # one of them may be the missing setting
            sys.exit(code)
        if print_config:
            try:
                lines = _proxies_of(config) if isinstance(config, AgentConfig) else []
            except ConfigError as error:
                sys.exit(report(error))
            print_line("\n".join([write_toml((config, process), sources).rstrip("\n"), *lines]))
            self._note_doubts()
            sys.exit(DONE)
        set_up_logging(process)
        self.process = process
        self.sources = sources
        self.warn(sources)
        return config, process


def set_up_logging(process: ProcessConfig) -> None:
    """Log to standard error from the configured level on."""
    from ..telemetry.logs import configure, take_standard_error

    configure(process.log_level)
    take_standard_error()


def _proxies_of(config: AgentConfig) -> list[str]:
    """Comments that name the proxies for the dials to hubs. Raises ConfigError."""
    from ..spoke.outbound_proxy import proxy_for

    found = [(address, proxy_for(address, os.environ)) for address in config.hub_addresses]
    lines = [f"# hub {address} is dialled through {proxy}  # {proxy.variable}" for address, proxy in found if proxy]
    return ["", *lines] if lines else []
