"""The command line as a process: what it prints where, which code it exits with, and what signals do."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

COMMAND = [sys.executable, "-m", "agent"]
RUN = ["run", "--hub-address", "h:1", "--cluster-name", "c1"]
ENVIRON = {key: value for key, value in os.environ.items() if not key.startswith(("AGENT_", "HUB_", "KUBERNETES_"))}


def finished(*arguments: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command run to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRON | (environ or {}),
        check=False,
    )


class Running:
    """A command that serves, its standard output read line by line, its log kept in a file."""

    def __init__(self, arguments: list[str], log: Path, command: list[str], stdout: int) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*command, *arguments], stdout=stdout, stderr=errors, env=ENVIRON, text=True
            )

    def line(self) -> str:
        """The next line of standard output, "" at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def logged(self, text: str, timeout_s: float = 20.0) -> None:
        """Wait until the log has a text."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} isn't in:\n{self.log}"
            assert self.process.poll() is None or text in self.log, self.log
            time.sleep(0.01)

    def ends(self, timeout_s: float = 20.0) -> int:
        """The exit code, once the process has ended by itself."""
        return self.process.wait(timeout_s)

    @property
    def log(self) -> str:
        return self._log.read_text()


@contextlib.contextmanager
def running(
    log: Path, *arguments: str, command: list[str] = COMMAND, stdout: int = subprocess.PIPE
) -> Iterator[Running]:
    started = Running(list(arguments), log, command, stdout)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait()
        if started.process.stdout is not None:
            started.process.stdout.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


WITHOUT_UVICORN = [
    sys.executable,
    "-c",
    "import sys; sys.modules['uvicorn'] = None; from agent.cli.main import main; main()",
]


@pytest.mark.parametrize(("command", "code"), [("run", 2), ("check", 1)])
def test_an_app_without_its_extra_names_the_extra(command: str, code: int, tmp_path: Path) -> None:
    """The agent hung silently, and `check` reported that all was well."""
    (tmp_path / "main.py").write_text("async def app(scope, receive, send): ...\n")
    ended = subprocess.run(
        [*WITHOUT_UVICORN, command, *RUN[1:], "--insecure", "--app", "main:app"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRON,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    told = ended.stderr if command == "run" else ended.stdout
    assert "app (from --app): the extra is missing (pip install 'fastpipe-agent[asgi]')" in told


# Usage and configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], ["hub_address", "AGENT_HUB_ADDRESS", "cluster_name", "--cluster-name"]),
        (
            ["run", "--hub-address", "hub", "--cluster-name", "C_1"],
            ["hub_address (from --hub-address)", "HOST:PORT", "RFC 1123"],
        ),
        (
            [*RUN, "--memory-comm-buffer-size", "1", "--route", "/=http://h?q"],
            ["memory_comm.buffer_size (from --memory-comm-buffer-size)", "4096 to 67108864 (bytes)", "from --route"],
        ),
        ([*RUN, "--config", "/none.toml"], ["config (from /none.toml)"]),
        ([*RUN, "--insecure"], ["Kubernetes", "--route"]),
        ([*RUN, "--app", "no.such.module:app"], ["app", "no.such.module"]),
        (["run", "--no-such-flag"], ["--no-such-flag"]),
        (["hub", "--grpc-address", "0.0.0.0:0"], ["grpc_address", "--allow-any-agent"]),
        (["hub", "--http-address", "nowhere"], ["http_address (from --http-address)"]),
        (["hub", "--cluster-from", "host"], ["cluster_from (from --cluster-from)", "together with cluster_domain"]),
        (["hub", "--grpc-cert-file", "/none"], ["grpc_cert_file (from --grpc-cert-file)", "readable file"]),
        (["proxy", "--listen", "127.0.0.1:0"], ["route", "PREFIX=URL"]),
        (["proxy", "--listen", "127.0.0.1", "--route", "/=http://u:secret@h"], ["listen", "route", "user info"]),
        (["demo", "--log-level", "loud"], ["log_level (from --log-level)"]),
        (["nothing"], ["nothing"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bad_value_exits_2_and_says_field_source_and_range(arguments: list[str], said: list[str]) -> None:
    ended = finished(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    for text in said:
        assert text in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr


def test_a_broken_certificate_file_exits_2_naming_it(tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate here")
    base = [*RUN, "--route", "/=http://h"]
    for flag in ("--hub-ca-file", "--target-ca-file", "--hub-client-cert-file"):
        ended = finished(*base, flag, str(broken))
        assert ended.returncode == 2, ended.stderr
        assert f"{flag[2:].replace('-', '_')} (from {flag}: {broken})" in ended.stderr
    ended = finished("hub", "--grpc-address", "127.0.0.1:0", "--agent-token-file", str(broken))
    assert ended.returncode == 2
    assert "agent_token_file" in ended.stderr


def test_file_and_environment_are_read(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('hub_address = "hub:8443"\ncluster_name = "c1"\nuse_memory_com = true\n')
    ended = finished("run", environ={"AGENT_CONFIG": str(path), "AGENT_DRAIN_GRACE_S": "-3"})
    assert ended.returncode == 2
    assert f"use_memory_com (from {path})" in ended.stderr
    assert "perhaps use_memory_comm is meant" in ended.stderr
    assert "drain_grace_s (from AGENT_DRAIN_GRACE_S)" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            [*RUN, "--route", "/=http://a", "--memory-comm-canary-percent", "5"],
            [
                'hub_address = ["h:1"]  # --hub-address',
                "canary_percent = 5  # --memory-comm-canary-percent",
                'log_level = "warning"  # AGENT_LOG_LEVEL',
                "use_memory_comm = true  # {file}",
                "insecure = false  # default",
                "keep_alive_s = 75.0  # default",
            ],
        ),
        (["hub", "--config", ""], ['http_address = "127.0.0.1:8080"  # default', "max_clients = 10000  # default"]),
        (["proxy", "--config", "", "--route", "/=http://a"], ['route = ["/=http://a"]  # --route']),
    ],
    ids=["run", "hub", "proxy"],
)
def test_print_config_shows_each_value_and_where_it_came_from(
    tmp_path: Path, arguments: list[str], lines: list[str]
) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("use_memory_comm = true\n")
    environ = {"AGENT_CONFIG": str(path), "AGENT_LOG_LEVEL": "warning"}
    if "--config" in arguments:  # it knows no use_memory_comm
        environ.pop("AGENT_CONFIG")
    ended = finished(*arguments, "--print-config", environ=environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    for line in lines:
        assert line.replace("{file}", str(path)) in ended.stdout.splitlines()
    again = tmp_path / "again.toml"
    again.write_text(ended.stdout)
    values = [line.partition("  # ")[0] for line in ended.stdout.splitlines()]
    printed = finished(arguments[0], "--config", str(again), "--print-config")
    assert [line.partition("  # ")[0] for line in printed.stdout.splitlines()] == values


def test_print_config_of_a_wrong_configuration_exits_2() -> None:
    ended = finished(*RUN, "--drain-grace-s", "soon", "--print-config")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "drain_grace_s (from --drain-grace-s)" in ended.stderr


def test_metrics_without_the_extra_exit_2_and_say_what_brings_it(tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError\n")
    ended = finished(
        *RUN,
        "--route",
        "/=http://h",
        "--memory-comm-enable-metrics",
        "--health-address",
        "127.0.0.1:0",
        environ={"PYTHONPATH": str(tmp_path)},
    )
    assert ended.returncode == 2
    assert "memory_comm.enable_metrics" in ended.stderr
    assert "fastpipe-agent[metrics]" in ended.stderr


def test_version_names_twin_and_loop() -> None:
    ended = finished("version")
    assert ended.returncode == 0
    assert re.fullmatch(
        r"fastpipe-agent \S+\nfastpipe (c|python)\nloop (asyncio|uvloop \S+)\npython \S+ \S+\n", ended.stdout
    )


def test_the_console_script_and_the_module_are_one() -> None:
    script = Path(sys.executable).with_name("fastpipe-agent")
    by_script = subprocess.run([script, "run", "--help"], capture_output=True, text=True, timeout=60, check=True)
    by_module = finished("run", "--help")
    assert by_script.stdout == by_module.stdout
    for flag in (
        "--hub-address",
        "--cluster-name",
        "--insecure",
        "--use-memory-comm",
        "--uds-socket-path",
        "--config",
        "--route",
        "--app",
        "--health-address",
        "--print-config",
        "--limits-keep-alive-s",
    ):
        assert flag in by_module.stdout
    for text in ("default: 65536", "BYTES", "SECONDS", "PERCENT", "AGENT_HUB_ADDRESS"):
        assert text in by_module.stdout


# Serving ----------------------------------------------------------------------------------------------------------


def port_of(line: str, kind: str) -> int:
    found = re.fullmatch(rf"listening {kind} 127\.0\.0\.1:([0-9]+)", line)
    assert found, line
    return int(found[1])


def test_every_interface_is_announced_as_a_star(log: Path) -> None:
    """Other programs read HOST:PORT."""
    with running(log, "proxy", "--listen", ":0", "--route", "/=http://127.0.0.1:9") as proxy:
        assert re.fullmatch(r"listening proxy \*:[0-9]+", proxy.line())


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_the_proxy_says_where_it_listens_and_drains_on_a_signal(log: Path, name: str, loop: str) -> None:
    with running(log, "proxy", "--listen", "127.0.0.1:0", "--route", "/=http://127.0.0.1:9", "--loop", loop) as proxy:
        port_of(proxy.line(), "proxy")
        proxy.process.send_signal(signal.Signals[name])
        assert proxy.ends() == 0
        assert proxy.line() == ""
        assert "level=warning" in proxy.log  # nothing is authenticated
        assert "draining" in proxy.log


@pytest.mark.parametrize(
    "command",
    [
        ["proxy", "--listen", "127.0.0.1:0", "--route", "/=http://127.0.0.1:9"],
        ["hub", "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"],
    ],
    ids=["proxy", "hub"],
)
def test_a_sighup_ends_nothing(log: Path, command: list[str]) -> None:
    with running(log, *command) as service:
        service.line()
        service.process.send_signal(signal.SIGHUP)
        service.logged("SIGHUP is ignored")
        service.process.send_signal(signal.SIGTERM)
        assert service.ends() == 0


def test_what_is_open_to_the_network_is_said(log: Path, tmp_path: Path) -> None:
    with running(log, "hub", "--grpc-address", "127.0.0.1:0", "--http-address", "0.0.0.0:0") as hub:
        hub.line()
        hub.line()
        hub.process.send_signal(signal.SIGTERM)
        assert hub.ends() == 0
    assert "every client of the HTTP port reaches the agents" in log.read_text()
    (tmp_path / "token").write_text("a-token-of-a-test")
    ended = finished(
        "run",
        "--hub-address",
        "hub.invalid:1",
        "--cluster-name",
        "c1",
        "--insecure",
        "--hub-token-file",
        str(tmp_path / "token"),
        "--route",
        "/=http://127.0.0.1:9",
        "--health-address",
        "no.such.host.invalid:1",
    )
    assert "plaintext" in ended.stderr
    assert "a-token-of-a-test" not in ended.stderr


def test_an_address_in_use_exits_1_with_the_reason(log: Path) -> None:
    with running(log, "proxy", "--listen", "127.0.0.1:0", "--route", "/=http://127.0.0.1:9") as proxy:
        port = port_of(proxy.line(), "proxy")
        ended = finished("proxy", "--listen", f"127.0.0.1:{port}", "--route", "/=http://127.0.0.1:9")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.endswith(f"listen: 127.0.0.1:{port} can't be listened on: Address already in use\n")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("field", ["grpc_address", "http_address", "health_address"])
def test_an_address_that_is_no_machines_is_named_by_its_field(field: str) -> None:
    given = {"grpc_address": "127.0.0.1:0", "http_address": "127.0.0.1:0", field: "192.0.2.1:0"}  # RFC 5737
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    ended = finished("hub", "--allow-any-agent", *options)
    assert ended.returncode == 1
    said = [line for line in ended.stderr.splitlines() if line.startswith("fastpipe-agent: ")]
    assert said == [f"fastpipe-agent: {field}: 192.0.2.1:0 can't be listened on: Cannot assign requested address"]


def test_an_address_that_is_no_name_is_named_by_its_field() -> None:
    ended = finished("proxy", "--listen", "no.such.host.invalid:0", "--route", "/=http://127.0.0.1:9")
    assert ended.returncode == 1
    assert "fastpipe-agent: listen: no.such.host.invalid:0 can't be listened on: " in ended.stderr
    assert "Errno" not in ended.stderr


def test_the_version_is_an_option_too() -> None:
    ended = finished("--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == finished("version").stdout.splitlines(keepends=True)[0]


def test_the_list_of_commands_is_cut_nowhere() -> None:
    commands = finished("--help").stdout.partition("Commands:")[2]
    assert commands.count("\n") == 8
    assert "..." not in commands


def test_the_hub_says_both_addresses_in_order(log: Path) -> None:
    with running(log, "hub", "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0") as hub:
        assert port_of(hub.line(), "grpc") != port_of(hub.line(), "http")
        hub.process.send_signal(signal.SIGTERM)
        assert hub.ends() == 0
        assert hub.line() == ""


@pytest.mark.parametrize("mode", ["--use-memory-comm", "--no-use-memory-comm"])
def test_an_agent_is_ready_when_its_hub_has_answered(tmp_path: Path, mode: str) -> None:
    with running(tmp_path / "hub.log", "hub", "--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0") as hub:
        grpc_port = port_of(hub.line(), "grpc")
        port_of(hub.line(), "http")
        arguments = ["--hub-address", f"127.0.0.1:{grpc_port}", "--cluster-name", "c1", "--insecure", mode]
        with running(tmp_path / "agent.log", "run", *arguments, "--route", "/=http://127.0.0.1:9") as agent:
            assert agent.line() == "ready"
            agent.process.send_signal(signal.SIGHUP)  # tests/rollout/test_reload.py has what it does
            agent.process.send_signal(signal.SIGTERM)
            assert agent.ends() == 0, agent.log
            assert agent.line() == ""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tokens, and of certificates with their keys, for the hub hub.test and the agents c1 and c2."""
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name, identity in (("hub", "hub.test"), ("c1", "c1"), ("c2", "c2")):
        ca.issue_cert(identity).private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    (folder / "tokens").write_text("c1 right\n")
    (folder / "right").write_text("right\n")
    (folder / "wrong").write_text("wrong\n")
    return folder


