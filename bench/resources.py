"""Measures the agent's resources: memory and descriptors per open connection, idle memory, and the time to ready."""

from __future__ import annotations

import contextlib
import functools
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from .measuring import Case, Metric, Samples, Scale, Turn
from .processes import Program, agent_command, hub

__all__ = ["CASES", "GROWTH", "growing"]

# An interpreter allocates memory in arenas of 1 MiB. One arena is 105 bytes for each of 10,000 connections.
PROCESS = Metric("memory in the process", "bytes", resolution=128)
KERNEL = Metric("memory in the kernel", "bytes", resolution=128)
BOTH = Metric("memory with the kernel's", "bytes", resolution=128)
DESCRIPTORS = Metric("descriptors", "")
READY = Metric("time to ready", "ms")
IDLE = Metric("idle memory", "MiB")
# The kernel counts resident pages by batches of 64 (256 KiB) for each kind, anonymous pages and those of files.
GROWTH = Metric("memory grown at its peak", "MiB", resolution=0.5)

SPARE_DESCRIPTORS = 200
"""Of a process that holds connections: its loop, its libraries, the target's."""


def slab_bytes() -> int:
    """/proc/meminfo's Slab: what the kernel's objects take, sockets and their buffers among them, all processes'."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Slab:"))


def status_bytes(name: str) -> int:
    """A size of this process, as the kernel counts it: `VmRSS` now, `VmHWM` at its peak."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{name}:"))


@contextlib.contextmanager
def growing() -> Iterator[list[float]]:
    """Append to the list, at exit, by how many MiB this process grew at its peak within the block."""
    growth: list[float] = []
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak (proc(5))
    before = status_bytes("VmRSS")
    yield growth
    growth.append((status_bytes("VmHWM") - before) / (1 << 20))


def holders_for(connections: int) -> int:
    """How many processes: over UDS a connection has two descriptors, and the hard limit is for one process."""
    room = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE_DESCRIPTORS
    return max(1, -(-2 * connections // max(room, 1)))


def held(mode: str, connections: int) -> Samples:
    """Measure each of so many open connections, spread over the same number of processes in either mode."""
    processes = holders_for(connections)
    command = [sys.executable, "-m", "bench.connection_holder", mode, str(connections // processes)]
    with contextlib.ExitStack() as stack:
        holders = [stack.enter_context(contextlib.closing(Program(command))) for _ in range(processes)]
        for holder in holders:
            holder.wait_for("ready")
        before, found = slab_bytes(), []
        for holder in holders:
            holder.tell("open")
            found.append(json.loads(holder.wait_for("")))
        kernel = slab_bytes() - before
    process, descriptors = (sum(each[name] for each in found) for name in ("process", "descriptors"))
    opened = connections // processes * processes
    return {
        PROCESS: [process / opened],
        KERNEL: [kernel / opened],
        BOTH: [(process + kernel) / opened],
        DESCRIPTORS: [descriptors / opened],
    }


def holding(name: str, whole: int, quick: int) -> Case:
    def open_case(scale: Scale) -> contextlib.AbstractContextManager[Mapping[str, Turn]]:
        amount = scale.of(whole, quick)
        return contextlib.nullcontext({mode: functools.partial(held, mode, amount) for mode in ("memory", "UDS")})

    count = f"{whole:,}" if quick == whole else f"{whole:,} (quick run: {quick:,})"
    title = f"An open, idle connection between tunnel and proxy, mean of {count}"
    return Case(name, title, open_case, [("memory", "UDS")], quick=quick < whole, rounds=(3, 3))


def started(grpc: str, mode: str) -> Samples:
    """Measure one `run`: the time from the process's start to `ready`, then its idle memory."""
    running = Program(agent_command(grpc, "c1", "http://127.0.0.1:9", memory=mode == "memory"))
    try:
        running.wait_for("ready")
        took_s = time.perf_counter() - running.began
        time.sleep(0.2)
        return {READY: [took_s * 1e3], IDLE: [running.pss_bytes() / (1 << 20)]}
    finally:
        running.close()


@contextlib.contextmanager
def open_start(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    with hub() as (_, grpc, _):
        started(grpc, "memory")  # files are in the page cache, bytecode is written
        yield {mode: functools.partial(started, grpc, mode) for mode in ("memory", "UDS")}


CASES: Sequence[Case] = (
    holding("open connections", 10_000, 4_000),
    holding("1,000 open connections", 1_000, 1_000),
    Case(
        "start",
        "`fastpipe-agent run` from the process's start to `ready`, the hub up",
        open_start,
        [("memory", "UDS")],
        quick=True,
        rounds=(7, 4),
    ),
)
