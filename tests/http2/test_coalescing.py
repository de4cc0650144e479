"""Small packets in quick succession wake us up for several at once, and none of them waits for long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.http2 import coalescing
from agent.http2.coalescing import ReceiveCoalescing
from agent.http2.sizes import COALESCED_BYTES

PACKET = bytes(range(256))
APART_S = 0.0001
"""Between two packets of a storm: as fast as a peer in Python sends them, each by itself."""

linux = pytest.mark.skipif(not coalescing._WAKES_READERS, reason="the kernel can't be asked to wait")


class Recording:
    """A socket that records how many bytes it shall wait for."""

    def __init__(self, sock: Any) -> None:
        self.sock, self.family, self.asked = sock, sock.family, list[int]()

    def setsockopt(self, level: int, name: int, value: int) -> None:
        assert (level, name) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.asked.append(value)
        self.sock.setsockopt(level, name, value)


class Receiver(asyncio.BufferedProtocol):
    """Receives, and reports each read to a ReceiveCoalescing.

    `answers`: whether it sends one byte for each packet of a ping-pong.
    """

    def __init__(self) -> None:
        self.room = memoryview(bytearray(1 << 18))
        self.received = bytearray()
        self.wakeups = 0
        self.answers = False
        self.changed = asyncio.Event()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.sock = Recording(transport.get_extra_info("socket"))
        self.coalescing = ReceiveCoalescing(self, asyncio.get_running_loop())  # type: ignore[arg-type]  # as a transport

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self.sock

    def is_closing(self) -> bool:
        return bool(self.transport.is_closing())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.wakeups += 1
        self.received += self.room[:nbytes]
        self.coalescing.received(nbytes)
        if self.answers:
            self.transport.write(b"." * (nbytes // len(PACKET)))
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.coalescing.stop()
        self.lost.set_result(exc)

    async def until(self, size_bytes: int) -> None:
        async with asyncio.timeout(20):
            while len(self.received) < size_bytes:
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def received_from() -> AsyncIterator[tuple[Receiver, socket.socket]]:
    """A receiver, and the blocking socket that it receives from."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, receiver = await loop.create_connection(Receiver, *server.getsockname())
        peer, _ = server.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.settimeout(20)
            yield receiver, peer
            receiver.transport.abort()
            await receiver.lost


def storm(peer: socket.socket, packets: int) -> bool:
    """Sends packets close together. Returns whether every pause between two was shorter than a tick.

    On a busy machine a pause can be longer.
    """
    steady, sent_s = True, time.monotonic()
    for _ in range(packets):
        peer.sendall(PACKET)
        time.sleep(APART_S)
        before_s, sent_s = sent_s, time.monotonic()
        steady = steady and sent_s - before_s < coalescing.TICK_S
    return steady


async def hold(receiver: Receiver, peer: socket.socket) -> int:
    """Send until the kernel is asked to wait. Returns the bytes sent.

    On a busy machine the receiver misses wake-ups, so many storms may pass before one counts.
    """
    sent = 0
    async with asyncio.timeout(60):
        while receiver.coalescing.waiting_for_bytes == 1:
            await asyncio.to_thread(storm, peer, 100)
            sent += 100 * len(PACKET)
    return sent


@linux
async def test_a_storm_wakes_us_for_several_packets_at_once() -> None:
    for _ in range(20):
        async with received_from() as (receiver, peer):
            sent = await hold(receiver, peer)
            before = receiver.wakeups, len(receiver.received)
            steady = await asyncio.to_thread(storm, peer, 500)
            await receiver.until(sent + 500 * len(PACKET))
            assert receiver.received == PACKET * (sent // len(PACKET) + 500)
            assert 1 < max(receiver.sock.asked) <= COALESCED_BYTES
            if steady:
                packets = (len(receiver.received) - before[1]) / len(PACKET)
                assert receiver.wakeups - before[0] < packets / 2
                return
    pytest.skip("a busy machine interrupted twenty storms")


@linux
async def test_the_kernel_wakes_us_for_what_it_was_asked_to_wait_for() -> None:
    async with received_from() as (receiver, peer):
        peer.sendall(PACKET)
        await receiver.until(len(PACKET))
        receiver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8 * len(PACKET))
        peer.sendall(PACKET * 7)
        await asyncio.sleep(0.05)
        assert receiver.wakeups == 1
        peer.sendall(PACKET)
        await receiver.until(9 * len(PACKET))
        assert receiver.wakeups == 2
        receiver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8 * len(PACKET))
        peer.sendall(PACKET * 7)
        await asyncio.sleep(0.05)
        assert receiver.wakeups == 2
        receiver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)  # so much is there: it wakes us for it
        await receiver.until(16 * len(PACKET))


