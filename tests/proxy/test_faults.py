"""The fault matrix at the target's end: where it breaks × how × under which request, and what the client then gets."""

from __future__ import annotations

import asyncio

import pytest

from agent.messages import Target
from agent.outcome import Kind, Stage

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
BODY = 1 << 20
REQUESTS = {
    "GET": (b"GET /bad HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "HEAD": (b"HEAD /bad HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "POST": (b"POST /bad HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY, b"x" * BODY),
    "chunked": (
        b"POST /bad HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n" % BODY + b"x" * BODY + b"\r\n0\r\n\r\n",
    ),
    "upgrade": (b"GET /bad HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b""),
}
# stage → what the target reads of the request (head, part of the body, all), and what it sends before it breaks
STAGES = {
    "after the request head": ("head", b""),
    "in the request body": ("part", b""),
    "before the first byte": ("all", b""),
    "in the status line": ("all", b"HTTP/1.1 2"),
    "in the headers": ("all", SIZED[:-9]),
    "after the headers": ("all", SIZED),
    "in a sized body": ("all", SIZED + b"y" * 10),
    "in a chunk line": ("all", CHUNKED + b"5\r\nhello\r\n1"),
    "in a chunk": ("all", CHUNKED + b"10\r\nhell"),
    "after a 101": ("all", SWITCH),
}
CASES = [
    (stage, how, kind)
    for stage, (reads, _) in STAGES.items()
    for how in ("FIN", "RST", "stall", "garbage")
    for kind, (_, body) in REQUESTS.items()
    if (kind == "upgrade" or stage != "after a 101") and (body or reads != "part")
]
GARBAGE = b"\0 this is no HTTP at all \r\n\r\n"


@pytest.mark.loops("uvloop")
@pytest.mark.parametrize(("stage", "how", "request_kind"), CASES, ids=["-".join(case) for case in CASES])
@pytest.mark.parametrize("carrier", ["pipe"])
async def test_a_fault_at_the_target(house, origin, stage, how, request_kind, eventually):
    reads, sends = STAGES[stage]
    head, body = REQUESTS[request_kind]

    async def bad(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if reads == "part":
            await reader.readexactly(10)
        elif reads == "all" and request_kind == "POST":
            await reader.readexactly(BODY)
        elif reads == "all" and request_kind == "chunked":
            await reader.readuntil(b"\r\n")
            while not (await reader.read(65536)).endswith(b"\r\n0\r\n\r\n"):
                pass
        writer.write(sends)
        await writer.drain()
        if sends:
            await asyncio.sleep(0.02)  # so that it is seen apart from what follows
        if how == "FIN":
            writer.close()
            await writer.wait_closed()
        elif how == "RST":
            writer.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0
            writer.transport.abort()
        else:
            if how == "garbage":
                writer.write(GARBAGE)
            await reader.read()

    limits = {"first_byte_timeout_s": 0.15, "write_timeout_s": 0.3, "drain_s": 0.1, "linger_s": 0.1}
    async with origin(bad) as broken, origin() as good:

        def route(request):
            return Target((broken if request.target == b"/bad" else good).url)

        async with house(route, limits=limits) as h:
            other = await h.open()
            assert (await other.get("/good")).body == b"OK"
            client = await h.open()
            client.send(head)
            client.send(body)
            method = "HEAD" if request_kind == "HEAD" else "GET"
            whole_head = sends.endswith(b"\r\n\r\n") or stage.startswith("in a")
            if not whole_head:
                answer = await client.answer(method)
                assert (answer.status, answer.complete) == (504 if how == "stall" else 502, True)
            elif stage == "after a 101":
                assert (await client.switched()).status == 101
                if how in ("FIN", "RST"):
                    assert await client.closed()
                    kind = Kind.FAILED if how == "RST" else Kind.COMPLETE
                    if how == "FIN":
                        client.writer.write_eof()
                    assert await h.outcome() == (kind, Stage.UPGRADED)
                elif how == "garbage":
                    assert await client.read() == GARBAGE
            elif request_kind == "HEAD":
                assert (await client.answer("HEAD")).status == 200
            elif how == "stall" or (how == "garbage" and b"Length" in sends):
                await client.read_until(b"\r\n\r\n")
                await asyncio.sleep(0.25)
                assert not h.outcomes, "an established response has no timeout"
            else:
                answer = await client.answer(method)
                assert (answer.status, answer.complete) == (200, False)
                expected = Stage.CHUNKED if b"chunked" in sends else Stage.SIZED
                assert await h.outcome() == (Kind.FAILED, expected)
            assert (await other.get("/good")).body == b"OK", "no other connection notices"
            client.writer.transport.abort()
            await eventually(lambda: h.proxy.open_connections == 1)
            kept = 2 if request_kind == "HEAD" and whole_head else 1  # its response was whole with its head
            await eventually(lambda: h.upstreams.open_connections <= kept)
            assert h.proxy.requests_in_flight == 0
            assert (await other.get("/good")).body == b"OK"
