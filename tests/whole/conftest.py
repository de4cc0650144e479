"""The whole path, hub → tunnel → manager → carrier → proxy → target, in every combination that a test asks for.

`whole` runs a test with our hub and with a base hub's (`base_hub.py`), over UDS and over memory.
Coroutine tests also run on both loops. A mark narrows it:
`@pytest.mark.parametrize("hub_kind", ["base"], indirect=True)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .whole_calls import CertificateFiles, Peer
from .whole_cluster import Cluster
from .whole_grpc import GrpcClient, Tunnel
from .whole_log import Process as LoggingProcess
from .whole_peers import BaseHubProcess, Nginx, free_port


@pytest.fixture(scope="session")
def base_hub_process() -> Iterator[BaseHubProcess]:
    process = BaseHubProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def tunnel() -> Iterator[Tunnel]:
    """Calls of grpcio's client, which runs in one child process for all tests."""
    client = GrpcClient()
    yield client.tunnel
    client.close()


@pytest.fixture(scope="session")
def grpc_files(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    return CertificateFiles(tmp_path_factory.mktemp("grpc"))


@pytest.fixture(scope="session")
def grpc_server(grpc_files: CertificateFiles) -> Iterator[Peer]:
    """grpcio's server of a service."""
    server = Peer("server", grpc_files.key, grpc_files.cert)
    yield server
    server.close()


@pytest.fixture(scope="session")
def grpc_client() -> Iterator[Peer]:
    """grpcio's client of that service. Each test has its own channel."""
    client = Peer("client")
    yield client
    client.close()


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    server = Nginx(tmp_path_factory.mktemp("nginx"))
    yield server
    server.close()


@pytest.fixture(params=["ours", "base"])
def hub_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["uds", "memory"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cluster(hub_kind: str, mode: str, base_hub_process: BaseHubProcess) -> Cluster:
    return Cluster(hub_kind, mode, base_hub_process)


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.fixture
def started() -> Iterator[type[LoggingProcess]]:
    """A `whole_log.Process`, all of whose instances are ended after the test."""
    processes: list[LoggingProcess] = []

    class Own(LoggingProcess):
        def __init__(self, *arguments: str, blocked: bool) -> None:
            super().__init__(*arguments, blocked=blocked)
            processes.append(self)

    yield Own
    for process in reversed(processes):
        process.close()
