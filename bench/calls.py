"""Measures gRPC and HTTP/2 on the whole path: h2load → hub → agent → nginx.

gRPC's rival is nginx with two hops of `grpc_pass` and kept-alive upstream connections, in front of the same server.
HTTP/2's rival is HTTP/1.1 from the user to the same hub and agent, in front of the same files.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from .measuring import Case, Metric, Samples, Scale, Turn
from .processes import START_TIMEOUT_S, Program, agent, free_ports, hub, nginx, program

__all__ = ["CASES"]

RATE = Metric("calls/s", "1/s", more_is_better=True)
REQUEST_RATE = Metric("requests/s", "1/s", more_is_better=True)
FAILURES = Metric("failures", "requests")
# The kernel reports another process's time in ticks of 10 ms.
CPU = Metric("hub's and agent's CPU per request", "µs", resolution=1)

MODES = ("memory", "UDS")
HOPS = "nginx, two hops"
CLIENTS, STREAMS = 50, 10
MANY = ("--memory-comm-max-connections", "2000")
SENT = bytes(range(64))
MESSAGE = b"\0" + len(SENT).to_bytes(4) + SENT
"""One gRPC message, not compressed. It is request and response."""
PATH = "/bench.Service/Unary"


class NginxChain:
    """nginx as a server of one gRPC message, and two more nginx in front of it. Each is one process.

    server, front: the ports of the server and of the first hop.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.server, second, self.front = free_ports(3)
        (folder / "message").write_bytes(MESSAGE)
        answering = f"""
            location / {{ root {folder}; rewrite ^ /message break; error_page 405 =200 /message; }}
            location = /message {{
              root {folder}; types {{ }} default_type application/grpc; add_trailer grpc-status 0;
            }}
        """
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start(folder / "server", self.server, answering)
        for name, port, upstream in (("second", second, self.server), ("front", self.front, second)):
            self._start(folder / name, port, "location / { grpc_pass grpc://upstream; }", upstream)

    def _start(self, folder: pathlib.Path, port: int, locations: str, upstream: int = 0) -> None:
        folder.mkdir()
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in names)
        kept = "keepalive 512; keepalive_requests 100000000;"
        upstreams = f"upstream upstream {{ server 127.0.0.1:{upstream}; {kept} }}" if upstream else ""
        config = folder / "nginx.conf"
        config.write_text(
            f"""
            daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 4096; }}
            http {{
              {temporary}
              access_log off; keepalive_requests 100000000; keepalive_timeout 300s; open_file_cache max=16;
              {upstreams}
              server {{ listen 127.0.0.1:{port} http2 backlog=4096; {locations} }}
            }}
            """
        )
        command = [program("nginx"), "-c", str(config), "-e", f"{folder}/error.log"]
        self._processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            if time.monotonic() > deadline_s or self._processes[-1].poll() is not None:
                raise RuntimeError((folder / "error.log").read_text())
            time.sleep(0.01)

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait(10)


def h2load(url: str, clients: int, streams: int, requests: int, *options: str) -> dict[str, float]:
    """h2load's result: requests_per_s, failures (of connections, and other than 2xx)."""
    amount = ("-c", str(clients), "-m", str(streams), "-n", str(requests))
    command = [program("h2load"), "-t1", *amount, *options, url]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def number(pattern: str) -> float:
        match = re.search(pattern, text)
        if match is None:
            raise RuntimeError(f"h2load printed no {pattern}: {text[-2000:]}")
        return float(match[1])

    return {
        "requests_per_s": number(r"finished in [^,]*, ([\d.]+) req/s"),
        "failures": requests - number(r"status codes: (\d+) 2xx"),
    }


def check(url: str, body: bytes, *options: str) -> None:
    """Request once by nghttp. Raises AssertionError if the response has another body."""
    command = [program("nghttp"), "--timeout=20", *options, url]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.stdout != body:
        raise AssertionError(f"{url}: nghttp ended with {done.returncode}: {done.stdout!r} {done.stderr!r}")