@pytest.mark.parametrize(
    ("hub_flag", "right", "wrong"),
    [
        ("--agent-ca-file=ca.pem", "--hub-client-cert-file=c1.pem", "--hub-client-cert-file=c2.pem"),
        ("--agent-token-file=tokens", "--hub-token-file=right", "--hub-token-file=wrong"),
    ],
    ids=["certificate", "token"],
)
def test_over_tls_an_agent_is_let_in_by_what_it_shows(
    tmp_path: Path, certificates: Path, hub_flag: str, right: str, wrong: str
) -> None:
    def at(flag: str) -> str:
        return flag.replace("=", f"={certificates}/")

    hub_arguments = ["--grpc-address=127.0.0.1:0", "--http-address=127.0.0.1:0", at("--grpc-cert-file=hub.pem")]
    with running(tmp_path / "hub.log", "hub", *hub_arguments, at(hub_flag)) as hub:
        address = f"127.0.0.1:{port_of(hub.line(), 'grpc')}"
        port_of(hub.line(), "http")
        base = [f"--hub-address={address}", "--cluster-name=c1", "--route=/=http://127.0.0.1:9"]
        base.append(at("--hub-ca-file=ca.pem"))
        named = [*base, "--hub-server-name=hub.test"]
        with running(tmp_path / "wrong.log", "run", *named, at(wrong)) as agent:
            hub.logged("agent refused")
            agent.logged("level=error")  # a rejected identity is an error in the log
            agent.process.send_signal(signal.SIGTERM)
            assert agent.ends() == 0
            assert agent.line() == ""
        with running(tmp_path / "unnamed.log", "run", *base, at(right)) as agent:
            agent.logged("certificate is not valid for")  # the hub's certificate isn't 127.0.0.1's
            agent.process.send_signal(signal.SIGTERM)
            assert agent.ends() == 0
            assert agent.line() == ""
        with running(tmp_path / "right.log", "run", *named, at(right)) as agent:
            assert agent.line() == "ready"
            agent.process.send_signal(signal.SIGTERM)
            assert agent.ends() == 0
    for log in tmp_path.glob("*.log"):
        assert "Bearer" not in log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()


