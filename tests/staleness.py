"""Find extensions that are older than their sources, because the tests would test yesterday's code."""

from __future__ import annotations

import re
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

SUFFIX: str = sysconfig.get_config_var("EXT_SUFFIX")
_PART = re.compile(r'^(?:include|cdef extern from) "([^"]+)"', re.MULTILINE)
_CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport\b|cimport\s+([\w.]+))", re.MULTILINE)


def listed_extensions() -> list[str]:
    """The modules that are compiled, by pyproject.toml's list."""
    text = Path(__file__).parent.parent.joinpath("pyproject.toml").read_text(encoding="utf-8")
    return list(tomllib.loads(text)["tool"]["fastpipe"]["extensions"])


def path_of(name: str, suffix: str, source: Path) -> Path:
    """A module's file with this suffix. source: the folder that packages' names begin at."""
    path = source.joinpath(*name.split("."))
    return path.with_name(path.name + suffix)


def sources_of(name: str, source: Path) -> set[Path]:
    """The files that an extension is built of: its .pyx or .py, with its parts, and each .pxd it sees.

    They include other packages' .pxd. source: the folder that packages' names begin at.
    """
    own = path_of(name, ".pyx", source)
    found: set[Path] = set()
    waiting = [own if own.exists() else path_of(name, ".py", source), path_of(name, ".pxd", source)]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        text = path.read_text(encoding="utf-8")
        waiting += [path.with_name(name) for name in _PART.findall(text)]
        for names in _CIMPORT.findall(text):
            waiting.append(path_of("".join(names), ".pxd", source))
    return found


def stale(source: Path, names: Iterable[str]) -> Path | None:
    """A file below `source` that is newer than an extension built of it. None if there is none."""
    for name in names:
        built = path_of(name, SUFFIX, source)
        for path in sorted(sources_of(name, source)) if built.exists() else ():
            if path.stat().st_mtime > built.stat().st_mtime:
                return path
    return None


def left_over(source: Path, names: Iterable[str]) -> Path | None:
    """An extension below `source` that is no longer listed, and would be imported in place of its source."""
    listed = {path_of(name, SUFFIX, source) for name in names}
    return min(set(source.rglob(f"*{SUFFIX}")) - listed, default=None)
