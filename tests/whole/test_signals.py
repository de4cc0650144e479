"""SIGTERM ends hub, agent and proxy in each of their states, with exit code 0.

A second SIGTERM during a drain aborts, with exit code 1.
Each state is tried with a standard error that is read, and with one that is a full pipe.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import trustme

from .whole_log import EXIT_S, HUB, Process, agent_of, closed_port, fail

BLOCKED = pytest.mark.parametrize("blocked", [False, True], ids=["log read", "log not read"])


def until(reached: object, what: str = "") -> None:
    assert callable(reached)
    deadline_s = time.monotonic() + EXIT_S
    while not reached():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.01)


def sockets_to(port: int, state: str, pid: int) -> int:
    """How many of a process's IPv4 sockets are in this state of TCP towards a port.

    Not the machine's: a test in another process may still dial a hub that had this port before.
    """
    own = set()
    for link in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            own.add(os.readlink(link))
    rows = [line.split() for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == state and f"socket:[{row[9]}]" in own for row in rows)


@contextlib.contextmanager
def mute() -> Iterator[tuple[int, list[socket.socket]]]:
    """A server that accepts and never sends a byte: its port, and what it has accepted."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(listening.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1], accepted
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in accepted:
                each.close()


@contextlib.contextmanager
def unreachable() -> Iterator[int]:
    """A port that drops SYNs: its queue of connections is full."""
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        port: int = listening.getsockname()[1]
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        until(lambda: sockets_to(port, "02", os.getpid()), "a SYN without a reply")
        yield port


def run_of(port: int, *arguments: str) -> tuple[str, ...]:
    return (
        "run",
        "--hub-address",
        f"127.0.0.1:{port}",
        "--cluster-name",
        "c1",
        "--route",
        "/=http://127.0.0.1:9",
        *arguments,
    )


@BLOCKED
def test_an_agent_that_dials(started: type[Process], blocked: bool) -> None:
    with unreachable() as port:
        agent = started(*run_of(port, "--insecure"), blocked=blocked)
        until(lambda: sockets_to(port, "02", agent.process.pid), "the agent's SYN")
        assert agent.end() == 0


@BLOCKED
@pytest.mark.parametrize("insecure", [True, False], ids=["probe", "TLS handshake"])
def test_an_agent_whose_hub_says_nothing(started: type[Process], blocked: bool, insecure: bool) -> None:
    with mute() as (port, accepted):
        agent = started(*run_of(port, *(["--insecure"] if insecure else [])), blocked=blocked)
        until(lambda: accepted and accepted[0].recv(1), "the agent's first byte")
        assert agent.end() == 0


