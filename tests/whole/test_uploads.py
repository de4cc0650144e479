"""An upload of 40 packets arrives intact, 200 times out of 200, because packets keep their order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random

import pytest

from .whole_cluster import Cluster
from .whole_peers import running_origin

UPLOADS = 200
AT_ONCE = 10
PACKET_BYTES = 32 * 1024
PACKETS = 40


async def upload(port: int, cluster: str, body: bytes) -> tuple[str, int]:
    """(SHA-256, length) of the body that arrived. A GET goes first. A base hub sends raw packets only after it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET /{cluster}/hello HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        await reader.readuntil(b"hello from the origin\n")
        writer.write(f"POST /{cluster}/digest HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        for start in range(0, len(body), PACKET_BYTES):
            writer.write(body[start : start + PACKET_BYTES])
            await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200 "), head
        found = json.loads(await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0])))
        return found["sha256"], found["length"]
    finally:
        writer.close()


@pytest.mark.loops("uvloop")
async def test_forty_packets_arrive_intact_two_hundred_times_out_of_two_hundred(cluster: Cluster) -> None:
    bodies = [random.Random(seed).randbytes(PACKETS * PACKET_BYTES) for seed in range(AT_ONCE)]
    digests = [hashlib.sha256(body).hexdigest() for body in bodies]
    intact = 0
    async with running_origin() as origin, cluster.running(origin.url) as whole:

        async def uploader(number: int) -> None:
            nonlocal intact
            for turn in range(UPLOADS // AT_ONCE):
                which = (number + turn) % AT_ONCE
                found = await upload(whole.http_port, whole.cluster, bodies[which])
                intact += found == (digests[which], PACKETS * PACKET_BYTES)

        await asyncio.gather(*(uploader(number) for number in range(AT_ONCE)))
        assert intact == UPLOADS
        if whole.kind == "base":
            assert whole.stats()["packets_out"] >= UPLOADS * PACKETS
