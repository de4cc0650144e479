"""The console script whose standard error is a pipe that the test holds, and users whose requests fail."""

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

from ..limits import scaled

SCRIPT = os.path.join(os.path.dirname(sys.executable), "fastpipe-agent")
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "HUB_", "KUBERNETES_"))}
EXIT_S = scaled(20.0)  # generous: a blocked exit would never come


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


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


def fail(port: int, path: str, requests: int, *, method: str = "GET", at_once: int = 50) -> None:
    """Send requests on one connection, and check that each gets an error."""
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
    return (
        "run",
        "--hub-address",
        f"127.0.0.1:{grpc_port}",
        "--cluster-name",
        "c1",
        "--insecure",
        "--route",
        f"/=http://127.0.0.1:{closed_port()}",
        *arguments,
    )