def test_an_agent_without_a_hub_is_not_ready_and_ends_cleanly(log: Path) -> None:
    base = [
        "run",
        "--hub-address",
        "127.0.0.1:1",
        "--cluster-name",
        "c1",
        "--insecure",
        "--route",
        "/=http://127.0.0.1:9",
    ]
    with running(log, *base) as agent:
        agent.logged("127.0.0.1:1")
        agent.process.send_signal(signal.SIGTERM)
        assert agent.ends() == 0, agent.log
        assert agent.line() == ""


# Signals: the first drains, the second aborts, the third kills ----------------------------------------------------

SLOW = """
import asyncio, sys
from agent.cli import process
from agent.config.schema import ProcessConfig

async def body():
    print("serving", flush=True)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("draining", flush=True)
        if sys.argv[1] == "drained":
            raise
        try:
            await asyncio.Event().wait()
        finally:
            print("aborting", flush=True)
            if sys.argv[1] == "stuck":
                while True:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        pass

sys.exit(process.serve(body, ProcessConfig(loop=sys.argv[2])))
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    ("manner", "signals", "code"), [("drained", 1, 0), ("aborted", 2, 1), ("stuck", 3, -signal.SIGTERM)]
)
def test_first_signal_drains_second_aborts_third_kills(
    log: Path, manner: str, signals: int, code: int, loop: str
) -> None:
    with running(log, manner, loop, command=[sys.executable, "-c", SLOW]) as service:
        for line in ["serving", "draining", "aborting"][:signals]:
            assert service.line() == line
            service.process.send_signal(signal.SIGTERM)
        assert service.ends() == code


FAILING = """
import sys
from agent.cli import process
from agent.config.schema import ProcessConfig
from agent.errors import ConfigError, HubError

