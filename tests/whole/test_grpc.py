"""gRPC from end to end: grpcio's client → hub → agent → grpcio's server, plaintext and TLS.

`make soak` runs the full sizes: FASTPIPE_SOAK=1.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import pytest

from agent.config.schema import MemoryCommConfig

from .whole_calls import CertificateFiles, Orders, Peer, call
from .whole_cluster import Cluster, RunningAgent, Whole, running_hub
from .whole_connect import tcp_target
from .whole_peers import NginxServer, free_port, until

SOAK = os.environ.get("FASTPIPE_SOAK", "") not in ("", "0")
MIB = 1024 * 1024
EMPTY = b"\0\0\0\0\0"  # an empty message, not compressed

pytestmark = [pytest.mark.loops("uvloop"), pytest.mark.timeout(600 if SOAK else 120)]
one_mode = pytest.mark.parametrize("mode", ["memory"], indirect=True)


@pytest.fixture
def hub_kind() -> str:
    """A base hub has no HTTP/2."""
    return "ours"


def target(server: Peer) -> str:
    return f"h2c://127.0.0.1:{server.ports['plain']}"


@contextlib.asynccontextmanager
async def calling(
    cluster: Cluster, server: Peer, client: Peer, **options: Any
) -> AsyncIterator[tuple[Whole, Orders, Orders]]:
    """A hub and an agent before the server, a channel to the hub, and orders for the server."""
    async with (
        cluster.running(target(server)) as whole,
        server.orders() as orders,
        client.channel(f"127.0.0.1:{whole.http_port}", prefix=f"/{whole.cluster}", **options) as channel,
    ):
        await orders("again")
        try:
            yield whole, channel, orders
        finally:
            await orders("release")


# -- the four kinds of call


async def test_unary_calls(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        calls = 10_000 if SOAK else 1000
        found = await channel("echoes", calls=calls, size=100, at_once=50)
        assert found == {"codes": {"OK": calls}, "wrong": 0}


async def test_streams_both_ways_at_once(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        messages = 1000 if SOAK else 50
        found = await channel("chats", streams=100, messages=messages, size=200, ahead=30)
        assert (found["codes"], found["wrong"], found["received"]) == ({"OK": 100}, 0, 100 * messages)


async def test_ping_pong(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        messages = 10_000 if SOAK else 500
        found = await channel("chats", streams=1, messages=messages, size=20, ahead=1)
        assert (found["codes"], found["wrong"], found["received"]) == ({"OK": 1}, 0, messages)


@one_mode
async def test_streams_one_way(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        assert (await channel("collect", messages=300, size=10_000))["right"]
        assert await channel("collect", messages=0, size=1) == {"right": True}
        assert await channel("generate", messages=300, size=10_000) == {"received": 300, "wrong": 0}
        assert await channel("generate", messages=0, size=1) == {"received": 0, "wrong": 0}


async def test_messages_of_16_mib(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        found = await channel("echoes", calls=2, size=16 * MIB, at_once=2)
        assert found == {"codes": {"OK": 2}, "wrong": 0}


@one_mode
async def test_a_client_that_reads_late_gets_all(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        found = await channel("generate", messages=1000, size=16_384, pause_s=0.5)
        assert found == {"received": 1000, "wrong": 0}


# -- ends of a call


@pytest.mark.parametrize("streams", [False, True], ids=["trailers-only", "trailers"])
@one_mode
async def test_every_status_with_its_message(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer, streams: bool
) -> None:
    """A call that ends before its first message has only a head, and nothing behind it."""
    trailing = [["x-plain", "a, b"], ["x-some-bin", ["AP8B"]], ["set-cookie", "a=b"], ["date", "today"]]
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        for code in range(17):
            message = f"status {code}: 100% ü" if code else ""
            body = json.dumps({"code": code, "message": message, "trailing": trailing})
            found = await call(channel, "EndStream" if streams else "End", body=body, streams=streams)
            assert (found["code"], found["details"]) == (code, message)
            assert found["trailing"] == trailing, code


async def test_metadata_passes_both_ways(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    sent = [["x-own-text", "a b"], ["x-own-bin", ["AP8="]], ["x-own-bin", ["AA=="]], ["x-own-long", "y" * 5000]]
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        found = await call(channel, "Metadata", metadata=sent, timeout_s=20)
        assert (found["code"], found["initial"], found["trailing"]) == (0, sent, sent)
        received, _, remaining_s = json.loads(found["response"])
        assert [pair for pair in received if pair[0].startswith("x-own")] == sent
        assert 10 < remaining_s <= 20
        names = [name for name, _ in received]
        assert "x-request-id" in names
        assert "user-agent" in names


@one_mode
async def test_compressed_messages_pass_untouched(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        body = json.dumps({"code": 0, "message": "", "trailing": [], "long": "a" * 100_000})
        found = await call(channel, "End", body=body, compression="Gzip")
        assert (found["code"], found["response"]) == (0, "ok")


@one_mode
async def test_an_unknown_method_is_the_servers_answer(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, _):
        found = await call(channel, "Nothing")
        assert (found["code"], found["details"]) == (12, "Method not found!")


@pytest.mark.parametrize("streams", [False, True], ids=["unary", "stream"])
async def test_a_cancelled_call_reaches_the_server(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer, streams: bool
) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (whole, channel, orders):
        await channel("start", method="HoldStream" if streams else "Hold", metadata=[], streams=streams)
        assert (await orders("event"))["event"] == "arrived"
        if streams:
            assert await channel("first") == {"message": "one"}
        cancelled_s = (await channel("cancel"))["at_s"]
        event = await orders("event")
        assert event["event"] == "cancelled"
        assert event["at_s"] - cancelled_s < 1
        assert (await channel("result"))["code"] == 1
        assert (await channel("echoes", calls=1, size=1, at_once=1))["codes"] == {"OK": 1}  # the same connection
        await until(lambda: whole.agent.agent.open_connections <= 1)


async def test_a_deadline_ends_the_call_everywhere(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, orders):
        await channel("start", method="Hold", metadata=[], timeout_s=0.3)
        assert (await orders("event"))["event"] == "arrived"
        event = await orders("event")
        assert event["event"] == "cancelled"
        found = await channel("result")
        assert found["code"] == 4
        assert abs(event["at_s"] - found["at_s"]) < 1


# -- many at once


@one_mode
async def test_a_thousand_calls_at_once_wait_in_the_client(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer
) -> None:
    """The hub announces 128 streams. grpcio's client lets the others wait, and all finish."""
    async with calling(cluster, grpc_server, grpc_client) as (_, channel, orders):
        calling_all = asyncio.ensure_future(channel("echoes", calls=1000, size=50, at_once=1000, method="Hold"))
        for _ in range(128):
            assert (await orders("event"))["event"] == "arrived"
        await asyncio.sleep(0.2)
        assert await orders("peak") == {"peak": 128}
        await orders("release")
        assert await calling_all == {"codes": {"OK": 1000}, "wrong": 0}
        assert await orders("peak") == {"peak": 128}