@linux
async def test_what_is_less_than_what_is_waited_for_comes_too() -> None:
    async with received_from() as (receiver, peer):
        for _ in range(3):
            sent = len(receiver.received) + await hold(receiver, peer)
            await receiver.until(sent)
            peer.sendall(b"!")  # nothing comes after it
            await receiver.until(sent + 1)
            assert receiver.received.endswith(b"!")
            receiver.coalescing.stop()
            receiver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            receiver.connection_made(receiver.transport)  # begins again


@linux
async def test_the_end_of_a_connection_waits_for_nothing() -> None:
    async with received_from() as (receiver, peer):
        await hold(receiver, peer)
        receiver.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 << 16)  # and no timer takes what is there
        receiver.coalescing.stop()
        size_bytes = len(receiver.received)
        peer.sendall(b"last")
        peer.close()
        async with asyncio.timeout(20):
            await receiver.lost
        assert receiver.received[size_bytes:].endswith(b"last")


@linux
async def test_one_packet_in_flight_is_left_alone_after_a_few_stalls() -> None:
    def ping_pong() -> int:
        rounds, until_s = 0, time.monotonic() + 0.4
        while time.monotonic() < until_s:
            peer.sendall(PACKET)
            assert peer.recv(16) == b"."
            rounds += 1
        return rounds

    async with received_from() as (receiver, peer):
        receiver.answers = True
        rounds = await asyncio.to_thread(ping_pong)
        await receiver.until(rounds * len(PACKET))
        # Tried when it begins and after a rest of 0.25 s, each time for two packets' bytes.
        held = [size for size in receiver.sock.asked if size > 1]
        assert len(held) <= 2
        assert set(held) <= {coalescing.FIRST_WAKEUPS * len(PACKET)}


@linux
async def test_large_reads_are_left_alone() -> None:
    async with received_from() as (receiver, peer):
        for _ in range(100):
            peer.sendall(bytes(coalescing.FEW_BYTES))
            await receiver.until(len(receiver.received) + coalescing.FEW_BYTES)
        assert not receiver.sock.asked


@linux
async def test_few_wake_ups_are_left_alone() -> None:
    async with received_from() as (receiver, peer):
        for _ in range(coalescing.LOOK_WAKEUPS * 4):
            peer.sendall(PACKET)
            await receiver.until(len(receiver.received) + len(PACKET))
            await asyncio.sleep(coalescing.LOOK_S * 1.1 / coalescing.LOOK_WAKEUPS + 0.001)
        assert not receiver.sock.asked


@linux
async def test_nothing_is_asked_of_a_socket_that_closes() -> None:
    """Its descriptor's number may be another's."""
    async with received_from() as (receiver, peer):
        await hold(receiver, peer)
        receiver.transport.abort()
        asked = len(receiver.sock.asked)
        for _ in range(100):
            receiver.coalescing.received(1)
        await receiver.lost
        receiver.coalescing.received(1)
        await asyncio.sleep(coalescing.TICK_S * 3)
        assert len(receiver.sock.asked) == asked


@pytest.mark.parametrize(
    ("system", "release", "expected"),
    [
        ("linux", "6.1.0-13-amd64", (6, 1)),
        ("linux", "4.4.0", (4, 4)),
        ("linux", "none", (0, 0)),
        ("darwin", "23.1.0", (0, 0)),
    ],
)
def test_a_kernels_release_is_read(
    system: str, release: str, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Uname:
        def __init__(self) -> None:
            self.release = release

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(os, "uname", Uname)
    assert coalescing._release() == expected


async def test_a_system_that_cannot_wait_is_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescing, "_WAKES_READERS", False)
    async with received_from() as (receiver, peer):
        await asyncio.to_thread(storm, peer, 200)
        await receiver.until(200 * len(PACKET))
        assert not receiver.sock.asked


async def test_a_socket_that_is_not_tcps_is_asked_for_nothing() -> None:
    one, other = socket.socketpair()
    with one, other:
        loop = asyncio.get_running_loop()
        transport, receiver = await loop.create_connection(Receiver, sock=one)
        for _ in range(coalescing.LOOK_WAKEUPS * 4):
            receiver.coalescing.received(1)
        assert not receiver.sock.asked
        transport.abort()
        await receiver.lost


@linux
@pytest.mark.parametrize("role", ["agent", "hub"])
async def test_both_roles_wait_for_several_packets_of_a_storm(linked: Any, role: str) -> None:
    async with linked() as (_, agent, hub):
        reader, writer = (agent, hub) if role == "agent" else (hub, agent)
        session = reader.tunnel._stream.connection
        sent, held = 0, False

        async def one_by_one() -> None:
            nonlocal sent
            for _ in range(100):
                writer.tunnel.send(7, 0, PACKET)
                sent += 1
                await asyncio.sleep(0)

        async with asyncio.timeout(20):
            while not held:
                await one_by_one()
                held = session._coalescing.waiting_for_bytes > 1
            await reader.until(lambda: len(reader.packets) >= sent)
        assert {packet[2] for packet in reader.packets} == {PACKET}
