"""Shows the configuration in force as a TOML file that recreates it, and compares configurations.

    use_memory_comm = true  # AGENT_USE_MEMORY_COMM

Each value has its source in a comment. Secrets are never shown, but a comment shows that one is set.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..syntax import Route
from .listeners import Listener
from .loading import Setting, settings

__all__ = ["find_changes", "get_value", "merge", "show_value", "write_toml"]

DEFAULT = "default"


def get_value(config: Any, name: str) -> Any:
    """The value of a configuration's setting by its name, `field` or `group.field`."""
    group, dot, _ = name.partition(".")
    for setting in settings(type(config)):
        if setting.name == name:
            return getattr(getattr(config, group) if dot else config, setting.attribute)
    raise KeyError(name)


def find_changes(old: Any, new: Any) -> list[str]:
    """The names of the settings in which two configurations of one class differ, in the fields' order."""
    return [each.name for each in settings(type(old)) if get_value(old, each.name) != get_value(new, each.name)]


def write_toml(configs: Sequence[Any], sources: Mapping[str, str]) -> str:
    """Make the text.

    configs: of different classes, from `settings.load`.
    sources: from `settings.load`.
    A setting without value and default is a comment.
    """
    top: list[str] = []
    tables: dict[str, list[str]] = {}
    arrays: list[str] = []
    for config in configs:
        for setting in settings(type(config)):
            group, dot, key = setting.name.partition(".")
            lines = tables.setdefault(group, []) if dot else top
            source = sources.get(setting.name, DEFAULT)
            value = get_value(config, setting.name)
            if setting.table and not all(map(_short_form, value)):
                arrays += (line for each in value for line in _table(setting.table, each, source))
            else:
                lines.append(_line(key if dot else setting.name, setting, value, source))
    grouped = (line for name, lines in tables.items() for line in ("", f"[{name}]", *lines))
    return "\n".join([*top, *grouped, *arrays, ""])


def _short_form(entry: Route | Listener) -> str:
    """The text that gives the same entry, or ""."""
    if isinstance(entry, Listener):
        return entry.short_form
    return f"{entry.prefix}={entry.url}" if entry.is_short else ""


def _table(key: str, entry: Route | Listener, source: str) -> list[str]:
    """The lines of one entry of an array of tables."""
    return ["", f"[[{key}]]{_comment(source)}", *_keys(entry)]


def _keys(entry: Route | Listener) -> list[str]:
    """The keys of an entry that are set, with their values."""
    return [f"{name} = {_value(value)}" for name, value in entry._asdict().items() if value is not None]


def _comment(source: str) -> str:
    return f"  # {source if source.isprintable() else _text(source)}"


def _line(key: str, setting: Setting, value: Any, source: str) -> str:
    comment = _comment(source)
    if value is None:
        return f"# {key} is not set{comment}"
    if setting.secret and value:
        return f"# {key} is set, and a secret{comment}"
    return f"{key} = {_value(value)}{comment}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Route | Listener):
        short = _short_form(value)
        if short:
            return _text(short)
        return f"{{ {', '.join(_keys(value))} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return _text(str(value))


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's, except for surrogate pairs and DEL."""
    return "".join(_escaped(json.dumps(value, ensure_ascii=False)))


def _escaped(text: str) -> Iterator[str]:
    for character in text:
        yield character if character.isprintable() else f"\\U{ord(character):08X}"


def show_value(config: Any, name: str) -> str:
    """A setting's value for the log, by its name. Secrets are not shown."""
    setting = next(each for each in settings(type(config)) if each.name == name)
    value = get_value(config, name)
    if value is None or value == "":
        return "not set"
    if setting.secret:
        return "set, and a secret"
    return value if isinstance(value, str) else _value(value)


def merge(old: Any, new: Any, kept: Iterable[str]) -> Any:
    """Return `new` with the settings in `kept` from `old`. Raises ConfigErrors if the result breaks a rule."""
    fields: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    attributes = {setting.name: setting.attribute for setting in settings(type(new))}
    for name in kept:
        group, dot, _ = name.partition(".")
        (groups.setdefault(group, {}) if dot else fields)[attributes[name]] = get_value(old, name)
    for group, values in groups.items():
        fields[group] = dataclasses.replace(getattr(new, group), **values)
    return dataclasses.replace(new, **fields)
