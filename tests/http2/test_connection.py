"""A connection that carries bytes, in both roles, with the h2 library for its peer: no gRPC, no packets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from agent.http2.connection import TRANSITIONS, Event, Http2Connection, State
from agent.http2.errors import ErrorCode, StreamReset
from agent.http2.frames import DATA, END_STREAM, GOAWAY, PREFACE, RST_STREAM
from agent.http2.framing import FrameWriter
from agent.http2.head_rules import Headers
from agent.http2.stream import Http2Stream

from ..limits import scaled

REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"peer")]
TEXT_REQUEST = [(name.decode(), value.decode()) for name, value in REQUEST]
RESPONSE = [(b":status", b"200")]
DEFAULT_WINDOW = 65535
TIMEOUT_S = scaled(20)


class Changes:
    """Something that can be waited on."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    async def until(self, reached: Callable[..., Any]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not reached():
                self.changed.clear()
                await self.changed.wait()


class User(Changes):
    """A stream's user: keeps the bytes that come, and sends those that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: Http2Stream
        self.head: Headers = []
        self.trailers: Headers | None = None
        self.received = bytearray()
        self.pieces: list[bytes | memoryview] = []
        self.consumes = True
        self.ended = False
        self.lost: list[Exception] = []
        self.asked_bytes = 0  # given to the writer
        self._queue: list[bytes] = []
        self._end: tuple[Headers | None] | None = None

    def send(self, *pieces: bytes, end: bool = False, trailers: Headers | None = None) -> None:
        self._queue += pieces
        if end:
            self._end = (trailers,)
        self.stream.wake()

    def headers_received(self, headers: Headers, ended: bool) -> None:
        self.head, self.ended = headers, ended
        self.changed.set()

    def informational_received(self, headers: Headers) -> None:
        pass

    def trailers_received(self, headers: Headers) -> None:
        self.trailers, self.ended = headers, True
        self.changed.set()

    def stream_ended(self) -> None:
        self.ended = True
        self.changed.set()

    def stream_lost(self, error: Exception) -> None:
        self.lost.append(error)
        self.changed.set()

    def data_received(self, data: bytes | memoryview) -> None:
        self.received += data
        self.pieces.append(data)
        if self.consumes:
            self.stream.consumed(len(data))
        self.changed.set()

    def fill(self, writer: FrameWriter) -> bool:
        if self._queue:
            piece = self._queue.pop(0)
            self.asked_bytes += len(piece)
            writer.append(piece)
            return True
        if self._end is not None:
            (trailers,), self._end = self._end, None
            self.stream.finish(trailers)
        return False


class Owner(Changes):
    """A connection's user: has a User for each stream that the peer opens."""

    def __init__(self) -> None:
        super().__init__()
        self.connection: Http2Connection
        self.streams: list[User] = []
        self.refused: list[str] = []
        self.is_connected = False
        self.ended: list[Exception | None] = []
        self.consumes = True

    def connected(self, connection: Http2Connection) -> None:
        self.is_connected = True
        self.changed.set()

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        stream.user = user = User()
        user.stream, user.head, user.ended, user.consumes = stream, headers, ended, self.consumes
        self.streams.append(user)
        self.changed.set()

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        self.refused.append(fault)

    def goaway_received(self, connection: Http2Connection) -> None:
        pass

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        self.ended.append(error)
        self.changed.set()


class Peer(Changes):
    """The other end: h2 on a socket. It gives credit for what it reads, unless `credits` is false."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool) -> None:
        super().__init__()
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding=None))
        self.writer = writer
        self.credits = True
        self.data: dict[int, bytearray] = {}
        self.heads: dict[int, Any] = {}
        self.trailers: dict[int, Any] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        self._reader = reader
        self.h2.initiate_connection()
        self.flush()
        self.task = asyncio.get_running_loop().create_task(self._read())

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionError):
            while received := await self._reader.read(2**16):
                for event in self.h2.receive_data(received):
                    self._handle(event)
                self.flush()
                self.changed.set()

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived() | h2.events.ResponseReceived():
                self.heads[event.stream_id] = event.headers
                self.data[event.stream_id] = bytearray()
            case h2.events.DataReceived():
                self.data[event.stream_id] += event.data
                if self.credits:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                self.trailers[event.stream_id] = event.headers
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.resets[event.stream_id] = event.error_code

    def room(self, stream_id: int) -> int:
        """Bytes that it may send now."""
        return min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)

    async def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send all of it, as credit comes."""
        while data:
            await self.until(lambda: self.room(stream_id) > 0)
            size = min(self.room(stream_id), len(data))
            self.h2.send_data(stream_id, data[:size])
            data = data[size:]
            self.flush()
        if end:
            self.h2.end_stream(stream_id)
            self.flush()


