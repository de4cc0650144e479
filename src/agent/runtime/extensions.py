"""Which twin of a room's compiled modules is imported: the one door for sources that are compiled as they stand.

An extension lies beside the source it was made from, under the same name (setup.py, COMPILED), and Python's own import
takes it first. So there is nothing to choose, but where FASTPIPE_NO_EXTENSIONS=1 (0 and empty mean no) asks for the
plain twin. An extension that is there and can't be imported raises: nobody is made slow in silence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader

__all__ = ["choose_twins"]


def choose_twins(package_path: Iterable[str]) -> None:
    """Call first thing in a package with compiled modules, with its `__path__`: its sources are imported, and its
    extensions are not seen, where the variable says so."""
    if os.environ.get("FASTPIPE_NO_EXTENSIONS", "") not in ("", "0"):
        for folder in package_path:
            if os.path.isdir(folder):  # an archive has sources alone, and an importer of its own
                sys.path_importer_cache[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
