"""Our agent's side against a hub that breaks rules, or keeps them in the least convenient way: raw frames."""

from __future__ import annotations

import asyncio
import random
import ssl
import struct
from typing import Any

import pytest

from agent.errors import HubError
from agent.http2 import control_frame_limiter
from agent.tunnel import client as client_module
from agent.tunnel.backoff import BackOff
from agent.tunnel.client import HubEndpoint
from agent.tunnel.packet import Packet

DATA, ERROR, DRAIN = 0, 1, 2
OK_HEAD = ((":status", "200"), ("content-type", "application/grpc"))


def nothing() -> None:
    pass


# ---------------------------------------------------------------- inconvenient, but right


async def test_the_probe_goes_out_before_the_hub_has_said_anything(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        assert await hub.reader.readexactly(24) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        head = dict(hub.decoder.decode((await hub.seen(1))[3]))
        assert head[":path"] == "/tunnel.v1.TunnelService/Tunnel"
        assert head["te"] == "trailers"
        assert head["content-type"] == "application/grpc"
        assert head[":authority"] == f"127.0.0.1:{port}"
        await hub.seen(0)
        assert hub.packets() == [Packet(-1)]
        # Late headers: SETTINGS and head come with the first packet.
        hub.settings()
        hub.headers(*OK_HEAD)
        hub.answer_probe()
        await ends.until(lambda: ends.ready)


async def test_windows_of_one_byte(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet(initial_window_size=200)
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        hub.settings(initial_window_size=0)  # subtracts 200, so the window is negative by the sent bytes
        await hub.seen(4)
        await hub.seen(4)
        await hub.seen(4)
        before = hub.body
        agent.tunnel.outbound(1, nothing, nothing).write(b"0123456789")
        hub.send(6, 0, 0, b"pingpong")
        assert (await hub.seen(6))[1] == 1  # an empty window stops DATA only
        assert hub.body == before
        used = len(before)
        hub.credit(used, stream_id=1)  # the negative window becomes 0
        for _ in Packet(1, 0, b"0123456789").encode():
            hub.credit(1, stream_id=1)
            kind, _, _, payload = await hub.frame()
            assert (kind, len(payload)) == (0, 1)
        assert hub.packets()[-1] == Packet(1, 0, b"0123456789")


async def test_frame_sizes_and_windows_change_in_mid_stream(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet(max_frame_size=20_000, initial_window_size=100_000)
        await ends.until(lambda: ends.ready)
        body = random.Random(1).randbytes(400_000)
        ends.agent_sessions[0].tunnel.outbound(1, nothing, nothing).write(body)
        largest = 0
        while len(hub.body) < 100_000:
            kind, _, _, payload = await hub.frame()
            largest = max(largest, len(payload)) if kind == 0 else largest
        assert largest == 20_000
        assert len(hub.body) == 100_000  # not a byte more than the window
        hub.settings(max_frame_size=16_384, initial_window_size=150_000)
        hub.settings(max_frame_size=2**24 - 1, initial_window_size=120_000)
        hub.credit(1_000_000, stream_id=1)
        sizes = []
        while len(hub.packets()) < 2 + (400_000 > 256 * 1024) - 1 or len(hub.body) < 400_000:
            kind, _, _, payload = await hub.frame()
            if kind == 0:
                sizes.append(len(payload))
        assert b"".join(packet.data for packet in hub.packets()[1:]) == body
        assert max(sizes) <= 256 * 1024


async def test_padding_and_continuation(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, window_bytes=65535))
        hub = await accepted()
        await hub.reader.readexactly(24)
        hub.settings()
        block = hub.encoder.encode(OK_HEAD)
        hub.send(1, 8, 1, b"\x03" + block[:1] + b"\0\0\0")  # HEADERS, padded
        for index in range(1, len(block)):
            hub.send(9, 4 if index == len(block) - 1 else 0, 1, block[index : index + 1])
        answer = Packet(-1, ERROR, b"", "unknown packet connection -1").encode()
        for index in range(len(answer)):  # a byte a frame, 255 of padding
            hub.send(0, 8, 1, b"\xff" + answer[index : index + 1] + bytes(255))
        await ends.until(lambda: ends.ready)
        # Padding is credited like payload: 200 frames of 257 bytes are most of the window, and it doesn't run dry.
        for _ in range(5):
            for _ in range(70):
                hub.send(0, 8, 1, b"\xff" + bytes(255))
            while (await hub.seen(8))[2] != 1:
                pass
        hub.send(0, 8, 1, b"\0" + Packet(5, 0, b"after").encode())
        agent = ends.agent_sessions[0]
        await agent.until(lambda: agent.packets)
        assert agent.packets == [(5, DATA, b"after", "")]


async def test_frames_of_unknown_types_are_ignored(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        hub.send(0xA, 0, 0, b"\0\x05abcde" + b"h2=x")  # ALTSVC
        hub.send(0xEE, 0xFF, 77, bytes(16384))
        hub.send(2, 0, 1, bytes(5))  # PRIORITY
        await ends.until(lambda: ends.ready)
        hub.send(0, 0, 1, Packet(2, 0, b"on").encode())
        agent = ends.agent_sessions[0]
        await agent.until(lambda: agent.packets)


async def test_the_graceful_pair_of_goaways_lets_the_session_finish(raw_hub: Any, tunnels: Any) -> None:
    """A second stream beside a connection can lock up a base hub.

    The agent therefore opens the second stream after the first session has ended.
    """
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, stable_after_s=0))
        old = await accepted()
        await old.greet()
        await ends.until(lambda: ends.ready)
        first = ends.agent_sessions[0]
        out = first.tunnel.outbound(1, nothing, nothing)
        old.goaway(2**31 - 1, 0)
        old.send(6, 0, 0, b"goawaygo")
        assert (await old.seen(6))[3] == b"goawaygo"
        old.goaway(1, 0)
        old.send(0, 0, 1, Packet(1, 0, b"more").encode())
        await first.until(lambda: first.packets)
        out.write(b"answer")
        while Packet(1, 0, b"answer") not in old.packets():
            await old.frame()
        assert len(ends.agent_sessions) == 1
        out.finish()  # the last connection of the old session: the agent now sends DRAIN
        while Packet(0, DRAIN) not in old.packets():
            await old.frame()
        assert len(ends.agent_sessions) == 1
        old.headers(("grpc-status", "2"), end=True)  # UNKNOWN: the status of a Go hub after a DRAIN
        await first.until(lambda: first.lost)
        assert first.lost == [None]
        new = await accepted()  # dialled at once
        assert ends.delays_s == []
        await new.greet()
        await ends.until(lambda: len(ends.ready) == 2)
        assert ends.clients[0].ready


async def test_a_hub_that_does_not_end_the_stream_it_was_to_leave_is_left_all_the_same(
    raw_hub: Any, tunnels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_DRAIN_ANSWER_TIMEOUT_S", 0.1)
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        old = await accepted()
        await old.greet()
        await ends.until(lambda: ends.ready)
        ends.clients[0].reconnect_now()
        while Packet(0, DRAIN) not in old.packets():
            await old.frame()
        await (await accepted()).greet()
        await ends.until(lambda: len(ends.ready) == 2)


async def test_another_hub_is_dialled_beside_a_session_in_use(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (old_port, old_accepted), raw_hub() as (new_port, new_accepted), tunnels() as ends:
        where = [HubEndpoint("127.0.0.1", old_port)]
        ends.start(ends.client(endpoint=lambda: where[0]))
        old = await old_accepted()
        await old.greet()
        await ends.until(lambda: ends.ready)
        out = ends.agent_sessions[0].tunnel.outbound(1, nothing, nothing)
        where[0] = HubEndpoint("127.0.0.1", new_port)
        ends.clients[0].reconnect_now()
        await (await new_accepted()).greet()
        await ends.until(lambda: len(ends.ready) == 2)
        assert ends.agent_sessions[0].lost == []
        out.finish()
        while Packet(0, DRAIN) not in old.packets():
            await old.frame()


async def test_a_probe_s_answer_may_be_late_while_the_hub_lists_a_connection(
    raw_hub: Any, tunnels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the stream could lock up the hub for good.

    The agent therefore waits until the hub has had time to close its clients by itself.
    """
    assert client_module._LISTED_S == 31.0
    monkeypatch.setattr(client_module, "_LISTED_S", 0.8)
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, probe_interval_s=0.05, probe_timeout_s=0.1))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        session = ends.agent_sessions[0]
        session.tunnel.outbound(1, nothing, nothing)
        began_s = asyncio.get_running_loop().time()
        await session.until(lambda: session.lost)
        assert "no reply to a probe" in str(session.lost[0])
        assert asyncio.get_running_loop().time() - began_s >= 0.75


# ---------------------------------------------------------------- how sessions end


async def test_goaway_in_the_middle_of_a_message(raw_hub: Any, tunnels: Any, caplog: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        hub.send(0, 0, 1, Packet(1, 0, bytes(1000)).encode()[:500])
        hub.goaway(1, 0xB, b"too_many_pings")
        agent = ends.agent_sessions[0]
        await agent.until(lambda: agent.lost)
        assert "GOAWAY ENHANCE_YOUR_CALM" in str(agent.lost[0])
        await ends.until(lambda: ends.delays_s)
        assert "too_many_pings" in caplog.text
        assert agent.packets == []
        await accepted()
        assert ends.delays_s == [0.5]


async def test_a_hub_that_never_answers_is_given_up(raw_hub: Any, tunnels: Any, caplog: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, first_probe_timeout_s=0.05))
        await accepted()
        await accepted()
        assert ends.ready == []
        assert "no reply to a probe within 0.05 s" in caplog.text


async def test_packets_put_a_probe_off_to_a_bound(raw_hub: Any, tunnels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub sends without end and never responds. The bound is a minute (wire.md), here 0.6 s."""
    monkeypatch.setattr("agent.tunnel.call._MAX_PROBE_S", 0.6)
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, probe_interval_s=0.02, probe_timeout_s=0.3))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        while not agent.lost:
            number = len(agent.packets)
            hub.send(0, 0, 1, Packet(1, 0, b"more").encode())
            await agent.until(lambda number=number: len(agent.packets) > number or agent.lost)
        await ends.until(lambda: ends.lost)
        error = ends.lost[0][1]
        assert error.cause == "probe"
        assert float(str(error).split("within ")[1].removesuffix(" s")) >= 0.6
        assert len(agent.packets) > 10


async def test_a_hub_that_freezes_is_noticed_by_its_probe(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, probe_interval_s=0.02, probe_timeout_s=0.1))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        for turn in range(3):  # alive for three probes
            while len(hub.packets()) < turn + 2:
                await hub.frame()
            hub.answer_probe()
        while len(hub.packets()) < 5:
            await hub.frame()
        await ends.until(lambda: ends.lost)
        assert "no reply to a probe" in str(ends.lost[0][1])
        assert not ends.clients[0].ready
        assert not any(frame[0] == 6 for frame in hub.frames)  # never a PING: a base hub punishes them


async def test_a_late_answer_is_waited_for_while_packets_come(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, probe_interval_s=0.02, probe_timeout_s=0.5))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        for number in range(20):  # a second of bulk in front of the response
            hub.send(0, 0, 1, Packet(1, 0, b"bulk").encode())
            await agent.until(lambda number=number: len(agent.packets) > number)
            await asyncio.sleep(0.05)
        hub.answer_probe()
        while len(hub.packets()) < 3:
            await hub.frame()
        assert ends.lost == []


