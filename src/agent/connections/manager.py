"""Which connection a packet belongs to: the one interface of the connection managers, and all they share.

    tunnel ── packet_received ──► manager ──► Connection ──► carrier ══► proxy
    tunnel ◄── outbound ─────────────────────┘                  │
                                  manager ◄── outcome ──────────┘

There is one manager for each session, so what a session knows of its connections dies with it (wire.md, "conn ids").
A manager knows ids, order and endings, and nothing of HTTP; how the bytes are carried is the subclasses' business.

An id's life: *unseen*, until its first DATA opens it; *open*; *closed*, until the session ends. Nothing leads back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from ..errors import AgentError
from ..outcome import Kind, Stage
from ..tunnel.features import CLOSE as FEATURE_CLOSE
from ..tunnel.features import WINDOW as FEATURE_WINDOW
from ..tunnel.packet import CLOSE, DATA, ERROR
from .connection import Connection, Outbound, State, Window
from .counters import ConnectionCounters
from .endings import Ending
from .ids import IdRanges
from .inbound import FirstPacketBudget, Inbound, Writable

__all__ = ["ConnManager", "ConnectionLimits", "FullError", "PacketConnManager", "Tunnel"]

logger = logging.getLogger(__name__)

OPEN = State.OPEN  # looked up once: until Python 3.12 an enum's attribute costs a call
_CREDITED_BYTES = 2**31 - 1  # no bound of ours where the hub sends only what it has credit for
_TICKS_PER_PROBE = 10  # connections are probed in turn, not all in one burst
_DRAIN_PROBE_INTERVAL_S = 1.0
_SETTLE_FIRST_S, _SETTLE_MOST_S = 0.005, 0.25  # between two rounds of questions to a base hub
_SETTLE_QUESTIONS = 256  # in each: a base hub keeps 1,000 packets for an agent, answers and requests together
_PATIENCE_S = 1.0  # how long a client may take to close behind its last response, and how often it gets an ERROR then
_SAID_CHARS = 200  # of a peer's words, in the log


class Tunnel(Protocol):
    """What the managers use of a session's tunnel."""

    @property
    def features(self) -> frozenset[str]: ...
    @property
    def bytes_buffered(self) -> int: ...
    @property
    def opens_no_more(self) -> bool: ...
    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound: ...
    def receive_window(self, conn_id: int) -> Window | None: ...
    def exceeded(self, conn_id: int) -> None: ...
    def send(self, conn_id: int, code: int, data: bytes = b"", error_message: str = "") -> None: ...


class FullError(AgentError):
    """No more connections are opened for now. The text is fit for the client."""


