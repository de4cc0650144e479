"""The managers in front of the real proxy: its words, its endings and its drains, in either mode."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from agent.connections import ConnectionLimits, MemoryConnManager, UDSAcceptor, UDSConnManager
from agent.connections.manager import ConnManager
from agent.messages import RequestHead, Target
from agent.outcome import Kind, Outcome, Stage
from agent.proxy import HubOrigin, Proxy, Upstreams

from .conftest import ERROR, RecordingTunnel, Stack, until

Handler = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
RunProxy = Callable[..., contextlib.AbstractAsyncContextManager[Any]]


@pytest.fixture
def run_proxy(mode: str) -> RunProxy:
    """`async with run_proxy(handler) as (stack, proxy, words)`: handler(head, reader, writer) is the target."""

    @contextlib.asynccontextmanager
    async def run(handler: Handler, **limits: Any) -> AsyncIterator[Any]:
        serving: set[asyncio.Task[Any]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await handler(await reader.readuntil(b"\r\n\r\n"), reader, writer)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            serving.discard(task)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        def route(request: RequestHead) -> Target:
            return Target(f"http://127.0.0.1:{port}{request.target.decode()}")

        words: list[tuple[int, Kind, Stage]] = []
        upstreams = Upstreams()
        proxy = Proxy(route=route, upstreams=upstreams)

        def accept(conn_id: int, outcome: Outcome, is_base: bool = False) -> asyncio.Protocol:
            def heard(conn_id: int, kind: Kind, stage: Stage) -> None:
                words.append((conn_id, kind, stage))
                outcome(conn_id, kind, stage)

            return proxy.connection(conn_id, heard, origin=HubOrigin(is_base=is_base))

        def accept_for(features: frozenset[str]) -> Callable[[int, Outcome], asyncio.Protocol]:
            return functools.partial(accept, is_base=not features)

        tunnel = RecordingTunnel()
        acceptor = UDSAcceptor(accept, accept_for=accept_for)
        await acceptor.start()
        manager: ConnManager
        if mode == "uds":
            manager = UDSConnManager(tunnel, acceptor, limits=ConnectionLimits(**limits))
        else:
            manager = MemoryConnManager(tunnel, accept, accept_for=accept_for, limits=ConnectionLimits(**limits))
        try:
            yield Stack(mode, tunnel, manager, {}, acceptor), proxy, words
        finally:
            manager.tunnel_lost(None)
            await until(lambda: proxy.open_connections == 0)
            proxy.close()
            await upstreams.close()
            await acceptor.close()
            server.close()
            for task in list(serving):
                task.cancel()
            if serving:
                await asyncio.wait(serving)

    return run


async def digest(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Responds to an upload with its hash."""
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    body = await reader.readexactly(length)
    text = hashlib.sha256(body).hexdigest().encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))


