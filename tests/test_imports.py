"""The rooms import each other along the arrows of one table, read off the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import agent
import fastpipe

PACKAGES = [Path(package.__path__[0]) for package in (agent, fastpipe)]
"""Where they were imported from, so that an installed wheel is read where the suite runs on one."""

BENCH = Path(__file__).parents[1] / "bench"
"""The benchmarks, which an sdist lacks."""

VOCABULARY = {"agent.errors", "agent.messages", "agent.outcome", "agent.syntax"}
"""Modules that every room may import, and that import none of our modules."""

ARROWS = {
    "runtime": set[str](),
    "x509": set[str](),
    "config": {"x509"},
    "telemetry": {"runtime"},
    "http2": set[str](),
    "tunnel": {"http2", "runtime", "x509"},
    "connections": {"runtime", "agent.tunnel.features", "agent.tunnel.packet"},
    "proxy": {"http2", "runtime", "x509", "agent.config.limits"},
    "policy": {"config", "runtime", "x509"},
    "hub": {
        "http2",
        "runtime",
        "x509",
        "connections",
        "agent.proxy.liveness",
        "agent.proxy.origin",
        "agent.proxy.request_id",
        "agent.tunnel.features",
        "agent.tunnel.packet",
    },
    "spoke": {"runtime"},
    "forward": {"http2", "runtime"},
    "cli": {"runtime", "config", "telemetry"},
}
"""The allowed arrows: rooms, or single modules, that a room may import besides the vocabulary and itself."""

ROOTS = {
    "agent": {"config", "hub", "policy", "spoke"},
    "agent.__main__": {"cli"},
    "agent.spoke.agent": {"config", "connections", "policy", "proxy", "telemetry", "tunnel"},
    "agent.spoke.hub_endpoint": {"config", "policy", "tunnel"},
    "agent.spoke.links": {"tunnel"},
    "agent.spoke.metrics": {"connections", "proxy", "telemetry", "tunnel"},
    "agent.forward.setup": {"config"},
    "agent.hub.connect_ports": {"config", "policy", "proxy"},
    "agent.hub.hub": {"config", "policy", "proxy", "telemetry", "tunnel"},
    "agent.hub.metrics": {"agent.tunnel.budget", "proxy", "telemetry"},
    "agent.hub.session": {"agent.tunnel.session", "agent.tunnel.window"},
    "agent.cli.checks": {"policy", "spoke", "tunnel", "x509"},
    "agent.cli.configured": {"agent.spoke.outbound_proxy"},
    "agent.cli.demonstration": {"hub", "spoke"},
    "agent.cli.forward": {"forward"},
    "agent.cli.hub": {"hub"},
    "agent.cli.proxy_server": {"policy", "proxy"},
    "agent.cli.run": {"spoke"},
}
"""Composition roots: modules that may import more than their room."""


TWIN = "the package selects the pipe's twin, and these use the selected one"

CIRCLES = {
    ("fastpipe", "fastpipe.listener"): TWIN,
    ("fastpipe", "fastpipe.streams"): TWIN,
    ("fastpipe.listener", "fastpipe.streams"): TWIN,
}
"""The pairs of modules that may be neighbours in a circle of imports, each with its reason. Keep it small."""


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in [*PACKAGES, *([BENCH] if BENCH.exists() else [])]:
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyx")]):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
PYTHON = sorted(name for name, path in MODULES.items() if path.suffix == ".py")
OURS = {name.partition(".")[0] for name in MODULES}


def imports_of(name: str) -> set[str]:
    """Our own modules that a module imports, at its top or within a function, also for types only."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{above}.{base}" if base else above
            # `from . import settings` imports a module, and `from .errors import X` a name.
            submodules = {f"{base}.{alias.name}" for alias in node.names} & set(MODULES)
            found.update(submodules or {base})
    return {each for each in found if each.partition(".")[0] in OURS}


