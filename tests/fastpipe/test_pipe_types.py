"""The stub matches the built module, and a user's strict type check passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from fastpipe.extensions import are_enabled

pytest.importorskip("mypy", reason="in the extra `lint`")

ALLOWED = """\
# Buffers have these methods for Python code from 3.12 on; type checkers ask for them in every version.
fastpipe._pipe_c.Chunk.__buffer__
fastpipe._pipe_c.Chunk.__release_buffer__
"""

USER = """\
import asyncio

import fastpipe
from fastpipe import IMPLEMENTATION, Chunk, ChunkPool, Listener, PipeEnd, PipeStatistics, create_pipe


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


async def streams() -> bytes:
    (reader, writer), (_, other) = fastpipe.open_pipe_streams()
    other.write(b"line\\n")
    await other.drain()
    async for line in reader:
        writer.write(line)
    async with await Listener("name").start_server(serve) as server:
        theirs, ours = await server.open_connection()
        ours.close()
        await ours.wait_closed()
        transport, protocol = await server.connect(asyncio.Protocol)
        transport.close()
        assert isinstance(protocol, asyncio.Protocol)
        return await theirs.readexactly(3)


async def serve(reader: fastpipe.PipeReader, writer: fastpipe.PipeWriter) -> None:
    writer.write(await reader.read())
    writer.close()
"""


@pytest.mark.skipif(not are_enabled(), reason="FASTPIPE_NO_EXTENSIONS: nothing is built")
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


def test_pyright_finds_nothing_in_a_users_module(tmp_path):
    pytest.importorskip("basedpyright", reason="in the extra `lint`: pyright with its own node")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    (tmp_path / "user.py").write_text(USER)
    (tmp_path / "wrong.py").write_text("import fastpipe\n\nend: int = fastpipe.create_pipe()[0]\n")
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    for module, told in (("user.py", "0 errors, 0 warnings"), ("wrong.py", '"PipeEnd" is not assignable to')):
        result = subprocess.run([*command, module], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert told in result.stdout, result.stdout + result.stderr
