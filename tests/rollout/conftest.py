"""The agent as a real process, between real hubs and targets: switched over, back, and ended."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trustme

from ..whole.whole_peers import BaseHubProcess, free_port
from .rollout_clusters import Cluster, HoldingApiServer
from .rollout_processes import HubProcess


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
def hub(request: pytest.FixtureRequest, our_hub: HubProcess, base_hub: BaseHubProcess) -> BaseHubProcess | HubProcess:
    """A hub with `grpc_port` and `http_port`. Tests do not see each other's clusters."""
    return our_hub if request.param == "ours" else base_hub


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.fixture
def cluster(tmp_path: pathlib.Path, our_hub: HubProcess) -> Any:
    """A context manager with both API servers running: a Cluster."""

    @contextlib.asynccontextmanager
    async def run() -> AsyncIterator[Cluster]:
        ca = trustme.CA()
        managed, hub = HoldingApiServer(ca, tmp_path, "managed"), HoldingApiServer(ca, tmp_path, "hub")
        await managed.start()
        await hub.start()
        managed.users["alice"] = {"username": "alice"}
        hub.users["bob"] = {"username": "bob", "groups": ["system:masters"]}
        try:
            yield Cluster(managed, hub, tmp_path, our_hub)
        finally:
            await managed.stop()
            await hub.stop()

    return run
