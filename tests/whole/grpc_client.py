"""grpcio's client in its own process: calls of `TunnelService/Tunnel`, one for each connection to this script.

`python grpc_client.py` prints `port PORT` and exits at the end of its standard input. Each connection carries one call.
The peer sends one order, a line of JSON, and gets one line back before it sends the next:

    {"do": "open", "port": N, "metadata": [[NAME, VALUE], …]}       opens the call → {}
    {"do": "write", "packet": PACKET}                               → {}
    {"do": "read"}                       → {"packet": PACKET}, null at the end of the stream
    {"do": "code"}                       waits for the end of the call → {"code": "OK"}

PACKET is [conn_id, code, data in base64, error_message]. An error in a line is {"failed": TEXT}. A connection that
closes cancels its call.

gRPC's core is process-wide: one queue and one thread serve all event loops, and stay behind when a loop closes. A
completion for a closed loop raises where the queue is read, and the completions behind it wait. A fork gives the core
new descriptors. So no test process runs grpcio, and this process has one loop for its whole life.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import pathlib
import sys
from typing import Any

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tunnel"))
Packet: Any = grpc.protos("tunnel.proto").Packet

MAX_LINE_BYTES = 64 * 1024 * 1024
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


class Call:
    """One call, and its channel."""

    def __init__(self) -> None:
        self.channel: Any = None
        self.call: Any = None

    async def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        match order["do"]:
            case "open":
                self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{order['port']}", options=OPTIONS)
                self.call = self.channel.stream_stream(
                    "/tunnel.v1.TunnelService/Tunnel",
                    request_serializer=Packet.SerializeToString,
                    response_deserializer=Packet.FromString,
                )(metadata=[tuple(pair) for pair in order["metadata"]])
            case "write":
                conn_id, code, data, text = order["packet"]
                packet = Packet(conn_id=conn_id, code=code, data=base64.b64decode(data), error_message=text)
                await self.call.write(packet)
            case "read":
                packet = await self.call.read()
                if packet is grpc.aio.EOF:
                    return {"packet": None}
                data = base64.b64encode(packet.data).decode()
                return {"packet": [packet.conn_id, packet.code, data, packet.error_message]}
            case "code":
                return {"code": (await self.call.code()).name}
        return {}

    async def close(self) -> None:
        if self.call is not None:
            self.call.cancel()
            await self.channel.close()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take orders until the peer closes, even if an order is still running then."""
    call = Call()
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[bytes] = asyncio.Queue()

    async def read_lines() -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                lines.put_nowait(line)

    async def obey_lines() -> None:
        while True:
            order = json.loads(await lines.get())
            try:
                found = await call.obey(order)
            except grpc.aio.AioRpcError as error:
                found = {"failed": repr(error)}
            writer.write(json.dumps(found).encode() + b"\n")
            await writer.drain()

    reading, obeying = loop.create_task(read_lines()), loop.create_task(obey_lines())
    await asyncio.wait([reading, obeying], return_when=asyncio.FIRST_COMPLETED)
    reading.cancel()
    obeying.cancel()
    await call.close()
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=MAX_LINE_BYTES)
    print(f"port {server.sockets[0].getsockname()[1]}", flush=True)
    standard_input = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(standard_input), sys.stdin)
    await standard_input.read()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
