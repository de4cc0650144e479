"""The fault matrix at the target's end: where it breaks × how × under which request, and what the client then gets.

All cells of a carrier run at the same time in one proxy. A connection beside them must not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import logging
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable

import pytest

from agent.messages import Target
from agent.outcome import Kind, Stage
from agent.proxy import dial

BODY = 1 << 20
GARBAGE = b"\0 this is no HTTP at all \r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
STALL_S = 2.0
HASTY = dict.fromkeys(("connect_timeout_s", "tls_timeout_s", "first_byte_timeout_s", "write_timeout_s"), STALL_S)

REQUESTS = {
    "GET": (b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "HEAD": (b"HEAD %b HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "POST": (b"POST %%b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % BODY, b"x" * BODY),
    "chunked": (
        b"POST %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n" % BODY + b"x" * BODY + b"\r\n0\r\n\r\n",
    ),
    "upgrade": (b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b""),
}
HOW = ("FIN", "RST", "stall", "garbage")

# Before there is a connection. stage → how → (status, text of the response). Not every stage can break in every way.
DIALS = {
    "resolve": {"FIN": (502, b"resolved"), "stall": (504, b"too long (connect)"), "garbage": (502, b"resolved")},
    "refuse": {"RST": (502, b"refused")},
    "connect": {"stall": (504, b"too long (connect)")},
    "wrong CA": {"FIN": (502, b"certificate")},
    "expired certificate": {"FIN": (502, b"certificate")},
    "TLS": {
        "FIN": (502, b"handshake"),
        "RST": (502, b"handshake"),
        "stall": (504, b"too long (tls)"),
        "garbage": (502, b"handshake"),
    },
}

# Afterwards: stage → (what the target reads of the request, what it sends before it breaks).
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


@dataclasses.dataclass(frozen=True)
class Cell:
    stage: str
    how: str
    request: str

    def __str__(self) -> str:
        return f"{self.stage}, {self.how}, {self.request}"

    @property
    def expected(self) -> str:
        """The result that the client must see:

        502 or 504: a response with that status.
        cut: the bytes of the target, and no end.
        open: the client still waits.
        whole: nothing is missing.
        switched: an upgrade, which has its own check.
        """
        if self.stage == "after a 101":
            return "switched"
        if not STAGES[self.stage][1].endswith(b"\r\n\r\n") and not self.stage.startswith("in a "):
            return "504" if self.how == "stall" else "502"
        if self.request == "HEAD":
            return "whole"
        if self.how == "stall" or (self.how == "garbage" and b"Length" in STAGES[self.stage][1]):
            return "open"  # an established response has no timeout, and within a length every byte is content
        return "cut"


DIAL_CELLS = [Cell(stage, how, kind) for stage, hows in DIALS.items() for how in hows for kind in REQUESTS]
CELLS = [
    Cell(stage, how, kind)
    for stage, (reads, _) in STAGES.items()
    for how in HOW
    for kind, (_, body) in REQUESTS.items()
    if (kind == "upgrade" or stage != "after a 101") and (body or reads != "part")
]


FIRST = [cell for cell in CELLS if cell.expected == "open" and cell.request in ("GET", "upgrade")]
"""Cells that stay open under short limits. The test opens them before there is any load."""


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with an RST."""
    if not writer.transport.is_closing():  # the proxy has not ended it already
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def beside(client, until: asyncio.Event) -> int:
    """Send requests to a good target every 2 ms. Returns the number of correct responses."""
    count = 0
    while not until.is_set() or count < 10:
        answer = await client.get("/good")
        assert (answer.status, answer.body, answer.complete) == (200, b"OK", True)
        count += 1
        await asyncio.sleep(0.002)
    return count


async def all_at_once(cells, check) -> list[str]:
    """Check all cells at the same time. Returns one line for each failed cell."""
    wrong = []

    async def one(cell):
        try:
            async with asyncio.timeout(60):
                await check(cell)
        except Exception as error:
            wrong.append(f"{cell} (expected {getattr(cell, 'expected', '')}): {error!r}")

    await asyncio.gather(*map(one, random.Random(1).sample(cells, len(cells))))
    return wrong


