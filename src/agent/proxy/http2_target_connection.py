"""One HTTP/2 connection to a target, from its TLS handshake to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from typing import Any, Protocol, cast

from ..config.limits import ProxyLimits
from ..errors import TargetError, WireError
from ..http2 import liveness
from ..http2.connection import Http2Connection
from ..http2.errors import GoAwayError, StreamsExhausted
from ..http2.head_rules import Headers
from ..http2.liveness import SilenceWatch
from ..http2.peer_limits import PeerLimits
from ..http2.stream import Http2Stream
from ..messages import Target
from .http2_target_heads import ResponseHeads
from .http2_target_stream import Http2TargetStream

__all__ = ["ConnectionPool", "Http2TargetConnection", "Negotiation"]

logger = logging.getLogger(__name__)

WINDOW_BYTES = 256 * 1024
"""Of each stream, and so the most that a slow client's response holds."""

MOST_STREAMS = 1000
"""Streams on one connection, where the target allows more: all of them share one TCP connection's fate."""

STOPPED_S = 5.0
"""A sweep that comes later was held up with the whole process. Then the target's silence means nothing."""


class ConnectionPool(Protocol):
    """The pool, as its connections call it."""

    def released(self, connection: Http2TargetConnection) -> None:
        """A stream of it has ended."""

    def has_room(self, connection: Http2TargetConnection) -> None:
        """It may take a stream now."""

    def leave(self, connection: Http2TargetConnection) -> None:
        """It gets no further streams."""

    def lost(self, connection: Http2TargetConnection) -> None:
        """It is closed."""


class Http2TargetConnection:
    """One connection, as the user of its `Http2Connection`.

    Attributes:
        key: of its group.
        used: the streams that it has now, opened or not.
        has_served: a stream of it has ended.
        idle_until: when it closes without a stream, by the pool's clock.
        heads: reads its responses' heads.
        failure: why it ended, where it was given up.
    """

    def __init__(self, pool: ConnectionPool, key: Hashable, limits: ProxyLimits) -> None:
        self.key = key
        self.used = 0
        self.has_served = False
        self.idle_until = 0.0
        self.heads = ResponseHeads()
        self.failure: TargetError | None = None
        self.connection = Http2Connection(
            self,
            client=True,
            window_bytes=WINDOW_BYTES,
            checks_alpn=False,
            peer_limits=PeerLimits(
                max_streams=0,
                head_bytes=limits.response_head_bytes,
                announced_head_bytes=limits.response_head_bytes,
                counts_streams=False,
            ),
            input_ended=self._deliver,
            settings_changed=self._settings_changed,
        )
        self._pool = pool
        self._touched: list[Http2TargetStream] = []
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watch = SilenceWatch(self.connection)
        self._looked_s = float("inf")
        self._takes_streams = True

    # -- its streams

    @property
    def room(self) -> int:
        """How many further streams it takes now."""
        if not self._takes_streams or self.connection.closing:
            return 0
        return min(self.connection.peer_streams, MOST_STREAMS) - self.used

    @property
    def takes_connect(self) -> bool:
        return self.connection.peer_takes_connect

    @property
    def is_closing(self) -> bool:
        return not self._takes_streams or self.connection.closing

    def open(self, user: Http2TargetStream, fields: Headers, ended: bool) -> Http2Stream:
        if self.is_closing:
            raise StreamsExhausted
        return self.connection.open_stream(user, fields, ended=ended)

    def touched(self, stream: Http2TargetStream) -> None:
        if not stream.is_touched:
            stream.is_touched = True
            self._touched.append(stream)

    def release(self) -> None:
        self.used -= 1
        self.has_served = True
        if self.used or self._takes_streams:
            self._pool.released(self)
        else:
            self.connection.close()

    def _deliver(self) -> None:
        touched = self._touched
        while touched:
            self._touched = []
            for stream in touched:
                stream.is_touched = False
                stream.deliver()
            touched = self._touched

    # -- its life

    async def ready(self) -> None:
        """Wait for the target's SETTINGS. Raises TargetError."""
        try:
            await self._ready
        except WireError as error:
            reason = f"the target does not speak HTTP/2: {error.rule.removeprefix('HTTP/2: ')}"
            raise TargetError(502, reason, stage="connect") from error
        except GoAwayError as error:
            raise TargetError(502, "the target closed the new HTTP/2 connection", stage="connect") from error
        except OSError as error:
            reason = "the target closed the connection before its HTTP/2 settings"
            raise TargetError(502, reason, stage="connect") from error

    def look(self, now: float) -> None:
        """Look whether the target still replies."""
        if now - self._looked_s > STOPPED_S:
            self._watch = SilenceWatch(self.connection)
        self._looked_s = now
        if not self._watch.look(now) and not self.connection.closing:
            silent_s = liveness.PING_AFTER_S + liveness.PING_DUE_S
            self.failure = TargetError(504, f"the target sent nothing for {silent_s:g} s, nor replied to a PING")
            self.connection.fail(TimeoutError("no reply to a PING"))

    def retire(self) -> None:
        """Open no further stream, and close behind the last one.

        The GOAWAY waits until then. A target on the h2 library would drop its streams with it.
        """
        self._takes_streams = False
        if not self.used:
            self.connection.close()

    def abort(self) -> None:
        """Close at once, without a call to the streams' users."""
        self._takes_streams = False
        self.connection.abort()

    def _settings_changed(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)
        self._pool.has_room(self)

    # -- the connection's calls

    def connected(self, connection: Http2Connection) -> None:
        """Wait for SETTINGS."""

    def stream_opened(self, stream: Http2Stream, headers: Headers, ended: bool) -> None:
        raise WireError("HTTP/2: the target opened a stream")

    def stream_refused(self, connection: Http2Connection, fault: str) -> None:
        """A target opens no stream at all."""

    def goaway_received(self, connection: Http2Connection) -> None:
        self._pool.leave(self)
        self.retire()

    def connection_ended(self, connection: Http2Connection, error: Exception | None) -> None:
        if not self._ready.done():
            self._ready.set_exception(error or ConnectionResetError())
            self._ready.exception()  # its waiter may have left
        elif error is not None and not isinstance(error, OSError):
            extra = {"stage": "connection", "fault": "target", "reason": str(error)}
            logger.info("the HTTP/2 connection to a target ended", extra=extra)
        self._pool.lost(self)


class Negotiation(asyncio.Protocol):
    """The protocol of a new connection until its TLS handshake has chosen one.

    transport: None until connected.
    found: what speaks on the connection, None where the target did not choose HTTP/2 and had to.
    """

    def __init__(self, target: Target, make_http2: Callable[[], Http2TargetConnection], make_http1: Any) -> None:
        self.transport: asyncio.Transport | None = None
        self.found: Any = None
        self._target = target
        self._make_http2 = make_http2
        self._make_http1 = make_http1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = self.transport = cast(asyncio.Transport, transport)
        tls = made.get_extra_info("ssl_object")
        chosen = tls.selected_alpn_protocol() if tls is not None else None
        speaker: Any
        if chosen == "h2" or self._target.scheme == "h2c":
            self.found = self._make_http2()
            speaker = self.found.connection
        elif self._target.scheme == "https":
            self.found = speaker = self._make_http1()
        else:
            made.close()  # in order, since the target may not have finished its handshake
            return
        made.set_protocol(speaker)
        speaker.connection_made(made)

    def abort(self) -> None:
        """Close the connection, if there is one."""
        if self.found is not None:
            self.found.abort()
        elif self.transport is not None:
            self.transport.close()
