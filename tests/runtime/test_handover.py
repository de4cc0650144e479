"""The hand-over of a connection to the protocol that is chosen for it."""

from __future__ import annotations

import asyncio

from agent.runtime.handover import HandOver
from fastpipe import create_pipe


class Keeper(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.BaseTransport | None = None
        self.received = b""
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def test_the_chosen_protocol_gets_the_connection_and_every_byte() -> None:
    near, far = create_pipe()
    chosen, peer = Keeper(), Keeper()
    near.set_protocol(HandOver(lambda transport: chosen))
    far.set_protocol(peer)
    far.write(b"first")
    far.close()
    await chosen.lost.wait()
    assert chosen.transport is near
    assert chosen.received == b"first"


async def test_a_connection_that_nobody_is_chosen_for_is_aborted() -> None:
    near, far = create_pipe()
    peer = Keeper()
    far.set_protocol(peer)
    near.set_protocol(HandOver(lambda transport: None))
    await peer.lost.wait()
    assert near.is_closing()
