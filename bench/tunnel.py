"""Compares the tunnel's packets with grpc.aio: the work of `bench_tunnel.py`, each rival in a process, in turns."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from . import bench_tunnel
from .measuring import Case, Metric, Samples, Scale, Turn

__all__ = ["CASES"]

CPU = Metric("CPU per packet", "µs")
SPEED = Metric("throughput", "MB/s", more_is_better=True)


@contextlib.contextmanager
def messages() -> Iterator[str]:
    """A folder with the messages that grpcio's peers need."""
    with tempfile.TemporaryDirectory() as folder:
        proto = bench_tunnel.PROTO
        command = ["-m", "grpc_tools.protoc", f"-I{proto.parent}", f"--python_out={folder}"]
        subprocess.run([sys.executable, *command, f"--grpc_python_out={folder}", str(proto)], check=True)
        yield folder


@contextlib.contextmanager
def echo_hub(kind: str, folder: str) -> Iterator[int]:
    """The port of a hub that sends every packet back. kind: "grpcio", or the name of our twin."""
    process, port = bench_tunnel.start_hub(kind, folder)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def packets(size: int, hub: str, count: int) -> Case:
    """hub: "grpcio", the same for all, or "own": each rival its own kind."""

    @contextlib.contextmanager
    def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(messages())
            kinds = ("grpcio",) if hub == "grpcio" else ("grpcio", "compiled", "python")
            ports = {kind: stack.enter_context(echo_hub(kind, folder)) for kind in kinds}

            def turn(rival: str) -> Samples:
                kind = rival if hub == "own" and rival != "grpc.aio" else "grpcio"
                amount = scale.of(count, count // 5) // (4 if hub == "own" and rival == "grpc.aio" else 1)
                found = bench_tunnel.client(rival, ports[kind], size, amount, folder)
                return {CPU: [found["CPU"]], SPEED: [found["MB/s"]]}

            yield {rival: functools.partial(turn, rival) for rival in rivals}

    amount = f"{size} B" if size < 1024 else f"{size // 1024} KiB"
    who = "a grpcio hub" if hub == "grpcio" else "a hub of the same kind"
    rivals = bench_tunnel.rivals(size, hub)
    ratios = [("compiled", "grpc.aio"), ("python", "grpc.aio"), ("compiled", "python")]
    if "bare" in rivals:
        ratios += [("bare", "grpc.aio"), ("compiled", "bare")]
    title = f"Packets of {amount} sent and received, 64 in flight, {who}"
    return Case(f"tunnel {amount}, {hub} hub", title, open_case, ratios, rounds=(3, 1))


CASES: Sequence[Case] = (
    packets(256, "grpcio", 20_000),
    packets(256, "own", 60_000),
    packets(32768, "grpcio", 8_000),
    packets(32768, "own", 20_000),
)
