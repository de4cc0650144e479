"""Moves the peer's bytes of one connection into the carrier, in order and with a bound for a slow reader.

The tunnel is never stopped, since a base hub gives up once 1,000 packets wait (wire.md, "flow control"). So the bytes
that the carrier doesn't take wait here. Beyond a bound this one connection fails:

    packet ──► first_request ──► write to the carrier, while it takes bytes
                                  └► pieces that wait ──► written when it takes bytes again

The first packet holds a whole request and may be larger than that bound. It counts against a budget that all
connections of the agent share, not against the connection's bound. The bytes behind it count against their connection's
bound. Beyond an allowance for each connection, they also count against a second budget of the agent. So a few slow
targets can't fill the memory or block the other connections.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from .first_request import reframe

__all__ = ["SLICE_BYTES", "UNBOUNDED_BYTES", "ByteBudget", "FirstPacketBudget", "Inbound", "Writable"]

SLICE_BYTES = 256 * 1024
"""The most that one write ever gives a carrier: past its high-water mark it holds up to this much more."""
UNBOUNDED_BYTES: Final = 2**31 - 1
"""A limit for what something else bounds: the credit of the peer, or that the tunnel stops reading."""
_ALLOWANCE_BYTES = 1024 * 1024  # each connection may hold this much, whatever the others hold
_SMALL_BYTES = 4096  # smaller packets are copied before they wait, to free their receive buffer
_JOINED_BYTES = 64 * 1024  # small waiting packets are joined up to here, so that a million of them cost no objects


class Writable(Protocol):
    """The part of a carrier's transport that is used here."""

    def write(self, data: bytes | memoryview, /) -> None: ...
    def write_eof(self) -> None: ...
    def close(self) -> None: ...


