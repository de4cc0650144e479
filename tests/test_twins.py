"""Which twin is imported of the modules that are compiled, those of pyproject.toml's list."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fastpipe
from fastpipe.extensions import are_enabled

from .staleness import SUFFIX, left_over, listed_extensions, path_of, sources_of, stale

SOURCE = Path(fastpipe.__file__).parent.parent
PROJECT = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text(encoding="utf-8"))
EXTENSIONS = listed_extensions()
SINGLE_SOURCE = [name for name in EXTENSIONS if path_of(name, ".py", SOURCE).exists()]
"""Modules that are compiled from their `.py`. The others are written twice, as NAME_c and NAME_py."""


def file_of(module: str, variable: str | None) -> str:
    """Where a fresh interpreter imports a module from."""
    environment = {name: value for name, value in os.environ.items() if name != "FASTPIPE_NO_EXTENSIONS"}
    if variable is not None:
        environment["FASTPIPE_NO_EXTENSIONS"] = variable
    code = f"import {module}; print({module}.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def test_they_are_found() -> None:
    assert {"agent.proxy.relay", "agent.connections.connection", "fastpipe._streams"} <= set(SINGLE_SOURCE)
    assert "fastpipe._pipe_c" in set(EXTENSIONS) - set(SINGLE_SOURCE)


@pytest.mark.parametrize("module", EXTENSIONS)
def test_the_twin_that_is_wanted_runs_here(module: str) -> None:
    """Fails, and does not skip, if an extension is missing and FASTPIPE_NO_EXTENSIONS is not set."""
    if module in SINGLE_SOURCE or are_enabled():
        file = importlib.import_module(module).__file__
        assert file is not None
        assert file.endswith(SUFFIX if are_enabled() else ".py")
    else:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(module)


@pytest.mark.skipif(not are_enabled(), reason="FASTPIPE_NO_EXTENSIONS: nothing is built")
@pytest.mark.parametrize("module", ["agent.proxy.relay", "agent.connections.connection", "fastpipe._streams"])
@pytest.mark.parametrize(("variable", "suffix"), [(None, SUFFIX), ("", SUFFIX), ("0", SUFFIX), ("1", ".py")])
def test_the_variable_chooses_for_a_whole_room(module: str, variable: str | None, suffix: str) -> None:
    assert file_of(module, variable).endswith(suffix)


def test_an_extension_that_is_there_and_broken_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("from fastpipe.extensions import select_twins\nselect_twins(__path__)\n")
    (room / "module.py").write_text("")
    (room / f"module{SUFFIX}").write_text("this is no extension")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCE}")
    assert "ImportError" in file_of("room.module", None)
    assert file_of("room.module", "1") == str(room / "module.py")


@pytest.mark.parametrize("variable", [None, "1"])
def test_an_archive_is_imported_from_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    archive = tmp_path / "room.zip"
    with zipfile.ZipFile(archive, "w") as room:
        room.writestr("room/__init__.py", "from fastpipe.extensions import select_twins\nselect_twins(__path__)\n")
        room.writestr("room/module.py", "")
    monkeypatch.setenv("PYTHONPATH", f"{archive}{os.pathsep}{SOURCE}")
    assert file_of("room.module", variable) == str(archive / "room" / "module.py")


def declared(types: Path) -> dict[str, set[str]]:
    """The attributes of each class in a .pxd."""
    found: dict[str, set[str]] = {}
    imported: dict[str, Path] = {}
    names: set[str] = set()
    for line in types.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"cdef class (\w+)(?:\((\w+)\))?", line):
            name, base = match.groups()
            names = found[name] = set()
            if base is not None:  # of the same file, or of another
                names |= found[base] if base in found else declared(imported[base])[base]
        elif match := re.match(r"from ([\w.]+) cimport (\w+)$", line):
            imported[match[2]] = path_of(match[1], ".pxd", SOURCE)
        elif match := re.match(r"    cdef (?:public )?(.*)", line):
            names |= set(re.findall(r"\w+", match[1]))
    return found


@pytest.mark.parametrize("module", SINGLE_SOURCE)
def test_the_types_have_every_attribute_that_the_source_sets(module: str) -> None:
    """A missing one works in the plain twin. In the compiled twin, setting it raises AttributeError."""
    types = path_of(module, ".pxd", SOURCE)
    classes = declared(types)
    for node in ast.parse(path_of(module, ".py", SOURCE).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            stored = {
                each.attr
                for each in ast.walk(node)
                if isinstance(each, ast.Attribute)
                and isinstance(each.ctx, ast.Store)
                and isinstance(each.value, ast.Name)
                and each.value.id == "self"
            }
            assert stored <= classes[node.name], f"{node.name} in {types}"


def test_an_edit_of_anything_an_extension_is_built_of_is_seen(tmp_path: Path) -> None:
    files = {
        ("room.twin_c", SUFFIX): "",
        ("room.twin_c", ".pyx"): 'cdef extern from "part.h":\n',
        ("room.part", ".h"): "",
        ("room.twin_c", ".pxd"): "",
        ("room.twin_py", ".py"): "",
        ("room.one", SUFFIX): "",
        ("room.one", ".py"): "",
        ("room.one", ".pxd"): "from room.two cimport Two\n",
        ("room.two", SUFFIX): "",
        ("room.two", ".py"): "",
        ("room.two", ".pxd"): "from libc.stdint cimport uint8_t\nfrom other.three cimport Three as Third\n",
        ("other.three", SUFFIX): "",
        ("other.three", ".pyx"): 'include "part.pxi"\n',
        ("other.part", ".pxi"): "",
        ("other.three", ".pxd"): "cimport room.one\n",
        ("other.plain", ".py"): "",
    }
    for (name, suffix), text in files.items():
        path = path_of(name, suffix, tmp_path)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, (2000, 2000) if suffix == SUFFIX else (1000, 1000))
    built = [name for name, suffix in files if suffix == SUFFIX]
    assert stale(tmp_path, built) is None
    for name, suffix in files:
        path = path_of(name, suffix, tmp_path)
        if suffix != SUFFIX:
            os.utime(path, (3000, 3000))
            assert stale(tmp_path, built) == (None if name in ("other.plain", "room.twin_py") else path), path
            os.utime(path, (1000, 1000))
    types = path_of("other.three", ".pxd", tmp_path)
    os.utime(types, (3000, 3000))
    for name in ("room.two", "other.three"):  # rebuilt; what sees it by another's eyes is not
        os.utime(path_of(name, SUFFIX, tmp_path), (4000, 4000))
    assert stale(tmp_path, built) == types


def test_an_extension_that_is_listed_no_more_is_seen(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    for name in ("room.one", "room.two"):
        path_of(name, SUFFIX, tmp_path).write_text("")
    assert left_over(tmp_path, ["room.one", "room.two"]) is None
    assert left_over(tmp_path, ["room.one", "room.three"]) == path_of("room.two", SUFFIX, tmp_path)
    assert stale(tmp_path, ["room.three"]) is None  # not built: another test's


def test_what_has_types_is_listed_and_the_other_way_round() -> None:
    """So a stranger finds each compiled module by either, and a forgotten line can't leave one uncompiled."""
    typed = {path.relative_to(SOURCE).with_suffix("") for path in SOURCE.rglob("*.pxd")}
    assert {".".join(path.parts) for path in typed} == set(EXTENSIONS)


def test_each_has_a_reason() -> None:
    assert all(reason for reason in PROJECT["tool"]["fastpipe"]["extensions"].values())


def test_setup_builds_what_is_listed_of_the_source_beside_it() -> None:
    root = SOURCE.parent
    if not (root / "setup.py").exists():
        pytest.skip("installed, and no checkout")
    sources: dict[str, str] = runpy.run_path(str(root / "setup.py"), run_name="read")["sources"]()
    assert list(sources) == EXTENSIONS
    for name, path in sources.items():
        assert root / path in sources_of(name, SOURCE), name
