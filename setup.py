"""Select the compiled twins or the pure-Python ones at build time. All else is in pyproject.toml.

FASTPIPE_NO_EXTENSIONS=1 (0 and empty mean no) gives a pure-Python install, a py3-none-any wheel with the Python twins
only. So does a machine without a C compiler or without Python's headers. pip's log (-v) has the reason. If the compiler
fails on our code, the build fails. So a platform wheel always has its extensions.

Three variables are for work on fastpipe itself:

- FASTPIPE_DEBUG=1 counts pairs, pieces and views, made and freed, and asserts the invariants after every step.
- FASTPIPE_QUICK_BUILD=1 compiles at -O0: a sixth of the compiler's time, for code whose speed nobody measures.
- FASTPIPE_SANITIZE=1 builds with the address and undefined-behaviour sanitizers. Run the tests with
  `LD_PRELOAD="$(gcc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools._distutils.ccompiler import new_compiler
from setuptools._distutils.sysconfig import customize_compiler, get_python_inc

DIRECTIVES = {
    "annotation_typing": False,  # the .pxd alone has C types
    "embedsignature": False,
    "freethreading_compatible": True,
    "nonecheck": True,  # what is None by mistake raises, as in the plain twin
}


def sources() -> dict[str, str]:
    """Each extension of pyproject.toml's list and its source, relative to this folder."""
    root = Path(__file__).parent
    with open(root / "pyproject.toml", "rb") as file:
        names: dict[str, str] = tomllib.load(file)["tool"]["fastpipe"]["extensions"]
    found: dict[str, str] = {}
    for name in names:
        stem = f"src/{name.replace('.', '/')}"
        found[name] = f"{stem}.pyx" if (root / f"{stem}.pyx").exists() else f"{stem}.py"
    return found


def is_building() -> bool:
    """Whether this run makes a wheel or an install, and not just an sdist or metadata, which need no compiler."""
    return not {"sdist", "egg_info", "dist_info"} & set(sys.argv) or "bdist_wheel" in sys.argv


def has_compiler() -> bool:
    """Whether a program that includes Python.h compiles here. Prints the reason if it does not."""
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\nint main(void) { return 0; }\n")
        try:
            compiler.compile([str(source)], output_dir=folder, include_dirs=[get_python_inc()])
        except Exception as error:  # distutils' compilers each have their own error classes
            print(
                f"fastpipe: no C compiler or no Python headers ({error}): installing the Python twins only. They "
                "do the same, more slowly. With compiler and headers, install again for the compiled twins.",
                file=sys.stderr,
            )
            return False
    return True


def cores() -> int:
    """How many cores this process may use. A container may have fewer than its machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cython_processes() -> int:
    """How many processes Cython may use beside this one. One a core, or none if a sandbox has no semaphores."""
    try:
        multiprocessing.Lock()
    except (ImportError, OSError):
        return 0
    return cores() if cores() > 1 else 0


def is_set(variable: str) -> bool:
    """Whether an environment variable is set to anything but 0 and the empty string."""
    return os.environ.get(variable, "") not in ("", "0")


def extensions() -> list[Extension]:
    """The extensions to build in this run: all that are listed, or none."""
    if not is_building() or is_set("FASTPIPE_NO_EXTENSIONS") or not has_compiler():
        return []
    from Cython.Build import cythonize

    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if is_set("FASTPIPE_SANITIZE") else []
    # Debug information is five times the code. Not by CFLAGS: that takes the place of all Python was built with, even
    # of -O3.
    plain = [] if sys.platform == "win32" or is_set("FASTPIPE_DEBUG") else ["-g0"]
    if is_set("FASTPIPE_QUICK_BUILD"):
        plain = [*plain, "-O0"]  # the last -O counts
    made: list[Extension] = cythonize(
        [
            Extension(
                name,
                [source],
                define_macros=[("FASTPIPE_DEBUG", "1")] if is_set("FASTPIPE_DEBUG") else [],
                extra_compile_args=[*sanitizers, "-g", "-O1"] if sanitizers else plain,
                extra_link_args=sanitizers,
                include_dirs=[os.path.dirname(source)],  # of headers beside a .pyx
            )
            for name, source in sources().items()
        ],
        language_level=3,
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
        include_path=["src"],
        cache=is_set("CYTHON_CACHE_DIR"),  # by the content of all that a file is made of
        nthreads=cython_processes(),  # 30 s of a build's 110 s of CPU time are Cython's
    )
    return made


# Where processes aren't forked, those of Cython's import this file again, under another name.
if __name__ == "__main__":
    setup(ext_modules=extensions(), options={"build_ext": {"parallel": cores()}})