@BLOCKED
def test_an_agent_in_its_back_off(started: type[Process], blocked: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        agent = started(*run_of(port, "--insecure"), blocked=blocked)
        listening.settimeout(EXIT_S)
        for _ in range(2):  # the second dial came after the first back-off, so now it is in the next one
            listening.accept()[0].close()
    until(lambda: not sockets_to(port, "01", agent.process.pid))
    assert agent.end() == 0


@pytest.mark.parametrize("delay_s", [0.0, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("command", ["hub", "run", "proxy"])
def test_a_process_that_starts(started: type[Process], command: str, delay_s: float) -> None:
    """Before the event loop runs, the signal kills, as it would `cat`. Later it drains. Neither hangs."""
    arguments = {
        "hub": HUB,
        "run": run_of(closed_port(), "--insecure"),
        "proxy": ("proxy", "--listen", "127.0.0.1:0", "--route", "/=http://127.0.0.1:9"),
    }[command]
    process = started(*arguments, blocked=True)
    time.sleep(delay_s)  # the state is "some time into the start"
    assert process.end() in (0, -signal.SIGTERM)


@BLOCKED
def test_an_agent_that_reloads(started: type[Process], blocked: bool, tmp_path: pathlib.Path) -> None:
    hub = started(*HUB, blocked=False)
    config = tmp_path / "agent.toml"
    config.write_text("drain_grace_s = 5.0\n")
    agent = started(*agent_of(hub.port("grpc"), "--config", str(config)), blocked=blocked)
    assert agent.line() == "ready"
    for number in range(20):
        config.write_text(f"drain_grace_s = {number}.5\n" if number % 2 else "drain_grace_s = wrong\n")
        agent.process.send_signal(signal.SIGHUP)
    assert agent.end() == 0


@BLOCKED
def test_a_hub_in_the_midst_of_handshakes(started: type[Process], blocked: bool, tmp_path: pathlib.Path) -> None:
    ca = trustme.CA()
    ca.issue_cert("hub.test").private_key_and_cert_chain_pem.write_to_path(tmp_path / "hub.pem")
    certificate = str(tmp_path / "hub.pem")
    hub = started(
        *HUB, "--grpc-cert-file", certificate, "--http-cert-file", certificate, "--allow-any-agent", blocked=blocked
    )
    ports = hub.port("grpc"), hub.port("http")
    with contextlib.ExitStack() as stack:
        for port in ports:
            for sent in (b"", b"\x16\x03\x01\x02"):  # nothing; a part of a ClientHello
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                client.sendall(sent)
        assert hub.end() == 0


@BLOCKED
@pytest.mark.parametrize("role", ["hub", "proxy"])
def test_a_service_with_clients_that_say_half_a_request_or_nothing(
    started: type[Process], blocked: bool, role: str
) -> None:
    arguments = HUB if role == "hub" else ("proxy", "--listen", "127.0.0.1:0", "--route", "/=http://127.0.0.1:9")
    service = started(*arguments, "--drain-grace-s", "1", blocked=blocked)
    ports = [service.port("grpc"), service.port("http")] if role == "hub" else [service.port("proxy")]
    with contextlib.ExitStack() as stack:
        for port in ports:
            for sent in (b"", b"GET / HTTP/1.1\r\nHo", b"PRI * HTTP/2.0\r\n\r\n"):
                stack.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(sent)
        assert service.end() == 0


@BLOCKED
@pytest.mark.parametrize("signalled", ["hub", "agent", "proxy"])
def test_a_service_under_a_flood_of_requests(started: type[Process], blocked: bool, signalled: str) -> None:
    """Requests during the drain are rejected, and don't prolong it without end."""
    if signalled == "proxy":
        service = started(
            "proxy",
            "--listen",
            "127.0.0.1:0",
            "--route",
            f"/=http://127.0.0.1:{closed_port()}",
            "--drain-grace-s",
            "2",
            blocked=blocked,
        )
        port = service.port("proxy")
    else:
        hub = started(*HUB, "--drain-grace-s", "2", blocked=blocked)
        grpc_port, port = hub.port("grpc"), hub.port("http")
        agent = started(*agent_of(grpc_port, "--drain-grace-s", "2"), blocked=blocked)
        assert agent.line() == "ready"
        service = hub if signalled == "hub" else agent
    stop = threading.Event()
    failed = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, AssertionError):
                fail(port, "/c1/x", 200)
                failed.set()

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert failed.wait(EXIT_S)
        assert service.end() == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@BLOCKED
@pytest.mark.parametrize("role", ["hub", "agent", "proxy"])
def test_a_second_signal_during_the_drain_aborts(started: type[Process], blocked: bool, role: str) -> None:
    with mute() as (target, accepted):
        if role == "proxy":
            service = started(
                "proxy", "--listen", "127.0.0.1:0", "--route", f"/=http://127.0.0.1:{target}", blocked=blocked
            )
            port = service.port("proxy")
        else:
            hub = started(*HUB, blocked=blocked)
            grpc_port, port = hub.port("grpc"), hub.port("http")
            route = f"/x=http://127.0.0.1:{target}"
            agent = started(*run_of(grpc_port, "--insecure", "--route", route), blocked=blocked)
            assert agent.line() == "ready"
            service = hub if role == "hub" else agent
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n" % (b"" if role == "proxy" else b"c1/x/"))
            until(lambda: accepted, "the request at its target")
            service.process.send_signal(signal.SIGTERM)
            if blocked:  # only a port that refuses shows that the drain has begun
                until(lambda: refuses(port) or role == "agent", "the end of listening")
            else:
                service.logged("draining")
            deadline_s = time.monotonic() + EXIT_S
            while service.process.poll() is None:  # the drain's bound is 25 s, so only the abort can end it
                assert time.monotonic() < deadline_s
                service.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(Exception):
                    service.process.wait(1)
                    break
            assert service.process.wait(EXIT_S) in (1, -signal.SIGTERM)


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return True
    return False
