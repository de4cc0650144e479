"""Measures the whole path of a user's request: wrk or curl → hub → agent → nginx, all in separate processes.

One hub has two agents, one in each mode. The load goes to one after the other. Client, hub, agent and nginx share the
machine's cores, so requests/s measure all four together. The agent's own cost is its CPU per request.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence

from .measuring import Case, Metric, Samples, Scale, Turn, percentile
from .processes import SMALL, Nginx, Program, agent, hub, load, nginx, program

__all__ = ["ALONE", "CASES", "CLIENTS", "MODES", "PATHS", "Path"]

RATE = Metric("requests/s", "1/s", more_is_better=True)
P50 = Metric("latency", "ms")
P99 = Metric("latency p99", "ms")
FAILURES = Metric("failures", "requests")
# The kernel reports another process's time in ticks of 10 ms.
AGENT_CPU = Metric("agent's CPU per request", "µs", resolution=1)
HUB_CPU = Metric("hub's CPU per request", "µs", resolution=1)
SPEED = Metric("throughput", "MB/s", more_is_better=True)
AGENT_CPU_MS = Metric("agent's CPU", "ms", resolution=10)
ALONE_P99 = Metric("latency p99 alone", "ms")
BESIDE_P99 = Metric("latency p99 beside", "ms")
TIMES = Metric("p99 beside over p99 alone", "×")

MODES = ("memory", "UDS")
ALONE = "nginx alone"
PAST = "memory, the download past the tunnel"
CLIENTS = (1, 10, 50, 200, 500)
ALONE_S = 1.0
SIZES = {"1k": "1 KiB", "1m": "1 MiB"}


class Path:
    """A hub, agents by mode, and nginx. address: by variant, where the way to its files begins."""

    def __init__(self, hub: Program, http: str, agents: Mapping[str, Program], server: Nginx, target: str) -> None:
        self.hub, self.agents, self.content = hub, agents, server.files
        self.address = {mode: f"http://{http}/{mode.lower()}" for mode in agents} | {ALONE: target}
        for mode in agents:
            load(f"{self.address[mode]}/1k", 50, 1)  # connections and pools are made before

    def check(self, variant: str, name: str) -> None:
        """Fetch a file once. Raises AssertionError where it isn't what nginx serves."""
        with urllib.request.urlopen(f"{self.address[variant]}/{name}", timeout=20) as answer:
            if answer.read() != self.content[name]:
                raise AssertionError(f"{variant}: /{name} arrived changed")

    def under_load(self, variant: str, name: str, clients: int, seconds: int, *, close: bool) -> Samples:
        """wrk's figures, and what each process spent."""
        self.check(variant, name)
        own = self.agents.get(variant)
        before = (own.cpu_s(), self.hub.cpu_s()) if own else (0.0, 0.0)
        found = load(f"{self.address[variant]}/{name}", clients, seconds, close=close)
        samples: dict[Metric, list[float]] = {
            RATE: [found["requests_per_s"]],
            P50: [found["p50_ms"]],
            P99: [found["p99_ms"]],
            FAILURES: [found["failures"]],
        }
        if own and found["requests"]:
            samples[AGENT_CPU] = [(own.cpu_s() - before[0]) / found["requests"] * 1e6]
            samples[HUB_CPU] = [(self.hub.cpu_s() - before[1]) / found["requests"] * 1e6]
        if name == "1m":
            samples[SPEED] = [found["mb_per_s"]]
        self.check(variant, name)
        return samples

    def download(self, variant: str) -> Samples:
        """1 GiB by curl, after 1 MiB whose every byte is looked at."""
        self.check(variant, "1m")
        own = self.agents.get(variant)
        before = own.cpu_s() if own else 0.0
        speed = self.downloaded(variant, self.start_download(variant))
        samples = {SPEED: [speed]}
        if own:
            samples[AGENT_CPU_MS] = [(own.cpu_s() - before) * 1e3]
        return samples

    def start_download(self, variant: str) -> subprocess.Popen[str]:
        """curl, which fetches 1 GiB."""
        form = "%{http_code} %{size_download} %{time_total}"
        command = [program("curl"), "-s", "-m", "120", "-o", "/dev/null", "-w", form, f"{self.address[variant]}/1g"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def downloaded(self, variant: str, curl: subprocess.Popen[str]) -> float:
        """MB/s, when it has ended. Raises AssertionError where not all of it came."""
        said, _ = curl.communicate()
        status, size, took_s = said.split()
        if (curl.returncode, status, int(size)) != (0, "200", 1 << 30):
            raise AssertionError(f"{variant}: curl ended with {curl.returncode}: {said}")
        return (1 << 30) / float(took_s) / 1e6

    def beside_download(self, variant: str, way: str) -> Samples:
        """Request 1 KiB repeatedly on one connection: for a second alone, then while 1 GiB downloads.

        way: the variant that carries the download. Past the tunnel, the download and the requests share only the
        processors.
        """
        with Asking(f"{self.address[variant]}/1k") as asking:
            until_s = time.perf_counter() + ALONE_S
            alone = percentile(asking.while_(lambda: time.perf_counter() < until_s), 0.99)
            with self.start_download(way) as curl:
                try:
                    latencies = asking.while_(lambda: curl.poll() is None)
                finally:
                    curl.kill()  # has ended, unless the asking failed
                speed = self.downloaded(way, curl)
        beside = percentile(latencies, 0.99)
        return {ALONE_P99: [alone], BESIDE_P99: [beside], TIMES: [beside / alone], SPEED: [speed]}


class Asking:
    """One kept-alive connection that requests 1 KiB after each response. It uses a bare socket for exact times."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname
        self._request = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        self._socket = socket.create_connection((parts.hostname, parts.port), 20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Asking:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def while_(self, go_on: Callable[[], bool]) -> list[float]:
        """The ms of each response. Raises AssertionError for a wrong response or none, TimeoutError after 20 s."""
        took_ms = []
        while go_on():
            began_s, answer = time.perf_counter(), b""
            self._socket.sendall(self._request)
            while not answer.endswith(SMALL):
                more = self._socket.recv(65536)
                answer += more
                if not more or len(answer) > 4 * len(SMALL):
                    raise AssertionError(f"expected 1 KiB, received {answer[:200]!r}")
            took_ms.append((time.perf_counter() - began_s) * 1e3)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise AssertionError(f"expected 1 KiB, received {answer[:200]!r}")
        return took_ms


@contextlib.contextmanager
def path(*, tls: bool) -> Iterator[Path]:
    """tls: between agent and nginx."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(nginx())
        running, grpc, http = stack.enter_context(hub())
        target, options = (server.tls_url, ("--target-ca-file", str(server.ca_file))) if tls else (server.url, ())
        agents = {
            mode: stack.enter_context(agent(grpc, mode.lower(), target, memory=mode == "memory", options=options))
            for mode in MODES
        }
        yield Path(running, http, agents, server, target)


PATHS = {tls: functools.partial(path, tls=tls) for tls in (False, True)}
"""The resources that cases share, by whether the target speaks TLS."""


def loaded(
    name: str, clients: int, *, close: bool = False, tls: bool = False, quick: bool = False, rounds: tuple[int, int]
) -> Case:
    """name: of the file, "1k" or "1m". tls: between agent and nginx. Beside nginx alone in the plainest."""

    @contextlib.contextmanager
    def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
        seconds = 2 if clients == 50 and scale.quick else 1
        if name == "1m":  # clients get equal shares, so nearly all responses complete at the same time
            seconds += clients // 150
        shared = scale.shared.get(PATHS[tls])
        variants = MODES if scale.quick or close or tls else (*MODES, ALONE)
        yield {who: functools.partial(shared.under_load, who, name, clients, seconds, close=close) for who in variants}

    size, many = SIZES[name], f"{clients} client{'s' * (clients > 1)}"
    how = ", a connection per request" * close
    text = f"whole path {size}, {many}{how}{', TLS target' * tls}"
    title = f"wrk → hub → agent → nginx{' over TLS' * tls}, {size}, {many}{how or ', kept-alive'}"
    return Case(text, title, open_case, [("memory", "UDS")], quick=quick, rounds=rounds, room="whole path")


@contextlib.contextmanager
def open_download(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    shared = scale.shared.get(PATHS[False])
    yield {who: functools.partial(shared.download, who) for who in (MODES if scale.quick else (*MODES, ALONE))}


@contextlib.contextmanager
def open_beside(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    shared = scale.shared.get(PATHS[False])
    yield {
        **{who: functools.partial(shared.beside_download, who, who) for who in (*MODES, ALONE)},
        PAST: functools.partial(shared.beside_download, "memory", ALONE),
    }


CASES: Sequence[Case] = (
    *(loaded("1k", clients, quick=clients in (1, 50, 500), rounds=(5, 2)) for clients in CLIENTS),
    Case(
        "whole path 1 GiB download",
        "curl → hub → agent → nginx, 1 GiB",
        open_download,
        [("memory", "UDS")],
        quick=True,
        rounds=(5, 3),
        room="whole path",
    ),
    Case(
        "whole path 1 KiB beside a download",
        "1 KiB, again and again, while 1 GiB comes over the same tunnel",
        open_beside,
        [("memory", "UDS"), ("memory", PAST)],
        rounds=(5, 3),
        room="whole path",
    ),
    *(
        loaded(name, clients, close=close, tls=tls, rounds=(2, 1))
        for tls, name, close in itertools.product((False, True), SIZES, (False, True))
        if (tls, name, close) != (False, "1k", False)
        for clients in CLIENTS
    ),
)
