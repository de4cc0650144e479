"""The first bytes of a socket, on both loops: the header is taken, and the rest stays."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from agent.hub import first_bytes
from agent.hub.first_bytes import peek, receive_header
from agent.hub.proxy_protocol import MAX_BYTES, SIGNATURE, MalformedHeader, ProxyHeader

V1 = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"
V2 = SIGNATURE + b"\x21\x11\x00\x0c" + bytes([192, 0, 2, 1, 198, 51, 100, 7, 220, 4, 1, 187])
LONGEST = SIGNATURE + b"\x20\x00" + (MAX_BYTES - 16).to_bytes(2) + bytes(MAX_BYTES - 16)


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection: ours without blocking, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("header", [V1, V2, LONGEST], ids=["v1", "v2", "longest"])
@pytest.mark.parametrize("seed", range(4))
async def test_the_bytes_behind_a_header_stay_in_the_socket(header: bytes, seed: int) -> None:
    loop = asyncio.get_running_loop()
    random_ = random.Random(seed)
    behind = random_.randbytes(random_.randrange(1, 5000))
    data = header + behind
    with connected() as (ours, theirs):
        receiving = asyncio.ensure_future(receive_header(ours))
        while data:
            size = random_.choice([1, 2, 11, 100, 3000, len(data)]) if len(header) < 100 else 1500
            theirs.sendall(data[:size])
            data = data[size:]
            for _ in range(random_.randrange(4)):
                await asyncio.sleep(0)
        found = await receiving
        assert found is not None
        assert found.size == len(header)
        theirs.shutdown(socket.SHUT_WR)
        left = b""
        while more := await loop.sock_recv(ours, 65536):
            left += more
        assert left == behind


async def test_a_part_of_a_header_does_not_keep_the_loop_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    async def counted(sock: socket.socket, size: int) -> bytes:
        nonlocal looks
        looks += 1
        return await peek(sock, size)

    monkeypatch.setattr(first_bytes, "peek", counted)
    with connected() as (ours, theirs):
        receiving = asyncio.ensure_future(receive_header(ours))
        for place in range(0, len(V1), 15):
            theirs.sendall(V1[place : place + 15])
            for _ in range(10):
                await asyncio.sleep(0.001)
        found = await receiving
        assert isinstance(found, ProxyHeader)
        assert looks <= 5


async def test_the_end_of_the_stream_is_none_before_a_header_and_an_error_within() -> None:
    for sent in (b"", V1[:9], V2[:-1]):
        with connected() as (ours, theirs):
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)
            if sent:
                with pytest.raises(MalformedHeader, match="ended within"):
                    await receive_header(ours)
            else:
                assert await receive_header(ours) is None


async def test_a_look_at_bytes_leaves_them_and_can_be_cancelled() -> None:
    loop = asyncio.get_running_loop()
    with connected() as (ours, theirs):
        looking = asyncio.ensure_future(peek(ours, 3))
        await asyncio.sleep(0)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        assert not loop.remove_reader(ours)
        theirs.sendall(b"abcdef")
        assert await peek(ours, 3) == b"abc"
        assert await peek(ours, 9) == b"abcdef"
        theirs.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(ours, 9) == b"abcdef"
        assert await peek(ours, 9) == b""


async def test_a_loop_that_watches_no_sockets_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' proactor has no `add_reader`."""

    class Proactor:
        def add_reader(self, *_: object) -> None:
            raise NotImplementedError

    with connected() as (ours, theirs):
        receiving = asyncio.ensure_future(receive_header(ours))
        monkeypatch.setattr(asyncio, "get_running_loop", Proactor)
        theirs.sendall(V1[:20])
        await asyncio.sleep(0)
        theirs.sendall(V1[20:])
        found = await receiving
        monkeypatch.undo()
        assert found is not None
