"""A scripted HTTP/2 target on the h2 library, which may break every rule."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from .conftest import TIMEOUT_S, eventually

Fields = list[tuple[bytes, bytes]]
OK: Fields = [(b":status", b"200")]


class Asked:
    """One request as it arrived. ended: whole. reset: the code of a RST_STREAM, None without one."""

    def __init__(self, session: Session, stream_id: int, fields: Fields) -> None:
        self.session, self.stream_id, self.fields = session, stream_id, fields
        self.body = b""
        self.ended = False
        self.reset: int | None = None
        self.changed = asyncio.Event()

    def __getitem__(self, name: bytes) -> bytes:
        values = [value for each, value in self.fields if each == name]
        assert len(values) == 1, (name, self.fields)
        return values[0]

    def __contains__(self, name: bytes) -> bool:
        return any(each == name for each, _ in self.fields)

    async def whole(self) -> bytes:
        """The whole body."""
        await asyncio.wait_for(self._until(lambda: self.ended), TIMEOUT_S)
        return self.body

    async def was_reset(self) -> int:
        """The code of the RST_STREAM that comes."""
        await asyncio.wait_for(self._until(lambda: self.reset is not None), TIMEOUT_S)
        assert self.reset is not None
        return self.reset

    async def has(self, size: int) -> bytes:
        """At least so many bytes of the body."""
        await asyncio.wait_for(self._until(lambda: len(self.body) >= size), TIMEOUT_S)
        return self.body

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def head(self, fields: Fields = OK, end: bool = False) -> None:
        """Send a head, or trailers."""
        self.session.h2.send_headers(self.stream_id, fields, end_stream=end)
        self.session.flush()

    def data(self, data: bytes, end: bool = False) -> None:
        """Send DATA within the windows."""
        self.session.h2.send_data(self.stream_id, data, end_stream=end)
        self.session.flush()

    def answer(self, body: bytes = b"ok", fields: Fields | None = None) -> None:
        """Send a whole response."""
        self.head([*OK, (b"content-length", b"%d" % len(body)), *(fields or [])], end=not body)
        if body:
            self.data(body, end=True)

    def kill(self, code: int) -> None:
        """Reset the stream."""
        self.session.h2.reset_stream(self.stream_id, code)
        self.session.flush()


class Session(asyncio.Protocol):
    """One connection of the proxy."""

    def __init__(self, origin: Http2Origin) -> None:
        self.origin = origin
        # Nothing that goes out is checked, since a hostile target keeps no rule.
        config = h2.config.H2Configuration(
            client_side=False, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=origin.settings)
        self.asked: dict[int, Asked] = {}
        self.transport: Any = None
        self.lost = asyncio.Event()
        self.goaway: Any = None
        self.pings = 0
        self.is_deaf = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.origin.sessions.append(self)
        self.origin.open += 1
        if self.origin.begins is not None:
            self.origin.begins(self)
            return
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        """Send bytes past h2."""
        self.flush()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.is_deaf:
            return
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self.origin.faults.append(error)
            self.transport.abort()
            return
        for event in events:
            self._handle(event)
        self.flush()

    def _handle(self, event: h2.events.Event) -> None:
        asked = self.asked.get(getattr(event, "stream_id", None) or 0)
        match event:
            case h2.events.RequestReceived():
                asked = self.asked[event.stream_id] = Asked(self, event.stream_id, list(event.headers))
                self.origin.asked.append(asked)
                asked.ended = event.stream_ended is not None
                self.origin.start(asked)
            case h2.events.DataReceived():
                assert asked is not None
                asked.body += event.data
                asked.ended = event.stream_ended is not None
                if self.origin.consumes and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                asked.changed.set()
            case h2.events.StreamEnded():
                assert asked is not None
                asked.ended = True
                asked.changed.set()
            case h2.events.StreamReset():
                assert asked is not None
                asked.reset = event.error_code
                asked.changed.set()
            case h2.events.ConnectionTerminated():
                self.goaway = event
            case h2.events.PingReceived():
                self.pings += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.origin.open -= 1
        self.lost.set()


class Http2Origin:
    """The target. asked: all requests. sessions: all connections. consumes: it returns credit."""

    def __init__(self, handler: Callable[[Asked], Awaitable[None]], begins: Callable[[Session], None] | None) -> None:
        self.handler, self.begins = handler, begins
        self.asked: list[Asked] = []
        self.sessions: list[Session] = []
        self.faults: list[Exception] = []
        self.errors: list[BaseException | None] = []
        self.open = 0
        self.consumes = True
        self.settings: dict[Any, int] = {}
        self.url = ""
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, asked: Asked) -> None:
        async def run() -> None:
            await self.handler(asked)

        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.errors.append(task.exception())


async def answer(asked: Asked) -> None:
    """Respond with the request's body, or `ok`."""
    asked.answer(await asked.whole() or b"ok")


@contextlib.asynccontextmanager
async def http2_origin(
    handler: Callable[[Asked], Awaitable[None]] = answer,
    *,
    begins: Callable[[Session], None] | None = None,
    settings: dict[Any, int] | None = None,
    context: ssl.SSLContext | None = None,
    scheme: str = "",
) -> AsyncIterator[Http2Origin]:
    """A target that runs `handler` for each request. begins: takes the place of its preface."""
    here = Http2Origin(handler, begins)
    here.settings = settings or {}
    server = await asyncio.get_running_loop().create_server(
        lambda: Session(here), "127.0.0.1", 0, ssl=context, backlog=1024
    )
    here.url = f"{scheme or ('h2' if context else 'h2c')}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield here
    finally:
        server.close()
        for task in list(here.tasks):
            task.cancel()
        for session in here.sessions:
            session.transport.abort()
        await eventually(lambda: not here.tasks and not here.open)
        await server.wait_closed()
        await asyncio.sleep(0)
    assert not here.errors
