"""Imports what a configuration names as `module:name`."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import ConfigError
from .syntax import parse_reference

__all__ = ["load_object"]


def load_object(reference: str, *, field: str) -> Any:
    """The object that `module:name` names; either part may be dotted.

    field: the configuration field's name, for the error. Raises ConfigError for a malformed reference, a module that
    can't be imported (whatever its import raises), or a name it doesn't have.
    """
    try:
        module_name, name = parse_reference(reference)
    except ValueError as error:
        raise ConfigError(field, "argument", str(error)) from None
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # the module's own code runs here
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(field, reference, f"must name a module that can be imported ({reason})") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(field, reference, f"must name something that {module_name} has, not {name!r}") from None
    return found
