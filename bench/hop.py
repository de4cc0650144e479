"""The agent's hop: packets in → request parsed, routed, sent on → packets out, over memory and over a Unix socket.

    Clients ──packet_received──► ConnManager ──pipe or Unix socket──► Proxy ──► nginx, or a target in this process
       ▲                              │
       └── Outbound.write ◄───────────┘

`Packets` replaces the tunnel. So the measurement covers only the part that the carrier can change. The baseline
is a relay of a few lines, httptools on uvloop, without any checks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol

import httptools

from agent.cli.allocator import keep_freed_memory
from agent.connections import MemoryConnManager, UDSAcceptor, UDSConnManager
from agent.messages import RequestHead, Target
from agent.policy.identity import Anonymous
from agent.policy.router import StaticRouter
from agent.proxy import Proxy, ProxyLimits, Upstreams
from agent.tunnel.window import ReceiveWindow
from fastpipe import create_pipe
from fastpipe._limits import DEFAULT_LIMIT

from .measuring import Case, Metric, Samples, Scale, Turn, latency, no_collection
from .pipe import on_loop
from .processes import SMALL, Nginx, nginx
from .resources import GROWTH, growing

__all__ = [
    "CASES",
    "CPU",
    "KEPT",
    "MODES",
    "RATIOS",
    "SPEED",
    "Baseline",
    "BaselineConnection",
    "BaselineTarget",
    "Clients",
    "Packets",
    "Receiver",
    "Stack",
    "TinyTarget",
    "counted",
    "in_process",
    "requests",
    "stack",
    "turns",
]

DATA, ERROR, CLOSE = 0, 1, 3
KEPT = b"GET /c1/%s HTTP/1.1\r\nHost: hub.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
CLOSED = KEPT[:-2] + b"Connection: close\r\n\r\n"
VARIED = KEPT[:-2] % b"varied/1k?n=%08d" + b"X-Request-Id: %032x\r\n\r\n"
"""A head whose number makes its target and fields unique. nginx numbers each response too."""

CPU = Metric("CPU per request", "µs")
RATE = Metric("requests/s", "1/s", more_is_better=True)
SPEED = Metric("throughput", "MB/s", more_is_better=True)


class Receiver(Protocol):
    """A sink of packets: a ConnManager, or the baseline."""

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None: ...


class Packets:
    """A session whose other side is this process. Each packet goes to its connection's client."""

    features = frozenset({"close"})
    bytes_buffered = 0
    opens_no_more = False

    def __init__(self) -> None:
        self.clients: dict[int, Client] = {}

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        return Outbound(self.clients[conn_id])

    def send(self, conn_id: int, code: int, data: bytes = b"", error_message: str = "") -> None:
        if code == ERROR:
            raise AssertionError(f"connection {conn_id}: {error_message}")

    def receive_window(self, conn_id: int) -> ReceiveWindow | None:
        return None

    def exceeded(self, conn_id: int) -> None:
        raise AssertionError(f"connection {conn_id} was sent more than its credit")

    def is_closing(self) -> bool:
        return False


class Outbound:
    """One connection's way back, taken at once."""

    queued_bytes = 0

    def __init__(self, client: Client) -> None:
        self.write = client.received
        self._client = client

    def heard(self) -> None:
        """Nothing is gathered here."""

    def finish(self, code: int | None = None, error_message: str = "") -> None:
        if code == ERROR:
            raise AssertionError(error_message)
        self._client.ended()

    def abort(self) -> None:
        self._client.ended()


class Clients:
    """Sends `requests` requests by `count` clients, each after its last response. Checks every response's length.

    requests: their heads, one after another. expected_bytes: of a body. close: a connection for each request. samples:
    µs of each, in no order.
    """

    def __init__(
        self,
        receiver: Receiver,
        packets: Packets,
        ids: Iterator[int],
        *,
        requests: Iterator[bytes],
        expected_bytes: int,
        close: bool,
    ) -> None:
        self.receiver, self.packets, self.ids = receiver, packets, ids
        self.requests, self.expected_bytes, self.close = requests, expected_bytes, close
        self.loop = asyncio.get_running_loop()
        self.left = self.running = 0
        self.samples: list[float] = []

    async def run(self, requests: int, count: int) -> None:
        self.samples.clear()
        self.left, self.running = requests, count
        self.done = self.loop.create_future()
        for client in [Client(self) for _ in range(count)]:
            client.start()
        await self.done


