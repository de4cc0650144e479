"""What the agent holds: memory and descriptors per open connection, idle memory; and how soon it is there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from .measuring import Case, Metric, Samples, Scale, Turn
from .peers import Program, agent_command, hub

__all__ = ["CASES"]

PROCESS = Metric("memory in the process", "bytes")
KERNEL = Metric("memory in the kernel", "bytes")
BOTH = Metric("memory with the kernel's", "bytes")
DESCRIPTORS = Metric("descriptors", "")
READY = Metric("time to ready", "ms")
IDLE = Metric("idle memory", "MiB")


def held(mode: str, connections: int) -> Samples:
    """Per connection, of a process that opens so many."""
    command = [sys.executable, "-m", "bench.holder", mode, str(connections)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    return {
        PROCESS: [found["process"] / connections],
        KERNEL: [found["kernel"] / connections],
        BOTH: [(found["process"] + found["kernel"]) / connections],
        DESCRIPTORS: [found["descriptors"] / connections],
    }


def holding(name: str, whole: int, quick: int) -> Case:
    def open_case(scale: Scale) -> contextlib.AbstractContextManager[Mapping[str, Turn]]:
        amount = scale.of(whole, quick)
        return contextlib.nullcontext(
            {"memory": lambda: held("memory", amount), "UDS": lambda: held("UDS", amount)}
        )

    title = "An open, idle connection between tunnel and proxy, mean of " + ("1,000" if whole == 1000 else "thousands")
    return Case(name, title, open_case, [("memory", "UDS")], quick=name == "open connections", rounds=(5, 3))


def started(grpc: str, mode: str) -> Samples:
    """One `run`, from the process's start to its `ready`; then what it holds, idle."""
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
        yield {mode: lambda mode=mode: started(grpc, mode) for mode in ("memory", "UDS")}  # type: ignore[misc]


CASES: Sequence[Case] = (
    holding("open connections", 9_000, 4_000),
    holding("1,000 open connections", 1_000, 1_000),
    Case("start", "`fastpipe-agent run` from the process's start to `ready`, the hub up", open_start,
         [("memory", "UDS")], quick=True, rounds=(7, 4)),
)
