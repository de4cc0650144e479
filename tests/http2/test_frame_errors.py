"""A frame that breaks a rule ends its stream or the connection, with the code of RFC 9113. Sorted by section."""

from __future__ import annotations

import struct
from typing import Any

import hpack
import pytest

from agent.http2.head_rules import fault_of
from agent.tunnel.packet import Packet

CALL = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/tunnel.v1.TunnelService/Tunnel"),
    (":authority", "hub"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("cluster-name", "c1"),
]
PROTOCOL, FLOW_CONTROL, STREAM_CLOSED, FRAME_SIZE, REFUSED, COMPRESSION, CALM = 0x1, 0x3, 0x5, 0x6, 0x7, 0x9, 0xB
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS, PADDED, WITH_PRIORITY = 0x4, 0x8, 0x20

# The streams there are when the frame comes.
OPEN, RESET, ENDED, IDLE, CONNECTION = 1, 3, 5, 9, 0
"""The streams by state:

OPEN: a call that is open.
RESET: a call that the agent has reset.
ENDED: a call that ended by END_STREAM on both sides.
IDLE: a stream that was never used.
CONNECTION: stream 0.
"""


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream_id)
    return head + payload


def setting(code: int, value: int) -> bytes:
    return struct.pack(">HI", code, value)


async def connect(agent: Any, ends: Any) -> None:
    """Bring the streams into their states."""
    agent.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    agent.settings()
    for stream_id in (OPEN, RESET, ENDED):
        agent.headers(*CALL, stream_id=stream_id)
        agent.decoder.decode((await agent.seen(HEADERS))[3])
    agent.send(RST, 0, RESET, struct.pack(">I", 8))
    agent.send(DATA, END_STREAM, ENDED)
    agent.decoder.decode((await agent.seen(HEADERS))[3])
    await agent.seen(SETTINGS)
    agent.ack()
    await agent.seen(SETTINGS)


async def still_serves(agent: Any, ends: Any, stream_id: int = OPEN, number: int = 0) -> None:
    """The connection, this call and HPACK's state are unchanged."""
    session = ends.hub_sessions[number]
    before = len(session.packets)
    agent.send(DATA, 0, stream_id, Packet(1, 0, b"fine").encode())
    await session.until(lambda: len(session.packets) > before)
    assert not session.lost
    agent.headers(*CALL, ("x-new", "value"), stream_id=101)
    agent.decoder.decode((await agent.seen(HEADERS))[3])
    assert dict(ends.hub_sessions[-1].metadata)[b"x-new"] == b"value"


