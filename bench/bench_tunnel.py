"""Measures CPU and throughput of packets at the agent's end of a tunnel: ours, its Python twin, and grpc.aio.

    python bench/bench_tunnel.py [--rounds N] [--quick]

For small packets, "bare" is the floor, a uvloop protocol that sends prepared bytes. Each client runs in a separate
process and keeps 64 packets in flight, one on each of 64 connections. The hub sends every packet back. The client
checks it and sends the next. CPU is that of the client's process, all threads. Each hub is a process too. Every rival
runs with the same grpcio hub and with our hub. Compare the ratios rather than the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, cast

import uvloop

ROOT = pathlib.Path(__file__).parent.parent
PEER = ROOT / "tests" / "tunnel" / "grpcio_peer.py"
PROTO = ROOT / "tests" / "tunnel" / "tunnel.proto"
CONNECTIONS = 64
WARM_UP = 0.1  # of the packets, before the clock starts
GOALS = {  # (what, size, hub, of, over): at least
    ("CPU", 256, "grpcio", "compiled", "grpc.aio"): 8.0,
    ("CPU", 256, "grpcio", "python", "grpc.aio"): 2.0,
    ("CPU", 32768, "grpcio", "compiled", "grpc.aio"): 3.0,
    ("MB/s", 32768, "grpcio", "compiled", "grpc.aio"): 0.8,
    ("MB/s", 32768, "own", "compiled", "grpc.aio"): 2.0,
}


class Run:
    """Counts what comes back, and takes the time between the end of the warm-up and the last packet."""

    def __init__(self, size: int, count: int) -> None:
        self.payload = os.urandom(size)
        self.count = count
        self.sent = self.received = 0
        self.begin = int(count * WARM_UP)
        self.began = (0.0, 0.0)
        self.result: dict[str, float] = {}

    def came(self, data: bytes | memoryview) -> bool:
        """Count a returned packet. Returns whether it is the last."""
        assert len(data) == len(self.payload)
        assert self.payload.startswith(data)  # one memcmp, for bytes and views
        return self.counted(1)

    def counted(self, packets: int) -> bool:
        """Count returned packets. Returns whether they are the last."""
        self.received += packets
        if not self.began[1] and self.received >= self.begin:
            self.begin = self.received
            self.began = time.process_time(), time.perf_counter()
        elif self.received == self.count:
            cpu_s, took_s = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
            n = self.count - self.begin
            self.result = {"CPU": cpu_s / n * 1e6, "MB/s": n * len(self.payload) / took_s / 1e6}
            return True
        return False


def read(window: Any, data: bytes | memoryview) -> None:
    """Return a packet's credit at once. Without credit, a connection stalls after 256 KiB."""
    if window is not None:
        assert window.arrived(len(data)), "more than its credit"
        window.unread(0)


async def ours(run: Run, port: int) -> None:
    from agent.tunnel.client import HubEndpoint, TunnelClient

    done = asyncio.Event()

    class Receiver:
        def __init__(self, tunnel: Any) -> None:
            self.tunnel = tunnel
            self.writes: list[Any] = [None]
            self.windows: list[Any] = [None]

        def start(self) -> None:
            for conn_id in range(1, CONNECTIONS + 1):
                self.windows.append(self.tunnel.receive_window(conn_id))
                self.writes.append(self.tunnel.outbound(conn_id, int, int).write)
                self.writes[-1](run.payload)
            run.sent = CONNECTIONS

        def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
            assert code == 0, error_message
            read(self.windows[conn_id], data)
            if run.came(data):
                done.set()
            elif run.sent < run.count:
                run.sent += 1
                self.writes[conn_id](run.payload)

        def tunnel_lost(self, error: Exception | None) -> None:
            done.set()

    client = TunnelClient(
        HubEndpoint("127.0.0.1", port),
        cluster_name="bench",
        open_receiver=Receiver,
        on_ready=lambda tunnel: cast(Receiver, tunnel.receiver).start(),
    )
    task = asyncio.ensure_future(client.run())
    await done.wait()
    task.cancel()


async def grpc_aio(run: Run, port: int) -> None:
    import grpc
    import tunnel_pb2
    import tunnel_pb2_grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = tunnel_pb2_grpc.TunnelServiceStub(channel).Tunnel(metadata=[("cluster-name", "bench")])
        for conn_id in range(1, CONNECTIONS + 1):
            await call.write(tunnel_pb2.Packet(conn_id=conn_id, data=run.payload))
        run.sent = CONNECTIONS
        async for packet in call:
            assert packet.code == 0
            if run.came(packet.data):
                break
            if run.sent < run.count:
                run.sent += 1
                await call.write(tunnel_pb2.Packet(conn_id=packet.conn_id, data=run.payload))
        call.cancel()


async def bare(run: Run, port: int) -> None:
    """The floor: the same bytes with nothing between them and the event loop.

    It searches the received bytes for payloads, and sends as many prepared packets. Flow control is one large window.
    It ignores everything else. So all packets in flight must fit the hub's first window (64 KiB).
    """
    import h2.connection
    import h2.settings

    from agent.http2.frames import frame
    from agent.tunnel.grpc import request_headers
    from agent.tunnel.packet import encode_packet

    connection = h2.connection.H2Connection()
    window = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}
    connection.local_settings = h2.settings.Settings(client=True, initial_values=window)
    connection.initiate_connection()
    connection.increment_flow_control_window(2**31 - 1 - 65535)
    connection.send_headers(1, request_headers("http", "bench", "bare", [("cluster-name", "bench")]))
    message = encode_packet(1, 0, run.payload)
    packet = frame(0, 0, 1, message)
    assert len(packet) * CONNECTIONS < 2**16
    mark = run.payload[:16]
    done = asyncio.Event()

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            self.rest = b""
            transport.write(connection.data_to_send() + packet * CONNECTIONS)
            run.sent = CONNECTIONS

        def data_received(self, data: bytes) -> None:
            self.rest += data
            came = self.rest.count(mark)
            self.rest = self.rest[-15:]  # a mark may be cut
            if came and run.counted(came):
                done.set()
            elif run.sent < run.count:
                more = min(came, run.count - run.sent)
                run.sent += more
                self.transport.write(packet * more)

    transport, _ = await asyncio.get_running_loop().create_connection(Bare, "127.0.0.1", port)
    await done.wait()
    transport.abort()


