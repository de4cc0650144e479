"""gRPC services behind an agent, and their clients: grpcio in child processes, by `grpc_peers.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import trustme

from ..limits import scaled

MAX_LINE_BYTES = 64 * 1024 * 1024
SOAK = os.environ.get("FASTPIPE_SOAK", "") not in ("", "0")
ORDER_S = scaled(500.0 if SOAK else 50.0)
"""How long an order may take: a call that hangs fails its test."""


class CertificateFiles:
    """PEM files: a CA, and a certificate of localhost with its key."""

    def __init__(self, directory: pathlib.Path) -> None:
        authority = trustme.CA()
        self.ca, self.cert, self.key = (str(directory / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        authority.cert_pem.write_to_path(self.ca)
        pair = authority.issue_cert("localhost", "127.0.0.1")
        pair.private_key_pem.write_to_path(self.key)
        pair.cert_chain_pems[0].write_to_path(self.cert)


class Orders:
    """A connection to a peer. Each order waits for its result."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __call__(self, do: str, **fields: object) -> dict[str, Any]:
        self._writer.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        async with asyncio.timeout(ORDER_S):
            found: dict[str, Any] = json.loads(await self._reader.readline())
        assert "failed" not in found, found["failed"]
        return found


class Peer:
    """A child process. ports: `orders`, and those that a server listens on."""

    def __init__(self, *arguments: str) -> None:
        script = str(pathlib.Path(__file__).parent / "grpc_peers.py")
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"grpcio's {arguments[0]} ended: {self._process.poll()}"
        self.ports: dict[str, int] = json.loads(line)

    @contextlib.asynccontextmanager
    async def orders(self) -> AsyncIterator[Orders]:
        """A connection for orders. A client closes its channel at the end of the block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports["orders"], limit=MAX_LINE_BYTES)
        try:
            yield Orders(reader, writer)
        finally:
            with contextlib.suppress(OSError):  # it may have been killed
                writer.write_eof()
                await reader.read()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def channel(
        self, target: str, *, prefix: str = "", ca: str = "", options: Sequence[tuple[str, Any]] = ()
    ) -> AsyncIterator[Orders]:
        """A client's channel. prefix: before the service's path. ca: the file that a TLS server is checked with."""
        async with self.orders() as orders:
            await orders("open", target=target, prefix=prefix, ca=ca, options=options)
            yield orders

    def kill(self) -> None:
        self._process.kill()

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


async def call(channel: Orders, method: str, **fields: Any) -> dict[str, Any]:
    """One call, from its begin to its result."""
    await channel("start", **({"method": method, "metadata": []} | fields))
    return await channel("result")
