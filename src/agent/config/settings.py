"""How a configuration is declared, and read from flags, environment, a TOML file and defaults: the schema's machinery.

A configuration is a frozen dataclass whose fields are made by the functions of `fields.py` (`boolean`, `integer`, …).
That one declaration gives the field's check, its flag, its variable, its TOML key and its help. A flag wins over the
variable, that over the file, that over the default. Every wrong value is reported at once, each as a ConfigError with
field, source and what would be right.

The class says how its variables begin: `HUB_` for the hub's, `AGENT_` for all others, so that hub and agent can share
an environment. The hub's began with `AGENT_` once. That old name is still read where the new one isn't there at all.

Values come in two shapes: text (from flags and variables) goes through `parse` first; what Python or TOML gives is
typed already and goes to `convert` alone, so `use_memory_comm="yes"` is wrong in TOML and right in the environment.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

from ..errors import ConfigError

__all__ = [
    "GROUP",
    "OLD_PREFIX",
    "SETTING",
    "Checked",
    "ConfigErrors",
    "Given",
    "Rule",
    "Setting",
    "load",
    "located",
    "settings",
]

SETTING = "setting"  # keys of a dataclass field's metadata
GROUP = "group"
ARGUMENT = "argument"
CONFIG = "config"  # the file itself

OLD_PREFIX = "AGENT_"
"""How every command's variables began at first."""


class ConfigErrors(ConfigError):
    """Everything that is wrong with a configuration. errors: one ConfigError each, in the fields' order, at least one.

    Where one is enough, its own `field`, `source` and `expected` are the first error's.
    """

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.field, first.source, first.expected)
        self.args = ("\n".join(map(str, errors)),)
        self.errors = tuple(errors)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a configuration, as every source of values sees it.

    name: as flags, variables and TOML spell it, with a dot before a group's fields. attribute: the dataclass field's
    own name. convert: the value, checked and in its final form; raises ValueError with what would be right. parse:
    text to what convert takes. metavar: what the help shows for the value, with its unit; "" for a boolean. unset:
    what the help says where there is no default. secret: the value is never shown. holds: what the files that it names
    hold, "" where that is nothing that needs care: `secret` (a key, a token), `certificate` (a chain, its key
    perhaps) or `roots`. prefix: how its variable begins.
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

    @property
    def flag(self) -> str:
        return "--" + re.sub("[._]", "-", self.name)

    @property
    def variable(self) -> str:
        return self.prefix + self.name.replace(".", "_").upper()

    @property
    def old_variable(self) -> str:
        """The variable's name of before each command had its own prefix."""
        return OLD_PREFIX + self.variable.removeprefix(self.prefix)


@dataclasses.dataclass(frozen=True)
class Given:
    """A value and where it came from. text: it needs parsing."""

    value: Any
    source: str
    text: bool = False


@dataclasses.dataclass(frozen=True)
class Rule:
    """What must hold between fields. wrong: gets their values in order, True where the rule is broken.

    The error names the first field. Rules whose fields are wrong on their own are not asked.
    """

    fields: tuple[str, ...]
    wrong: Callable[..., bool]
    expected: str