class Client:
    """One client: a request at a time."""

    __slots__ = ("_answer_bytes", "_conn_id", "_got", "_head", "_of", "_sent", "_whole")

    def __init__(self, clients: Clients) -> None:
        self._of = clients
        self._answer_bytes = 0  # length of a whole response, as the first one had
        self._conn_id = 0
        self._got = 0
        self._head = b""
        self._whole = False

    def start(self) -> None:
        of = self._of
        if not of.left:
            of.running -= 1
            if not of.running:
                of.done.set_result(None)
            return
        of.left -= 1
        if of.close or not self._conn_id:
            self._conn_id = next(of.ids)
            of.packets.clients[self._conn_id] = self
        self._got, self._whole = 0, False
        request = next(of.requests)
        self._sent = time.perf_counter_ns()
        of.receiver.packet_received(self._conn_id, DATA, request, "")

    def received(self, data: bytes | memoryview) -> None:
        self._got += len(data)
        if not self._answer_bytes:
            self._head += data
            end = self._head.find(b"\r\n\r\n") + 4
            if end == 3:
                return
            if not self._head.startswith(b"HTTP/1.1 200 "):
                raise AssertionError(self._head[:end])
            self._answer_bytes = end + self._of.expected_bytes
            self._head = b""
        if self._got < self._answer_bytes:
            return
        if self._got > self._answer_bytes:
            raise AssertionError(f"{self._got} bytes instead of {self._answer_bytes}")
        self._of.samples.append((time.perf_counter_ns() - self._sent) / 1000)
        self._whole = True
        if not self._of.close:
            self._of.loop.call_soon(self.start)

    def ended(self) -> None:
        if not self._whole:
            raise AssertionError("a connection closed before its response")
        self._of.packets.clients.pop(self._conn_id, None)
        if self._of.close:
            self._of.loop.call_soon(self.start)
        else:
            self._conn_id = 0


# -- what is measured


class Stack:
    """Manager and proxy, as the agent puts them together. manager: takes packets."""

    def __init__(self, packets: Packets) -> None:
        self.packets = packets
        self.manager: Any = None
        self.proxy: Any = None


@contextlib.asynccontextmanager
async def stack(
    mode: str,
    route: Callable[[RequestHead], Target | Awaitable[Target]],
    *,
    limits: ProxyLimits | None = None,
    buffer_bytes: int = DEFAULT_LIMIT,
    packets: Packets | None = None,
    upstreams: Upstreams | None = None,
) -> AsyncIterator[Stack]:
    """mode: "memory" or "UDS". buffer_bytes: of the pipe. packets, upstreams: instead of the usual ones."""
    made = Stack(packets or Packets())
    limits = limits or ProxyLimits()
    upstreams = upstreams or Upstreams(limits=limits)
    made.proxy = Proxy(
        route=route,
        process=Anonymous().process,
        upstreams=upstreams,
        limits=limits,
        cluster="c1",
        max_connections=20_000,
    )
    acceptor = None
    if mode == "UDS":
        acceptor = UDSAcceptor(lambda conn_id, outcome: made.proxy.connection(conn_id, outcome, "uds"))
        await acceptor.start()
        made.manager = UDSConnManager(made.packets, acceptor)
    else:
        made.manager = MemoryConnManager(
            made.packets,
            lambda conn_id, outcome: made.proxy.connection(conn_id, outcome, "memory"),
            buffer_bytes=buffer_bytes,
        )
    try:
        yield made
    finally:
        for client in made.packets.clients.values():
            client._whole = True  # what ends now was asked to
        made.manager.tunnel_lost(None)
        made.proxy.close()
        await upstreams.close()
        if acceptor is not None:
            await acceptor.close()
        await asyncio.sleep(0.01)


class TinyTarget(asyncio.Protocol):
    """A target that sends 1 KiB after each read, since here one read is one request."""

    accepts_views = True
    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(SMALL), SMALL)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self.ANSWER)


