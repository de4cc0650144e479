"""Two API servers, and agents as processes between them and a hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from ..policy.api_server import ApiServer
from .rollout_processes import ENVIRON, AgentProcess, HubProcess, running_agent

BESIDE = pathlib.Path(__file__).parent


class HoldingApiServer(ApiServer):
    """Releases `arrived` for each `/hold`, and responds to it after `go_on` is released."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.arrived, self.go_on = asyncio.Semaphore(0), asyncio.Semaphore(0)

    async def _anything(self, request: web.Request) -> web.Response:
        if request.path == "/hold":
            self.arrived.release()
            await self.go_on.acquire()
        return await super()._anything(request)


class Cluster:
    """Two API servers, and what an agent needs to be between them and a hub."""

    def __init__(self, managed: HoldingApiServer, hub: ApiServer, directory: pathlib.Path, our_hub: HubProcess) -> None:
        self.managed, self.hub, self._directory, self._our_hub = managed, hub, directory, our_hub

    def write(self, **settings: Any) -> pathlib.Path:
        """The agent's file, with these settings and no others."""
        path = self._directory / "agent.toml"
        path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        return path

    @contextlib.asynccontextmanager
    async def agent(self, *arguments: str, **settings: Any) -> AsyncIterator[AgentProcess]:
        """A ready agent whose file has these settings. It starts in the folder of `own_parts`."""
        path = self.write(**settings)
        environ = {**ENVIRON, "OWN_API_SERVER": self.managed.url, "OWN_CA_FILE": str(self.managed.ca_file)}
        async with running_agent(
            self._directory, self._our_hub, f"--config={path}", *arguments, cwd=BESIDE, environ=environ
        ) as agent:
            yield agent

    @property
    def grpc_port(self) -> int:
        """Where agents dial the hub."""
        return self._our_hub.grpc_port

    def kubernetes(self) -> dict[str, str]:
        return {"kubeconfig": self.managed.kubeconfig(), "hub_kubeconfig": self.hub.kubeconfig()}
