"""The stub says what the built module has, and a user's strict type check passes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("mypy", reason="in the extra `lint`")

WITHOUT = os.environ.get("FASTPIPE_NO_EXTENSIONS", "") not in ("", "0")

ALLOWED = """\
# Buffers have these methods for Python code from 3.12 on; type checkers ask for them in every version.
fastpipe._pipe_c.Chunk.__buffer__
fastpipe._pipe_c.Chunk.__release_buffer__
"""

USER = """\
import asyncio

from fastpipe import IMPLEMENTATION, Chunk, ChunkPool, PipeEnd, PipeStatistics, create_pipe


async def use() -> tuple[bytes, memoryview, int, float]:
    near, far = create_pipe(limit=1024, inline=True, max_chunk=None, loop=asyncio.get_running_loop())
    transport: asyncio.Transport = near
    transport.write(b"x")
    near.write(memoryview(bytearray(1)))
    near.writelines([b"a", bytearray(b"b"), ChunkPool(64).take()])
    chunk: Chunk = ChunkPool(64, spare=1).take()
    far.set_protocol(asyncio.Protocol())
    far.set_protocol(None)
    statistics: PipeStatistics = far.collect_statistics()
    ends: list[PipeEnd] = [near, far]
    for end in ends:
        end.set_extra_info("conn_id", IMPLEMENTATION)
    return far.read(3), chunk.commit(0), far.readinto(bytearray(2)), statistics.paused_s
"""


@pytest.mark.skipif(WITHOUT, reason="FASTPIPE_NO_EXTENSIONS: nothing is built")
def test_the_stub_is_the_built_module(tmp_path):
    allowlist = tmp_path / "allowed"
    allowlist.write_text(ALLOWED)
    command = [sys.executable, "-m", "mypy.stubtest", "fastpipe._pipe_c", "--allowlist", str(allowlist)]
    command += ["--ignore-unused-allowlist", "--ignore-missing-stub"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout


def test_a_users_strict_check_passes(tmp_path):
    module = tmp_path / "user.py"
    module.write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, str(module)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
