"""Measures the cost of 10,000 idle users at a hub and its agent, and of ten active users beside them.

    Users ──TCP connections──► hub ══ one tunnel ══ agent ──► target

    python -m bench.users target                     serves 1 KiB at /1k, and at /watch without ever finishing
    python -m bench.users PORT PATH CONNECTIONS      the users' end: each opens a connection and requests PATH

Hub, agent and target are separate processes. The users are as many processes as their descriptors need. An idle user
has received a response. The hub holds the user's connection, and the agent holds none for it. A watching user has an
unfinished response, like a watch or a log stream. Hub, tunnel, agent and target hold it. The users read commands from
their standard input: `open`, or the number of requests to send, ten at a time. They print `done` after each.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import uvloop

from .measuring import Case, Metric, Samples, Scale, Turn
from .processes import SMALL, Program, agent, hub
from .resources import SPARE_DESCRIPTORS

__all__ = ["CASES"]

# An interpreter allocates memory in arenas of 1 MiB. One arena is 105 bytes for each of 10,000 connections.
MEMORY = Metric("agent's memory per connection", "bytes", resolution=128)
HUB_MEMORY = Metric("hub's memory per connection", "bytes", resolution=128)
# The kernel reports another process's time in ticks of 10 ms.
CPU = Metric("agent's CPU per request", "µs", resolution=1)
HUB_CPU = Metric("hub's CPU per request", "µs", resolution=1)
USERS = 10_000
ACTIVE = 10
A_PROCESS = 5_000  # users in each
OPENING = 50  # at once
WARM_UP = 0.1  # of the requests, before CPU time is looked at
SETTLE_S = 0.5
KEEP = ("--limits-keep-alive-s", "600")  # nobody is to be left for idling while the others come
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(SMALL), SMALL)
WATCH = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(SMALL), SMALL)


class Target(asyncio.Protocol):
    """One read is one request here."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(WATCH if data.startswith(b"GET /watch ") else PLAIN)


async def target_end() -> None:
    server = await asyncio.get_running_loop().create_server(Target, "127.0.0.1", 0, backlog=4096)
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


class User(asyncio.Protocol):
    """One connection. It sends a request at a time and checks each response."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._ends = SMALL + b"\r\n" * request.startswith(b"GET /c1/watch ")
        self._answered: asyncio.Future[None] | None = None
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self) -> None:
        """Raises AssertionError for another response, ConnectionError if the connection closes."""
        self._answer, self._answered = b"", asyncio.get_running_loop().create_future()
        self._transport.write(self._request)
        await self._answered
        self._answered = None
        head, _, body = self._answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 ") or not body.endswith(self._ends) or len(body) > len(self._ends) + 8:
            raise AssertionError(f"expected 1 KiB, received {self._answer[:200]!r}")
        self._answer = b""

    def data_received(self, data: bytes) -> None:
        if self._answered is None:
            raise AssertionError(f"received {data[:200]!r} without a request")
        self._answer += data
        whole = self._answer.endswith(self._ends) or not self._answer.startswith(b"HTTP/1.1 200 ")
        if whole and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error or ConnectionResetError("the hub closed a connection"))


async def users_end(port: int, path: str, connections: int) -> None:
    """Until its standard input ends. Raises AssertionError where one of its connections didn't stay."""
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    users = [User(request) for _ in range(connections)]

    async def opens(some: Sequence[User]) -> None:
        for user in some:
            await loop.create_connection(functools.partial(lambda made: made, user), "127.0.0.1", port)
            await user.ask()

    async def asks(user: User, count: int) -> None:
        for _ in range(count):
            await user.ask()

    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if line == "open":
            await asyncio.gather(*(opens(users[first::OPENING]) for first in range(OPENING)))
        else:
            await asyncio.gather(*(asks(user, int(line) // ACTIVE) for user in users[:ACTIVE]))
        assert not any(user.lost for user in users), "the hub closed a connection"
        print("done", flush=True)


def tell(program: Program, line: object) -> None:
    program.tell(str(line))
    program.wait_for("done")


def measured_with(mode: str, path: str, still: int, requests: int) -> Samples:
    """mode: "memory" or "UDS". path: what so many others have asked for, who keep still while ten send the requests."""
    options = ("--memory-comm-max-connections", str(2 * USERS), *KEEP)
    with contextlib.ExitStack() as stack:

        def start(*arguments: object) -> Program:
            command = [sys.executable, "-m", "bench.users", *map(str, arguments)]
            return stack.enter_context(contextlib.closing(Program(command)))

        target = f"http://127.0.0.1:{start('target').wait_for('listening ')}"
        its_hub, grpc, http = stack.enter_context(hub(options=KEEP))
        its_agent = stack.enter_context(agent(grpc, "c1", target, memory=mode == "memory", options=options))
        port = http.rpartition(":")[2]
        asking = start(port, "/c1/1k", ACTIVE)
        tell(asking, "open")
        tell(asking, int(requests * WARM_UP))
        processes = -(-still // A_PROCESS)
        others = [start(port, path, len(range(first, still, processes))) for first in range(processes)]
        before = its_agent.pss_bytes(), its_hub.pss_bytes()
        for program in others:
            tell(program, "open")
        found: dict[Metric, list[float]] = {}
        if still:
            time.sleep(SETTLE_S)
            found[MEMORY] = [(its_agent.pss_bytes() - before[0]) / still]
            found[HUB_MEMORY] = [(its_hub.pss_bytes() - before[1]) / still]
            tell(asking, int(requests * WARM_UP))
        spent = its_agent.cpu_s(), its_hub.cpu_s()
        tell(asking, requests)
        found[CPU] = [(its_agent.cpu_s() - spent[0]) / requests * 1e6]
        found[HUB_CPU] = [(its_hub.cpu_s() - spent[1]) / requests * 1e6]
        for program in others:
            tell(program, 0)  # whether all of them are still there
        return found


@contextlib.contextmanager
def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_DESCRIPTORS
    if most < USERS:
        raise RuntimeError(f"{USERS} connections need a hard limit (ulimit -Hn) of {USERS + SPARE_DESCRIPTORS}")
    requests = scale.of(20_000, 10_000)
    yield {
        f"{mode}, {who}": functools.partial(measured_with, mode, path, count, requests)
        for mode, who, path, count in (
            ("memory", "10 open", "", 0),
            ("memory", "idle", "/c1/1k", USERS - ACTIVE),
            ("memory", "watching", "/c1/watch", USERS - ACTIVE),
            ("UDS", "10 open", "", 0),
            ("UDS", "watching", "/c1/watch", min(USERS, most // 3) - ACTIVE),
        )
    }


CASES: Sequence[Case] = (
    Case(
        "10,000 users",
        "10,000 users' connections, idle or watching, and requests for 1 KiB by ten users beside them. "
        "Over UDS at most a third of `ulimit -Hn` watch.",
        open_case,
        [
            ("memory, idle", "memory, 10 open"),
            ("memory, watching", "memory, 10 open"),
            ("UDS, watching", "UDS, 10 open"),
        ],
        rounds=(2, 1),
    ),
)

if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.argv[1] == "target":
        uvloop.run(target_end())
    else:
        uvloop.run(users_end(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
