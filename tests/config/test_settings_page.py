"""docs/settings.md has every option of `run`, `hub` and `forward`, with its default, and no other."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent.config.schema import ProxyConfig
from agent.syntax import Route

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
ROUTES_PAGE = PAGE.with_name("routes.md")
RUN = [sys.executable, "-c", "from agent.cli.main import main; main()"]


def options(command):
    """{setting: its default as --help shows it, "" where it shows none}."""
    done = subprocess.run([*RUN, command, "--help"], capture_output=True, text=True, check=True)
    text = re.sub(r"\s+", " ", done.stdout)
    found = re.findall(r"\[(?:(required|default: [^;\]]*); )?(?:AGENT|HUB|FORWARD)_(\w+)\]", text)
    names = {name.lower(): default.removeprefix("default: ") for default, name in found}
    names.pop("config")
    return {re.sub(r"^(memory_comm|limits)_", r"\1.", name): default for name, default in names.items()}


@pytest.mark.parametrize("command", ["run", "hub", "forward"])
def test_every_option_is_on_the_page_with_its_default(command):
    rows = [line.strip("|").split("|") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    page = {row[0].strip(" `"): row[2].strip() for row in rows}
    expected = options(command)
    assert len(expected) > (20 if command != "forward" else 10)
    assert {name: page.get(name, "missing").replace("false", "") for name in expected} == expected


def test_every_example_of_routes_is_accepted_and_shows_the_defaults():
    examples = re.findall(r"```toml\n(.*?)```", ROUTES_PAGE.read_text("utf-8"), re.DOTALL)
    assert len(examples) >= 3
    loaded = [ProxyConfig(**tomllib.loads(example)).static_routes for example in examples]
    assert loaded[0] == (Route("/grafana", "http://grafana:3000"), Route("/", "http://127.0.0.1:9000"))


def test_the_page_has_nothing_that_is_no_option():
    names = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert set(names) == {*options("run"), *options("hub"), *options("forward")}
    assert len(names) == len(set(names))
