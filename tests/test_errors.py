"""Each package has one base of what it raises on purpose, and users can import what reaches them."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent
import fastpipe
from agent import errors
from agent.errors import AgentError
from fastpipe import PipeError

BASES = {"agent": AgentError, "fastpipe": PipeError}
TWINS_OFF = os.environ.get("FASTPIPE_NO_EXTENSIONS") == "1"
"""Whether this run is the Python twin's: compiled modules cannot be imported then."""

INTERNAL = {"ForwardError", "Party", "Redirected", "Responded", "listening"}
"""Names of agent.errors that no user of the package meets: a command's error, a type, the hub's responses, a helper."""


def modules() -> Iterator[str]:
    for package in (agent, fastpipe):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not found.name.endswith("__main__"):
                yield found.name


def exceptions_of(name: str) -> list[type[BaseException]]:
    """The exception classes that a module defines. A module that this run cannot import, defines none."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        if TWINS_OFF and name.endswith("_c"):
            return []
        raise
    classes = [each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == name]
    return [each for each in classes if issubclass(each, BaseException)]


def raised_in(name: str) -> Iterator[str]:
    """The names that a module's `raise` statements call."""
    file = importlib.import_module(name).__file__
    assert file is not None
    source = Path(file).with_name(Path(file).name.partition(".")[0] + ".py")  # a compiled module's lies beside it
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            yield node.exc.func.id


MODULES = list(modules())


def test_the_scan_finds_errors() -> None:
    found = {error for name in MODULES for error in exceptions_of(name)}
    assert {AgentError, PipeError, errors.PolicyError} <= found
    assert len(found) > 20


@pytest.mark.parametrize("name", MODULES)
def test_each_error_is_below_its_packages_base(name: str) -> None:
    base = BASES[name.partition(".")[0]]
    assert [error for error in exceptions_of(name) if not issubclass(error, base)] == []


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("_c")])
def test_no_module_raises_a_bare_exception(name: str) -> None:
    assert not {"BaseException", "Exception"} & set(raised_in(name))


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name not in INTERNAL])
def test_an_error_that_reaches_users_is_exported(name: str) -> None:
    assert name in agent.__all__
    assert getattr(agent, name) is getattr(errors, name)


@pytest.mark.parametrize("name", MODULES)
def test_each_error_has_a_docstring_for_itself(name: str) -> None:
    assert [error for error in exceptions_of(name) if not error.__dict__.get("__doc__")] == []