errors = {
    "config": lambda: ConfigError("field", "source", "must be right"),
    "grouped": lambda: ExceptionGroup("", [ConfigError("a", "x", "1"), ExceptionGroup("", [errors["b"]()])]),
    "b": lambda: ConfigError("b", "y", "2"),
    "mixed": lambda: ExceptionGroup("two", [ConfigError("a", "x", "1"), HubError("hub gone")]),
    "hub": lambda: HubError("identity rejected", retryable=False),
    "os": lambda: OSError(98, "Address already in use"),
    "bug": lambda: KeyError("oops"),
}

async def body():
    raise errors[sys.argv[1]]()

sys.exit(process.serve(body, ProcessConfig()))
"""


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("config", 2, ["fastpipe-agent: field (from source): must be right"]),
        ("grouped", 2, ["a (from x): 1", "b (from y): 2"]),
        ("mixed", 1, ["a (from x): 1", "hub gone"]),
        ("hub", 1, ["fastpipe-agent: identity rejected"]),
        ("os", 1, ["Address already in use"]),
        ("bug", 1, ["a bug: please report it"]),
    ],
)
def test_errors_become_exit_codes(kind: str, code: int, said: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FAILING, kind], capture_output=True, text=True, timeout=60, env=ENVIRON, check=False
    )
    assert ended.returncode == code
    for text in said:
        assert text in ended.stderr


STUCK = """
import asyncio, os, sys, threading
from agent.cli import process
from agent.cli.configured import set_up_logging
from agent.config.schema import ProcessConfig