class Checked:
    """Base of a configuration: its fields are checked, and brought to their final form, when it is made.

    Raises ConfigErrors, never for the first wrong value only.
    """

    rules: ClassVar[tuple[Rule, ...]] = ()
    variable_prefix: ClassVar[str] = OLD_PREFIX
    """How the names of its variables begin."""

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

    prefix: how their variables begin, where it isn't the class's own.
    """
    prefix = prefix or getattr(cls, "variable_prefix", OLD_PREFIX)
    for field in dataclasses.fields(cls):
        group = field.metadata.get(GROUP)
        if group is not None:
            for setting in settings(group, prefix):
                yield dataclasses.replace(setting, name=f"{field.name}.{setting.name}")
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
        )


def _check(
    declared: Iterable[Setting], given: Mapping[str, Given], rules: Iterable[Rule]
) -> tuple[dict[str, Any], list[ConfigError]]:
    """(values of the fields that are right, by name; errors of the others, and of broken rules)."""
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
    """Read configurations from every source: one object per class, and each set field's source by its name.

    classes: their fields' names must differ; TOML keys of none of them are errors. The first one's prefix is that of
    all. flags: by setting name, None for those not given; text, a tuple of texts, or a bool. environ: variables; an
    empty one counts as not set. config_file: a TOML file's path, "" for none. others: every command's configuration,
    so that an error can say whose a key is. Raises ConfigErrors.
    """
    prefix = classes[0].variable_prefix
    declared = {cls: list(settings(cls, prefix)) for cls in classes}
    every = [setting for group in declared.values() for setting in group]
    given, errors = _from_file(config_file, every, others) if config_file else ({}, [])
    unread = any(error.field == CONFIG for error in errors)  # what is missing may be in it
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


def located(error: ConfigError, sources: Mapping[str, str]) -> ConfigError:
    """The error of a value that turned out wrong only when it was used, with the source that gave it.

    sources: as `load` gives them. A part by name and a file stay named behind their source.
    """
    source = sources.get(error.field)
    if source is None or error.source == source or isinstance(error, ConfigErrors):
        return error
    where = source if error.source in (ARGUMENT, "configuration", "default") else f"{source}: {error.source}"
    return ConfigError(error.field, where, error.expected)


def _make(cls: type[Any], declared: Sequence[Setting], values: Mapping[str, Any]) -> Any:
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        group = field.metadata.get(GROUP)
        if group is not None:
            inner = {s.attribute: values[s.name] for s in declared if s.name.startswith(field.name + ".")}
            arguments[field.name] = group(**inner)
    arguments |= {s.attribute: values[s.name] for s in declared if "." not in s.name}
    return cls(**arguments)


def _from_file(
    path: str, declared: Sequence[Setting], others: Mapping[str, type[Any]]
) -> tuple[dict[str, Given], list[ConfigError]]:
    """The values of a TOML file, and errors for keys that nothing reads."""
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        return {}, [ConfigError(CONFIG, path, f"must be a readable TOML file ({error.strerror})")]
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError
        return {}, [ConfigError(CONFIG, path, f"must be valid TOML ({error})")]
    names = [setting.name for setting in declared]
    groups = _groups(names)
    given: dict[str, Given] = {}
    errors: list[ConfigError] = []
    for key, value in content.items():
        if key in groups and isinstance(value, dict):
            flat = {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        elif key in groups:
            errors.append(ConfigError(key, path, f"must be a table, [{key}]"))
            continue
        elif key not in names and isinstance(value, dict):
            errors.append(ConfigError(key, path, _no_table(key, names, others)))
            continue
        else:
            flat = {key: value}
        for name, found in flat.items():
            if name in names:
                given[name] = Given(found, path)
            else:
                errors.append(ConfigError(name, path, _no_field(name, names, others)))
    return given, errors


def _groups(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))


def _owners(others: Mapping[str, type[Any]], owns: Callable[[list[str]], bool]) -> str:
    """The commands whose settings' names are such, as an error names them; "" for none."""
    found = [f"`{command}`" for command, cls in others.items() if owns([each.name for each in settings(cls)])]
    return " and ".join(filter(None, (", ".join(found[:-1]), *found[-1:])))


_LISTED = "the command's --help lists them"


def _no_table(key: str, names: Sequence[str], others: Mapping[str, type[Any]]) -> str:
    """What is wrong with a table that nothing reads."""
    owners = _owners(others, lambda found: key in _groups(found))
    if owners:
        return f"is a table of {owners}, not of this command"
    close = difflib.get_close_matches(key, _groups(names), n=1)
    if close:
        return f"is no table here; perhaps [{close[0]}] is meant"
    return f"is no table here; {_LISTED}"


def _no_field(name: str, names: Sequence[str], others: Mapping[str, type[Any]]) -> str:
    """What is wrong with a key that nothing reads."""
    owners = _owners(others, lambda found: name in found)
    if owners:
        return f"is a setting of {owners}, not of this command"
    group, dot, key = name.rpartition(".")
    if dot and key in names:
        return f"is no field of [{group}]: {key} stands above all tables"
    tables = [each.partition(".")[0] for each in names if each.partition(".")[2] == name]
    if tables:
        return f"is a field of the table [{tables[0]}]"
    # Of the same table first: `uffer_size` in [memory_comm] is nearer to its buffer_size than to what is elsewhere.
    beside = [each for each in names if each.rpartition(".")[0] == group]
    close = difflib.get_close_matches(name, beside, n=1) or difflib.get_close_matches(name, names, n=1)
    return f"is no field here; {f'perhaps {close[0]} is meant' if close else _LISTED}"
