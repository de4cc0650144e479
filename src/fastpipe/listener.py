"""A server in memory: one side serves or accepts, the other connects, as with asyncio's servers on sockets.

    connect() ──► [ backlog: ends not taken yet ] ──► the server's protocols, or accept()
                  full: connect waits                 once closed: ConnectionRefusedError

A Listener listens from the start and needs no loop for that. Its first coroutine binds it to the running loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar
from weakref import WeakSet

import fastpipe
from fastpipe._errors import PipeClosedError
from fastpipe._limits import DEFAULT_LIMIT, DEFAULT_MAX_CHUNK, checked_limit, checked_max_chunk
from fastpipe._socket import PipeSocket
from fastpipe.streams import DEFAULT_LIMIT as DEFAULT_LINE_LIMIT
from fastpipe.streams import PipeReader, PipeWriter, join_streams

DEFAULT_BACKLOG: Final = 100  # loop.create_server's

OTHER_LOOP = "this listener belongs to another event loop"
LISTENER_CLOSED = "this listener is closed"
HAS_A_SERVER = "this listener has a server, which takes the connections"

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)
ClientConnected = Callable[[PipeReader, PipeWriter], Awaitable[None] | None]


class Greeting(asyncio.Protocol):
    """A placeholder until connection_made. Then the protocol takes over, and `connect` returns."""

    def __init__(self, protocol: Any, made: asyncio.Future[None]) -> None:
        self._protocol = protocol
        self._made = made

    def connection_made(self, transport: Any) -> None:
        transport.set_protocol(self._protocol)
        if not self._made.done():
            self._made.set_result(None)
        self._protocol.connection_made(transport)


class Listener(asyncio.AbstractServer):
    """An address in memory. `create_server` or `start_server` gives it a server, or `accept` takes connections.

    Args:
        address: the `sockname` of its ends and the `peername` of the others. It is text, like a Unix socket's, or
            (host, port).
        backlog: connections that may wait for the server, at least 1. Past that, `connect` waits for a place.
        limit, inline, max_chunk: of every pipe made here, as in `create_pipe`.

    Raises:
        TypeError, ValueError: a value is out of range.

    A Listener is an asyncio.AbstractServer, and `create_server` returns it. `async with` closes it and waits for its
    connections. Use it in one thread and one loop.
    """

    def __init__(
        self,
        address: Any = "",
        *,
        backlog: int = DEFAULT_BACKLOG,
        limit: int = DEFAULT_LIMIT,
        inline: bool = False,
        max_chunk: int | None = DEFAULT_MAX_CHUNK,
    ) -> None:
        if backlog < 1:
            raise ValueError(f"backlog must be at least 1, not {backlog}")
        checked_limit(limit), checked_max_chunk(max_chunk)
        self.address = address
        self.backlog = backlog
        self._limit, self._inline, self._max_chunk = limit, inline, max_chunk
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._waiting: deque[fastpipe.PipeEnd] = deque()  # connected, taken by nobody yet
        self._acceptors: deque[asyncio.Future[None]] = deque()
        self._connectors: deque[asyncio.Future[None]] = deque()
        self._closers: list[asyncio.Future[None]] = []  # who waits for the last connection's end
        self._take: Callable[[fastpipe.PipeEnd], None] | None = None  # the server's
        self._context: contextvars.Context | None = None  # the server's: no client's variables get into it
        self._serving = self._handing_over = False
        self._connections: WeakSet[fastpipe.PipeEnd] = WeakSet()  # the server's ends that are not lost
        self._forever: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- connecting

    async def connect(
        self, protocol_factory: Callable[[], ProtocolT], *, local_address: Any = ""
    ) -> tuple[fastpipe.PipeEnd, ProtocolT]:
        """Connect, as loop.create_connection does. Returns (transport, protocol) after connection_made.

        local_address: this end's `sockname`, and the `peername` of the server's end. Waits while the backlog is full.
        Raises ConnectionRefusedError once the listener is closed. If cancelled, it leaves no connection.
        """
        end = await self._dial(local_address)
        try:
            protocol = protocol_factory()
            made = self._bound().create_future()
            end.set_protocol(Greeting(protocol, made))
            await made
        except BaseException:
            end.abort()
            raise
        return end, protocol

    async def open_connection(
        self, *, limit: int = DEFAULT_LINE_LIMIT, local_address: Any = ""
    ) -> tuple[PipeReader, PipeWriter]:
        """Connect, as asyncio.open_connection does. Returns (reader, writer). limit: the longest line in bytes.

        Everything else is as in `connect`.
        """
        reader = PipeReader(limit, self._bound(), not self._inline)
        end = await self._dial(local_address)
        return join_streams(end, reader)

    async def _dial(self, local_address: Any) -> fastpipe.PipeEnd:
        """The client's end of a new pipe, whose other end is with the server or in the backlog."""
        loop = self._bound()
        while not self._closed and len(self._waiting) >= self.backlog:
            await self._wait_in_line(self._connectors, lambda: len(self._waiting) < self.backlog)
        if self._closed:
            raise ConnectionRefusedError(errno.ECONNREFUSED, LISTENER_CLOSED)
        client, server = fastpipe.create_pipe(
            limit=self._limit, inline=self._inline, max_chunk=self._max_chunk, loop=loop
        )
        for name, theirs, value in (("sockname", "peername", self.address), ("peername", "sockname", local_address)):
            if value != "":  # the default of an end
                server.set_extra_info(name, value)
                client.set_extra_info(theirs, value)
        self._waiting.append(server)
        if self._serving:
            self._hand_over_soon()
        else:
            _wake_one(self._acceptors)
        return client

    # ---- accepting by hand

    async def accept(self) -> fastpipe.PipeEnd:
        """Return the next connection's end, without a protocol: read it by hand, set one, or `open_streams(end)`.

        The caller owns the end, so `wait_closed` does not wait for it. Raises PipeClosedError once the listener is
        closed, RuntimeError if it has a server. If cancelled, it takes nothing.
        """
        self._bound()
        while True:
            if self._take is not None:
                raise RuntimeError(HAS_A_SERVER)
            if self._closed:
                raise PipeClosedError(LISTENER_CLOSED)
            if self._waiting:
                break
            await self._wait_in_line(self._acceptors, lambda: bool(self._waiting))
        end = self._waiting.popleft()
        _wake_one(self._connectors)
        return end

    async def __aiter__(self) -> AsyncIterator[fastpipe.PipeEnd]:
        """Connections, by `accept`, until the listener is closed."""
        while True:
            try:
                end = await self.accept()
            except PipeClosedError:
                return
            yield end

    async def _wait_in_line(self, line: deque[asyncio.Future[None]], free: Callable[[], bool]) -> None:
        """Wait in a line to be woken. A waiter that is cancelled after that wakes the next one."""
        waiter = self._bound().create_future()
        line.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in line:
                line.remove(waiter)
            elif free():
                _wake_one(line)
            raise

    # ---- serving

    async def create_server(
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], *, start_serving: bool = True
    ) -> Listener:
        """As loop.create_server: every connection gets a protocol of the factory's. Gives this listener, the server.

        A factory that raises is reported to the loop's exception handler, and its client sees PipeBrokenError. Raises
        RuntimeError where there is a server already or the listener is closed.
        """

        def take(end: fastpipe.PipeEnd) -> None:
            end.set_protocol(protocol_factory())

        return self._serve(take, start_serving)

    async def start_server(
        self,
        client_connected_cb: ClientConnected,
        *,
        limit: int = DEFAULT_LINE_LIMIT,
        start_serving: bool = True,
    ) -> Listener:
        """Call `client_connected_cb(reader, writer)` for each connection, as asyncio.start_server does.

        A coroutine runs as a task. limit: the readers', in bytes. If the callback raises, the loop's exception handler
        gets the error and the connection is closed. Everything else is as in `create_server`.
        """

        def take(end: fastpipe.PipeEnd) -> None:
            loop = self._bound()
            reader = PipeReader(limit, loop, not self._inline)
            result = client_connected_cb(*join_streams(end, reader))
            if asyncio.iscoroutine(result):
                task = loop.create_task(result)
                self._tasks.add(task)  # the loop itself holds tasks weakly
                task.add_done_callback(self._tasks.discard)
                task.add_done_callback(lambda task: self._callback_done(task, end))

        return self._serve(take, start_serving)

    def _callback_done(self, task: asyncio.Task[None], end: fastpipe.PipeEnd) -> None:
        if task.cancelled():
            end.close()
        elif (error := task.exception()) is not None:
            self._report(error, "Unhandled exception in client_connected_cb", end)
            end.close()

    def _serve(self, take: Callable[[fastpipe.PipeEnd], None], start_serving: bool) -> Listener:
        self._bound()
        if self._closed:
            raise RuntimeError(LISTENER_CLOSED)
        if self._take is not None:
            raise RuntimeError(HAS_A_SERVER)
        self._take = take
        self._context = contextvars.copy_context()
        while self._acceptors:  # they hear that there is a server now
            _wake_one(self._acceptors)
        if start_serving:
            self._start()
        return self

    def _start(self) -> None:
        if self._take is None:
            raise RuntimeError("this listener has no server: create_server() or start_server() first")
        if self._closed:
            raise RuntimeError(LISTENER_CLOSED)
        self._serving = True
        if self._waiting:
            self._hand_over_soon()

    def _hand_over_soon(self) -> None:
        """From the loop: a server's code doesn't run on a client's stack."""
        if not self._handing_over:
            self._handing_over = True
            self._bound().call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._handing_over = False
        while self._waiting and not self._closed:
            end = self._waiting.popleft()
            _wake_one(self._connectors)
            self._connections.add(end)
            end._attach(self._detach)
            assert self._take is not None
            assert self._context is not None
            try:
                self._context.copy().run(self._take, end)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._report(error, "Error on an in-memory connection's way to its server", end)
                end.abort()

    def _report(self, error: BaseException, message: str, end: fastpipe.PipeEnd) -> None:
        self._bound().call_exception_handler({"message": message, "exception": error, "transport": end})

    def _detach(self, end: fastpipe.PipeEnd) -> None:
        """An end of the server's is lost."""
        self._connections.discard(end)
        self._settle()

    # ---- as asyncio.Server

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return its loop, or bind it to the running one. Raises RuntimeError without a running loop."""
        return self._bound()

    def is_serving(self) -> bool:
        """Whether a server takes the connections."""
        return self._serving

    async def start_serving(self) -> None:
        """For a server made with start_serving=False: from here on. RuntimeError without one and once closed."""
        self._bound()
        self._start()

    async def serve_forever(self) -> None:
        """Serve until the listener is closed. If cancelled, closes it and waits for its connections."""
        if self._forever is not None:
            raise RuntimeError("this listener is being awaited on serve_forever() already")
        self._start()
        self._forever = self._bound().create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    @property
    def sockets(self) -> tuple[PipeSocket, ...]:
        """One placeholder with the address, since libraries ask for it. Empty once closed."""
        return () if self._closed else (PipeSocket(self.address, ""),)

    @property
    def open_connections(self) -> int:
        """Connections of the server that are not lost."""
        return len(self._connections)

    def close(self) -> None:
        """Refuse connections from now on, and break those in the backlog (PipeBrokenError). Others live on."""
        if self._closed:
            return
        self._closed = True
        self._serving = False
        while self._waiting:
            self._waiting.popleft().abort()
        for line in (self._acceptors, self._connectors):
            while line:
                _wake_one(line)
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._settle()

    def close_clients(self) -> None:
        """Close the server's connections: what was written arrives."""
        for end in list(self._connections):
            end.close()

    def abort_clients(self) -> None:
        """Abort the server's connections: what was not taken is lost."""
        for end in list(self._connections):
            end.abort()

    async def wait_closed(self) -> None:
        """Wait until the listener is closed and all connections of its server are lost. Harmless to cancel."""
        if self._closed and not self._connections:
            return
        waiter = self._bound().create_future()
        self._closers.append(waiter)
        try:
            await waiter
        finally:
            self._closers.remove(waiter)

    def _settle(self) -> None:
        if self._closed and not self._connections:
            for waiter in self._closers:
                if not waiter.done():
                    waiter.set_result(None)

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *raised: object) -> None:
        """Close, and wait for the connections. If the body raised, abort them first."""
        self.close()
        if any(raised):
            self.abort_clients()
        await self.wait_closed()

    def _bound(self) -> asyncio.AbstractEventLoop:
        """The loop, which is the running one. Raises RuntimeError elsewhere."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(OTHER_LOOP)
        return loop

    def __repr__(self) -> str:
        state = "closed" if self._closed else "serving" if self._serving else "listening"
        return f"<fastpipe.Listener {self.address!r} {state}>"


def _wake_one(line: deque[asyncio.Future[None]]) -> None:
    """Let the first one go that still waits."""
    while line:
        waiter = line.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return