class Calls:
    """Both ways of a gRPC call. processes: hub and agent, by mode."""

    def __init__(self, chain: NginxChain, folder: pathlib.Path, http: str, running: Mapping[str, Sequence[Program]]):
        self._message = folder / "request"
        self._message.write_bytes(MESSAGE)
        self._processes = running
        self._urls = {mode: f"http://{http}/{mode.lower()}{PATH}" for mode in running}
        self._urls[HOPS] = f"http://127.0.0.1:{chain.front}{PATH}"

    def turn(self, variant: str, requests: int) -> Samples:
        url = self._urls[variant]
        fields = ("-H", "content-type: application/grpc", "-H", "te: trailers")
        check(url, MESSAGE, *fields, "-d", str(self._message))
        processes = self._processes.get(variant, ())
        before_s = sum(each.cpu_s() for each in processes)
        found = h2load(url, CLIENTS, STREAMS, requests, *fields, "-d", str(self._message))
        samples: dict[Metric, list[float]] = {RATE: [found["requests_per_s"]], FAILURES: [found["failures"]]}
        if processes:
            samples[CPU] = [(sum(each.cpu_s() for each in processes) - before_s) / requests * 1e6]
        return samples


@contextlib.contextmanager
def open_calls(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chain = stack.enter_context(contextlib.closing(NginxChain(folder)))
        its_hub, grpc, http = stack.enter_context(hub())
        target = f"h2c://127.0.0.1:{chain.server}"
        running = {
            mode: (
                its_hub,
                stack.enter_context(agent(grpc, mode.lower(), target, memory=mode == "memory", options=MANY)),
            )
            for mode in MODES
        }
        calls = Calls(chain, folder, http, running)
        yield {who: functools.partial(calls.turn, who, scale.of(10_000, 5_000)) for who in (*MODES, HOPS)}


def request_turn(
    url: str, body: bytes, processes: Sequence[Program], requests: int, clients: int, streams: int, *options: str
) -> Samples:
    check(url, body)
    before_s = sum(each.cpu_s() for each in processes)
    found = h2load(url, clients, streams, requests, *options)
    spent_s = sum(each.cpu_s() for each in processes) - before_s
    return {
        REQUEST_RATE: [found["requests_per_s"]],
        FAILURES: [found["failures"]],
        CPU: [spent_s / requests * 1e6],
    }


@contextlib.contextmanager
def open_requests(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(nginx())
        its_hub, grpc, http = stack.enter_context(hub())
        running = (its_hub, stack.enter_context(agent(grpc, "c1", server.url, memory=True, options=MANY)))
        turn = functools.partial(
            request_turn, f"http://{http}/c1/1k", server.files["1k"], running, scale.of(20_000, 10_000)
        )
        yield {
            "HTTP/2, 50 × 10": functools.partial(turn, CLIENTS, STREAMS),
            "HTTP/1.1, 50": functools.partial(turn, CLIENTS, 1, "--h1"),
            "HTTP/1.1, 500": functools.partial(turn, CLIENTS * STREAMS, 1, "--h1"),
        }


CASES: Sequence[Case] = (
    Case(
        "gRPC unary",
        f"h2load → hub → agent → nginx, a gRPC message of 64 B there and back, {CLIENTS} clients × {STREAMS} streams",
        open_calls,
        [("memory", HOPS), ("UDS", HOPS), ("memory", "UDS")],
        rounds=(5, 2),
    ),
    Case(
        "HTTP/2 requests",
        f"h2load → hub → agent → nginx, 1 KiB, {CLIENTS} clients × {STREAMS} streams beside as many HTTP/1.1 requests",
        open_requests,
        [("HTTP/2, 50 × 10", "HTTP/1.1, 50"), ("HTTP/2, 50 × 10", "HTTP/1.1, 500")],
        rounds=(5, 2),
    ),
)
