"""HTTP/2 connections to targets: shared by many requests, within the limit of streams that each target announces.

    take ──room──► stream
    open ──room──► stream
      └──none──► waits ──► a stream elsewhere ends, or one of the dials brings a connection

Every `target key` has its connections, its dials, and the requests that wait. There are as many dials as the waiting
requests need, by the number of streams that the target allowed last.

Invariants:
P1. A connection is in its group while it may get further streams. GOAWAY, its close and its loss take it out.
P2. A waiting request gets one connection or one error. If it is cancelled, what it got is given back.
P3. A dial runs only while a request waits.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol, cast

from ..config.limits import ProxyLimits
from ..errors import TargetError
from ..messages import TLS_SCHEMES, Target
from ..runtime.alpn import OfferedContext
from .clock import Clock
from .dial import dial, within
from .http2_target_connection import Http2TargetConnection, Negotiation
from .http2_target_stream import Http2TargetStream
from .upstream_stream import UpstreamStream

__all__ = ["Http2Targets", "TargetsOwner"]

logger = logging.getLogger(__name__)

FIRST_GUESS = 100
"""The expected limit of a target's streams before its first SETTINGS (RFC 9113, section 6.5.2, recommends 100)."""


class TargetsOwner(Protocol):
    """The pool of all connections, as the HTTP/2 ones need it."""

    limits: ProxyLimits

    def key(self, target: Target) -> Hashable:
        """The key of the pool: requests with equal keys may share a connection."""

    def context(self, target: Target) -> ssl.SSLContext:
        """The TLS context for a target."""

    def make_upstream(self, key: Any) -> Any:
        """A connection by HTTP/1.1 that has no transport yet."""

    def release(self, upstream: Any) -> None:
        """Take back a connection by HTTP/1.1."""

    def lost(self, upstream: Any) -> None:
        """Forget a closed connection by HTTP/1.1."""

    def start_clock(self) -> Clock:
        """The clock whose sweep calls `Http2Targets.sweep`."""

    async def with_room(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Await `make()`, twice where it lacked a descriptor and an idle connection could be closed for it."""


class _Waiter:
    """A request that waits for a connection, other than one that has refused it."""

    __slots__ = ("future", "other_than", "target")

    def __init__(self, target: Target, other_than: object) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.target = target
        self.other_than = other_than


class _Group:
    """All connections of one key. guess: how many streams the next one may allow."""

    __slots__ = ("connections", "dials", "guess", "waiters")

    def __init__(self) -> None:
        self.connections: list[Http2TargetConnection] = []
        self.waiters: deque[_Waiter] = deque()
        self.dials: set[asyncio.Task[None]] = set()
        self.guess = FIRST_GUESS

    @property
    def is_empty(self) -> bool:
        return not (self.connections or self.waiters or self.dials)

    def find(self, other_than: object = None) -> Http2TargetConnection | None:
        """The first connection with room, so that the last ones become idle."""
        for connection in self.connections:
            if connection is not other_than and connection.room > 0:
                return connection
        return None


class Http2Targets:
    """The connections by HTTP/2 of a pool."""

    def __init__(self, owner: TargetsOwner) -> None:
        self._owner = owner
        self._groups: dict[Hashable, _Group] = {}
        self._open: set[Http2TargetConnection] = set()
        self._closing = False
        self._closed = asyncio.Event()
        self._closed.set()

    @property
    def limits(self) -> ProxyLimits:
        """The pool's."""
        return self._owner.limits

    @property
    def open_connections(self) -> int:
        """All connections, with streams and without."""
        return len(self._open)

    @property
    def idle_connections(self) -> int:
        """Those without a stream."""
        return sum(not connection.used for connection in self._open)

    # -- streams

    def take(self, key: Hashable) -> Http2TargetStream | None:
        """A stream on a connection that is there, or None."""
        group = self._groups.get(key)
        connection = group.find() if group is not None else None
        return None if connection is None else self._stream(connection)

    async def open(self, target: Target) -> UpstreamStream:
        """A stream, on a new connection if need be. It may be one by HTTP/1.1, if the target chooses that.

        Raises TargetError. Cancelled: nothing stays reserved.
        """
        found = await self._find(target, None)
        if isinstance(found, Http2TargetConnection):
            found.used -= 1  # the stream counts itself
            return self._stream(found)
        return cast(UpstreamStream, found)

    async def reserve(self, target: Target, other_than: object) -> Http2TargetConnection:
        """Another connection, with one stream counted. Raises TargetError. Cancelled: nothing stays reserved."""
        found = await self._find(target, other_than)
        if isinstance(found, Http2TargetConnection):
            return found
        self._owner.release(found)
        raise TargetError(502, "the target refused the stream, and speaks HTTP/1.1 now", stage="retry")

    def _stream(self, connection: Http2TargetConnection) -> Http2TargetStream:
        connection.used += 1
        return Http2TargetStream(self, connection, connection.has_served)

    async def _find(self, target: Target, other_than: object) -> Any:
        """A connection with one stream counted, or one by HTTP/1.1."""
        if self._closing:
            raise self._closed_error()
        key = self._owner.key(target)
        group = self._groups.setdefault(key, _Group())
        connection = group.find(other_than)
        if connection is not None:
            connection.used += 1
            return connection
        waiter = _Waiter(target, other_than)
        group.waiters.append(waiter)
        self._dial_for(key, group)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._give_back(waiter.future.result())  # P2
            raise
        finally:
            if waiter in group.waiters:
                group.waiters.remove(waiter)
            if not group.waiters:
                for task in group.dials:  # P3
                    task.cancel()
            self._drop_if_empty(key, group)

    def _give_back(self, found: Any) -> None:
        if isinstance(found, Http2TargetConnection):
            found.release()
        else:
            self._owner.release(found)

    # -- dials

    def _dial_for(self, key: Hashable, group: _Group) -> None:
        """Have as many dials as the waiting requests need."""
        while not self._closing and len(group.dials) * group.guess < len(group.waiters):
            target = group.waiters[0].target
            task = asyncio.get_running_loop().create_task(self._dial(key, group, target))
            group.dials.add(task)

    async def _dial(self, key: Hashable, group: _Group, target: Target) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            found = await self._owner.with_room(lambda: self._connect(key, target))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            group.dials.discard(task)
            self._fail_waiters(group, error)
        else:
            group.dials.discard(task)
            self._dialled(group, found)
        finally:
            group.dials.discard(task)
            self._drop_if_empty(key, group)
        self._dial_for(key, group)

    def _dialled(self, group: _Group, found: Any) -> None:
        if not isinstance(found, Http2TargetConnection):
            group.guess = 1
            while group.waiters:
                waiter = group.waiters.popleft()
                if not waiter.future.done():
                    waiter.future.set_result(found)
                    return
            self._owner.release(found)
            return
        group.guess = max(1, found.room)
        group.connections.append(found)
        if found.room <= 0:
            limit = TargetError(502, "the target allows no HTTP/2 streams", stage="connect")
            self._fail_waiters(group, limit)
        self._idle_from_now(found)
        self._serve(group)

    async def _connect(self, key: Hashable, target: Target) -> Any:
        limits = self._owner.limits

        def made() -> Http2TargetConnection:
            connection = Http2TargetConnection(self, key, limits)
            self._open.add(connection)
            self._closed.clear()
            return connection

        negotiation = Negotiation(target, made, lambda: self._owner.make_upstream(key))
        context: Any = None
        if target.scheme in TLS_SCHEMES and target.connect is None:
            offers = ["h2", "http/1.1"] if target.scheme == "https" else ["h2"]
            context = OfferedContext(self._owner.context(target), offers)
        try:
            await dial(target, negotiation, limits, context)
            found = negotiation.found
            if found is None:
                raise TargetError(502, "the target did not choose HTTP/2 by ALPN", stage="tls")
            if isinstance(found, Http2TargetConnection):
                await within(limits.connect_timeout_s, "connect", found.ready(), target.party)
            return found
        except BaseException:
            negotiation.abort()
            # uvloop calls no connection_lost where a dial is cancelled just behind connection_made.
            if isinstance(negotiation.found, Http2TargetConnection):
                self.lost(negotiation.found)
            elif negotiation.found is not None:
                self._owner.lost(negotiation.found)
            raise

    @staticmethod
    def _fail_waiters(group: _Group, error: BaseException) -> None:
        """The dial failed for as many requests as it would have served."""
        for _ in range(min(group.guess, len(group.waiters))):
            future = group.waiters.popleft().future
            if future.done():
                continue
            if isinstance(error, TargetError):  # one each, since a raised error collects its way
                mine: BaseException = TargetError(
                    error.status, error.reason, stage=error.stage, fault=error.fault, limit=error.limit
                )
                mine.__cause__ = error.__cause__
            else:
                mine = error
            future.set_exception(mine)

    # -- the connections' calls

    def released(self, connection: Http2TargetConnection) -> None:
        """A stream of it has ended."""
        if not connection.used:
            self._idle_from_now(connection)
        self.has_room(connection)

    def has_room(self, connection: Http2TargetConnection) -> None:
        """It may take a stream now."""
        group = self._groups.get(connection.key)
        if group is not None and group.waiters:
            self._serve(group)

    def leave(self, connection: Http2TargetConnection) -> None:
        """It gets no further streams (P1)."""
        group = self._groups.get(connection.key)
        if group is not None and connection in group.connections:
            group.connections.remove(connection)
            self._dial_for(connection.key, group)
            self._drop_if_empty(connection.key, group)

    def lost(self, connection: Http2TargetConnection) -> None:
        """It is closed."""
        self.leave(connection)
        self._open.discard(connection)
        if not self._open:
            self._closed.set()

    def _serve(self, group: _Group) -> None:
        """Give waiting requests what has room."""
        for waiter in list(group.waiters):
            connection = group.find(waiter.other_than)
            if connection is None:
                if waiter.other_than is None:
                    return
            else:
                group.waiters.remove(waiter)
                if not waiter.future.done():
                    connection.used += 1
                    waiter.future.set_result(connection)

    def _idle_from_now(self, connection: Http2TargetConnection) -> None:
        if not self._closing:
            connection.idle_until = self._owner.start_clock().later(self._owner.limits.upstream_idle_s)

    def _drop_if_empty(self, key: Hashable, group: _Group) -> None:
        if group.is_empty and self._groups.get(key) is group:
            del self._groups[key]

    # -- the pool's calls

    def sweep(self, now: float, is_stale: Callable[[Any], bool]) -> bool:
        """Close idle connections, and find those that are dead. Returns whether any is left.

        is_stale: whether a key is no longer in force.
        """
        for connection in list(self._open):
            if connection.is_closing:
                continue
            if is_stale(connection.key) or (not connection.used and connection.idle_until <= now):
                self.leave(connection)
                connection.retire()
            else:
                connection.look(now)
        return bool(self._open)

    def longest_idle(self) -> Http2TargetConnection | None:
        """The connection that has been without a stream for longest."""
        idle = [connection for connection in self._open if not connection.used and not connection.is_closing]
        return min(idle, key=lambda connection: connection.idle_until, default=None)

    @staticmethod
    def _closed_error() -> TargetError:
        return TargetError(503, "the agent is closing", stage="connect", fault="agent")

    async def close(self) -> None:
        """Close every connection and wait for the end of each. If cancelled, they still close."""
        self._closing = True
        for group in list(self._groups.values()):
            for task in list(group.dials):
                task.cancel()
            for waiter in group.waiters:
                if not waiter.future.done():
                    waiter.future.set_exception(self._closed_error())
        for connection in list(self._open):
            connection.abort()
        await self._closed.wait()
