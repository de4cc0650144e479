"""Variables of the environment that look like ours and that nothing reads: misspelt, or called as they were once.

`AGENT_HUB_TOKENFILE` would be overlooked without a word, and the agent would dial without its token.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .settings import OLD_PREFIX, Setting, settings

__all__ = ["Doubt", "config_variables", "doubts", "outdated", "renamed"]

OWN_PREFIX = "FASTPIPE_"
READ_BY_US = frozenset({"FASTPIPE_NO_EXTENSIONS", "FASTPIPE_REQUIRE_EXTENSIONS", "FASTPIPE_DEBUG", "FASTPIPE_SANITIZE"})
"""What the library reads when it is imported or built. The tests have more of this prefix, so only slips are told."""

NEAR = 0.85
"""How alike two names are (difflib's ratio, 1 for equal ones) where one is taken for a slip of the other."""

MOST = 20
"""How many are told: whoever shares our prefix may have hundreds."""

# What Kubernetes gives each container for a Service called `agent` or `hub`, or `agent-…`; Docker's links are alike.
_SERVICE = re.compile(
    r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


class Doubt(NamedTuple):
    """One variable. reason: what may be meant. Its value is never told: it may be a secret."""

    variable: str
    reason: str


def config_variables(prefix: str) -> list[str]:
    """The variables that name the TOML file: a command's own, and as it was called once."""
    return list(dict.fromkeys((f"{prefix}CONFIG", f"{OLD_PREFIX}CONFIG")))


def doubts(
    environ: Mapping[str, str], prefix: str, process: type[Any], commands: Mapping[str, type[Any]]
) -> list[Doubt]:
    """The variables that nobody reads although their names begin as ours do, each with what may be meant.

    prefix: how the running command's variables begin. With its prefix every unknown name counts; with another
    command's only a near miss of a name that is read does. process: the configuration that all commands have.
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
        known |= dict.fromkeys(config_variables(cls.variable_prefix), "")
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
            yield Doubt(variable, "the command's --help lists those that it reads")


def renamed(old: str, new: str) -> Doubt:
    """What is told of a variable under its old name."""
    return Doubt(old, f"it is called {new} now")


def outdated(sources: Mapping[str, str], declared: Mapping[str, Setting]) -> list[Doubt]:
    """The variables that gave a value under the name that they had once, each with its name now.

    sources: as `settings.load` gives them. declared: the settings by name.
    """
    return [
        renamed(setting.old_variable, setting.variable)
        for name, setting in declared.items()
        if sources.get(name) == setting.old_variable != setting.variable
    ]
