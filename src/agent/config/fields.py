"""The kinds of fields in a configuration. Each kind checks, parses and shows its value.

Every function returns a dataclass field for a `settings.Checked` class. Its type is Any, as for dataclasses.field.
help: one line for the command line's help.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from ..syntax import (
    Route,
    check_domain,
    check_hub_url,
    check_label,
    check_route,
    parse_address,
    parse_connect_entry,
    parse_network,
    parse_reference,
    parse_route,
)
from .listeners import Listener, check_listener, parse_listener
from .loading import GROUP, ON_RELOAD, SETTING, OnReload, Setting
from .tables import check_table

__all__ = [
    "address",
    "addresses",
    "applied",
    "boolean",
    "choice",
    "connect_entries",
    "domain",
    "file",
    "files",
    "group",
    "hub_url",
    "integer",
    "label",
    "listeners",
    "networks",
    "redials",
    "reference",
    "routes",
    "seconds",
    "text",
    "texts",
]


T = TypeVar("T")


def _field(default: Any, setting: Setting) -> Any:
    return dataclasses.field(default=default, metadata={SETTING: setting})


def group(cls: type[Any], *, on_reload: OnReload | None = None) -> Any:
    """A configuration within a configuration: a table in TOML, a prefix of flags and variables.

    on_reload: for all its fields, None for each field's own.
    """
    effect = {} if on_reload is None else {ON_RELOAD: on_reload}
    return dataclasses.field(default_factory=cls, metadata={GROUP: cls, **effect})


def applied(field: Any) -> Any:
    """Mark a field: a reload applies its changed value, for new connections and requests."""
    return _marked(field, "apply")


def redials(field: Any) -> Any:
    """Mark a field: a reload applies its changed value, and the agent reconnects to its hubs."""
    return _marked(field, "redial")


def _marked(field: Any, on_reload: OnReload) -> Any:
    return _field(field.default, dataclasses.replace(field.metadata[SETTING], on_reload=on_reload))


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"must be text, not {value!r}")
    return value


def text(help: str, *, default: Any = "", metavar: str = "TEXT", check: Callable[[str], object] | None = None) -> Any:
    """A text, "" if not set. check: raises ValueError for a wrong text."""

    def convert(value: Any) -> str:
        found = _text(value)
        if check is not None and found != default:
            check(found)
        return found

    return _field(default, Setting(help, convert, str, metavar))


def label(help: str) -> Any:
    """A required RFC 1123 label."""
    return _field(dataclasses.MISSING, Setting(help, lambda value: check_label(_text(value)), str, "NAME"))


def domain(help: str) -> Any:
    """A domain with names below it, in lower case without a trailing dot. "" if not set."""

    def convert(value: Any) -> str:
        return check_domain(_text(value)) if value != "" else ""

    return _field("", Setting(help, convert, str, "DOMAIN"))


def choice(help: str, options: Sequence[str], *, default: str) -> Any:
    """One of some words, in any case."""

    def convert(value: Any) -> str:
        if _text(value).lower() not in options:
            raise ValueError(f"must be one of {', '.join(options)}, not {value!r}")
        return str(value).lower()

    return _field(default, Setting(help, convert, str, "|".join(options)))


_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def boolean(help: str, *, default: bool = False) -> Any:
    """True or False."""

    def parse(value: str) -> bool:
        if value.strip().lower() not in _BOOLEANS:
            raise ValueError(f"must be true or false (or 1, 0, yes, no, on, off), not {value!r}")
        return _BOOLEANS[value.strip().lower()]

    def convert(value: Any) -> bool:
        if value is not True and value is not False:
            raise ValueError(f"must be true or false, not {value!r}")
        return bool(value)

    return _field(default, Setting(help, convert, parse, ""))


def integer(help: str, *, default: int | None, low: int, high: int, unit: str, unset: str = "") -> Any:
    """A whole number from low to high. default: None means not set. unset: the help text for that."""
    rule = f"must be a whole number from {low} to {high} ({unit})"

    def parse(value: str) -> int:
        if not re.fullmatch(r"\s*[-+]?[0-9]{1,18}\s*", value):
            raise ValueError(f"{rule}, not {value!r}")
        return int(value)

    def convert(value: Any) -> int | None:
        if value is None and default is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{rule}, not {value!r}")
        return value

    return _field(default, Setting(help, convert, parse, unit.upper(), unset=unset))


def seconds(help: str, *, default: float | None, low: float, high: float, unset: str = "") -> Any:
    """A time in seconds. default: None means not set. unset: the help text for that."""
    rule = f"must be a number from {low:g} to {high:g} (seconds)"

    def parse(value: str) -> float:
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"{rule}, not {value!r}") from None

    def convert(value: Any) -> float | None:
        if value is None and default is None:
            return None
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not right or not low <= value <= high:
            raise ValueError(f"{rule}, not {value!r}")
        return float(value)

    return _field(None if default is None else float(default), Setting(help, convert, parse, "SECONDS", unset=unset))


def _readable(path: str) -> str:
    if path and (os.path.isdir(path) or not os.access(path, os.R_OK)):
        raise ValueError(f"must be the path of a readable file, not {path!r}")
    return path


def file(help: str, *, holds: str = "") -> Any:
    """The path of a readable file, "" if not set. holds: as in Setting."""
    return _field("", Setting(help, lambda value: _readable(_text(value)), str, "FILE", holds=holds))


def _items(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Iterable):
        return list(value)
    raise ValueError(f"must be a text or a list of texts, not {value!r}")


def _each(items: Iterable[Any], convert: Callable[[Any], T]) -> tuple[T, ...]:
    """Convert every item. Raises ValueError with the text of each wrong one."""
    found: list[T] = []
    wrong: list[str] = []
    for item in items:
        try:
            found.append(convert(item))
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError(", and ".join(wrong))
    return tuple(found)


def _split(value: str) -> list[str]:
    """Split the list in a variable at commas and white space."""
    return [item for item in re.split(r"[,\s]+", value) if item]


def files(help: str, *, holds: str = "") -> Any:
    """The paths of readable files. holds: as in Setting."""

    def check(item: Any) -> str:
        return _readable(_text(os.fspath(item) if isinstance(item, os.PathLike) else item))

    def convert(value: Any) -> tuple[str, ...]:
        return _each(_items(value), check)

    return _field((), Setting(help, convert, _split, "FILE", many=True, holds=holds))


def texts(help: str, *, metavar: str) -> Any:
    """Several texts without white space and commas, which separate them in a variable."""

    def check(item: Any) -> str:
        if not _text(item) or _split(item) != [item]:
            raise ValueError(f"must be texts without white space and commas, not {item!r}")
        return str(item)

    def convert(value: Any) -> tuple[str, ...]:
        return _each(_items(value), check)

    return _field((), Setting(help, convert, _split, metavar, many=True))


def address(help: str, *, default: str, listen: bool = True) -> Any:
    """HOST:PORT, or "" if that is the default."""

    def convert(value: Any) -> str:
        if _text(value) != "" or default != "":
            parse_address(value, listen=listen)
        return str(value)

    return _field(default, Setting(help, convert, str, "HOST:PORT"))


def addresses(help: str) -> Any:
    """Addresses to dial, at least one. The field is required."""

    def convert(value: Any) -> tuple[str, ...]:
        found = _each(_items(value), lambda item: str(parse_address(_text(item))))
        if not found:
            raise ValueError("must be at least one HOST:PORT")
        return found

    return _field(dataclasses.MISSING, Setting(help, convert, _split, "HOST:PORT", many=True))


def hub_url(help: str) -> Any:
    """The URL of a hub's HTTP port, http or https, without a path. The field is required."""
    return _field(dataclasses.MISSING, Setting(help, lambda value: check_hub_url(_text(value)), str, "URL"))


