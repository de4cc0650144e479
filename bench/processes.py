"""The processes that are measured, or measured with: nginx, the console script's hub and agent, wrk, curl."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

import psutil
import trustme

__all__ = ["SMALL", "Nginx", "Program", "agent", "agent_command", "free_ports", "hub", "load", "nginx", "program"]

START_TIMEOUT_S = 20.0
PACKAGES = {"h2load": "nghttp2-client", "nghttp": "nghttp2-client", "nginx": "nginx-light"}
"""Debian's packages of programs whose names differ."""
SMALL = bytes(range(32, 96)) * 16  # 1 KiB


def program(name: str) -> str:
    """The path of a program. Raises FileNotFoundError with what to install."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise FileNotFoundError(f"{name} is needed for this case: apt-get install {PACKAGES.get(name, name)}")
    return found


class Program:
    """A running process whose standard output is read line by line. Its last lines of standard error are kept."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.began = time.perf_counter()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
        )
        self.pid = self._process.pid
        self._watched = psutil.Process(self.pid)

    def wait_for(self, beginning: str) -> str:
        """The rest of the first line that begins so. Raises RuntimeError where the process ends, or takes too long."""
        killer = threading.Timer(START_TIMEOUT_S, self._process.kill)
        killer.start()
        try:
            assert self._process.stdout is not None
            for line in self._process.stdout:
                if line.startswith(beginning):
                    return line[len(beginning) :].strip()
        finally:
            killer.cancel()
        self._errors.seek(0)
        raise RuntimeError(f"{self._process.args!r} ended: {self._errors.read()[-2000:]!r}")

    def tell(self, line: str) -> None:
        """Give it a line on its standard input."""
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def cpu_s(self) -> float:
        """User and system time so far."""
        times = self._watched.cpu_times()
        return float(times.user + times.system)

    def pss_bytes(self) -> float:
        """Its proportional set size, bytes."""
        return float(self._watched.memory_full_info().pss)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._errors.close()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def read_through(file: pathlib.Path) -> None:
    """Read the whole file, so that the kernel has its pages. Otherwise only the first rival waits for them."""
    buffer = bytearray(1 << 20)
    with open(file, "rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


class Nginx:
    """Debian's nginx, one process: `/1k`, `/1m`, `/1g` (sparse), and the same below `/varied/`.

    Responses below `/varied/` have a random X-Request-Id.
    files: contents of the first two files, by name.
    url, tls_url: its address, in plaintext and over TLS.
    ca_file: the CA of its certificate, PEM.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.files = {"1k": SMALL, "1m": os.urandom(1 << 20)}
        www = folder / "www"
        www.mkdir()
        for name, content in self.files.items():
            (www / name).write_bytes(content)
        with open(www / "1g", "wb") as file:
            file.truncate(1 << 30)
        read_through(www / "1g")
        self.port, tls_port = free_ports(2)
        self.url, self.tls_url = f"http://127.0.0.1:{self.port}", f"https://127.0.0.1:{tls_port}"
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {folder}/{name};\n" for name in names)
        config = folder / "nginx.conf"
        config.write_text(
            f"""
            daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 4096; }}
            http {{
              {temporary}
              access_log off; sendfile on; tcp_nopush on; default_type text/plain;
              keepalive_requests 100000000; keepalive_timeout 300s; open_file_cache max=16;
              server {{
                listen 127.0.0.1:{self.port} backlog=4096; listen 127.0.0.1:{tls_port} ssl backlog=4096; root {www};
                ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
                ssl_session_cache shared:sessions:1m;
                location /varied/ {{ alias {www}/; add_header X-Request-Id $request_id; }}
              }}
            }}
            """
        )
        command = [program("nginx"), "-c", str(config), "-e", f"{folder}/error.log"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if time.monotonic() > deadline_s or self._process.poll() is not None:
                raise RuntimeError((folder / "error.log").read_text())
            time.sleep(0.01)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@contextlib.contextmanager
def nginx() -> Iterator[Nginx]:
    with tempfile.TemporaryDirectory() as folder:
        server = Nginx(pathlib.Path(folder))
        try:
            yield server
        finally:
            server.close()


def command(*arguments: str, tuned: Sequence[str] = ()) -> list[str]:
    """The command line of `fastpipe-agent`. tuned: constants and their values, as `bench.with_constants` takes them."""
    return [sys.executable, "-m", *(("bench.with_constants", *tuned) if tuned else ()), "agent", *arguments]


@contextlib.contextmanager
def hub(*, options: Sequence[str] = (), tuned: Sequence[str] = ()) -> Iterator[tuple[Program, str, str]]:
    """The console script's hub: (it, its gRPC address, its HTTP address)."""
    ports = ("--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--log-level", "warning")
    running = Program(command("hub", *ports, *options, tuned=tuned))
    try:
        yield running, running.wait_for("listening grpc "), running.wait_for("listening http ")
    finally:
        running.close()


def agent_command(
    grpc: str, cluster: str, route: str, *, memory: bool, options: Sequence[str] = (), tuned: Sequence[str] = ()
) -> list[str]:
    """`fastpipe-agent run` for one mode. route: the URL that / goes to."""
    mode = "--use-memory-comm" if memory else "--no-use-memory-comm"
    where = ("--hub-address", grpc, "--cluster-name", cluster, "--insecure", "--route", f"/={route}")
    return command("run", *where, mode, "--log-level", "error", *options, tuned=tuned)


@contextlib.contextmanager
def agent(
    grpc: str, cluster: str, route: str, *, memory: bool, options: Sequence[str] = (), tuned: Sequence[str] = ()
) -> Iterator[Program]:
    """The console script's agent, ready."""
    running = Program(agent_command(grpc, cluster, route, memory=memory, options=options, tuned=tuned))
    try:
        running.wait_for("ready")
        yield running
    finally:
        running.close()


def load(url: str, clients: int, seconds: float, *, close: bool = False) -> dict[str, float]:
    """wrk's result: requests, requests_per_s, mb_per_s, p50_ms, p99_ms, failures (of sockets, and other than 2xx).

    mb_per_s: of all received bytes, those of unfinished responses included.
    """
    command = [program("wrk"), "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "--latency"]
    if close:
        command += ["-H", "Connection: close"]
    done = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 60, check=True)
    text = done.stdout

    def number(pattern: str) -> float:
        match = re.search(pattern, text)
        return float(match[1]) if match else 0.0

    def milliseconds(percent: int) -> float:
        match = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", text)
        return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]] if match else 0.0

    units = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
    transfer = re.search(r"Transfer/sec:\s+[\d.]+([KMG]?B)", text)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failures = number(r"Non-2xx or 3xx responses: (\d+)") + (sum(map(int, sockets.groups())) if sockets else 0)
    return {
        "requests": number(r"(\d+) requests in"),
        "requests_per_s": number(r"Requests/sec:\s+([\d.]+)"),
        "mb_per_s": number(r"Transfer/sec:\s+([\d.]+)") * units[transfer[1]] / 1e6 if transfer else 0.0,
        "p50_ms": milliseconds(50),
        "p99_ms": milliseconds(99),
        "failures": failures,
    }