async def body():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)  # as a name's look-up without an answer
    if sys.argv[2] == "fails":
        raise OSError(98, "Address already in use")

process.LEAVE_S = 0.5
set_up_logging(ProcessConfig())
sys.exit(process.serve(body, ProcessConfig(loop=sys.argv[1])))
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("fails", 1)])
def test_a_thread_that_does_not_end_holds_no_process(loop: str, how: str, code: int) -> None:
    """A silent name server held an agent for a minute behind SIGTERM."""
    ended = subprocess.run(
        [sys.executable, "-c", STUCK, loop, how], capture_output=True, text=True, timeout=60, env=ENVIRON, check=False
    )
    assert ended.returncode == code
    assert ("Address already in use" in ended.stderr) == (how == "fails")


def test_a_closed_standard_output_does_not_stop_serving(log: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with running(log, "proxy", "--listen", "127.0.0.1:0", "--route", "/=http://127.0.0.1:9", stdout=write_end) as proxy:
        os.close(write_end)
        proxy.logged("standard output is closed")
        assert "listening proxy" in proxy.log
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.ends() == 0
        assert "Traceback" not in proxy.log


@contextlib.asynccontextmanager
async def silent_target() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """(port, event) of a target that takes requests and never responds. The event marks the first request."""
    asked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], asked