def networks(help: str) -> Any:
    """IP addresses and networks, as their text in canonical form."""

    def check(item: Any) -> str:
        found = parse_network(_text(item))
        return str(found.network_address if found.num_addresses == 1 else found)

    def convert(value: Any) -> tuple[str, ...]:
        return _each(_items(value), check)

    return _field((), Setting(help, convert, _split, "CIDR", many=True))


def connect_entries(help: str) -> Any:
    """Names and networks with their ports, as their text in canonical form."""

    def convert(value: Any) -> tuple[str, ...]:
        return _each(_items(value), lambda item: str(parse_connect_entry(_text(item))))

    return _field((), Setting(help, convert, _split, "HOST:PORTS", many=True))


def _split_routes(value: str) -> list[str]:
    """Split the routes in a variable at white space and at commas before another route, since URLs may have commas."""
    return [item for item in re.split(r"[,\s]*\s[,\s]*|,+(?=/[^,\s=]*=(?:https?|h2c?)://)", value) if item]


_ROUTE_KEYS: Mapping[str, type] = MappingProxyType(
    {"prefix": str, "url": str, "host": str, "strip_prefix": bool, "rewrite": bool, "http2": bool}
)
_NO_ROUTE = "must be PREFIX=URL, a table with prefix and url, or a table of prefixes and URLs"


