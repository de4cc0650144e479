"""After a 101: bytes both ways between a client and its target, each direction ended on its own.

    both open ──client's end──► target → client only ──target's end──► done
        └──────target's end───► client → target only ──client's end──► done

A direction's end is passed on as a half-close where the carrier has one. TLS on asyncio has none: there the connection
ends once the other direction has been silent for `half_closed_idle_s`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import Party, TargetError
from ..outcome import Stage
from .clock import NEVER

if TYPE_CHECKING:
    from .server import ClientConnection
    from .upstream import Upstream

__all__ = ["Upgraded"]

log = logging.getLogger(__name__)


class Upgraded:
    """Stands where the exchange stood. party: who is at the other end of `upstream`. deadline: when a half-closed
    connection that stays silent ends."""

    __slots__ = ("_client_ended", "_party", "_target_ended", "_upstream", "connection", "deadline")

    def __init__(self, connection: ClientConnection, upstream: Upstream, party: Party) -> None:
        self.connection = connection
        self.deadline = NEVER
        self._party: Party = party
        self._upstream: Upstream | None = upstream
        self._client_ended = False
        self._target_ended = False

    @property
    def stage(self) -> Stage:
        return Stage.UPGRADED

    @property
    def awaits_continue(self) -> bool:
        return False

    # -- from the client

    def client_bytes(self, data: bytes | memoryview) -> None:
        """Pass the client's bytes on, untouched."""
        if self._upstream is not None and self._upstream.transport is not None:
            self._upstream.transport.write(data)

    def client_eof(self) -> bool:
        """The client sends no more. Returns whether its connection stays open for what it still receives."""
        self._client_ended = True
        upstream = self._upstream
        if self._target_ended or upstream is None or upstream.transport is None:
            self._end()
            return False
        if upstream.transport.can_write_eof():
            upstream.transport.write_eof()
        else:
            self._watch_silence()
        return True

    def _watch_silence(self) -> None:
        proxy = self.connection.proxy
        self.deadline = proxy.clock.later(proxy.limits.half_closed_idle_s)

    def end_if_left(self) -> None:
        """At a drain: end now where all that is waited for is the silence of a target whose client has left."""
        if self.deadline != NEVER:
            self._end()

    def client_lost(self) -> None:
        """The client is gone: the target's connection ends at once."""
        self._drop_upstream()

    def pause_receiving(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()

    def resume_receiving(self) -> None:
        if self._upstream is not None:
            self._upstream.resume_reading()

    def look_at_deadlines(self, now: float) -> None:
        if now >= self.deadline:
            self.deadline = NEVER
            extra = {
                "conn_id": self.connection.conn_id,
                "stage": "upgraded",
                "fault": "client",
                "limit": "limits.half_closed_idle_s",
            }
            log.info(f"the client has sent its end and the {self._party} sends nothing", extra=extra)
            self._end()
        elif self._upstream is not None and self._upstream.takes_nothing(now):
            self._fail(f"the {self._party} takes nothing", "limits.write_timeout_s")

    # -- from the target

    def response_data(self, data: bytes | memoryview) -> None:
        """Pass the target's bytes on, untouched."""
        if self.deadline != NEVER:
            self._watch_silence()
        self.connection.write(data)

    def response_eof(self) -> bool:
        """The target sends no more. Returns whether its connection stays open for what it still receives."""
        self._target_ended = True
        if self._upstream is not None and self._upstream.failure is not None:
            self._lose(self._upstream.failure)
            return False
        if self._client_ended:
            self._end()
            return False
        if not self.connection.write_eof():
            self._end()
            return False
        return True

    def upstream_lost(self, error: Exception | None) -> None:
        """The connection to the target is gone: an orderly end where it had sent its own, else a failure."""
        self._upstream = None
        if error is None and (self._target_ended or self._client_ended):
            self._end()
            return
        if error is None:  # TLS ends both directions at once
            self._end()
            return
        extra = {"conn_id": self.connection.conn_id, "stage": "upgraded", "fault": self._party}
        log.warning(f"the connection to the {self._party} was lost", extra=extra)
        self.connection.cut(Stage.UPGRADED)

    def pause_sending(self) -> None:
        self.connection.pause_reading()

    def resume_sending(self) -> None:
        self.connection.resume_reading()

    # -- the end

    def _lose(self, failure: TargetError) -> None:
        """The connection to the target has ended by a failure that is known: the client's is cut."""
        extra = {"conn_id": self.connection.conn_id, "stage": "upgraded", "fault": failure.fault}
        log.warning(failure.reason, extra=extra)
        self._drop_upstream()
        self.connection.cut(Stage.UPGRADED)

    def _fail(self, reason: str, limit: str) -> None:
        """End it by force: nothing can be said any more."""
        extra = {"conn_id": self.connection.conn_id, "stage": "upgraded", "fault": self._party, "limit": limit}
        log.warning(reason, extra=extra)
        self._drop_upstream()
        self.connection.cut(Stage.UPGRADED)

    def _end(self) -> None:
        """Both directions are through."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.close()
        self.connection.upgraded_done()

    def _drop_upstream(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
