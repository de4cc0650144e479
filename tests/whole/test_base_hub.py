"""The base hub that the other tests drive behaves as in wire.md, seen from grpcio's own client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator

import pytest

from .whole_grpc import DRAIN, ERROR, Packet, Tunnel, probe
from .whole_peers import BIG, BIG_SHA256, BaseHubProcess, curl

pytestmark = pytest.mark.loops("asyncio")


async def test_probe_is_answered_with_an_error(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(base_hub_process.grpc_port, ("cluster-name", "probe")) as call:
        await probe(call)
    assert base_hub_process.stats("probe")["probes"] == 1


async def test_stream_without_cluster_name_ends_unknown(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(base_hub_process.grpc_port) as call:
        assert await call.code() == "UNKNOWN"


async def test_first_request_comes_as_an_empty_packet_and_one_whole_one(
    base_hub_process: BaseHubProcess, tunnel: Tunnel
) -> None:
    hub, url = base_hub_process, f"http://127.0.0.1:{base_hub_process.http_port}/first/up"
    async with tunnel(hub.grpc_port, ("cluster-name", "first")) as call:
        await probe(call)
        running = asyncio.ensure_future(curl("-T", "-", "-X", "POST", "-H", "Expect: 100-continue", url, stdin=BIG))
        assert await call.read() == Packet(conn_id=1)
        packet = await call.read()
        head, _, body = packet.data.partition(b"\r\n\r\n")
        assert packet.conn_id == 1
        assert head.startswith(b"POST /first/up HTTP/1.1\r\nHost: 127.0.0.1")
        assert b"Content-Length" not in head
        assert b"Transfer-Encoding" not in head
        assert b"Expect: 100-continue" in head
        assert hashlib.sha256(body).hexdigest() == BIG_SHA256
        await call.write(Packet(conn_id=1, data=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
        assert await running == (0, b"ok", b"")
        # The client has left, and nobody reports it. A packet for it now brings an ERROR.
        await hub.until("first", lambda seen: seen["open_connections"] == 0)
        await call.write(Packet(conn_id=1))
        assert await call.read() == Packet(conn_id=1, code=ERROR, error_message="unknown packet connection 1")


async def test_further_bytes_come_raw_in_packets_of_32_kib(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    hub = base_hub_process
    async with tunnel(hub.grpc_port, ("cluster-name", "raw")) as call:
        await probe(call)
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.http_port)
        writer.write(b"GET /raw/ HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await call.read()).data == b""
        assert (await call.read()).data == b"GET /raw/ HTTP/1.1\r\nHost: h\r\n\r\n"
        writer.write(BIG)
        received = bytearray()
        while len(received) < len(BIG):
            packet = await call.read()
            assert len(packet.data) <= 32768
            received += packet.data
        assert received == BIG
        await call.write(Packet(conn_id=1, data=b"\x00anything"))
        assert await reader.readexactly(9) == b"\x00anything"
        await call.write(Packet(conn_id=1, code=ERROR, error_message="for the client"))
        assert await reader.read() == b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\nfor the client"
        writer.close()


async def test_packets_past_a_hundred_are_dropped_silently(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    hub = base_hub_process
    async with tunnel(hub.grpc_port, ("cluster-name", "slow")) as call:
        await probe(call)
        _, writer = await asyncio.open_connection("127.0.0.1", hub.http_port, limit=1024)
        writer.write(b"GET /slow/ HTTP/1.1\r\nHost: h\r\n\r\n")
        await call.read()
        for _ in range(200):
            await call.write(Packet(conn_id=1, data=b"x" * 262144))
        await hub.until("slow", lambda seen: seen["dropped_packets"] > 0 and seen["packets_in"] == 200)
        writer.transport.abort()


async def test_drain_ends_the_stream_at_once(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(base_hub_process.grpc_port, ("cluster-name", "drain")) as call:
        await probe(call)
        await call.write(Packet(code=DRAIN))
        assert await call.code() == "OK"
    assert base_hub_process.stats("drain")["drains"] == 1


async def test_message_of_four_mib_ends_the_stream(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(base_hub_process.grpc_port, ("cluster-name", "large")) as call:
        await probe(call)
        await call.write(Packet(conn_id=1, data=bytes(4 * 1024 * 1024)))
        assert await call.code() == "RESOURCE_EXHAUSTED"


async def test_replaced_agent_is_flooded_with_id_zero(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(base_hub_process.grpc_port, ("cluster-name", "twice")) as old:
        await probe(old)
        async with tunnel(base_hub_process.grpc_port, ("cluster-name", "twice")) as new:
            await probe(new)
            for _ in range(1000):
                assert await old.read() == Packet()


async def test_commands_drop_refuse_and_send_packets(base_hub_process: BaseHubProcess, tunnel: Tunnel) -> None:
    hub = base_hub_process
    async with tunnel(hub.grpc_port, ("cluster-name", "cmd")) as call:
        await probe(call)
        hub.command("raw cmd 7 616263")
        assert await call.read() == Packet(conn_id=7, data=b"abc")
        hub.command("code cmd 7 9 some text")
        assert (await call.read()).code == 9
        hub.command("flood cmd 3")
        assert [await call.read() for _ in range(3)] == [Packet()] * 3
        hub.command("drop cmd INTERNAL")
        assert await call.code() == "INTERNAL"
    hub.command("refuse cmd PERMISSION_DENIED")
    async with tunnel(hub.grpc_port, ("cluster-name", "cmd")) as call:
        assert await call.code() == "PERMISSION_DENIED"
    assert hub.stats("cmd")["ends"] == ["INTERNAL", "PERMISSION_DENIED"]


async def test_no_agent_is_a_503(base_hub_process: BaseHubProcess) -> None:
    code, output, _ = await curl("-w", "%{http_code}", f"http://127.0.0.1:{base_hub_process.http_port}/nobody/")
    assert (code, output) == (0, b"no agent\n503")


# ---------------------------------------------------------------- the faults of a hub written in Go


@pytest.fixture
def go_hub() -> Iterator[BaseHubProcess]:
    hub = BaseHubProcess("--go", "2")
    yield hub
    hub.close()


async def ask(hub: BaseHubProcess, cluster: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.http_port)
    writer.write(f"GET /{cluster}/ HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    return reader, writer


async def test_go_hub_lists_a_connection_for_its_time_and_no_longer(go_hub: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(go_hub.grpc_port, ("cluster-name", "life")) as call:
        await probe(call)
        reader, writer = await ask(go_hub, "life")
        assert await call.read() == Packet(conn_id=1)
        assert b"GET /life/" in (await call.read()).data
        await call.write(Packet(conn_id=1, data=b"a part"))
        assert await reader.readexactly(6) == b"a part"
        assert go_hub.stats("life")["open_connections"] == 1
        assert await reader.read() == b""  # the hub closes it, with or without a response
        await go_hub.until("life", lambda seen: seen["open_connections"] == 0)
        writer.close()
        await call.write(Packet(code=DRAIN))
        assert await call.code() == "OK"
    assert go_hub.frozen() == {"frozen": False, "stuck": []}


async def test_go_hub_answers_an_error_behind_what_is_queued_and_closes(go_hub: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(go_hub.grpc_port, ("cluster-name", "error")) as call:
        await probe(call)
        reader, writer = await ask(go_hub, "error")
        await call.read()
        await call.write(Packet(conn_id=1, data=b"an answer"))
        await call.write(Packet(conn_id=1, code=ERROR, error_message="bye"))
        said = await reader.read()
        assert said.startswith(b"an answerHTTP/1.1 502 Bad Gateway\r\n")
        assert said.endswith(b"Content-Length: 3\r\nConnection: close\r\n\r\nbye")
        await go_hub.until("error", lambda seen: seen["open_connections"] == 0)
        writer.close()


async def test_go_hub_is_stuck_where_a_stream_ends_under_a_connection_and_frozen_by_the_next(
    go_hub: BaseHubProcess, tunnel: Tunnel
) -> None:
    async with tunnel(go_hub.grpc_port, ("cluster-name", "stuck")) as call:
        await probe(call)
        _, listed = await ask(go_hub, "stuck")
        await call.read()
        await call.write(Packet(code=DRAIN))
        await go_hub.until("stuck", lambda seen: seen["listed_at_end"] == [1])
    assert go_hub.frozen() == {"frozen": False, "stuck": ["stuck"]}
    async with tunnel(go_hub.grpc_port, ("cluster-name", "stuck")) as call:
        await call.write(Packet(conn_id=-1))
        await go_hub.until("stuck", lambda seen: seen["streams"] == 2)
        assert go_hub.frozen()["frozen"]
        other, asked = await ask(go_hub, "another")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):  # not even the 503 for a cluster without an agent
                await other.read()
        asked.close()
    listed.close()


async def test_go_hub_is_frozen_by_a_second_stream_beside_a_connection(go_hub: BaseHubProcess, tunnel: Tunnel) -> None:
    async with tunnel(go_hub.grpc_port, ("cluster-name", "second")) as call:
        await probe(call)
        _, listed = await ask(go_hub, "second")
        await call.read()
        async with tunnel(go_hub.grpc_port, ("cluster-name", "second")) as second:
            await second.write(Packet(conn_id=-1))
            await go_hub.until("second", lambda seen: seen["streams"] == 2)
            assert go_hub.frozen()["frozen"]
        listed.close()