CONNECTION_ERRORS = [
    # 4.2, 6.4, 6.5, 6.7, 6.8, 6.9: sizes, on every stream that there may be
    *[
        (f"6.4 RST_STREAM of {size} bytes on {where}", frame(RST, 0, where, bytes(size)), FRAME_SIZE)
        for size in (0, 3, 5)
        for where in (OPEN, RESET, ENDED, IDLE)
    ],
    *[
        (f"6.9 WINDOW_UPDATE of {size} bytes on {where}", frame(WINDOW, 0, where, bytes(size)), FRAME_SIZE)
        for size in (0, 3, 5)
        for where in (CONNECTION, OPEN, RESET, ENDED, IDLE)
    ],
    *[
        (f"6.7 PING of {size} bytes", frame(PING, flags, CONNECTION, bytes(size)), FRAME_SIZE)
        for size in (0, 7, 9)
        for flags in (0, ACK)
    ],
    *[(f"6.5 SETTINGS of {size} bytes", frame(SETTINGS, 0, CONNECTION, bytes(size)), FRAME_SIZE) for size in (1, 5, 7)],
    ("6.5 SETTINGS with ACK and a payload", frame(SETTINGS, ACK, CONNECTION, setting(1, 4096)), FRAME_SIZE),
    *[(f"6.8 GOAWAY of {size} bytes", frame(GOAWAY, 0, CONNECTION, bytes(size)), FRAME_SIZE) for size in (0, 4, 7)],
    # 6.1 to 6.10: frames that need a stream, and those that must have none
    *[
        (f"6.x type {kind} on stream 0", frame(kind, END_HEADERS, CONNECTION, payload), PROTOCOL)
        for kind, payload in ((DATA, b"x"), (HEADERS, b"\x82"), (PRIORITY, bytes(5)), (RST, bytes(4)), (PUSH, bytes(5)))
    ],
    *[
        (f"6.x type {kind} on stream {where}", frame(kind, 0, where, payload), PROTOCOL)
        for kind, payload in ((SETTINGS, b""), (PING, bytes(8)), (GOAWAY, bytes(8)))
        for where in (OPEN, ENDED, IDLE)
    ],
    # 6.1, 6.2: padding
    *[
        (f"6.1 padding too long on {where}", frame(DATA, PADDED, where, b"\x06hello"), PROTOCOL)
        for where in (OPEN, RESET, ENDED)
    ],
    ("6.1 no pad length", frame(DATA, PADDED, OPEN), FRAME_SIZE),
    ("6.1 no pad length on a closed stream", frame(DATA, PADDED, ENDED), FRAME_SIZE),
    ("6.2 padding too long", frame(HEADERS, PADDED | END_HEADERS, IDLE, b"\x03\x82\x86"), PROTOCOL),
    ("6.2 no pad length", frame(HEADERS, PADDED | END_HEADERS, IDLE), FRAME_SIZE),
    ("6.2 no priority", frame(HEADERS, WITH_PRIORITY | END_HEADERS, IDLE, b"\x82\x86"), FRAME_SIZE),
    # 5.1: idle streams take HEADERS and PRIORITY; 5.1.1: numbers
    ("5.1 DATA on an idle stream", frame(DATA, 0, IDLE, b"x"), PROTOCOL),
    ("5.1 RST_STREAM on an idle stream", frame(RST, 0, IDLE, bytes(4)), PROTOCOL),
    ("5.1 WINDOW_UPDATE on an idle stream", frame(WINDOW, 0, IDLE, b"\0\0\0\1"), PROTOCOL),
    ("5.1.1 HEADERS on an even stream", frame(HEADERS, END_HEADERS, 2, b"\x82\x86\x84"), PROTOCOL),
    (
        "5.1 HEADERS on a stream that both sides have ended",
        frame(HEADERS, END_HEADERS | END_STREAM, ENDED, b"\x88"),
        STREAM_CLOSED,
    ),
    # 6.5.2: values
    ("6.5.2 ENABLE_PUSH of 2", frame(SETTINGS, 0, CONNECTION, setting(2, 2)), PROTOCOL),
    ("6.5.2 INITIAL_WINDOW_SIZE of 2^31", frame(SETTINGS, 0, CONNECTION, setting(4, 2**31)), FLOW_CONTROL),
    ("6.5.2 MAX_FRAME_SIZE of 16,383", frame(SETTINGS, 0, CONNECTION, setting(5, 16383)), PROTOCOL),
    ("6.5.2 MAX_FRAME_SIZE of 2^24", frame(SETTINGS, 0, CONNECTION, setting(5, 2**24)), PROTOCOL),
    # 6.6, 6.9, 6.9.1, 6.10, 4.2, 4.3
    ("6.6 PUSH_PROMISE by a client", frame(PUSH, END_HEADERS, OPEN, bytes(4) + b"\x82"), PROTOCOL),
    ("6.9 WINDOW_UPDATE of 0", frame(WINDOW, 0, CONNECTION, bytes(4)), PROTOCOL),
    ("6.9.1 window overflow", frame(WINDOW, 0, CONNECTION, b"\x7f\xff\xff\xff") * 2, FLOW_CONTROL),
    ("6.10 CONTINUATION without a block", frame(CONTINUATION, END_HEADERS, OPEN, b"\x82"), PROTOCOL),
    ("6.10 PRIORITY inside a block", frame(HEADERS, 0, IDLE, b"\x82") + frame(PRIORITY, 0, IDLE, bytes(5)), PROTOCOL),
    (
        "6.10 CONTINUATION of another stream",
        frame(HEADERS, 0, IDLE, b"\x82") + frame(CONTINUATION, END_HEADERS, OPEN, b"\x82"),
        PROTOCOL,
    ),
    ("4.3 a block that can't be decoded", frame(HEADERS, END_HEADERS, IDLE, b"\xff" * 7), COMPRESSION),
    ("4.3 trailers that can't be decoded", frame(HEADERS, END_HEADERS | END_STREAM, OPEN, b"\xc7"), COMPRESSION),
    (
        "4.3 a block on a closed stream that can't be decoded",
        frame(HEADERS, END_HEADERS, RESET, b"\xff" * 7),
        COMPRESSION,
    ),
    ("4.2 a frame that is too large", b"\x04\x00\x01" + frame(DATA, 0, OPEN)[3:], FRAME_SIZE),
]