@one_mode
async def test_a_thousand_calls_run_at_once_where_the_limits_allow_it(
    mode: str, grpc_server: Peer, grpc_client: Peer
) -> None:
    limits = {"memory_comm": MemoryCommConfig(max_connections=2000)}
    async with (
        running_hub(http2_max_streams=1000) as (grpc_port, http_port),
        one_agent(grpc_port, mode, target(grpc_server), **limits) as agent,
        grpc_server.orders() as orders,
        grpc_client.channel(f"127.0.0.1:{http_port}", prefix="/c1") as channel,
    ):
        await agent.wait_ready()
        await orders("again")
        calling_all = asyncio.ensure_future(channel("echoes", calls=1000, size=50, at_once=1000, method="Hold"))
        for _ in range(1000):
            assert (await orders("event"))["event"] == "arrived"
        assert await orders("peak") == {"peak": 1000}
        await orders("release")
        assert await calling_all == {"codes": {"OK": 1000}, "wrong": 0}


@contextlib.asynccontextmanager
async def one_agent(grpc_port: int, mode: str, url: str, **config: Any) -> AsyncIterator[RunningAgent]:
    agent = RunningAgent(
        **(
            {
                "hub_address": f"127.0.0.1:{grpc_port}",
                "cluster_name": "c1",
                "insecure": True,
                "use_memory_comm": mode == "memory",
                "drain_grace_s": 2.0,
                "routes": (f"/={url}",),
            }
            | config
        )
    )
    try:
        await agent.wait_ready()
        yield agent
    finally:
        await agent.stop()


# -- TLS


