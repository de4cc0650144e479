"""Finds variables of the environment that look like ours but nothing reads: misspelled or outdated names.

Without it, `AGENT_HUB_TOKENFILE` is ignored silently, and the agent dials without its token.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .loading import OLD_PREFIX, RENAMED, Setting, settings

__all__ = ["Doubt", "describe_rename", "find_doubts", "find_outdated", "list_config_variables"]

OWN_PREFIX = "FASTPIPE_"
READ_BY_US = frozenset(
    {
        "FASTPIPE_NO_EXTENSIONS",
        "FASTPIPE_REQUIRE_EXTENSIONS",
        "FASTPIPE_DEBUG",
        "FASTPIPE_QUICK_BUILD",
        "FASTPIPE_SANITIZE",
        "FORWARD_TOKEN",
    }
)
"""Variables that `forward` reads by itself, and the library on import or build. The tests use more, so only slips are
reported."""

NEAR = 0.85
"""The similarity (difflib's ratio, 1 for equal names) from which one name counts as a slip of the other."""

MOST = 20
"""The most reported variables, since another program with our prefix may have hundreds."""

# Kubernetes sets these in each container for a Service called `agent`, `hub` or `agent-…`. So do Docker's links.
_SERVICE = re.compile(
    r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


class Doubt(NamedTuple):
    """One variable. reason: its probable meaning. Its value is never shown, since it may be a secret."""

    variable: str
    reason: str


def list_config_variables(prefix: str) -> list[str]:
    """The variables that name the TOML file: a command's own, and its former name."""
    return [f"{prefix}CONFIG", *([f"{OLD_PREFIX}CONFIG"] if prefix in RENAMED else [])]


def find_doubts(
    environ: Mapping[str, str], prefix: str, process: type[Any], commands: Mapping[str, type[Any]]
) -> list[Doubt]:
    """The variables with our prefixes that nothing reads, each with its probable meaning.

    prefix: the prefix of the running command. With it, every unknown name counts. With another command's prefix, only a
        near miss of a known name counts.
    process: the configuration that all commands have.
    """
    return list(_doubts(environ, prefix, process, commands))[:MOST]


def _doubts(
    environ: Mapping[str, str], prefix: str, process: type[Any], commands: Mapping[str, type[Any]]
) -> Iterator[Doubt]:
    known = dict.fromkeys(READ_BY_US, "")
    owners: dict[str, dict[str, str]] = {}  # by a variable's name without prefix: command -> variable
    for command, cls in commands.items():
        for each in (*settings(cls), *settings(process, cls.variable_prefix)):
            known[each.variable] = known[each.old_variable] = ""
            owners.setdefault(each.variable.removeprefix(each.prefix), {})[command] = each.variable
        known |= dict.fromkeys(list_config_variables(cls.variable_prefix), "")
    prefixes = (prefix, *(cls.variable_prefix for cls in commands.values()), OWN_PREFIX)
    for variable in sorted(environ):
        if variable in known or not variable.startswith(prefixes) or _SERVICE.fullmatch(variable):
            continue
        start = next(each for each in prefixes if variable.startswith(each))
        beside = [each for each in known if each.startswith(start)]
        close = difflib.get_close_matches(variable, beside, n=1, cutoff=NEAR)
        owned = owners.get(variable.removeprefix(start), {}) if start != OWN_PREFIX else {}
        if owned:
            command, right = next(iter(owned.items()))
            yield Doubt(variable, f"`{command}` reads {right}")
        elif close:
            yield Doubt(variable, f"perhaps {close[0]} is meant")
        elif start == prefix:
            yield Doubt(variable, "the command's --help lists its variables")


def describe_rename(old: str, new: str) -> Doubt:
    """The doubt about a variable with its former name."""
    return Doubt(old, f"it is called {new} now")


def find_outdated(sources: Mapping[str, str], declared: Mapping[str, Setting]) -> list[Doubt]:
    """The variables that gave a value under their former name, each with its present name.

    sources: from `settings.load`. declared: the settings by name.
    """
    return [
        describe_rename(setting.old_variable, setting.variable)
        for name, setting in declared.items()
        if sources.get(name) == setting.old_variable != setting.variable
    ]