@pytest.mark.parametrize(
    ("sent", "code"), [row[1:] for row in CONNECTION_ERRORS], ids=[row[0] for row in CONNECTION_ERRORS]
)
async def test_a_connection_error_ends_the_connection_by_its_code(
    tunnels: Any, raw_agent: Any, sent: bytes, code: int
) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        await connect(agent, ends)
        agent.writer.write(sent)
        assert (await agent.ended())[0] == code
        await ends.hub_sessions[0].until(lambda: ends.hub_sessions[0].lost)


IGNORED = [
    ("5.1 WINDOW_UPDATE on a stream that was reset", frame(WINDOW, 0, RESET, b"\0\0\0\1")),
    ("5.1 WINDOW_UPDATE on one that ended", frame(WINDOW, 0, ENDED, b"\0\0\0\1")),
    ("5.1 RST_STREAM on one that was reset", frame(RST, 0, RESET, bytes(4))),
    ("5.1 RST_STREAM on one that ended", frame(RST, 0, ENDED, bytes(4))),
    ("5.1 DATA on one that was reset", frame(DATA, 0, RESET, b"x")),
    ("5.3.2 PRIORITY on an idle stream", frame(PRIORITY, 0, IDLE, bytes(5))),
    ("5.3.2 PRIORITY on itself", frame(PRIORITY, 0, OPEN, struct.pack(">IB", OPEN, 1))),
    ("5.3.2 PRIORITY on one that ended", frame(PRIORITY, 0, ENDED, bytes(5))),
    ("5.5 a type that isn't known", frame(0xAB, 0xFF, IDLE, b"x" * 20)),
    ("5.5 a type that isn't known, on stream 0", frame(0xAB, 0xFF, CONNECTION)),
    ("6.5.2 a setting that isn't known", frame(SETTINGS, 0, CONNECTION, setting(0xABC, 1))),
    ("6.7 a PING's ACK that nobody asked for", frame(PING, ACK, CONNECTION, bytes(8))),
    ("6.1 padding, all of it", frame(DATA, PADDED, OPEN, b"\x05" + bytes(5))),
    ("6.8 a graceful GOAWAY", frame(GOAWAY, 0, CONNECTION, bytes(8) + b"bye")),
]


@pytest.mark.parametrize("sent", [row[1] for row in IGNORED], ids=[row[0] for row in IGNORED])
async def test_what_may_come_is_taken(tunnels: Any, raw_agent: Any, sent: bytes) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        await connect(agent, ends)
        agent.writer.write(sent)
        await still_serves(agent, ends)


BLOCK = hpack.Encoder().encode


def head(*changed: tuple[str, str], without: str = "") -> bytes:
    """A call's head with other fields besides, which take the place of equal ones. Nothing enters HPACK's table."""
    fields = [field for field in CALL if field[0] != without and field[0] not in dict(changed)]
    pseudo = [field for field in changed if field[0].startswith(":")]
    block = b""
    for name, value in [*pseudo, *fields, *[field for field in changed if field not in pseudo]]:
        block += literal(name, value)
    return block


def literal(name: str, value: str) -> bytes:
    """A field that isn't indexed (RFC 7541, section 6.2.2), shorter than 127 bytes."""
    return b"\0" + b"".join(bytes((len(each),)) + each.encode("latin-1") for each in (name, value))


MALFORMED = [
    ("8.3.1 no :method", head(without=":method")),
    ("8.3.1 no :scheme", head(without=":scheme")),
    ("8.3.1 no :path", head(without=":path")),
    ("8.3.1 an empty :path", head((":path", ""))),
    ("8.3 a response's field", head((":status", "200"))),
    ("8.3 a pseudo-field that isn't known", head((":protocol", "x"))),
    ("8.3 a pseudo-field twice", literal(":method", "POST") + head()),
    ("8.3 a pseudo-field behind others", head(without=":authority") + literal(":authority", "hub")),
    ("8.2.1 a capital in a name", head(("X-a", "b"))),
    ("8.2.1 a blank in a name", head(("x a", "b"))),
    ("8.2.1 an empty name", head(("", "b"))),
    ("8.2.1 a line break in a value", head(("x-a", "b\nc"))),
    ("8.2.1 a NUL in a value", head(("x-a", "b\0c"))),
    ("8.2.1 a blank before a value", head(("x-a", " b"))),
    ("8.2.2 Connection", head(("connection", "close"))),
    ("8.2.2 Transfer-Encoding", head(("transfer-encoding", "chunked"))),
    ("8.2.2 TE other than trailers", head(("te", "gzip"))),
    ("8.5 CONNECT with a path", head((":method", "CONNECT"))),
]