async def own_hub() -> None:
    """Our hub. It sends every packet back, and exits when its standard input closes."""
    from agent.tunnel.server import TunnelServer

    class Echo:
        def __init__(self, tunnel: Any, metadata: Any) -> None:
            self.tunnel = tunnel
            self.writes: dict[int, Any] = {}
            self.windows: dict[int, Any] = {}

        def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
            write = self.writes.get(conn_id)
            if write is None:
                write = self.writes[conn_id] = self.tunnel.outbound(conn_id, int, int).write
                self.windows[conn_id] = self.tunnel.receive_window(conn_id)
            read(self.windows[conn_id], data)
            write(data)

        def tunnel_lost(self, error: Exception | None) -> None:
            pass

    server = TunnelServer(open_tunnel=Echo)
    listening = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
    print(json.dumps({"port": listening.sockets[0].getsockname()[1]}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    listening.close()
    await server.close()


def rivals(size: int, hub: str) -> tuple[str, ...]:
    """The rivals for packets of this size with this kind of hub."""
    return ("compiled", "python", "grpc.aio", *(("bare",) if size * CONNECTIONS < 2**16 and hub == "grpcio" else ()))


def environment(twin: str, messages: str) -> dict[str, str]:
    return os.environ | {"FASTPIPE_NO_EXTENSIONS": str(int(twin == "python")), "PYTHONPATH": messages}


def start_hub(kind: str, messages: str) -> tuple[subprocess.Popen[str], int]:
    command = [str(PEER), messages, "hub", "--echo"] if kind == "grpcio" else [__file__, "--hub"]
    hub = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(kind, messages),
    )
    assert hub.stdout is not None
    return hub, json.loads(hub.stdout.readline())["port"]


def client(
    rival: str, port: int, size: int, count: int, messages: str, *, tuned: Sequence[str] = ()
) -> dict[str, float]:
    """tuned: constants that are other there, as `bench.with_constants` takes them."""
    arguments = ["--client", rival, str(port), str(size), str(count)]
    program = ("-m", "bench.with_constants", *tuned, "bench.bench_tunnel") if tuned else (__file__,)
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=environment(rival, messages),
        check=True,
        stdout=subprocess.PIPE,
        timeout=300,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def run_client(rival: str, port: int, size: int, count: int) -> None:
    run = Run(size, count)
    if rival in ("compiled", "python"):
        from agent.http2.framing import IMPLEMENTATION

        assert rival.startswith({"c": "compiled", "python": "python"}[IMPLEMENTATION]), "this twin isn't the one"
    uvloop.run({"grpc.aio": grpc_aio, "bare": bare}.get(rival, ours)(run, port))
    assert run.received == run.count
    print(json.dumps(run.result))


def main(rounds: int, scale: float) -> None:
    with tempfile.TemporaryDirectory() as messages:
        command = ["-m", "grpc_tools.protoc", f"-I{PROTO.parent}", f"--python_out={messages}"]
        subprocess.run([sys.executable, *command, f"--grpc_python_out={messages}", str(PROTO)], check=True)
        cases = [(256, "grpcio", 20_000), (256, "own", 100_000), (32768, "grpcio", 10_000), (32768, "own", 30_000)]
        hubs = {kind: start_hub(kind, messages) for kind in ("grpcio", "compiled", "python")}
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, median of {rounds} rounds")
        for size, hub, count in cases:
            found: dict[str, list[dict[str, float]]] = {rival: [] for rival in rivals(size, hub)}
            for _ in range(rounds):
                for rival, results in found.items():
                    peer = "grpcio" if hub == "grpcio" or rival == "grpc.aio" else rival
                    n = int(count * scale / (4 if rival == "grpc.aio" and hub == "own" else 1))
                    results.append(client(rival, hubs[peer][1], size, n, messages))
            print(f"\n{size} B, sent and received; hub: {'each rival its own kind' if hub == 'own' else hub}")
            medians = {
                (rival, what): statistics.median(result[what] for result in results)
                for rival, results in found.items()
                for what in ("CPU", "MB/s")
            }
            for rival in found:
                cpu, rate = medians[rival, "CPU"], medians[rival, "MB/s"]
                better, faster = medians["grpc.aio", "CPU"] / cpu, rate / medians["grpc.aio", "MB/s"]
                print(f"  {rival:10} {cpu:8.1f} µs CPU {rate:9.1f} MB/s   {better:5.1f}x less  {faster:5.2f}x as fast")
            for (what, of_size, of_hub, of, over), least in GOALS.items():
                if (of_size, of_hub) == (size, hub):
                    ratio = medians[of, what] / medians[over, what]
                    ratio = 1 / ratio if what == "CPU" else ratio
                    verdict = "" if ratio >= least else " MISSED"
                    print(f"  {of} {what} vs {over}: {ratio:.1f}x, goal {least:g}x{verdict}")
        for process, _ in hubs.values():
            process.terminate()
            process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a fifth of the packets")
    parser.add_argument("--client", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--hub", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        run_client(given.client[0], *map(int, given.client[1:]))
    elif given.hub:
        uvloop.run(own_hub())
    else:
        main(given.rounds, 0.2 if given.quick else 1.0)
