"""Selects the imported twin of a compiled module. Only this module reads FASTPIPE_NO_EXTENSIONS.

`pyproject.toml` lists the compiled modules. An extension lies beside its source under the same name, and Python's
import takes the extension first. `select_twins` hides the extensions if FASTPIPE_NO_EXTENSIONS=1 (0 and empty mean no).
A few modules are written twice, as NAME_c and NAME_py. The module that selects one of them asks `are_enabled`.

An extension that exists but cannot be imported raises ImportError. So no process is slow without an error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader

__all__ = ["are_enabled", "select_twins"]


def are_enabled() -> bool:
    """Whether Python imports the compiled twins that were built. False if FASTPIPE_NO_EXTENSIONS=1."""
    return os.environ.get("FASTPIPE_NO_EXTENSIONS", "") in ("", "0")


def select_twins(package_path: Iterable[str]) -> None:
    """Hide the extensions of a package from Python's import if they are disabled.

    Call it first in the `__init__.py` of a package with compiled modules, before the package imports one of them.

    Args:
        package_path: the package's `__path__`.
    """
    if are_enabled():
        return
    for folder in package_path:
        if os.path.isdir(folder):  # an archive holds only sources, and has another importer
            sys.path_importer_cache[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