async def test_a_flood_for_id_0_means_replaced(raw_hub: Any, tunnels: Any, caplog: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        flood = bytes(5) * 3000  # an empty message is an empty DATA packet for id 0
        sent = 0
        try:
            while sent < 1_000_000:
                hub.send(0, 0, 1, flood)
                sent += 3000
                await hub.writer.drain()
        except ConnectionError:
            pass
        await ends.until(lambda: ends.delays_s)
        assert ends.delays_s[0] == 60.0
        assert sum("replaced" in record.message for record in caplog.records) == 1
        assert ends.agent_sessions[0].packets == []


@pytest.mark.parametrize(
    ("head", "text", "delay_s"),
    [
        ([(":status", "401"), ("content-type", "text/plain")], "UNAUTHENTICATED: the response is HTTP 401", 60),
        (
            [(":status", "502"), ("content-type", "text/html"), ("content-length", "9")],
            "UNAVAILABLE: the response",
            0.5,
        ),
        ([(":status", "200"), ("content-type", "text/html")], "UNKNOWN: the response is HTTP 200, but not gRPC", 0.5),
        ([(":status", "9" * 5000), OK_HEAD[1]], "UNKNOWN: the response has an invalid :status", 0.5),
        ([(":status", "-200"), OK_HEAD[1]], "UNKNOWN: the response has an invalid :status", 0.5),
    ],
)
async def test_an_answer_that_is_not_grpc(
    raw_hub: Any, tunnels: Any, caplog: Any, head: Any, text: str, delay_s: float
) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        hub.settings()
        hub.headers(*head)
        hub.send(0, 1, 1, b"<p>no</p>")
        await ends.until(lambda: ends.delays_s)
        assert ends.delays_s == [delay_s]
        assert text in caplog.text
        assert "a receiver failed" not in caplog.text


async def test_a_status_s_words_are_bounded(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        hub.settings()
        hub.headers(*OK_HEAD, ("grpc-status", "14"), ("grpc-message", "%0a" * 5000), end=True)
        await ends.until(lambda: ends.delays_s)
        assert str(ends.agent_sessions[0].lost[0]) == "the hub closed the tunnel with UNAVAILABLE: " + "\n" * 1000


async def test_trailers_alone(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        hub.settings()
        hub.headers(*OK_HEAD, ("grpc-status", "7"), ("grpc-message", "no %c3%bc %zz"), end=True)
        hub.send(3, 0, 1, struct.pack(">I", 0))  # and RST_STREAM NO_ERROR behind them
        await ends.until(lambda: ends.delays_s)
        assert str(ends.agent_sessions[0].lost[0]) == "the hub closed the tunnel with PERMISSION_DENIED: no ü %zz"


async def test_a_reset_stream(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        hub.send(3, 0, 1, struct.pack(">I", 2))
        await ends.until(lambda: ends.lost)
        assert str(ends.lost[0][1]) == "the stream was reset: INTERNAL_ERROR"


async def test_a_server_that_speaks_http_1(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        hub.writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        await ends.until(lambda: ends.delays_s)
        assert "is the peer speaking HTTP/2?" in str(ends.agent_sessions[0].lost[0])


# ---------------------------------------------------------------- broken frames, each with the code it gets

PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED, FRAME_SIZE_ERROR, ENHANCE_YOUR_CALM = 1, 3, 5, 6, 11
BIG = 2**31 - 1


CONNECTION_ERRORS = {
    "oversized DATA": (lambda hub: hub.send(0, 0, 1, bytes(256 * 1024 + 1)), FRAME_SIZE_ERROR, "limit is 262144"),
    "oversized HEADERS": (lambda hub: hub.send(1, 4, 1, bytes(256 * 1024 + 1)), FRAME_SIZE_ERROR, "limit is 262144"),
    "DATA on stream 0": (lambda hub: hub.send(0, 0, 0, b"x"), PROTOCOL_ERROR, "DATA frame on stream 0"),
    "DATA on an idle stream": (lambda hub: hub.send(0, 0, 3, b"x"), PROTOCOL_ERROR, "idle stream 3"),
    "DATA on a pushed stream": (lambda hub: hub.send(0, 0, 2, b"x"), PROTOCOL_ERROR, "idle stream 2"),
    "DATA in a header block": (
        lambda hub: (hub.send(1, 0, 1, b"\x88"), hub.send(0, 0, 1, b"x")),
        PROTOCOL_ERROR,
        "DATA frame inside the header block of stream 1",
    ),
    "PING in a header block": (
        lambda hub: (hub.send(1, 0, 1, b"\x88"), hub.send(6, 0, 0, bytes(8))),
        PROTOCOL_ERROR,
        "PING frame inside the header block",
    ),
    "CONTINUATION alone": (lambda hub: hub.send(9, 4, 1, b""), PROTOCOL_ERROR, "without a header block"),
    "endless CONTINUATION": (
        lambda hub: (hub.send(1, 0, 1, bytes(100_000)), *(hub.send(9, 0, 1, bytes(60_000)) for _ in range(3))),
        ENHANCE_YOUR_CALM,
        "header block of more than",
    ),
    "too much padding": (lambda hub: hub.send(0, 8, 1, b"\x05abcd"), PROTOCOL_ERROR, "5 bytes of padding in 4"),
    "no pad length": (lambda hub: hub.send(0, 8, 1, b""), FRAME_SIZE_ERROR, "without a pad length"),
    "increment of 0": (lambda hub: hub.credit(0), PROTOCOL_ERROR, "increment of 0"),
    "window overflow": (lambda hub: hub.credit(BIG), FLOW_CONTROL_ERROR, "overflows the connection's window"),
    "WINDOW_UPDATE of 3 bytes": (lambda hub: hub.send(8, 0, 0, bytes(3)), FRAME_SIZE_ERROR, "of 3 bytes, not 4"),
    "WINDOW_UPDATE on an idle stream": (lambda hub: hub.credit(5, stream_id=5), PROTOCOL_ERROR, "idle stream 5"),
    "RST_STREAM on an idle stream": (lambda hub: hub.send(3, 0, 5, bytes(4)), PROTOCOL_ERROR, "idle stream 5"),
    "initial window overflow": (
        lambda hub: (hub.credit(BIG - 2**30 - 65535, stream_id=1), hub.settings(initial_window_size=2**20)),
        FLOW_CONTROL_ERROR,
        "overflows the window of stream 1",
    ),
    "a window above 2^31-1": (lambda hub: hub.settings(initial_window_size=2**31), FLOW_CONTROL_ERROR, ""),
    "a frame size below 16384": (lambda hub: hub.settings(max_frame_size=100), PROTOCOL_ERROR, ""),
    "SETTINGS of 5 bytes": (lambda hub: hub.send(4, 0, 0, bytes(5)), None, ""),
    "SETTINGS on a stream": (lambda hub: hub.send(4, 0, 1, b""), PROTOCOL_ERROR, ""),
    "PING of 7 bytes": (lambda hub: hub.send(6, 0, 0, bytes(7)), None, ""),
    "GOAWAY of 7 bytes": (lambda hub: hub.send(7, 0, 0, bytes(7)), FRAME_SIZE_ERROR, "of 7 bytes, not 8"),
    "GOAWAY on a stream": (lambda hub: hub.send(7, 0, 1, bytes(8)), PROTOCOL_ERROR, "on stream 1"),
    "PUSH_PROMISE": (lambda hub: hub.send(5, 4, 1, struct.pack(">I", 2) + b"\x88"), PROTOCOL_ERROR, ""),
    "a stream of the hub's": (lambda hub: hub.headers((":method", "GET"), stream_id=2), PROTOCOL_ERROR, "stream 2"),
    "a response to nothing": (lambda hub: hub.headers((":status", "200"), stream_id=3), PROTOCOL_ERROR, "stream 3"),
    "broken HPACK": (lambda hub: hub.send(1, 5, 1, b"\xff\xff\xff\xff\xff"), None, "HPACK"),
    "beyond the window": (lambda hub: hub.send(0, 0, 1, bytes(65536)), FLOW_CONTROL_ERROR, "exceeds the connection's"),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
async def test_a_broken_frame_ends_the_session_with_its_code(
    raw_hub: Any, tunnels: Any, caplog: Any, name: str
) -> None:
    act, code, text = CONNECTION_ERRORS[name]
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, window_bytes=65535))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        await hub.seen(4)
        await hub.seen(4)
        act(hub)
        got, _ = await hub.ended()
        assert got == code or code is None
        await ends.until(lambda: ends.lost)
        error = ends.lost[0][1]
        assert isinstance(error, HubError)
        assert error.retryable
        assert str(error).startswith("the hub broke the protocol: HTTP/2: ")
        assert text in str(error)
        assert sum(str(error) in record.message for record in caplog.records) == 1  # one clear line
        await accepted()  # and it comes back


STREAM_ERRORS = {
    "increment of 0": (lambda hub: hub.credit(0, stream_id=1), PROTOCOL_ERROR, "increment of 0"),
    "window overflow": (lambda hub: hub.credit(BIG, stream_id=1), FLOW_CONTROL_ERROR, "overflows the window of stream"),
    "a compressed message": (lambda hub: hub.send(0, 0, 1, b"\1\0\0\0\1x"), 2, "a message is compressed"),
    "flags of a message": (lambda hub: hub.send(0, 0, 1, b"\7\0\0\0\1x"), 2, "has flags 0x7"),
    "a packet of nobody's": (lambda hub: hub.send(0, 0, 1, b"\0\0\0\0\2\x1a\x05"), PROTOCOL_ERROR, "runs past"),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
async def test_a_broken_stream_is_reset_with_its_code(raw_hub: Any, tunnels: Any, name: str) -> None:
    act, code, text = STREAM_ERRORS[name]
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        act(hub)
        assert (await hub.seen(3))[3] == struct.pack(">I", code)
        await ends.until(lambda: ends.lost)
        assert text in str(ends.lost[0][1])


async def test_data_before_the_response_head(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        hub.settings()
        hub.answer_probe()
        await ends.until(lambda: ends.delays_s)
        assert "before the response's headers" in str(ends.agent_sessions[0].lost[0])


async def test_a_malformed_packet_ends_only_its_connection(raw_hub: Any, tunnels: Any, caplog: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        hub.send(0, 0, 1, b"\0\0\0\0\6\x08\x04\x1a\x7fab")  # data of 127 bytes in a message with 2
        hub.send(0, 0, 1, Packet(5, 0, b"fine").encode())
        await agent.until(lambda: len(agent.packets) == 2)
        assert agent.packets[0] == (4, ERROR, b"", "packet: data runs past the message's end")
        assert agent.packets[1] == (5, DATA, b"fine", "")
        while len(hub.packets()) < 2:
            await hub.frame()
        assert hub.packets()[1] == Packet(4, ERROR, b"", "packet: data runs past the message's end")
        [said] = [each for each in caplog.records if "broke a rule" in each.message]
        assert (said.conn_id, said.reason) == (4, "packet: data runs past the message's end")


async def test_an_unknown_code_is_ignored_and_counted(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        hub.send(0, 0, 1, Packet(3, 17, b"?").encode() + Packet(3, 2).encode() + Packet(3, 0, b"!").encode())
        agent_of = ends.agent_sessions
        await ends.until(lambda: ends.ready)
        await agent_of[0].until(lambda: agent_of[0].packets)
        assert agent_of[0].packets == [(3, DATA, b"!", "")]
        assert agent_of[0].tunnel.unknown_packets == 2


async def test_a_hub_that_does_not_read_its_answers_is_given_up(
    raw_hub: Any, tunnels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(control_frame_limiter.ALLOWED, 6, (10**9, 1.0))  # which it would run into before
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        pings = (b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)) * 10_000
        try:
            for _ in range(200):
                hub.writer.write(pings)
                async with asyncio.timeout(10):
                    await hub.writer.drain()
                if ends.lost:
                    break
        except (ConnectionError, TimeoutError):
            pass
        await ends.until(lambda: ends.lost)
        assert "does not read the replies" in str(ends.lost[0][1])


FEATURES = {"tunnel-features": "close,goaway,window"}


async def named(hub: Any) -> None:
    """Our hub begins: it names features and responds to the first probe."""
    await hub.reader.readexactly(24)
    hub.settings()
    hub.ack()
    hub.credit(2**30)
    hub.credit(2**30, stream_id=1)
    hub.headers((":status", "200"), ("content-type", "application/grpc"), *FEATURES.items())
    await hub.seen(1)
    while not hub.packets():
        hub.frames.append(await hub.frame())
    hub.answer_probe()


async def test_a_hub_that_names_features_is_probed_only_in_silence(raw_hub: Any, tunnels: Any) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, probe_interval_s=0.5, probe_timeout_s=5.0))
        hub = await accepted()
        await named(hub)
        await ends.until(lambda: ends.ready)
        began_s = asyncio.get_running_loop().time()
        for _ in range(10):  # a second with a byte each 0.1 s, as a PING is
            hub.send(6, 0, 0, b"12345678")
            await hub.seen(6)
            await asyncio.sleep(0.1)
        if asyncio.get_running_loop().time() - began_s < 1.4:  # else the machine itself was silent
            assert len(hub.packets()) == 1
        while len(hub.packets()) < 2:
            await hub.frame()
        hub.answer_probe()
        assert ends.lost == []


@pytest.mark.parametrize(
    "times",
    [
        pytest.param({"probe_interval_s": 0.4, "probe_timeout_s": 0.4}, id="short"),
        pytest.param({}, id="product", marks=pytest.mark.loops("uvloop")),
    ],
)
async def test_a_hub_that_swallows_everything_is_found_behind_an_open_download(
    raw_hub: Any, tunnels: Any, times: dict[str, float]
) -> None:
    """The hub stops reading and responding. Frame heads that pile up in the transport are no progress."""
    loop = asyncio.get_running_loop()
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port, **times))
        hub = await accepted()
        await named(hub)
        await ends.until(lambda: ends.ready)
        agent = ends.agent_sessions[0]
        hub.send(0, 0, 1, Packet(1, 0, b"GET").encode())
        await agent.until(lambda: agent.packets)
        hub.reader._transport.pause_reading()
        began_s = loop.time()
        events = agent.tunnel.outbound(2, lambda: None, lambda: None)
        download = agent.tunnel.outbound(1, lambda: None, lambda: None)
        for _ in range(64):
            download.write(bytes(256 * 1024))

        def event() -> None:
            if not agent.lost:
                events.write(b"data: x")
                agent.tunnel.send(3, 0)  # a packet ahead of the download: a frame head
                loop.call_later(0.1, event)

        event()
        async with asyncio.timeout(40):
            while not agent.lost:
                agent.changed.clear()
                await agent.changed.wait()
        took_s = loop.time() - began_s
        assert took_s <= 20
        assert "no reply to a probe" in str(agent.lost[0])


@pytest.mark.parametrize(
    ("status", "pushback", "low_s", "high_s"),
    [
        ("14", "5000", 5, 5),
        ("14", "1", 0.1, 0.1),
        ("14", "86400000", 60, 60),
        ("14", "-1", 60, 60),
        ("14", "soon", 0.5, 0.5),
        ("14", "9" * 30, 0.5, 0.5),
        ("13", "5000", 0.5, 0.5),
    ],
)
async def test_a_hub_that_is_busy_says_when_to_come_back(
    raw_hub: Any, tunnels: Any, status: str, pushback: str, low_s: float, high_s: float
) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))  # its chance is always the middle
        hub = await accepted()
        hub.settings()
        hub.headers(*OK_HEAD, ("grpc-status", status), ("grpc-retry-pushback-ms", pushback), end=True)
        await ends.until(lambda: ends.delays_s)
        assert low_s <= ends.delays_s[0] <= high_s


async def test_a_wait_that_was_asked_for_is_spread(raw_hub: Any, tunnels: Any) -> None:
    for chance, delay_s in ((0.0, 8.0), (1.0, 12.0)):
        async with raw_hub() as (port, accepted), tunnels() as ends:
            ends.start(ends.client(port, backoff=BackOff(random=lambda chance=chance: chance)))
            hub = await accepted()
            hub.settings()
            hub.headers(*OK_HEAD, ("grpc-status", "14"), ("grpc-retry-pushback-ms", "10000"), end=True)
            await ends.until(lambda: ends.delays_s)
            assert ends.delays_s[0] == pytest.approx(delay_s)


async def test_a_hub_that_is_full_before_the_call_is_asked_slowly_and_one_that_resets_a_long_message_is_not(
    raw_hub: Any, tunnels: Any, caplog: Any
) -> None:
    async with raw_hub() as (port, accepted), tunnels() as ends:
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        hub.headers(("grpc-status", "8"), ("grpc-message", "too long"), end=True)  # of a session that was up
        await ends.until(lambda: len(ends.delays_s) == 1)
        hub = await accepted()
        hub.settings()
        hub.headers(*OK_HEAD, ("grpc-status", "8"), ("grpc-message", "full"), end=True)
        await ends.until(lambda: len(ends.delays_s) == 2)
        assert ends.delays_s[0] == 0.5
        assert 2.5 <= ends.delays_s[1] <= 7.5
        assert ends.clients[0].redials == {"ended": 1, "full": 1}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_hub_that_closes_before_its_first_byte_is_left_alone_if_it_was_reached_before(
    tunnels: Any, known: bool, tls: bool
) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with tunnels() as ends:
        context = None
        if tls:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["h2"])
        client = ends.client(endpoint=HubEndpoint("127.0.0.1", port, context))
        client._reached = f"127.0.0.1:{port}" if known else ""
        ends.start(client)
        await ends.until(lambda: ends.delays_s)
        server.close()
        await ends.stop()
        await server.wait_closed()
        assert ends.delays_s[0] == (17.5 if known else 0.5)
