"""Tests which twin of the data plane the tunnel uses, and that the compiled twin matches its stub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import agent
from agent.http2 import framing

WITHOUT = os.environ.get("FASTPIPE_NO_EXTENSIONS", "") not in ("", "0")

ASK = "from agent.http2 import connection, framing; print(framing.IMPLEMENTATION, connection.FrameReader.__module__)"


def asked(variable: str | None, *path: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "FASTPIPE_NO_EXTENSIONS"}
    if variable is not None:
        environment["FASTPIPE_NO_EXTENSIONS"] = variable
    code = f"import agent.http2; agent.http2.__path__[:0] = {list(path)!r}; {ASK}"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_the_extension_was_built_unless_it_was_not_wanted() -> None:
    twin: str = framing.IMPLEMENTATION
    assert twin == ("python" if WITHOUT else "c")


@pytest.mark.skipif(WITHOUT, reason="FASTPIPE_NO_EXTENSIONS: nothing is built")
@pytest.mark.parametrize(("variable", "twin"), [(None, "c"), ("", "c"), ("0", "c"), ("1", "python")])
def test_the_variable_chooses_the_twin(variable: str | None, twin: str) -> None:
    module = {"c": "agent.http2.framing_c", "python": "agent.http2.framing_py"}[twin]
    assert asked(variable).stdout.split() == [twin, module]


def test_an_extension_that_is_there_and_broken_raises(tmp_path: Path) -> None:
    (tmp_path / "framing_c.py").write_text("raise ImportError('undefined symbol: PyNothing')\n")
    result = asked(None, str(tmp_path))
    assert result.returncode != 0
    assert "undefined symbol: PyNothing" in result.stderr
    assert asked("1", str(tmp_path)).stdout.startswith("python")


@pytest.mark.skipif(WITHOUT, reason="FASTPIPE_NO_EXTENSIONS: nothing is built")
def test_the_stubs_are_the_built_modules(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed: the extra lint")
    # In one run, since mypy takes seconds for what they all use.
    modules = ["agent.http2.framing_c", "agent.http2.header_blocks_c", "agent.tunnel.messages_c"]
    command = [sys.executable, "-m", "mypy.stubtest", *modules, "--ignore-missing-stub"]
    environment = os.environ | {"MYPYPATH": str(Path(agent.__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stdout
