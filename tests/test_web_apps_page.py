"""docs/web-apps.md and `make browser` agree: each example names its test, or notes that none runs it."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from .web_apps_page import PAGE, Mode, agent_variables, examples, hub_arguments, words

if not PAGE.exists():
    pytest.skip("the checkout has no docs/web-apps.md", allow_module_level=True)

TEXT = PAGE.read_text(encoding="utf-8")
FOLDER = Path(__file__).parent / "browser"


def functions_of(path: Path) -> set[str]:
    """The tests of a module. It is not imported, since the default environment has no Chromium and no applications."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}


def test_each_section_is_run_or_says_that_it_is_not() -> None:
    parts = [part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE) if re.search(r"^By .*:$", part, re.MULTILINE)]
    assert len(parts) > 10
    for part in parts:
        said = re.search(r"Run by `test_|Not run by a test|Hub and agent", part)
        assert said, part.partition("\n")[0]


def test_named_tests_exist() -> None:
    named = re.findall(r"Run by `(test_\w+)`\s+in\s+`([\w./]+)`", TEXT)
    assert len(named) > 10
    for test, path in named:
        assert test in functions_of(FOLDER.parent.parent / path), test


def test_each_example_with_a_test_has_both_modes() -> None:
    modes: dict[str, set[str]] = {}
    for example in examples(TEXT):
        modes.setdefault(example.test, set()).add(example.mode)
    del modes[""]
    assert len(modes) > 10
    assert all(found == {"host", "path"} for found in modes.values()), modes


def test_every_block_belongs_to_an_example() -> None:
    """Each block of code is below a line that names its mode. So a test, or nobody, runs all of it."""
    found = examples(TEXT)
    blocks = {body for example in found for _, body in example.files}
    commands = {command for example in found for command in example.commands}
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL):
        if language == "sh":
            assert set(re.sub(r"\\\n\s*", "", body).splitlines()) <= commands, body
        else:
            assert body in blocks, body


def test_commands_are_of_this_product() -> None:
    """The options of each `fastpipe-agent` line exist."""
    for example in examples(TEXT):
        for command in example.commands:
            parts = words(command)[1]
            if parts[:1] == ["fastpipe-agent"]:
                command_module = importlib.import_module(f"agent.cli.{parts[1]}")
                known = {option for parameter in command_module.command.params for option in parameter.opts}
                assert {part for part in parts if part.startswith("--")} <= known, command


def test_hubs_and_variables_are_read_from_the_page() -> None:
    assert "--cluster-domain" in hub_arguments("host")
    assert "--cluster-domain" not in hub_arguments("path")
    assert set(agent_variables()) == {"AGENT_HUB_ADDRESS", "AGENT_CLUSTER_NAME", "AGENT_HUB_TOKEN_FILE"}


@pytest.mark.parametrize("mode", ["host", "path"])
def test_hubs_of_the_page_are_valid(mode: Mode, tmp_path: Path) -> None:
    """The hub takes the addresses as they are, off loopback. `--print-config` starts nothing."""
    trustme.CA().issue_cert("hub.example.com", "*.tunnel.example.com").private_key_and_cert_chain_pem.write_to_path(
        tmp_path / "hub.pem"
    )
    (tmp_path / "tokens").write_text("c1 token\n")
    done = subprocess.run(
        [sys.executable, "-m", "agent", *hub_arguments(mode), "--print-config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'http_address = ":443"' in done.stdout
