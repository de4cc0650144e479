"""Runs a module with other values for some constants.

    python -m bench.with_constants MODULE:NAME=VALUE… PROGRAM ARGUMENT…

The values replace those in the modules' source before it is compiled. So they also reach defaults of arguments and
other modules' copies. Extensions that read a constant on import get it too. Raises LookupError unless the module
assigns the constant exactly once, at its top level.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import re
import runpy
import sys
import types
from collections.abc import Mapping, Sequence

__all__ = ["install", "parsed"]


class Loader(importlib.machinery.SourceFileLoader):
    """Loads one module. values: expressions by constant."""

    values: Mapping[str, str] = {}

    def get_code(self, fullname: str) -> types.CodeType:
        """The edited source, compiled: no bytecode is read or written."""
        path = self.get_filename(fullname)
        text = self.get_data(path).decode()
        for name, value in self.values.items():
            text, found = re.subn(rf"^({name}(: Final)? = ).*", rf"\g<1>{value}", text, flags=re.MULTILINE)
            if found != 1:
                raise LookupError(f"{fullname} assigns {name} {found} times")
        code: types.CodeType = self.source_to_code(text, path)
        return code


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that have constants to be changed. values: by module, then by constant."""

    def __init__(self, values: Mapping[str, Mapping[str, str]]) -> None:
        self.values = values

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.values:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            if spec.origin is None or not spec.origin.endswith(".py"):
                raise LookupError(f"the constants of {name} can't be changed, because it is compiled")
            loader = Loader(name, spec.origin)
            loader.values = self.values[name]
            spec.loader = loader
        return spec


def parsed(settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """`MODULE:NAME=VALUE` each, by module, then by constant."""
    values: dict[str, dict[str, str]] = {}
    for setting in settings:
        where, _, value = setting.partition("=")
        module, _, name = where.partition(":")
        values.setdefault(module, {})[name] = value
    return values


def install(settings: Sequence[str]) -> None:
    """Have these modules loaded so. Raises ImportError where one of them has been imported already."""
    values = parsed(settings)
    for module in values:
        if module in sys.modules:
            raise ImportError(f"{module} is imported already")
    sys.meta_path.insert(0, Finder(values))


if __name__ == "__main__":
    first = next(index for index, each in enumerate(sys.argv[1:], 1) if "=" not in each)
    install(sys.argv[1:first])
    sys.argv = sys.argv[first:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
