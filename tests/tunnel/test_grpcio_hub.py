"""Our agent's side against a base hub made with grpcio: gRPC's C core, messages compiled from the .proto."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from typing import Any

import pytest

from agent.tunnel.client import HubEndpoint

DATA, ERROR, DRAIN = 0, 1, 2


def nothing() -> None:
    pass


async def test_the_probe_of_a_base_hub_makes_ready(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("hub") as hub:
        port = (await hub.said("listening"))["port"]
        ends.start(ends.client(port, metadata=[("authorization", "Bearer abc"), ("x-blob-bin", b"\0\xff")]))
        metadata = dict((await hub.said("opened"))["metadata"])
        assert metadata["cluster-name"] == "c1"
        assert metadata["authorization"] == "Bearer abc"
        assert metadata["x-blob-bin"] == "AP8="
        assert metadata["user-agent"].startswith("fastpipe-agent")
        await ends.until(lambda: ends.ready)


async def test_packets_keep_their_order_both_ways(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("hub") as hub:
        ends.start(ends.client((await hub.said("listening"))["port"]))
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        sizes = [0, 1, 5, 127, 128, 16379, 16384, 16385, 32768, 65536, 300_000, 3, 1_000_000]
        hub.do("send", session=1, packets=[{"conn_id": 3, "size": n, "seed": i} for i, n in enumerate(sizes)])
        hub.do("send", session=1, packets=[{"conn_id": 3, "code": ERROR, "error_message": "gone: ü"}])
        await agent.until(lambda: len(agent.packets) == len(sizes) + 1)
        for index, size in enumerate(sizes):
            assert agent.packets[index] == (3, DATA, random.Random(index).randbytes(size), "")
        assert agent.packets[-1] == (3, ERROR, b"", "gone: ü")

        out = agent.tunnel.outbound(3, nothing, nothing)
        body = random.Random(9).randbytes(2_500_000)
        out.write(body)
        out.finish(ERROR, "and that is all: ü")
        agent.tunnel.send(4, DATA, b"ahead")
        received: dict[int, list[Any]] = {3: [], 4: []}
        while not received[3] or received[3][-1]["code"] != ERROR:
            packet = await hub.said("packet")
            received[packet["conn_id"]].append(packet)
        position = 0
        for packet in received[3][:-1]:
            assert packet["size"] <= 2**20
            part = body[position : position + packet["size"]]
            assert hashlib.sha256(part).hexdigest() == packet["sha256"]
            position += packet["size"]
        assert position == len(body)
        assert received[3][-1]["error_message"] == "and that is all: ü"
        assert received[4][0]["data"] == b"ahead"


@pytest.mark.slow
@pytest.mark.loops("uvloop")
async def test_a_message_of_200_mib_is_one_packet(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("hub") as hub:
        ends.start(ends.client((await hub.said("listening"))["port"]))
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        size = 200 * 2**20
        hub.do("send", session=1, packets=[{"conn_id": 1, "size": size, "seed": 1}, {"conn_id": 1, "data": "eA=="}])
        await agent.until(lambda: len(agent.packets) == 2)
        assert hashlib.sha256(agent.packets[0][2]).digest() == hashlib.sha256(random.Random(1).randbytes(size)).digest()
        assert agent.packets[1][2] == b"x"


@pytest.mark.parametrize(("status", "level", "delay_s"), [(14, "WARNING", 0.5), (7, "ERROR", 60), (16, "ERROR", 60)])
async def test_a_status_is_told_and_retried(
    grpcio: Any, tunnels: Any, caplog: Any, status: int, level: str, delay_s: float
) -> None:
    async with tunnels() as ends, grpcio("hub") as hub:
        ends.start(ends.client((await hub.said("listening"))["port"]))
        await ends.until(lambda: ends.ready)
        hub.do("end", session=1, status=status, message="because: 100 % ü")
        await ends.until(lambda: ends.delays_s)
        assert ends.delays_s == [delay_s]
        record = next(record for record in caplog.records if "because: 100 % ü" in record.message)
        assert record.levelname == level
        await ends.until(lambda: len(ends.ready) == 2)  # and it comes back


async def test_drain_ends_the_stream(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("hub") as hub:
        task = ends.start(ends.client((await hub.said("listening"))["port"]))
        await ends.until(lambda: ends.ready)
        ends.agent_sessions[0].tunnel.outbound(1, nothing, nothing).write(b"last")
        await ends.clients[0].drain(5)
        await task
        assert (await hub.said("packet"))["data"] == b"last"
        assert (await hub.said("packet"))["code"] == DRAIN
        assert ends.lost[0][1] is None


async def test_a_killed_hub_is_found_again(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends:
        async with grpcio("hub") as hub:
            port = (await hub.said("listening"))["port"]
            ends.start(ends.client(port))
            await ends.until(lambda: ends.ready)
            hub.kill()
            await ends.until(lambda: ends.lost)
        assert not ends.clients[0].ready
        async with grpcio("hub", "--port", str(port)) as hub:
            await ends.until(lambda: len(ends.ready) == 2)
            assert (await hub.said("opened"))["session"] == 1
            hub.do("send", session=1, packets=[{"conn_id": 1, "data": "bmV3"}])
            agent = ends.agent_sessions[-1]
            await agent.until(lambda: agent.packets)
            assert agent.packets == [(1, DATA, b"new", "")]


async def test_a_stopping_hub_lets_the_session_go_on_and_is_dialled_when_it_is_over(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("hub") as hub:
        ends.start(ends.client((await hub.said("listening"))["port"]))
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        out = agent.tunnel.outbound(1, nothing, nothing)  # something is in flight
        hub.do("stop", grace_s=1)
        client = ends.clients[0]
        async with asyncio.timeout(20):
            await client._calls[0].left  # GOAWAY
        assert len(ends.agent_sessions) == 1
        out.write(b"still here")
        while (await hub.said("packet"))["data"] != b"still here":
            pass
        assert ends.lost == [] or ends.lost[0][0] is agent.tunnel
        await ends.until(lambda: ends.lost)  # the grace has ended
        await ends.until(lambda: len(ends.delays_s) >= 2)  # and nobody listens


async def test_tls_with_alpn(grpcio: Any, tunnels: Any, tmp_path: Any) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    certificate = authority.issue_cert("hub.test")
    for name, blob in (("cert", certificate.cert_chain_pems[0]), ("key", certificate.private_key_pem)):
        (tmp_path / name).write_bytes(blob.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.set_alpn_protocols(["h2"])
    tls = ("--tls", str(tmp_path / "cert"), str(tmp_path / "key"))
    async with tunnels() as ends, grpcio("hub", "--echo", *tls) as hub:
        port = (await hub.said("listening"))["port"]
        ends.start(ends.client(endpoint=HubEndpoint("127.0.0.1", port, context, "hub.test")))
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        body = random.Random(3).randbytes(3_000_000)
        agent.tunnel.outbound(1, nothing, nothing).write(body)
        await agent.until(lambda: len(agent.bytes_of(1)) == len(body))
        assert agent.bytes_of(1) == body


async def test_a_hub_whose_certificate_is_unknown_is_refused(
    grpcio: Any, tunnels: Any, tmp_path: Any, caplog: Any
) -> None:
    trustme = pytest.importorskip("trustme")
    certificate = trustme.CA().issue_cert("hub.test")
    for name, blob in (("cert", certificate.cert_chain_pems[0]), ("key", certificate.private_key_pem)):
        (tmp_path / name).write_bytes(blob.bytes())
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    async with tunnels() as ends, grpcio("hub", "--tls", str(tmp_path / "cert"), str(tmp_path / "key")) as hub:
        port = (await hub.said("listening"))["port"]
        ends.start(ends.client(endpoint=HubEndpoint("127.0.0.1", port, context, "hub.test")))
        await ends.until(lambda: ends.delays_s)
        assert "TLS with 127.0.0.1" in caplog.text
        assert ends.ready == []
