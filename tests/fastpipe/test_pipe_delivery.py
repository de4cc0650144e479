"""Bytes written to one end arrive at the other: when, in what order, in which context."""

from __future__ import annotations

import asyncio
import contextvars

import pytest


async def test_bytes_arrive_after_connection_made(twin, recorder, run_turns):
    a, b = twin.create_pipe()
    a.write(b"early")
    pa, pb = recorder(), recorder()
    a.set_protocol(pa)
    b.set_protocol(pb)
    assert pb.log == []
    await run_turns()
    assert pb.log == [("connection_made",), ("data_received", b"early")]
    assert pa.log == [("connection_made",)]
    assert pa.transport is a
    a.close()
    assert pa.calls == ["connection_made"]
    await run_turns()
    assert pb.calls[2:] == ["eof_received", "connection_lost"]
    assert pa.log[1:] == [("connection_lost", None)]
    assert b.is_closing()
    assert b.get_protocol() is None


async def test_nothing_is_delivered_inside_write(twin, recorder, run_turns):
    a, b = twin.create_pipe()
    log = []
    a.set_protocol(recorder("a", log, data_received=lambda p, _: (p.transport.write(b"pong"), log.append("a wrote"))))
    b.set_protocol(recorder("b", log, data_received=lambda p, _: (p.transport.write(b"ping"), log.append("b wrote"))))
    await run_turns()
    del log[:]
    a.write(b"go")
    log.append("go written")
    await run_turns()
    hops = [("b", "data_received", b"go"), "b wrote", ("a", "data_received", b"ping"), "a wrote"]
    assert log[:5] == ["go written", *hops]
    a.abort()
    await run_turns()


async def test_hops_are_drained_in_one_turn_of_the_loop(twin, recorder, run_turns):
    a, b = twin.create_pipe()
    left = [100]

    def reply(protocol, data):
        if left[0]:
            left[0] -= 1
            protocol.transport.write(data)

    a.set_protocol(recorder(data_received=reply))
    b.set_protocol(recorder(data_received=reply))
    await run_turns()
    a.write(b"x")
    await asyncio.sleep(0)
    assert left == [0]
    a.abort()
    await run_turns()


async def test_callbacks_run_in_the_context_of_set_protocol(twin, recorder, run_turns):
    var = contextvars.ContextVar("var", default="none")
    seen = []
    a, b = twin.create_pipe()
    var.set("setter's")
    b.set_protocol(recorder(data_received=lambda p, d: seen.append(var.get())))
    a.set_protocol(recorder())
    var.set("writer's")
    a.write(b"x")
    await run_turns()
    assert seen == ["setter's"]
    a.abort()
    await run_turns()


@pytest.mark.parametrize("inline", [False, True])
async def test_a_busy_pair_starves_nobody(twin, recorder, run_turns, inline):
    a, b = twin.create_pipe(inline=inline)
    stop = []
    echo = lambda p, d: None if stop else p.transport.write(d)  # noqa: E731
    a.set_protocol(recorder(data_received=echo))
    b.set_protocol(recorder(data_received=echo))
    await run_turns()
    a.write(b"x")
    while len(b.get_protocol().log) < 2000:  # noqa: ASYNC110 - it is the sleep that has to come to its end
        await asyncio.sleep(0.001)
    stop.append(True)
    await run_turns()
    a.close()
    await run_turns()


@pytest.mark.parametrize("half_closed", [True, False])
async def test_a_task_that_the_last_bytes_woke_runs_before_the_end_is_told(twin, half_closed):
    """So it is on a socket, where the end is another event of the loop: aiohttp's tests count on it."""
    order: list[str] = []
    woken, ended, lost = (asyncio.get_running_loop().create_future() for _ in range(3))

    class Receiver(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            woken.set_result(None)

        def eof_received(self) -> None:
            order.append("eof")
            ended.set_result(None)

        def connection_lost(self, error: Exception | None) -> None:
            order.append("lost")
            lost.set_result(None)

    async def reader() -> None:
        await woken
        order.append("task of the bytes")
        await ended
        order.append("task of the eof")

    a, b = twin.create_pipe()
    task = asyncio.create_task(reader())
    await asyncio.sleep(0)
    b.set_protocol(Receiver())
    a.write(b"last")
    if half_closed:
        a.write_eof()
    else:
        a.close()
    await lost
    await task
    a.close()
    assert order == ["task of the bytes", "eof", "task of the eof", "lost"]


async def test_a_busy_pair_holds_no_end_of_another_for_long(twin):
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    class Ending(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost = asyncio.get_running_loop().create_future()

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.set_result(error)

    busy = twin.create_pipe()
    for end in busy:
        end.set_protocol(Echo())
    busy[0].write(b"for ever")
    a, b = twin.create_pipe()
    ending = Ending()
    b.set_protocol(ending)
    a.close()
    for _ in range(20):
        await asyncio.sleep(0)
    assert ending.lost.done()
    for end in busy:
        end.abort()
    await asyncio.sleep(0.01)
