"""grpcio's own client as an agent of a hub, base or ours."""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tunnel"))
Packet: Any = grpc.protos("tunnel.proto").Packet
DATA, ERROR, DRAIN = 0, 1, 2

Call = Any


@contextlib.asynccontextmanager
async def tunnel(port: int, *metadata: tuple[str, str]) -> AsyncIterator[Call]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call = channel.stream_stream(
            "/tunnel.v1.TunnelService/Tunnel",
            request_serializer=Packet.SerializeToString,
            response_deserializer=Packet.FromString,
        )(metadata=metadata)
        yield call
        call.cancel()


async def probe(call: Call) -> None:
    await call.write(Packet(conn_id=-1))
    assert await call.read() == Packet(conn_id=-1, code=ERROR, error_message="unknown packet connection -1")
