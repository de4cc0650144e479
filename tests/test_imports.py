"""The rooms' rule, read off the source: no room imports another, and what knows them all is on a short list."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = [Path(__import__(name).__file__).parent for name in ("agent", "fastpipe")]
"""Where they were imported from, so that an installed wheel is read where the suite runs on one."""

ROOMS = {"tunnel", "connections", "proxy", "policy", "hub", "telemetry"}
ROOTS = {
    "agent.agent",
    "agent.dialling",
    "agent.links",
    "agent.readings",
    "agent.hub.hub",
    "agent.hub.readings",
    "agent.proxy_server",
    "agent.check",
    "agent.cli",
    "agent.demo",
    "agent.__main__",
    "agent",
}
"""Composition roots: they alone know the rooms. `agent` itself gives its names out when they are first used."""
LEAVES_OF_LEAVES = {
    "agent.settings": {"agent.errors"},
    "agent.fields": {"agent.settings", "agent.syntax"},
    "agent.config": {"agent.fields", "agent.settings", "agent.syntax"},
    "agent.outbound_proxy": {"agent.errors", "agent.syntax"},
    "agent.effective": {"agent.settings", "agent.syntax"},
    "agent.variables": {"agent.settings"},
    "agent.peer_certificate": {"agent.certificates"},
    "agent.credentials": {"agent.certificates", "agent.effective", "agent.settings"},
}
"""What a leaf may import of ours; a leaf that isn't here imports nothing of ours."""

LEAF_IN_A_ROOM = "agent.tunnel.packet"
"""The packet and its codes: what manager and hub session are handed, so a leaf as the errors are (house style)."""

ALLOWED = {"agent.hub.session": {"agent.tunnel.scheduler", "agent.tunnel.session", "agent.tunnel.window"}}
"""Imports across rooms that were let in, each by name: the hub's end of a tunnel is typed by the tunnel's classes."""


def modules() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyx")]):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
PYTHON = sorted(name for name, path in MODULES.items() if path.suffix == ".py")


def imports_of(name: str) -> set[str]:
    """Our own modules that a module imports, at its top or within a function; also those for types only."""
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
            # `from . import settings` imports a module; `from .errors import X` a name.
            submodules = {f"{base}.{alias.name}" for alias in node.names} & set(MODULES)
            found.update(submodules or {base})
    return {each for each in found if each.partition(".")[0] in ("agent", "fastpipe")}


def room_of(name: str) -> str:
    """The room that a module is in, "" for those above the rooms."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "agent" and parts[1] in ROOMS else ""


def is_leaf(name: str) -> bool:
    return name.startswith("agent.") and not room_of(name) and name not in ROOTS


def test_the_source_is_found() -> None:
    assert {"agent.cli", "agent.errors", "agent.policy.router", "fastpipe"} <= set(MODULES)
    assert imports_of("agent.policy.router") >= {"agent.errors", "agent.messages"}


@pytest.mark.parametrize("name", [name for name in PYTHON if name.partition(".")[0] == "fastpipe"])
def test_fastpipe_knows_nothing_of_the_agent(name: str) -> None:
    assert not {each for each in imports_of(name) if each.partition(".")[0] == "agent"}


@pytest.mark.parametrize("name", [name for name in PYTHON if room_of(name) and name not in ROOTS])
def test_no_room_imports_another(name: str) -> None:
    for imported in imports_of(name):
        if imported.partition(".")[0] == "fastpipe":
            assert imported == "fastpipe" or not imported.rpartition(".")[2].startswith("_"), f"{imported} is private"
            continue
        assert imported not in ROOTS, f"{name} imports {imported}, which knows all rooms"
        if imported != LEAF_IN_A_ROOM and imported not in ALLOWED.get(name, set()):
            assert room_of(imported) in ("", room_of(name)), f"{name} imports {imported} from another room"


@pytest.mark.parametrize("name", [name for name in PYTHON if is_leaf(name)])
def test_a_leaf_imports_nothing_of_ours(name: str) -> None:
    assert imports_of(name) <= LEAVES_OF_LEAVES.get(name, set())


def test_the_packet_is_a_leaf() -> None:
    assert imports_of(LEAF_IN_A_ROOM) <= {"agent.errors"}


def test_leaves_that_import_leaves_do_not_go_round() -> None:
    for name, allowed in LEAVES_OF_LEAVES.items():
        for other in allowed:
            assert name not in LEAVES_OF_LEAVES.get(other, set())


@pytest.mark.parametrize("name", ["agent.cli", "agent.demo", "agent.__main__"])
def test_the_command_line_and_the_demo_know_no_room_but_telemetry(name: str) -> None:
    for imported in imports_of(name):
        assert imported in ROOTS or room_of(imported) in ("", "telemetry"), f"{name} imports {imported}"


LOADED_WITH = {
    "agent": ["ssl", "click", "h2", "httptools", "asyncio", "agent.agent"],
    "agent.cli": ["ssl", "h2", "httptools", "asyncio", "uvloop", "agent.agent", "agent.hub.hub", "tomllib"],
    "agent.config": ["ssl", "h2", "httptools", "asyncio", "click"],
    "agent.policy.router": ["ssl", "h2", "httptools", "asyncio", "click", "agent.config"],
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
