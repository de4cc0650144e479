"""A TCP relay that delays all bytes one way, like a long link: `python -m bench.delay_relay PORT DELAY_MS`.

It prints `listening PORT`. It loses and reorders nothing, and bounds no bytes in flight.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop


class Half(asyncio.Protocol):
    """One side. `other` sends the received bytes after the delay."""

    def __init__(self, delay_s: float, port: int | None) -> None:
        self.delay_s, self.port = delay_s, port
        self.transport: Any = None
        self.other: Half | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(1 << 30)
        if self.port is not None:
            self._dialling = asyncio.ensure_future(self._dial(self.port))

    async def _dial(self, port: int) -> None:
        _, self.other = await asyncio.get_running_loop().create_connection(
            lambda: Half(self.delay_s, None), "127.0.0.1", port
        )
        self.other.other = self
        for data in self._early:
            self.other.later(data)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early.append(data)
        else:
            self.other.later(data)

    def later(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self.delay_s, self.transport.write, data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None:
            asyncio.get_running_loop().call_later(self.delay_s, self.other.transport.close)


async def main(port: int, delay_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Half(delay_s, port), "127.0.0.1", 0)
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2]) / 1000))