@pytest.mark.parametrize("block", [row[1] for row in MALFORMED], ids=[row[0] for row in MALFORMED])
async def test_a_malformed_request_is_its_streams_error(tunnels: Any, raw_agent: Any, block: bytes) -> None:
    """Section 8.1.1. The other calls of the connection continue."""
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        await connect(agent, ends)
        agent.send(HEADERS, END_HEADERS, 7, block)
        assert (await agent.seen(RST))[2:] == (7, struct.pack(">I", PROTOCOL))
        agent.send(DATA, 0, 7, b"x")
        await still_serves(agent, ends)


@pytest.mark.parametrize("value", ["5", "abc", "-1"])
@pytest.mark.parametrize("flags", [END_HEADERS, END_HEADERS | END_STREAM])
async def test_a_content_length_is_its_calls_matter(tunnels: Any, raw_agent: Any, value: str, flags: int) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        await connect(agent, ends)
        agent.send(HEADERS, flags, 7, head(("content-length", value)))
        assert dict(agent.decoder.decode((await agent.seen(HEADERS))[3]))["grpc-status"] == "3"
        await still_serves(agent, ends)


STREAM_ERRORS = [
    ("6.3 PRIORITY of 4 bytes", frame(PRIORITY, 0, OPEN, bytes(4)), FRAME_SIZE),
    ("6.3 PRIORITY of 6 bytes", frame(PRIORITY, 0, OPEN, bytes(6)), FRAME_SIZE),
    ("6.9 WINDOW_UPDATE of 0", frame(WINDOW, 0, OPEN, bytes(4)), PROTOCOL),
    ("6.9.1 window overflow", frame(WINDOW, 0, OPEN, b"\x7f\xff\xff\xff"), FLOW_CONTROL),
    ("8.1 trailers that don't end the stream", frame(HEADERS, END_HEADERS, OPEN, literal("x", "y")), PROTOCOL),
    (
        "8.1 the same in two frames",
        frame(HEADERS, 0, OPEN, literal("x", "y")) + frame(CONTINUATION, END_HEADERS, OPEN, literal("z", "y")),
        PROTOCOL,
    ),
    ("8.1 a pseudo-field in trailers", frame(HEADERS, END_HEADERS | END_STREAM, OPEN, literal(":path", "/")), PROTOCOL),
    ("8.2.1 a capital in trailers", frame(HEADERS, END_HEADERS | END_STREAM, OPEN, literal("X", "y")), PROTOCOL),
]


@pytest.mark.parametrize(("sent", "code"), [row[1:] for row in STREAM_ERRORS], ids=[row[0] for row in STREAM_ERRORS])
async def test_a_stream_error_ends_its_stream_by_its_code(tunnels: Any, raw_agent: Any, sent: bytes, code: int) -> None:
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        await connect(agent, ends)
        agent.headers(*CALL, stream_id=7)
        agent.decoder.decode((await agent.seen(HEADERS))[3])
        agent.writer.write(sent)
        assert (await agent.seen(RST))[2:] == (OPEN, struct.pack(">I", code))
        await ends.hub_sessions[0].until(lambda: ends.hub_sessions[0].lost)
        await still_serves(agent, ends, stream_id=7, number=3)


async def test_frames_behind_the_end_of_the_peers_side_are_its_streams_error(tunnels: Any, raw_agent: Any) -> None:
    """Section 5.1, half-closed (remote): the hub's end waits for credit, so the stream isn't closed."""
    for sent in (
        frame(DATA, 0, 1, b"x"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, literal("x", "y")),
    ):
        async with tunnels() as ends, raw_agent(ends.port) as agent:
            agent.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            agent.settings(initial_window_size=10)
            agent.headers(*CALL)
            agent.headers(*CALL, stream_id=3)
            for _ in range(2):
                agent.decoder.decode((await agent.seen(HEADERS))[3])
            hub = ends.hub_sessions[0]
            hub.tunnel.outbound(1, lambda: None, lambda: None).write(b"y" * 5000)
            await agent.seen(DATA)
            agent.send(DATA, END_STREAM, 1)
            agent.writer.write(sent)
            assert (await agent.seen(RST))[2:] == (1, struct.pack(">I", STREAM_CLOSED))
            await still_serves(agent, ends, stream_id=3, number=1)


