"""Whether what was built is older than what it was built of: then the tests would test yesterday's code."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

SUFFIX: str = sysconfig.get_config_var("EXT_SUFFIX")
_INCLUDE = re.compile(r'^include "([^"]+)"$', re.MULTILINE)
_CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport\b|cimport\s+([\w.]+))", re.MULTILINE)


def sources_of(built: Path, source: Path) -> set[Path]:
    """What an extension is built of: its own source, plain or Cython's with its parts, and each .pxd it sees.

    Other packages' .pxd, too. source: the folder that packages' names begin at.
    """
    stem = built.with_name(built.name.removesuffix(SUFFIX))
    plain = stem.name.removesuffix("_c") + "_py.py"  # a twin that is compiled from the plain one's own source
    own = next((path for path in (stem.with_suffix(".pyx"), stem.with_suffix(".py")) if path.exists()), None)
    found: set[Path] = set()
    waiting = [own or stem.with_name(plain), stem.with_suffix(".pxd")]
    while waiting:
        path = waiting.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        text = path.read_text(encoding="utf-8")
        waiting += [path.with_name(name) for name in _INCLUDE.findall(text)]
        for names in _CIMPORT.findall(text):
            waiting.append(source.joinpath(*"".join(names).split(".")).with_suffix(".pxd"))
    return found


def stale(source: Path) -> Path | None:
    """A file below `source` that is newer than an extension built of it; None where there is none."""
    for built in source.rglob(f"*{SUFFIX}"):
        for path in sorted(sources_of(built, source)):
            if path.stat().st_mtime > built.stat().st_mtime:
                return path
    return None
