"""The sdist and wheels of a copy of this checkout, and the workflows that make them.

Built with the setuptools and the Cython of this environment, at -O0, because the tests look at contents only.
`make wheels` takes minutes: each CPython, and the suite on each wheel.
"""

from __future__ import annotations

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parent.parent
if not (CHECKOUT / "setup.py").exists() or not (CHECKOUT / "src").exists():
    pytest.skip("the source that the tests build is missing", allow_module_level=True)

pytestmark = pytest.mark.timeout(300)  # a compiler on a busy machine

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PROJECT["project"]["version"]
EXTENSIONS = {name.replace(".", "/") for name in PROJECT["tool"]["fastpipe"]["extensions"]}
IGNORED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "*.pyd", "__pycache__", "results")
COPIED = ["src", "tests", "bench", "docs", "setup.py", "pyproject.toml", "MANIFEST.in", "Makefile"]
COPIED += ["README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]


Compiled = tuple[Path, subprocess.CompletedProcess[str]]


def build(tree: Path, what: str, out: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py's build of `what` (sdist, wheel) in a tree, as pip would, without a build environment."""
    script = f"from setuptools import build_meta; build_meta.build_{what}({str(out)!r})"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FASTPIPE_", "CC", "CFLAGS"))}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env=clean | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def unpacked(sdist: Path, into: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(into, filter="data")
    return into / sdist.name.removesuffix(".tar.gz")


def names_in(sdist: Path) -> list[str]:
    with tarfile.open(sdist) as archive:
        return archive.getnames()


def only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, tree / name, ignore=IGNORED)
        else:
            shutil.copyfile(CHECKOUT / name, tree / name)
    (tree / "src" / "fastpipe" / "_pipe_c.c").write_text("#error left behind by a build in this folder\n")
    (tree / "tests" / "__pycache__").mkdir()
    (tree / "tests" / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"")
    out = tmp_path_factory.mktemp("sdist")
    done = build(tree, "sdist", out, CC="/bin/false")  # needs no compiler
    assert done.returncode == 0, done.stderr
    assert "no C compiler" not in done.stderr
    (made,) = out.glob("*.tar.gz")
    return made


@pytest.fixture(scope="session")
def compiled(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The wheel with extensions, and an earlier build whose compiler failed on our code only."""
    if shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None:
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("compiled")
    tree = unpacked(sdist, folder)
    compiler = folder / "failing-cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *probe.c*) exec cc "$@";; esac\necho our code is wrong >&2\nexit 1\n')
    compiler.chmod(0o755)
    failed = build(tree, "wheel", folder / "failed", CC=str(compiler))
    done = build(tree, "wheel", folder / "out", CFLAGS="-O0 -g0")
    assert done.returncode == 0, done.stderr
    return only_wheel(folder / "out"), failed


@pytest.fixture(scope="session")
def pure(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pure")
    done = build(unpacked(sdist, folder), "wheel", folder / "out", FASTPIPE_NO_EXTENSIONS="1")
    assert done.returncode == 0, done.stderr
    return only_wheel(folder / "out")


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def expected_sources(*suffixes: str) -> set[str]:
    """Of the packages, every file with one of these suffixes, by its path in a wheel."""
    source = CHECKOUT / "src"
    found = [path for suffix in suffixes for path in source.rglob(suffix)]
    return {path.relative_to(source).as_posix() for path in found}


# The sdist --------------------------------------------------------------------------------------------------------


def test_the_sdist_has_what_builds_tests_and_measures(sdist: Path) -> None:
    root = f"fastpipe_agent-{VERSION}/"
    names = {name.removeprefix(root) for name in names_in(sdist)}
    wanted = {f"src/{name}" for name in expected_sources("*.py", "*.pyx", "*.pxi", "*.h", "*.pxd", "*.pyi", "py.typed")}
    wanted |= {name for name in COPIED if not (CHECKOUT / name).is_dir()} | {"PKG-INFO"}
    for folder in ("tests", "bench", "docs"):
        paths = [path for path in (CHECKOUT / folder).rglob("*") if path.suffix in (".py", ".md", ".proto")]
        wanted |= {path.relative_to(CHECKOUT).as_posix() for path in paths if "results" not in path.parts}
    assert not wanted - names


def test_the_sdist_has_nothing_that_was_generated(sdist: Path) -> None:
    names = names_in(sdist)
    found = r"\.(c|so|pyd|pyc)$|/src/.*\.html$|__pycache__|/build/|/\.(venv|git)"  # HTML: Cython's annotations
    assert not [name for name in names if re.search(found, name)]


# The wheels -------------------------------------------------------------------------------------------------------


def test_a_platform_wheel_has_its_extensions_and_their_types(compiled: Compiled) -> None:
    wheel, _ = compiled
    names = files_of(wheel)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    built = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    assert built == EXTENSIONS
    assert "none-any" not in wheel.name
    assert expected_sources("*.py", "*.pxd", "*.pyi", "py.typed") <= names
    assert not [name for name in names if name.endswith((".pyx", ".pxi", ".c"))]


def test_a_compiler_that_fails_on_our_code_is_an_error(compiled: Compiled) -> None:
    wheel, failed = compiled
    assert failed.returncode != 0
    assert "our code is wrong" in failed.stderr + failed.stdout
    assert not list(wheel.parent.parent.glob("failed/*.whl"))


def test_the_pure_wheel_is_for_every_machine_and_has_the_python_twins(pure: Path) -> None:
    names = files_of(pure)
    assert pure.name == f"fastpipe_agent-{VERSION}-py3-none-any.whl"
    assert "Root-Is-Purelib: true" in read(pure, "WHEEL")
    assert expected_sources("*.py", "*.pyi", "py.typed") <= names
    assert not [name for name in names if name.endswith((".so", ".pyd", ".pyx", ".pxi", ".c"))]


def test_a_wheel_holds_two_packages_and_its_papers(pure: Path) -> None:
    papers = f"fastpipe_agent-{VERSION}.dist-info"
    assert {name.split("/")[0] for name in files_of(pure)} == {"agent", "fastpipe", papers}
    assert f"{papers}/licenses/LICENSE" in files_of(pure)
    assert read(pure, "licenses/LICENSE") == (CHECKOUT / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("missing", ["a compiler that can't be run", "no compiler on the path", "no headers"])
def test_a_machine_without_a_compiler_gets_the_pure_wheel_and_the_reason(
    sdist: Path, tmp_path: Path, missing: str
) -> None:
    tree = unpacked(sdist, tmp_path)
    environ = {"CC": "/bin/false"}
    if missing == "no compiler on the path":
        environ = {"PATH": str(tmp_path / "empty")}
    elif missing == "no headers":
        compiler = tmp_path / "cc"
        compiler.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
        compiler.chmod(0o755)
        environ = {"CC": str(compiler)}
    done = build(tree, "wheel", tmp_path / "out", **environ)
    assert done.returncode == 0, done.stderr
    assert "no C compiler or no Python headers" in done.stderr
    assert "installing the Python twins only" in done.stderr
    assert only_wheel(tmp_path / "out").name.endswith("-py3-none-any.whl")


# Metadata ---------------------------------------------------------------------------------------------------------


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"fastpipe_agent-{VERSION}.dist-info/{name}").decode()


def test_both_wheels_say_the_same_of_themselves(compiled: Compiled, pure: Path) -> None:
    assert read(compiled[0], "METADATA") == read(pure, "METADATA")


def test_the_metadata_names_licence_and_what_is_needed_where(pure: Path) -> None:
    metadata = email.message_from_string(read(pure, "METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("fastpipe-agent", VERSION)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = {line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert any(re.match(r'uvloop\S*; sys_platform != "win32" and', line) for line in needed)
    assert any(re.match(r'winloop\S*; sys_platform == "win32" and', line) for line in needed)
    assert {re.split(r"[<>=;]", line)[0] for line in needed} == {"click", "h2", "httptools", "uvloop", "winloop"}
    assert {"asgi", "kubernetes", "metrics", "aiohttp", "anyio", "httpx"} <= set(metadata.get_all("Provides-Extra", []))


def test_no_build_takes_away_the_flags_that_python_was_built_with() -> None:
    """CFLAGS in the environment takes the place of them all, -O3 among them: half the speed."""
    builds = [CHECKOUT / "Makefile", CHECKOUT / "pyproject.toml", *(CHECKOUT / ".ci").glob("*"), *WORKFLOWS]
    assert not [path.name for path in builds if re.search(r"\bCFLAGS\b", path.read_text(encoding="utf-8"))]


def test_the_version_stands_in_one_place() -> None:
    files = [*(CHECKOUT / "src").rglob("*.py"), CHECKOUT / "setup.py"]
    assert not [path for path in files if f'"{VERSION}"' in path.read_text(encoding="utf-8")]


# Workflows --------------------------------------------------------------------------------------------------------

WORKFLOWS = sorted((CHECKOUT / ".github" / "workflows").glob("*.yml"))
"""Not in the sdist."""

Workflow = tuple[str, str, dict[str, Any]]
"""Name, text, and the text parsed."""


def steps_of(workflow: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for job in workflow["jobs"].values():
        yield job
        yield from job.get("steps", [])


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> Workflow:
    yaml = pytest.importorskip("yaml")
    text = request.param.read_text(encoding="utf-8")
    return request.param.name, text, yaml.safe_load(text)


def test_actions_are_pinned_by_commit(workflow: Workflow) -> None:
    _, text, parsed = workflow
    for step in steps_of(parsed):
        used = step.get("uses", "./")
        if not used.startswith("./"):
            assert re.search(rf"uses: {re.escape(used)} # v\d+\.\d+\.\d+$", text, re.MULTILINE), used
            assert re.search(r"@[0-9a-f]{40}$", used), used
        if "actions/checkout" in used:
            assert step["with"]["persist-credentials"] is False


def test_every_job_ends_and_may_little(workflow: Workflow) -> None:
    name, _, parsed = workflow
    assert parsed["permissions"] in ({}, {"contents": "read"})
    for job_name, job in parsed["jobs"].items():
        assert "uses" in job or job["timeout-minutes"] <= 120
        allowed = {"id-token": "write"} if (name, job_name) == ("release.yml", "publish") else {"contents": "read"}
        assert job.get("permissions", allowed) == allowed


def test_the_steps_are_the_projects_make_targets(workflow: Workflow) -> None:
    _, _, parsed = workflow
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for step in steps_of(parsed):
        for called in re.findall(r"^\s*make ((?:[a-z-]+ ?)+)", step.get("run", ""), re.MULTILINE):
            assert set(called.split()) <= targets


# Building -----------------------------------------------------------------------------------------------------------

RECORDED = """
import json, runpy, sys
import Cython.Build, setuptools
found = {}
Cython.Build.cythonize = lambda extensions, **options: found.update(nthreads=options["nthreads"]) or []
setuptools.setup = lambda **options: found.update(parallel=options["options"]["build_ext"]["parallel"])
sys.argv = ["setup.py", "build_ext"]
runpy.run_path("setup.py", run_name=NAME)
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", ["__main__", "__mp_main__"])
def test_extensions_are_cythonized_and_compiled_on_all_cores_once(name: str) -> None:
    pytest.importorskip("Cython")
    environ = {key: value for key, value in os.environ.items() if key != "FASTPIPE_NO_EXTENSIONS"}
    program = RECORDED.replace("NAME", repr(name))
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True, env=environ
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = json.loads(ended.stdout.splitlines()[-1])
    if name == "__mp_main__":  # a process of Cython, if they are not forked
        assert found == {}
    elif found != {"parallel": cores}:  # as it is where nothing compiles
        assert found == {"nthreads": cores if cores > 1 else 0, "parallel": cores}


@pytest.mark.parametrize("goal", ["demo", "test"])
def test_make_says_what_takes_long_before_it_does(tmp_path: Path, goal: str) -> None:
    ended = subprocess.run(
        ["make", "--no-print-directory", "-n", goal, f"VENV={tmp_path}/venv"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MAKEFLAGS": "", "MAKELEVEL": "0"},
    )
    lines = ended.stdout.splitlines()
    said, *_ = [at for at, line in enumerate(lines) if line.startswith("echo") and "compiling the extensions" in line]
    done, *_ = [at for at, line in enumerate(lines) if "pip install" in line and "--editable" in line]
    assert said < done
    assert "--quiet" not in lines[done]  # pip shows a line per step
    assert "FASTPIPE_NO_EXTENSIONS=1" in " ".join(lines[said:done])
