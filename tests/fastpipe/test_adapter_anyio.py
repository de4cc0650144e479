"""Pipes as anyio's byte streams: its errors, its cancellation, its helpers on top."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import anyio
import anyio.abc
import pytest
import trustme
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSStream

from fastpipe import Listener
from fastpipe.anyio import PipeByteStream, PipeListener, connect, open_byte_streams


async def send_again_and_again(stream: PipeByteStream) -> None:
    while True:
        await stream.send(b"anyone?")


async def test_it_is_a_byte_stream() -> None:
    one, other = open_byte_streams()
    assert isinstance(one, anyio.abc.ByteStream)
    async with one, other:
        await one.send(b"hello")
        assert await other.receive() == b"hello"
        await other.send(b"x" * 10)
        assert await one.receive(4) == b"xxxx"
        assert await one.receive() == b"x" * 6
        await one.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await other.receive()
        await other.send(b"still")
        assert await one.receive() == b"still"
        with pytest.raises(ValueError, match="max_bytes"):
            await one.receive(0)


async def test_lots_of_bytes_with_backpressure() -> None:
    one, other = open_byte_streams(limit=1000)
    data = bytes(i % 256 for i in range(300_000))

    async def send() -> None:
        for start in range(0, len(data), 7000):
            await one.send(data[start : start + 7000])
        await one.aclose()

    got = bytearray()
    async with anyio.create_task_group() as group:
        group.start_soon(send)
        async for part in other:
            got += part
    assert got == data
    await other.aclose()


async def test_closed_here_and_closed_there() -> None:
    one, other = open_byte_streams()
    await one.send(b"last words")
    await one.aclose()
    await one.aclose()
    for use in (one.receive(), one.send(b"x"), one.send_eof()):
        with pytest.raises(anyio.ClosedResourceError):
            await use
    assert await other.receive() == b"last words"
    with pytest.raises(anyio.EndOfStream):
        await other.receive()
    with pytest.raises(anyio.BrokenResourceError):  # nobody is there to read it
        await send_again_and_again(other)
    await other.aclose()


async def test_closed_while_it_waits() -> None:
    one, other = open_byte_streams()
    waiting = asyncio.ensure_future(one.receive())
    await asyncio.sleep(0.01)
    await one.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await waiting
    await other.aclose()


async def test_broken_by_the_peer() -> None:
    one, other = open_byte_streams()
    waiting = asyncio.ensure_future(one.receive())
    await asyncio.sleep(0.01)
    other._writer.transport.abort()
    with pytest.raises(anyio.BrokenResourceError):
        await waiting
    with pytest.raises(anyio.BrokenResourceError):
        await one.send(b"x")
    await one.aclose()


async def test_two_at_once_are_busy() -> None:
    one, other = open_byte_streams(limit=1)
    async with anyio.create_task_group() as group:
        group.start_soon(one.receive)
        await anyio.sleep(0.01)
        with pytest.raises(anyio.BusyResourceError):
            await one.receive()
        await other.send(b"x")
    await one.send(b"1234567890")
    async with anyio.create_task_group() as group:
        group.start_soon(one.send, b"1234567890")
        await anyio.sleep(0.01)
        with pytest.raises(anyio.BusyResourceError):
            await one.send(b"x")
        with pytest.raises(anyio.BusyResourceError):
            await one.send_eof()
        assert len(await other.receive()) >= 10
    await one.aclose()
    await other.aclose()


async def test_a_cancelled_receive_loses_nothing() -> None:
    one, other = open_byte_streams()
    for _ in range(3):
        with anyio.move_on_after(0.01) as scope:
            await one.receive()
        assert scope.cancelled_caught
        with anyio.CancelScope() as scope:
            scope.cancel()
            await other.send(b"never sent")
    await other.send(b"kept")
    assert await BufferedByteReceiveStream(one).receive_exactly(4) == b"kept"
    await one.aclose()
    await other.aclose()


async def test_anyios_tls_runs_over_a_pipe() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("app.test").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    one, other = open_byte_streams()

    async def serve() -> None:
        async with await TLSStream.wrap(other, server_side=True, ssl_context=server_context) as tls:
            await tls.send((await tls.receive()).upper())
            with pytest.raises(anyio.EndOfStream):
                await tls.receive()

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        async with await TLSStream.wrap(one, hostname="app.test", ssl_context=client_context) as tls:
            await tls.send(b"secret")
            assert await tls.receive() == b"SECRET"


async def test_anyios_serve_on_a_listener() -> None:
    listener = Listener("memory")
    served: list[Any] = []

    async def handle(stream: PipeByteStream) -> None:
        async with stream:
            served.append(stream.extra(anyio.abc.SocketAttribute.local_address))
            async for data in stream:
                await stream.send(data.upper())

    async with anyio.create_task_group() as group:
        group.start_soon(PipeListener(listener).serve, handle)
        for text in (b"one", b"two"):
            async with await connect(listener) as stream:
                await stream.send(text)
                assert await stream.receive() == text.upper()
                assert stream.extra(anyio.abc.SocketAttribute.remote_address) == "memory"
        await PipeListener(listener).aclose()  # and `serve` returns
    assert served == ["memory", "memory"]
