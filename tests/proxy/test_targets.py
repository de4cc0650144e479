"""Connections to targets: TLS, names, pools, and targets that are no address."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from agent.errors import HubError, TargetError
from agent.messages import Target
from agent.outcome import Kind, Stage
from fastpipe import create_pipe

from ..own_responses import reason_of

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


@pytest.fixture
def carrier() -> str:
    return "pipe"  # what the client's side runs on makes no difference here


def server_context(authority, name="127.0.0.1", **arguments) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name, **arguments).configure_cert(context)
    return context


@pytest.fixture
def trusting(authority) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_targets_are_reached_and_reused(stack, origin, authority, trusting):
    async with (
        origin(ssl=server_context(authority)) as o,
        stack(o.url, ssl_context=lambda target: trusting) as h,
    ):
        client = await h.open()
        for _ in range(3):
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000)
            assert (await client.answer("POST")).body == b"x" * 300_000
        assert o.connections == 1


async def test_a_tls_body_that_ends_with_its_connection(stack, origin, authority, trusting, answering):
    async with (
        origin(answering(b"HTTP/1.0 200 OK\r\n\r\nsome", then_close=True), ssl=server_context(authority)) as o,
        stack(o.url, ssl_context=lambda target: trusting) as h,
    ):
        client = await h.open()
        assert (await client.get()).body == b"some"


@contextlib.contextmanager
def threaded_tls(context: ssl.SSLContext) -> Iterator[str]:
    """A TLS server outside the loop. Yields its URL.

    The loop's exception handler would get each failed handshake of a server inside the loop.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), accepted, context.wrap_socket(accepted, server_side=True) as tls:
                tls.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize("fault", ["name", "authority", "expired"])
async def test_a_certificate_that_is_not_accepted_is_a_502(stack, authority, trusting, fault):
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=2)
    offered = server_context(
        authority,
        "elsewhere.test" if fault == "name" else "127.0.0.1",
        **({"not_after": long_ago} if fault == "expired" else {}),
    )
    trusted = ssl.create_default_context() if fault == "authority" else trusting
    with threaded_tls(offered) as url:
        async with stack(url, ssl_context=lambda target: trusted) as h:
            client = await h.open()
            for _ in range(2):
                answer = await client.get()
                assert (answer.status, reason_of(answer.body)) == (502, b"the target's certificate was not accepted\n")


async def test_a_target_that_speaks_no_tls_is_a_502(stack, origin, answering, trusting):
    async def plain(reader, writer):
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with origin(plain) as o, stack("https" + o.url[4:], ssl_context=lambda target: trusting) as h:
        client = await h.open()
        answer = await client.get()
        assert (answer.status, reason_of(answer.body)) == (502, b"the TLS handshake with the target failed\n")


async def test_a_tls_handshake_that_stalls_is_a_504(stack, origin, trusting):
    async def stalling(reader, writer):
        await reader.read()

    async with (
        origin(stalling) as o,
        stack("https" + o.url[4:], ssl_context=lambda target: trusting, limits={"tls_timeout_s": 0.1}) as h,
    ):
        client = await h.open()
        answer = await client.get()
        assert (answer.status, reason_of(answer.body)) == (504, b"the target took too long (tls)\n")


async def test_a_client_that_goes_during_the_dial_leaves_nothing(stack, origin, trusting, eventually):
    async def stalling(reader, writer):
        await reader.read()

    async with origin(stalling) as o, stack("https" + o.url[4:], ssl_context=lambda target: trusting) as h:
        client = await h.open()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: o.connections == 1)
        client.writer.transport.abort()
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.HEAD)
        await eventually(lambda: o.open == 0)


async def test_new_trust_roots_use_no_old_connection(stack, origin, authority, trusting):
    generation = 0
    async with (
        origin(ssl=server_context(authority)) as o,
        stack(o.url, ssl_context=lambda target: trusting, generation=lambda: generation) as h,
    ):
        client = await h.open()
        await client.get()
        await client.get()
        assert o.connections == 1
        generation = 1
        await client.get()
        assert o.connections == 2


async def test_a_clients_own_credentials_never_share_a_connection_with_the_agents(stack, origin, authority, trusting):
    """The API server believes a client certificate before a token (wire.md, identity rule 5)."""
    asked = []

    def context(target):
        asked.append(target.client_identity)
        return trusting

    def process(head, target):
        head.client_identity = "agent" if head.target == b"/agent" else ""
        return head

    async with (
        origin(ssl=server_context(authority)) as o,
        stack(o.url, ssl_context=context, process=process) as h,
    ):
        client = await h.open()
        for target in ("/agent", "/own", "/own", "/agent"):
            assert (await client.get(target)).status == 200
        assert o.connections == 2
        assert asked == ["agent", ""]


async def test_pools_are_kept_apart(stack, origin):
    async with origin() as first, origin() as second:
        urls = {b"/1": first.url, b"/2": second.url}
        async with stack(lambda head: Target(urls[head.target])) as h:
            client = await h.open()
            for _ in range(3):
                await client.get("/1")
                await client.get("/2")
            assert (first.connections, second.connections) == (1, 1)
            assert len(first.requests) == len(second.requests) == 3


