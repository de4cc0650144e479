"""Measures TCP through the tunnel beside HTTP through it: the same client, hub, agent and target, in one run.

    HTTP        curl → hub → agent → nginx
    fixed port  curl → a listener of the hub → agent → nginx
    CONNECT     curl → the hub's HTTP port, by CONNECT → agent → nginx
    forward     curl → `fastpipe-agent forward` → the hub, by CONNECT → agent → nginx

The round trip is 64 B to a target that sends them back. Beside it is a kept-alive request for 1 KiB from nginx.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping

from .measuring import Case, Metric, Samples, Scale, Turn
from .processes import Nginx, Program, agent, command, free_ports, hub, nginx, program
from .whole_path import MODES, Asking

__all__ = ["CASES"]

SPEED = Metric("throughput", "MB/s", more_is_better=True)
TRIP = Metric("round trip", "µs")
HUB_CPU_MS = Metric("hub's CPU", "ms", resolution=10)
AGENT_CPU_MS = Metric("agent's CPU", "ms", resolution=10)

HTTP, FIXED, CONNECT, FORWARD = WAYS = ("HTTP", "fixed port", "CONNECT", "forward")
PIECE = bytes(range(64))
TRIPS, WARM_TRIPS = 4000, 300


class Ways:
    """A hub with fixed ports, an agent for each mode, `forward`, nginx and an echo.

    files, echoes: the address of nginx and of the echo, by mode and way.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        server = stack.enter_context(nginx())
        echo = Program([sys.executable, "-m", "bench.echo_target"])
        stack.callback(echo.close)
        targets = (f"127.0.0.1:{server.port}", f"127.0.0.1:{echo.wait_for('listening ')}")
        ports = iter(free_ports(4 * len(MODES)))
        fixed = {mode: [next(ports) for _ in targets] for mode in MODES}
        local = {mode: [next(ports) for _ in targets] for mode in MODES}
        listeners = [
            f"--listener=127.0.0.1:{port}={mode.lower()}/{target}"
            for mode, found in fixed.items()
            for port, target in zip(found, targets, strict=True)
        ]
        self.hub, grpc, self.http = stack.enter_context(hub(options=listeners))
        self.server: Nginx = server
        self.agents: dict[str, Program] = {}
        allow = [f"--connect-allow={target}" for target in targets]
        for mode in MODES:
            running = agent(grpc, mode.lower(), server.url, memory=mode == "memory", options=allow)
            self.agents[mode] = stack.enter_context(running)
            forwards = [f"{port}={target}" for port, target in zip(local[mode], targets, strict=True)]
            where = ("--hub", f"http://{self.http}", "--cluster", mode.lower(), "--log-level", "warning")
            forward = Program(command("forward", *where, *forwards))
            stack.callback(forward.close)
            for _ in forwards:
                forward.wait_for("listening forward ")
        self.echo = targets[1]
        self._ports = {FIXED: fixed, FORWARD: local}

    def download(self, mode: str, way: str, *, megabytes: int) -> Samples:
        """A file by curl. Raises AssertionError where not all of it came."""
        name, proxy = ("1g" if megabytes == 1024 else "1m"), []
        if way == HTTP:
            url = f"http://{self.http}/{mode.lower()}/{name}"
        elif way == CONNECT:
            url = f"{self.server.url}/{name}"
            proxy = ["-p", "-x", f"http://{mode.lower()}:@{self.http}"]
        else:
            url = f"http://127.0.0.1:{self._ports[way][mode][0]}/{name}"
        before = self.hub.cpu_s(), self.agents[mode].cpu_s()
        form = "%{http_code} %{size_download} %{time_total}"
        curl = [program("curl"), "-s", "-m", "120", "-o", "/dev/null", "-w", form, *proxy, url]
        said = subprocess.run(curl, capture_output=True, text=True, check=True).stdout
        status, size, took_s = said.split()
        if (status, int(size)) != ("200", megabytes << 20):
            raise AssertionError(f"{mode}, {way}: {said}")
        return {
            SPEED: [(megabytes << 20) / float(took_s) / 1e6],
            HUB_CPU_MS: [(self.hub.cpu_s() - before[0]) * 1e3],
            AGENT_CPU_MS: [(self.agents[mode].cpu_s() - before[1]) * 1e3],
        }

    def round_trips(self, mode: str, way: str, *, trips: int) -> Samples:
        """Round trips one after another, on one connection that has carried some before."""
        if way == HTTP:
            left = 0

            def go_on() -> bool:
                nonlocal left
                left -= 1
                return left >= 0

            with Asking(f"http://{self.http}/{mode.lower()}/1k") as asking:
                left = WARM_TRIPS
                asking.while_(go_on)
                left, began_s = trips, time.perf_counter()
                asking.while_(go_on)
                return {TRIP: [(time.perf_counter() - began_s) / trips * 1e6]}
        with self._echo(mode, way) as sock:
            self._trips(sock, WARM_TRIPS)
            began_s = time.perf_counter()
            self._trips(sock, trips)
            return {TRIP: [(time.perf_counter() - began_s) / trips * 1e6]}

    @contextlib.contextmanager
    def _echo(self, mode: str, way: str) -> Iterator[socket.socket]:
        host, _, port = self.http.rpartition(":")
        where = (host, int(port)) if way == CONNECT else ("127.0.0.1", self._ports[way][mode][1])
        with socket.create_connection(where, 20) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if way == CONNECT:
                head = f"CONNECT {self.echo} HTTP/1.1\r\nHost: x\r\nTunnel-Cluster: {mode.lower()}\r\n\r\n"
                sock.sendall(head.encode())
                answer = sock.recv(65536)
                if not (answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n")):
                    raise AssertionError(f"CONNECT: {answer!r}")
            yield sock

    @staticmethod
    def _trips(sock: socket.socket, trips: int) -> None:
        for _ in range(trips):
            sock.sendall(PIECE)
            received = sock.recv(4096)
            while len(received) < len(PIECE):
                more = sock.recv(4096)
                if not more:
                    raise AssertionError("the connection ended")
                received += more
            if received != PIECE:
                raise AssertionError(f"expected 64 B, received {received!r}")


@contextlib.contextmanager
def ways() -> Iterator[Ways]:
    with contextlib.ExitStack() as stack:
        yield Ways(stack)


def name_of(mode: str, way: str) -> str:
    return f"{mode}, {way}"


@contextlib.contextmanager
def open_download(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    shared = scale.shared.get(ways)
    yield {
        name_of(mode, way): functools.partial(shared.download, mode, way, megabytes=scale.of(1024, 1))
        for mode in MODES
        for way in WAYS
    }


@contextlib.contextmanager
def open_trips(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    shared = scale.shared.get(ways)
    yield {
        name_of(mode, way): functools.partial(shared.round_trips, mode, way, trips=scale.of(TRIPS, TRIPS // 4))
        for mode in MODES
        for way in WAYS
    }


AGAINST_HTTP = [(name_of(mode, way), name_of(mode, HTTP)) for mode in MODES for way in WAYS if way != HTTP]

CASES = (
    Case(
        "forwarded 1 GiB",
        "1 GiB from nginx, by TCP and by HTTP through hub and agent",
        open_download,
        AGAINST_HTTP,
        rounds=(5, 1),
        room="forwarded",
    ),
    Case(
        "forwarded 64 B",
        "64 B there and back by TCP, beside a kept-alive request for 1 KiB, through hub and agent",
        open_trips,
        AGAINST_HTTP,
        rounds=(5, 2),
        room="forwarded",
    ),
)
