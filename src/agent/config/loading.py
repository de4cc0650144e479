"""Declares configurations, and reads them from flags, environment, a TOML file and defaults.

A configuration is a frozen dataclass whose fields come from the functions of `fields.py` (`boolean`, `integer`, …). One
declaration gives a field's check, flag, variable, TOML key and help. A flag wins over the variable, the variable over
the file, and the file over the default. All wrong values are reported together, each as a ConfigError with field,
source and the right form.

The class sets the prefix of its variables: `HUB_` for the hub, `AGENT_` for all others. So hub and agent can share an
environment. The hub's prefix was `AGENT_` once. That old name is read if the new one is not set at all.

Text from flags and variables goes through `parse` first. Values from Python and TOML have types and go only through
`convert`. So `use_memory_comm="yes"` is wrong in TOML and right in the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from ..errors import ConfigError

__all__ = [
    "GROUP",
    "OLD_PREFIX",
    "ON_RELOAD",
    "RENAMED",
    "SETTING",
    "Checked",
    "ConfigErrors",
    "OnReload",
    "Rule",
    "Setting",
    "add_source",
    "load",
    "settings",
    "settings_by_reload",
]

SETTING = "setting"  # keys of a dataclass field's metadata
GROUP = "group"
ON_RELOAD = "on_reload"
ARGUMENT = "argument"
CONFIG = "config"  # the file itself

OnReload = Literal["restart", "apply", "redial"]

OLD_PREFIX = "AGENT_"
"""The former prefix of the hub's variables, and the prefix of most commands."""

RENAMED = frozenset({"HUB_"})
"""Prefixes whose variables had OLD_PREFIX once."""


class ConfigErrors(ConfigError):
    """All errors of a configuration.

    errors: one ConfigError for each, in the fields' order, at least one.
    field, source, expected: the first error's.
    """

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.field, first.source, first.expected)
        self.args = ("\n".join(map(str, errors)),)
        self.errors = tuple(errors)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a configuration, for every source of values.

    name: its name in flags, variables and TOML, with a dot before a group's fields.
    attribute: the name of the dataclass field.
    convert: checks a value and returns its final form. Raises ValueError with the right form.
    parse: makes a value for convert from text.
    metavar: the value in the help, with its unit. "" for a boolean.
    unset: the help text for a missing default.
    secret: the value is never shown.
    holds: the content of the named files. `secret` is a key or a token. `certificate` is a chain, perhaps with its
        key. `roots` are CAs, and "" is anything else.
    prefix: the prefix of its variable.
    on_reload: the effect of a changed value: "restart" (none until then), "apply", or "redial" (the agent reconnects).
    heading: its group in the help.
    table: the TOML key of its array of tables, beside the name. "" if it has none.
    list_files: returns (holds, path) of each file that a value names, if the value is not the path itself.
    """

    help: str
    convert: Callable[[Any], Any]
    parse: Callable[[str], Any]
    metavar: str = "TEXT"
    many: bool = False
    unset: str = ""
    secret: bool = False
    required: bool = False
    default: Any = None
    name: str = ""
    attribute: str = ""
    holds: str = ""
    prefix: str = OLD_PREFIX
    on_reload: OnReload = "restart"
    heading: str = ""
    table: str = ""
    list_files: Callable[[Any], Iterable[tuple[str, str]]] | None = None

    def files_in(self, value: Any) -> Iterable[tuple[str, str]]:
        """Return (holds, path) of each file that a value names, for files whose content is known. "" for no file."""
        if self.list_files is not None:
            return self.list_files(value)
        if not self.holds:
            return ()
        return [(self.holds, path) for path in ([value] if isinstance(value, str) else value)]

    @property
    def flag(self) -> str:
        return "--" + re.sub("[._]", "-", self.name)

    @property
    def variable(self) -> str:
        return self.prefix + self.name.replace(".", "_").upper()

    @property
    def old_variable(self) -> str:
        """The variable's former name. If it never had another one, its name."""
        return OLD_PREFIX + self.variable.removeprefix(self.prefix) if self.prefix in RENAMED else self.variable


