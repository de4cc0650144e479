"""Which twin is imported of the modules that are compiled as they stand: those with a .pxd beside their .py."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import agent
from staleness import sources_of, stale

SOURCE = Path(agent.__file__).parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
WITHOUT = os.environ.get("FASTPIPE_NO_EXTENSIONS", "") not in ("", "0")
COMPILED = [
    ".".join(("agent", *path.relative_to(SOURCE).with_suffix("").parts))
    for path in sorted(SOURCE.rglob("*.pxd"))
    if path.with_suffix(".py").exists()
]


def file_of(module: str, variable: str | None) -> str:
    """Where a fresh interpreter imports a module from."""
    environment = {name: value for name, value in os.environ.items() if name != "FASTPIPE_NO_EXTENSIONS"}
    if variable is not None:
        environment["FASTPIPE_NO_EXTENSIONS"] = variable
    code = f"import {module}; print({module}.__file__)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def test_they_are_found() -> None:
    assert {"agent.proxy.relay", "agent.connections.connection", "agent.tunnel.flow"} <= set(COMPILED)


@pytest.mark.parametrize("module", COMPILED)
def test_the_twin_that_is_wanted_runs_here(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    assert file.endswith(".py" if WITHOUT else SUFFIX)


@pytest.mark.skipif(WITHOUT, reason="FASTPIPE_NO_EXTENSIONS: nothing is built")
@pytest.mark.parametrize("module", ["agent.proxy.relay", "agent.connections.connection", "agent.tunnel.flow"])
@pytest.mark.parametrize(("variable", "suffix"), [(None, SUFFIX), ("", SUFFIX), ("0", SUFFIX), ("1", ".py")])
def test_the_variable_chooses_for_a_whole_room(module: str, variable: str | None, suffix: str) -> None:
    assert file_of(module, variable).endswith(suffix)


def test_an_extension_that_is_there_and_broken_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text("from agent.runtime.extensions import choose_twins\nchoose_twins(__path__)\n")
    (room / "module.py").write_text("")
    (room / f"module{SUFFIX}").write_text("this is no extension")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{SOURCE.parent}")
    assert "ImportError" in file_of("room.module", None)
    assert file_of("room.module", "1") == str(room / "module.py")


@pytest.mark.parametrize("variable", [None, "1"])
def test_an_archive_is_imported_from_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    archive = tmp_path / "room.zip"
    with zipfile.ZipFile(archive, "w") as room:
        room.writestr("room/__init__.py", "from agent.runtime.extensions import choose_twins\nchoose_twins(__path__)\n")
        room.writestr("room/module.py", "")
    monkeypatch.setenv("PYTHONPATH", f"{archive}{os.pathsep}{SOURCE.parent}")
    assert file_of("room.module", variable) == str(archive / "room" / "module.py")


def declared(types: Path) -> dict[str, set[str]]:
    """The attributes of each class in a .pxd."""
    found: dict[str, set[str]] = {}
    names: set[str] = set()
    for line in types.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"cdef class (\w+)", line):
            names = found[match[1]] = set()
        elif match := re.match(r"    cdef (?:public )?(.*)", line):
            names |= set(re.findall(r"\w+", match[1]))
    return found


@pytest.mark.parametrize("module", COMPILED)
def test_the_types_have_every_attribute_that_the_source_sets(module: str) -> None:
    """One that they lack is there in the plain twin and an AttributeError in the compiled one, when it is set."""
    path = SOURCE.joinpath(*module.split(".")[1:])
    classes = declared(path.with_suffix(".pxd"))
    for node in ast.parse(path.with_suffix(".py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            stored = {
                each.attr
                for each in ast.walk(node)
                if isinstance(each, ast.Attribute)
                and isinstance(each.ctx, ast.Store)
                and isinstance(each.value, ast.Name)
                and each.value.id == "self"
            }
            assert stored <= classes[node.name], f"{node.name} in {path.with_suffix('.pxd')}"


def module_file(source: Path, name: str, suffix: str) -> Path:
    path = source.joinpath(*name.split("."))
    return path.with_name(path.name + suffix)


def test_an_edit_of_anything_an_extension_is_built_of_is_seen(tmp_path: Path) -> None:
    files = {
        ("room.twin_c", SUFFIX): "",
        ("room.twin_py", ".py"): "",
        ("room.twin_c", ".pxd"): "",
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
        path = module_file(tmp_path, name, suffix)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        os.utime(path, (2000, 2000) if suffix == SUFFIX else (1000, 1000))
    assert stale(tmp_path) is None
    for name, suffix in files:
        path = module_file(tmp_path, name, suffix)
        if suffix != SUFFIX:
            os.utime(path, (3000, 3000))
            assert stale(tmp_path) == (None if name == "other.plain" else path), path
            os.utime(path, (1000, 1000))
    types = module_file(tmp_path, "other.three", ".pxd")
    os.utime(types, (3000, 3000))
    for name in ("room.two", "other.three"):  # rebuilt; what sees it by another's eyes is not
        os.utime(module_file(tmp_path, name, SUFFIX), (4000, 4000))
    assert stale(tmp_path) == types


def test_every_extensions_own_source_is_known() -> None:
    setup = SOURCE.parent.parent / "setup.py"
    if not setup.exists():
        pytest.skip("installed, and no checkout")
    extensions = extensions_of(setup)
    assert len(extensions) > 10
    for name, path in extensions.items():
        built = module_file(SOURCE.parent, name, SUFFIX)
        assert setup.parent / path in sources_of(built, SOURCE.parent), name


def extensions_of(setup: Path) -> dict[str, str]:
    """setup.py's EXTENSIONS, without running more of it than their making."""
    names = {"EXTENSIONS", "COMPILED"}
    module = ast.parse(setup.read_text(encoding="utf-8"))
    kept = [
        node
        for node in module.body
        if (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in names)
        or (isinstance(node, ast.AugAssign) and getattr(node.target, "id", "") in names)
    ]
    scope: dict[str, dict[str, str]] = {}
    exec(compile(ast.Module(kept, []), str(setup), "exec"), scope)
    return scope["EXTENSIONS"]