@one_mode
@pytest.mark.parametrize("scheme", ["h2", "https"])
async def test_calls_over_tls_at_both_ends(
    mode: str, scheme: str, grpc_server: Peer, grpc_client: Peer, grpc_files: CertificateFiles
) -> None:
    config: dict[str, Any] = {"target_ca_file": grpc_files.ca}
    if scheme == "https":
        config["target_http2"] = True
    url = f"{scheme}://localhost:{grpc_server.ports['tls']}"
    async with (
        running_hub(http_cert_file=grpc_files.cert, http_key_file=grpc_files.key) as (grpc_port, http_port),
        one_agent(grpc_port, mode, url, **config),
        grpc_client.channel(f"localhost:{http_port}", prefix="/c1", ca=grpc_files.ca) as channel,
    ):
        found = await channel("echoes", calls=100, size=1000, at_once=20)
        assert found == {"codes": {"OK": 100}, "wrong": 0}
        found = await channel("chats", streams=10, messages=50, size=1000, ahead=10)
        assert (found["codes"], found["wrong"], found["received"]) == ({"OK": 10}, 0, 500)
        body = json.dumps({"code": 5, "message": "none", "trailing": [["x-bin", ["AP8="]]]})
        found = await call(channel, "End", body=body)
        assert (found["code"], found["details"], found["trailing"]) == (5, "none", [["x-bin", ["AP8="]]])


# -- failures of hub and agent