@dataclasses.dataclass(frozen=True)
class Given:
    """A value and its source. text: it needs parsing."""

    value: Any
    source: str
    text: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule between fields. wrong: gets their values in order, and returns whether they break the rule.

    The error names the first field. A rule with a wrong field is not checked.
    """

    fields: tuple[str, ...]
    wrong: Callable[..., bool]
    expected: str


class Checked:
    """The base of a configuration. The constructor checks and converts all fields.

    Raises ConfigErrors with all wrong values.
    """

    rules: ClassVar[tuple[Rule, ...]] = ()
    variable_prefix: ClassVar[str] = OLD_PREFIX
    """The prefix of its variables."""
    headings: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """The groups of its settings in the help. Each heading is for its field and the next ones, up to the next heading.
    """

    def __post_init__(self) -> None:
        cls = type(self)
        own = {setting.name: setting for setting in settings(cls) if "." not in setting.name}
        given = {name: Given(getattr(self, setting.attribute), ARGUMENT) for name, setting in own.items()}
        values, errors = _check(own.values(), given, cls.rules)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            group = field.metadata.get(GROUP)
            if group is not None and not isinstance(getattr(self, field.name), group):
                errors.append(ConfigError(field.name, ARGUMENT, f"must be a {group.__name__}"))
        if errors:
            raise ConfigErrors(errors)
        for name, value in values.items():
            object.__setattr__(self, own[name].attribute, value)


def settings(cls: type, prefix: str = "") -> Iterator[Setting]:
    """The settings of a configuration class in declared order, a group's fields as `group.field`.

    prefix: the prefix of their variables, if it isn't the class's own.
    """
    prefix = prefix or getattr(cls, "variable_prefix", OLD_PREFIX)
    headings: Mapping[str, str] = getattr(cls, "headings", {})
    heading = ""
    for field in dataclasses.fields(cls):
        heading = headings.get(field.name, heading)
        group = field.metadata.get(GROUP)
        if group is not None:
            for setting in settings(group, prefix):
                on_reload = field.metadata.get(ON_RELOAD, setting.on_reload)
                name = f"{field.name}.{setting.name}"
                yield dataclasses.replace(setting, name=name, on_reload=on_reload, heading=heading)
            continue
        setting = field.metadata[SETTING]
        required = field.default is dataclasses.MISSING
        yield dataclasses.replace(
            setting,
            name=setting.name or field.name,
            attribute=field.name,
            prefix=prefix,
            required=required,
            default=None if required else field.default,
            heading=heading,
        )


def settings_by_reload(cls: type) -> dict[OnReload, frozenset[str]]:
    """The names of a configuration's settings, by the effect of a changed value on reload."""
    found: dict[OnReload, set[str]] = {"restart": set(), "apply": set(), "redial": set()}
    for setting in settings(cls):
        found[setting.on_reload].add(setting.name)
    return {effect: frozenset(names) for effect, names in found.items()}


def _check(
    declared: Iterable[Setting], given: Mapping[str, Given], rules: Iterable[Rule]
) -> tuple[dict[str, Any], list[ConfigError]]:
    """Return (the right fields' values by name, the errors of the other fields and of broken rules)."""
    values: dict[str, Any] = {}
    errors: list[ConfigError] = []
    for setting in declared:
        found = given.get(setting.name)
        if found is None:
            if setting.required:
                where = f"{setting.flag}, {setting.variable} or the file"
                errors.append(ConfigError(setting.name, where, f"must be set: {setting.help}"))
            else:
                values[setting.name] = setting.default
            continue
        try:
            value = setting.parse(found.value) if found.text else found.value
            values[setting.name] = setting.convert(value)
        except ValueError as error:
            errors.append(ConfigError(setting.name, found.source, str(error)))
    for rule in rules:
        if all(name in values for name in rule.fields) and rule.wrong(*(values[name] for name in rule.fields)):
            source = given[rule.fields[0]].source if rule.fields[0] in given else "default"
            errors.append(ConfigError(rule.fields[0], source, rule.expected))
    return values, errors


def load(
    classes: Sequence[type[Any]],
    *,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    config_file: str = "",
    others: Mapping[str, type[Any]] = MappingProxyType({}),
) -> tuple[list[Any], dict[str, str]]:
    """Read configurations from every source. Returns (one object per class, each set field's source by name).

    Args:
        classes: their fields' names must differ. A TOML key of none of them is an error. The first one's prefix serves
            all.
        flags: by setting name: text, a tuple of texts, a bool, or None if not given.
        environ: variables. An empty one counts as not set.
        config_file: a TOML file's path, "" for none.
        others: every command's configuration, for errors about another command's key.

    Raises:
        ConfigErrors: any value is wrong.
    """
    prefix = classes[0].variable_prefix
    declared = {cls: list(settings(cls, prefix)) for cls in classes}
    every = [setting for group in declared.values() for setting in group]
    given, errors = _from_file(config_file, every, others) if config_file else ({}, [])
    unread = any(error.field == CONFIG for error in errors)  # it may hold the missing settings
    for setting in every:
        variable = setting.variable if setting.variable in environ else setting.old_variable
        text = environ.get(variable, "")
        if text:
            given[setting.name] = Given(text, variable, text=True)
        value = flags.get(setting.name)
        if value is not None and value != ():
            given[setting.name] = Given(value, setting.flag, text=isinstance(value, str))
    made: list[Any] = []
    for cls in classes:
        values, wrong = _check(declared[cls], given, cls.rules)
        errors += [error for error in wrong if not unread or error.field in given]
        if not errors:
            made.append(_make(cls, declared[cls], values))
    if errors:
        raise ConfigErrors(errors)
    return made, {name: found.source for name, found in given.items()}


