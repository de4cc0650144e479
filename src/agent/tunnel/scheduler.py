"""Chooses the next packet and its size: deficit round robin over the connections of one tunnel.

The algorithm is from M. Shreedhar, G. Varghese: Efficient Fair Queuing using Deficit Round Robin, 1995. A connection's
bytes can be cut anywhere, so its turn is exactly one packet of at most its quantum. The deficit that the algorithm
carries from turn to turn is therefore always zero.

There are two lists, as in RFC 8290, section 4. A connection that begins to send takes one turn ahead of those that have
been sending. So small responses don't queue behind bulk. Before it can do so again, it passes through the second list.
So many small responses can't starve the bulk. Many new connections with one response each can't starve it either. While
others send, the starting connections may send at most _PACKETS_AHEAD times as much.

            write                  turn taken
    idle ───────────► starting ───────────────► going on ◄──┐
      ▲                                          ▲ │  │     │ more to send
      └────────── nothing left at its turn ──────┼─┘  └─────┘
                                  credit came    │    │ data next, and no credit for it (`window` only)
                                                 └── parked

Batching is for a hub that keeps some packets for each client and drops the rest (wire.md, "agent → hub, DATA").
Such a hub counts every packet, whatever its size. After each byte from the client, the first packets go out at once, so
a small response never waits. A connection that sends more is *held* until a whole packet is queued. It is released
earlier if

    its source is quiet for a tick, or it was held for _HELD_S    and its packets are not used up
    its source is paused or finished                              nothing more can be gathered

A connection gets one packet back every _PACKET_S.

Invariants:
I1. An outbound is in at most one list. With something queued it is in exactly one list, or parked, or held.
I2. Bytes, and the control packets among them, leave in the order in which they were queued.
I3. The state is right before a call of `pause` or `resume`, because either may write, finish or abort at once.
I4. No outbound sends a byte of DATA beyond its credit. Control packets need no credit.

Cython compiles this same file, with the types of `scheduler.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .messages import PacketWriter
from .packet import MAX_INCREMENT_BYTES, MAX_SENT_MESSAGE_BYTES, ControlCode, data_field, encode_packet
from .sizes import (
    ALONE_PACKET_BYTES,
    BATCHED_HIGH_WATER_BYTES,
    BATCHED_TOTAL_BYTES,
    HIGH_WATER_BYTES,
    SHARED_PACKET_BYTES,
)

__all__ = ["Outbound", "Scheduler", "Timers"]

_UNLIMITED_BYTES = 2**62  # the credit of a connection where credit isn't counted
_IDLE, _STARTING, _GOING_ON, _PARKED, _HELD = range(5)
_PACKETS_AHEAD = 4  # so a fifth of the link is left to those that have been sending
_CROWDED_BYTES = BATCHED_TOTAL_BYTES
_UNCROWDED_BYTES = HIGH_WATER_BYTES
_FREE_PACKETS = 8  # packets of less than the whole size that go out at once
_MOST_PACKETS = 16  # such packets in all, before a connection must gather: a sixth of the hub's queue
_PACKET_S = 0.1  # the time to get one packet back, because a client may read nothing for seconds
_TICK_S = 0.002  # a source that writes nothing for this long is quiet (uvloop's timers count whole milliseconds)
_SLOW_TICK_S = 0.02  # the tick if no connection has a packet left
_HELD_S = 0.05  # the longest hold of a connection that trickles, while it has packets left


class Timers(Protocol):
    """The parts of an event loop that batching uses."""

    def time(self) -> float: ...
    def call_later(self, delay: float, callback: Callable[[], None], /) -> Any: ...


class Outbound:
    """One connection's place in the queue, from `Tunnel.outbound`. It is forgotten after `finish` or `abort`."""

    __slots__ = (
        "_counted_s",
        "_field",
        "_held_s",
        "_items",
        "_place",
        "_released",
        "_scheduler",
        "_seen_bytes",
        "_watched",
        "conn_id",
        "credit_bytes",
        "finished",
        "packets",
        "pause",
        "paused",
        "queued_bytes",
        "resume",
    )

    def __init__(
        self,
        scheduler: Scheduler,
        conn_id: int,
        pause: Callable[[], None],
        resume: Callable[[], None],
        credit_bytes: int,
    ) -> None:
        self.conn_id = conn_id
        self.credit_bytes = credit_bytes
        self.queued_bytes = 0
        self.finished = False
        self.paused = False
        self.pause = pause
        self.resume = resume
        self._scheduler = scheduler
        self._field = data_field(conn_id)
        self._items: deque[bytes | memoryview | tuple[bytes]] = deque()  # a tuple holds a control packet's message
        self._place = _IDLE
        self.packets = 0  # batching: packets sent that were not whole, less those that have been given back
        self._counted_s = 0.0  # since when one is given back every _PACKET_S
        self._held_s = 0.0  # since when
        self._seen_bytes = 0  # what was queued at the last tick
        self._released = False  # the next packet may be of any size
        self._watched = False  # in the scheduler's list of those held

    def heard(self) -> None:
        """The client has sent something. So it reads, and the next bytes may be a response to it."""
        self.packets = 0

    def write(self, data: bytes | memoryview) -> None:
        """Queue the connection's next bytes.

        data: bytes, or a view of bytes that never change. The scheduler keeps a reference.

        Small writes of one turn of the event loop share a packet. Calls `pause` when the queue exceeds the scheduler's
        `high_water_bytes`. After the session is lost, the bytes are dropped. Raises RuntimeError after `finish` or
        `abort`.
        """
        if self.finished:
            if self._scheduler.closed:
                return
            raise RuntimeError(f"connection {self.conn_id} wrote after it was finished")
        if isinstance(data, memoryview) and (data.format != "B" or data.ndim != 1):
            data = data.cast("B")
        size = len(data)
        if not size or self._scheduler.closed:
            return
        self._items.append(data)
        self.queued_bytes += size
        self._scheduler._grown(self, size)
        if not self.paused and self.queued_bytes > self._scheduler._mark():
            self.paused = True
            if self._place == _HELD:
                self._scheduler._release(self)
            self.pause()

    def finish(self, code: int | None = None, error_message: str = "") -> None:
        """Finish the connection: queue a packet with `code` as its last one, or nothing. A second call does nothing.

        After the last packet is sent, the scheduler forgets the outbound. It no longer calls `resume`.
        """
        if self.finished:
            return
        self.finished = True
        if code is not None:
            self._control(encode_packet(self.conn_id, code, b"", error_message))
        elif not self._items:
            self._scheduler._forget(self)
        elif self._place == _HELD:
            self._scheduler._release(self)

    def abort(self) -> None:
        """Drop the queue, and be forgotten. The rest of a packet that has begun to go out is still sent."""
        if not self.finished or self._items:
            self.finished = True
            self._scheduler._drop(self)

    def _control(self, message: bytes) -> None:
        if not self._scheduler.closed:
            self._items.append((message,))
            self._scheduler._grown(self, 0)

    def _lacks_credit(self) -> bool:
        return self.credit_bytes <= 0 and bool(self._items) and not isinstance(self._items[0], tuple)

    def _take(self, writer: PacketWriter, limit: int) -> None:
        """Move the next packet, of at most `limit` bytes of payload, to the writer."""
        items = self._items
        first = items[0]
        if isinstance(first, tuple):
            items.popleft()
            writer.append(first[0])
            return
        pieces: list[bytes | memoryview] = []
        size = 0
        limit = min(limit, self.credit_bytes)  # I4
        while items and size < limit:
            item = items[0]
            if isinstance(item, tuple):
                break
            room = limit - size
            length = len(item)
            if length <= room:
                items.popleft()
            else:
                view = memoryview(item)
                item, items[0] = view[:room], view[room:]
                length = room
            pieces.append(item)
            size += length
        self.queued_bytes -= size
        self.credit_bytes -= size
        writer.append_packet(self._field, pieces, size)


