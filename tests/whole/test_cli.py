"""The installed console script as its users run it: hub, agent and proxy as processes, curl in front, nginx behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from .whole_peers import BIG, BIG_SHA256, BaseHubProcess, Nginx, program

SCRIPT = str(pathlib.Path(sys.executable).parent / "fastpipe-agent")
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "KUBERNETES_"))}


class Process:
    """The console script with these arguments. `log` is the text of its standard error."""

    def __init__(self, log: pathlib.Path, *arguments: str) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [SCRIPT, *arguments], stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRON
            )

    def line(self) -> str:
        """The next line of standard output, its line end included. "" at the end."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def port(self, kind: str) -> int:
        found = re.fullmatch(rf"listening {kind} 127\.0\.0\.1:(\d+)\n", self.line())
        assert found, self.log
        return int(found[1])

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_logged(self, text: str) -> None:
        deadline_s = time.monotonic() + 20
        while text not in self.log:
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """(exit code, the rest of standard output), once it has ended by itself."""
        assert self._process.stdout is not None
        rest = self._process.stdout.read()
        return self._process.wait(20), rest

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


Start = Callable[..., Process]


@pytest.fixture
def processes(tmp_path: pathlib.Path) -> Iterator[Start]:
    """Starts a Process with these arguments, and kills it after the test."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(tmp_path / f"log{len(started)}", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def curl(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program("curl"), "-sS", "--max-time", "20", "--noproxy", "*", *arguments],
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )


class SlowTarget:
    """Accepts one request at a time, reads its head, and responds when the test releases it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(20)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def take(self) -> socket.socket:
        """A connection whose request's head has been read."""
        connection, _ = self._listening.accept()
        connection.settimeout(20)
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(65536)
        return connection

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def slow_target() -> Iterator[SlowTarget]:
    target = SlowTarget()
    yield target
    target.close()


class Curl(threading.Thread):
    """curl in its own thread, for requests that the test releases."""

    def __init__(self, *arguments: str) -> None:
        super().__init__()
        self._arguments = arguments
        self.start()

    def run(self) -> None:
        self._answer = curl(*self._arguments)

    def answer(self) -> subprocess.CompletedProcess[bytes]:
        self.join()
        return self._answer


@contextlib.contextmanager
def hub_and_agent(processes: Start, mode: str, target: str) -> Iterator[tuple[str, Process, Process]]:
    """(the hub's URL for users, the hub, the agent), both ready. Each of their lines is compared exactly."""
    hub = processes("hub", "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0")
    grpc_port, http_port = hub.port("grpc"), hub.port("http")
    memory = ["--use-memory-comm"] if mode == "memory" else []
    agent = processes(
        "run",
        "--hub-address",
        f"127.0.0.1:{grpc_port}",
        "--cluster-name",
        "c1",
        "--insecure",
        *memory,
        "--route",
        f"/={target}",
    )
    assert agent.line() == "ready\n", agent.log
    yield f"http://127.0.0.1:{http_port}/c1", hub, agent


def test_requests_through_hub_and_agent_and_a_clean_end(processes: Start, mode: str, nginx: Nginx) -> None:
    with hub_and_agent(processes, mode, nginx.url) as (url, hub, agent):
        assert curl(f"{url}/hello").stdout == b"hello from nginx\n"
        assert hashlib.sha256(curl(f"{url}/big").stdout).hexdigest() == BIG_SHA256
        up = curl("-f", "-T", "-", f"{url}/up/cli", stdin=BIG)
        assert up.returncode == 0, up.stderr
        assert hashlib.sha256((nginx.directory / "www" / "up" / "cli").read_bytes()).hexdigest() == BIG_SHA256
        for process in (agent, hub):
            process.signal(signal.SIGTERM)
            assert process.end() == (0, ""), process.log
            assert "Traceback" not in process.log


def test_sigterm_lets_the_request_in_flight_finish(processes: Start, mode: str, slow_target: SlowTarget) -> None:
    with hub_and_agent(processes, mode, slow_target.url) as (url, _, agent):
        waiting = Curl(f"{url}/")
        connection = slow_target.take()
        agent.signal(signal.SIGTERM)
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nwhole\n")
            answer = waiting.answer()
            assert (answer.returncode, answer.stdout) == (0, b"whole\n"), answer.stderr
        assert agent.end() == (0, ""), agent.log


def test_second_sigterm_aborts(processes: Start, mode: str, slow_target: SlowTarget) -> None:
    with hub_and_agent(processes, mode, slow_target.url) as (url, _, agent):
        waiting = Curl("-o", "/dev/null", "-w", "%{http_code}", f"{url}/")
        with slow_target.take():
            agent.signal(signal.SIGTERM)
            agent.wait_logged("draining")
            agent.signal(signal.SIGTERM)
            assert agent.end() == (1, ""), agent.log
            assert waiting.answer().stdout in (b"502", b"503")


