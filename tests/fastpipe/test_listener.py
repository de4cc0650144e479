"""A server in memory behaves as asyncio's on sockets: serving, accepting, refusing, closing."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from fastpipe import Listener, PipeBrokenError, PipeClosedError, open_streams


class Greeter(asyncio.Protocol):
    """Sends hello."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(b"hello ")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)


async def shout(reader: Any, writer: Any) -> None:
    """Each line in capitals."""
    async for line in reader:
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def until(condition: Any) -> None:
    while not condition():  # noqa: ASYNC110 - the protocols are told, not the test
        await asyncio.sleep(0)


@pytest.fixture
def unhandled() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def catch(unhandled: list[dict[str, Any]]) -> Any:
    """To be called in the loop: what the exception handler hears goes into `unhandled`."""
    return lambda: asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))


# ---- serving


async def test_a_protocol_for_each_connection() -> None:
    protocols: list[Greeter] = []

    def factory() -> Greeter:
        protocols.append(Greeter())
        return protocols[-1]

    listener = Listener()
    async with await listener.create_server(factory) as server:
        assert server is listener
        assert server.is_serving()
        for n in range(1, 4):
            client, client_protocol = await listener.connect(Greeter)
            assert client.get_protocol() is client_protocol
            assert client_protocol.transport is client  # connection_made was called
            await until(lambda n=n: len(protocols) == n and protocols[-1].transport is not None)
            client.close()
    assert [protocol.lost for protocol in protocols] == [[None]] * 3
    assert repr(listener) == "<fastpipe.Listener '' closed>"


async def test_streams_on_both_sides() -> None:
    async with await Listener().start_server(shout) as server:
        assert isinstance(server, asyncio.AbstractServer)
        pairs = [await server.open_connection() for _ in range(5)]
        for n, (_, writer) in enumerate(pairs):
            writer.write(b"line %d\n" % n)
        for n, (reader, writer) in enumerate(pairs):
            assert await reader.readline() == b"LINE %d\n" % n
            writer.close()
            await writer.wait_closed()


async def test_a_plain_callback_serves_too() -> None:
    def callback(reader: Any, writer: Any) -> None:
        writer.write(b"bye")
        writer.close()

    async with await Listener().start_server(callback) as server:
        reader, writer = await server.open_connection()
        assert await reader.read() == b"bye"
        writer.close()


async def test_clients_wait_for_a_server_to_come() -> None:
    listener = Listener()
    reader, writer = await listener.open_connection()
    writer.write(b"early\n")
    await listener.start_server(shout, start_serving=False)
    await asyncio.sleep(0.01)
    assert not listener.is_serving()
    await listener.start_serving()
    assert await reader.readline() == b"EARLY\n"
    writer.close()
    listener.close()
    await listener.wait_closed()


async def test_the_server_runs_in_its_own_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    async def callback(reader: Any, writer: Any) -> None:
        seen.append(variable.get())
        writer.close()

    variable.set("server's")
    async with await Listener().start_server(callback) as server:
        variable.set("client's")
        reader, writer = await server.open_connection()
        assert await reader.read() == b""
        writer.close()
    assert seen == ["server's"]


async def test_a_factory_that_raises_is_reported(catch: Any, unhandled: list[Any]) -> None:
    catch()

    def factory() -> Any:
        raise LookupError("no protocol today")

    async with await Listener().create_server(factory) as server:
        reader, writer = await server.open_connection()
        with pytest.raises(PipeBrokenError):
            await reader.read()
        with pytest.raises(PipeBrokenError):
            await writer.wait_closed()
    assert [type(context["exception"]) for context in unhandled] == [LookupError]
    assert "way to its server" in unhandled[0]["message"]


async def test_a_callback_that_raises_closes_its_connection(catch: Any, unhandled: list[Any]) -> None:
    catch()

    async def callback(reader: Any, writer: Any) -> None:
        raise LookupError("no answer today")

    async with await Listener().start_server(callback) as server:
        reader, writer = await server.open_connection()
        assert await reader.read() == b""
        writer.close()
    assert [(type(c["exception"]), c["message"]) for c in unhandled] == [
        (LookupError, "Unhandled exception in client_connected_cb")
    ]


async def test_one_listener_has_one_server() -> None:
    listener = Listener()
    await listener.create_server(Greeter)
    with pytest.raises(RuntimeError, match="has a server"):
        await listener.start_server(shout)
    with pytest.raises(RuntimeError, match="has a server"):
        await listener.accept()
    listener.close()
    with pytest.raises(RuntimeError, match="closed"):
        await listener.start_serving()
    with pytest.raises(RuntimeError, match="no server"):
        await Listener().start_serving()


async def test_serve_forever_until_cancelled() -> None:
    listener = await Listener().start_server(shout, start_serving=False)
    serving = asyncio.ensure_future(listener.serve_forever())
    reader, writer = await listener.open_connection()
    writer.write(b"x\n")
    assert await reader.readline() == b"X\n"
    with pytest.raises(RuntimeError, match="already"):
        await listener.serve_forever()
    serving.cancel()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await listener.open_connection()
    assert not serving.done()  # it waits for its connection
    writer.close()
    with pytest.raises(asyncio.CancelledError):
        await serving


# ---- accepting


async def test_accept_gives_ends_to_read_by_hand() -> None:
    listener = Listener("memory", backlog=2)
    client, _ = await listener.connect(Greeter)
    end = await listener.accept()
    await until(lambda: len(end.peek()) > 0)
    assert end.read() == b"hello "
    assert end.get_extra_info("sockname") == "memory"
    end.write(b"x")
    end.close()
    client.close()
    listener.close()
    with pytest.raises(PipeClosedError):
        await listener.accept()


