"""A failed connection to a target is the agent's fault if this machine lacks a resource.

Otherwise it is the target's fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator

import pytest

from agent.errors import TargetError
from agent.messages import Target
from agent.proxy import ProxyLimits, Upstreams
from agent.proxy import dial as dial_module
from agent.proxy.dial import dial
from agent.proxy.shortage import connect_error, lacks_descriptors, most_telling
from agent.runtime.descriptors import descriptor_limit

AGENTS = {
    "EMFILE": (503, "the agent has no descriptor left", "RLIMIT_NOFILE"),
    "ENFILE": (503, "the agent's system has no descriptor left", "fs.file-max"),
    "ENOBUFS": (503, "the agent's system has no buffer left", ""),
    "ENOMEM": (503, "the agent's system has no memory left", ""),
    "EADDRNOTAVAIL": (503, "the agent has no source address and port for the target", "net.ipv4.ip_local_port_range"),
    "EPERM": (502, "the agent's system does not allow the connection", ""),
    "EACCES": (502, "the agent's system does not allow the connection", ""),
}
TARGETS = {
    "ECONNREFUSED": (502, "the target refused the connection"),
    "EHOSTUNREACH": (502, "the target's host can't be reached"),
    "ENETUNREACH": (502, "the target's network can't be reached"),
    "ETIMEDOUT": (504, "the target took too long (connect)"),
    "ECONNRESET": (502, "the target reset the connection"),
    "EIO": (502, "the target could not be connected"),
}


async def failure(target: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        await dial(Target(target), asyncio.Protocol(), ProxyLimits(), None)
    return caught.value


def failing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have connections to the target's addresses fail so, one after the other."""
    left = [getattr(errno, name) for name in names]

    async def connect(_: object) -> socket.socket:
        number = left.pop(0)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(dial_module, "_connect_to", connect)


@pytest.mark.parametrize("name", list(AGENTS))
async def test_what_ran_out_here_is_the_agents_fault(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    failing(monkeypatch, name)
    error = await failure("http://127.0.0.1:1")
    assert (error.status, error.reason, error.limit) == AGENTS[name]
    assert (error.fault, error.stage) == ("agent", "connect")


@pytest.mark.parametrize("name", list(TARGETS))
async def test_what_the_target_did_is_its_own_in_its_own_words(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    failing(monkeypatch, name)
    error = await failure("http://127.0.0.1:1")
    assert (error.status, error.reason, error.fault) == (*TARGETS[name], "target")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["ENETUNREACH", "ECONNREFUSED"], "ECONNREFUSED"),
        (["EADDRNOTAVAIL", "ECONNREFUSED"], "ECONNREFUSED"),  # ::1 where IPv6 is switched off
        (["ECONNREFUSED", "EMFILE"], "EMFILE"),
        (["EMFILE", "ECONNREFUSED"], "EMFILE"),
        (["EADDRNOTAVAIL", "EADDRNOTAVAIL"], "EADDRNOTAVAIL"),
        (["EHOSTUNREACH", "ETIMEDOUT"], "ETIMEDOUT"),
    ],
    ids=" ".join,
)
def test_of_several_addresses_the_most_telling_failure_counts(names: list[str], told: str) -> None:
    assert most_telling([OSError(getattr(errno, name), "") for name in names]).errno == getattr(errno, told)  # type: ignore[attr-defined]  # they are OSErrors


def test_a_lack_is_an_error_in_the_log_once_a_second_with_its_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("agent.proxy.shortage.time.monotonic", lambda: now_s)
    monkeypatch.setattr("agent.proxy.shortage._complaints", {errno.EMFILE: _new_complaint()})
    for _ in range(100):
        connect_error(OSError(errno.EMFILE, ""))
        now_s += 1 / 32
    told = [vars(record) for record in caplog.records]
    assert [each["failures"] for each in told] == [1, 32, 32, 32]
    assert {each["levelname"] for each in told} == {"ERROR"}
    assert {(each["limit"], each["descriptors"], each["fault"]) for each in told} == {
        ("RLIMIT_NOFILE", descriptor_limit(), "agent")
    }


def _new_complaint() -> object:
    from agent.proxy.shortage import _Complaint

    return _Complaint()


# Real ones --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptors(left: int = 0) -> Iterator[None]:
    """Within the block this process can open so many descriptors."""
    import resource

    spare = os.open(os.devnull, os.O_RDONLY)
    taken: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 8, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(left):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in (*taken, spare):
            os.close(each)


needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")


@needs_limits
async def test_a_process_without_a_descriptor_left_says_so() -> None:
    with no_descriptors():
        error = await failure("http://127.0.0.1:1")
        assert lacks_descriptors() is not None
    assert (error.status, error.reason, error.limit) == AGENTS["EMFILE"]
    assert lacks_descriptors() is None
    assert (await failure("http://127.0.0.1:1")).reason == "the target refused the connection"


@needs_limits
async def test_a_name_that_is_not_resolved_for_want_of_a_descriptor_is_not_the_targets_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def look_up(host: str, port: int) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")  # what glibc makes of it

    monkeypatch.setattr(dial_module, "look_up", look_up)
    with no_descriptors():
        error = await failure("http://a.test:1")
    assert (error.status, error.reason, error.stage) == (*AGENTS["EMFILE"][:2], "resolve")
    error = await failure("http://a.test:1")
    assert (error.reason, error.fault) == ("the target's name could not be resolved", "target")


@needs_limits
async def test_the_longest_idle_connection_makes_room_for_a_new_one() -> None:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]  # not accepted from: that takes a descriptor
    first, second = (Target(f"http://127.0.0.1:{each.getsockname()[1]}") for each in listeners)
    upstreams = Upstreams()
    try:
        kept = [await upstreams.dial(first) for _ in range(3)]
        for each in kept:
            upstreams.release(each)
        with no_descriptors():
            dialled = await upstreams.dial(second)
            assert dialled.transport is not None
            assert upstreams.idle_connections == 2
            for _ in range(2):
                await upstreams.dial(second)
            with pytest.raises(TargetError, match="the agent has no descriptor left"):
                await upstreams.dial(second)
            assert upstreams.idle_connections == 0
    finally:
        await upstreams.close()
        for listener in listeners:
            listener.close()
