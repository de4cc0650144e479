"""Joins two transports: bytes, back-pressure, half-closes and failures pass from each to the other.

    one ends its direction  ──► the other one gets the end, and the opposite direction stays open
    both have ended         ──► both close
    one is lost             ──► the other one is reset, since bytes may be missing

TLS has no half-close. If a local end has ended there, its FIN stays here. The tunnel closes after `HALF_CLOSED_IDLE_S`
without a byte from the target. The hub has the same rule (`limits.half_closed_idle_s`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import cast

from .carrier import HubEnd

__all__ = ["Joint", "Side", "reset_when_closed"]

HALF_CLOSED_IDLE_S = 10.0


def reset_when_closed(sock: socket.socket | None, resets: bool) -> None:
    """Have the close of a TCP socket send a reset instead of a FIN, also if the process is killed. Or turn that off."""
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):  # the socket is closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", resets, 0))


class Side(asyncio.Protocol):
    """One end of a joint, as the protocol of its transport. `attach` comes before any event.

    can_half_close: the transport can end one direction alone.
    """

    def __init__(self, joint: Joint) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.other: Side = self
        self.can_half_close = True
        self.has_ended = False
        self.is_lost = False
        self._joint = joint
        self._socket: socket.socket | None = None

    def attach(self, transport: asyncio.BaseTransport) -> None:
        """Use this transport. Until `close`, its end is a reset, also if the process is killed."""
        self.transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")  # a closed TLS transport has lost it
        reset_when_closed(self._socket, True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.attach(transport)
        self._joint.made()

    def data_received(self, data: bytes) -> None:
        other = self.other
        if not other.is_lost and not other.transport.is_closing():
            other.transport.write(data)
        if self._joint.timer is not None:
            self._joint.watch_silence()

    def eof_received(self) -> bool:
        self.has_ended = True
        self._joint.ended(self)
        return self.can_half_close

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._joint.lost(self, exc)

    def close(self) -> None:
        """Close the transport in order, behind what is unsent."""
        reset_when_closed(self._socket, False)
        self.transport.close()

    def reset(self) -> None:
        """Close the transport at once, by a reset if it has a TCP socket."""
        reset_when_closed(self._socket, True)
        self.transport.abort()

    def pause_writing(self) -> None:
        if not self.other.is_lost and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if not self.other.is_lost and not self.other.transport.is_closing():
            self.other.transport.resume_reading()


class Joint:
    """A local end and the hub's end of one tunnel.

    hub_end: open. Give `local` to the local transport as its protocol.

    Attributes:
        local: the protocol of the local end.
        done: True after both ends have closed in order, False after a loss.
    """

    def __init__(self, hub_end: HubEnd) -> None:
        self.local, self._hub = Side(self), Side(self)
        self.local.other, self._hub.other = self._hub, self.local
        self._hub.attach(hub_end.transport)
        self._hub.can_half_close = hub_end.can_half_close
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle | None = None
        self._hub_end = hub_end
        self._is_cut = False

    def made(self) -> None:
        """The local end is connected."""
        self._hub_end.give_to(self._hub)

    def ended(self, side: Side) -> None:
        """One end sends no more."""
        other = side.other
        if other.is_lost:
            return
        if other.has_ended:
            for each in (side, other):
                each.close()
        elif other.can_half_close:
            other.transport.write_eof()
        elif side is self.local:
            self.watch_silence()

    def watch_silence(self) -> None:
        """Close the tunnel if the target sends nothing from now on."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(HALF_CLOSED_IDLE_S, self._hub.close)

    def lost(self, side: Side, error: Exception | None) -> None:
        """One end is closed."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        other = side.other
        # By TLS the end of one direction ends both. So does the close of a local end that has sent everything.
        in_order = error is None and not self._is_cut and (side.has_ended or self.local.has_ended)
        if not other.is_lost:
            self._is_cut = not in_order
            if in_order:
                other.close()
            else:
                other.reset()
        elif not self.done.done():
            self.done.set_result(in_order and not self._is_cut)

    def abort(self) -> None:
        """End both directions at once."""
        self._is_cut = True
        for side in (self.local, self._hub):
            if side.transport is not None and not side.is_lost:
                side.reset()
