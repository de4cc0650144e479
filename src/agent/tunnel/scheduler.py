"""Whose packet goes next: deficit round robin over the connections of one tunnel, and how much goes into a packet.

The bytes of a connection can be cut anywhere, so a connection's turn is exactly one packet of at most its quantum, and
the deficit that the algorithm's name carries from turn to turn is always nothing (M. Shreedhar, G. Varghese: Efficient
Fair Queuing using Deficit Round Robin, 1995). Two lists, as in RFC 8290, section 4: a connection that begins to send
takes one turn ahead of those that have been sending, so that small answers don't queue behind bulk; and it passes
through the second list before it can do so again, so that many small ones can't starve the bulk. Nor can many new ones,
each of which answers once: for what the others send, those that begin may be ahead by _PACKETS_AHEAD times as much.

            write                  turn taken
    idle ───────────► starting ───────────────► going on ◄──┐
      ▲                                          ▲ │  │     │ more to send
      └────────── nothing left at its turn ──────┼─┘  └─────┘
                                  credit came    │    │ data next, and no credit for it (`window` only)
                                                 └── parked

Invariants
  I1  An outbound is in at most one list; with something queued in exactly one, or parked.
  I2  Bytes, and the control packets among them, leave in the order they were given.
  I3  The books are right before `pause` or `resume` is called: either may write, finish or abort at once.
  I4  No outbound sends a byte of DATA beyond its credit; control packets need none.

Cython compiles this file as it stands, with the types of `scheduler.pxd` (agent/twins.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .framing import FrameWriter
from .packet import MAX_INCREMENT_BYTES, MAX_SENT_MESSAGE_BYTES, ControlCode, data_field, encode_packet
from .sizes import ALONE_PACKET_BYTES, HIGH_WATER_BYTES, SHARED_PACKET_BYTES

__all__ = ["Outbound", "Scheduler"]

_UNLIMITED_BYTES = 2**62  # the credit of a connection where credit isn't counted
_IDLE, _STARTING, _GOING_ON, _PARKED = range(4)
_PACKETS_AHEAD = 4  # so a fifth of the link is left to those that have been sending


class Outbound:
    """One connection's place in the queue, from `Tunnel.outbound`; forgotten after `finish` or `abort`."""

    __slots__ = ("_field", "_items", "_place", "_scheduler", "conn_id", "credit_bytes", "finished", "pause", "paused",
                 "queued_bytes", "resume")  # fmt: skip

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

    def write(self, data: bytes | memoryview) -> None:
        """Queue the connection's next bytes. data: bytes, or a view of bytes nobody writes into; kept by reference.

        Small writes of one turn of the event loop share a packet. Calls `pause` when the queue passes the scheduler's
        `high_water_bytes`. Dropped silently once the session is lost; RuntimeError after `finish` or `abort`.
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
        if self.queued_bytes > self._scheduler.high_water_bytes and not self.paused:
            self.paused = True
            self.pause()

    def finish(self, code: int | None = None, error_message: str = "") -> None:
        """Say how the connection ended, after what is queued: a packet with `code`, or nothing. A second call is none.

        The outbound is forgotten once that has gone; `resume` is not called any more.
        """
        if self.finished:
            return
        self.finished = True
        if code is not None:
            self._control(encode_packet(self.conn_id, code, b"", error_message))
        elif not self._items:
            self._scheduler._forget(self)

    def abort(self) -> None:
        """Drop what is queued, and be forgotten. Of a packet that has begun to go out the rest still goes."""
        if not self.finished or self._items:
            self.finished = True
            self._scheduler._drop(self)

    def _control(self, message: bytes) -> None:
        if not self._scheduler.closed:
            self._items.append((message,))
            self._scheduler._grown(self, 0)

    def _lacks_credit(self) -> bool:
        return self.credit_bytes <= 0 and bool(self._items) and not isinstance(self._items[0], tuple)

    def _take(self, writer: FrameWriter, limit: int) -> None:
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
    """The queue of one tunnel. wake: called whenever there is something to send where there was nothing.

    shared_packet_bytes, alone_packet_bytes: the largest payload of a packet while another connection waits, and while
    none does; both below 4 MiB.
    initial_credit_bytes: what each new connection may send at first, None where credit isn't counted; may be changed,
    as shared_packet_bytes may.
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
        self.high_water_bytes = HIGH_WATER_BYTES  # of each outbound's queue; may be changed, too
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
        self._backlogged = 0  # outbounds with something queued, those that are parked included

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        """A place for this connection. ValueError where it has one already."""
        if conn_id in self.outbounds:
            raise ValueError(f"connection {conn_id} has an outbound already")
        credit_bytes = _UNLIMITED_BYTES if self.initial_credit_bytes is None else self.initial_credit_bytes
        outbound = Outbound(self, conn_id, pause, resume, credit_bytes)
        if not self.closed:
            self.outbounds[conn_id] = outbound
        return outbound

    def send(self, conn_id: int, code: int, data: bytes = b"", error_message: str = "") -> None:
        """Queue a small packet ahead of the data of other connections, and behind that of its own (I2)."""
        if self.closed:
            return
        message = encode_packet(conn_id, code, data, error_message)
        own = self.outbounds.get(conn_id)
        if own is not None and own._items:
            own._control(message)
            return
        self._say(message)

    def give_credit(self, conn_id: int, increment_bytes: int) -> None:
        """Queue a WINDOW packet ahead of all data, of its own connection too: what waits there may wait for credit."""
        if not self.closed:
            self._say(encode_packet(conn_id, ControlCode.WINDOW, window=increment_bytes))

    def announce(self, conn_id: int) -> None:
        """Queue an empty DATA packet ahead of all data: it opens this connection for a peer that hasn't heard of it."""
        if not self.closed:
            self._say(encode_packet(conn_id, ControlCode.DATA))

    def take_credit(self, conn_id: int, increment_bytes: int) -> bool:
        """The peer gave this connection credit. Returns False, and changes nothing, where it may not be so much.

        Credit for a connection without an outbound is of no use: it has sent its last byte, or is over.
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

    def fill(self, writer: FrameWriter) -> bool:
        """Move the next packet to the writer; False where nothing waits."""
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
            before = outbound.queued_bytes
            outbound._take(writer, self._alone_bytes if self._backlogged == 1 else self.shared_packet_bytes)
            taken = before - outbound.queued_bytes
            self.queued_bytes -= taken
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
            if outbound.paused and outbound.queued_bytes < self.high_water_bytes // 4:
                outbound.paused = False
                if not outbound.finished:
                    outbound.resume()  # I3
            return True
        return False

    def drop(self, conn_id: int) -> None:
        """The connection is over for its peer: forget it, with what is queued. Nothing where it has no outbound."""
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
        self._messages.clear()
        self._starting.clear()
        self._going_on.clear()
        self.queued_bytes = self.control_bytes = self._backlogged = 0

    def _grown(self, outbound: Outbound, size: int) -> None:
        """An item was appended to the outbound's queue."""
        self.queued_bytes += size
        if len(outbound._items) > 1:
            return  # whoever sends knows already
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
