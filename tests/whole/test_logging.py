"""The log of a hub and an agent whose standard error nobody reads, and of users who fail without end: both serve on.

The test holds the pipe and fills it first, so that the first line already finds it full.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

SCRIPT = os.path.join(os.path.dirname(sys.executable), "fastpipe-agent")
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "HUB_", "KUBERNETES_"))}
EXIT_S = 20.0  # generous: a blocked exit would never come


class Process:
    """The console script, whose standard error is a pipe that is full where `blocked`, and else read at once."""

    def __init__(self, *arguments: str, blocked: bool) -> None:
        self.read_end, write_end = os.pipe()
        self.log = b""
        self._reader: threading.Thread | None = None
        self._filled = 0
        if blocked:
            os.set_blocking(write_end, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._filled += os.write(write_end, b"." * 4096)
            os.set_blocking(write_end, True)
        self.process = subprocess.Popen(
            [SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=write_end, text=True, env=ENVIRON
        )
        os.close(write_end)
        if not blocked:
            self.read()

    def read(self) -> None:
        """Read standard error from now on."""

        def run() -> None:
            while data := os.read(self.read_end, 65536):
                self.log += data

        self._reader = threading.Thread(target=run)
        self._reader.start()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def port(self, kind: str) -> int:
        found = re.fullmatch(rf"listening {kind} 127\.0\.0\.1:(\d+)", line := self.line())
        assert found, (line, self.log)
        return int(found[1])

    @property
    def lines(self) -> list[str]:
        """The whole lines of the log so far."""
        return self.log[self._filled :].decode().splitlines() if len(self.log) >= self._filled else []

    def logged(self, pattern: str) -> str:
        """The first line of the log that has this, as soon as it is there."""
        deadline_s = time.monotonic() + EXIT_S
        while True:
            for line in self.lines:
                if re.search(pattern, line):
                    return line
            assert time.monotonic() < deadline_s, (pattern, self.lines[-20:])
            time.sleep(0.01)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(EXIT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        if self._reader is not None:
            self._reader.join()
        os.close(self.read_end)


@pytest.fixture
def started() -> Iterator[type[Process]]:
    """Process, all of whose instances are ended after the test."""
    processes: list[Process] = []

    class Own(Process):
        def __init__(self, *arguments: str, blocked: bool) -> None:
            super().__init__(*arguments, blocked=blocked)
            processes.append(self)

    yield Own
    for process in reversed(processes):
        process.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def fail(port: int, path: str, requests: int, *, method: str = "GET", at_once: int = 50) -> None:
    """Send requests on one connection, and check that each is answered with an error."""
    request = f"{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        stream = client.makefile("rb")
        for start in range(0, requests, at_once):
            count = min(at_once, requests - start)
            client.sendall(request * count)
            for _ in range(count):
                status = stream.readline()
                assert status.startswith((b"HTTP/1.1 502", b"HTTP/1.1 503", b"HTTP/1.1 400")), status
                length = 0
                while (line := stream.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                if method != "HEAD":
                    stream.read(length)


HUB = ("hub", "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")


def agent_of(grpc_port: int, *arguments: str) -> tuple[str, ...]:
    return ("run", "--hub-address", f"127.0.0.1:{grpc_port}", "--cluster-name", "c1", "--insecure",
            "--route", f"/=http://127.0.0.1:{closed_port()}", *arguments)  # fmt: skip


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("mode", ["--use-memory-comm", "--no-use-memory-comm"])
def test_hub_and_agent_serve_and_drain_while_nobody_reads_their_log(
    started: type[Process], mode: str, loop: str
) -> None:
    hub = started(*HUB, "--loop", loop, blocked=True)
    grpc_port, http_port = hub.port("grpc"), hub.port("http")
    agent = started(*agent_of(grpc_port, mode, "--loop", loop), blocked=True)
    assert agent.line() == "ready"
    for method in ("GET", "POST", "PUT", "DELETE"):
        fail(http_port, "/c1/x", 500, method=method)
    fail(http_port, "/nosuch/x", 500)
    assert agent.end() == 0
    assert hub.end() == 0


def test_the_first_equal_lines_are_logged_and_the_others_counted(started: type[Process]) -> None:
    """51,204 failing requests on one connection were 7.4 MB of log."""
    hub = started(*HUB, blocked=False)
    hub.port("grpc")
    http_port = hub.port("http")
    begun_s = time.monotonic()
    fail(http_port, "/nosuch/x", 51_204)
    took_s = time.monotonic() - begun_s
    hub.logged(r"repeated=\d+")
    assert hub.end() == 0
    found = [line for line in hub.lines if "no agent is connected" in line]
    assert 10 <= len(found) <= 10 + took_s + 3, found[-1]
    assert len(found) + sum(int(line.rpartition("repeated=")[2]) for line in found if "repeated=" in line) == 51_204
    assert "repeated" not in "".join(found[:10])


def test_lines_that_found_no_room_are_counted_when_the_reader_comes_back(started: type[Process]) -> None:
    port = closed_port()
    proxy = started(
        "proxy", "--listen", "127.0.0.1:0", "--route", f"/=http://127.0.0.1:{port}", "--log-level", "debug",
        blocked=True,
    )  # fmt: skip
    listening = proxy.port("proxy")
    for _ in range(11_000):  # a line each: DEBUG is not limited
        socket.create_connection(("127.0.0.1", listening), timeout=30).close()
    fail(listening, "/", 10)
    proxy.read()
    line = proxy.logged("log lines dropped")
    dropped = int(re.search(r" lines=(\d+)", line)[1])  # type: ignore[index]  # it is there
    ended = sum("client connection ended" in each for each in proxy.lines)
    assert dropped > 0
    assert ended + dropped >= 11_000
    fail(listening, "/", 1, method="PATCH")
    proxy.logged("method=PATCH")
    assert proxy.end() == 0


def test_a_traceback_gets_out_before_the_process_ends(started: type[Process]) -> None:
    hub = started("hub", "--grpc-address", "127.0.0.1:0", "--http-address", "192.0.2.1:0", blocked=False)
    assert hub.process.wait(EXIT_S) == 1
    hub.logged("http_address: 192.0.2.1:0 can't be listened on")


def test_an_error_at_start_ends_the_process_though_nobody_reads(started: type[Process]) -> None:
    hub = started("hub", "--grpc-address", "127.0.0.1:0", "--http-address", "192.0.2.1:0", blocked=True)
    assert hub.process.wait(EXIT_S) == 1


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", ">/dev/full", ">&-", "2>/dev/full >&2"])
def test_a_service_runs_without_somewhere_to_write(redirected: str) -> None:
    port = closed_port()
    command = f'exec "$0" proxy --listen 127.0.0.1:{port} --route /=http://127.0.0.1:{closed_port()} {redirected}'
    process = subprocess.Popen(["sh", "-c", command, SCRIPT], env=ENVIRON)
    try:
        deadline_s = time.monotonic() + EXIT_S
        while True:
            try:
                fail(port, "/", 100)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline_s
                assert process.poll() is None
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(EXIT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_standard_output_that_nobody_reads_stops_nobody() -> None:
    """One pipe for both, as in many containers, filled by the log before `listening` is written."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, b"." * 4096)
    os.set_blocking(write_end, True)
    port = closed_port()
    process = subprocess.Popen(
        [SCRIPT, "proxy", "--listen", f"127.0.0.1:{port}", "--route", f"/=http://127.0.0.1:{closed_port()}"],
        stdout=write_end, stderr=write_end, env=ENVIRON,
    )  # fmt: skip
    os.close(write_end)
    try:
        deadline_s = time.monotonic() + EXIT_S
        while True:
            try:
                fail(port, "/", 100)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(EXIT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(read_end)
