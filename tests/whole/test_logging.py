"""Hub and agent continue to serve although nobody reads their standard error and users fail without end.

The test holds the pipe and fills it first, so that the first line already finds it full.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from .whole_log import ENVIRON, EXIT_S, HUB, SCRIPT, Process, agent_of, closed_port, fail


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
        "proxy",
        "--listen",
        "127.0.0.1:0",
        "--route",
        f"/=http://127.0.0.1:{port}",
        "--log-level",
        "debug",
        blocked=True,
    )
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
        stdout=write_end,
        stderr=write_end,
        env=ENVIRON,
    )
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
