"""Bodies of any size in constant memory, both ways, on each carrier."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable

import pytest

SIZE = 64 << 20
BLOCK = bytes(range(256)) * 256


def framed(chunked: bool, blocks: int):
    for _ in range(blocks):
        yield b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK
    if chunked:
        yield b"0\r\n\r\n"


async def settled(value: Callable[[], int]) -> None:
    """Wait until the value no longer changes."""
    before = -1
    while before != value():
        before = value()
        await asyncio.sleep(0.3)


@pytest.mark.loops("uvloop")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_download_waits_for_a_slow_reader(stack, origin, chunked):
    blocks = SIZE // len(BLOCK)

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % SIZE
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % framing)
        for part in framed(chunked, blocks):
            writer.write(part)
            await writer.drain()
            sent[0] += len(part)
        await reader.read()

    sent = [0]
    async with origin(target) as o, stack(o.url) as h:
        client = await h.open(limit=65536)
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.read_until(b"\r\n\r\n")
        await settled(lambda: sent[0])
        assert sent[0] < SIZE // 2, "without a reader, the sender fills only the buffers on the way"
        if not chunked:
            digest, left = hashlib.sha256(), SIZE
            while left:
                data = await client.read(1 << 20)
                assert data
                digest.update(data)
                left -= len(data)
            assert digest.digest() == hashlib.sha256(BLOCK * blocks).digest()
        else:
            received = 0
            tail = b""
            while not tail.endswith(b"\r\n0\r\n\r\n"):
                data = await client.read(1 << 20)
                assert data
                received += len(data)
                tail = (tail + data)[-7:]
            assert received > SIZE


@pytest.mark.loops("uvloop")
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_upload_waits_for_a_slow_target(stack, origin, chunked):
    blocks = SIZE // len(BLOCK)
    go = asyncio.Event()
    received = asyncio.get_running_loop().create_future()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        digest = hashlib.sha256()
        if chunked:
            while size := int(await reader.readline(), 16):
                digest.update((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
        else:
            left = SIZE
            while left:
                data = await reader.read(1 << 20)
                digest.update(data)
                left -= len(data)
        received.set_result(digest.digest())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url) as h:
        client = await h.open()
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % SIZE
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % framing)
        sent = 0

        async def send():
            nonlocal sent
            for part in framed(chunked, blocks):
                client.send(part)
                await client.writer.drain()
                sent += len(part)

        sending = asyncio.ensure_future(send())
        await settled(lambda: sent)
        assert sent < SIZE // 2, (
            "if the target reads nothing, the client fills only the kernel's buffers and the proxy's"
        )
        (upstream,) = h.upstreams._open
        assert upstream.transport.get_write_buffer_size() < 1 << 20
        go.set()
        await sending
        assert (await client.answer("POST")).status == 200
        assert received.result() == hashlib.sha256(BLOCK * blocks).digest()


async def test_many_clients_at_once_get_their_own_answers(stack, origin):
    async with origin() as o, stack(o.url) as h:

        async def one(number: int) -> None:
            client = await h.open()
            for turn in range(5):
                body = b"%d/%d;" % (number, turn) * 500
                client.send(b"POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (number, len(body)) + body)
                assert (await client.answer("POST")).body == body

        await asyncio.gather(*(one(number) for number in range(30)))
        assert len(o.requests) == 150
        assert o.connections <= 30
