"""A client by HTTP/2 that can break every rule: frames by hand, with the hpack library."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

import hpack

from agent.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

from ..limits import scaled

TIMEOUT_S = scaled(20.0)
Fields = list[tuple[bytes, bytes]]

NO_INDEX = 0x10
"""A literal field that is never indexed, so that any bytes can be sent (RFC 7541, section 6.2.3)."""


def literal(fields: Fields) -> bytes:
    """A header block of literal fields, as they are."""
    out = bytearray()
    for name, value in fields:
        out.append(NO_INDEX)
        for text in (name, value):
            out += _number(len(text)) + text
    return bytes(out)


def _number(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    out.append(size)
    return bytes(out)


@dataclasses.dataclass
class Reply:
    """The frames of one stream so far."""

    heads: list[Fields] = dataclasses.field(default_factory=list)
    body: bytearray = dataclasses.field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None
    last_is_data: bool = False

    @property
    def done(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The final head."""
        return dict(next(head for head in self.heads if not dict(head)[b":status"].startswith(b"1")))

    @property
    def status(self) -> int:
        return int(self.fields[b":status"])

    @property
    def trailers(self) -> Fields:
        return self.heads[-1] if b":status" not in dict(self.heads[-1]) else []


class Http2Client:
    """One connection. credits: it returns the credit of what it receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.replies: dict[int, Reply] = {}
        self.settings: dict[int, int] = {}
        self.credits = True
        self.goaway: tuple[int, int] | None = None
        self.pings = 0
        self.acknowledged_pings = 0
        self.answers_pings = True
        self.closed = False
        self.sent_window: dict[int, int] = {}
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._reader = reader
        self._next_id = 1
        self._changed = asyncio.Event()
        self._task = asyncio.ensure_future(self._read())

    # -- out

    def begin(self, settings: bytes = b"") -> None:
        self.writer.write(PREFACE + frame(SETTINGS, 0, 0, settings))

    def send(self, kind: int, flags: int, stream_id: int, payload: bytes = b"") -> None:
        self.writer.write(frame(kind, flags, stream_id, payload))

    def head(
        self,
        target: str = "/",
        *more: tuple[bytes, bytes],
        method: str = "GET",
        authority: str = "client",
        scheme: str = "http",
    ) -> Fields:
        pseudo = [(":method", method), (":scheme", scheme), (":path", target), (":authority", authority)]
        return [*((name.encode(), value.encode()) for name, value in pseudo), *more]

    def request(self, fields: Fields | None = None, body: bytes | None = None, *, ended: bool = True) -> int:
        """Send a request. body: None for no DATA at all. ended: with END_STREAM at its end."""
        block = self._encoder.encode(self.head() if fields is None else fields)
        return self.request_block(block, body, ended=ended)

    def request_block(self, block: bytes, body: bytes | None = None, *, ended: bool = True) -> int:
        stream_id, self._next_id = self._next_id, self._next_id + 2
        self.replies[stream_id] = Reply()
        last = END_STREAM if ended and body is None else 0
        first, rest = block[:16384], block[16384:]
        self.send(HEADERS, last | (0 if rest else END_HEADERS), stream_id, first)
        while rest:
            part, rest = rest[:16384], rest[16384:]
            self.send(CONTINUATION, 0 if rest else END_HEADERS, stream_id, part)
        if body is not None:
            self.data(stream_id, body, ended=ended)
        return stream_id

    def data(self, stream_id: int, body: bytes, *, ended: bool = False) -> None:
        parts = [body[at : at + 16384] for at in range(0, len(body), 16384)] or [b""]
        for part in parts[:-1]:
            self.send(DATA, 0, stream_id, part)
        self.send(DATA, END_STREAM if ended else 0, stream_id, parts[-1])

    def trailers(self, stream_id: int, fields: Fields) -> None:
        self.send(HEADERS, END_HEADERS | END_STREAM, stream_id, self._encoder.encode(fields))

    def reset(self, stream_id: int, code: int = 8) -> None:
        self.send(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))

    # -- in

    async def until(self, reached: object) -> None:
        """Wait until `reached()` is true. The connection's end is an error, unless that is awaited."""
        assert callable(reached)
        async with asyncio.timeout(TIMEOUT_S):
            while not reached():
                assert not self.closed, f"the connection ended: {self.goaway}, {self.replies}"
                self._changed.clear()
                await self._changed.wait()

    async def reply(self, stream_id: int) -> Reply:
        """The whole response, or what there was of it at the stream's reset."""
        reply = self.replies[stream_id]
        await self.until(lambda: reply.done)
        return reply

    async def get(self, target: str = "/", *more: tuple[bytes, bytes], method: str = "GET") -> Reply:
        return await self.reply(self.request(self.head(target, *more, method=method)))

    async def ended(self) -> int:
        """Wait for the connection's end. Returns the code of the last GOAWAY, -1 without one."""
        async with asyncio.timeout(TIMEOUT_S):
            while not self.closed:
                self._changed.clear()
                await self._changed.wait()
        return -1 if self.goaway is None else self.goaway[1]

    async def _read(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(header[:3], "big"))
                self._take(header[3], header[4], int.from_bytes(header[5:], "big"), payload)
                self._changed.set()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.closed = True
            self._changed.set()

    def _take(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        reply = self.replies.get(stream_id)
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                self.settings[int.from_bytes(payload[at : at + 2], "big")] = int.from_bytes(
                    payload[at + 2 : at + 6], "big"
                )
            self.send(SETTINGS, ACK, 0)
        elif kind == PING:
            if flags & ACK:
                self.acknowledged_pings += 1
            else:
                self.pings += 1
                if self.answers_pings:
                    self.send(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            self.goaway = int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big")
        elif kind == WINDOW_UPDATE:
            self.sent_window[stream_id] = self.sent_window.get(stream_id, 0) + int.from_bytes(payload, "big")
        elif kind == HEADERS:
            assert flags & END_HEADERS
            assert reply is not None
            reply.heads.append([(bytes(n), bytes(v)) for n, v in self._decoder.decode(payload, raw=True)])
            reply.ended = bool(flags & END_STREAM)
            reply.last_is_data = False
        elif kind == DATA:
            assert reply is not None
            reply.body += payload
            reply.ended = bool(flags & END_STREAM)
            reply.last_is_data = True
            if self.credits and payload:
                self.credit(stream_id, len(payload))
        elif kind == RST_STREAM and reply is not None:
            reply.reset = int.from_bytes(payload, "big")

    def credit(self, stream_id: int, size: int) -> None:
        for each in (0, stream_id):
            self.send(WINDOW_UPDATE, 0, each, size.to_bytes(4, "big"))

    async def close(self) -> None:
        self.writer.transport.abort()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def http2_client(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: bytes = b""
) -> AsyncIterator[Http2Client]:
    """A client that has sent its preface and the server's SETTINGS have come."""
    client = Http2Client(reader, writer)
    client.begin(settings)
    try:
        await client.until(lambda: client.settings)
        yield client
    finally:
        await client.close()
