"""Two API servers with TLS, and the way to start them within a coroutine test."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hypothesis  # noqa: F401  (by now, or it warns of trio's random generator where it is imported later)
import pytest
import trustme

from .api_server import ApiServer
from .gate import ALICE, BOB, Gate


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def hub_authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def clusters(authority: trustme.CA, hub_authority: trustme.CA, tmp_path: Path) -> Callable[..., Any]:
    """A context manager with both API servers running: (managed, hub)."""

    @contextlib.asynccontextmanager
    async def run() -> AsyncIterator[tuple[ApiServer, ApiServer]]:
        managed, hub = ApiServer(authority, tmp_path, "managed"), ApiServer(hub_authority, tmp_path, "hub")
        await managed.start()
        await hub.start()
        managed.users["alice"] = ALICE
        hub.users["bob"] = BOB
        try:
            yield managed, hub
        finally:
            await managed.stop()
            await hub.stop()

    return run


@pytest.fixture
def gated(clusters: Callable[..., Any]) -> Callable[..., Any]:
    """A context manager with a Gate in front of both. config: fields of AgentConfig."""

    @contextlib.asynccontextmanager
    async def run(**config: Any) -> AsyncIterator[Gate]:
        async with clusters() as (managed, hub), Gate(managed, hub, **config) as gate:
            yield gate

    return run
