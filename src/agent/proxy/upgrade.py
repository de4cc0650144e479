"""Relays bytes both ways between a client and its target, after a 101 or a CONNECT's 200. Each direction ends alone.

    both open ──client's end──► target → client only ──target's end──► done
        └──────target's end───► client → target only ──client's end──► done

A direction's end becomes a half-close if the carrier has one. TLS on asyncio has none. There the connection closes once
the other direction has been silent for `half_closed_idle_s`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import Party, TargetError
from .client_side import ClientSide
from .clock import NEVER, Clock
from .pieces import Piece
from .upstream_stream import UpstreamStream

if TYPE_CHECKING:
    from ..config.limits import ProxyLimits

__all__ = ["Upgraded"]

logger = logging.getLogger(__name__)


class Upgraded:
    """Takes the place of the exchange. It is the user of its stream (`upstream_stream.StreamUser`).

    party: who is at the other end of the stream. deadline: when a half-closed connection that stays silent ends.
    idle_s: silence of both sides that ends the connection, NEVER for no limit.
    """

    __slots__ = (
        "_client",
        "_client_ended",
        "_clock",
        "_has_moved",
        "_idle_at",
        "_idle_s",
        "_limits",
        "_party",
        "_target_ended",
        "_upstream",
        "deadline",
    )

    def __init__(
        self,
        client: ClientSide,
        upstream: UpstreamStream,
        party: Party,
        clock: Clock,
        limits: ProxyLimits,
        idle_s: float = NEVER,
    ) -> None:
        self.deadline = NEVER
        self._client = client
        self._clock = clock
        self._limits = limits
        self._party: Party = party
        self._upstream: UpstreamStream | None = upstream
        self._client_ended = False
        self._target_ended = False
        self._idle_s = idle_s
        self._idle_at = NEVER
        self._has_moved = True  # since the last sweep

    # -- from the client

    def client_bytes(self, data: Piece) -> None:
        """Pass the client's bytes on, untouched."""
        self._has_moved = True
        if self._upstream is not None:
            self._upstream.write(data)

    def client_eof(self) -> bool:
        """The client sends no more. Returns whether its connection stays open for what it still receives."""
        self._client_ended = True
        if self._target_ended or self._upstream is None:
            self._end()
            return False
        if not self._upstream.write_eof():
            self._watch_silence()
        return True

    def _watch_silence(self) -> None:
        self.deadline = self._clock.later(self._limits.half_closed_idle_s)

    def end_if_left(self) -> None:
        """At a drain: end now where all that is awaited is the silence of a target whose client has left."""
        if self.deadline != NEVER:
            self._end()

    def client_lost(self) -> None:
        """Close the target's connection at once, because the client left."""
        self._drop_upstream()

    def pause_receiving(self) -> None:
        """The client takes no more for now."""
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_receiving(self) -> None:
        """The client takes more."""
        if self._upstream is not None:
            self._upstream.resume_reading()

    def look_at_deadlines(self, now: float) -> None:
        """Called by the sweep, with the clock's time."""
        if now >= self.deadline:
            self.deadline = NEVER
            limit = "limits.half_closed_idle_s"
            extra = {**self._client.log_fields(), "stage": "upgraded", "fault": "client", "limit": limit}
            logger.info(f"the client has sent its end and the {self._party} sends nothing", extra=extra)
            self._end()
        elif self._upstream is not None and self._upstream.takes_nothing(now):
            limit = "limits.write_timeout_s"
            extra = {**self._client.log_fields(), "stage": "upgraded", "fault": self._party, "limit": limit}
            reason = f"the {self._party} takes nothing"
            logger.warning(reason, extra=extra)
            self._cut(reason, limit)
        elif self._target_ended and self._upstream is not None and self._upstream.is_gone():
            self._drop_upstream()
            self.upstream_lost(ConnectionResetError())
        elif self._idle_s != NEVER:
            self._look_at_silence(now)

    def _look_at_silence(self, now: float) -> None:
        """End a tunnel in which both sides are silent. A side that takes nothing is not idle."""
        upstream = self._upstream
        if self._has_moved or self._client.writing_paused or (upstream is not None and upstream.writing_paused):
            self._has_moved = False
            self._idle_at = now + self._idle_s
        elif now >= self._idle_at:
            self._idle_at = NEVER
            limit = "limits.connect_idle_s"
            extra = {**self._client.log_fields(), "stage": "upgraded", "fault": "client", "limit": limit}
            logger.info(f"neither the client nor the {self._party} sends anything", extra=extra)
            self._end()

    # -- from the target

    def tunnel_data(self, data: Piece) -> None:
        """Pass the target's bytes on, untouched."""
        self._has_moved = True
        if self.deadline != NEVER:
            self._watch_silence()
        self._client.write(data)

    def tunnel_eof(self) -> bool:
        """The target sends no more. Returns whether its connection stays open for what it still receives."""
        self._target_ended = True
        failure = self._upstream.failure if self._upstream is not None else None
        if failure is not None:
            self._lose(failure)
            return False
        if self._client_ended or not self._client.write_eof():
            self._end()
            return False
        return True

    def upstream_lost(self, error: Exception | None) -> None:
        """Handle the end of the connection to the target: in order (by TLS both directions end), or by a failure."""
        self._upstream = None
        if error is None:
            self._end()
            return
        extra = {**self._client.log_fields(), "stage": "upgraded", "fault": self._party}
        reason = f"the connection to the {self._party} was lost"
        logger.warning(reason, extra=extra)
        self._client.abort_response(reason, "")

    def pause_sending(self) -> None:
        """The target takes no more for now."""
        self._client.pause_request()

    def resume_sending(self) -> None:
        """The target takes more."""
        self._client.resume_request()

    # -- the end

    def _lose(self, failure: TargetError) -> None:
        """Cut the client's connection, because the target's ended by a known failure."""
        extra = {**self._client.log_fields(), "stage": "upgraded", "fault": failure.fault}
        logger.warning(failure.reason, extra=extra)
        self._cut(failure.reason)

    def _cut(self, reason: str, limit: str = "") -> None:
        self._drop_upstream()
        self._client.abort_response(reason, limit)

    def _end(self) -> None:
        """Both directions are through."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()
        self._client.tunnel_done()

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
