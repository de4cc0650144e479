"""`.ci/language.py`: which sentences pass, and what it reads of each kind of file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

CHECKOUT = Path(__file__).parent.parent
SCRIPT = CHECKOUT / ".ci" / "language.py"
if not SCRIPT.exists():
    pytest.skip("the checkout has no .ci", allow_module_level=True)

TWENTY = "The agent closes each idle connection to a target after one minute and then logs how many requests it served."
"""A sentence of 20 words."""


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("language", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["language"] = module
    spec.loader.exec_module(module)
    return module


check = loaded()


def rules(text: str) -> list[str]:
    """The rules that a text breaks, each by its first word. A bad example is between backticks, as code."""
    return [rule.split()[0] for _, sentence in check.sentences(text.strip("`")) for rule in check.problems(sentence)]


def findings(path: Path) -> list[tuple[int, str]]:
    """(line, the rule's first word) of each finding in a file."""
    return [(finding.line, finding.rule.split()[0]) for finding in check.findings(path)]


@pytest.mark.parametrize(
    "text",
    [
        TWENTY,
        "The hub closes the connection. The agent dials again after 5 s.",
        "A setting has three spellings: flag, variable and TOML key.",
        "Two parts: the hub, and the agent.",
        "The limit is 64 KiB, 10,000 lines or 10 s, i.e. the first one that a sender reaches.",
        "What does the hub do?",
        "A stand-in for the API server.",
        "The status is 503; retry.",
        "The default is None.",
    ],
)
def test_good_sentences_pass(text: str) -> None:
    assert rules(text) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (TWENTY.replace("logs", "always logs"), "long"),
        ("`The hub closes the connection; the agent dials it again.`", "semicolon"),
        ("`The agent is not ready: it has no hub.`", "colon"),
        ("`The connection is dialled anew.`", "banned"),
        ("`The hub is told first.`", "banned"),
        ("`The agent says that the hub left.`", "banned"),
        ("`An answer of the proxy.`", "banned"),
        ("`A thread of its own.`", "banned"),
        ("`Everything passes but for upgrades.`", "banned"),
        ("`The hub does not list the client any more.`", "banned"),
        ("`What it sends is what the client gets.`", "banned"),
        ("`The agent waits, for it has no token.`", "banned"),
        ("`What the hub sends arrives whole.`", "subject"),
        ("`Whoever reaches the hub reaches the routes.`", "subject"),
    ],
)
def test_bad_sentences_are_found(text: str, rule: str) -> None:
    assert rule in rules(text)


def test_misspelt_words_are_found() -> None:
    pytest.importorskip("codespell_lib")
    assert rules("`The hub recieves it.`") == ["spelling"]


def test_a_number_and_its_unit_are_one_word() -> None:
    assert check.word_count("A pipe holds 64 KiB for 10 s.") == 6


def test_a_full_stop_behind_an_abbreviation_ends_no_sentence() -> None:
    assert [sentence for _, sentence in check.sentences("One, e.g. this. `two` follows.")] == [
        "One, e.g. this.",
        "`two` follows.",
    ]


def test_pages_are_read_without_code(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What is said\n\nGood words, `but for code`.\n\n```sh\nsay anew; say what is said; go on\n```\n\n"
        "- The hub is told.\n- Good.\n\n| a | b |\n| --- | --- |\n| `said \\| said` | goes on |\n",
        encoding="utf-8",
    )
    assert findings(page) == [(1, "banned"), (1, "subject"), (9, "banned"), (14, "banned")]


def test_a_link_is_read_by_its_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Read [the page](docs/anew.md) and <https://example.com/anew>.\n", encoding="utf-8")
    assert findings(page) == []


def test_comments_docstrings_and_messages_of_python_are_read(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""Goes on.\n\nArgs:\n    size: bytes that are said.\n\n    code(anew)\n"""\n\n'
        "# A comment that goes\n# on for two lines.\n"
        "x = 'anew'  # anew\n"
        "log.info('the hub ' 'goes on for %s', x)\n"
        "y = b'the hub goes on here'\n"
        "raise ValueError(f'{x} is told to go on')\n",
        encoding="utf-8",
    )
    assert findings(module) == [
        (1, "banned"),
        (4, "banned"),
        (9, "banned"),
        (11, "banned"),
        (12, "banned"),
        (14, "banned"),
        (14, "banned"),
    ]


def test_long_strings_that_are_arguments_are_not_read(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('write(\n    """\n    is said anew here\n    """\n)\nx = f"""\nanew\n"""\n', encoding="utf-8")
    assert findings(module) == []


def test_pictures_are_not_read(tmp_path: Path) -> None:
    module = tmp_path / "module.pyx"
    module.write_text('"""One line.\n\n    said ──► anew\n    a | b     says\n"""\n', encoding="utf-8")
    assert findings(module) == []


def test_comments_of_other_files_are_read(tmp_path: Path) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text("x := anew\nall: ## do it anew\n# Goes on.\n", encoding="utf-8")
    assert findings(makefile) == [(2, "banned"), (3, "banned")]


def test_a_clean_file_exits_0_and_a_finding_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("Good.\n", encoding="utf-8")
    bad.write_text("It goes on.\n", encoding="utf-8")
    assert check.main([str(good)]) == 0
    assert capsys.readouterr().out == ""
    assert check.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{bad}:1: banned 'goes on' (continue): It goes on.\n"
    assert check.main(["--count", str(bad)]) == 1
    assert capsys.readouterr().out.split()[:2] == ["1", str(bad)]


def test_c_code_in_cython_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "twin.pxd"
    path.write_text(
        'cdef extern from *:\n    """\n    static int gone(void) { return 0; } int anew(void) { return 1; }\n    """\n'
    )
    assert findings(path) == []
