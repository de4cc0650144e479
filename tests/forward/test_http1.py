"""The carrier for HTTP/1.1, with hubs that respond in every way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest

from agent.errors import ForwardError
from agent.forward.carrier import HubAddress
from agent.forward.http1 import Http1Carrier
from agent.forward.joining import Joint
from agent.syntax import Address

from ..limits import scaled
from ..whole.whole_peers import free_port, until

TARGET = Address("db", 5432)


@contextlib.asynccontextmanager
async def hub(
    *pieces: bytes, timeout_s: float = 20.0, closes: bool = True
) -> AsyncIterator[tuple[Http1Carrier, list[bytes]]]:
    """A carrier to a hub that responds with these pieces, and the heads that arrived there."""
    heads: list[bytes] = []
    hold = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if not closes:
                await hold.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    carrier = Http1Carrier(HubAddress(address), "c1", lambda: "s3cret", scaled(timeout_s))
    try:
        yield carrier, heads
    finally:
        hold.set()
        server.close()
        await server.wait_closed()


async def received(carrier: Http1Carrier) -> bytes:
    """All bytes of a tunnel, at a local end that is connected late."""
    end = await carrier.connect(TARGET)
    await asyncio.sleep(0.01)
    joint = Joint(end)
    local, far = await asyncio.open_connection(sock=await _pair(joint))
    found = await local.read()
    far.close()
    await joint.done
    return found


async def _pair(joint: Joint) -> socket.socket:
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        each.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: joint.local, ours)
    return theirs


async def test_the_head_names_the_cluster_and_holds_the_token() -> None:
    async with hub(b"HTTP/1.1 200 OK\r\n\r\nhello") as (carrier, heads):
        assert await received(carrier) == b"hello"
    # c1:s3cret
    assert heads == [b"CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\nProxy-Authorization: Basic YzE6czNjcmV0\r\n\r\n"]


async def test_bytes_right_behind_the_head_are_kept_for_the_local_end() -> None:
    head = b"HTTP/1.1 200 Connection established\r\nX-Some: thing\r\n\r\n"
    data = random.Random(1).randbytes(3_000_000)
    async with hub(head + data[:10], data[10:]) as (carrier, _):
        assert await received(carrier) == data
    async with hub(*(bytes([byte]) for byte in head + b"hello")) as (carrier, _):
        assert await received(carrier) == b"hello"


REFUSALS = [
    (
        403,
        b"Content-Length: 40\r\n",
        b"connect_allow has no entry db:5432\nrequest id: 1\n",
        "connect_allow has no entry",
    ),
    (407, b"", b"no credentials\n", "FORWARD_TOKEN"),
    (401, b"", b"no credentials\n", "FORWARD_TOKEN"),
    (404, b"", b"", "does not know the cluster"),
    (503, b"X-Request-Id: abc\r\n", b"no agent\n", "no agent serves the cluster now: 503 no agent"),
    (502, b"", b"x" * 10_000, "was not reached: 502 xxx"),
    (400, b"Content-Length: 0\r\n", b"", "refused the connection: 400"),
    (302, b"", b"", "refused the connection: 302"),
]


@pytest.mark.parametrize(("status", "fields", "body", "reason"), REFUSALS, ids=[each[0] for each in REFUSALS])
async def test_a_refusal_has_the_status_the_fault_and_the_reason(
    status: int, fields: bytes, body: bytes, reason: str
) -> None:
    async with hub(b"HTTP/1.1 %d Reason\r\n%b\r\n" % (status, fields), body) as (carrier, _):
        with pytest.raises(ForwardError) as raised:
            await carrier.connect(TARGET)
    error = raised.value
    assert error.status == status
    assert reason in error.reason
    assert len(error.reason) < 400
    assert error.request_id == ("abc" if b"abc" in fields else "")
    assert "s3cret" not in f"{error!r}{error.__cause__!r}"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        b"HTTP/1.1 403",
    ],
)
async def test_a_peer_that_is_no_hub_is_named(head: bytes) -> None:
    async with hub(head) as (carrier, _):
        with pytest.raises(ForwardError) as raised:
            await carrier.connect(TARGET)
    assert (raised.value.fault, raised.value.status) == ("hub", 0)


async def test_a_silent_hub_is_a_timeout_that_names_its_setting() -> None:
    async with hub(b"HTTP/1.1 200", timeout_s=0.1, closes=False) as (carrier, _):
        with pytest.raises(ForwardError, match="connect_timeout_s"):
            await carrier.connect(TARGET)


async def test_a_hub_that_is_not_there_is_an_error() -> None:
    carrier = Http1Carrier(HubAddress(Address("127.0.0.1", free_port())), "c1", lambda: "", scaled(10))
    with pytest.raises(ForwardError, match="can't be reached: Connection refused"):
        await carrier.connect(TARGET)
    carrier = Http1Carrier(HubAddress(Address("no-such-hub.invalid", 1)), "c1", lambda: "", scaled(20))
    with pytest.raises(ForwardError, match="can't be reached"):
        await carrier.connect(TARGET)


async def test_a_cancelled_connect_leaves_nothing() -> None:
    async with hub(closes=False) as (carrier, heads):
        connecting = asyncio.ensure_future(carrier.connect(TARGET))
        await until(lambda: heads)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting


@pytest.mark.parametrize("seed", range(20))
async def test_mutated_responses_are_tunnels_or_errors(seed: int) -> None:
    chance = random.Random(seed)
    whole = bytearray(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\nX-Request-Id: a\r\n\r\nhello\n")
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(whole))
        if chance.random() < 0.5:
            whole[at] = chance.randrange(256)
        else:
            del whole[at : at + chance.randrange(1, 5)]
    cut = chance.randrange(len(whole))
    async with hub(bytes(whole[:cut]), bytes(whole[cut:])) as (carrier, _):
        (found,) = await asyncio.gather(carrier.connect(TARGET), return_exceptions=True)
        if isinstance(found, BaseException):
            assert isinstance(found, ForwardError)
            assert str(found).isprintable()
        else:
            found.transport.abort()