@pytest.mark.loops("asyncio")
async def test_a_second_signal_ends_a_drain_that_waits_for_a_request(log: Path) -> None:
    async with silent_target() as (target_port, asked):
        with running(log, "proxy", "--listen", "127.0.0.1:0", "--route", f"/=http://127.0.0.1:{target_port}") as proxy:
            port = port_of(await asyncio.to_thread(proxy.line), "proxy")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                await asyncio.wait_for(asked.wait(), 20)
                proxy.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(proxy.logged, "draining")
                assert proxy.process.poll() is None
                proxy.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(proxy.ends) == 1
                with contextlib.suppress(OSError):
                    await reader.read()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


# Variables --------------------------------------------------------------------------------------------------------


def test_hub_and_agent_share_an_environment(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("c1 secret\n")
    environ = {
        "AGENT_HUB_ADDRESS": "hub:8443",
        "AGENT_CLUSTER_NAME": "c1",
        "AGENT_HEALTH_ADDRESS": "127.0.0.1:8081",
        "AGENT_LOG_LEVEL": "debug",
        "HUB_GRPC_ADDRESS": "127.0.0.1:1",
        "HUB_HEALTH_ADDRESS": "127.0.0.1:8082",
        "HUB_LOG_LEVEL": "warning",
        "HUB_AGENT_TOKEN_FILE": str(tmp_path / "tokens"),
        "HUB_LIMITS_KEEP_ALIVE_S": "3",
    }
    hub = finished("hub", "--print-config", environ=environ)
    assert (hub.returncode, hub.stderr) == (0, "")
    for line in (
        'grpc_address = "127.0.0.1:1"  # HUB_GRPC_ADDRESS',
        'health_address = "127.0.0.1:8082"  # HUB_HEALTH_ADDRESS',
        'log_level = "warning"  # HUB_LOG_LEVEL',
        "keep_alive_s = 3.0  # HUB_LIMITS_KEEP_ALIVE_S",
    ):
        assert line in hub.stdout.splitlines()
    agent = finished("run", "--print-config", environ=environ)
    assert 'health_address = "127.0.0.1:8081"  # AGENT_HEALTH_ADDRESS' in agent.stdout.splitlines()
    assert 'log_level = "debug"  # AGENT_LOG_LEVEL' in agent.stdout.splitlines()


def test_the_hub_takes_old_names_with_a_warning_each(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"AGENT_GRPC_ADDRESS": "127.0.0.1:0", "AGENT_HTTP_ADDRESS": "127.0.0.1:0", "HUB_LOG_LEVEL": "info"}
    monkeypatch.setattr(sys.modules[__name__], "ENVIRON", ENVIRON | given | {"AGENT_LOG_LEVEL": "error"})
    with running(log, "hub") as hub:
        assert hub.line().startswith("listening grpc 127.0.0.1:")
        hub.logged('variable=AGENT_GRPC_ADDRESS reason="it is called HUB_GRPC_ADDRESS now"')
        hub.logged('variable=AGENT_HTTP_ADDRESS reason="it is called HUB_HTTP_ADDRESS now"')
        assert "AGENT_LOG_LEVEL" not in hub.log  # the new name's value is in force


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({"HUB_CONFIG": "new", "AGENT_CONFIG": "old"}, "drain_grace_s = 1.0"),
        ({"AGENT_CONFIG": "old"}, "drain_grace_s = 2.0"),
        ({"HUB_CONFIG": "", "AGENT_CONFIG": "old"}, "drain_grace_s = 25.0"),
    ],
    ids=["new", "old", "new and empty"],
)
def test_the_hubs_file_is_named_by_its_own_variable_first(tmp_path: Path, environ: dict[str, str], shown: str) -> None:
    (tmp_path / "new").write_text("drain_grace_s = 1")
    (tmp_path / "old").write_text("drain_grace_s = 2")
    given = {name: str(tmp_path / value) if value else "" for name, value in environ.items()}
    assert shown in finished("hub", "--print-config", environ=given).stdout


