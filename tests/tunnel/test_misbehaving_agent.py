"""Our hub's side against an agent that breaks rules, or is no agent at all: raw frames."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from typing import Any

import pytest

from agent.tunnel.liveness import LivenessTimes
from agent.tunnel.packet import MAX_SENT_MESSAGE_BYTES, Packet

DATA, ERROR, DRAIN = 0, 1, 2
CALL = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/tunnel.v1.TunnelService/Tunnel"),
    (":authority", "hub"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("cluster-name", "c1"),
)


def but(**changed: str | None) -> list[tuple[str, str]]:
    """The head of a call with some fields changed or left out. `method` means `:method`."""
    fields = dict(CALL)
    for name, value in changed.items():
        key = f":{name}" if name in ("method", "path") else name.replace("_", "-")
        fields.pop(key, None)
        if value is not None:
            fields[key] = value
    return sorted(fields.items(), key=lambda field: not field[0].startswith(":"))


def hello(peer: Any, **settings: int) -> None:
    peer.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    peer.settings(**settings)


def nothing() -> None:
    pass


async def test_response_headers_come_at_once(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        fields = agent.decoder.decode((await agent.seen(1))[3])
        assert dict(fields)[":status"] == "200"
        assert dict(fields)["content-type"] == "application/grpc"
        assert "tunnel-features" not in dict(fields)


@pytest.mark.parametrize(
    ("head", "answer"),
    [
        (but(method="GET"), {":status": "405", "allow": "POST"}),
        (but(content_type="text/plain"), {":status": "415"}),
        (but(content_type=None), {":status": "415"}),
        (but(path="/tunnel.v1.TunnelService/Other"), {":status": "200", "grpc-status": "12"}),
        (but(path="/" + "x" * 9000), {"grpc-message": "there is no method /" + "x" * 199}),
        (but(cluster_name=None), {":status": "200", "grpc-status": "2"}),
        (but(content_length="5"), {":status": "200", "grpc-status": "3"}),
        (but(content_type="application/grpc+proto"), {":status": "200"}),
    ],
)
async def test_what_is_no_call_is_refused_and_the_connection_goes_on(
    tunnels: Any, raw_agent: Any, head: Any, answer: dict[str, str]
) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*head)
        fields = dict(agent.decoder.decode((await agent.seen(1))[3]))
        assert answer.items() <= fields.items()
        agent.headers(*CALL, stream_id=3)
        agent.send(0, 0, 3, Packet(1, 0, b"x").encode())
        await agent.seen(1)
        hub = ends.hub_sessions[-1]
        await hub.until(lambda: hub.packets)


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n", "the connection preface is missing"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "the connection preface is missing"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\x08\x06\0\0\0\0\0" + bytes(8), "the first frame is PING"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\x01\0\0\0\0", "the first frame is SETTINGS, not SETTINGS"),
    ],
)
async def test_what_is_not_http_2_is_turned_away(
    tunnels: Any, raw_agent: Any, caplog: Any, first: bytes, text: str
) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        agent.writer.write(first)
        assert (await agent.ended())[0] == 1
        assert sum(text in record.message for record in caplog.records) == 1


async def test_one_broken_call_leaves_the_other_of_its_connection_alone(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        agent.headers(*CALL, stream_id=3)
        agent.send(0, 0, 1, b"\1\0\0\0\0")  # compressed
        _, _, stream_id, payload = await agent.seen(3)
        assert (stream_id, payload) == (1, struct.pack(">I", 2))
        first, second = ends.hub_sessions
        assert "compressed" in str(first.lost[0])
        agent.send(0, 0, 1, Packet(1, 0, b"late").encode())
        agent.send(0, 0, 3, Packet(1, 0, b"fine").encode())
        await second.until(lambda: second.packets)
        assert second.lost == []
        assert first.packets == []


async def test_data_for_a_reset_stream_gives_its_credit_back(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels(window_bytes=65535) as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        await agent.seen(1)
        agent.send(3, 0, 1, struct.pack(">I", 8))
        returned = 0
        for _ in range(10):  # ten windows of it
            for _ in range(4):
                agent.send(0, 0, 1, bytes(16000))
            while returned < 40_000:
                _, _, stream_id, payload = await agent.seen(8)
                assert stream_id == 0
                returned += int.from_bytes(payload, "big")
            returned = 0
        agent.headers(*CALL, stream_id=3)
        await agent.seen(1)
        assert len(ends.hub_sessions) == 2


async def test_a_message_that_no_agent_sends_ends_its_call_as_soon_as_its_length_is_known(
    tunnels: Any, raw_agent: Any
) -> None:
    """As a base hub does (wire.md): trailers with RESOURCE_EXHAUSTED. The other call of the connection continues."""
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        agent.headers(*CALL, stream_id=3)
        for _ in range(2):
            agent.decoder.decode((await agent.seen(1))[3])
        await agent.seen(4)
        agent.ack()
        await agent.seen(4)
        hub, other = ends.hub_sessions
        largest = Packet(1, 0, bytes(MAX_SENT_MESSAGE_BYTES - 7)).encode()
        assert len(largest) - 5 == MAX_SENT_MESSAGE_BYTES
        for start in range(0, len(largest), 16384):
            agent.send(0, 0, 1, largest[start : start + 16384])
            await agent.writer.drain()
        await hub.until(lambda: len(hub.packets) == 1)
        assert hub.packets[0][:2] == (1, DATA)
        agent.send(0, 0, 1, b"\0" + (MAX_SENT_MESSAGE_BYTES + 1).to_bytes(4, "big"))  # the prefix, and nothing more
        _, flags, stream_id, block = await agent.seen(1)
        assert (flags & 1, stream_id) == (1, 1)
        rule = f"gRPC: a message of {MAX_SENT_MESSAGE_BYTES + 1} bytes, the limit is {MAX_SENT_MESSAGE_BYTES}"
        assert dict(agent.decoder.decode(block)) == {"grpc-status": "8", "grpc-message": rule}
        assert (await agent.seen(3))[2:] == (1, bytes(4))  # NO_ERROR: send no more
        assert rule in str(hub.lost[0])
        agent.send(0, 0, 1, bytes(16384))  # what was under way
        agent.send(0, 0, 3, Packet(1, 0, b"fine").encode())
        await other.until(lambda: other.packets)
        assert not other.lost
        assert ends.server.messages.held_bytes == 0


@pytest.mark.parametrize("trailers", [False, True])
async def test_the_end_in_the_middle_of_a_message_is_told(tunnels: Any, raw_agent: Any, trailers: bool) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        agent.send(0, not trailers, 1, Packet(1, 0, b"half").encode()[:-1])
        if trailers:
            agent.headers(("grpc-status", "0"), end=True)
        await agent.seen(1)
        answer = dict(agent.decoder.decode((await agent.seen(1))[3]))
        assert answer["grpc-status"] == "13"
        assert ends.hub_sessions[0].packets == []
        assert len(ends.hub_sessions[0].lost) == 1


async def test_the_end_by_an_empty_frame(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        agent.send(0, 0, 1, Packet(1, 0, b"whole").encode())
        agent.send(0, 1, 1)
        await agent.seen(1)
        trailers = dict(agent.decoder.decode((await agent.seen(1))[3]))
        assert trailers["grpc-status"] == "0"
        assert ends.hub_sessions[0].packets == [(1, DATA, b"whole", "")]
        assert ends.hub_sessions[0].lost == [None]
        agent.send(0, 0, 1, b"more")  # after the end: closed on both sides, ignored
        agent.send(3, 0, 1, bytes(4))
        agent.send(6, 0, 0, b"12345678")
        assert (await agent.seen(6))[3] == b"12345678"


async def test_drain_finishes_the_packet_in_hand_before_the_trailers(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent, initial_window_size=1000)
        agent.headers(*CALL)
        await agent.seen(1)
        hub = ends.hub_sessions[0]
        hub.tunnel.outbound(1, nothing, nothing).write(b"y" * 5000)
        while len(agent.body) < 1000:
            await agent.frame()
        agent.send(0, 0, 1, Packet(0, DRAIN).encode())
        await hub.until(lambda: hub.lost)
        agent.credit(10_000, stream_id=1)
        trailers = dict(agent.decoder.decode((await agent.seen(1))[3]))
        assert trailers == {"grpc-status": "0"}
        assert agent.packets() == [Packet(1, 0, b"y" * 5000)]


async def test_any_id_of_0_or_less_is_answered_and_never_handed_on(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        for conn_id in (-1, -7, 0):
            agent.send(0, 0, 1, Packet(conn_id).encode())
        agent.send(0, 0, 1, Packet(-1, ERROR, b"", "x").encode() + Packet(-3, DRAIN).encode())
        while len(agent.packets()) < 3:
            await agent.frame()
        assert agent.packets() == [Packet(n, ERROR, b"", f"unknown packet connection {n}") for n in (-1, -7, 0)]
        assert ends.hub_sessions[0].packets == []


async def test_an_agent_that_answers_no_ping_is_given_up(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels(liveness=LivenessTimes(idle_s=0.02, answer_s=0.5)) as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        for _ in range(3):
            agent.send(6, 1, 0, (await agent.seen(6))[3])
        hub = ends.hub_sessions[0]
        await hub.until(lambda: hub.lost)
        assert "no byte came from it for" in str(hub.lost[0])


@pytest.mark.parametrize("refused", [False, True])
async def test_a_peer_without_an_accepted_call_is_sent_away(tunnels: Any, raw_agent: Any, refused: bool) -> None:
    """Any peer can connect, acknowledge PINGs for ever, and make refused calls. Only an accepted call names a peer."""
    limits = {"liveness": LivenessTimes(idle_s=0.02, answer_s=5), "call_timeout_s": 1.0}
    async with tunnels(**limits) as ends, raw_agent(ends.port) as agent:
        hello(agent)
        stream_id = 1
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):  # a call that crosses the GOAWAY
                while (frame := await agent.frame())[0] != 7:  # GOAWAY
                    if frame[0] == 6:
                        agent.send(6, 1, 0, frame[3])
                        if refused and stream_id < 20:  # again and again
                            agent.headers(*but(path="/elsewhere"), stream_id=stream_id)
                            stream_id += 2
                assert frame[3][4:8] == bytes(4)  # NO_ERROR
                assert await agent.reader.read() == b""
        assert (stream_id > 1) == refused


async def test_an_agent_with_a_tunnel_is_kept_while_nothing_happens_on_it(tunnels: Any, raw_agent: Any) -> None:
    times = LivenessTimes(idle_s=0.02, answer_s=5, suspect_s=0.02)
    async with tunnels(liveness=times) as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        for _ in range(5):
            agent.send(6, 1, 0, (await agent.seen(6))[3])
        assert not ends.hub_sessions[0].lost


async def test_held_credit_stops_the_agent_within_its_window(tunnels: Any, raw_agent: Any) -> None:
    async with tunnels(window_bytes=65535) as ends, raw_agent(ends.port) as agent:
        hello(agent)
        agent.headers(*CALL)
        await agent.seen(1)
        hub = ends.hub_sessions[0]
        hub.tunnel.pause_reading()
        message = Packet(1, 0, bytes(16000)).encode()
        for _ in range(4):
            agent.send(0, 0, 1, message)
        await hub.until(lambda: len(hub.packets) == 4)
        agent.send(6, 0, 0, b"12345678")
        await agent.seen(6)
        assert not any(frame[0] == 8 and frame[2] == 1 for frame in agent.frames)
        hub.tunnel.resume_reading()
        while True:
            _, _, stream_id, payload = await agent.seen(8)
            if stream_id == 1:
                break
        assert int.from_bytes(payload, "big") == 4 * len(message)


async def test_tls_without_alpn_is_turned_away(tunnels: Any, tmp_path: Any) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    async with tunnels(ssl=context) as ends:
        reader, writer = await asyncio.open_connection("127.0.0.1", ends.port, ssl=trust, server_hostname="localhost")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.transport.abort()
        assert ends.hub_sessions == []


async def test_an_agent_that_acknowledges_no_ping_is_sent_a_bounded_number(
    tunnels: Any, raw_agent: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call has its round trip measured, and a call costs its agent nothing."""
    monkeypatch.setattr("agent.http2.connection._MAX_PINGS", 20)
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        hello(agent)
        for number in range(60):
            agent.headers(*CALL, ("tunnel-features", "window"), stream_id=2 * number + 1)
            agent.send(3, 0, 2 * number + 1, bytes(4))
        agent.headers(*CALL, ("tunnel-features", "window"), stream_id=121)
        while (await agent.seen(1))[2] != 121:
            pass
        assert len(ends.hub_sessions) == 61
        assert sum(kind == 6 for kind, _, _, _ in agent.frames) == 20