async def test_no_more_than_so_many_idle_connections_are_kept(stack, origin, eventually):
    release = asyncio.Event()

    async def target(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(OK)
        await reader.read()

    async with origin(target) as o, stack(o.url, limits={"idle_upstreams_per_target": 2}) as h:
        clients = [await h.open() for _ in range(5)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(lambda: o.connections == 5)
        release.set()
        for client in clients:
            assert (await client.answer()).status == 200
        await eventually(lambda: h.upstreams.open_connections == 2)


@pytest.mark.loops("asyncio")  # a compiled loop's methods can't be replaced
async def test_names_are_looked_up_for_each_new_connection_and_addresses_tried_in_turn(stack, origin, monkeypatch):
    async with origin() as o:
        port = int(o.url.rsplit(":", 1)[1])
        looked_up = []
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            wrong = deaf.getsockname()[1]

            async def getaddrinfo(host, wanted, **_):
                looked_up.append((host, wanted))
                stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
                return [(*stream, ("127.0.0.1", number)) for number in (wrong, wrong, port)]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
            async with stack("http://name.test", limits={"upstream_idle_s": 0.02}) as h:
                client = await h.open()
                for _ in range(2):
                    assert (await client.get()).body == b"OK"
                    while h.upstreams.open_connections:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                assert looked_up == [("name.test", 80)] * 2
                assert dict(o.requests[0][0].headers)[b"host"] == b"name.test"


async def test_a_target_may_be_opened_by_a_callable(stack, origin):
    """A hub reaches its agents so: the transport is a pipe's end, or whatever `connect` returns."""
    opened = []

    class Far(asyncio.Protocol):
        accepts_views = True

        def connection_made(self, transport):
            self.transport = transport
            self.got = b""

        def data_received(self, data):
            self.got += bytes(data)
            while b"\r\n\r\n" in self.got:
                _, _, self.got = self.got.partition(b"\r\n\r\n")
                self.transport.write(memoryview(OK))

    async def connect(protocol):
        near, far = create_pipe()
        far.set_protocol(Far())
        near.set_protocol(protocol)
        opened.append(near)
        return near

    async with stack(lambda head: Target("http://c1" + head.target.decode(), connect=connect)) as h:
        client = await h.open()
        for _ in range(3):
            assert (await client.get()).body == b"OK"
        assert len(opened) == 1, "its connections are pooled like any other"


@pytest.mark.parametrize(
    ("error", "status"),
    [(OSError("x"), 502), (HubError("none"), 502), (TargetError(503, "no agent for it"), 503), (TimeoutError(), 504)],
)
async def test_errors_of_such_a_callable_become_answers(stack, error, status):
    async def connect(protocol):
        raise error

    async with stack(lambda head: Target("http://c1", connect=connect)) as h:
        client = await h.open()
        assert (await client.get()).status == status
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
        assert (await client.answer("POST")).status == status


async def test_a_body_that_comes_before_the_connection_waits_in_bounds(stack, origin):
    gate = asyncio.Event()

    async with origin() as o:
        port = int(o.url.rsplit(":", 1)[1])

        async def connect(protocol):
            await gate.wait()
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port)
            return transport

        body = b"y" * 3_000_000
        async with stack(lambda head: Target("http://c1", connect=connect), limits={"buffer_bytes": 65536}) as h:
            client = await h.open()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            await asyncio.sleep(0.02)
            assert client.writer.transport.get_write_buffer_size() > 1_000_000, "the rest waits at the client"
            gate.set()
            assert (await client.answer("POST")).body == body


async def test_a_body_that_comes_byte_by_byte_before_the_connection_costs_by_the_byte(stack, origin, eventually):
    """The client chooses the pieces, and a connection to the target may be slow.

    If each new piece counts all pieces again, 20,000 pieces take 10 s of CPU time.
    """
    took_s: dict[int, float] = {}

    async with origin() as o:
        port = int(o.url.rsplit(":", 1)[1])

        async def connect(protocol):
            await gate.wait()
            transport, _ = await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port)
            return transport

        async with stack(lambda head: Target("http://c1", connect=connect)) as h:
            for pieces in (2_500, 20_000):
                gate = asyncio.Event()
                client = await h.open()
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
                await eventually(lambda: h.proxy.requests_in_flight == 1)
                (connection,) = h.proxy._connections
                began_s = time.process_time()
                for _ in range(pieces):
                    connection.data_received(b"1\r\nx\r\n")
                took_s[pieces] = time.process_time() - began_s
                gate.set()
                client.send(b"0\r\n\r\n")
                assert (await client.answer("POST")).body == b"x" * pieces
                await eventually(lambda: not h.proxy.open_connections)
    assert took_s[20_000] < 32 * took_s[2_500], "8 times as much, and not 64 times"
