"""`.ci/commit_message.py`: which messages pass, as Git's hook and over the commits of a pull request."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).parent.parent
SCRIPT = CHECKOUT / ".ci" / "commit_message.py"
if not SCRIPT.exists():
    pytest.skip("the checkout has no .ci", allow_module_level=True)

Git = Callable[..., subprocess.CompletedProcess[str]]
LONG = "word " * 15
"""More than 72 columns, and can be wrapped."""


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("commit_message", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = loaded()


@pytest.mark.parametrize(
    "message",
    [
        "hub: close idle tunnels",
        "hub: close idle tunnels\n",
        "tests: follow the log's booleans",
        "commit-msg: check http2.py",
        "pipe: " + "a" * 54,
        "hub: bring feeds back",
        "hub: embed the page",
        "hub: process pings",
        "hub: 30% fewer wake-ups",
        "hub: close idle tunnels\n\nThey hold a descriptor each.\n\nA second paragraph.",
        "hub: close idle tunnels\n\n" + "x" * 36 + " " + "y" * 35,
        f"hub: close idle tunnels\n\nSee https://example.com/{'x' * 80} for it.",
        f"hub: close idle tunnels\n\n    $ {LONG}",
        f"hub: close idle tunnels\n\n\t$ {LONG}",
        f"hub: close idle tunnels\n\n```\n{LONG}\n```\nThe end.",
        "hub: close idle tunnels\n\n" + "path/" * 20,
        f"hub: close idle tunnels\n\nCo-authored-by: {LONG}<someone@example.com>",
    ],
)
def test_good_messages_pass(message: str) -> None:
    assert check.problems(message) == []


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("", "subject is missing"),
        ("\n\nhub", "`area: imperative`"),
        ("close idle tunnels", "`area: imperative`"),
        ("Hub: close idle tunnels", "`area: imperative`"),
        ("hub:close idle tunnels", "`area: imperative`"),
        ("hub : close idle tunnels", "`area: imperative`"),
        ("hub:  close idle tunnels", "`area: imperative`"),
        ("hub: ", "`area: imperative`"),
        ("the hub: close idle tunnels", "`area: imperative`"),
        ("hub,docs: close idle tunnels", "`area: imperative`"),
        ('Revert "hub: close idle tunnels"', "`area: imperative`"),
        ("hub: close idle tunnels.", "full stop"),
        ("hub: Close idle tunnels", "lower case: 'Close'"),
        ("hub: closed idle tunnels", "imperative"),
        ("hub: closing idle tunnels", "imperative"),
        ("hub: closes idle tunnels", "imperative"),
        ("pipe: " + "a" * 55, "61 characters. The limit is 60"),
        ("hub: close idle tunnels\nThey hold a descriptor each.", "second line must be blank"),
        (f"hub: close idle tunnels\n\nFine.\n{'x' * 36} {'y' * 36}", "Line 4 has 73 columns. The limit is 72"),
        (f"hub: close idle tunnels\n\n```\n{LONG}\n```\n{LONG}", "Line 6 has 74 columns"),
        (f"hub: close idle tunnels\n\n   {LONG}", "Line 3 has 77 columns"),
        (f"hub: close idle tunnels\n\nNote: {LONG}", "Line 3 has 80 columns"),
        ("fixup! hub: close idle tunnels", "`area: imperative`"),
        ("Merge branch 'main' into side", "`area: imperative`"),
    ],
)
def test_bad_messages_fail_with_their_fault(message: str, fault: str) -> None:
    [problem] = check.problems(message)
    assert fault in problem


def test_every_fault_of_a_message_is_listed() -> None:
    problems = check.problems(f"Hub: {'close ' * 10}.\n{LONG}")
    assert len(problems) == 5


@pytest.mark.parametrize(
    "subject",
    ["Merge branch 'main' into side", "Merge pull request #3 from side", "fixup! hub: a", "squash! hub: a", "amend! a"],
)
def test_a_draft_keeps_the_subjects_that_git_writes(subject: str) -> None:
    assert check.problems(subject, is_draft=True) == []


@pytest.mark.parametrize("subject", ["Merge the rooms", "fixup hub", "Fixup! hub"])
def test_a_draft_that_git_did_not_write_fails(subject: str) -> None:
    assert check.problems(subject, is_draft=True)


# With Git ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Git in an empty repository whose commit-msg hook is the script, without this machine's settings."""
    program = shutil.which("git")
    if program is None:
        if os.environ.get("FASTPIPE_REQUIRE_PEERS", "0") not in ("", "0"):
            pytest.fail("git is not installed, and this test is about its hook")
        pytest.skip("git is not installed, and this test is about its hook")
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_EDITOR": "true",
        "HOME": str(tmp_path),
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.com",
    }.items():
        monkeypatch.setenv(name, value)
    repository = tmp_path / "repository"
    repository.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], cwd=repository, capture_output=True, text=True, check=False, timeout=60
        )

    assert run("init", "--quiet", "--initial-branch=main").returncode == 0
    hook = repository / ".git" / "hooks" / "commit-msg"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{SCRIPT}" "$1"\n')
    hook.chmod(0o755)
    return run