class ByteBudget:
    """How many bytes may wait in memory, over all that take from it."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Count `size_bytes` as held. Returns False and counts nothing if that would pass the limit."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes


class FirstPacketBudget(ByteBudget):
    """The budget of first packets, over all connections and sessions of an agent.

    `later` is the budget of the bytes behind them. A packet that its carrier takes at once doesn't wait and doesn't
    count.

    limit_bytes: the limit of first packets, 512 MiB in wire.md, "first request".
    later_bytes: the limit of `later`.
    """

    def __init__(self, limit_bytes: int = 512 * 1024 * 1024, later_bytes: int = 512 * 1024 * 1024) -> None:
        super().__init__(limit_bytes)
        self.later = ByteBudget(later_bytes)


class Inbound:
    """The half of a connection that leads from the tunnel to the proxy.

    budget: the agent's budget.
    limit_bytes: how much may wait beyond the first packet.
    uncounted_bytes: a first packet up to this size isn't charged.
    reframes: the first packet is a base hub's and gets its framing.
    slice_bytes: the most bytes of one write to the carrier.

    Invariants: I1 bytes leave in the order of their arrival. I2 nothing is written while the carrier is paused. I3 each
    charge to a budget is given back exactly once, after the bytes have left or at `stop`.
    """

    __slots__ = (
        "_budget",
        "_carrier",
        "_charged_bytes",
        "_closes",
        "_eof",
        "_first_left_bytes",
        "_later_charged_bytes",
        "_limit_bytes",
        "_paused",
        "_pieces",
        "_slice_bytes",
        "_uncounted_bytes",
        "held_bytes",
        "reframes",
    )

    def __init__(
        self,
        carrier: Writable,
        budget: FirstPacketBudget,
        *,
        limit_bytes: int,
        uncounted_bytes: int,
        reframes: bool = False,
        slice_bytes: int = SLICE_BYTES,
    ) -> None:
        self._carrier = carrier
        self._budget = budget
        self._limit_bytes = limit_bytes
        self._uncounted_bytes = uncounted_bytes
        self._slice_bytes = min(SLICE_BYTES, slice_bytes)
        self._pieces: deque[bytes | memoryview | bytearray] = deque()  # a bytearray: small packets, joined
        self._first_left_bytes = -1  # the waiting bytes of the first packet, -1 before it arrives
        self._charged_bytes = 0
        self._later_charged_bytes = 0
        self._paused = False
        self._eof = False
        self._closes = False
        self.reframes = reframes
        self.held_bytes = 0
        """The bytes that wait here, with the first packet."""

    def feed(self, data: bytes | memoryview) -> str:
        """Hand on one packet's bytes (n >= 1, immutable, kept by reference).

        Returns "" if the packet was taken. Otherwise nothing of it was taken, since too much would wait for a slow
        reader. The caller must then fail the connection with the returned reason, which the client may see.
        """
        if self._first_left_bytes < 0:
            return self._feed_first(data)
        size = len(data)
        if not self._paused and not self._pieces and size <= self._slice_bytes:
            self._carrier.write(data)
            return ""
        later_bytes = self.held_bytes - self._first_left_bytes + size
        if later_bytes > self._limit_bytes:
            return f"the target takes less than its client sends: more than {self._limit_bytes} bytes wait for it"
        if not self._charge_later(later_bytes):
            return (
                "the target takes less than its client sends, and the agent's "
                f"{self._budget.later.limit_bytes} bytes for slow targets are used up"
            )
        self._hold(data)
        self._pump()
        return ""

    def _feed_first(self, data: bytes | memoryview) -> str:
        size = len(data)
        if size > self._uncounted_bytes:
            if not self._budget.take(size):
                return (
                    f"no memory left for a request of {size} bytes: the agent holds requests up to "
                    f"{self._budget.limit_bytes} bytes in all"
                )
            self._charged_bytes = size
        for piece in reframe(data) if self.reframes else (data,):
            self._pieces.append(piece)
            self.held_bytes += len(piece)
        self._first_left_bytes = self.held_bytes
        self._pump()
        return ""

    def _hold(self, data: bytes | memoryview) -> None:
        self.held_bytes += len(data)
        if len(data) >= _SMALL_BYTES:
            self._pieces.append(data)
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) < _JOINED_BYTES:
            last += data
        else:
            self._pieces.append(bytearray(data))

    def _pump(self) -> None:
        """Write what waits until the carrier has had enough."""
        pieces = self._pieces
        while pieces and not self._paused:  # I2: `write` may call `pause`
            piece = pieces.popleft()  # I1
            if len(piece) > self._slice_bytes:
                view = memoryview(piece)
                pieces.appendleft(view[self._slice_bytes :])
                piece = view[: self._slice_bytes]
            elif isinstance(piece, bytearray):
                piece = bytes(piece)
            size = len(piece)
            self.held_bytes -= size
            if self._first_left_bytes > 0:
                self._first_left_bytes -= size  # pieces of the first packet are never joined with later ones
                if not self._first_left_bytes:
                    self._give_back()
            self._carrier.write(piece)
        if self._later_charged_bytes:
            self._charge_later(self.held_bytes - max(self._first_left_bytes, 0))
        if not pieces:
            if self._closes:
                self._carrier.close()
            elif self._eof:
                self._eof = False
                self._carrier.write_eof()

    def _charge_later(self, later_bytes: int) -> bool:
        """Charge the budget for `later_bytes` behind the first packet. Returns False if the budget has too little."""
        due = max(later_bytes - _ALLOWANCE_BYTES, 0)
        more = due - self._later_charged_bytes
        if more > 0 and not self._budget.later.take(more):
            return False
        if more < 0:
            self._budget.later.give_back(-more)
        self._later_charged_bytes = due
        return True

    def _give_back(self) -> None:
        charged, self._charged_bytes = self._charged_bytes, 0  # I3
        self._budget.give_back(charged)

    @property
    def paused(self) -> bool:
        """Whether the carrier takes no more for now."""
        return self._paused

    def pause(self) -> None:
        """The carrier has had enough."""
        self._paused = True

    def resume(self) -> None:
        """The carrier takes bytes again."""
        self._paused = False
        self._pump()

    def finish(self) -> None:
        """Send the carrier the end of stream after the bytes that wait, since the peer sends no more (CLOSE)."""
        self._eof = True
        self._pump()

    def close(self) -> None:
        """Close the carrier after what waits: neither direction has more to come. Again is no error."""
        self._closes = True
        self._pump()

    def stop(self) -> None:
        """Drop the bytes that wait. Nothing is written from now on."""
        self._pieces.clear()
        self._eof = self._closes = False
        self.held_bytes = 0
        self._first_left_bytes = max(self._first_left_bytes, 0)
        self._give_back()
        self._charge_later(0)  # I3
        self._paused = True