async def test_accept_waits_and_may_be_cancelled() -> None:
    listener = Listener()
    impatient, patient = (asyncio.ensure_future(listener.accept()) for _ in range(2))
    await asyncio.sleep(0)
    reader, writer = await listener.open_connection()
    impatient.cancel()  # it was woken, so the connection passes to the other one
    end = await patient
    assert impatient.cancelled() or await asyncio.wait([impatient])
    their_reader, their_writer = open_streams(end)
    writer.write(b"for you\n")
    assert await their_reader.readline() == b"for you\n"
    for each in (writer, their_writer):
        each.close()
        await each.wait_closed()
    listener.close()
    assert reader.at_eof()


async def test_connections_one_after_the_other() -> None:
    listener = Listener()

    async def serve() -> int:
        served = 0
        async for end in listener:
            end.write(b"%d" % served)
            end.close()
            served += 1
        return served

    serving = asyncio.ensure_future(serve())
    for n in range(3):
        reader, writer = await listener.open_connection()
        assert await reader.read() == b"%d" % n
        writer.close()
    listener.close()
    assert await serving == 3


async def test_a_full_backlog_makes_clients_wait_in_line() -> None:
    listener = Listener(backlog=2)
    dialing = [asyncio.ensure_future(listener.open_connection()) for _ in range(6)]
    await asyncio.sleep(0.01)
    assert [task.done() for task in dialing] == [True, True, False, False, False, False]
    dialing[2].cancel()
    first = await listener.accept()
    await asyncio.sleep(0.01)
    assert [task.done() for task in dialing] == [True, True, True, True, False, False]
    listener.close()
    for task in dialing[4:]:
        with pytest.raises(ConnectionRefusedError):
            await task
    for n in (1, 3):  # connected, but nobody took them
        reader, writer = dialing[n].result()
        with pytest.raises(PipeBrokenError):
            await reader.read()
        with pytest.raises(PipeBrokenError):
            await writer.wait_closed()
    first.close()
    dialing[0].result()[1].close()


# ---- closing


async def test_closed_it_refuses() -> None:
    listener = Listener()
    assert len(listener.sockets) == 1
    listener.close()
    listener.close()
    assert listener.sockets == ()
    with pytest.raises(ConnectionRefusedError, match="closed") as caught:
        await listener.connect(Greeter)
    assert caught.value.errno is not None
    with pytest.raises(ConnectionRefusedError):
        await listener.open_connection()
    with pytest.raises(RuntimeError):
        await listener.create_server(Greeter)
    await listener.wait_closed()


async def test_wait_closed_waits_for_the_last_connection() -> None:
    listener = await Listener().start_server(shout)
    reader, writer = await listener.open_connection()
    early = asyncio.ensure_future(listener.wait_closed())
    await asyncio.sleep(0.01)
    assert not early.done()  # it isn't closed yet
    listener.close()
    await asyncio.sleep(0.01)
    assert not early.done()
    writer.write(b"still served\n")
    assert await reader.readline() == b"STILL SERVED\n"
    writer.close()
    await early
    await listener.wait_closed()


@pytest.mark.parametrize("name", ["close_clients", "abort_clients"])
async def test_clients_are_closed_or_aborted(name: str) -> None:
    listener = await Listener().create_server(Greeter)
    client, protocol = await listener.connect(Greeter)
    await until(lambda: protocol.transport)
    await asyncio.sleep(0.01)
    listener.close()
    getattr(listener, name)()
    await listener.wait_closed()
    await until(lambda: protocol.lost)
    expected = type(None) if name == "close_clients" else PipeBrokenError
    assert isinstance(protocol.lost[0], expected)
    client.close()


async def test_an_error_in_the_body_aborts_what_is_open() -> None:
    server = await Listener().start_server(shout)
    reader, writer = await server.open_connection()
    writer.write(b"x\n")
    await reader.readline()
    with pytest.raises(LookupError):
        async with server:
            raise LookupError
    with pytest.raises(PipeBrokenError):
        await writer.wait_closed()


async def test_a_cancelled_connect_leaves_no_connection() -> None:
    listener = await Listener().create_server(Greeter)
    task = asyncio.ensure_future(listener.connect(Greeter))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    listener.close()
    await listener.wait_closed()


# ---- addresses, loops, arguments


async def test_each_end_says_where_it_is() -> None:
    seen: list[Any] = []

    def callback(_: Any, writer: Any) -> None:
        seen.extend(writer.get_extra_info(name) for name in ("sockname", "peername"))
        seen.append(writer.get_extra_info("socket").getpeername())
        writer.close()

    address, local = ("server.test", 80), ("client.test", 1234)
    async with await Listener(address).start_server(callback) as server:
        reader, writer = await server.open_connection(local_address=local)
        assert await reader.read() == b""
        assert writer.get_extra_info("peername") == address
        assert writer.get_extra_info("sockname") == local
        writer.close()
        assert server.sockets[0].getsockname() == address
    assert seen == [address, local, local]


def test_a_listener_belongs_to_one_loop() -> None:
    listener = Listener()  # needs none
    asyncio.run(listener.create_server(Greeter))
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(listener.open_connection())
    with pytest.raises(RuntimeError, match="no running event loop"):
        listener.get_loop()


def test_values_out_of_range_are_refused() -> None:
    for wrong in ({"backlog": 0}, {"limit": -1}, {"max_chunk": 0}):
        with pytest.raises(ValueError, match="must be"):
            Listener(**wrong)