async def test_one_stream_too_many_is_refused_and_the_others_go_on(tunnels: Any, raw_agent: Any) -> None:
    """Section 5.1.2. It was GOAWAY, and 100 tunnels were lost."""
    async with tunnels() as ends, raw_agent(ends.port) as agent:
        agent.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        agent.settings()
        for number in range(100):
            agent.headers(*CALL, stream_id=2 * number + 1)
            agent.decoder.decode((await agent.seen(HEADERS))[3])
        _, _, _, settings = await agent.seen(SETTINGS)
        assert setting(3, 100) in [settings[at : at + 6] for at in range(0, len(settings), 6)]
        # The block changes HPACK's table, and comes in two frames.
        block = agent.encoder.encode([*CALL, ("x-refused", "1")])
        agent.send(HEADERS, 0, 201, block[:10])
        agent.send(CONTINUATION, END_HEADERS, 201, block[10:])
        assert (await agent.seen(RST))[2:] == (201, struct.pack(">I", REFUSED))
        # Frames for the stream were under way: DATA, trailers whose block changes the table again, a reset.
        agent.send(DATA, 0, 201, Packet(1, 0, b"x").encode())
        agent.headers(("x-refused", "2"), ("x-trailer", "3"), stream_id=201, end=True)
        agent.send(RST, 0, 201, struct.pack(">I", 8))
        agent.send(WINDOW, 0, 201, b"\0\0\0\1")
        for number in (0, 99):
            session = ends.hub_sessions[number]
            agent.send(DATA, 0, 2 * number + 1, Packet(1, 0, b"fine").encode())
            await session.until(lambda session=session: session.packets)
        assert not any(session.lost for session in ends.hub_sessions)
        # When one of them has ended there is room for another.
        agent.send(RST, 0, 1, struct.pack(">I", 8))
        agent.headers(*CALL, ("x-refused", "2"), stream_id=203)
        agent.decoder.decode((await agent.seen(HEADERS))[3])
        assert dict(ends.hub_sessions[-1].metadata)[b"x-refused"] == b"2"
        assert len(ends.hub_sessions) == 101


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ([(b":status", b"200"), (b"x", b"")], "response", ""),
        ([(b"x", b"y")], "response", ":status is missing"),
        ([(b":status", b"200"), (b":path", b"/")], "response", ":path is no field of a response"),
        ([(b"grpc-status", b"0")], "trailers", ""),
        ([(b":status", b"200")], "trailers", ":status is no field of a trailer"),
        ([(b":method", b"CONNECT"), (b":authority", b"h:1")], "request", ""),
        ([(b":method", b"CONNECT")], "request", "CONNECT has :authority"),
        ([(b"a:b", b"c")], "trailers", "a field's name"),
        ([(b"\xe9", b"c")], "trailers", "a field's name"),
        ([(b"a", b"\xe9\t!")], "trailers", ""),
        ([(b"a", b"b ")], "trailers", "the value of a"),
        ([(b"te", b"Trailers")], "trailers", ""),
    ],
)
def test_the_fault_of_a_head_names_its_rule(fields: Any, kind: Any, said: str) -> None:
    assert fault_of(fields, kind).startswith(said) if said else fault_of(fields, kind) == ""


# ---------------------------------------------------------------- the agent's side


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (literal(":status", "200") + literal("X", "y"), "malformed response: a field's name"),
        (literal("x", "y"), "malformed response: :status is missing"),
        (literal(":status", "200") + literal("connection", "close"), "malformed response: connection"),
    ],
)
async def test_an_agent_names_what_is_malformed_in_its_hubs_response(
    tunnels: Any, raw_hub: Any, block: bytes, said: str
) -> None:
    async with tunnels() as ends, raw_hub() as (port, accepted):
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.reader.readexactly(24)
        hub.settings()
        hub.send(HEADERS, END_HEADERS, 1, block)
        assert (await hub.seen(RST))[2:] == (1, struct.pack(">I", PROTOCOL))
        await ends.agent_sessions[0].until(lambda: ends.agent_sessions[0].lost)
        assert said in str(ends.agent_sessions[0].lost[0])


async def test_an_agents_hub_that_resets_by_3_bytes_breaks_the_protocol(tunnels: Any, raw_hub: Any) -> None:
    async with tunnels() as ends, raw_hub() as (port, accepted):
        ends.start(ends.client(port))
        hub = await accepted()
        await hub.greet()
        await ends.until(lambda: ends.ready)
        hub.send(RST, 0, 1, bytes(3))
        assert (await hub.ended())[0] == FRAME_SIZE
        assert "RST_STREAM frame of 3 bytes, not 4" in str(ends.agent_sessions[0].lost[0])
