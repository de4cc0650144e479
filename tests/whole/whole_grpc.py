"""grpcio's own client as an agent of a hub, base or ours. It runs in a child process, `grpc_client.py`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

DATA, ERROR, DRAIN = 0, 1, 2
MAX_LINE_BYTES = 64 * 1024 * 1024


class Packet(NamedTuple):
    """A packet as the client's process writes or reads it. Its defaults are those of the .proto."""

    conn_id: int = 0
    code: int = DATA
    data: bytes = b""
    error_message: str = ""


class Call:
    """One call of grpcio's client. Each method waits until the client's process has done it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def order(self, do: str, **fields: object) -> dict[str, Any]:
        self._writer.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        found: dict[str, Any] = json.loads(await self._reader.readline())
        assert "failed" not in found, found["failed"]
        return found

    async def write(self, packet: Packet) -> None:
        data = base64.b64encode(packet.data).decode()
        await self.order("write", packet=[packet.conn_id, packet.code, data, packet.error_message])

    async def read(self) -> Packet:
        """The next packet. Fails at the end of the stream."""
        found = (await self.order("read"))["packet"]
        assert found is not None, "the stream has ended"
        conn_id, code, data, error_message = found
        return Packet(conn_id, code, base64.b64decode(data), error_message)

    async def code(self) -> str:
        """The name of the call's status, when the call has ended."""
        return str((await self.order("code"))["code"])


Tunnel = Callable[..., contextlib.AbstractAsyncContextManager[Call]]
"""`GrpcClient.tunnel` as the fixture `tunnel` gives it to tests."""


class GrpcClient:
    """`grpc_client.py` as a child process. Calls don't see each other, so tests share one."""

    def __init__(self) -> None:
        script = str(pathlib.Path(__file__).parent / "grpc_client.py")
        self._process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        name, _, port = self._process.stdout.readline().decode().partition(" ")
        assert name == "port", f"grpcio's client ended: {self._process.poll()}"
        self._port = int(port)

    @contextlib.asynccontextmanager
    async def tunnel(self, port: int, *metadata: tuple[str, str]) -> AsyncIterator[Call]:
        """A call to the hub at this port. The client cancels it at the end of the block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=MAX_LINE_BYTES)
        try:
            call = Call(reader, writer)
            await call.order("open", port=port, metadata=metadata)
            yield call
        finally:
            writer.write_eof()
            await reader.read()  # the client has closed the call and its channel
            writer.close()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


async def probe(call: Call) -> None:
    await call.write(Packet(conn_id=-1))
    assert await call.read() == Packet(conn_id=-1, code=ERROR, error_message="unknown packet connection -1")
