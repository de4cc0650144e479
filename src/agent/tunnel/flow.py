"""The path of every packet through a session, in both directions. Rare events are in `session`.

    http2 ──► MessageReader ──► PacketFlow ──► receiver
               messages, packets    which connection it is for
    http2 ◄── PacketWriter ◄── PacketFlow ◄── Scheduler ◄── outbounds
               messages                   whose turn it is

Cython compiles this same file, with the types of `flow.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from ..errors import WireError
from ..http2.errors import ErrorCode
from ..http2.head_rules import Headers
from ..http2.stream import Http2Stream
from .features import CLOSE, WINDOW
from .messages import MessageRefused, PacketWriter
from .packet import ControlCode, PacketReceiver
from .scheduler import Scheduler

__all__ = ["NOBODY", "PacketFlow", "TunnelSide"]

_MAX_CONTROL_BYTES = 4 * 2**20
"""The limit of waiting control packets. Above it the session ends, because the peer reads no replies to its packets."""

logger = logging.getLogger(__name__)


class TunnelSide(Protocol):
    """The role's own part of a session: packets about the tunnel itself, and the end of the call."""

    def tunnel_packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        """A packet that belongs to no connection: an id of 0 or less."""

    def end_call(self) -> None:
        """End the call in order: all connections have ended, and nothing is left to send."""

    def headers_received(self, headers: Headers, ended: bool) -> None:
        """The response's head."""

    def trailers_received(self, headers: Headers) -> None:
        """The call ended with these trailers."""

    def stream_ended(self, in_message: bool) -> None:
        """The peer ended its side of the stream without trailers."""

    def stream_lost(self, error: Exception) -> None:
        """The stream is lost."""

    def message_refused(self, error: MessageRefused) -> None:
        """The peer's message is too long, or there is no room for it: end the call (hub's side)."""


class _Nobody:
    """The receiver before there is one, and after the session is lost."""

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        pass

    def tunnel_lost(self, error: Exception | None) -> None:
        pass


NOBODY: PacketReceiver = _Nobody()


class PacketFlow:
    """A stream's packets in, and the scheduler's out: the half of `Tunnel`, a subclass, that every packet passes."""

    def __init__(self, side: TunnelSide) -> None:
        self.features: frozenset[str] = frozenset()
        self.packets_received = 0
        self.packets_sent = 0
        self.unknown_packets = 0  # of a code not known here: ignored (wire.md, "unknown code")
        self.receiver: PacketReceiver = NOBODY
        self.lost = False
        self._side = side
        self._stream: Http2Stream | None = None
        self._scheduler = Scheduler(self._wake)
        self._afterwards: Callable[[], None] | None = None

    # ------------------------------------------------------------ what connections use

    def send(self, conn_id: int, code: int, data: bytes = b"", error_message: str = "") -> None:
        """Send a small packet ahead of the queued data of other connections, and behind its connection's data."""
        if self.lost:
            return
        self._scheduler.send(conn_id, code, data, error_message)
        if self._scheduler.control_bytes > _MAX_CONTROL_BYTES and self._stream is not None:
            rule = f"tunnel: {_MAX_CONTROL_BYTES} bytes of control packets wait for a peer that doesn't read"
            self._stream.connection.fail(WireError(rule, http2_code=ErrorCode.ENHANCE_YOUR_CALM))

    def fail(self, conn_id: int, error: WireError) -> None:
        """End one connection because the peer broke a rule. The peer and the receiver each get an ERROR packet.

        The connection's queued bytes are dropped.
        """
        logger.warning("the peer broke a rule: its connection ends", extra={"conn_id": conn_id, "reason": error.rule})
        self._scheduler.drop(conn_id)
        self.send(conn_id, ControlCode.ERROR, b"", error.rule)
        self.receiver.packet_received(conn_id, ControlCode.ERROR, b"", error.rule)

    # ------------------------------------------------------------ what the stream calls

    def packet(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        self.packets_received += 1
        number, kind = conn_id, code  # as C integers
        if number > 0 and (0 <= kind <= 1 or (kind == 3 and CLOSE in self.features)):
            self.receiver.packet_received(conn_id, code, data, error_message)
            if kind == 1:
                self._scheduler.drop(number)  # even if no receiver knows this connection
        elif number <= 0 and 0 <= kind <= 2:
            self._side.tunnel_packet(conn_id, code, data, error_message)
        else:
            self._ignore(conn_id, code)

    def credit(self, conn_id: int, increment_bytes: int) -> None:
        self.packets_received += 1
        if conn_id <= 0 or WINDOW not in self.features:
            self._ignore(conn_id, ControlCode.WINDOW)
        elif not self._scheduler.take_credit(conn_id, increment_bytes):
            self.fail(conn_id, WireError(f"window: an increment of {increment_bytes} bytes is zero or too large"))

    def fill(self, writer: PacketWriter) -> bool:
        if not self._scheduler.fill(writer):
            if self._afterwards is None:
                return False
            action, self._afterwards = self._afterwards, None
            action()
            if not self._scheduler.fill(writer):
                return False
        self.packets_sent += 1
        return True

    def _ignore(self, conn_id: int, code: int) -> None:
        self.unknown_packets += 1
        logger.debug("a packet of a code not known here was ignored", extra={"conn_id": conn_id, "code": code})

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.wake()