class PacketConnManager(Protocol):
    """What the agent knows of a connection manager; the tunnel's client knows the first two."""

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        """Handle the session's next packet. data: immutable, kept by reference. Never raises."""

    def tunnel_lost(self, error: Exception | None) -> None:
        """The session is over: every connection of it ends at once, and nothing of it reaches another session."""

    def outcome(self, conn_id: int, kind: Kind, stage: Stage) -> None:
        """The proxy reports how a connection ended, before it closes its transport."""

    async def drain(self, deadline_s: float) -> None:
        """Let what is in flight finish, end the rest, and wait until the hub knows none with a request outstanding."""

    @property
    def open_connections(self) -> int:
        """How many are open now."""


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds and times of each connection.

    inbound_bytes: what may wait for a slow target beyond the first packet; past it the connection fails. The base
    protocol can't slow one client down, so it is also how far an upload of any length may run ahead of its target.
    probe_interval_s: how often a base hub is asked whether a connection's client is still there. outcome_timeout_s: how
    long the proxy may take to say how a connection ended that was aborted here. connect_timeout_s: how long a
    carrier may take to reach the proxy. settle_timeout_s: how long, at the end of a drain, the hub may take to receive
    what is left. listed_s: how long a base hub may list a connection that ended here (wire.md, "DRAIN to the hub"):
    its own 30 s, and one for the way.
    """

    inbound_bytes: int = 64 * 1024 * 1024
    probe_interval_s: float = 10.0
    outcome_timeout_s: float = 1.0
    connect_timeout_s: float = 5.0
    settle_timeout_s: float = 5.0
    listed_s: float = 31.0


@dataclasses.dataclass(slots=True)
class Listed:
    """A connection that ended here and that a base hub may still list.

    until_s: loop time when the hub has certainly closed it. takes_error: its client has a whole response, so an ERROR's
    text is no part of one. error_at_s: when the next ERROR is due, where the session is about to end.
    """

    until_s: float
    takes_error: bool
    error_at_s: float


class ConnManager:
    """A PacketConnManager for one session, but for the carrier: subclasses have `make_connection`.

    budget, counters: shared by all sessions of an agent; fresh ones where not given. Must be made on its event loop.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        *,
        limits: ConnectionLimits | None = None,
        budget: FirstPacketBudget | None = None,
        counters: ConnectionCounters | None = None,
    ) -> None:
        self.tunnel = tunnel
        self.limits = limits or ConnectionLimits()
        self.budget = budget or FirstPacketBudget()
        self.counters = counters or ConnectionCounters()
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Connection] = {}
        self._closed = IdRanges()
        self._answered = IdRanges()  # closed ids that have got their ERROR
        self._truncated = IdRanges()  # closed ids whose client would take an ERROR's text for body
        self._lost = False
        self._tick: asyncio.TimerHandle | None = None
        self._changed: asyncio.Event | None = None  # set while a drain waits, for what it waits for
        self._drain_marks: dict[int, int] | None = None  # response bytes of each connection as the drain began
        self._listed: dict[int, Listed] = {}  # ended here, and a base hub may still list them; the oldest first
        self._leaving = False  # probes are for finding the moment when the hub lists nothing

    @property
    def is_base_hubs(self) -> bool:
        """Whether the hub has no features: it writes the first request of a connection anew (wire.md)."""
        return not self.tunnel.features

    def make_connection(self, conn_id: int) -> Connection:
        """A connection with its carrier attached. May raise: then the id is closed and the hub gets an ERROR, which has
        the words of a FullError.
        """
        raise NotImplementedError

    @property
    def hub_closes(self) -> bool:
        """Whether `close` is negotiated: from the hub's answer on, which may come after its first packets."""
        return FEATURE_CLOSE in self.tunnel.features

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def connections(self) -> Iterable[Connection]:
        """Those open now."""
        return self._open.values()

    @property
    def held_bytes(self) -> int:
        """What waits for slow targets, over all connections of this session."""
        return sum(connection.inbound.held_bytes for connection in self._open.values())

    # -- from the tunnel

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        if self._lost:
            return
        connection = self._open.get(conn_id)
        if code == DATA:
            size = len(data)
            if connection is None:
                connection = self._admit(conn_id, size)
                if connection is None:
                    return
            if connection.state is not OPEN or connection.hub_done:
                self.counters.stray_data += 1
                connection.strayed = True
            elif size:
                self.counters.inbound_bytes += size
                if not connection.feed(data):
                    self.tunnel.exceeded(conn_id)
        elif code == ERROR:
            if connection is not None:
                connection.cancelled(f"the hub says: {error_message[:_SAID_CHARS] or 'gone'}")  # never answered
            elif conn_id in self._listed:
                del self._listed[conn_id]
                self._notify()
            elif conn_id > 0 and conn_id not in self._closed:
                # It ended before it opened: its client is gone, or its first packet was none that could be read. What
                # still comes of it is the middle of something, and must not open it.
                self._closed.add(conn_id)
                self._answered.add(conn_id)
        elif code == CLOSE and self.hub_closes:
            if connection is not None:
                connection.hub_finished()
        else:
            self.counters.unknown_codes += 1
            logger.debug("a packet with an unknown code was ignored", extra={"conn_id": conn_id, "code": code})

    def _admit(self, conn_id: int, size: int) -> Connection | None:
        """A new connection for a DATA packet of `size` bytes whose id isn't open; None where it is to be dropped."""
        if conn_id <= 0:
            self.counters.invalid_ids += 1
            logger.debug("a packet for an id that can't open was dropped", extra={"conn_id": conn_id})
            return None
        if conn_id in self._closed:
            self.counters.stray_data += 1
            self._answer_stray(conn_id, asked=not size)
            return None
        if self.tunnel.opens_no_more:  # wire.md, "goaway": an error of this connection, which was never one
            self.counters.invalid_ids += 1
            logger.warning("the hub opened a connection after its DRAIN", extra={"conn_id": conn_id})
            self._closed.add(conn_id)
            self._answered.add(conn_id)
            self.tunnel.send(conn_id, ERROR, error_message="the hub opened this connection after its DRAIN")
            return None
        self.counters.opened += 1
        try:
            connection = self.make_connection(conn_id)
        except FullError as error:
            self._refuse(conn_id, str(error))
            return None
        except OSError as error:
            extra: dict[str, object] = {"conn_id": conn_id, "fault": "agent", "reason": error.strerror or str(error)}
            text = "the agent could not open the connection"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                text = "the agent has no descriptor left"
                extra["limit"] = "RLIMIT_NOFILE" if error.errno == errno.EMFILE else "fs.file-max"
            logger.error("a connection could not be opened", extra=extra)
            self._refuse(conn_id, text)
            return None
        except Exception:
            logger.exception("a connection could not be opened", extra={"conn_id": conn_id})
            self._refuse(conn_id, "the agent could not open the connection")
            return None
        self._open[conn_id] = connection
        self.counters.opened_by[connection.mode] += 1
        connection.probe_at_s = self._loop.time() + self.limits.probe_interval_s
        if self._tick is None:
            self._schedule_tick()
        return connection

    def _refuse(self, conn_id: int, text: str) -> None:
        self._closed.add(conn_id)
        self._answered.add(conn_id)
        self.counters.closed += 1
        self._list(conn_id, takes_error=True, idle=False)
        self.tunnel.send(conn_id, ERROR, error_message=text)

    def _answer_stray(self, conn_id: int, *, asked: bool) -> None:
        """Tell a base hub, once, that an id is closed. It follows what the tunnel still holds of that id's bytes.

        asked: the packet was empty, so it is no client's bytes but the hub's own question. Only that is answered where
        a response was truncated: a hub that asks knows what it has sent its client, others write the text behind it.
        """
        if self.hub_closes or conn_id in self._answered or (conn_id in self._truncated and not asked):
            return
        self._answered.add(conn_id)
        self.tunnel.send(conn_id, ERROR, error_message="this connection was closed by the agent")

    def tunnel_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        for connection in list(self._open.values()):
            connection.cancelled("its session with the hub is over")
        self._listed.clear()
        self._notify()

    # -- from the proxy

    def outcome(self, conn_id: int, kind: Kind, stage: Stage) -> None:
        connection = self._open.get(conn_id)
        if connection is not None:  # else it was ended from this side: nobody is left to be told
            connection.outcome_received(kind, stage)

    # -- from the connections (connection.ConnectionOwner)

    @property
    def outcome_timeout_s(self) -> float:
        return self.limits.outcome_timeout_s

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        return self.tunnel.outbound(conn_id, pause, resume)

    def receive_window(self, conn_id: int) -> Window | None:
        return self.tunnel.receive_window(conn_id) if FEATURE_WINDOW in self.tunnel.features else None

    def inbound(self, carrier: Writable, buffer_bytes: int) -> Inbound:
        """What leads from the hub into a new connection's carrier, which holds `buffer_bytes`."""
        credited = FEATURE_WINDOW in self.tunnel.features
        return Inbound(
            carrier,
            self.budget,
            limit_bytes=_CREDITED_BYTES if credited else self.limits.inbound_bytes,
            uncounted_bytes=_CREDITED_BYTES if credited else buffer_bytes,
            slice_bytes=buffer_bytes // 2,
            reframes=self.is_base_hubs,
        )

    def late_error(self, conn_id: int, text: str) -> None:
        """Send an ERROR for a connection whose outbound half is finished already."""
        self.tunnel.send(conn_id, ERROR, error_message=text)

    def connection_failed_inbound(self) -> None:
        self.counters.failed_inbound += 1

    def connection_closed(self, connection: Connection, ending: Ending | None) -> None:
        conn_id = connection.conn_id
        del self._open[conn_id]
        self._closed.add(conn_id)
        counters = self.counters
        counters.closed += 1
        counters.outbound_bytes += connection.response_bytes
        counters.ended_by[connection.mode, _how_it_ended(connection, ending)] += 1
        if ending is not None and ending.truncated:
            self._truncated.add(conn_id)
        elif ending is not None and ending.code == ERROR:
            self._answered.add(conn_id)
        elif ending is not None and connection.strayed:
            self._answer_stray(conn_id, asked=False)
        level = logging.INFO
        what = "connection closed"
        if ending is not None and ending.truncated:
            counters.truncated += 1
            what, level = "connection closed, truncated", logging.WARNING
        elif ending is not None and ending.code == ERROR:
            what, level = "connection failed", logging.WARNING
        if logger.isEnabledFor(level):
            kind, stage = connection.outcome or ("", "")
            extra = {
                "conn_id": conn_id,
                "mode": connection.mode,
                "kind": str(kind),
                "stage": str(stage),
                "response_bytes": connection.response_bytes,
            }
            if connection.reason:
                extra["reason"] = connection.reason
            logger.log(level, what, extra=extra)
        if ending is not None:  # else the hub said so itself, or has gone
            stage = Stage.SIZED if connection.outcome is None else connection.outcome[1]
            marks = self._drain_marks
            idle = stage is Stage.IDLE and marks is not None and marks.get(conn_id) == connection.response_bytes
            whole = ending.code == ERROR or (not ending.truncated and stage is not Stage.UPGRADED)
            self._list(conn_id, takes_error=whole, idle=idle)
        self._notify()

    # -- what a base hub lists (wire.md, "DRAIN to the hub")

    def _list(self, conn_id: int, *, takes_error: bool, idle: bool) -> None:
        """A connection has ended here; a base hub lists it until its client closes. idle: unused since a drain."""
        if self.hub_closes or self._lost:
            return
        now_s = self._loop.time()
        error_at_s = now_s if idle else now_s + _PATIENCE_S
        self._listed[conn_id] = Listed(now_s + self.limits.listed_s, takes_error, error_at_s)
        if idle:
            self._end_listed(conn_id, now_s)
        if self._tick is None:
            self._schedule_tick()

    def _forget_expired(self, now_s: float) -> None:
        """The hub has closed these, whatever it answers: bounds what is kept."""
        expired = []
        for conn_id, listed in self._listed.items():  # in the order of their ends
            if listed.until_s > now_s:
                break
            expired.append(conn_id)
        for conn_id in expired:
            del self._listed[conn_id]
        if expired:
            if self._leaving:  # it was asked again and again
                extra = {"connections": len(expired), "waited_s": self.limits.listed_s, "fault": "hub"}
                logger.warning("the hub did not say that it has closed its clients' connections", extra=extra)
            self._notify()

    def _end_listed(self, conn_id: int, now_s: float) -> None:
        """Have the hub close its client, where that breaks no response; again, for it may have dropped the last."""
        listed = self._listed[conn_id]
        if listed.takes_error and now_s >= listed.error_at_s:
            listed.error_at_s = now_s + _PATIENCE_S
            self._answered.add(conn_id)
            self.tunnel.send(conn_id, ERROR, error_message="the agent is going away")

    def _ask_listed(self) -> list[int]:
        """Ask the hub which of these it still lists; returns those it was asked about."""
        asked = list(itertools.islice(self._listed, _SETTLE_QUESTIONS))
        for conn_id in asked:
            self.tunnel.send(conn_id, DATA)
        return asked

    def ask_idle(self) -> None:
        """Find out what a base hub still lists. Called again and again by whoever waits for `is_idle`."""
        if self.hub_closes:
            return
        if not self._leaving:  # from now on it is asked about open ones often
            self._leaving = True
            for connection in list(self._open.values()):
                self._probe(connection)
        self._ask_listed()

    @property
    def is_idle(self) -> bool:
        """Whether no connection is open here, and a base hub lists none as far as is known: the session may end."""
        return not self._open and not self._listed

    # -- probing (wire.md, "vanished clients")

    def _schedule_tick(self) -> None:
        self._tick = self._loop.call_later(self.limits.probe_interval_s / _TICKS_PER_PROBE, self._on_tick)

    def _on_tick(self) -> None:
        """Probe the connections whose turn it is, and find proxies that left without an outcome."""
        self._tick = None
        now_s = self._loop.time()
        for connection in list(self._open.values()):
            if connection.eof_seen and connection.peer_closed():
                connection.connection_lost(None)
            elif connection.probe_at_s <= now_s:
                self._probe(connection)
        self._forget_expired(now_s)
        if self._open or self._listed:
            self._schedule_tick()

    def _probe(self, connection: Connection) -> None:
        interval_s = self.limits.probe_interval_s
        if self._leaving:  # nobody waits for a client that isn't there
            interval_s = min(interval_s, _DRAIN_PROBE_INTERVAL_S)
        connection.probe_at_s = self._loop.time() + interval_s
        if not self.hub_closes:
            self.counters.probes += 1
            self.tunnel.send(connection.conn_id, DATA)

    # -- drain (wire.md, "DRAIN to the hub")

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait until no connection is open, at most `timeout_s` seconds. Not while `drain` runs."""
        self._changed = asyncio.Event()
        try:
            await self._wait_until(lambda: not self._open, timeout_s)
        finally:
            self._changed = None

    def begin_drain(self) -> None:
        """Connections that end unused from now on were idle. Called before the proxy is told to drain."""
        self._leaving = True
        if self._drain_marks is None:
            self._drain_marks = {conn_id: connection.response_bytes for conn_id, connection in self._open.items()}

    async def drain(self, deadline_s: float) -> None:
        """Wait for what is in flight, at most `deadline_s` seconds; end the rest by the table; then settle.

        The proxy is told to drain first, by the agent: it ends the idle connections and puts `Connection: close` on its
        answers. Probes go out at once, for a client that is gone is not worth a wait. Then as `settle`. Returns early
        when the session is lost. Cancelled: what was ended stays ended, the rest goes on.
        """
        self._changed = asyncio.Event()
        self.begin_drain()
        for connection in list(self._open.values()):  # a base hub doesn't say whose client is gone
            self._probe(connection)
        try:
            await self._wait_until(lambda: not self._open, deadline_s)
            for connection in list(self._open.values()):
                connection.abort("the agent is going away")
            await self._wait_until(lambda: not self._open, 2 * self.limits.outcome_timeout_s)
            await self.settle()
        finally:
            self._changed = None

    async def settle(self) -> bool:
        """Wait until everything is sent and a base hub lists no connection; returns whether that is so.

        A base hub may lock up for good when a session ends under a connection that it lists. So it is asked about each
        that ended here until it doesn't know it; after a second its client is ended by ERROR, where it has a whole
        response. A hub that answers nothing is given its own time for a client, and a little. Cancelled: as before.
        """
        self._leaving = True
        own = self._changed is None
        if self._changed is None:
            self._changed = asyncio.Event()
        try:
            return await self._settle()
        finally:
            if own:
                self._changed = None

    async def _settle(self) -> bool:
        now_s = self._loop.time()
        limits = self.limits
        deadline_s = now_s + limits.settle_timeout_s + (0.0 if self.hub_closes else limits.listed_s)
        interval_s = _SETTLE_FIRST_S
        while not self._lost and (self.tunnel.bytes_buffered or not (self.hub_closes or self.is_idle)):
            now_s = self._loop.time()
            left_s = deadline_s - now_s
            if left_s <= 0:
                extra = {
                    "connections": len(self._open) + len(self._listed),
                    "unsent_bytes": self.tunnel.bytes_buffered,
                }
                logger.warning("the hub still holds connections at the end of the drain", extra=extra)
                return False
            if self.tunnel.bytes_buffered:  # a question would only queue behind them
                await asyncio.sleep(min(left_s, 0.01))
                continue
            for conn_id in list(self._listed):
                self._end_listed(conn_id, now_s)
            asked = self._ask_listed()
            answered = await self._wait_until(functools.partial(self._heard_of, asked), min(left_s, interval_s))
            interval_s = _SETTLE_FIRST_S if answered else min(2 * interval_s, _SETTLE_MOST_S)
        return True

    def _heard_of(self, asked: list[int]) -> bool:
        """Whether the hub lists none of these any longer; of none: whether no connection is open."""
        return not self._listed.keys() & asked if asked else not self._open

    async def _wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a state that `_notify` is called at, at most `timeout_s`; returns whether it is so.

        Cancelled: nothing has changed.
        """
        changed = self._changed
        assert changed is not None
        try:
            async with asyncio.timeout(timeout_s):
                while not reached() and not self._lost:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return False
        return True

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()


def _how_it_ended(connection: Connection, ending: Ending | None) -> str:
    """For counting. ending: what the hub was told, None where nobody was left to be told."""
    if ending is None or (connection.outcome is not None and connection.outcome[0] is Kind.CLIENT_GONE):
        return "client_gone"
    if ending.truncated:
        return "truncated"
    return "failed" if ending.code == ERROR else "complete"