@one_mode
async def test_failures_before_the_head_are_statuses(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async with cluster.running(f"h2c://127.0.0.1:{free_port()}") as whole:
        address, prefix = f"127.0.0.1:{whole.http_port}", f"/{whole.cluster}"
        async with grpc_client.channel(address, prefix=prefix) as channel:
            found = await call(channel, "Echo")
            assert (found["code"], "the target refused the connection" in found["details"]) == (14, True)
            assert "(request id: " in found["details"]
            assert dict(found["initial"] + found["trailing"])["x-request-id"] in found["details"]
            found = await call(channel, "Echo", metadata=[["x-long", "y" * 4000]] * 17)
            assert found["code"] in (13, 8)  # grpcio itself may find it too long
            await whole.agent.stop()
            found = await call(channel, "Echo")
            assert (found["code"], "(request id: " in found["details"]) == (14, True)


async def test_one_call_too_many_is_resource_exhausted(mode: str, grpc_server: Peer, grpc_client: Peer) -> None:
    """At the agent, which has one connection for each call, and at the hub's port for users."""
    limits = {"memory_comm": MemoryCommConfig(max_connections=1)}
    async with (
        running_hub(max_clients=1) as (grpc_port, http_port),
        one_agent(grpc_port, mode, target(grpc_server), **limits),
        grpc_server.orders() as orders,
        grpc_client.channel(f"127.0.0.1:{http_port}", prefix="/c1") as channel,
        grpc_client.channel(f"127.0.0.1:{http_port}", prefix="/c1") as another,
    ):
        await orders("again")
        held = asyncio.ensure_future(channel("echoes", calls=2, size=9, at_once=2, method="Hold"))
        assert (await orders("event"))["event"] == "arrived"
        found = await call(another, "Echo")
        assert (found["code"], found["details"].startswith("too many connections")) == (8, True)
        await orders("release")
        assert (await held)["codes"] == {"OK": 1, "RESOURCE_EXHAUSTED": 1}


@one_mode
async def test_an_unknown_cluster_is_unimplemented(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.hub.known_clusters.STARTING_S", 0.0)
    async with calling(cluster, grpc_server, grpc_client) as (whole, _, _):
        async with grpc_client.channel(f"127.0.0.1:{whole.http_port}", prefix="/nobody") as channel:
            found = await call(channel, "Echo")
            assert (found["code"], "(request id: " in found["details"]) == (12, True)
        async with grpc_client.channel(f"127.0.0.1:{whole.http_port}", prefix="/No_Label") as channel:
            assert (await call(channel, "Echo"))["code"] == 12


class RawCaller:
    """A client with the h2 library that shows each frame of a response."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self._h2.initiate_connection()
        self.events: list[Any] = []

    def begin(self, path: str, *fields: tuple[str, str], body: bytes = EMPTY, ended: bool = True) -> int:
        stream_id = self._h2.get_next_available_stream_id()
        head = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h"), ("te", "trailers")]
        names = [name for name, _ in fields]
        if "content-type" not in names:
            head.append(("content-type", "application/grpc"))
        self._h2.send_headers(stream_id, [*head, *fields])
        self._h2.send_data(stream_id, body, end_stream=ended)
        self.flush()
        return int(stream_id)

    def flush(self) -> None:
        self._writer.write(self._h2.data_to_send())

    async def result(self, stream_id: int, *ends: Any) -> list[Any]:
        """The events of a stream, up to its end."""
        ends = ends or (h2.events.StreamEnded, h2.events.StreamReset)
        while not any(isinstance(event, ends) and event.stream_id == stream_id for event in self.events):
            data = await self._reader.read(65536)
            assert data, self.events
            for event in self._h2.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.flush()
        return [event for event in self.events if getattr(event, "stream_id", 0) == stream_id]


@contextlib.asynccontextmanager
async def raw_caller(port: int) -> AsyncIterator[RawCaller]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield RawCaller(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def head_of(events: list[Any]) -> dict[str, str]:
    event = next(event for event in events if isinstance(event, h2.events.ResponseReceived))
    return {name.decode(): value.decode() for name, value in event.headers}


def kinds(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events if not isinstance(event, h2.events.WindowUpdated)]


TRAILERS_ONLY = ["ResponseReceived", "StreamEnded"]


@one_mode
async def test_a_status_without_a_body_is_one_frame(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    """The server's own status, the agent's failure and the hub's are HEADERS with END_STREAM, and no DATA."""
    body = json.dumps({"code": 9, "message": "no", "trailing": []}).encode()
    body = b"\0" + len(body).to_bytes(4) + body
    async with cluster.running(target(grpc_server)) as whole, raw_caller(whole.http_port) as caller:
        events = await caller.result(caller.begin(f"/{whole.cluster}/fastpipe.test.Peer/End", body=body))
        assert kinds(events)[:2] == TRAILERS_ONLY
        head = head_of(events)
        assert (head[":status"], head["grpc-status"], head["grpc-message"]) == ("200", "9", "no")
        assert "content-length" not in head
    async with cluster.running(f"h2c://127.0.0.1:{free_port()}") as whole, raw_caller(whole.http_port) as caller:
        for path, code in ((f"/{whole.cluster}/a/b", "14"), ("/", "12"), (f"/{whole.cluster}/%2e%2e/b", "13")):
            events = await caller.result(caller.begin(path))
            assert kinds(events)[:2] == TRAILERS_ONLY, path
            head = head_of(events)
            assert (head[":status"], head["grpc-status"], head["content-type"]) == ("200", code, "application/grpc")
            assert f"(request id: {head['x-request-id']})" in unquote(head["grpc-message"])
            assert "content-length" not in head


@one_mode
async def test_a_server_may_end_a_call_whose_client_still_sends(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer
) -> None:
    """The client gets the whole response, and then RST_STREAM with NO_ERROR, as from the server itself."""
    async with cluster.running(target(grpc_server)) as whole, raw_caller(whole.http_port) as caller:
        stream_id = caller.begin(f"/{whole.cluster}/fastpipe.test.Peer/Refuse", ended=False)
        events = await caller.result(stream_id)
        found = kinds(events)
        assert found[:2] == ["ResponseReceived", "DataReceived"]
        assert found.index("TrailersReceived") < found.index("StreamEnded")
        trailers = next(event for event in events if isinstance(event, h2.events.TrailersReceived))
        assert dict(trailers.headers)[b"grpc-status"] == b"11"
        if "StreamReset" not in found:
            events = await caller.result(stream_id, h2.events.StreamReset)
        assert [event.error_code for event in events if isinstance(event, h2.events.StreamReset)] == [0]
        await until(lambda: whole.agent.agent.open_connections <= 1)


@one_mode
async def test_other_requests_get_statuses_of_http(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    """gRPC-web is ordinary HTTP."""
    async with cluster.running(f"h2c://127.0.0.1:{free_port()}") as whole, raw_caller(whole.http_port) as caller:
        for kind in ("application/grpc-web", "application/grpc-web-text+proto", "application/json"):
            events = await caller.result(caller.begin(f"/{whole.cluster}/a/b", ("content-type", kind)))
            head = head_of(events)
            assert (head[":status"], "grpc-status" in head) == ("502", False)


@one_mode
async def test_the_calls_timeout_holds_if_neither_peer_keeps_it(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    # HTTP/1.1 to this target: no server of gRPC knows the timeout there.
    async with (
        tcp_target(silent) as port,
        cluster.running(f"http://127.0.0.1:{port}") as whole,
        raw_caller(whole.http_port) as caller,
    ):
        started_s = time.monotonic()
        events = await caller.result(caller.begin(f"/{whole.cluster}/a/b", ("grpc-timeout", "200m")))
        assert (kinds(events)[:2], head_of(events)["grpc-status"]) == (TRAILERS_ONLY, "4")
        assert 1.2 <= time.monotonic() - started_s < 5


@one_mode
async def test_a_targets_own_http_error_passes_as_it_is(cluster: Cluster, grpc_server: Peer, grpc_client: Peer) -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy")
        await reader.read()

    async with (
        tcp_target(refusing) as port,
        cluster.running(f"http://127.0.0.1:{port}") as whole,
        raw_caller(whole.http_port) as caller,
    ):
        events = await caller.result(caller.begin(f"/{whole.cluster}/a/b"))
        head = head_of(events)
        assert (head[":status"], "grpc-status" in head) == ("503", False)
        assert b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived)) == b"busy"


@one_mode
async def test_a_response_cut_short_ends_with_unavailable(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer
) -> None:
    cut = asyncio.Event()

    async def breaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head + b"5\r\n" + EMPTY + b"\r\n")
        await cut.wait()
        writer.transport.abort()

    async with (
        tcp_target(breaking) as port,
        cluster.running(f"http://127.0.0.1:{port}") as whole,
        raw_caller(whole.http_port) as caller,
    ):
        stream_id = caller.begin(f"/{whole.cluster}/a/b")
        asyncio.get_running_loop().call_later(0.2, cut.set)
        events = await caller.result(stream_id)
        assert kinds(events)[:4] == ["ResponseReceived", "DataReceived", "TrailersReceived", "StreamEnded"]
        assert events[1].data == EMPTY
        trailers = next(event for event in events if isinstance(event, h2.events.TrailersReceived))
        found = {name.decode(): value.decode() for name, value in trailers.headers}
        assert found["grpc-status"] == "14"
        assert "(request id: " in unquote(found["grpc-message"])


# -- a proxy in front


@one_mode
async def test_nginx_with_grpc_pass_in_front(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer, tmp_path: pathlib.Path
) -> None:
    async with cluster.running(target(grpc_server)) as whole:
        location = f"location / {{ grpc_pass grpc://127.0.0.1:{whole.http_port}; }}"
        nginx = await asyncio.to_thread(NginxServer, tmp_path / "nginx", location, "http2")
        try:
            async with grpc_client.channel(f"127.0.0.1:{nginx.port}", prefix=f"/{whole.cluster}") as channel:
                assert (await channel("echoes", calls=100, size=1000, at_once=20)) == {"codes": {"OK": 100}, "wrong": 0}
                found = await channel("chats", streams=5, messages=50, size=100, ahead=5)
                assert (found["codes"], found["wrong"], found["received"]) == ({"OK": 5}, 0, 250)
                for streams in (False, True):
                    body = json.dumps({"code": 5, "message": "none", "trailing": [["x-bin", ["AP8="]]]})
                    found = await call(channel, "EndStream" if streams else "End", body=body, streams=streams)
                    assert (found["code"], found["details"]) == (5, "none")
                    assert ["x-bin", ["AP8="]] in found["trailing"]
                await whole.agent.stop()
                assert (await call(channel, "Echo"))["code"] == 14
        finally:
            await asyncio.to_thread(nginx.close)


# -- keepalive and clusters by host


@one_mode
async def test_keepalive_pings_of_the_client_are_answered(
    cluster: Cluster, grpc_server: Peer, grpc_client: Peer
) -> None:
    """grpcio sends a PING each second here, and closes the connection if no reply comes in half a second."""
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with calling(cluster, grpc_server, grpc_client, options=options) as (_, channel, orders):
        await channel("start", method="Hold", metadata=[], body="late")
        await orders("event")
        await asyncio.sleep(20 if SOAK else 2.5)
        await orders("release")
        found = await channel("result")
        assert (found["code"], found["response"]) == (0, "late")


@one_mode
async def test_a_service_without_a_prefix_by_host(mode: str, grpc_server: Peer, grpc_client: Peer) -> None:
    async with (
        running_hub(cluster_from="host", cluster_domain="tunnel.test") as (grpc_port, http_port),
        one_agent(grpc_port, mode, target(grpc_server)),
        grpc_client.channel(
            f"127.0.0.1:{http_port}", options=[("grpc.default_authority", "c1.tunnel.test")]
        ) as channel,
    ):
        assert (await channel("echoes", calls=20, size=100, at_once=5)) == {"codes": {"OK": 20}, "wrong": 0}
