"""A tunnel: one gRPC call between an agent and a hub, as those who carry its connections see it.

How it ends in order where `goaway` was negotiated (wire.md, "Extensions"). Only hubs open connections, so what a DRAIN
says is about the hub's ids, whoever says it first:

    agent   DRAIN ──────►  hub   opens no more; says so by its own DRAIN, behind every id that it has opened
    agent  ◄────── DRAIN   hub   an id that is new from here on is an error of that connection: it gets ERROR
    agent   END_STREAM ──► hub   when the last connection is over; the hub ends the call with OK

A hub that begins says its DRAIN unasked, and the agent's is the answer; the rest is the same. Each side says DRAIN
once, and takes a second one for none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from ..errors import WireError
from ..http2.heads import Headers
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
"""Each ends its connection and is logged; a peer that sends more has lost its place."""

logger = logging.getLogger(__name__)


class Tunnel(PacketFlow):
    """One session. role: which end this is. peername: the other's address. features: what both sides have named.
    liveness: whether the agent lives, where this is the hub's end of a connection.

    windows: shared with other sessions. Its connections write through `outbound`, and hear through the receiver that
    the session was opened with; with `window` each has a `receive_window` besides.
    """

    def __init__(self, role: Role, side: TunnelSide, windows: WindowBudget | None = None) -> None:
        super().__init__(side)
        self.role: Role = role
        self.bad_packets = 0
        self.windows = windows or WindowBudget()
        self.drain_sent = False  # `goaway`: we have said DRAIN
        self.drain_received = False  # `goaway`: so has the peer
        self.liveness: Liveness | None = None  # the hub's watch over the connection; the agent has none
        self._round_trip = RoundTrip()
        self._measuring = False  # a PING is on its way
        self._is_far = False  # the kernel sizes the receive queue

    # ------------------------------------------------------------ what connections use

    @property
    def peername(self) -> Any:
        """The peer's address as asyncio gives it, None where there is none."""
        return self.get_extra_info("peername")

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The connection's, as asyncio's transports give it: `ssl_object`, `peercert`, `sockname`, …"""
        return default if self._stream is None else self._stream.connection.extra_info(name, default)

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        """This connection's place in the queue. conn_id: 1 to 2^63-1.

        pause is called when its queue passes 256 KiB, or 128 where `window` was negotiated; resume when it falls below
        a quarter of that. An agent whose hub has no `window` pauses past 2 MiB and resumes below 1 MiB, for it gathers
        packets of 1 MiB. ValueError where it has a place already.
        """
        return self._scheduler.outbound(conn_id, pause, resume)

    def receive_window(self, conn_id: int) -> ReceiveWindow | None:
        """The credit that the peer has on this connection; None where credit isn't counted. To be closed with it."""
        if WINDOW not in self.features:
            return None
        return ReceiveWindow(
            lambda increment_bytes: self._scheduler.give_credit(conn_id, increment_bytes),
            self.windows,
            self._round_trip_of_data,
        )

    def exceeded(self, conn_id: int) -> None:
        """More DATA came on this connection than the peer had credit for: it ends."""
        self.fail(conn_id, WireError("window: DATA beyond the connection's credit"))

    def pause_reading(self) -> None:
        """Let the peer send no more than its window still allows: no credit goes back until `resume_reading`.

        All connections of the tunnel stand still then, so only for a short while. What arrives meanwhile is at most the
        window (16 MiB), and goes to the receiver as ever.
        """
        self._hold_credit(True)

    def resume_reading(self) -> None:
        """Give the credit back that was held."""
        self._hold_credit(False)

    def announce(self, conn_id: int) -> None:
        """Make sure that the peer hears of this connection before anything that is sent from now on, DRAIN above all.

        Ahead of the data that is queued, the connection's own too.
        """
        self._scheduler.announce(conn_id)

    @property
    def opens_no_more(self) -> bool:
        """Whether the hub has said that it opens no more connections here: then an id that is new is an error."""
        return self.drain_sent if self.role == "hub" else self.drain_received

    def say_drain(self) -> None:
        """Say DRAIN, once: ahead of queued data, and behind what was announced. For sessions with `goaway`."""
        if not self.drain_sent and GOAWAY in self.features:
            self.drain_sent = True
            self.send(0, ControlCode.DRAIN)

    def finish_when_sent(self) -> None:
        """End the session in order, once everything queued has gone. No connection may be open any more."""
        if not self.lost:
            self._when_empty(self._side.end_call)

    def is_closing(self) -> bool:
        """Whether the session is lost or about to be: nothing that is sent now arrives."""
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
        """Whether the peer has begun a message and not ended it: the end of its stream now would cut the message."""
        reader = None if self._stream is None else self._stream.reader
        return isinstance(reader, MessageReader) and reader.in_message

    @property
    def open_outbounds(self) -> int:
        """Connections that have a place in the queue."""
        return len(self._scheduler.outbounds)

    # ------------------------------------------------------------ what its side uses

    def open(self, receiver: PacketReceiver) -> None:
        """Hand what arrives from now on to this receiver."""
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
        """A round trip took so long: an upper bound of what the link takes."""
        self._round_trip.add(round_trip_s)
        if not self._is_far and self._stream is not None and self._round_trip.least_s > FAR_S:
            self._is_far = self._stream.connection.receive_from_afar()

    def measure(self) -> None:
        """Ask how long a round trip takes, by a PING; one at a time. For peers that name features: others punish it."""
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
        """The call's stream is there; what was queued before goes out."""
        self._stream = stream
        if self.role == "agent" and WINDOW not in self.features:  # until the hub names it, if ever
            self._scheduler.batch(asyncio.get_running_loop())
        if self._scheduler.queued_bytes:
            stream.wake()

    def drain(self, conn_id: int, code: int) -> None:
        """Send this packet when everything that is queued has gone."""

        def send() -> None:
            self._scheduler.send(conn_id, code)

        self._scheduler.stop_batching()  # what is held must go first
        self._when_empty(send)

    def end_stream(self) -> None:
        """End our side of the stream; what the peer sends still arrives. What is queued is dropped."""
        if self._stream is not None:
            self._stream.finish()

    def end(self, trailers: Headers | None) -> None:
        """End our side of the stream: drop what is queued, finish the message that has begun, say these trailers."""
        self._scheduler.close()
        if self._stream is not None:
            self._stream.finish(trailers)

    def set_lost(self, error: Exception | None) -> None:
        """The session is over: tell the receiver, drop everything. Called once; later calls do nothing."""
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
        """A packet that breaks the format ends its connection; the session, where it can't be said whose it is."""
        self.bad_packets += 1
        if error.conn_id <= 0 or self.bad_packets > _MAX_BAD_PACKETS:
            raise error
        self.fail(error.conn_id, error)

    def headers_received(self, headers: Headers, ended: bool) -> None:
        self._side.headers_received(headers, ended)

    def trailers_received(self, headers: Headers) -> None:
        self._side.trailers_received(headers)

    def stream_ended(self) -> None:
        self._side.stream_ended(self.in_message)

    def stream_lost(self, error: Exception) -> None:
        self._side.stream_lost(error)

    def message_refused(self, error: MessageRefused) -> None:
        self._side.message_refused(error)
