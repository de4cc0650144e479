"""`fastpipe-agent` as child processes, driven from a test's event loop without blocking it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from ..limits import scaled

ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "KUBERNETES_"))}
TIMEOUT_S = scaled(20.0)

LIMITED = """
import os, resource, runpy, sys
limit, leaked = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
null = [os.open(os.devnull, os.O_RDONLY) for _ in range(leaked)]
sys.argv[:] = ["agent", *sys.argv[3:]]
runpy.run_module("agent", run_name="__main__")
"""
"""A program that starts the command with few descriptors."""

_clusters = itertools.count(1)


class Process:
    """One command, its standard output read line by line, its log kept in a file.

    descriptors: its hard limit (`ulimit -Hn`), 0 for this process's. leaked: how many of them are open and used for
    nothing.
    """

    def __init__(
        self,
        log: pathlib.Path,
        *arguments: str,
        cwd: pathlib.Path | None = None,
        environ: dict[str, str] = ENVIRON,
        descriptors: int = 0,
        leaked: int = 0,
    ) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *(["-c", LIMITED, str(descriptors), str(leaked)] if descriptors else ["-m", "agent"]),
                    *arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environ,
                cwd=cwd,
                text=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def line(self) -> str:
        assert self.process.stdout is not None
        found = self.process.stdout.readline().rstrip("\n")
        assert found, self.log
        return found

    async def logged(self, text: str, times: int = 1) -> None:
        """Wait until the log has a text, so many times."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.log.count(text) < times:
            assert time.monotonic() < deadline_s, f"{text!r} isn't {times} times in:\n{self.log}"
            assert self.process.poll() is None or self.log.count(text) >= times, self.log
            await asyncio.sleep(0.005)

    async def ends(self, timeout_s: float = TIMEOUT_S) -> int:
        """The exit code, once it has ended by itself."""
        deadline_s = time.monotonic() + timeout_s
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline_s, f"it didn't end within {timeout_s} s:\n{self.log}"
            await asyncio.sleep(0.005)
        return code

    def signal(self, name: str) -> None:
        self.process.send_signal(signal.Signals[name])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class HubProcess(Process):
    """Our hub on free ports."""

    def __init__(self, log: pathlib.Path, *arguments: str, **process: Any) -> None:
        super().__init__(log, "hub", "--grpc-address=127.0.0.1:0", "--http-address=127.0.0.1:0", *arguments, **process)
        self.grpc_port = self._port("grpc")
        self.http_port = self._port("http")

    def _port(self, kind: str) -> int:
        found = re.fullmatch(rf"listening {kind} 127\.0\.0\.1:([0-9]+)", self.line())
        assert found
        return int(found[1])


class AgentProcess(Process):
    """An agent with its own cluster. `url`: the cluster's root at the hub."""

    def __init__(self, directory: pathlib.Path, hub: Any, *arguments: str, **process: Any) -> None:
        self.cluster = f"r{os.getpid()}-{next(_clusters)}"
        self.url = f"http://127.0.0.1:{hub.http_port}/{self.cluster}"
        super().__init__(
            directory / f"{self.cluster}.log",
            "run",
            f"--hub-address=127.0.0.1:{hub.grpc_port}",
            f"--cluster-name={self.cluster}",
            "--insecure",
            *arguments,
            **process,
        )


@contextlib.asynccontextmanager
async def running_agent(
    directory: pathlib.Path, hub: Any, *arguments: str, **process: Any
) -> AsyncIterator[AgentProcess]:
    """An agent that is ready. If it still runs behind the block, it is killed. process: arguments of Process."""
    agent = AgentProcess(directory, hub, *arguments, **process)
    try:
        assert await asyncio.to_thread(agent.line) == "ready"
        yield agent
    finally:
        agent.close()


class Scraped:
    """A page of metrics, read by Prometheus' own parser: `page[name, *values]`, in the order of the labels' names."""

    def __init__(self, text: str) -> None:
        self.samples: dict[tuple[str, ...], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                name = sample.name.removeprefix("fastpipe_agent_")
                self.samples[name, *sample.labels.values()] = sample.value

    def __getitem__(self, key: str | tuple[str, ...]) -> float:
        return self.samples[(key,) if isinstance(key, str) else key]

    def get(self, *key: str) -> float:
        """0 where there is no such sample yet."""
        return self.samples.get(key, 0.0)


async def scrape(health_port: int) -> Scraped:
    async with aiohttp.ClientSession() as client:
        answer = await client.get(f"http://127.0.0.1:{health_port}/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        return Scraped(await answer.text())