def test_a_misspelt_variable_is_a_warning_at_start_and_at_reload(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = {"AGENT_SERVICE_HOST": "10.0.0.1", "AGENT_PORT_8443_TCP": "tcp://10.0.0.1:1"}
    given = {"AGENT_HUB_TOKENFILE": "/secret"} | service
    monkeypatch.setattr(sys.modules[__name__], "ENVIRON", ENVIRON | given)
    with running(log, "run", "--hub-address", "127.0.0.1:1", "--cluster-name", "c1", "--route", "/=http://a") as agent:
        agent.logged("variable=AGENT_HUB_TOKENFILE")
        agent.logged("no connection to 127.0.0.1:1")  # it runs, so SIGHUP is heard
        agent.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 20
        while agent.log.count("variable=AGENT_HUB_TOKENFILE") < 2:
            assert time.monotonic() < deadline, agent.log
            time.sleep(0.01)
        lines = [line for line in agent.log.splitlines() if "a variable is not read" in line]
        assert all("level=warning" in line and "perhaps AGENT_HUB_TOKEN_FILE is meant" in line for line in lines)
        assert "/secret" not in agent.log


def test_a_misspelt_variable_is_said_beside_what_is_missing() -> None:
    ended = finished("run", environ={"AGENT_HUB_ADRESS": "hub:1", "AGENT_CLUSTER_NAME": "c1"})
    assert ended.returncode == 2
    assert "hub_address (from --hub-address, AGENT_HUB_ADDRESS or the file): must be set" in ended.stderr
    assert "AGENT_HUB_ADRESS: a variable that is not read, perhaps AGENT_HUB_ADDRESS is meant" in ended.stderr


def test_help_shows_each_commands_own_variables() -> None:
    hub = finished("hub", "--help").stdout
    assert "HUB_GRPC_ADDRESS" in hub
    assert "HUB_CONFIG" in hub
    assert "AGENT_" not in hub.replace("HUB_AGENT_", "")
    assert "HUB_CONFIG" not in finished("run", "--help").stdout


# Files --------------------------------------------------------------------------------------------------------------


def test_expired_certificates_and_open_secrets_are_warnings_at_start_and_at_reload(log: Path, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    issued = trustme.CA().issue_cert("c1", common_name="c1", not_after=now - datetime.timedelta(days=1))
    (tmp_path / "c1.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (tmp_path / "c1.key").write_bytes(issued.private_key_pem.bytes())
    (tmp_path / "c1.pem").chmod(0o644)
    (tmp_path / "c1.key").chmod(0o644)
    flags = ["--hub-client-cert-file", str(tmp_path / "c1.pem"), "--hub-client-key-file", str(tmp_path / "c1.key")]
    route = ["--route", "/=http://a"]
    expired, exposed = 'msg="certificate has expired" setting=hub_client_cert_file', "setting=hub_client_key_file"
    with running(log, "run", "--hub-address", "127.0.0.1:1", "--cluster-name", "c1", *flags, *route) as agent:
        agent.logged("no connection to 127.0.0.1:1")  # it runs, so SIGHUP is heard
        for times in (1, 2):
            deadline = time.monotonic() + 20
            while (agent.log.count(expired), agent.log.count(exposed)) != (times, times):
                assert time.monotonic() < deadline, agent.log
                time.sleep(0.01)
            if times == 1:
                agent.process.send_signal(signal.SIGHUP)
        (line, _) = [line for line in agent.log.splitlines() if expired in line]
        assert "level=warning" in line
        assert "CN=c1" in line
        assert f"not_after={(now - datetime.timedelta(days=1)):%Y-%m-%d}T" in line
        assert "mode=0644" in agent.log


def test_a_hubs_two_certificates_are_warned_of_at_start(log: Path, tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    ca = trustme.CA()
    for name, days in (("grpc", -1), ("http", 3)):
        issued = ca.issue_cert(f"{name}.test", not_after=now + datetime.timedelta(days=days))
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / name)
        (tmp_path / name).chmod(0o600)
    addresses = ["--grpc-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"]
    files = ["--grpc-cert-file", str(tmp_path / "grpc"), "--http-cert-file", str(tmp_path / "http")]
    with running(log, "hub", *addresses, *files) as hub:
        warning = "level=warning logger=agent.config.credentials"
        hub.logged(f'{warning} msg="certificate has expired" setting=grpc_cert_file')
        hub.logged(f'{warning} msg="certificate expires soon" setting=http_cert_file')


def test_a_misspelt_variable_is_said_beside_the_printed_configuration() -> None:
    given = {"HUB_GRPC_ADRESS": "127.0.0.1:1", "HUB_HTTP_ADDRESS": "127.0.0.1:2"}
    ended = finished("hub", "--print-config", environ=given)
    assert ended.returncode == 0
    assert 'http_address = "127.0.0.1:2"  # HUB_HTTP_ADDRESS' in ended.stdout
    assert "HUB_GRPC_ADRESS: a variable that is not read, perhaps HUB_GRPC_ADDRESS is meant" in ended.stderr
    assert "127.0.0.1:1" not in ended.stderr


def test_a_hub_that_gets_the_agent_s_file_by_a_shared_environment_says_which_variable(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('cluster_name = "c1"\n')
    ended = finished("hub", "--print-config", environ={"AGENT_CONFIG": str(file)})
    assert ended.returncode == 2
    assert "cluster_name (from " in ended.stderr
    assert "AGENT_CONFIG: names the file, it is called HUB_CONFIG now" in ended.stderr
    assert finished("hub", "--print-config", environ={"AGENT_CONFIG": str(file), "HUB_CONFIG": ""}).returncode == 0
    ended = finished("run", environ={"AGENT_CONFIG": str(file)})
    assert "names the file" not in ended.stderr
