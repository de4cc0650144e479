"""Connections to targets: pooled, used by one exchange at a time, given back only where nothing is left on them.

A pooled connection is in one of three states: in use (`exchange` set), idle (in the pool), gone. Invariants:

U1. An idle connection has no unread byte, no unsent byte, and reads. A byte that comes while it is idle ends it.
U2. It is given back only after an exactly framed exchange: request sent whole, response read to its last byte.
U3. It is reused only for the same (scheme, host, port, trust generation, client identity, connect).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Hashable
from typing import Any, Protocol, cast

from ..config.limits import ProxyLimits
from ..errors import TargetError
from ..messages import Connect, Path, Target
from .clock import Clock, Stall
from .dial import dial, within
from .readers import ResponseHeadReader
from .shortage import DESCRIPTORS

__all__ = ["Upstream", "UpstreamUser", "Upstreams"]

log = logging.getLogger(__name__)

TURNS_TO_CLOSE = 4
"""How many turns of the loop an aborted connection takes at most until its descriptor is free."""


def _generation_of(key: Hashable) -> int:
    generation: int = cast("tuple[Any, ...]", key)[3]
    return generation


def _connect_of(key: Hashable) -> Connect | None:
    connect: Connect | None = cast("tuple[Any, ...]", key)[-1]
    return connect


class UpstreamUser(Protocol):
    """What a connection to a target tells the exchange that uses it. None of these may raise."""

    def response_data(self, data: bytes | memoryview) -> None: ...
    def response_eof(self) -> bool: ...
    def upstream_lost(self, error: Exception | None) -> None: ...
    def pause_sending(self) -> None: ...
    def resume_sending(self) -> None: ...


class Upstream:
    """One connection to a target, as the protocol of its transport.

    transport: None until connected; made: set then, where it is waited for. exchange: who uses it now. reused: it has
    served an exchange before. is_tls: it can't be half-closed. writing_paused: its write buffer is above the high-water
    mark. heads: what finds the heads of its responses. path: the way it was opened on, where that can fall silent.
    """

    accepts_views = True

    __slots__ = (
        "_reading_paused",
        "exchange",
        "heads",
        "idle_until",
        "is_tls",
        "key",
        "made",
        "path",
        "pool",
        "reused",
        "stall",
        "transport",
        "writing_paused",
    )

    def __init__(self, pool: Upstreams, key: Hashable) -> None:
        self.pool = pool
        self.key = key
        self.made: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport | None = None
        self.path: Path | None = None
        self.exchange: UpstreamUser | None = None
        self.reused = False
        self.is_tls = False
        self.writing_paused = False
        self.stall = Stall()
        self.heads = ResponseHeadReader(pool.limits)
        self.idle_until = 0.0
        self._reading_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.is_tls = transport.get_extra_info("ssl_object") is not None
        self.path = transport.get_extra_info("path")
        high = self.pool.limits.buffer_bytes
        self.transport.set_write_buffer_limits(high=high, low=high // 4)
        self.pool.opened(self)
        if self.made is not None and not self.made.done():
            self.made.set_result(None)

    def data_received(self, data: bytes | memoryview) -> None:
        if self.exchange is not None:
            self.exchange.response_data(data)
        else:  # U1
            log.warning("a target sent bytes that nobody asked for: its connection is closed", extra={"stage": "idle"})
            self.abort()

    def eof_received(self) -> bool:
        if self.exchange is not None:
            return self.exchange.response_eof() and not self.is_tls
        self.pool.retire(self)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.lost(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.upstream_lost(exc)

    def pause_writing(self) -> None:
        self.writing_paused = True
        self.stall.reset()
        if self.exchange is not None:
            self.exchange.pause_sending()

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self.exchange is not None:
            self.exchange.resume_sending()

    @property
    def failure(self) -> TargetError | None:
        """Why the connection ended, where its transport knows: the extra info `failure`, set by a `connect`."""
        found: TargetError | None = None if self.transport is None else self.transport.get_extra_info("failure")
        return found

    def takes_nothing(self, now: float) -> bool:
        """Whether the target has left the write buffer as it is for too long. Asked at each sweep."""
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

    def abort(self) -> None:
        """End it at once, dropping what is unsent; its exchange hears no more of it."""
        self.exchange = None
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """End it behind what is unsent, or without it where the target takes nothing."""
        self.exchange = None
        if self.transport is not None:
            self.transport.close()
            if self.transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(self.pool.limits.write_timeout_s, self.transport.abort)


class Upstreams:
    """The pool.

    ssl_context: gives the context for an https target, its client certificate included; required where there are any.
    generation: the number of the trust roots in force; connections made under another one are used no more.
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
        self._swept_generation: int | None = None  # the last one that a sweep was told
        self._generation_failed = False
        self._idle: dict[Hashable, list[Upstream]] = {}
        self._ended: set[Connect] = set()
        self._open: set[Upstream] = set()
        self._clock = Clock(self.limits.tick_s, self._sweep, counts_stops=True)  # the far side's clock went on
        self._closed = asyncio.Event()
        self._closed.set()
        self._closing = False

    @property
    def open_connections(self) -> int:
        """Connections to targets, used and idle."""
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        return sum(map(len, self._idle.values()))

    def key(self, target: Target) -> Hashable:
        """What two requests must share to share a connection (U3)."""
        return (target.scheme, target.host, target.port, self._generation(), target.client_identity, target.connect)

    def take(self, target: Target) -> Upstream | None:
        """An idle connection to the target, the one used last; None where there is none."""
        idle = self._idle.get(self.key(target))
        while idle:
            upstream = idle.pop()
            if upstream.is_usable():
                upstream.reused = True
                return upstream
        return None

    async def dial(self, target: Target) -> Upstream:
        """A new connection to the target. Raises TargetError. Cancelled: nothing stays open.

        Where no descriptor is left and one is idle in the pool, that one is ended for it.
        """
        try:
            return await self._dial(target)
        except TargetError as error:
            if error.limit != DESCRIPTORS or not self._end_longest_idle():
                raise
        for _ in range(TURNS_TO_CLOSE):
            await asyncio.sleep(0)
        return await self._dial(target)

    def _end_longest_idle(self) -> bool:
        """End the connection that has been idle for longest. Returns whether there was one."""
        oldest: Upstream | None = None
        for idle in self._idle.values():  # each has the one used last at its end
            if idle and (oldest is None or idle[0].idle_until < oldest.idle_until):
                oldest = idle[0]
        if oldest is None:
            return False
        self.retire(oldest)
        oldest.abort()
        return True

    async def _dial(self, target: Target) -> Upstream:
        context = None
        upstream = Upstream(self, self.key(target))  # before its context: roots read anew in between make it no newer
        if target.scheme == "https" and target.connect is None:
            if self._ssl_context is None:
                raise ValueError("an https target needs Upstreams(ssl_context=...)")
            context = self._ssl_context(target)
        try:
            await dial(target, cast(asyncio.Protocol, upstream), self.limits, context)
            if upstream.transport is None:  # a `connect` that returns before its transport's first callback
                upstream.made = asyncio.get_running_loop().create_future()
                await within(self.limits.connect_timeout_s, "connect", upstream.made, target.party)
            if upstream.path is not None and upstream.path.connect != target.connect:  # U3: another one opened it
                upstream.key = (*cast("tuple[Any, ...]", upstream.key)[:-1], upstream.path.connect)
            return upstream
        except BaseException:
            upstream.abort()
            self.lost(upstream)  # uvloop calls no connection_lost where a dial is cancelled just behind connection_made
            raise

    def release(self, upstream: Upstream) -> None:
        """Take back a connection after an exactly framed exchange (U2)."""
        upstream.exchange = None
        upstream.resume_reading()
        idle = self._idle.setdefault(upstream.key, [])
        transport = upstream.transport
        if (
            self._closing
            or (self._ended and _connect_of(upstream.key) in self._ended)
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
        """What was opened by this `connect` serves no further request: end what is idle, and the rest when it is."""
        self._ended.add(connect)
        for key, idle in self._idle.items():
            if _connect_of(key) == connect:
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
        """An idle connection is about to go: nobody may take it."""
        idle = self._idle.get(upstream.key)
        if idle is not None and upstream in idle:
            idle.remove(upstream)

    def lost(self, upstream: Upstream) -> None:
        """A connection is gone."""
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
        except Exception:  # it is the user's own; what is idle must still end in its time
            if not self._generation_failed:
                self._generation_failed = True
                said = {"stage": "idle"}
                log.error("the CertificateProvider's generation failed: taken as unchanged", extra=said, exc_info=True)
            generation = self._swept_generation
        for key, idle in list(self._idle.items()):
            old = generation is not None and _generation_of(key) != generation
            stale = [upstream for upstream in idle if old or upstream.idle_until <= now]
            for upstream in stale:
                idle.remove(upstream)
                upstream.abort()
            if not idle:
                del self._idle[key]
        return bool(self._idle)

    async def close(self) -> None:
        """End every connection and wait until they are gone. Cancelled: they end all the same."""
        self._closing = True
        self._clock.stop()
        self._idle.clear()
        for upstream in list(self._open):
            if upstream.transport is not None:
                upstream.transport.abort()
        await self._closed.wait()
