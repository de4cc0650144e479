"""A base hub or a base agent, made with grpcio (gRPC's C core) and without our code. It runs in its own process.

    python grpcio_peer.py MESSAGES_DIR hub [--port N] [--unlimited] [--tls CERT KEY] [--echo]
    python grpcio_peer.py MESSAGES_DIR agent HOST:PORT [--tls CA]

MESSAGES_DIR is the folder in which `grpc_tools.protoc` put tunnel_pb2.py and tunnel_pb2_grpc.py. The process reads
orders as lines of JSON from standard input. It writes events as lines of JSON to standard output.

A packet in an order or an event is an object with conn_id, code, error_message and data (base64). If the data is
larger than 4 KiB, an event has size and sha256 instead. In an order, `size` and `seed` mean `size` bytes of
`random.Random(seed)`.

    hub      reports listening(port), opened(session, metadata), packet(session, …), closed(session)
             does send(session, packets), end(session, status, message), stop(grace_s), quit
    agent    reports headers(metadata), packet(…), status(code, message)
             does open(metadata), send(packets), half_close, cancel, quit
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import pathlib
import random
import sys
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("messages")
parser.add_argument("role", choices=("hub", "agent"))
parser.add_argument("address", nargs="?")
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--unlimited", action="store_true", help="take messages of 4 MiB and more")
parser.add_argument("--echo", action="store_true", help="send DATA back as received, report no packets")
parser.add_argument("--tls", nargs="+")
arguments = parser.parse_args()
sys.path.insert(0, arguments.messages)

import grpc  # noqa: E402
import tunnel_pb2  # noqa: E402
import tunnel_pb2_grpc  # noqa: E402

Packet = tunnel_pb2.Packet
certificates = [pathlib.Path(name).read_bytes() for name in arguments.tls or ()]
OPTIONS = [("grpc.max_receive_message_length", -1)] if arguments.unlimited or arguments.role == "agent" else []


def say(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def described(packet: Any) -> dict[str, Any]:
    fields = {"conn_id": packet.conn_id, "code": int(packet.code), "error_message": packet.error_message}
    if len(packet.data) <= 4096:
        fields["data"] = base64.b64encode(packet.data).decode()
    else:
        fields |= {"size": len(packet.data), "sha256": hashlib.sha256(packet.data).hexdigest()}
    return fields


def made(fields: dict[str, Any]) -> Any:
    data = base64.b64decode(fields.get("data", ""))
    if "size" in fields:
        data = random.Random(fields["seed"]).randbytes(fields["size"])
    return Packet(
        conn_id=fields["conn_id"], code=fields.get("code", 0), data=data, error_message=fields.get("error_message", "")
    )


def text_of(metadata: Any) -> list[list[str]]:
    return [[k, v if isinstance(v, str) else base64.b64encode(v).decode()] for k, v in metadata or ()]


async def orders() -> Any:
    """Yields each order when it arrives."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        if order["do"] == "quit":
            return
        yield order


class Hub(tunnel_pb2_grpc.TunnelServiceServicer):
    def __init__(self) -> None:
        self.queues: dict[int, asyncio.Queue[Any]] = {}

    async def Tunnel(self, requests: Any, context: Any) -> None:
        metadata = text_of(context.invocation_metadata())
        session = len(self.queues) + 1
        queue = self.queues[session] = asyncio.Queue()
        if not any(name == "cluster-name" for name, _ in metadata):
            await context.abort(grpc.StatusCode.UNKNOWN, "cluster-name is missing")
        say("opened", session=session, metadata=metadata)
        reading = asyncio.create_task(self.read(session, requests, queue))
        try:
            while True:
                item = await queue.get()
                if isinstance(item, tuple):
                    if item[0] == 0:
                        return
                    await context.abort(next(c for c in grpc.StatusCode if c.value[0] == item[0]), item[1])
                await context.write(item)
        finally:
            reading.cancel()
            say("closed", session=session)

    async def read(self, session: int, requests: Any, queue: Any) -> None:
        async for packet in requests:
            if packet.conn_id == -1 and packet.code == 0:
                queue.put_nowait(Packet(conn_id=-1, code=1, error_message="unknown packet connection -1"))
            elif arguments.echo and packet.code == 0:
                queue.put_nowait(packet)
            else:
                say("packet", session=session, **described(packet))
            if packet.conn_id == 0 and packet.code == 2:
                break
        queue.put_nowait((0, ""))


async def run_hub() -> None:
    hub = Hub()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *OPTIONS])
    tunnel_pb2_grpc.add_TunnelServiceServicer_to_server(hub, server)
    address = f"127.0.0.1:{arguments.port}"
    if arguments.tls:
        certificate, key = certificates
        port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    else:
        port = server.add_insecure_port(address)
    await server.start()
    say("listening", port=port)
    async for order in orders():
        if order["do"] == "send":
            for fields in order["packets"]:
                hub.queues[order["session"]].put_nowait(made(fields))
        elif order["do"] == "end":
            hub.queues[order["session"]].put_nowait((order["status"], order.get("message", "")))
        elif order["do"] == "stop":
            stopping = asyncio.create_task(server.stop(order["grace_s"]))  # noqa: F841, RUF006
    await server.stop(0)


async def run_agent() -> None:
    if arguments.tls:
        credentials = grpc.ssl_channel_credentials(certificates[0])
        channel = grpc.aio.secure_channel(arguments.address, credentials, options=OPTIONS)
    else:
        channel = grpc.aio.insecure_channel(arguments.address, options=OPTIONS)
    call: Any = None
    reading: Any = None

    async def read(call: Any) -> None:
        try:
            say("headers", metadata=text_of(await call.initial_metadata()))
            async for packet in call:
                say("packet", **described(packet))
        except grpc.aio.AioRpcError:
            pass
        say("status", code=(await call.code()).value[0], message=await call.details())

    async for order in orders():
        if order["do"] == "open":
            metadata = [(k, base64.b64decode(v) if k.endswith("-bin") else v) for k, v in order["metadata"]]
            call = tunnel_pb2_grpc.TunnelServiceStub(channel).Tunnel(metadata=metadata)
            reading = asyncio.create_task(read(call))
        elif order["do"] == "send":
            for fields in order["packets"]:
                try:
                    await call.write(made(fields))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the call has ended: see its status
                    break
        elif order["do"] == "half_close":
            await call.done_writing()
        elif order["do"] == "cancel":
            call.cancel()
    if reading is not None:
        reading.cancel()
    await channel.close()


asyncio.run(run_hub() if arguments.role == "hub" else run_agent())
