"""The agent as a real process, between real hubs and targets: switched over, back, and ended."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "whole"))

from rollout_processes import HubProcess
from whole_peers import BaseHubProcess, free_port


@pytest.fixture(scope="session")
def base_hub() -> Iterator[BaseHubProcess]:
    process = BaseHubProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def our_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path_factory.mktemp("hub") / "log")
    yield process
    process.close()


@pytest.fixture(params=["ours", "base"])
def hub(
    request: pytest.FixtureRequest, our_hub: HubProcess, base_hub: BaseHubProcess
) -> BaseHubProcess | HubProcess:
    """A hub with `grpc_port` and `http_port`; clusters of tests don't see each other."""
    return our_hub if request.param == "ours" else base_hub


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    return free_port()
