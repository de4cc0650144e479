"""Our hub with grpcio's client as the agent: responses to users if agent or tunnel end at an awkward moment."""

from __future__ import annotations

import asyncio

import pytest

from .whole_cluster import running_hub
from .whole_grpc import DATA, DRAIN, ERROR, Packet, Tunnel, probe
from .whole_peers import curl, running_cable, until

pytestmark = pytest.mark.loops("asyncio")

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nwhole\n"


DRAIN_MESSAGE = bytes.fromhex("00 00000002 1002")  # gRPC's prefix, and the packet: field 2, code, is 2


async def test_answer_right_before_the_tunnels_end_reaches_its_client(tunnel: Tunnel) -> None:
    async with (
        running_hub() as (grpc_port, http_port),
        running_cable(grpc_port) as cable,
        tunnel(cable.port, ("cluster-name", "c1")) as call,
    ):
        await probe(call)
        waiting = asyncio.ensure_future(curl(f"http://127.0.0.1:{http_port}/c1/"))
        while not (packet := await call.read()).data:
            pass
        cable.holding = True  # so that both come in one read of the hub's
        await call.write(Packet(conn_id=packet.conn_id, code=DATA, data=ANSWER))
        await call.write(Packet(code=DRAIN))
        await until(lambda: DRAIN_MESSAGE in cable.held)
        cable.let_go()
        assert await waiting == (0, b"whole\n", b"")


async def test_agents_error_is_a_502_before_and_a_cut_after_the_first_byte(tunnel: Tunnel) -> None:
    async with running_hub() as (grpc_port, http_port), tunnel(grpc_port, ("cluster-name", "c1")) as call:
        await probe(call)
        for sent, expected in ((b"", 22), (ANSWER[:-2], 18)):
            waiting = asyncio.ensure_future(curl("-f", f"http://127.0.0.1:{http_port}/c1/"))
            while not (packet := await call.read()).data:
                pass
            if sent:
                await call.write(Packet(conn_id=packet.conn_id, code=DATA, data=sent))
            await call.write(Packet(conn_id=packet.conn_id, code=ERROR, error_message="no secret"))
            code, output, _ = await waiting
            assert (code, b"secret" in output) == (expected, False)
