"""CONTRIBUTING.md, SECURITY.md, `make help` and the Git hooks name what is there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
if not (CHECKOUT / "CONTRIBUTING.md").exists() or not (CHECKOUT / "Makefile").exists():
    pytest.skip("the checkout has no CONTRIBUTING.md or Makefile", allow_module_level=True)

MAKEFILE = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
PAGES = {name: (CHECKOUT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "SECURITY.md")}
HELP_COLUMNS = 100


def phony() -> set[str]:
    """The targets that people call."""
    return {name for line in re.findall(r"^\.PHONY:(.*)$", MAKEFILE, re.MULTILINE) for name in line.split()}


def helped() -> dict[str, str]:
    """{target: its line}, as `make help` prints them."""
    done = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MAKEFLAGS": "", "MAKELEVEL": "0"},
        timeout=60,
    )
    assert all(len(line) <= HELP_COLUMNS for line in done.stdout.splitlines())
    return {line.split()[0]: line.partition(" ")[2].strip() for line in done.stdout.splitlines()}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_make_help_has_a_line_for_every_target() -> None:
    lines = helped()
    assert set(lines) == phony()
    assert all(lines.values())


def test_every_target_is_phony() -> None:
    """Else a file of that name would stop the target."""
    assert set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.MULTILINE)) == phony()


def test_the_parts_that_are_tested_on_one_twin_exist() -> None:
    """Else a renamed test runs on both twins, and nobody notices."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "share-python"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MAKEFLAGS": "", "MAKELEVEL": "0", "PYTEST_ARGS": ""},
        timeout=60,
    )
    left_out = re.findall(r"--ignore=(\S+)", done.stdout)
    assert len(left_out) > 20
    assert not [path for path in left_out if not (CHECKOUT / path).exists()]


@pytest.mark.parametrize("page", [*PAGES, "README.md"])
def test_pages_name_make_targets_that_exist(page: str) -> None:
    text = PAGES.get(page) or (CHECKOUT / page).read_text(encoding="utf-8")
    for called in re.findall(r"\bmake ((?:[a-z]+(?:-[a-z]+)* ?)+)`", text):
        assert set(called.split()) <= phony()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            path = CHECKOUT / (name or page)
            assert path.exists(), link
            assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_pages_name_exist(page: str) -> None:
    named = re.findall(r"`((?:src|tests|docs|bench|\.ci)/[\w./-]*)`", PAGES[page])
    assert not [path for path in named if not (CHECKOUT / path).exists()]


def test_variables_that_the_pages_name_are_read_somewhere() -> None:
    variables = {name for text in PAGES.values() for name in re.findall(r"\bFASTPIPE_[A-Z_]+", text)}
    assert "FASTPIPE_NO_EXTENSIONS" in variables
    paths = [path for folder in ("src", "tests") for path in (CHECKOUT / folder).rglob("*.py")]
    read = "\n".join(path.read_text(encoding="utf-8") for path in [CHECKOUT / "setup.py", *paths])
    assert not [name for name in variables if f'"{name}"' not in read]


def test_settings_that_the_security_page_names_exist() -> None:
    settings = (CHECKOUT / "docs" / "settings.md").read_text(encoding="utf-8")
    known = set(re.findall(r"^\| `([^`]+)` \|", settings, re.MULTILINE))
    rows = re.findall(r"^\| (`[^|]+) \|", PAGES["SECURITY.md"], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_.]+)(?: =[^`]*)?`", row)}
    assert len(named) > 8
    assert named <= known


def test_the_hooks_run_what_is_in_the_environment_and_download_nothing() -> None:
    yaml = pytest.importorskip("yaml")
    path = CHECKOUT / ".pre-commit-config.yaml"
    if not path.exists():
        pytest.skip("not in the sdist")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = {hook["id"]: hook for hook in config["repos"][0]["hooks"]}
    assert set(hooks) == {"ruff", "cython-lint", "commit-message"}
    assert all(hook["language"] == "system" for hook in hooks.values())
    assert all(".venv/bin" in hook["entry"] for hook in hooks.values())
    stages = {stage for hook in hooks.values() for stage in hook.get("stages", config["default_stages"])}
    assert set(config["default_install_hook_types"]) == stages
