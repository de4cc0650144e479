"""A process started with few descriptors takes what it may have."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent.runtime.descriptors import share_out

resource = pytest.importorskip("resource")

ASK = """
import resource
from agent.runtime.descriptors import open_more_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))
print(open_more_descriptors(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(256, 1000), (1000, 1000)])
def test_the_soft_limit_becomes_the_hard_one(soft: int, hard: int) -> None:
    done = subprocess.run([sys.executable, "-c", ASK % (soft, hard)], capture_output=True, text=True, check=True)
    assert [int(word) for word in done.stdout.split()] == [hard, hard, hard]


def test_a_hub_has_raised_it() -> None:
    """The command itself, as a shell starts it. /proc shows its limits then."""
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    start = (
        "import resource, runpy, sys; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard));"
        "sys.argv = ['agent', 'hub', '--grpc-address', '127.0.0.1:0', '--http-address', '127.0.0.1:0'];"
        "runpy.run_module('agent', run_name='__main__')"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as hub:
        try:
            assert hub.stdout is not None
            assert hub.stdout.readline().startswith(b"listening grpc")
            with open(f"/proc/{hub.pid}/limits", encoding="ascii") as file:
                limits = next(line.split()[3:5] for line in file if line.startswith("Max open files"))
            assert limits[0] == limits[1] == str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        finally:
            hub.terminate()
            assert hub.wait(20) == 0


@pytest.mark.parametrize("limit", [64, 100, 300, 1024, 4096, 20_000, 1_000_000])
def test_shares_are_never_more_than_the_limit_and_never_nothing(limit: int) -> None:
    for clients, agents in ((10_000, 5000), (1, 1), (10_000, 1), (1, 5000)):
        shares = share_out(limit, clients, agents)
        assert sum(shares) < limit
        assert min(shares) >= 1
        assert shares.clients <= clients
        assert shares.agents <= agents


def test_what_one_kind_does_not_ask_for_the_other_gets() -> None:
    both = share_out(1024, 10_000, 5000)
    assert share_out(1024, 10, 5000).agents > both.agents
    assert share_out(1024, 10_000, 10).clients > both.clients
    assert share_out(20_000, 10_000, 5000)[:3:2] == share_out(0, 10_000, 5000)[:3:2] == (10_000, 5000)