async def in_process(protocol: asyncio.Protocol) -> asyncio.Transport:
    """A Target's `connect`: the far end of a pipe is a TinyTarget."""
    near, far = create_pipe()
    far.set_protocol(TinyTarget())
    near.set_protocol(protocol)
    await asyncio.sleep(0)
    return near


# -- the baseline


class Baseline:
    """A relay without checks: parses requests with httptools, keeps a stack of connections to one target."""

    def __init__(self, packets: Packets, port: int) -> None:
        self.packets, self.port = packets, port
        self.idle: list[BaselineTarget] = []
        self.every: set[BaselineTarget] = set()
        self.open: dict[int, BaselineConnection] = {}
        self.dials: set[asyncio.Task[None]] = set()

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        connection = self.open.get(conn_id)
        if connection is None:
            connection = self.open[conn_id] = BaselineConnection(self, conn_id)
        connection.parser.feed_data(data)

    async def dial(self, connection: BaselineConnection, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        _, target = await loop.create_connection(lambda: BaselineTarget(self), "127.0.0.1", self.port)
        self.every.add(target)
        target.send(connection, request)

    def close(self) -> None:
        for target in self.every:
            target.transport.abort()


class BaselineConnection:
    def __init__(self, relay: Baseline, conn_id: int) -> None:
        self.relay, self.conn_id = relay, conn_id
        self.outbound = relay.packets.outbound(conn_id, lambda: None, lambda: None)
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.fields: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() not in (b"host", b"connection"):
            self.fields += (name, b": ", value, b"\r\n")

    def on_message_complete(self) -> None:
        relay = self.relay
        self.keeps = self.parser.should_keep_alive()
        fields = b"".join(self.fields)
        request = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n" % (self.url[3:], relay.port, fields)
        if relay.idle:
            relay.idle.pop().send(self, request)
        else:
            task = asyncio.ensure_future(relay.dial(self, request))
            relay.dials.add(task)
            task.add_done_callback(relay.dials.discard)


class BaselineTarget(asyncio.Protocol):
    connection: Any  # the connection that gets its response, None while idle

    def __init__(self, relay: Baseline) -> None:
        self.relay = relay

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, connection: BaselineConnection, request: bytes) -> None:
        self.connection = connection
        self.parser = httptools.HttpResponseParser(self)
        self.fields: list[bytes] = []
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields += (name, b": ", value, b"\r\n")

    def on_headers_complete(self) -> None:
        self.head = b"HTTP/1.1 %d OK\r\n%s\r\n" % (self.parser.get_status_code(), b"".join(self.fields))

    def on_body(self, body: bytes) -> None:
        if self.head:
            body, self.head = self.head + body, b""
        self.connection.outbound.write(body)

    def on_message_complete(self) -> None:
        connection, self.connection = self.connection, None
        self.relay.idle.append(self)
        if not connection.keeps:
            del self.relay.open[connection.conn_id]
            connection.outbound.finish(CLOSE)


@contextlib.asynccontextmanager
async def baseline(port: int) -> AsyncIterator[tuple[Baseline, Packets]]:
    packets = Packets()
    relay = Baseline(packets, port)
    try:
        yield relay, packets
    finally:
        relay.close()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def receiver(mode: str, server: Nginx | None, **options: Any) -> AsyncIterator[tuple[Receiver, Packets]]:
    """mode: memory, UDS, baseline. server: the target, None for one in this process. options: of the stack."""
    if mode == "baseline":
        assert server is not None
        async with baseline(server.port) as found:
            yield found
        return
    if server is None:
        target = Target("http://in-process/1k", connect=in_process)
        route: Callable[[RequestHead], Any] = lambda _: target  # noqa: E731 - or the router's, below
    else:
        route = StaticRouter([("/", server.url)], "c1").route
    async with stack(mode, route, **options) as made:
        yield made.manager, made.packets


# -- the cases


