"""SPDY/3.1 as an API server's `exec` and `port-forward` speak it: streams with headers, data, and an end each way.

No flow control: Kubernetes' clients neither send nor read WINDOW_UPDATE. Written after the SPDY draft 3.1, sections 2.2
and 2.6.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable

__all__ = ["SpdySession", "SpdyStream"]

SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY = 1, 2, 3, 6, 7
FIN = 0x01
DATA_BYTES = 32 * 1024

_WORDS = """
options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow
authorization cache-control connection content-base content-encoding content-language content-length content-location
content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match
if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range
referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get
status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin
""".replace("_", "\0").split()
_TEXT = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    b"Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    b"Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    b"00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    b"application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset="
    b"iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(struct.pack(">I", len(w)) + w.replace("\0", " ").encode() for w in _WORDS) + _TEXT
"""The initial dictionary of both sides' header compression (section 2.6.10.1)."""
assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2

Read = Callable[[], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


class SpdyStream:
    """One stream that the client has opened. reader: what it sends, to its end."""

    def __init__(self, session: SpdySession, stream_id: int, headers: dict[str, str], ended: bool) -> None:
        self.headers = headers
        self.reader = asyncio.StreamReader(limit=1 << 22)
        if ended:
            self.reader.feed_eof()
        self.finished = False
        self._session = session
        self._id = stream_id

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), DATA_BYTES):
            piece = data[start : start + DATA_BYTES]
            await self._session.send(struct.pack(">II", self._id, len(piece)) + piece)

    async def finish(self) -> None:
        """End this side's half."""
        self.finished = True
        await self._session.send(struct.pack(">II", self._id, FIN << 24))


class SpdySession:
    """The server's end of one connection. read: the next bytes, b"" at the end. on_stream: gets each new stream."""

    def __init__(self, read: Read, write: Write, on_stream: Callable[[SpdyStream], None]) -> None:
        self._read = read
        self._write = write
        self._on_stream = on_stream
        self._unread = b""
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._writing = asyncio.Lock()
        self.streams: dict[int, SpdyStream] = {}
        self.pings = 0

    async def send(self, frame: bytes) -> None:
        async with self._writing:
            await self._write(frame)

    async def run(self) -> None:
        """Serve until the client's end or its GOAWAY.

        Once all streams are finished here the client has what it came for. It writes a frame in pieces, and its process
        may end between two of them.
        """
        try:
            while frame := await self._frame():
                first, flags, payload = frame
                if not first >> 31:
                    stream = self.streams[first]
                    stream.reader.feed_data(payload)
                    if flags & FIN:
                        stream.reader.feed_eof()
                    continue
                assert first >> 16 == 0x8003, hex(first)
                kind = first & 0xFFFF
                if kind == SYN_STREAM:
                    await self._open(flags, payload)
                elif kind == RST_STREAM:
                    self._end(self.streams.get(struct.unpack(">I", payload[:4])[0]))
                elif kind == PING:
                    self.pings += 1
                    await self.send(struct.pack(">II", 0x80030000 | PING, len(payload)) + payload)
                elif kind == GOAWAY:
                    return
        finally:
            for stream in self.streams.values():
                self._end(stream)

    @staticmethod
    def _end(stream: SpdyStream | None) -> None:
        if stream is not None and not stream.reader.at_eof():
            stream.reader.feed_eof()

    async def _frame(self) -> tuple[int, int, bytes] | None:
        head = await self._exactly(8)
        if head is None:
            return None
        first, rest = struct.unpack(">II", head)
        payload = await self._exactly(rest & 0xFFFFFF)
        if payload is None:
            self._ended_inside_a_frame()
            return None
        return first, rest >> 24, payload

    def _ended_inside_a_frame(self) -> None:
        served = all(stream.finished for stream in self.streams.values())
        assert served, "the connection ended inside a frame"

    async def _exactly(self, count: int) -> bytes | None:
        while len(self._unread) < count:
            data = await self._read()
            if not data:
                if self._unread:
                    self._ended_inside_a_frame()
                return None
            self._unread += data
        found, self._unread = self._unread[:count], self._unread[count:]
        return found

    async def _open(self, flags: int, payload: bytes) -> None:
        (stream_id,) = struct.unpack(">I", payload[:4])
        block = self._inflate.decompress(payload[10:])
        (count,), at, texts = struct.unpack(">I", block[:4]), 4, []
        for _ in range(2 * count):
            (size,) = struct.unpack(">I", block[at : at + 4])
            texts.append(block[at + 4 : at + 4 + size].decode())
            at += 4 + size
        headers = dict(zip(texts[::2], texts[1::2], strict=True))
        stream = self.streams[stream_id] = SpdyStream(self, stream_id, headers, bool(flags & FIN))
        none = self._deflate.compress(struct.pack(">I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        reply = struct.pack(">I", stream_id) + none
        await self.send(struct.pack(">II", 0x80030000 | SYN_REPLY, len(reply)) + reply)
        self._on_stream(stream)
