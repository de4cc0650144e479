"""HTTP/1.0 clients of a proxy that owns their connections.

A body of unknown length passes at once, and ends when the proxy closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest

from agent.outcome import Kind, Stage

GET = b"GET / HTTP/1.0\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BLOCKS = 500  # of 64 KiB: more than sockets and buffers hold
TO_EOF = b"HTTP/1.0 200 OK\r\n\r\n"


async def read_to_end(client) -> tuple[bytes, bool]:
    """All bytes until the end, and whether the connection closed without an error."""
    got = bytearray()
    try:
        while data := await client.read():
            got += data
    except ConnectionError:
        return bytes(got), False
    return bytes(got), True


@pytest.mark.parametrize("keep_alive", [b"", b"Connection: keep-alive\r\n"])
async def test_a_stream_comes_as_it_comes(stack, origin, keep_alive):
    go_on = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        await go_on.wait()
        writer.write(b"6\r\nsecond\r\n0\r\nTrailer: dropped\r\n\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url, owns_clients=True) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.0\r\n" + keep_alive + b"\r\n")
        head, _, _ = (await client.read_until(b"first")).lower().partition(b"\r\n\r\n")
        assert b"\r\nconnection: close" in head
        assert b"content-length" not in head
        assert b"transfer-encoding" not in head
        go_on.set()
        assert await read_to_end(client) == (b"second", True)
        assert await h.outcome() == (Kind.COMPLETE, Stage.IDLE)


async def test_a_body_past_the_collecting_limit_arrives_whole(stack, origin, answering):
    size = 3_000_000
    answer = CHUNKED + b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n"
    async with origin(answering(answer)) as o, stack(o.url, owns_clients=True, limits={"collect_bytes": 10}) as h:
        client = await h.open()
        client.send(GET)
        got, whole = await read_to_end(client)
        assert (len(got.partition(b"\r\n\r\n")[2]), whole) == (size, True)


@pytest.mark.parametrize("answer", [CHUNKED + b"4\r\nbody\r\n0\r\n\r\n", TO_EOF + b"body"])
async def test_a_short_body_is_whole_by_its_end(stack, origin, answering, answer):
    async with origin(answering(answer, then_close=True)) as o, stack(o.url, owns_clients=True) as h:
        client = await h.open()
        client.send(GET)
        got, whole = await read_to_end(client)
        assert (got.partition(b"\r\n\r\n")[2], whole) == (b"body", True)


async def test_what_has_a_length_or_no_body_keeps_its_connection(stack, origin, answering):
    none = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    sized = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
    async with origin(answering(sized, none)) as o, stack(o.url, owns_clients=True) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await client.answer()).body == b"OK"
        client.send(b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer("HEAD")
        assert (answer.status, answer.headers[b"connection"]) == (200, b"keep-alive")


async def test_requests_behind_a_body_that_closing_ends_are_not_answered(stack, origin, answering):
    async with origin(answering(CHUNKED + b"4\r\nbody\r\n0\r\n\r\n")) as o, stack(o.url, owns_clients=True) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 3)
        got, whole = await read_to_end(client)
        assert (got.count(b"HTTP/1.1"), got[-4:], whole) == (1, b"body", True)


ENDS = {
    "the target closes": CHUNKED + b"4\r\nhalf\r\n",
    "within a chunk": CHUNKED + b"9\r\nhalf",
    "the target's chunks are broken": CHUNKED + b"4\r\nhalf\r\nno size\r\n",
}


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
@pytest.mark.parametrize("kind", ENDS)
async def test_a_truncated_body_ends_by_a_reset(stack, origin, kind):
    go_on = asyncio.Event()
    first, rest = ENDS[kind][: ENDS[kind].index(b"half") + 4], ENDS[kind][ENDS[kind].index(b"half") + 4 :]

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(first)
        await go_on.wait()
        writer.write(rest)

    async with origin(target) as o, stack(o.url, owns_clients=True) as h:
        client = await h.open()
        client.send(GET)
        await client.read_until(b"half")
        go_on.set()
        assert await read_to_end(client) == (b"", False)
        assert await h.outcome() == (Kind.FAILED, Stage.CHUNKED)


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
@pytest.mark.parametrize("how", ["the proxy is closed", "the client half-closed", "the client takes nothing"])
async def test_whatever_ends_an_unfinished_body_ends_it_by_a_reset(stack, origin, eventually, how):
    many = how == "the client takes nothing"

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"4\r\nhalf\r\n")
        if many:
            writer.write(b"1000000\r\n" + bytes(0x1000000) + b"\r\n0\r\n\r\n")
        await reader.read()

    limits = {"half_closed_s": 0.2, "write_timeout_s": 0.3}
    async with origin(target) as o, stack(o.url, owns_clients=True, limits=limits) as h:
        client = await h.open(limit=1024)
        client.send(GET)
        await client.read_until(b"half")
        if how == "the proxy is closed":
            h.proxy.close()
        elif how == "the client half-closed":
            client.writer.write_eof()
        else:
            await h.outcome()
        assert (await read_to_end(client))[1] is False


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
async def test_a_truncated_body_over_tls_ends_without_close_notify(stack, origin, authority):
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(serving)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    ends = {b"/whole": b"4\r\nbody\r\n0\r\n\r\n", b"/half": b"9\r\nbody"}

    async def target(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + ends[head.split(b" ")[1]])

    def fetch(port: int, path: bytes) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), 30) as sock,
            trusting.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as tls,
        ):
            tls.sendall(b"GET %b HTTP/1.0\r\n\r\n" % path)
            got = b""
            while data := tls.recv(65536):
                got += data
            return got

    async with origin(target) as o, stack(o.url, owns_clients=True) as h:
        server = await asyncio.get_running_loop().create_server(h.connection, "127.0.0.1", 0, ssl=serving)
        port = server.sockets[0].getsockname()[1]
        assert (await asyncio.to_thread(fetch, port, b"/whole")).endswith(b"\r\n\r\nbody")
        with pytest.raises((ssl.SSLEOFError, ConnectionError)):
            await asyncio.to_thread(fetch, port, b"/half")
        server.close()


async def test_backpressure_holds_the_target_back(stack, origin, eventually):
    sent = 0

    async def target(reader, writer):
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        with contextlib.suppress(ConnectionError):
            for _ in range(BLOCKS):
                writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                await writer.drain()
                sent += 65536
            writer.write(b"0\r\n\r\n")
        await reader.read()

    async with origin(target) as o, stack(o.url, owns_clients=True) as h:
        client = await h.open(limit=16384)
        client.send(GET)
        await client.read_until(b"\r\n\r\n")
        await eventually(lambda: any(connection.writing_paused for connection in h.proxy._connections))
        assert sent < BLOCKS * 65536 // 2
        got, whole = await read_to_end(client)
        assert (len(got), whole) == (BLOCKS * 65536, True)
