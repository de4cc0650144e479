"""One scenario's namespaces, links, processes and measurements."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import pathlib
import signal
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from . import target
from .link import CLEAR, DOWN, Condition
from .namespaces import Namespace
from .processes import Process, until
from .relay import device
from .user import LATE_S

__all__ = ["CLUSTER", "Agent", "Hub", "Lab", "Requests", "Users", "wait_until_s"]

CLUSTER = "c1"
GRPC_PORT, HTTP_PORT = 8443, 8080
_TOKEN = "chaos-token-of-no-value"
_RELAY_TIMEOUT_S = 20.0

P = TypeVar("P", bound=Process)


class Hub(Process):
    """`fastpipe-agent hub`, with the same ports each time it starts."""

    url = f"http://127.0.0.1:{HTTP_PORT}/{CLUSTER}"

    async def listens(self, times: int = 1) -> None:
        await self.printed("listening http", times)

    def knows_s(self, since_s: float) -> float | None:
        """Seconds from a moment until it logged the loss of an agent."""
        return _after(self.logged_s(r'msg="agent (disconnected|lost)', since_s), since_s)

    def says_why(self, since_s: float) -> bool:
        """Whether that line has a reason."""
        return self.logged_s(r'msg="agent (disconnected|lost).* reason=', since_s) is not None

    def suspects_s(self, since_s: float) -> float | None:
        """Seconds from a moment until it logged that it suspects an agent."""
        return _after(self.logged_s(r"suspect|agent is silent", since_s), since_s)


class Agent(Process):
    """`fastpipe-agent run`."""

    def knows_s(self, since_s: float) -> float | None:
        """Seconds from a moment until it logged the loss of a hub."""
        return _after(self.logged_s(r"trying again in", since_s), since_s)

    def is_up_s(self, since_s: float) -> float | None:
        """Seconds from a moment until it logged a new tunnel."""
        return _after(self.logged_s(r"the tunnel is up", since_s), since_s)


class Users(Process):
    """Users at a hub, in its namespace."""

    async def stop(self) -> Requests:
        """Ask no more, and wait for what is in flight until it would be lost anyway."""
        self.signal(signal.SIGTERM)
        if not await self.ended(LATE_S + 10):
            self.kill()
        return self.requests

    @property
    def requests(self) -> Requests:
        """Requests whose outcome is known."""
        return Requests([line for line in self.lines() if "status" in line])

    def first_success_s(self, since_s: float) -> float | None:
        """Seconds from a moment until the first 200 to a request sent after it."""
        return self.requests.first_success_s(since_s)


@dataclasses.dataclass(frozen=True)
class Requests:
    """Outcomes of requests, each with `began`, `took_s`, `status` (0: no response), `target`, `said`."""

    all: list[dict[str, Any]]

    @property
    def lost(self) -> list[dict[str, Any]]:
        return [one for one in self.all if one["status"] != 200 or one["took_s"] > LATE_S]

    @property
    def unnamed(self) -> list[str]:
        """The texts of those 502 and 504 that do not name the agent."""
        return [one["said"] for one in self.all if one["status"] in (502, 504) and "agent" not in one["said"]]

    @property
    def latest_s(self) -> float:
        """The longest that one took, whatever its status."""
        return max((float(one["took_s"]) for one in self.all), default=0.0)

    def first_success_s(self, since_s: float) -> float | None:
        ends = [one["began"] + one["took_s"] for one in self.all if one["began"] >= since_s and one["status"] == 200]
        return _after(min(ends, default=None), since_s)

    def since(self, since_s: float) -> Requests:
        return Requests([one for one in self.all if one["began"] >= since_s])

    def __str__(self) -> str:
        statuses = collections.Counter(
            "200, late" if one["status"] == 200 else str(one["status"] or "none") for one in self.lost
        )
        kinds = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
        return f"{len(self.lost)} of {len(self.all)}" + (f" ({kinds})" if kinds else "")


def _after(at_s: float | None, since_s: float) -> float | None:
    return None if at_s is None else max(0.0, at_s - since_s)


class Lab:
    """`async with Lab(…)`: namespaces named in `links` (pairs of a hub's and an agent's), joined by a relay.

    memory: how agents join tunnel and proxy. The exit kills and removes everything but the files in `folder`.
    """

    def __init__(
        self,
        prefix: str,
        folder: pathlib.Path,
        links: Sequence[tuple[str, str]] = (("hub", "a1"),),
        *,
        memory: bool = True,
        condition: Condition = CLEAR,
    ) -> None:
        self._prefix, self._folder, self._links = prefix, folder, links
        self._memory, self._first_condition = memory, condition
        self._stack = contextlib.ExitStack()
        self._spaces: dict[str, Namespace] = {}
        self._processes: dict[str, Process] = {}
        self._relay: Process
        self._commands = 0

    async def __aenter__(self) -> Lab:
        try:
            await self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    async def _build(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "tokens").write_text(f"{CLUSTER} {_TOKEN}\n")
        (self._folder / "token").write_text(_TOKEN)
        (self._folder / "tokens").chmod(0o600)
        (self._folder / "token").chmod(0o600)
        for name in ("relay", *dict.fromkeys(name for link in self._links for name in link)):
            self._spaces[name] = space = Namespace(f"{self._prefix}-{name}")
            self._stack.callback(space.close)
        devices = [f"l{number}" for number in range(len(self._links))]
        self._relay = self._start(Process, "relay", "relay", _module("relay", *devices))
        await self._relay.printed('"links"')
        for number, (hub, agent) in enumerate(self._links):
            for end, other, name in (("a", "b", hub), ("b", "a", agent)):
                origin, link = self._spaces["relay"], devices[number]
                self._spaces[name].adopt(device(link, end), origin, _address(number, end), _address(number, other))
            await self.set_link(hub, agent, self._first_condition)

    def _start(self, kind: type[P], space: str, name: str, command: list[str]) -> P:
        process = kind(self._spaces[space], self._folder, name, command)
        self._processes[name] = process
        self._stack.callback(process.close)
        return process

    async def hub(self, name: str = "hub", *arguments: str) -> Hub:
        """Start a hub, or start it again after kill(), and wait until it listens."""
        before = self._processes.get(name)
        times = 1 if before is None else before.output.count("listening http") + 1
        tokens = f"--agent-token-file={self._folder / 'tokens'}"
        addresses = (f"--grpc-address=0.0.0.0:{GRPC_PORT}", f"--http-address=127.0.0.1:{HTTP_PORT}")
        command = [sys.executable, "-m", "agent", "hub", *addresses, tokens, *arguments]
        hub = self._start(Hub, name, name, command)
        await hub.listens(times)
        return hub

    async def agent(self, name: str = "a1", *arguments: str) -> Agent:
        """Start a target, and an agent with a tunnel to each linked hub. Wait until the agent is ready."""
        served = self._start(Process, name, f"{name}-target", _module("target", name))
        await served.printed('"listening"')
        hubs = [
            f"--hub-address={_address(number, 'a')}:{GRPC_PORT}"
            for number, (_, agent) in enumerate(self._links)
            if agent == name
        ]
        command = [
            sys.executable,
            "-m",
            "agent",
            "run",
            *hubs,
            f"--cluster-name={CLUSTER}",
            "--insecure",
            f"--hub-token-file={self._folder / 'token'}",
            f"--route=/=http://127.0.0.1:{target.PORT}",
            "--use-memory-comm" if self._memory else "--no-use-memory-comm",
            *arguments,
        ]
        started = self._start(Agent, name, name, command)
        await started.printed("ready")
        await until(lambda: started.log.count("the tunnel is up") >= len(hubs), _RELAY_TIMEOUT_S)
        return started

    def users(self, name: str, what: str, path: str, *values: float, hub: str = "hub") -> Users:
        """Start users at a hub (user.py)."""
        command = _module("user", what, Hub.url + path, *(str(value) for value in values))
        return self._start(Users, hub, name, command)

    def target(self, agent: str = "a1") -> Process:
        """The target of an agent."""
        return self._processes[f"{agent}-target"]

    async def set_link(self, hub: str, agent: str, to_agent: Condition, to_hub: Condition | None = None) -> float:
        """Put a link in a condition, one for both directions or one each. Returns the moment, as time.time()."""
        link = f"l{self._links.index((hub, agent))}"
        for end, condition in (("b", to_agent), ("a", to_hub or to_agent)):
            command = {"link": link, "to": end, "condition": dataclasses.asdict(condition)}
            self._relay.send(json.dumps(command))
        self._commands += 2
        at_s = time.time()
        await self._relay.printed('"set"', self._commands, _RELAY_TIMEOUT_S)
        return at_s

    async def cut(self, hub: str = "hub", agent: str = "a1") -> float:
        """Drop all packets of a link."""
        return await self.set_link(hub, agent, DOWN)

    async def repair(self, hub: str = "hub", agent: str = "a1") -> float:
        """Put a link back into its first condition."""
        return await self.set_link(hub, agent, self._first_condition)


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"bench.chaos.{name}", *arguments]


def _address(link: int, end: str) -> str:
    """The address of one end. Each link has its own pair of addresses."""
    return f"10.99.{link}.{1 if end == 'a' else 2}"


async def wait_until_s(at_s: float) -> None:
    """Wait until a moment, as time.time()."""
    await asyncio.sleep(max(0.0, at_s - time.time()))
