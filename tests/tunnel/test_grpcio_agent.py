"""Our hub's side against a base agent made with grpcio."""

from __future__ import annotations

import base64
import hashlib
import random
import ssl
from typing import Any

import pytest

from agent.tunnel.server import GrpcStatus

DATA, ERROR, DRAIN = 0, 1, 2


def nothing() -> None:
    pass


async def test_a_probe_is_answered_and_metadata_arrives(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[["cluster-name", "c1"], ["x-blob-bin", base64.b64encode(b"\0\xff").decode()]])
        await agent.said("headers")  # at once: before any packet
        agent.do("send", packets=[{"conn_id": -1}])
        answer = await agent.said("packet")
        assert (answer["conn_id"], answer["code"]) == (-1, ERROR)
        assert answer["error_message"] == "unknown packet connection -1"
        metadata = dict(ends.hub_sessions[0].metadata)
        assert metadata[b"cluster-name"] == b"c1"
        assert metadata[b"x-blob-bin"] == b"AP8"
        assert ends.hub_sessions[0].packets == []


async def test_packets_keep_their_order_both_ways(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[["cluster-name", "c1"]])
        await agent.said("headers")
        hub = ends.hub_sessions[0]
        sizes = [0, 1, 5, 127, 128, 16379, 16384, 16385, 32768, 65536, 300_000, 3, 1_000_000]
        agent.do("send", packets=[{"conn_id": 3, "size": n, "seed": i} for i, n in enumerate(sizes)])
        agent.do("send", packets=[{"conn_id": 3, "code": ERROR, "error_message": "broke: ü"}])
        await hub.until(lambda: len(hub.packets) == len(sizes) + 1)
        for index, size in enumerate(sizes):
            assert hub.packets[index] == (3, DATA, random.Random(index).randbytes(size), "")
        assert hub.packets[-1] == (3, ERROR, b"", "broke: ü")

        out = hub.tunnel.outbound(3, nothing, nothing)
        body = random.Random(9).randbytes(5_000_000)
        out.write(body)
        out.finish(ERROR, "done")
        position = 0
        while position < len(body):
            packet = await agent.said("packet")
            part = body[position : position + packet["size"]]
            assert hashlib.sha256(part).hexdigest() == packet["sha256"]
            position += packet["size"]
        assert (await agent.said("packet"))["error_message"] == "done"


@pytest.mark.slow
@pytest.mark.loops("uvloop")
async def test_a_message_of_64_mib_is_one_packet(grpcio: Any, tunnels: Any) -> None:
    async with tunnels(message_bytes=2**27) as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[["cluster-name", "c1"]])
        await agent.said("headers")
        hub = ends.hub_sessions[0]
        agent.do("send", packets=[{"conn_id": 1, "size": 64 * 2**20 + 1, "seed": 1}])
        await hub.until(lambda: hub.packets)
        expected = random.Random(1).randbytes(64 * 2**20 + 1)
        assert hashlib.sha256(hub.packets[0][2]).digest() == hashlib.sha256(expected).digest()


async def test_without_cluster_name_the_status_is_unknown(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[])
        status = await agent.said("status")
        assert status["code"] == 2
        assert "cluster-name" in status["message"]
        assert ends.hub_sessions == []


async def test_a_refusal_keeps_its_words(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        ends.refuse = GrpcStatus(7, "no: 100 % ü\nsecond line")
        agent.do("open", metadata=[["cluster-name", "c1"]])
        status = await agent.said("status")
        assert (status["code"], status["message"]) == (7, "no: 100 % ü\nsecond line")


@pytest.mark.parametrize("goodbye", ["drain", "half_close"])
async def test_an_agent_that_leaves_gets_ok(grpcio: Any, tunnels: Any, goodbye: str) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[["cluster-name", "c1"]])
        await agent.said("headers")
        hub = ends.hub_sessions[0]
        if goodbye == "drain":
            agent.do("send", packets=[{"conn_id": 0, "code": DRAIN}])
        else:
            agent.do("half_close")
        assert (await agent.said("status"))["code"] == 0
        assert hub.lost == [None]
        assert hub.packets == ([(0, DRAIN, b"", "")] if goodbye == "drain" else [])


async def test_a_cancelled_call_loses_only_itself(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[["cluster-name", "c1"]])
        await agent.said("headers")
        agent.do("open", metadata=[["cluster-name", "c2"]])  # on the same TCP connection
        await agent.said("headers")
        first, second = ends.hub_sessions
        agent.do("cancel")
        await second.until(lambda: second.lost)
        assert "CANCEL" in str(second.lost[0])
        assert first.lost == []
        first.tunnel.outbound(1, nothing, nothing).write(b"still here")
        assert (await agent.said("packet"))["data"] == b"still here"


async def test_a_closing_hub_says_unavailable(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[["cluster-name", "c1"]])
        await agent.said("headers")
        await ends.server.close()
        status = await agent.said("status")
        assert (status["code"], status["message"]) == (14, "the hub is shutting down")


async def test_a_killed_agent_is_noticed(grpcio: Any, tunnels: Any) -> None:
    async with tunnels() as ends, grpcio("agent", f"127.0.0.1:{ends.port}") as agent:
        agent.do("open", metadata=[["cluster-name", "c1"]])
        await agent.said("headers")
        agent.kill()
        hub = ends.hub_sessions[0]
        await hub.until(lambda: hub.lost)
        assert isinstance(hub.lost[0], ConnectionResetError)


async def test_tls_with_alpn(grpcio: Any, tunnels: Any, tmp_path: Any) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    async with (
        tunnels(ssl=context) as ends,
        grpcio("agent", f"localhost:{ends.port}", "--tls", str(tmp_path / "ca")) as agent,
    ):
        agent.do("open", metadata=[["cluster-name", "c1"]])
        await agent.said("headers")
        assert ends.hub_sessions[0].tunnel.get_extra_info("ssl_object") is not None
        agent.do("send", packets=[{"conn_id": 1, "size": 3_000_000, "seed": 1}])
        hub = ends.hub_sessions[0]
        await hub.until(lambda: hub.packets)
        assert hub.packets[0][2] == random.Random(1).randbytes(3_000_000)