@contextlib.asynccontextmanager
async def served(*, consumes: bool = True, **options: Any) -> AsyncIterator[tuple[Owner, Peer]]:
    """Our server, and h2's client."""
    owner = Owner()
    owner.consumes = consumes
    owner.connection = Http2Connection(owner, client=False, **options)
    listening = await asyncio.get_running_loop().create_server(lambda: owner.connection, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    peer = Peer(reader, writer, client=True)
    try:
        yield owner, peer
    finally:
        await closed(owner, peer, listening)


@contextlib.asynccontextmanager
async def dialled(**options: Any) -> AsyncIterator[tuple[Owner, Peer]]:
    """Our client, and h2's server."""
    owner = Owner()
    accepted: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(Peer(reader, writer, client=False))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    owner.connection = Http2Connection(owner, client=True, **options)
    await asyncio.get_running_loop().create_connection(lambda: owner.connection, *listening.sockets[0].getsockname())
    peer = await accepted
    try:
        yield owner, peer
    finally:
        await closed(owner, peer, listening)


async def closed(owner: Owner, peer: Peer, listening: asyncio.Server) -> None:
    owner.connection.abort()
    await owner.until(lambda: owner.ended)
    await peer.task
    peer.writer.transport.abort()
    listening.close()
    await listening.wait_closed()


def request(peer: Peer, stream_id: int = 1) -> None:
    peer.h2.send_headers(stream_id, REQUEST)
    peer.flush()


async def opened(owner: Owner, peer: Peer) -> tuple[User, int]:
    """One more stream that the peer has opened."""
    stream_id = 2 * len(owner.streams) + 1
    request(peer, stream_id)
    await owner.until(lambda: len(owner.streams) == (stream_id + 1) // 2)
    return owner.streams[-1], stream_id


# ---------------------------------------------------------------- bytes, both ways, both roles


async def test_a_server_gets_a_requests_bytes_and_sends_its_own() -> None:
    async with served() as (owner, peer):
        body = os.urandom(500_000)
        user, stream_id = await opened(owner, peer)
        assert user.head == REQUEST
        await peer.send(stream_id, body, end=True)
        await user.until(lambda: user.ended)
        assert hashlib.sha256(user.received).digest() == hashlib.sha256(body).digest()
        user.stream.send_headers(RESPONSE)
        user.send(*(body[at : at + 30_001] for at in range(0, len(body), 30_001)), end=True, trailers=[(b"x", b"y")])
        await peer.until(lambda: stream_id in peer.ended)
        assert peer.heads[stream_id] == RESPONSE
        assert peer.data[stream_id] == body
        assert peer.trailers[stream_id] == [(b"x", b"y")]


async def test_a_client_sends_its_bytes_and_gets_a_responses() -> None:
    async with dialled() as (owner, peer):
        body = os.urandom(500_000)
        user = User()
        user.stream = owner.connection.open_stream(user, REQUEST)
        user.send(body[:1], body[1:], end=True)
        await peer.until(lambda: 1 in peer.ended)
        assert peer.heads[1] == REQUEST
        assert peer.data[1] == body
        peer.h2.send_headers(1, RESPONSE)
        await peer.send(1, body, end=True)
        await user.until(lambda: user.ended)
        assert user.head == RESPONSE
        assert bytes(user.received) == body
        assert not user.lost


async def test_a_head_alone_ends_a_stream() -> None:
    async with served() as (owner, peer):
        peer.h2.send_headers(1, REQUEST, end_stream=True)
        peer.flush()
        await owner.until(lambda: owner.streams)
        assert owner.streams[0].ended
        owner.streams[0].stream.send_headers(RESPONSE, end_stream=True)
        await peer.until(lambda: 1 in peer.ended)
        assert not peer.data[1]


async def test_trailers_end_the_peers_side() -> None:
    async with served() as (owner, peer):
        user, stream_id = await opened(owner, peer)
        await peer.send(stream_id, b"body")
        peer.h2.send_headers(stream_id, [(b"x", b"y")], end_stream=True)
        peer.flush()
        await user.until(lambda: user.ended)
        assert (bytes(user.received), user.trailers) == (b"body", [(b"x", b"y")])


@pytest.mark.parametrize("code", [ErrorCode.CANCEL, ErrorCode.REFUSED_STREAM])
async def test_a_reset_reaches_the_user_with_its_code(code: ErrorCode) -> None:
    async with served() as (owner, peer):
        user, stream_id = await opened(owner, peer)
        peer.h2.reset_stream(stream_id, code)
        peer.flush()
        await user.until(lambda: user.lost)
        assert isinstance(user.lost[0], StreamReset)
        assert user.lost[0].code == code


async def test_our_reset_reaches_the_peer() -> None:
    async with served() as (owner, peer):
        user, stream_id = await opened(owner, peer)
        user.stream.reset()
        await peer.until(lambda: peer.resets)
        assert peer.resets == {stream_id: ErrorCode.CANCEL}
        other, _ = await opened(owner, peer)
        assert other.head == REQUEST


# ---------------------------------------------------------------- backpressure, stream by stream


async def test_a_user_that_consumes_nothing_gets_one_window_and_no_more() -> None:
    async with served(consumes=False) as (owner, peer):
        user, stream_id = await opened(owner, peer)
        sending = asyncio.ensure_future(peer.send(stream_id, bytes(3 * DEFAULT_WINDOW)))
        await user.until(lambda: len(user.received) == DEFAULT_WINDOW)
        other, other_id = await opened(owner, peer)  # a stalled stream does not block the others of the connection
        other.consumes = True
        await peer.send(other_id, bytes(3 * DEFAULT_WINDOW))
        await other.until(lambda: len(other.received) == 3 * DEFAULT_WINDOW)
        assert len(user.received) == DEFAULT_WINDOW
        assert peer.h2.local_flow_control_window(stream_id) == 0 or not sending.done()
        for _ in range(2):
            user.stream.consumed(DEFAULT_WINDOW)
            before = len(user.received)
            await user.until(lambda before=before: len(user.received) == before + DEFAULT_WINDOW)
        await sending
        assert len(user.received) == 3 * DEFAULT_WINDOW


@pytest.mark.parametrize("window_bytes", [DEFAULT_WINDOW, 100_000, 2**20])
async def test_credit_goes_back_by_what_was_consumed(window_bytes: int) -> None:
    async with served(consumes=False, window_bytes=window_bytes) as (owner, peer):
        user, stream_id = await opened(owner, peer)
        await peer.until(lambda: peer.h2.local_flow_control_window(stream_id) == window_bytes)
        sending = asyncio.ensure_future(peer.send(stream_id, bytes(3 * window_bytes)))
        consumed = 0
        while len(user.received) < 3 * window_bytes:
            await user.until(lambda consumed=consumed: len(user.received) > consumed)
            assert len(user.received) - consumed <= window_bytes
            step = min(20_000, len(user.received) - consumed)
            user.stream.consumed(step)
            consumed += step
        await sending


async def test_padding_needs_no_consumption() -> None:
    async with served(consumes=False) as (owner, peer):
        user, stream_id = await opened(owner, peer)
        for number in range(1, 1001):  # 256 bytes each: four windows
            await peer.until(lambda: peer.room(stream_id) >= 300)
            peer.h2.send_data(stream_id, b"x", pad_length=254)
            peer.flush()
            await user.until(lambda number=number: len(user.received) == number)
        assert not user.lost


async def test_more_than_has_come_cannot_be_consumed() -> None:
    async with served(consumes=False) as (owner, peer):
        user, stream_id = await opened(owner, peer)
        await peer.send(stream_id, b"1234")
        await user.until(lambda: user.received)
        user.stream.consumed(3)
        for size in (2, -1):
            with pytest.raises(ValueError, match="1 bytes are unread"):
                user.stream.consumed(size)
        user.stream.consumed(1)


async def test_a_user_is_asked_for_no_more_than_the_peer_gives_credit_for() -> None:
    async with served() as (owner, peer):
        peer.credits = False
        user, stream_id = await opened(owner, peer)
        user.stream.send_headers(RESPONSE)
        user.send(*[bytes(10_000)] * 100, end=True)
        await peer.until(lambda: len(peer.data.get(stream_id, b"")) == DEFAULT_WINDOW)
        assert user.asked_bytes < DEFAULT_WINDOW + 10_000
        peer.credits = True
        peer.h2.acknowledge_received_data(DEFAULT_WINDOW, stream_id)
        peer.flush()
        await peer.until(lambda: stream_id in peer.ended)
        assert len(peer.data[stream_id]) == 1_000_000


async def test_what_a_user_keeps_stays_as_it_came() -> None:
    async with served(window_bytes=2**20) as (owner, peer):
        body = os.urandom(3_000_000)
        user, stream_id = await opened(owner, peer)
        await peer.send(stream_id, body, end=True)
        await user.until(lambda: user.ended)
        assert b"".join(user.pieces) == body


# ---------------------------------------------------------------- states


def test_the_states_are_these_and_what_has_no_entry_raises() -> None:
    """Every pair: a transport is made once and lost once, and a connection that closes opens no more."""
    for state, event in itertools.product(State, Event):
        after = TRANSITIONS.get((state, event))
        if event is Event.LOST:
            assert after is (None if state in (State.IDLE, State.CLOSED) else State.CLOSED)
        elif event is Event.MADE:
            assert after is {State.IDLE: State.OPEN, State.CLOSING: State.CLOSING}.get(state)
        elif event is Event.CLOSE:
            assert after is (None if state in (State.CLOSING, State.CLOSED) else State.CLOSING)
        else:
            assert after is (State.DRAINING if state in (State.IDLE, State.OPEN) else None)


async def test_a_draining_connection_refuses_streams_and_closes_with_its_last(raw_agent: Any) -> None:
    owner = Owner()
    owner.connection = Http2Connection(owner, client=False)
    listening = await asyncio.get_running_loop().create_server(lambda: owner.connection, "127.0.0.1", 0)
    async with raw_agent(listening.sockets[0].getsockname()[1]) as peer:
        peer.writer.write(PREFACE)
        peer.settings()
        peer.headers(*TEXT_REQUEST)
        await owner.until(lambda: owner.streams)
        (user,) = owner.streams
        owner.connection.refuse_streams()
        assert owner.connection.state is State.DRAINING
        assert (await peer.seen(GOAWAY))[3] == struct.pack(">II", 1, ErrorCode.NO_ERROR)
        peer.headers(*TEXT_REQUEST, stream_id=3)
        assert (await peer.seen(RST_STREAM))[2:] == (3, struct.pack(">I", ErrorCode.REFUSED_STREAM))
        peer.send(DATA, END_STREAM, 1, b"late")
        await user.until(lambda: user.ended)
        assert bytes(user.received) == b"late"
        user.stream.send_headers(RESPONSE)
        user.send(b"too", end=True)
        await peer.ended()
        assert peer.body == b"too"
    await owner.until(lambda: owner.ended)
    assert (owner.ended, owner.connection.state) == ([None], State.CLOSED)
    listening.close()
    await listening.wait_closed()


async def test_a_connection_that_the_peer_drops_ends_its_streams() -> None:
    async with dialled() as (owner, peer):
        user = User()
        user.stream = owner.connection.open_stream(user, REQUEST)
        await peer.until(lambda: peer.heads)
        peer.writer.transport.abort()
        await owner.until(lambda: owner.ended)
        assert user.lost == owner.ended
        assert owner.connection.state is State.CLOSED