def add_source(error: ConfigError, sources: Mapping[str, str]) -> ConfigError:
    """Add the source to the error of a value that was found wrong at its use.

    sources: as `load` returns them. The name of a part or a file follows its source.
    """
    source = sources.get(error.field)
    if source is None or error.source == source or isinstance(error, ConfigErrors):
        return error
    where = source if error.source in (ARGUMENT, "configuration", "default") else f"{source}: {error.source}"
    return ConfigError(error.field, where, error.expected)


def _make(cls: type[Any], declared: Sequence[Setting], values: Mapping[str, Any]) -> Any:
    """Make a configuration of checked values. The constructor would check and convert them again."""
    made = _bare(cls, {s.attribute: values[s.name] for s in declared if "." not in s.name})
    for field in dataclasses.fields(cls):
        group = field.metadata.get(GROUP)
        if group is not None:
            inner = {s.attribute: values[s.name] for s in declared if s.name.startswith(field.name + ".")}
            object.__setattr__(made, field.name, _bare(group, inner))
    return made


def _bare(cls: type[Any], attributes: Mapping[str, Any]) -> Any:
    made = object.__new__(cls)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


def _from_file(
    path: str, declared: Sequence[Setting], others: Mapping[str, type[Any]]
) -> tuple[dict[str, Given], list[ConfigError]]:
    """Return (the values of a TOML file, errors for keys that nothing reads)."""
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        return {}, [ConfigError(CONFIG, path, f"must be a readable TOML file ({error.strerror})")]
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        return {}, [ConfigError(CONFIG, path, f"must be valid TOML ({error})")]
    names = [setting.name for setting in declared]
    tables = {setting.table: setting.name for setting in declared if setting.table}
    groups = _groups(names)
    given: dict[str, Given] = {}
    errors: list[ConfigError] = []
    for key, value in content.items():
        if key in groups and isinstance(value, dict):
            flat = {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        elif key in groups:
            errors.append(ConfigError(key, path, f"must be a table, [{key}]"))
            continue
        elif key not in names and key not in tables and isinstance(value, dict):
            errors.append(ConfigError(key, path, _no_table(key, names, others)))
            continue
        elif key in tables and tables[key] in content:
            errors.append(ConfigError(key, path, f"must not be set beside {tables[key]}, which is the same setting"))
            continue
        else:
            flat = {tables.get(key, key): value}
        for name, found in flat.items():
            if name in names:
                given[name] = Given(found, path)
            else:
                errors.append(ConfigError(name, path, _no_field(name, names, others)))
    return given, errors


def _groups(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))


def _keys(declared: Iterable[Setting]) -> list[str]:
    """All TOML keys of some settings."""
    return [key for each in declared for key in (each.name, each.table) if key]


def _owners(others: Mapping[str, type[Any]], owns: Callable[[list[str]], bool]) -> str:
    """The commands that own such settings, as text for an error, "" for none."""
    found = [f"`{command}`" for command, cls in others.items() if owns(_keys(settings(cls)))]
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


_LISTED = "the command's --help lists them"


def _no_table(key: str, names: Sequence[str], others: Mapping[str, type[Any]]) -> str:
    """The error for a table that nothing reads."""
    owners = _owners(others, lambda found: key in _groups(found))
    if owners:
        return f"is a table of {owners}, not of this command"
    close = difflib.get_close_matches(key, _groups(names), n=1)
    if close:
        return f"is not a table here, perhaps [{close[0]}] is meant"
    return f"is not a table here, {_LISTED}"


def _no_field(name: str, names: Sequence[str], others: Mapping[str, type[Any]]) -> str:
    """The error for a key that nothing reads."""
    owners = _owners(others, lambda found: name in found)
    if owners:
        return f"is a setting of {owners}, not of this command"
    group, dot, key = name.rpartition(".")
    if dot and key in names:
        return f"is not a field of [{group}], since {key} is above all tables"
    tables = [each.partition(".")[0] for each in names if each.partition(".")[2] == name]
    if tables:
        return f"is a field of the table [{tables[0]}]"
    # Of the same table first: `uffer_size` in [memory_comm] is nearer to its buffer_size than to other fields.
    beside = [each for each in names if each.rpartition(".")[0] == group]
    close = difflib.get_close_matches(name, beside, n=1) or difflib.get_close_matches(name, names, n=1)
    return f"is not a field here, {f'perhaps {close[0]} is meant' if close else _LISTED}"