class Scheduler:
    """The queue of one tunnel.

    wake: called when there is something to send and there was nothing before.
    shared_packet_bytes: the largest payload while another connection waits, below 4 MiB. It may be changed.
    alone_packet_bytes: the largest payload while no other connection waits, below 4 MiB.
    initial_credit_bytes: the first credit of each new connection, None if credit isn't counted. It may be changed.

    After a call of `batch` the queue gathers whole packets. Before it, each packet takes the queued bytes.
    """

    def __init__(
        self,
        wake: Callable[[], None],
        *,
        shared_packet_bytes: int = SHARED_PACKET_BYTES,
        alone_packet_bytes: int = ALONE_PACKET_BYTES,
    ) -> None:
        if not 0 < shared_packet_bytes <= alone_packet_bytes <= MAX_SENT_MESSAGE_BYTES - 64:
            raise ValueError("packets must have 1 byte to 4 MiB, and one alone be no smaller than a shared one")
        self.initial_credit_bytes: int | None = None
        self.shared_packet_bytes = shared_packet_bytes
        self.high_water_bytes = HIGH_WATER_BYTES  # of each outbound's queue, and may be changed
        self.closed = False
        self.queued_bytes = 0  # of all outbounds and the control packets
        self.control_bytes = 0
        self.outbounds: dict[int, Outbound] = {}
        self._wake = wake
        self._alone_bytes = alone_packet_bytes
        self._messages: deque[bytes] = deque()  # control packets, ahead of everything
        self._starting: deque[Outbound] = deque()
        self._going_on: deque[Outbound] = deque()
        self._ahead_bytes = 0  # that outbounds which begin have sent, less what the others have sent since
        self._backlogged = 0  # outbounds with something queued, those that are parked or held included
        self._batch_bytes = 0  # a whole packet, while batching
        self._timers: Timers | None = None
        self._tick: Any = None
        self._held: list[Outbound] = []  # and some that are held no more

    def batch(self, timers: Timers) -> None:
        """The peer counts packets and not bytes: gather whole ones of `alone_packet_bytes` from now on."""
        self._timers = timers
        self._batch_bytes = self.shared_packet_bytes = self._alone_bytes
        self.high_water_bytes = BATCHED_HIGH_WATER_BYTES

    def stop_batching(self) -> None:
        """Stop gathering, and release everything held. The sizes stay the same."""
        self._batch_bytes = 0
        self._cancel_tick()
        held, self._held = self._held, []
        for outbound in held:
            outbound._watched = False
            if outbound._place == _HELD:
                self._release(outbound)

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        """Return a new place for this connection. Raises ValueError if it has one already."""
        if conn_id in self.outbounds:
            raise ValueError(f"connection {conn_id} has an outbound already")
        credit_bytes = _UNLIMITED_BYTES if self.initial_credit_bytes is None else self.initial_credit_bytes
        outbound = Outbound(self, conn_id, pause, resume, credit_bytes)
        if not self.closed:
            self.outbounds[conn_id] = outbound
        return outbound

    def send(self, conn_id: int, code: int, data: bytes = b"", error_message: str = "") -> None:
        """Queue a small packet ahead of the data of other connections, and behind its connection's data (I2)."""
        if self.closed:
            return
        message = encode_packet(conn_id, code, data, error_message)
        own = self.outbounds.get(conn_id)
        if own is not None and own._items:
            own._control(message)
            return
        self._say(message)

    def give_credit(self, conn_id: int, increment_bytes: int) -> None:
        """Queue a WINDOW packet ahead of all data, its own connection's too, because that data may wait for credit."""
        if not self.closed:
            self._say(encode_packet(conn_id, ControlCode.WINDOW, window=increment_bytes))

    def announce(self, conn_id: int) -> None:
        """Queue an empty DATA packet ahead of all data. It opens this connection at a peer that doesn't know it."""
        if not self.closed:
            self._say(encode_packet(conn_id, ControlCode.DATA))

    def take_credit(self, conn_id: int, increment_bytes: int) -> bool:
        """The peer gave this connection credit. Returns False, and changes nothing, if the increment is not allowed.

        Credit for a connection without an outbound has no use. Such a connection has sent its last byte, or has ended.
        """
        outbound = self.outbounds.get(conn_id)
        if outbound is None:
            return True
        if not 0 < increment_bytes <= MAX_INCREMENT_BYTES - outbound.credit_bytes:
            return False
        outbound.credit_bytes += increment_bytes
        if outbound._place == _PARKED:
            outbound._place = _GOING_ON
            self._going_on.append(outbound)
            self._wake()
        return True

    def _say(self, message: bytes) -> None:
        self._messages.append(message)
        self.control_bytes += len(message)
        self.queued_bytes += len(message)
        self._wake()

    def fill(self, writer: PacketWriter) -> bool:
        """Move the next packet to the writer. Returns False if nothing waits."""
        if self._messages:
            message = self._messages.popleft()
            self.control_bytes -= len(message)
            self.queued_bytes -= len(message)
            writer.append(message)
            return True
        while self._starting or self._going_on:
            most = self.shared_packet_bytes * _PACKETS_AHEAD
            begins = bool(self._starting) and (self._ahead_bytes < most or not self._going_on)
            outbound = self._starting.popleft() if begins else self._going_on.popleft()
            if not outbound._items:
                outbound._place = _IDLE
                continue
            if outbound._lacks_credit():
                outbound._place = _PARKED
                continue
            if self._batch_bytes and self._gathers(outbound):
                self._hold(outbound)
                continue
            before = outbound.queued_bytes
            outbound._take(writer, self._alone_bytes if self._backlogged == 1 else self.shared_packet_bytes)
            taken = before - outbound.queued_bytes
            self.queued_bytes -= taken
            if 0 < taken < self._batch_bytes:
                self._count(outbound)
            if begins:
                self._ahead_bytes = min(self._ahead_bytes + taken, most)
            else:
                self._ahead_bytes = max(self._ahead_bytes - taken * _PACKETS_AHEAD, 0)
            if not outbound._items:
                self._backlogged -= 1
            if outbound._lacks_credit():
                outbound._place = _PARKED
            elif outbound._items or not outbound.finished:
                outbound._place = _GOING_ON
                self._going_on.append(outbound)
            else:
                outbound._place = _IDLE
                self._forget(outbound)
            if outbound.paused and outbound.queued_bytes < self._low_mark():
                outbound.paused = False
                if not outbound.finished:
                    outbound.resume()  # I3
            return True
        return False

    def drop(self, conn_id: int) -> None:
        """Forget a connection that has ended for its peer, with its queue. Does nothing if it has no outbound."""
        outbound = self.outbounds.get(conn_id)
        if outbound is not None:
            outbound.abort()

    def close(self) -> None:
        """Drop everything; from now on all calls are silently ignored."""
        self.closed = True
        for outbound in self.outbounds.values():
            outbound._items.clear()
            outbound.queued_bytes = 0
        self.outbounds.clear()
        self._held.clear()
        self._cancel_tick()
        self._messages.clear()
        self._starting.clear()
        self._going_on.clear()
        self.queued_bytes = self.control_bytes = self._backlogged = 0

    def _grown(self, outbound: Outbound, size: int) -> None:
        """An item was appended to the outbound's queue."""
        self.queued_bytes += size
        if outbound._place == _HELD:
            if outbound.finished or outbound.queued_bytes >= self._batch_bytes:
                self._release(outbound)
            return
        if len(outbound._items) > 1:
            return  # the sender has been woken already
        self._backlogged += 1
        if outbound._place == _IDLE:
            outbound._place = _STARTING
            self._starting.append(outbound)
        self._wake()

    def _drop(self, outbound: Outbound) -> None:
        if outbound._items:
            self._backlogged -= 1
            self.queued_bytes -= outbound.queued_bytes
            outbound._items.clear()
            outbound.queued_bytes = 0
        self._forget(outbound)

    def _forget(self, outbound: Outbound) -> None:
        """The connection may not come back. Its place in a list, if it has one, is left at its next turn."""
        if self.outbounds.get(outbound.conn_id) is outbound:
            del self.outbounds[outbound.conn_id]

    # -- how much may wait

    def _mark(self) -> int:
        """Queued bytes of one outbound past which its source is asked to pause."""
        if self._batch_bytes and self.queued_bytes > _CROWDED_BYTES:
            return _UNCROWDED_BYTES
        return self.high_water_bytes

    def _low_mark(self) -> int:
        """The queued bytes below which a paused source resumes. While batching it resumes early, to gather a packet."""
        return self.high_water_bytes // 2 if self._batch_bytes else self.high_water_bytes // 4

    # -- batching

    def _gathers(self, outbound: Outbound) -> bool:
        """Whether this outbound, whose turn it is, waits for a whole packet."""
        if outbound._released:
            outbound._released = False
            return False
        if outbound.finished or outbound.paused or outbound.queued_bytes >= self._batch_bytes:
            return False
        if outbound.packets < _FREE_PACKETS or isinstance(outbound._items[0], tuple):
            return False
        self._give_back(outbound)
        return outbound.packets >= _FREE_PACKETS

    def _count(self, outbound: Outbound) -> None:
        """It has sent a packet that was not whole."""
        if not outbound.packets and self._timers is not None:
            outbound._counted_s = self._timers.time()
        outbound.packets += 1

    def _give_back(self, outbound: Outbound) -> None:
        assert self._timers is not None
        more = int((self._timers.time() - outbound._counted_s) / _PACKET_S)
        outbound._counted_s += more * _PACKET_S
        outbound.packets = max(outbound.packets - more, 0)

    def _hold(self, outbound: Outbound) -> None:
        assert self._timers is not None
        outbound._place = _HELD
        outbound._held_s = self._timers.time()
        outbound._seen_bytes = outbound.queued_bytes
        if not outbound._watched:
            outbound._watched = True
            self._held.append(outbound)
        self._start_tick(_TICK_S)

    def _release(self, outbound: Outbound) -> None:
        """To its next turn, which it takes with whatever is queued then."""
        outbound._released = True
        outbound._place = _GOING_ON
        self._going_on.append(outbound)
        self._wake()

    def _start_tick(self, delay_s: float) -> None:
        if self._tick is None and self._timers is not None:
            self._tick = self._timers.call_later(delay_s, self._on_tick)

    def _cancel_tick(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def _on_tick(self) -> None:
        """Let go of those whose source is quiet, or that were held long, while they have packets left."""
        assert self._timers is not None
        self._tick = None
        now_s = self._timers.time()
        delay_s = _SLOW_TICK_S
        held, self._held = self._held, []
        for outbound in held:
            outbound._watched = False
            if outbound._place != _HELD:
                continue
            if not outbound._items:  # dropped
                outbound._place = _IDLE
                continue
            self._give_back(outbound)
            quiet = outbound.queued_bytes == outbound._seen_bytes
            if outbound.packets < _MOST_PACKETS:
                if quiet or now_s - outbound._held_s >= _HELD_S:
                    self._release(outbound)
                    continue
                delay_s = _TICK_S
            outbound._seen_bytes = outbound.queued_bytes
            outbound._watched = True
            self._held.append(outbound)
        if self._held:
            self._start_tick(delay_s)
