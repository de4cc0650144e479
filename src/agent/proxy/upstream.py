"""The pool of connections to targets. One by HTTP/1.1 is the stream of one exchange at a time.

A pooled connection is in one of three states: in use (`user` set), idle (in the pool), gone. Invariants:

U1. An idle connection has no unread byte, no unsent byte, and reads. A byte that comes while it is idle ends it.
U2. It is given back only after an exactly framed exchange: request sent whole, response read to its last byte.
U3. It is reused only for the same (scheme, host, port, trust generation, client identity, connect).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar, cast

from ..config.limits import ProxyLimits
from ..errors import TargetError
from ..messages import Connect, Target
from .chunked import LAST_CHUNK, encode_chunk
from .clock import Clock, Stall
from .dial import dial, within
from .head_writer import TargetHead
from .heads import CHUNKED, Request
from .http2_targets import Http2Targets
from .liveness import is_gone, probe_when_idle
from .pieces import Piece, write_pieces
from .response_reader import ResponseReader
from .shortage import DESCRIPTORS
from .upstream_stream import HeldTunnel, StreamUser, TunnelUser, UpstreamStream

__all__ = ["Upstream", "UpstreamKey", "Upstreams"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

TURNS_TO_CLOSE = 4
"""How many turns of the loop an aborted connection takes at most until its descriptor is free."""


class UpstreamKey(NamedTuple):
    """The key of the pool: requests with equal keys may share a connection (U3). generation: of the trust roots."""

    scheme: str
    host: str
    port: int
    generation: int
    client_identity: str
    connect: Connect | None


class Upstream(UpstreamStream):
    """One connection to a target, as the protocol of its transport and the stream of one exchange after another.

    transport: None until connected. made: set then, if a dial awaits it. is_tls: it can't be half-closed.
    """

    accepts_views = True

    __slots__ = (
        "_is_chunked",
        "_reader",
        "_reading_paused",
        "_tunnel",
        "held",
        "idle_until",
        "is_tls",
        "key",
        "made",
        "pool",
        "stall",
        "transport",
    )

    def __init__(self, pool: Upstreams, key: UpstreamKey) -> None:
        self.user: StreamUser | None = None
        self.path = None
        self.reused = False
        self.has_answered = False
        self.writing_paused = False
        self.pool = pool
        self.key = key
        self.made: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.is_tls = False
        self.stall = Stall()
        self.idle_until = 0.0
        self._reader = ResponseReader(pool.limits)
        self._is_chunked = False  # the request's body goes out in chunks
        self._tunnel: TunnelUser | None = None  # who uses it behind a 101 or a CONNECT's 200
        self.held: HeldTunnel | None = None  # its first user, if its target is raw
        self._reading_paused = False

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.is_tls = transport.get_extra_info("ssl_object") is not None
        self.path = transport.get_extra_info("path")
        high = self.pool.limits.buffer_bytes
        self.transport.set_write_buffer_limits(high=high, low=high // 4)
        self.pool.opened(self)
        if self.made is not None and not self.made.done():
            self.made.set_result(None)

    def data_received(self, data: Piece) -> None:
        user = self.user
        if user is not None:
            self.has_answered = True
            self._reader.feed(user, data)
        elif self._tunnel is not None:
            self._tunnel.tunnel_data(data)
        else:  # U1
            logger.warning(
                "a target sent bytes that nobody asked for: its connection is closed", extra={"stage": "idle"}
            )
            self.abort()

    def eof_received(self) -> bool:
        user = self.user
        if user is not None:
            if self.failure is not None or not self._reader.feed_eof(user):
                user.upstream_lost(None)
        elif self._tunnel is not None:
            return self._tunnel.tunnel_eof() and not self.is_tls
        else:
            self.pool.retire(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.lost(self)
        user: StreamUser | TunnelUser | None = self.user or self._tunnel
        self.user = self._tunnel = None
        if user is not None:
            user.upstream_lost(exc)

    def pause_writing(self) -> None:
        self.writing_paused = True
        self.stall.reset()
        if self.user is not None:
            self.user.pause_sending()
        elif self._tunnel is not None:
            self._tunnel.pause_sending()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self.user is not None:
            self.user.resume_sending()
        elif self._tunnel is not None:
            self._tunnel.resume_sending()

    # -- the stream of one exchange

    @property
    def failure(self) -> TargetError | None:
        """Why the connection ended, where its transport knows: the extra info `failure`, set by a `connect`."""
        found: TargetError | None = None if self.transport is None else self.transport.get_extra_info("failure")
        return found

    def start(self, user: StreamUser, request: Request) -> bool:
        if self.transport is None or self.transport.is_closing():
            return False
        self.user = user
        self.has_answered = False
        self._is_chunked = request.length == CHUNKED
        self._reader.expect(request.method == b"HEAD", request.is_connect, request.is_grpc)
        return True

    def send(self, head: TargetHead | None, pieces: list[Piece], ended: bool) -> None:
        assert self.transport is not None
        if self._is_chunked:
            if pieces:
                pieces = encode_chunk(pieces)
            if ended:
                pieces.append(LAST_CHUNK)
        if head is not None:
            written = head.as_http1()
            if not pieces:
                self.transport.write(written)
                return
            pieces = [written, *pieces]
        if pieces:
            write_pieces(self.transport, pieces)

    def takes_nothing(self, now: float) -> bool:
        if not self.writing_paused or self.transport is None:
            return False
        limit_s = self.pool.limits.write_timeout_s
        return self.stall.is_longer_than(limit_s, self.transport.get_write_buffer_size(), now)

    def is_usable(self) -> bool:
        """Whether it can carry another request: connected, nothing unsent, not closing."""
        return self.transport is not None and not self.transport.is_closing() and not self.writing_paused

    def pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    def finish(self, request_done: bool) -> None:
        if request_done and self._reader.is_reusable:
            self.pool.release(self)  # U2
        else:
            self.abort()

    def abort(self) -> None:
        self.user = self._tunnel = None
        if self.transport is not None:
            self.transport.abort()

    # -- a tunnel

    def switch(self, user: TunnelUser) -> HeldTunnel | None:
        held, self.held = self.held, None
        self.user = None
        self._tunnel = user
        return held

    def write(self, data: Piece) -> None:
        if self.transport is not None:
            self.transport.write(data)

    def write_eof(self) -> bool:
        if self.transport is None or not self.transport.can_write_eof():
            return False
        self.transport.write_eof()
        return True

    def is_gone(self) -> bool:
        return self.transport is not None and is_gone(self.transport)

    def close(self) -> None:
        self.user = self._tunnel = None
        if self.transport is not None:
            self.transport.close()
            if self.transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(self.pool.limits.write_timeout_s, self.transport.abort)


class Upstreams:
    """The pool.

    Args:
        ssl_context: returns the context for an https target, with its client certificate. Required for https targets.
        generation: returns the number of the trust roots in force. Connections with another number are not reused.
    """

    def __init__(
        self,
        *,
        ssl_context: Callable[[Target], ssl.SSLContext] | None = None,
        generation: Callable[[], int] = int,
        limits: ProxyLimits | None = None,
    ) -> None:
        self.limits = limits or ProxyLimits()
        self._ssl_context = ssl_context
        self._generation = generation
        self._swept_generation: int | None = None  # the generation at the last sweep
        self._generation_failed = False
        self._idle: dict[UpstreamKey, list[Upstream]] = {}
        self._ended: set[Connect] = set()
        self._open: set[Upstream] = set()
        self._clock = Clock(self.limits.tick_s, self._sweep, counts_stops=True)  # a far side's clock never stops
        self._closed = asyncio.Event()
        self._closed.set()
        self._closing = False
        self._http2 = Http2Targets(self)

    @property
    def open_connections(self) -> int:
        """Connections to targets, used and idle."""
        return len(self._open) + self._http2.open_connections

    @property
    def idle_connections(self) -> int:
        return sum(map(len, self._idle.values())) + self._http2.idle_connections

    def key(self, target: Target) -> UpstreamKey:
        """Return the key of the pool: requests with equal keys may share a connection (U3)."""
        return UpstreamKey(
            target.scheme, target.host, target.port, self._generation(), target.client_identity, target.connect
        )

    def take(self, target: Target) -> UpstreamStream | None:
        """Return the idle connection to the target that was used last, a stream on a shared one, or None."""
        # Equal to `key(target)`, without a call of a Python class on the way of each request.
        key = (target.scheme, target.host, target.port, self._generation(), target.client_identity, target.connect)
        idle: list[Upstream] | None = self._idle.get(key)  # type: ignore[call-overload]  # a NamedTuple is its tuple
        while idle:
            upstream = idle.pop()
            if upstream.is_usable():
                upstream.reused = True
                return upstream
        return self._http2.take(key) if target.http2 else None

    async def dial(self, target: Target) -> UpstreamStream:
        """A stream on a new connection to the target, or on one that has room by then. Raises TargetError.

        Where no descriptor is left and one is idle in the pool, that one is ended for it. Cancelled: nothing stays
        open.
        """
        if target.http2:
            return await self._http2.open(target)
        return await self.with_room(lambda: self._dial(target))

    async def with_room(self, make: Callable[[], Awaitable[T]]) -> T:
        """Await `make()`, which dials. Where it lacks a descriptor, end an idle connection and try again."""
        try:
            return await make()
        except TargetError as error:
            if error.limit != DESCRIPTORS or not self._end_longest_idle():
                raise
        for _ in range(TURNS_TO_CLOSE):
            await asyncio.sleep(0)
        return await make()

    def _end_longest_idle(self) -> bool:
        """End the connection that has been idle for longest. Returns whether there was one."""
        oldest: Upstream | None = None
        for idle in self._idle.values():  # each has the one used last at its end
            if idle and (oldest is None or idle[0].idle_until < oldest.idle_until):
                oldest = idle[0]
        shared = self._http2.longest_idle()
        if shared is not None and (oldest is None or shared.idle_until < oldest.idle_until):
            shared.abort()
            return True
        if oldest is None:
            return False
        self.retire(oldest)
        oldest.abort()
        return True

    async def _dial(self, target: Target) -> Upstream:
        context = None
        upstream = Upstream(self, self.key(target))  # before its context, so that new roots never make it look newer
        if target.is_raw:
            held = HeldTunnel(upstream)
            upstream.switch(held)
            upstream.held = held
        if target.scheme == "https" and target.connect is None:
            context = self.context(target)
        try:
            await dial(target, cast(asyncio.Protocol, upstream), self.limits, context)
            if upstream.transport is None:  # a `connect` that returns before its transport's first callback
                upstream.made = asyncio.get_running_loop().create_future()
                await within(self.limits.connect_timeout_s, "connect", upstream.made, target.party)
            if upstream.path is not None and upstream.path.connect != target.connect:  # U3: another one opened it
                upstream.key = upstream.key._replace(connect=upstream.path.connect)
            if target.is_raw and upstream.transport is not None:
                probe_when_idle(upstream.transport)
            return upstream
        except BaseException:
            upstream.abort()
            self.lost(upstream)  # uvloop calls no connection_lost where a dial is cancelled just behind connection_made
            raise

    def context(self, target: Target) -> ssl.SSLContext:
        """The TLS context for a target."""
        if self._ssl_context is None:
            raise ValueError("a target over TLS needs Upstreams(ssl_context=...)")
        return self._ssl_context(target)

    def make_upstream(self, key: UpstreamKey) -> Upstream:
        """A connection without a transport, for a target that chose HTTP/1.1."""
        return Upstream(self, key)

    def start_clock(self) -> Clock:
        """The clock, which sweeps from now on."""
        self._clock.start()
        return self._clock

    def release(self, upstream: Upstream) -> None:
        """Take back a connection after an exactly framed exchange (U2)."""
        upstream.user = None
        upstream.resume_reading()
        idle = self._idle.setdefault(upstream.key, [])
        transport = upstream.transport
        if (
            self._closing
            or (self._ended and upstream.key.connect in self._ended)
            or transport is None
            or not upstream.is_usable()
            or len(idle) >= self.limits.idle_upstreams_per_target
        ):
            upstream.abort()
            return
        self._clock.start()
        upstream.idle_until = self._clock.later(self.limits.upstream_idle_s)
        idle.append(upstream)

    def end_connect(self, connect: Connect) -> None:
        """Retire connections that this `connect` opened: close idle ones now, the others after their exchange."""
        self._ended.add(connect)
        for key, idle in self._idle.items():
            if key.connect == connect:
                for upstream in list(idle):
                    upstream.close()
                idle.clear()

    def forget_connect(self, connect: Connect) -> None:
        """No connection of this `connect` is left, and there will be none."""
        self._ended.discard(connect)

    def opened(self, upstream: Upstream) -> None:
        """A connection is up."""
        self._open.add(upstream)
        self._closed.clear()
        if self._closing:
            upstream.abort()

    def retire(self, upstream: Upstream) -> None:
        """Take a connection out of the pool before it closes."""
        idle = self._idle.get(upstream.key)
        if idle is not None and upstream in idle:
            idle.remove(upstream)

    def lost(self, upstream: Upstream) -> None:
        """Forget a closed connection."""
        self.retire(upstream)
        self._open.discard(upstream)
        if not self._open:
            self._closed.set()

    def _sweep(self, now: float) -> bool:
        """Close what has been idle for too long, or was made under trust roots that are no longer in force."""
        generation: int | None
        try:
            generation = self._swept_generation = self._generation()
            self._generation_failed = False
        except Exception:  # it is the user's function, and idle connections must still time out
            if not self._generation_failed:
                self._generation_failed = True
                said = {"stage": "idle"}
                logger.error(
                    "the CertificateProvider's generation failed: taken as unchanged", extra=said, exc_info=True
                )
            generation = self._swept_generation
        has_shared = self._http2.sweep(now, lambda key: generation is not None and key.generation != generation)
        for key, idle in list(self._idle.items()):
            old = generation is not None and key.generation != generation
            stale = [upstream for upstream in idle if old or upstream.idle_until <= now]
            for upstream in stale:
                idle.remove(upstream)
                upstream.abort()
            if not idle:
                del self._idle[key]
        return bool(self._idle) or has_shared

    async def close(self) -> None:
        """Close every connection and wait for the end of each. If cancelled, they still close."""
        self._closing = True
        self._clock.stop()
        self._idle.clear()
        for upstream in list(self._open):
            if upstream.transport is not None:
                upstream.transport.abort()
        await self._http2.close()
        await self._closed.wait()
