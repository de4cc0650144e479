"""Users' own parts by name: `module:name` becomes the Router, RequestProcessor or CertificateProvider it names."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ..errors import ConfigError
from ..syntax import parse_reference

__all__ = ["load_part", "load_reference"]


def load_reference(field: str, text: str) -> Any:
    """The object that `module:name` names. Raises ConfigError where the module can't be imported or has no such name.

    field: the configuration field's name. Importing runs the module's code: what that raises is a ConfigError too.
    """
    try:
        module, name = parse_reference(text)
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(field, text, f"must be importable as module:name ({error})") from error
    return found


def load_part(field: str, given: Any, *members: str) -> Any:
    """Load a user's own part, given as an object or named as `module:name`. None stays None.

    A class, or an object without all `members` (methods or properties), is called without arguments to make the part.
    Raises ConfigError if that fails, or if the result lacks members.
    """
    if given is None:
        return None
    source = given if isinstance(given, str) else "argument"
    part = load_reference(field, given) if isinstance(given, str) else given
    if callable(part) and (inspect.isclass(part) or not all(hasattr(part, name) for name in members)):
        try:
            part = part()
        except Exception as error:
            raise ConfigError(field, source, f"must be callable without arguments ({error!r})") from error
    missing = [name for name in members if not hasattr(part, name)]
    if missing:
        raise ConfigError(field, source, f"must have {' and '.join(members)}, and has no {missing[0]}")
    return part