def room_of(name: str) -> str:
    """The room that a module is in, "" for those above the rooms."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "agent" and parts[1] in ARROWS else ""


def test_the_source_is_found() -> None:
    assert {"agent.cli.main", "agent.errors", "agent.policy.router", "fastpipe"} <= set(MODULES)
    assert imports_of("agent.policy.router") >= {"agent.errors", "agent.messages"}


def test_six_modules_lie_loose() -> None:
    loose = {name for name in MODULES if name.partition(".")[0] == "agent" and not room_of(name)}
    assert loose == VOCABULARY | {"agent", "agent.__main__"}


@pytest.mark.parametrize("name", [name for name in PYTHON if name.partition(".")[0] == "fastpipe"])
def test_fastpipe_knows_nothing_of_the_agent(name: str) -> None:
    assert not {each for each in imports_of(name) if each.partition(".")[0] == "agent"}


@pytest.mark.parametrize("name", sorted(VOCABULARY))
def test_the_vocabulary_imports_nothing_of_ours(name: str) -> None:
    assert imports_of(name) == set()


@pytest.mark.parametrize("name", [name for name in PYTHON if name.startswith("agent") and name not in VOCABULARY])
def test_a_module_imports_along_the_arrows(name: str) -> None:
    room = room_of(name)
    allowed = {room} | ARROWS.get(room, set()) | ROOTS.get(name, set())
    for imported in imports_of(name):
        if imported.partition(".")[0] == "fastpipe":
            assert imported == "fastpipe" or not imported.rpartition(".")[2].startswith("_"), f"{imported} is private"
        elif imported not in VOCABULARY:
            assert {imported, room_of(imported)} & allowed, f"{name} imports {imported}"
            crosses = room_of(imported) != room and not ROOTS.get(name)
            assert not (crosses and imported in ROOTS), f"{name} imports {imported}, which knows many rooms"


def test_the_arrows_do_not_go_round() -> None:
    """The composition roots are left out, because they are above all rooms."""
    left = {room: {arrow.removeprefix("agent.").partition(".")[0] for arrow in to} for room, to in ARROWS.items()}
    while left:
        ground = {room for room, to in left.items() if not to & set(left)}
        assert ground, f"these rooms import each other: {left}"
        for room in ground:
            del left[room]


def circles() -> list[set[str]]:
    """Groups of modules that all reach each other by imports, those within functions and for types included."""
    imports = {name: imports_of(name) & set(PYTHON) - {name} for name in PYTHON}
    reached: dict[str, set[str]] = {}
    for name in PYTHON:
        found, ahead = set[str](), [name]
        while ahead:
            new = imports.get(ahead.pop(), set()) - found
            found |= new
            ahead.extend(new)
        reached[name] = found
    groups = {frozenset(other for other in reached[name] if name in reached[other]) for name in PYTHON}
    return [set(group) for group in groups if group]


def test_no_modules_import_each_other_in_a_circle() -> None:
    allowed = {name: {other for pair in CIRCLES if name in pair for other in pair} for name in PYTHON}
    for group in circles():
        for name in sorted(group):
            round_it = imports_of(name) & group - {name}
            assert round_it <= allowed[name], f"{name} is in a circle with {round_it - allowed[name]}: {sorted(group)}"


def test_every_allowed_circle_is_still_one() -> None:
    found = circles()
    assert [pair for pair in CIRCLES if not any(set(pair) <= group for group in found)] == []


LOADED_WITH = {
    "agent": ["ssl", "click", "h2", "httptools", "asyncio", "agent.spoke.agent"],
    "agent.cli.main": ["ssl", "h2", "httptools", "asyncio", "uvloop", "agent.spoke.agent", "agent.hub.hub", "tomllib"],
    "agent.config.schema": ["ssl", "h2", "httptools", "asyncio", "click"],
    "agent.policy.router": ["ssl", "h2", "httptools", "asyncio", "click", "agent.config.schema"],
} | {
    # The help, --print-config and an error in the configuration need no more than the options.
    f"agent.cli.{command}": ["ssl", "h2", "httptools", "asyncio", "agent.spoke.agent", "agent.hub.hub", "agent.proxy"]
    for command in ("run", "hub", "proxy", "demo", "check", "forward")
}


@pytest.mark.parametrize("name", list(LOADED_WITH))
def test_what_is_not_needed_is_not_loaded(name: str) -> None:
    program = f"import sys; before = set(sys.modules); import {name}; print(*sorted(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert not set(output.stdout.split()) & set(LOADED_WITH[name])


def test_every_exported_name_is_there_and_its_own() -> None:
    import agent

    for name in agent.__all__:
        assert getattr(agent, name) is not None
    assert set(agent.__all__) <= set(dir(agent))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        agent.Nothing  # noqa: B018
