"""Opens connections and reports what they add to the process.

    python -m bench.connection_holder memory|UDS CONNECTIONS

It prints `ready`. A line on its standard input makes it open the connections, with one request and response on each.
Then it prints a JSON object with `process` (bytes of proportional set size) and `descriptors`. It holds the connections
until its input closes.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import resource
import sys

import psutil
import uvloop

from agent.messages import Target

from .hop import KEPT, Client, Clients, Packets, Receiver, in_process, stack
from .processes import SMALL

SETTLE_S = 0.2


def state() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    return {"process": process.memory_full_info().pss, "descriptors": process.num_fds()}


class Holding(Clients):
    """Open connections. Each client sends one request on its own connection and keeps it open."""

    def __init__(self, receiver: Receiver, packets: Packets, connections: int) -> None:
        super().__init__(
            receiver,
            packets,
            itertools.count(1),
            requests=itertools.repeat(KEPT % b"1k"),
            expected_bytes=len(SMALL),
            close=False,
        )
        self.waiting: list[Client] = [OneRequest(self) for _ in range(connections + 1)]
        packets.clients = dict.fromkeys(range(1, connections + 2), self.waiting[0])  # it grows no more while counted

    async def open(self, connections: int) -> None:
        for _ in range(connections):
            self.answered = self.loop.create_future()
            self.left = 1
            self.waiting.pop().start()
            await self.answered
            self.samples.clear()


class OneRequest(Client):
    """Is not sent again."""

    __slots__ = ()

    def start(self) -> None:
        if self._of.left:
            super().start()
        else:
            assert isinstance(self._of, Holding)
            self._of.answered.set_result(None)


async def main(mode: str, connections: int) -> None:
    target = Target("http://in-process/1k", connect=in_process)
    async with stack(mode, lambda _: target) as made:
        holding = Holding(made.manager, made.packets, connections)
        await holding.open(1)
        await asyncio.sleep(SETTLE_S)
        before = state()
        print("ready", flush=True)
        sys.stdin.readline()
        await holding.open(connections)
        await asyncio.sleep(SETTLE_S)
        after = state()
        if made.manager.open_connections != connections + 1:
            raise AssertionError(f"{made.manager.open_connections} connections are open")
        print(json.dumps({name: after[name] - before[name] for name in before}), flush=True)
        sys.stdin.readline()
        os._exit(0)  # what it holds is the machine's to take back


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
