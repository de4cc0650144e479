"""The time limit of coroutine tests. `tests/conftest.py` ends them before pytest-timeout would."""

from __future__ import annotations

from typing import Any

import pytest

from .limits import scaled


@pytest.fixture
def allowed_s(request: pytest.FixtureRequest) -> float:
    """The time limit of this test in the suite's conftest, in seconds."""
    plugins: set[Any] = request.config.pluginmanager.get_plugins()
    (conftest,) = (plugin for plugin in plugins if hasattr(plugin, "allowed_s"))
    return float(conftest.allowed_s(request.node))


@pytest.mark.timeout(1234)
def test_a_tests_own_limit_counts(allowed_s: float) -> None:
    assert allowed_s == scaled(1234)


def test_a_test_without_one_has_the_runs(allowed_s: float, request: pytest.FixtureRequest) -> None:
    limit_s = float(request.config.getoption("timeout") or request.config.getini("timeout"))
    assert allowed_s == scaled(limit_s)
