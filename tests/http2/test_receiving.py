"""Receiving into Chunks: who gets a view, which bytes are copied, and when a Chunk is used again."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tracemalloc
from typing import Any

import pytest

import fastpipe
from agent.http2.frames import frame
from agent.http2.framing import FrameReader
from agent.http2.receiving import ReceivePool
from agent.http2.sizes import RECEIVE_BYTES
from agent.tunnel.messages import MessageReader
from agent.tunnel.packet import Packet

OF_A_CHUNK = ("Chunk", "Storage")
"""The types behind a view of a Chunk: the Chunk itself, or the storage of the Python twin."""


def nothing() -> None:
    pass


class Sink:
    """A stream's sink that keeps what it is given, as it is given."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        self.data.append(data)

    def credit(self, conn_id: int, increment_bytes: int) -> None:
        raise AssertionError("no credit was sent")

    def message_refused(self, error: Any) -> None:
        raise error

    def bad_packet(self, error: Any) -> None:
        raise error

    def control_frame(self, kind: int, flags: int, stream_id: int, whole: bytes) -> None:
        assert kind == 4  # SETTINGS, which the reader passes to its handler


@pytest.mark.parametrize(
    ("payload_bytes", "is_view"), [(100, False), (4096, False), (30_000, False), (33_000, True), (100_000, True)]
)
def test_a_payload_is_a_view_of_the_chunk_where_it_is_a_quarter_of_it(payload_bytes: int, is_view: bool) -> None:
    sink = Sink()
    reader = FrameReader(sink, expect_preface=False)  # type: ignore[arg-type]
    reader.max_frame_size, reader.window = 2**20, 2**20
    reader.streams[1] = MessageReader(sink, window=2**20, max_message_bytes=2**20)
    payload = os.urandom(payload_bytes)
    received = frame(4, 0, 0) + frame(0, 0, 1, Packet(7, 0, payload).encode())
    chunk = fastpipe.Chunk(RECEIVE_BYTES)
    chunk.writable()[: len(received)] = received
    view = chunk.commit(len(received))
    reader.feed(view, RECEIVE_BYTES)
    del view
    assert [bytes(data) for data in sink.data] == [payload]
    assert type(sink.data[0]) is (memoryview if is_view else bytes)
    assert chunk.in_use is is_view
    if is_view:
        (given,) = sink.data
        assert isinstance(given, memoryview)
        assert given.readonly
        assert type(given.obj).__name__ in OF_A_CHUNK
        del given
        sink.data.clear()
        assert not chunk.in_use


def test_a_chunk_comes_again_only_when_its_last_view_has_gone() -> None:
    pool = ReceivePool()
    buffer = pool.take()
    first = buffer.chunk
    assert buffer.room is not None
    buffer.room[:4] = b"kept"
    view = buffer.keep(4)
    pool.give_back(buffer)
    buffer = pool.take()
    second = buffer.chunk
    assert second is not first
    assert buffer.room is not None
    buffer.room[:4] = b"over"
    pool.give_back(buffer)
    assert pool.take() is buffer, "of which no view was given"
    assert bytes(view) == b"kept"
    del view
    pool.give_back(buffer)
    both = {id(pool.take().chunk), id(pool.take().chunk)}
    assert both == {id(first), id(second)}


def test_few_chunks_rest_whoever_kept_views_of_them() -> None:
    pool, views = ReceivePool(), []
    tracemalloc.start()
    try:
        for _ in range(50):
            buffer = pool.take()
            views.append(buffer.keep(40_000))
            pool.give_back(buffer)
        del buffer
        assert tracemalloc.get_traced_memory()[0] > 40 * RECEIVE_BYTES
        views.clear()
        assert tracemalloc.get_traced_memory()[0] < 7 * RECEIVE_BYTES
    finally:
        tracemalloc.stop()


async def test_payloads_that_are_kept_stay_as_they_came(linked: Any) -> None:
    """A receiver that keeps every view, while megabytes more come in behind them."""
    async with linked() as (_, agent, hub):
        kept: list[Any] = []
        agent.on_packet = lambda conn_id, code, data, text: kept.append(data)
        sent = os.urandom(4 << 20)
        hub.tunnel.outbound(1, nothing, nothing).write(sent)
        await agent.until(lambda: len(agent.bytes_of(1)) == len(sent))
        assert b"".join(kept) == sent
        assert hashlib.sha256(b"".join(kept)).digest() == hashlib.sha256(agent.bytes_of(1)).digest()


async def test_a_payload_of_32_kib_comes_as_a_view_of_a_chunk(linked: Any) -> None:
    async with linked() as (_, agent, hub):
        kinds: set[str] = set()

        def look(conn_id: int, code: int, data: bytes | memoryview, text: str) -> None:
            kinds.add(type(data.obj).__name__ if isinstance(data, memoryview) else "copy")

        agent.on_packet = look
        outs = [hub.tunnel.outbound(conn_id, nothing, nothing) for conn_id in range(1, 9)]
        for round_number in range(1, 6):
            for out in outs:
                out.write(os.urandom(40_000))
            await agent.until(lambda wanted=round_number * 8: len(agent.packets) >= wanted)
            await asyncio.sleep(0)
        assert kinds & set(OF_A_CHUNK)
