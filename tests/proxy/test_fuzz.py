"""Whole connections of mutated, pipelined requests: what was accepted is what the origin got, in order, and no more."""

from __future__ import annotations

import asyncio
import random

import h11
import pytest

ROUNDS = 100
PIPELINED = 6
SPLICES = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b":",
    b",",
    b";",
    b"Content-Length: 3\r\n",
    b"Content-Length: 30\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:\tchunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Host: b\r\n",
    b"Connection: close\r\n",
    b"0\r\n\r\n",
    b"\r\n\r\n",
    b"HTTP/1.0",
    b"5;a\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b"Content-Length: 5, 5\r\n",
    b"X: y\r\n folded\r\n",
]


def request(chance: random.Random, number: int) -> bytes:
    target = b"/%d" % number
    match chance.randrange(4):
        case 0:
            return b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target
        case 1:
            body = b"x" * chance.randrange(1, 40)
            return b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (target, len(body), body)
        case 2:
            return b"PUT %b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % target
    return b"HEAD %b HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n" % target


def connection(chance: random.Random) -> bytes:
    """Some requests in a row, most of them whole, one or two hurt."""
    requests = [bytearray(request(chance, number)) for number in range(PIPELINED)]
    for _ in range(chance.randrange(3)):
        hurt = chance.choice(requests)
        at = chance.randrange(len(hurt) + 1)
        if chance.randrange(3):
            hurt[at:at] = chance.choice(SPLICES)
        else:
            del hurt[at : at + chance.randrange(1, 4)]
    return b"".join(requests)


Targets = dict[bytes, list[bytes]]
"""By the client's connection, in order."""


async def naming(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: Targets) -> None:
    """A strict origin: h11 reads each request, and each response's fields name its target and its connection."""
    parser = h11.Connection(h11.SERVER)
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(65536)
            parser.receive_data(data)
        elif isinstance(event, h11.Request):
            asked = event
            names = [name for name, _ in event.headers]
            assert names.count(b"host") == 1
            framed = names.count(b"content-length") + names.count(b"transfer-encoding")
            assert framed <= 1
            assert framed == 1 or event.method in (b"GET", b"HEAD")
        elif isinstance(event, h11.EndOfMessage):
            conn_id = dict(asked.headers)[b"x-conn"]
            seen.setdefault(conn_id, []).append(asked.target)
            fields = [("Content-Length", "0"), ("X-Target", asked.target.decode()), ("X-Conn", conn_id.decode())]
            writer.write(parser.send(h11.Response(status_code=200, headers=fields)) or b"")
            parser.send(h11.EndOfMessage())
            parser.start_next_cycle()
        elif isinstance(event, h11.ConnectionClosed):
            return


@pytest.mark.parametrize("seed", range(3))
async def test_what_the_origin_gets_is_what_was_accepted(stack, origin, seed):
    chance = random.Random(seed)
    seen: Targets = {}
    answered: Targets = {}
    broken: list[Exception] = []

    async def handler(reader, writer):
        try:
            await naming(reader, writer, seen)
        except (h11.RemoteProtocolError, AssertionError) as error:
            if "incomplete" not in str(error) and "unexpectedly closed" not in str(error):  # what the proxy cut off
                broken.append(error)

    def process(head, target):
        head.headers.append((b"X-Conn", b"%d" % head.conn_id))
        return head

    async def one(h, sent: bytes, cuts: list[int]) -> None:
        client = await h.open()
        for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True):
            if not client.writer.transport.is_closing():
                client.send(sent[a:b])
            await asyncio.sleep(0)
        got = await client.read_all()
        client.writer.transport.abort()
        assert got.startswith(b"HTTP/1.1 ")
        for head in got.split(b"\r\n\r\n"):  # only the proxy's own response has a body, and it is the last
            if head.startswith(b"HTTP/1.1 200"):
                fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
                answered.setdefault(fields[b"X-Conn"], []).append(fields[b"X-Target"])

    limits = {"head_timeout_s": 0.5, "body_timeout_s": 0.5, "keep_alive_s": 0.5}
    async with origin(handler) as o, stack(o.url, limits=limits, process=process) as h:
        work = []
        for _ in range(ROUNDS):
            sent = connection(chance)
            work.append(one(h, sent, sorted(chance.randrange(len(sent) + 1) for _ in range(4))))
        await asyncio.gather(*work)
        assert broken == []
        assert answered == seen
        assert len(seen) > ROUNDS // 2
        assert sum(map(len, seen.values())) > 3 * ROUNDS
