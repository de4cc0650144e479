"""A tunnel: one gRPC call between an agent and a hub, for the code that carries its connections.

The orderly end with `goaway` (wire.md, "Extensions"). Only hubs open connections, so a DRAIN is always about the hub's
ids:

    agent   DRAIN ──────►  hub   opens nothing further, and sends its own DRAIN after every id that it has opened
    agent  ◄────── DRAIN   hub   from here on, a new id is an error of that connection, which gets ERROR
    agent   END_STREAM ──► hub   after the last connection, and then the hub ends the call with OK

A hub may also begin with its DRAIN, and the agent's DRAIN is the reply. Each side sends DRAIN once, and ignores a
second one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from ..errors import WireError
from ..http2.head_rules import Headers
from ..http2.socket_options import FAR_S
from ..http2.stream import Http2Stream
from .features import GOAWAY, WINDOW
from .flow import NOBODY, PacketFlow, TunnelSide
from .liveness import Liveness
from .messages import MessageReader, MessageRefused
from .packet import ControlCode, PacketError, PacketReceiver
from .round_trip import RoundTrip
from .scheduler import Outbound
from .sizes import CREDITED_HIGH_WATER_BYTES, CREDITED_PACKET_BYTES
from .window import INITIAL_WINDOW_BYTES, ReceiveWindow, WindowBudget

__all__ = ["Role", "Tunnel", "TunnelSide"]

Role = Literal["agent", "hub"]

_MAX_BAD_PACKETS = 100
"""The most malformed packets. Each closes its connection and is logged. One more closes the session."""

logger = logging.getLogger(__name__)


class Tunnel(PacketFlow):
    """One session. Its connections write through `outbound`, and the session's receiver gets their packets.

    role: this end, "agent" or "hub".
    peername: the other end's address.
    features: the extensions of both sides. With `window` each connection has a `receive_window`.
    liveness: the hub's watch over the agent's connection, None at the agent.
    windows: the budget shared with other sessions.
    """

    def __init__(self, role: Role, side: TunnelSide, windows: WindowBudget | None = None) -> None:
        super().__init__(side)
        self.role: Role = role
        self.bad_packets = 0
        self.windows = windows or WindowBudget()
        self.drain_sent = False  # `goaway`: this side has sent DRAIN
        self.drain_received = False  # `goaway`: the peer has sent DRAIN
        self.liveness: Liveness | None = None  # the hub's watch over the connection, None at the agent
        self._round_trip = RoundTrip()
        self._measuring = False  # a PING is on its way
        self._is_far = False  # the kernel sizes the receive queue

    # ------------------------------------------------------------ what connections use

    @property
    def peername(self) -> Any:
        """The peer's address as asyncio gives it, or None."""
        return self.get_extra_info("peername")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The connection's, as asyncio's transports give it: `ssl_object`, `peercert`, `sockname`, …"""
        return default if self._stream is None else self._stream.connection.extra_info(name, default)

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        """This connection's place in the queue. conn_id: 1 to 2^63-1.

        pause is called when its queue exceeds 256 KiB, or 128 KiB with `window`, and resume below a quarter of that. An
        agent whose hub has no `window` pauses above 2 MiB and resumes below 1 MiB, since it gathers packets of 1 MiB.
        Raises ValueError if it has a place already.
        """
        return self._scheduler.outbound(conn_id, pause, resume)

    def receive_window(self, conn_id: int) -> ReceiveWindow | None:
        """The peer's credit on this connection, None without `window`. Close it with the connection."""
        if WINDOW not in self.features:
            return None
        return ReceiveWindow(
            lambda increment_bytes: self._scheduler.give_credit(conn_id, increment_bytes),
            self.windows,
            self._round_trip_of_data,
        )

    def exceeded(self, conn_id: int) -> None:
        """End a connection because its DATA exceeded the peer's credit."""
        self.fail(conn_id, WireError("window: DATA beyond the connection's credit"))

    def pause_reading(self) -> None:
        """Return no credit until `resume_reading`, so that the peer sends only the rest of its window.

        All connections of the tunnel stall meanwhile, so use it for a short while. At most the window (16 MiB) still
        arrives, and goes to the receiver as usual.
        """
        self._hold_credit(True)

    def resume_reading(self) -> None:
        """Give the credit back that was held."""
        self._hold_credit(False)

    def announce(self, conn_id: int) -> None:
        """Announce this connection to the peer before all later packets, above all before DRAIN.

        The announcement precedes all queued data, even the connection's own.
        """
        self._scheduler.announce(conn_id)

    @property
    def opens_no_more(self) -> bool:
        """Whether the hub has announced that it opens no further connections. Then a new id is an error."""
        return self.drain_sent if self.role == "hub" else self.drain_received

    def say_drain(self) -> None:
        """Send DRAIN once, ahead of queued data and behind announcements. For sessions with `goaway`."""
        if not self.drain_sent and GOAWAY in self.features:
            self.drain_sent = True
            self.send(0, ControlCode.DRAIN)

    def finish_when_sent(self) -> None:
        """Close the session in order, after all queued bytes. No connection may be open."""
        if not self.lost:
            self._when_empty(self._side.end_call)

    def is_closing(self) -> bool:
        """Whether the session is closed or closing, so that nothing sent now arrives."""
        return self.lost or self._scheduler.closed

    @property
    def bytes_buffered(self) -> int:
        """Bytes given to this tunnel that the kernel doesn't have yet."""
        if self._stream is None:
            return self._scheduler.queued_bytes
        below = self._stream.writer.pending + self._stream.connection.buffered_bytes
        return self._scheduler.queued_bytes + below

    @property
    def in_message(self) -> bool:
        """Whether a message of the peer is unfinished, so that an end of its stream now would truncate it."""
        reader = None if self._stream is None else self._stream.reader
        return isinstance(reader, MessageReader) and reader.in_message

    @property
    def open_outbounds(self) -> int:
        """Connections that have a place in the queue."""
        return len(self._scheduler.outbounds)

    # ------------------------------------------------------------ what its side uses

    def open(self, receiver: PacketReceiver) -> None:
        """Give the next packets to this receiver."""
        self.receiver = receiver

    def negotiated(self, features: frozenset[str]) -> None:
        """Both sides have named these. Called before the first packet from a peer that names any."""
        self.features = features
        if WINDOW in features:
            self._scheduler.stop_batching()
            self._scheduler.initial_credit_bytes = INITIAL_WINDOW_BYTES
            self._scheduler.shared_packet_bytes = CREDITED_PACKET_BYTES
            self._scheduler.high_water_bytes = CREDITED_HIGH_WATER_BYTES

    @property
    def round_trip_s(self) -> float:
        """The least round trip of the last seconds (`round_trip`)."""
        return self._round_trip.least_s

    def measured(self, round_trip_s: float) -> None:
        """Take the time of one round trip. It is an upper bound of the link's round trip."""
        self._round_trip.add(round_trip_s)
        if not self._is_far and self._stream is not None and self._round_trip.least_s > FAR_S:
            self._is_far = self._stream.connection.receive_from_afar()

    def measure(self) -> None:
        """Measure the round trip with a PING, one at a time. Only for peers with features, since others punish it."""
        if self._measuring or self._stream is None:
            return
        self._measuring = True
        asked_s = time.monotonic()

        def answered() -> None:
            self._measuring = False
            if not self.lost:
                self.measured(time.monotonic() - asked_s)

        self._stream.connection.ping(answered)

    def _round_trip_of_data(self) -> float:
        """The round trip, for a window through which data flows: measured again where the last sample is old."""
        if self._round_trip.is_stale:
            self.measure()
        return self._round_trip.least_s

    def attach(self, stream: Http2Stream) -> None:
        """Attach the call's stream, and send the bytes queued before."""
        self._stream = stream
        if self.role == "agent" and WINDOW not in self.features:  # until the hub names it, if ever
            self._scheduler.batch(asyncio.get_running_loop())
        if self._scheduler.queued_bytes:
            stream.wake()

    def drain(self, conn_id: int, code: int) -> None:
        """Send this packet after all queued bytes."""

        def send() -> None:
            self._scheduler.send(conn_id, code)

        self._scheduler.stop_batching()  # what is held must go first
        self._when_empty(send)

    def end_stream(self) -> None:
        """End this side of the stream and drop queued bytes. The peer's bytes still arrive."""
        if self._stream is not None:
            self._stream.finish()

    def end(self, trailers: Headers | None) -> None:
        """End this side of the stream: drop queued bytes, finish the current message, send these trailers."""
        self._scheduler.close()
        if self._stream is not None:
            self._stream.finish(trailers)

    def set_lost(self, error: Exception | None) -> None:
        """Report the closed session to the receiver, and drop everything. Later calls have no effect."""
        if self.lost:
            return
        self.lost = True
        self._scheduler.close()
        self._afterwards = None
        receiver, self.receiver = self.receiver, NOBODY
        receiver.tunnel_lost(error)

    def _hold_credit(self, held: bool) -> None:
        if self._stream is not None and self._stream.reader is not None:
            self._stream.reader.held = held
            self._stream.connection.return_credit()

    def _when_empty(self, action: Callable[[], None]) -> None:
        self._afterwards = action
        self._wake()

    # ------------------------------------------------------------ what the stream calls

    def bad_packet(self, error: PacketError) -> None:
        """Close the connection of a malformed packet, or the session if the connection is unknown."""
        self.bad_packets += 1
        if error.conn_id <= 0 or self.bad_packets > _MAX_BAD_PACKETS:
            raise error
        self.fail(error.conn_id, error)

    def headers_received(self, headers: Headers, ended: bool) -> None:
        self._side.headers_received(headers, ended)

    def informational_received(self, headers: Headers) -> None:
        """Ignore a 1xx, which no gRPC peer sends."""

    def trailers_received(self, headers: Headers) -> None:
        self._side.trailers_received(headers)

    def stream_ended(self) -> None:
        self._side.stream_ended(self.in_message)

    def stream_lost(self, error: Exception) -> None:
        self._side.stream_lost(error)

    def message_refused(self, error: MessageRefused) -> None:
        self._side.message_refused(error)