async def test_what_a_base_hub_sends_of_a_chunked_upload_is_one_request(run_proxy: RunProxy) -> None:
    async with run_proxy(digest) as (stack, _, _):
        body = b"GET /c1/admin HTTP/1.1\r\nHost: h\r\n\r\n"
        stack.data(1)
        stack.data(1, b"POST /up HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n\r\n" + body)
        expected = hashlib.sha256(body).hexdigest().encode()
        await until(lambda: stack.tunnel.sent(1).endswith(expected))
        assert stack.tunnel.sent(1).count(b"HTTP/1.1 ") == 1
        stack.data(1, b"POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
        await until(lambda: stack.tunnel.sent(1).count(b"HTTP/1.1 200") == 2)


async def test_an_upgrade_with_bytes_behind_it_is_refused(run_proxy: RunProxy) -> None:
    async with run_proxy(digest) as (stack, _, words):
        upgrade = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        stack.data(1, upgrade + b"GET / HTTP/1.1\r\n")
        await stack.ended(1)
        assert stack.tunnel.sent(1).startswith(b"HTTP/1.1 400 ")
        assert stack.tunnel.sent(1).count(b"HTTP/1.1 ") == 1
        assert words == [(1, Kind.COMPLETE, Stage.IDLE)]
        assert stack.tunnel.codes(1) == []


async def test_a_base_hubs_upgrade_with_a_body_is_a_plain_request_or_refused(run_proxy: RunProxy) -> None:
    """The hub frames the first request itself.

    The agent therefore can't separate the body from the bytes that follow the upgrade.
    """
    head = b"POST /exec HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: %b\r\nContent-Length: 2\r\n\r\n{}"
    async with run_proxy(digest) as (stack, _, _):
        stack.data(1)
        stack.data(1, head % b"tcp")
        await until(lambda: stack.tunnel.sent(1).endswith(hashlib.sha256(b"{}").hexdigest().encode()))
        assert stack.tunnel.sent(1).startswith(b"HTTP/1.1 200 ")
        stack.data(1, head % b"tcp, SPDY/3.1")
        await stack.ended(1)
        assert b"HTTP/1.1 400 " in stack.tunnel.sent(1)


async def test_a_large_first_packet_passes_whole(run_proxy: RunProxy) -> None:
    async with run_proxy(digest) as (stack, _, _):
        body = bytes(range(256)) * 40_000
        stack.data(1, memoryview(b"PUT /up HTTP/1.1\r\nHost: h\r\n\r\n" + body))
        expected = hashlib.sha256(body).hexdigest().encode()
        await until(lambda: stack.tunnel.sent(1).endswith(expected))
        assert stack.manager.budget.held_bytes == 0


async def test_an_answer_before_the_upload_has_ended_reaches_the_hub(run_proxy: RunProxy) -> None:
    async def refuse(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000))
        await writer.drain()
        await asyncio.sleep(0.05)
        raise ConnectionError

    async with run_proxy(refuse) as (stack, _, words):
        stack.data(1, b"PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(300):
            stack.data(1, bytes(32 * 1024))
        await stack.ended(1)
        assert stack.tunnel.sent(1).startswith(b"HTTP/1.1 413 ")
        assert stack.tunnel.sent(1).endswith(bytes(100_000))
        assert words[0][1:] == (Kind.COMPLETE, Stage.IDLE)


@pytest.mark.parametrize(
    ("head", "stage", "told"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Stage.CHUNKED, [ERROR]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhello", Stage.SIZED, []),
    ],
)
async def test_a_target_that_breaks_off_is_told_by_the_table(
    run_proxy: RunProxy, head: bytes, stage: Stage, told: list[int]
) -> None:
    async def rude(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        await writer.drain()
        raise ConnectionError

    async with run_proxy(rude) as (stack, _, words):
        stack.data(1, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await stack.ended(1)
        assert b"hello" in stack.tunnel.sent(1)
        assert words == [(1, Kind.FAILED, stage)]
        assert stack.tunnel.codes(1) == told


@pytest.mark.parametrize("how", ["error", "session"])
async def test_a_client_that_goes_ends_its_request_at_the_target(run_proxy: RunProxy, how: str) -> None:
    gone = asyncio.Event()

    async def stream(_: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert await reader.read() == b""
        gone.set()
        raise ConnectionError

    async with run_proxy(stream) as (stack, _, words):
        stack.data(1, b"GET /watch HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: b"hello" in stack.tunnel.sent(1))
        if how == "error":
            stack.error(1)
        else:
            stack.manager.tunnel_lost(None)
        async with asyncio.timeout(5):
            await gone.wait()
        assert words == [(1, Kind.CLIENT_GONE, Stage.CHUNKED)]
        assert stack.tunnel.codes(1) == []


async def test_a_drain_ends_idle_connections_and_lets_the_answer_in_flight_finish(run_proxy: RunProxy) -> None:
    go_on = asyncio.Event()

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/slow" in head:
            await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with run_proxy(answer) as (stack, proxy, words):
        stack.data(1, b"GET /quick HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: stack.tunnel.sent(1).endswith(b"ok"))
        stack.data(2, b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        await until(lambda: proxy.requests_in_flight == 1)
        stack.manager.begin_drain()
        proxy.start_draining()
        drain = asyncio.create_task(stack.manager.drain(30.0))
        await stack.ended(1)
        assert not drain.done()
        assert ERROR in stack.tunnel.codes(1)  # idle: the agent asks the hub to close its client
        assert ERROR not in stack.tunnel.codes(2)
        stack.tunnel.on_send = lambda conn_id, code: asyncio.get_running_loop().call_soon(stack.error, conn_id)
        go_on.set()
        await drain
        assert stack.tunnel.sent(2).endswith(b"ok")
        assert b"connection: close" in stack.tunnel.sent(2).lower()
        assert words == [(1, Kind.COMPLETE, Stage.IDLE), (2, Kind.COMPLETE, Stage.IDLE)]
        assert ERROR not in stack.tunnel.codes(2)


async def test_a_slow_target_fails_its_own_upload_with_a_clear_error(run_proxy: RunProxy) -> None:
    hold = asyncio.Event()

    async def stuck(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if b"/stuck" in head:
            await hold.wait()
        await digest(head, reader, writer)

    async with run_proxy(stuck, inbound_bytes=1024 * 1024) as (stack, _, words):
        stack.data(1, b"PUT /stuck HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
        stack.data(2, b"PUT /up HTTP/1.1\r\nHost: h\r\nContent-Length: 3200000\r\n\r\n")
        for _ in range(100):
            stack.data(2, bytes(32_000))
            await until(lambda: stack.manager._open[2].inbound.held_bytes < 500_000)
        while not stack.manager.counters.failed_inbound:
            stack.data(1, bytes(32 * 1024))
            await asyncio.sleep(0)
        await stack.ended(1)
        assert stack.tunnel.codes(1) == [ERROR]
        assert words[0] == (1, Kind.CLIENT_GONE, Stage.HEAD)
        expected = hashlib.sha256(bytes(3_200_000)).hexdigest().encode()
        await until(lambda: stack.tunnel.sent(2).endswith(expected))
        hold.set()