async def counted(takes: Receiver, packets: Packets, sent: Iterator[bytes], n: int, count: int, close: bool) -> Samples:
    """n requests for 1 KiB by `count` clients, after n // 10 uncounted ones: CPU of this process, rate, latency."""
    clients = Clients(takes, packets, itertools.count(1), requests=sent, expected_bytes=len(SMALL), close=close)
    await clients.run(max(count, n // 10), count)
    with no_collection():
        cpu, began = time.process_time(), time.perf_counter()
        await clients.run(n, count)
        cpu, took = time.process_time() - cpu, time.perf_counter() - began
    if len(clients.samples) != n:
        raise AssertionError(f"{len(clients.samples)} responses to {n} requests")
    return {CPU: [cpu / n * 1e6], RATE: [n / took], **latency("latency", clients.samples)}


async def requests(
    mode: str, server: Nginx | None, n: int, count: int, *, close: bool, varied: bool = False, **options: Any
) -> Samples:
    """As `counted`, through one receiver. varied: no two request heads or response heads are equal."""
    sent: Iterator[bytes] = itertools.repeat((CLOSED if close else KEPT) % b"1k")
    if varied:  # made beforehand: what it takes is not the hop's
        sent = iter([VARIED % (number, number * 0x9E3779B97F4A7C15) for number in range(n + max(count, n // 10))])
    async with receiver(mode, server, **options) as (takes, packets):
        return await counted(takes, packets, sent, n, count, close)


async def download(mode: str, server: Nginx, **options: Any) -> Samples:
    """1 GiB at once, with the allocator as the command line has it."""
    keep_freed_memory()
    async with receiver(mode, server, **options) as (takes, packets):
        sent = itertools.repeat(KEPT % b"1g")
        clients = Clients(takes, packets, itertools.count(1), requests=sent, expected_bytes=1 << 30, close=False)
        with growing() as growth:
            cpu, began = time.process_time(), time.perf_counter()
            await clients.run(1, 1)
            cpu, took = time.process_time() - cpu, time.perf_counter() - began
        return {SPEED: [(1 << 30) / took / 1e6], Metric("CPU", "ms"): [cpu * 1e3], GROWTH: growth}


MODES = ("memory", "UDS", "baseline")
RATIOS = (("memory", "UDS"), ("memory", "baseline"))


def turns(modes: Sequence[str], work: Callable[[str], Coroutine[Any, Any, Samples]]) -> dict[str, Turn]:
    """Each mode's turn: its work on a fresh uvloop."""

    def turn(mode: str) -> Samples:
        found: Samples = on_loop("uvloop", work(mode))
        return found

    return {mode: functools.partial(turn, mode) for mode in modes}


def nginx_case(
    name: str, title: str, n: int, count: int, *, close: bool = False, varied: bool = False, quick: bool = True
) -> Case:
    @contextlib.contextmanager
    def open_case(scale: Scale) -> Iterator[Mapping[str, Turn]]:
        with nginx() as server:
            amount = scale.of(n, n // 4)
            yield turns(MODES, lambda mode: requests(mode, server, amount, count, close=close, varied=varied))

    return Case(name, title, open_case, RATIOS, quick=quick)


@contextlib.contextmanager
def open_in_process(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    amount = scale.of(10_000, 3_000)
    yield turns(("memory", "UDS"), lambda mode: requests(mode, None, amount, 1, close=False))


@contextlib.contextmanager
def open_download(scale: Scale) -> Iterator[Mapping[str, Turn]]:
    with nginx() as server:
        yield turns(MODES, lambda mode: download(mode, server))


CASES: Sequence[Case] = (
    nginx_case("hop kept-alive", "The agent's hop, 16 kept-alive clients, 1 KiB from nginx", 12_000, 16),
    nginx_case(
        "hop kept-alive, heads that differ",
        "The same, no two request heads and no two response heads alike",
        12_000,
        16,
        varied=True,
        quick=False,
    ),
    nginx_case("hop connection per request", "16 clients, a connection for each request", 6_000, 16, close=True),
    Case(
        "hop in-process target",
        "One client at a time, the target on a pipe in the same process",
        open_in_process,
        [("memory", "UDS")],
        quick=True,
        rounds=(7, 5),
    ),
    Case("hop 1 GiB download", "1 GiB from nginx through the hop", open_download, RATIOS, rounds=(3, 1)),
)
