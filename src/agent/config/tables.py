"""Checks the keys and values of one entry in a TOML array of tables, such as `[[routes]]`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["check_table"]

_KINDS: Mapping[type, str] = MappingProxyType({str: "text", bool: "true or false"})


def check_table(
    table: Mapping[Any, Any], keys: Mapping[str, type], *, required: Collection[str], hidden: Collection[str] = ()
) -> None:
    """Check a table.

    Args:
        keys: the allowed keys, each with the type of its value, str or bool.
        required: the keys that must be there.
        hidden: keys whose values no error shows.

    Raises:
        ValueError: with the texts of all wrong keys.
    """
    wrong: list[str] = []
    for key, value in table.items():
        if key not in keys:
            close = difflib.get_close_matches(str(key), keys, n=1)
            meant = f"perhaps {close[0]} is meant" if close else f"only {', '.join(keys)}"
            wrong.append(f"must have no key {key!r}, {meant}")
        elif not isinstance(value, keys[key]) or (isinstance(value, str) and "\0" in value):
            shown = "" if key in hidden else f", not {value!r}"
            wrong.append(f"must have {_KINDS[keys[key]]} for {key}{shown}")
    wrong += [f"must have the key {key}" for key in required if key not in table]
    if wrong:
        raise ValueError(", and ".join(wrong))