def commit(git: Git, message: str, *options: str) -> subprocess.CompletedProcess[str]:
    return git("commit", "--quiet", "--allow-empty", f"--message={message}", *options)


def ranged(git: Git, revisions: str) -> subprocess.CompletedProcess[str]:
    """The check of a range in the repository."""
    folder = git("rev-parse", "--show-toplevel").stdout.strip()
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--range", revisions],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_hook_lets_a_good_commit_in_and_keeps_a_bad_one_out(git: Git) -> None:
    assert commit(git, "hub: close idle tunnels\n\nWhy.").returncode == 0
    done = commit(git, "Closed idle tunnels.")
    assert done.returncode != 0
    assert "Closed idle tunnels." in done.stderr
    assert "`area: imperative`" in done.stderr
    assert "CONTRIBUTING.md" in done.stderr
    assert git("log", "--format=%s").stdout == "hub: close idle tunnels\n"


@pytest.mark.parametrize("mark", ["#", ";"])
def test_the_hook_ignores_comments_and_the_diff_below_the_scissors(git: Git, tmp_path: Path, mark: str) -> None:
    git("config", "core.commentChar", mark)
    template = tmp_path / "template"
    template.write_text(f"hub: close idle tunnels\n{mark} {LONG}\n\nWhy.\n")
    (tmp_path / "repository" / "page.txt").write_text(LONG)
    git("add", "page.txt")
    done = git("commit", "--quiet", "--verbose", "--file", str(template), "--edit", "--cleanup=scissors")
    assert done.returncode == 0, done.stderr


def test_the_hook_lets_git_merge(git: Git) -> None:
    commit(git, "hub: open")
    git("switch", "--quiet", "--create", "side")
    commit(git, "hub: close")
    git("switch", "--quiet", "main")
    commit(git, "agent: open")
    assert git("merge", "--no-edit", "--no-ff", "side").returncode == 0
    assert ranged(git, "main").returncode == 0  # the merge's subject is left out


def test_a_range_names_each_bad_commit(git: Git) -> None:
    commit(git, "Before the range.", "--no-verify")
    git("tag", "base")
    commit(git, "hub: close")
    assert ranged(git, "base..HEAD").stdout == "Commit messages checked: 1. All are good.\n"
    commit(git, "Bad one", "--no-verify")
    commit(git, "fixup! hub: close", "--no-verify")
    done = ranged(git, "base..HEAD")
    assert done.returncode == 1
    bad, fixup = git("log", "-2", "--reverse", "--format=%h %s").stdout.splitlines()
    assert bad in done.stderr
    assert fixup in done.stderr
    assert "hub: close\n" not in done.stderr.replace(fixup, "")
    assert ranged(git, "HEAD..HEAD").returncode == 0


@pytest.mark.parametrize("revisions", ["nothing..HEAD", "--output=made"])
def test_a_range_that_git_does_not_know_is_an_error(git: Git, revisions: str, tmp_path: Path) -> None:
    commit(git, "hub: close")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), f"--range={revisions}"],
        cwd=tmp_path / "repository",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "cannot be read" in done.stderr
    assert not (tmp_path / "repository" / "made").exists()