def test_killed_agent_is_a_clean_failure_for_its_clients(processes: Start, mode: str, slow_target: SlowTarget) -> None:
    with hub_and_agent(processes, mode, slow_target.url) as (url, hub, agent):
        waiting = Curl("-w", "%{http_code}", "-o", "/dev/null", f"{url}/")
        address = ("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        with slow_target.take(), socket.create_connection(address, 20) as client:
            client.sendall(b"GET /c1/ HTTP/1.1\r\nHost: h\r\n\r\n")
            with slow_target.take() as connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning")
                received = b""
                while not received.endswith(b"the beginning"):
                    received += client.recv(65536)
                agent.signal(signal.SIGKILL)
                assert waiting.answer().stdout == b"502"
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(65536) == b""  # short of its Content-Length, and nothing behind it
        assert curl("-w", "%{http_code}", "-o", "/dev/null", f"{url}/").stdout == b"503"
        assert "Traceback" not in hub.log


def test_killed_agent_on_a_base_hub_is_a_clean_failure(
    processes: Start, mode: str, slow_target: SlowTarget, base_hub_process: BaseHubProcess
) -> None:
    cluster = f"killed-{mode}"
    memory = ["--use-memory-comm"] if mode == "memory" else []
    agent = processes(
        "run",
        "--hub-address",
        f"127.0.0.1:{base_hub_process.grpc_port}",
        "--cluster-name",
        cluster,
        "--insecure",
        *memory,
        "--route",
        f"/={slow_target.url}",
    )
    assert agent.line() == "ready\n", agent.log
    waiting = Curl(f"http://127.0.0.1:{base_hub_process.http_port}/{cluster}/")
    with slow_target.take():
        agent.signal(signal.SIGKILL)
        assert waiting.answer().returncode == 52  # curl: the server returned nothing


def test_sighup_dials_anew_and_loses_no_request(processes: Start, nginx: Nginx) -> None:
    with hub_and_agent(processes, "uds", nginx.url) as (url, hub, agent):
        for _ in range(3):
            agent.signal(signal.SIGHUP)
            assert curl(f"{url}/hello").stdout == b"hello from nginx\n"
        agent.signal(signal.SIGTERM)
        assert agent.end() == (0, "")  # it printed `ready` once
        hub.signal(signal.SIGINT)
        assert hub.end() == (0, "")


def test_proxy_alone_with_longest_prefix_and_no_cluster_name(processes: Start, nginx: Nginx) -> None:
    proxy = processes(
        "proxy", "--listen", "127.0.0.1:0", "--route", f"/files={nginx.url}", "--route", f"/files/more={nginx.url}/up"
    )
    url = f"http://127.0.0.1:{proxy.port('proxy')}"
    assert curl(f"{url}/files/hello").stdout == b"hello from nginx\n"
    assert hashlib.sha256(curl(f"{url}/files/big").stdout).hexdigest() == BIG_SHA256
    for path in ("/filesx", "/other", "/"):
        assert curl("-o", "/dev/null", "-w", "%{http_code}", url + path).stdout == b"404"
    assert curl("-f", "-T", "-", f"{url}/files/more/cli-proxy", stdin=b"put").returncode == 0
    assert (nginx.directory / "www" / "up" / "cli-proxy").read_bytes() == b"put"
    proxy.signal(signal.SIGTERM)
    assert proxy.end() == (0, ""), proxy.log


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["run", "--hub-address", "h:1", "--cluster-name", "Not_A_Label", "--route", "/=http://h"], "cluster_name"),
        (["run", "--hub-address", "h:99999", "--cluster-name", "c1", "--route", "/=http://h"], "hub_address"),
        (["run", "--hub-address", "h:1", "--cluster-name", "c1", "--route", "/=http://h/?q"], "route"),
        (["hub", "--grpc-address", "0.0.0.0:0"], "grpc_address"),
        (["proxy", "--listen", "127.0.0.1:0"], "route"),
    ],
)
def test_bad_value_exits_2_and_names_its_field(processes: Start, arguments: list[str], field: str) -> None:
    process = processes(*arguments)
    assert process.end() == (2, "")
    assert field in process.log
    assert "Traceback" not in process.log


def test_demo_exits_0_with_a_table_of_both_modes(processes: Start) -> None:
    demo = processes("demo")
    code, table = demo.end()
    assert code == 0, demo.log
    rows = [line.split() for line in table.splitlines()]
    assert rows[0][:3] == ["mode", "requests", "failures"]
    assert [row[0] for row in rows[1:3]] == ["uds", "memory"]
    assert [row[2] for row in rows[1:3]] == ["0", "0"]
    assert demo.log == ""


def test_version_names_program_twin_and_loop(processes: Start) -> None:
    import fastpipe

    code, said = processes("version").end()
    assert code == 0
    assert re.match(r"fastpipe-agent \d+\.\d+", said)
    assert fastpipe.IMPLEMENTATION in said