def own_warnings(caplog) -> int:
    """Returns how many failures the proxy logged. Each has its stage and connection."""
    found = [each for each in caplog.records if each.name.startswith("agent.proxy") and each.levelno >= logging.WARNING]
    found = [each for each in found if each.stage != "idle"]  # bytes that nobody asked for, on no client's behalf
    assert all(each.conn_id for each in found)
    assert all(each.levelno == logging.WARNING for each in found)
    return len(found)


# -- after the connection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("carrier", "scheme"), [("pipe", "http"), ("unix", "http"), ("tcp", "http"), ("pipe", "https")]
)
async def test_a_fault_at_the_target(stack, origin, authority, scheme, eventually, caplog):
    broken_now = {number: asyncio.Event() for number in range(len(CELLS))}  # set: the client has seen what there is

    async def bad(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        number = int(head.split(b" ")[1].split(b"/")[-1])
        cell = CELLS[number]
        reads, sends = STAGES[cell.stage]
        if reads == "part":
            await reader.readexactly(10)
        elif reads == "all" and cell.request == "POST":
            await reader.readexactly(BODY)
        elif reads == "all" and cell.request == "chunked":
            await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(sends)
        await writer.drain()
        if cell.expected not in ("502", "504"):
            await broken_now[number].wait()  # so that the fault is seen apart from what came before it
        if cell.how == "FIN":
            writer.close()
            await writer.wait_closed()
        elif cell.how == "RST":
            reset(writer)
        else:
            if cell.how == "garbage":
                writer.write(GARBAGE)
            await reader.read()

    def route(request):
        if request.target == b"/good":
            return Target(good.url)
        path = request.target.decode()
        return Target(broken.url + path, client_identity=path)  # so that no cell gets another's connection

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    tls = {"ssl": context} if scheme == "https" else {}
    over = asyncio.Event()
    open_now = 0

    async with (
        origin(bad, size=2 * BODY, **tls) as broken,
        origin() as good,
        stack(route, ssl_context=lambda _: trusting) as patient,
        stack(route, limits=HASTY, ssl_context=lambda _: trusting) as hasty,
    ):

        async def check(cell):
            nonlocal open_now
            number = CELLS.index(cell)
            head, body = REQUESTS[cell.request]
            client = await (hasty if cell in FIRST or cell.expected == "504" else patient).open()
            client.send(head % (b"/bad/%d" % number))
            client.send(body)
            method = "HEAD" if cell.request == "HEAD" else "GET"
            if cell.expected in ("502", "504"):
                answer = await client.answer(method)
                assert (answer.status, answer.complete) == (int(cell.expected), True)
            elif cell.expected == "switched":
                assert (await client.switched()).status == 101
                broken_now[number].set()
                if cell.how == "garbage":
                    assert await client.read_until(GARBAGE) == GARBAGE, "after a 101 all bytes are the same"
                elif cell.how != "stall":
                    assert await client.closed()
            elif cell.expected == "whole":
                assert (await client.answer("HEAD")).status == 200
                broken_now[number].set()
            else:
                sent = STAGES[cell.stage][1].partition(b"\r\n\r\n")[2]
                content = {b"": b"", b"y" * 10: b"y" * 10}.get(sent, b"hello" if b"hello" in sent else b"hell")
                start = await client.read_until(b"\r\n\r\n")
                assert start.startswith(b"HTTP/1.1 200 ")
                await client.read_until(content)
                broken_now[number].set()
                if cell.expected == "open":
                    if cell.how == "garbage":
                        await client.read_until(GARBAGE)
                    open_now += 1
                    await over.wait()
                    assert not client.reader.at_eof()
                else:
                    rest = await client.read_all()
                    assert b"0\r\n\r\n" not in rest, "never as if it were whole"
            if cell.expected in ("502", "504", "cut") or cell.how in ("FIN", "RST"):
                client.writer.transport.abort()

        undisturbed = [asyncio.ensure_future(beside(await h.open(), over)) for h in (patient, hasty)]
        first = asyncio.ensure_future(all_at_once(FIRST, check))
        await eventually(lambda: open_now == len(FIRST) or first.done())
        wrong = asyncio.ensure_future(all_at_once([cell for cell in CELLS if cell not in FIRST], check))
        await eventually(lambda: open_now == sum(cell.expected == "open" for cell in CELLS) or wrong.done(), 60)
        await asyncio.sleep(STALL_S + 0.5)  # longer than any limit that they could have
        over.set()
        assert await first + await wrong == []
        assert min(await asyncio.gather(*undisturbed)) >= 10
        failed = [cell for cell in CELLS if cell.expected in ("502", "504", "cut")]
        failed += [cell for cell in CELLS if cell.expected == "switched" and cell.how == "RST"]
        assert own_warnings(caplog) == len(failed)
        for h in (patient, hasty):
            for client in h._clients[1:]:
                reset(client.writer)  # over TCP a FIN might only mean that it sends no more
            await eventually(lambda: h.proxy.open_connections == 1)  # noqa: B023
            assert h.proxy.requests_in_flight == 0
            await eventually(lambda: h.upstreams.open_connections == h.upstreams.idle_connections)  # noqa: B023
            assert (await h._clients[0].get("/good")).body == b"OK"
        kinds = [kind for _, kind, stage in patient.outcomes if stage in (Stage.CHUNKED, Stage.SIZED)]
        assert kinds.count(Kind.FAILED) == sum(cell.expected == "cut" for cell in CELLS)
        assert Kind.COMPLETE not in kinds


# -- before it ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def deaf() -> AsyncIterator[int]:
    """A port with a full queue, so that its connections are neither accepted nor refused."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):  # Linux takes one more than asked for
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


async def broken_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, how: str) -> None:
    await reader.read(10)
    if how == "RST":
        reset(writer)
    elif how != "FIN":
        if how == "garbage":
            writer.write(GARBAGE)
        await reader.read()


@pytest.mark.loops("uvloop")
async def test_a_fault_before_there_is_a_connection(stack, origin, authority, eventually, monkeypatch, caplog):
    real = dial.look_up

    async def look_up(host, port):
        match host:
            case "stall.test":
                await asyncio.get_running_loop().create_future()
            case "garbage.test":
                raise UnicodeError("label too long")
            case "fin.test":
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await real(host, port)

    monkeypatch.setattr(dial, "look_up", look_up)
    past = datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)
    certificates = {"expired": authority.issue_cert("127.0.0.1", not_after=past, not_before=past)}
    certificates["wrong"] = type(authority)().issue_cert("127.0.0.1")
    contexts = {}
    for name, certificate in certificates.items():
        contexts[name] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(contexts[name])
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    def handshake(how: str) -> Callable[..., object]:
        return lambda reader, writer: broken_handshake(reader, writer, how)

    async with contextlib.AsyncExitStack() as exits:
        enter = exits.enter_async_context
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            refusing = unused.getsockname()[1]
        good = await enter(origin())
        urls = {("resolve", how): f"http://{how}.test" for how in ("FIN", "stall", "garbage")}
        urls["refuse", "RST"] = f"http://127.0.0.1:{refusing}"
        urls["connect", "stall"] = f"http://127.0.0.1:{await enter(deaf())}"
        urls["wrong CA", "FIN"] = (await enter(origin(ssl=contexts["wrong"]))).url
        urls["expired certificate", "FIN"] = (await enter(origin(ssl=contexts["expired"]))).url
        for how in HOW:
            urls["TLS", how] = "https" + (await enter(origin(handshake(how)))).url[4:]

        def route(request):
            if request.target == b"/good":
                return Target(good.url)
            cell = DIAL_CELLS[int(request.target[1:])]
            return Target(urls[cell.stage, cell.how] + "/")

        h = await enter(stack(route, limits=HASTY, ssl_context=lambda _: trusting))
        done = asyncio.Event()

        async def check(cell):
            head, body = REQUESTS[cell.request]
            client = await h.open()
            client.send(head % (b"/%d" % DIAL_CELLS.index(cell)))
            client.send(body)
            answer = await client.answer("HEAD" if cell.request == "HEAD" else "GET")
            status, says = DIALS[cell.stage][cell.how]
            assert (answer.status, answer.complete) == (status, True)
            assert says in answer.body or cell.request == "HEAD", answer.body
            if not body:  # the connection may continue, because the proxy has read the whole request
                assert (await client.get("/good")).body == b"OK"
            client.writer.transport.abort()

        quiet = asyncio.ensure_future(beside(await h.open(), done))
        assert await all_at_once(DIAL_CELLS, check) == []
        done.set()
        assert await quiet >= 10
        assert own_warnings(caplog) == len(DIAL_CELLS)
        await eventually(lambda: h.proxy.open_connections == 1)
        assert h.proxy.requests_in_flight == 0
        assert good.connections == h.upstreams.open_connections == h.upstreams.idle_connections