def _route_of_table(table: Mapping[Any, Any]) -> Route:
    """One entry of `[[routes]]`. Raises ValueError with the texts of all wrong keys."""
    check_table(table, _ROUTE_KEYS, required=("prefix", "url"), hidden=("url",))  # a URL may hold a password
    return check_route(**table)


def _entry(item: Any) -> str:
    """The start of an error's text, which names the entry of `[[routes]]`. "" for other forms, whose text has names."""
    return f"the entry with the prefix {item.get('prefix')!r}: " if isinstance(item, Mapping) else ""


def _route(item: Any) -> Route:
    """One route in any of its forms. Raises ValueError, which names the entry of a table by its prefix."""
    if isinstance(item, Route):
        return check_route(*item)
    if isinstance(item, str):
        return parse_route(item)
    if isinstance(item, Mapping):
        try:
            return _route_of_table(item)
        except ValueError as error:
            raise ValueError(f"{_entry(item)}{error}") from None
    if isinstance(item, tuple | list) and len(item) == 2:
        return check_route(_text(item[0]), _text(item[1]))
    raise ValueError(_NO_ROUTE)


def routes(help: str, *, name: str) -> Any:
    """Routes, each as "PREFIX=URL", (prefix, URL) or a table of a route's keys, or one table of prefixes and URLs.

    `_split_routes` splits a variable.
    """

    def convert(value: Any) -> tuple[Route, ...]:
        prefixes: set[str] = set()

        def check(item: Any) -> Route:
            route = _route(item)
            if route.prefix in prefixes:
                raise ValueError(f"{_entry(item)}must have the prefix {route.prefix} once only")
            prefixes.add(route.prefix)
            return route

        if isinstance(value, Mapping) and "prefix" in value:
            raise ValueError("must be an array of tables: [[routes]], not [routes]")
        return _each(value.items() if isinstance(value, Mapping) else _items(value), check)

    return _field((), Setting(help, convert, _split_routes, "PREFIX=URL", many=True, name=name, table="routes"))


def _listener(item: Any) -> Listener:
    """One listener in any of its forms. Raises ValueError, which names the entry of a table by its address."""
    if isinstance(item, Listener):
        return check_listener(item._asdict())
    if isinstance(item, str):
        return parse_listener(item)
    if isinstance(item, Mapping):
        try:
            return check_listener(item)
        except ValueError as error:
            raise ValueError(f"the entry with the address {item.get('address')!r}: {error}") from None
    raise ValueError("must be ADDRESS=CLUSTER, ADDRESS=CLUSTER/HOST:PORT, or a table with address and cluster")


def listeners(help: str, *, name: str) -> Any:
    """Listeners, each as "ADDRESS=CLUSTER", "ADDRESS=CLUSTER/HOST:PORT" or a table of a listener's keys."""

    def convert(value: Any) -> tuple[Listener, ...]:
        if isinstance(value, Mapping) and "address" in value:
            raise ValueError("must be an array of tables: [[listeners]], not [listeners]")
        found = _each(_items(value), _listener)
        fixed = [each.address for each in found if not each.is_free_port]
        twice = sorted({each for each in fixed if fixed.count(each) > 1})
        if twice:
            raise ValueError(f"must have the address {twice[0]} once only")
        return found

    def list_files(value: tuple[Listener, ...]) -> Iterator[tuple[str, str]]:
        for each in value:
            yield "certificate", each.cert_file
            yield "secret", each.key_file
            yield "roots", each.client_ca_file

    metavar = "ADDRESS=CLUSTER[/HOST:PORT]"
    setting = Setting(help, convert, _split, metavar, many=True, name=name, table="listeners", list_files=list_files)
    return _field((), setting)


def reference(
    help: str, *, what: str = "an ASGI application", methods: Sequence[str] = (), words: Sequence[str] = ()
) -> Any:
    """`module:name`, or in Python the object itself. None if not set.

    methods: the required members of the object. Without them it must be callable.
    what: the description of the object in the error.
    words: names of built-in objects, given without a module.
    """

    def convert(value: Any) -> Any:
        if isinstance(value, str):
            if value not in words:
                parse_reference(value)
        elif value is not None and not (callable(value) or (methods and all(hasattr(value, name) for name in methods))):
            raise ValueError(f"must be module:name, or in Python {what}")
        return value

    return _field(None, Setting(help, convert, str, "|".join((*words, "MODULE:NAME"))))
