"""The processes of `make browser`: hubs with TLS, agents and real applications. A proxy replaces DNS.

The commands are those of docs/web-apps.md. Only addresses and files differ: each port is a free one of 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from ..limits import scaled
from ..web_apps_page import Example, Mode, agent_variables, hub_arguments, words

APPS = pathlib.Path(__file__).parent / "apps"
BIN = pathlib.Path(sys.executable).parent
START_S = scaled(60.0)
STOP_S = scaled(10.0)
TOKEN = "only-for-tests"
UNAUTHENTICATED = "nothing is authenticated"

ENVIRON = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("AGENT_", "HUB_", "KUBERNETES_", "DJANGO_", "STREAMLIT_", "JUPYTER_"))
    and "proxy" not in name.lower()
} | {
    "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    "PYTHONUNBUFFERED": "1",
}


def missing(what: str) -> NoReturn:
    """Fail where FASTPIPE_REQUIRE_PEERS=1 (CI), else skip with the reason."""
    reason = f"{what} is not installed, and this test is about a real peer"
    if os.environ.get("FASTPIPE_REQUIRE_PEERS", "0") not in ("", "0"):
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a program: of this environment, or else of the system."""
    return shutil.which(name, path=f"{ENVIRON['PATH']}:/usr/sbin") or missing(name)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Program:
    """A child process that leads its process group. `log` is the text of both its outputs."""

    def __init__(self, log: pathlib.Path, arguments: list[str], directory: pathlib.Path, **variables: str) -> None:
        self.name = pathlib.Path(arguments[0]).name
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [program(arguments[0]), *arguments[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=ENVIRON | variables,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_logged(self, pattern: str) -> str:
        """The first match in the log, or its group."""
        deadline_s = time.monotonic() + START_S
        while not (found := re.search(pattern, self.log, re.MULTILINE)):
            self._check(deadline_s)
            time.sleep(0.02)
        return found[found.lastindex or 0]

    def wait_listening(self, port: int) -> None:
        deadline_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            self._check(deadline_s)
            time.sleep(0.02)

    def _check(self, deadline_s: float) -> None:
        assert self._process.poll() is None, f"{self.name} ended:\n{self.log}"
        assert time.monotonic() < deadline_s, f"{self.name} is not ready:\n{self.log}"

    def close(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclasses.dataclass(frozen=True)
class Credentials:
    """For TLS: the certificates' authority, the hub's certificate with its key, and the SHA-256 of its public key."""

    authority: pathlib.Path
    hub: pathlib.Path
    key_digest: str


class HubProcess(Program):
    """The page's hub of one mode, on free ports."""

    def __init__(self, directory: pathlib.Path, mode: Mode, credentials: Credentials) -> None:
        self.mode = mode
        self.domain = "tunnel.example.com" if mode == "host" else "hub.example.com"
        self.credentials = credentials
        self.directory = directory / f"hub-by-{mode}"
        self.directory.mkdir()
        (self.directory / "tokens").write_text("".join(f"c{number} {TOKEN}\n" for number in range(1, 9)))
        (self.directory / "tokens").chmod(0o600)
        shutil.copy(credentials.hub, self.directory / "hub.pem")
        arguments = [re.sub("^:(8443|443)$", "127.0.0.1:0", argument) for argument in hub_arguments(mode)]
        super().__init__(self.directory / "log", ["fastpipe-agent", *arguments], self.directory)
        self.grpc_port = int(self.wait_logged(r"^listening grpc 127\.0\.0\.1:(\d+)$"))
        self.http_port = int(self.wait_logged(r"^listening http 127\.0\.0\.1:(\d+)$"))

    def url(self, cluster: str) -> str:
        """The public URL of a cluster, with a slash at its end."""
        return f"https://{cluster}.{self.domain}/" if self.mode == "host" else f"https://{self.domain}/{cluster}/"


class Running:
    """An example of the page that runs: the application's process and the agent's.

    Attributes:
        url: the public URL of the cluster, with a slash at its end.
        directory: the application's working directory.
    """

    def __init__(
        self,
        hub: HubProcess,
        example: Example,
        files: pathlib.Path,
        directory: pathlib.Path,
        cluster: str,
        *,
        port: int = 0,
        **variables: str,
    ) -> None:
        """Start both, and wait until they are ready.

        Args:
            hub: the hub that the agent dials.
            example: the page's lines.
            files: a folder of the application's files, which is copied.
            directory: a new folder for the copy and the logs.
            cluster: the agent's cluster.
            port: where the application already listens, 0 if the example starts it.
            variables: more variables for the application.
        """
        self.url = hub.url(cluster)
        self.directory = pathlib.Path(shutil.copytree(files, directory, symlinks=True))
        directory = self.directory
        self._programs: list[Program] = []
        port, starts_app = port or free_port(), not port
        for name, text in example.files:
            path = directory / name
            before = path.read_text() if path.exists() else ""
            path.write_text(before + "\n" + self._own(text, example, port))
        waiting: list[tuple[Program, bool]] = []
        try:
            for command in example.commands:
                named, arguments = words(self._own(command, example, port))
                is_agent = arguments[0] == "fastpipe-agent"
                if is_agent:
                    named |= self._agent_variables(hub, cluster, directory)
                elif not starts_app:
                    continue
                log = directory / f"{cluster}-{len(self._programs)}.log"
                started = Program(log, arguments, directory, **(named | variables))
                self._programs.append(started)
                waiting.append((started, is_agent))
            for started, is_agent in waiting:
                if is_agent:
                    started.wait_logged(r"^ready$")
                else:
                    started.wait_listening(port)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _own(text: str, example: Example, port: int) -> str:
        """The text with this run's port."""
        return re.sub(rf"\b{example.port}\b", str(port), text) if example.port else text

    @staticmethod
    def _agent_variables(hub: HubProcess, cluster: str, directory: pathlib.Path) -> dict[str, str]:
        token = directory / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        return agent_variables() | {
            "AGENT_HUB_ADDRESS": f"127.0.0.1:{hub.grpc_port}",
            "AGENT_CLUSTER_NAME": cluster,
            "AGENT_HUB_CA_FILE": str(hub.credentials.authority),
            "AGENT_HUB_SERVER_NAME": "hub.example.com",
        }

    def warnings(self) -> list[str]:
        """The lines of the agent's log that report a failure. One WARNING is about the examples' lack of users."""
        agents = [started for started in self._programs if started.name == "fastpipe-agent"]
        lines = [line for started in agents for line in started.log.splitlines()]
        return [line for line in lines if re.search("level=(warning|error)", line) and UNAUTHENTICATED not in line]

    @property
    def logs(self) -> str:
        return "\n".join(f"--- {started.name}\n{started.log[-4000:]}" for started in self._programs)

    def close(self) -> None:
        for started in reversed(self._programs):
            started.close()


Start = Callable[..., Running]
"""start(folder, cluster="c1", example="", **options): an example of the page, with a copy of the folder's files.

Without `example` it is the one that names this test.
"""


class Names:
    """An HTTP proxy that takes each CONNECT to the hub, whatever name it has: DNS for rclone and git."""

    def __init__(self, hub: HubProcess) -> None:
        self._to = hub.http_port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._to)) as hub, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            assert head.startswith(b"CONNECT "), head
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            peers = {client: hub, hub: client}
            while True:
                for readable in select.select(list(peers), [], [])[0]:
                    if not (data := readable.recv(65536)):
                        return
                    peers[readable].sendall(data)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for thread in self._threads:
            thread.join()
