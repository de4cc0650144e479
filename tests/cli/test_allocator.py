"""The memory of one read is there for the next one, without the kernel."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

READS = """
import resource
from collections import deque
from agent.cli.allocator import keep_freed_memory
kept = keep_freed_memory()
alive = deque(maxlen=4)  # the last ones are on their way to the client
def read(times):
    for _ in range(times):
        alive.append(b"x" * 262144)
read(100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
read(1000)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def reads(**environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", READS]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_reads_after_the_first_ones_take_no_page_faults() -> None:
    kept, faults = reads()
    assert kept == "True"
    assert int(faults) < 1000, "a read of 256 KiB would be 64"


@pytest.mark.skipif(sys.platform == "win32", reason="counts page faults")
def test_an_allocator_that_was_set_up_is_left_alone() -> None:
    assert reads(MALLOC_ARENA_MAX="2")[0] == "False"
