"""Which connection a packet belongs to: the one interface of the connection managers, and all they share.

    tunnel ── packet_received ──► manager ──► AgentConnection ──► carrier ══► proxy
    tunnel ◄── outbound ─────────────────────────┘                    │
                                  manager ◄── outcome ────────────────┘

Each session has one manager, so a session's knowledge of its connections ends with the session (wire.md, "conn ids").
A manager knows ids, order and endings, but not HTTP. Its subclasses choose the carrier.

An id is *unseen* until its first DATA opens it, then *open*, then *closed* until the session ends. It never goes back.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
from collections.abc import Callable, Collection
from typing import Protocol

from ..outcome import Kind, Stage
from ..tunnel.features import CLOSE as FEATURE_CLOSE
from ..tunnel.features import WINDOW as FEATURE_WINDOW
from ..tunnel.packet import CLOSE, DATA, ERROR
from .agent_connection import AgentConnection
from .connection import Outbound, State, TunnelConnection, Window
from .counters import ConnectionCounters
from .endings import Ending
from .ids import IdRanges
from .inbound import UNBOUNDED_BYTES, FirstPacketBudget, Inbound, Writable
from .limits import ConnectionLimits, FullError
from .listed import ListedConnections
from .probing import Prober

__all__ = ["ConnManager", "PacketConnManager", "Tunnel"]

logger = logging.getLogger(__name__)

OPEN = State.OPEN  # looked up once: until Python 3.12 an enum's attribute costs a call
_DRAIN_PROBE_INTERVAL_S = 1.0
_SETTLE_FIRST_S, _SETTLE_MOST_S = 0.005, 0.25  # between two rounds of questions to a base hub
_SAID_CHARS = 200  # of a peer's words, in the log


class Tunnel(Protocol):
    """The part of a session's tunnel that the managers use."""

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


class PacketConnManager(Protocol):
    """The part of a connection manager that the agent uses. The tunnel's client uses the first two methods."""

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        """Handle the session's next packet. data: immutable, kept by reference. Never raises."""

    def tunnel_lost(self, error: Exception | None) -> None:
        """End every connection of the session at once. Nothing of it reaches another session."""

    def outcome(self, conn_id: int, kind: Kind, stage: Stage) -> None:
        """The proxy reports how a connection ended, before it closes its transport."""

    async def drain(self, deadline_s: float) -> None:
        """Let what is in flight finish, end the rest, and wait until the hub knows none with a request outstanding."""

    @property
    def open_connections(self) -> int:
        """How many are open now."""


class ConnManager:
    """A PacketConnManager for one session, without a carrier. Each subclass adds one with `make_connection`.

    It must be made on its event loop.

    budget, counters: shared by all sessions of an agent. The default is a new object each.
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
        self._open: dict[int, AgentConnection] = {}
        self._closed = IdRanges()
        self._answered = IdRanges()  # closed ids that have got their ERROR
        self._truncated = IdRanges()  # closed ids whose client would take an ERROR's text for body
        self._lost = False
        self._changed: asyncio.Event | None = None  # set while a drain waits, for what it waits for
        self._drain_marks: dict[int, int] | None = None  # response bytes of each connection as the drain began
        self._listed = ListedConnections(self.limits.listed_s, self._ask, self._end_listed)
        self._prober = Prober(self.limits.probe_interval_s, self._open.values, self._probe, self._on_tick)
        self._leaving = False  # probes are for finding the moment when the hub lists nothing

    @property
    def is_base_hubs(self) -> bool:
        """Whether the hub has no features. Such a hub rewrites the first request of a connection (wire.md)."""
        return not self.tunnel.features

    def make_connection(self, conn_id: int) -> AgentConnection:
        """Make a connection with its carrier attached. A subclass overrides this, since a cdef class can't be abstract.

        If it raises, the id is closed, and the hub gets an ERROR with the text of a FullError.
        """
        raise NotImplementedError

    @property
    def peer_closes(self) -> bool:
        """Whether `close` is negotiated. It is False until the hub's metadata, which may follow its first packets."""
        return FEATURE_CLOSE in self.tunnel.features

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def connections(self) -> Collection[AgentConnection]:
        """Those open now."""
        return self._open.values()

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
            if connection.state is not OPEN or connection.peer_done:
                self.counters.stray_data += 1
                connection.strayed = True
            elif size:
                self.counters.inbound_bytes += size
                if not connection.feed(data):
                    self.tunnel.exceeded(conn_id)
        elif code == ERROR:
            if connection is not None:
                connection.cancelled(f"the hub reported: {error_message[:_SAID_CHARS] or 'gone'}")  # no reply
            elif self._listed.discard(conn_id):
                self._notify()
            elif conn_id > 0 and conn_id not in self._closed:
                # It ended before it opened, because its client closed or its first packet was unreadable. Later packets
                # of it are the middle of something and must not open it.
                self._closed.add(conn_id)
                self._answered.add(conn_id)
        elif code == CLOSE and self.peer_closes:
            if connection is not None:
                connection.peer_finished()
        else:
            self.counters.unknown_codes += 1
            logger.debug("a packet with an unknown code was ignored", extra={"conn_id": conn_id, "code": code})

    def _admit(self, conn_id: int, size: int) -> AgentConnection | None:
        """Open a connection for a DATA packet of `size` bytes with an id that isn't open. None: drop the packet."""
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
        self._prober.watch(connection)
        return connection

    def _refuse(self, conn_id: int, text: str) -> None:
        self._closed.add(conn_id)
        self._answered.add(conn_id)
        self.counters.closed += 1
        self._list(conn_id, takes_error=True, idle=False)
        self.tunnel.send(conn_id, ERROR, error_message=text)

    def _answer_stray(self, conn_id: int, *, asked: bool) -> None:
        """Send a base hub one ERROR for a closed id, after the bytes of that id in the tunnel.

        If a response was truncated, only the hub's own question gets the ERROR. A hub that asks knows what it has sent
        its client. Otherwise the hub writes the text behind the response.

        asked: the packet was empty, so it is the hub's own question and not a client's bytes.
        """
        if self.peer_closes or conn_id in self._answered or (conn_id in self._truncated and not asked):
            return
        self._answered.add(conn_id)
        self.tunnel.send(conn_id, ERROR, error_message="this connection was closed by the agent")

    def tunnel_lost(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._prober.cancel()
        for connection in list(self._open.values()):
            connection.cancelled("its session with the hub has ended")
        self._listed.clear()
        self._notify()

    # -- from the proxy

    def outcome(self, conn_id: int, kind: Kind, stage: Stage) -> None:
        connection = self._open.get(conn_id)
        if connection is not None:  # else this side has ended it already
            connection.outcome_received(kind, stage)

    # -- from the connections (AgentConnectionOwner)

    @property
    def outcome_timeout_s(self) -> float:
        return self.limits.outcome_timeout_s

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        return self.tunnel.outbound(conn_id, pause, resume)

    def receive_window(self, conn_id: int) -> Window | None:
        return self.tunnel.receive_window(conn_id) if FEATURE_WINDOW in self.tunnel.features else None

    def inbound(self, carrier: Writable, buffer_bytes: int) -> Inbound:
        """Make the path from the hub into a new connection's carrier, which holds `buffer_bytes`."""
        credited = FEATURE_WINDOW in self.tunnel.features
        return Inbound(
            carrier,
            self.budget,
            limit_bytes=UNBOUNDED_BYTES if credited else self.limits.inbound_bytes,
            uncounted_bytes=UNBOUNDED_BYTES if credited else buffer_bytes,
            slice_bytes=buffer_bytes // 2,
            reframes=self.is_base_hubs,
        )

    def late_error(self, conn_id: int, text: str) -> None:
        """Send an ERROR for a connection whose outbound half is finished already."""
        self.tunnel.send(conn_id, ERROR, error_message=text)

    def connection_failed_inbound(self) -> None:
        self.counters.failed_inbound += 1

    def connection_closed(self, connection: AgentConnection, ending: Ending | None) -> None:
        """Record the end of a connection. ending: the hub's ending, or None if the hub needs none."""
        del self._open[connection.conn_id]
        self._closed.add(connection.conn_id)
        self._count_end(connection, ending)
        if ending is not None:
            self._answer_strays(connection, ending)
        _log_end(connection, ending)
        if ending is not None:  # else the hub ended the connection, or is lost
            self._list_end(connection, ending)
        self._notify()

    def _count_end(self, connection: AgentConnection, ending: Ending | None) -> None:
        counters = self.counters
        counters.closed += 1
        counters.outbound_bytes += connection.sent_bytes
        counters.ended_by[connection.mode, _how_it_ended(connection, ending)] += 1
        if ending is not None and ending.truncated:
            counters.truncated += 1

    def _answer_strays(self, connection: AgentConnection, ending: Ending) -> None:
        """Choose the reply to later DATA for this id, and send the reply to DATA that strayed before."""
        if ending.truncated:
            self._truncated.add(connection.conn_id)
        elif ending.code == ERROR:
            self._answered.add(connection.conn_id)
        elif connection.strayed:
            self._answer_stray(connection.conn_id, asked=False)

    # -- what a base hub lists (wire.md, "DRAIN to the hub")

    def _list_end(self, connection: AgentConnection, ending: Ending) -> None:
        stage = Stage.SIZED if connection.outcome is None else connection.outcome[1]
        marks = self._drain_marks
        idle = stage is Stage.IDLE and marks is not None and marks.get(connection.conn_id) == connection.sent_bytes
        whole = ending.code == ERROR or (not ending.truncated and stage is not Stage.UPGRADED)
        self._list(connection.conn_id, takes_error=whole, idle=idle)

    def _list(self, conn_id: int, *, takes_error: bool, idle: bool) -> None:
        """Record an ended connection. A base hub lists it until its client closes. idle: unused since a drain."""
        if not self.peer_closes and not self._lost:
            self._listed.add(conn_id, self._loop.time(), takes_error=takes_error, idle=idle)
            self._prober.start()

    def _end_listed(self, conn_id: int) -> None:
        self._answered.add(conn_id)
        self.tunnel.send(conn_id, ERROR, error_message="the agent is going away")

    def _ask(self, conn_id: int) -> None:
        self.tunnel.send(conn_id, DATA)

    def ask_idle(self) -> None:
        """Find out what a base hub still lists. A caller that waits for `is_idle` repeats this."""
        if self.peer_closes:
            return
        if not self._leaving:  # from now on it is asked about open ones often
            self._leave()
            for connection in list(self._open.values()):
                self._prober.ask(connection)
        self._listed.ask()

    @property
    def is_idle(self) -> bool:
        """Whether the session may end. No connection is open here, and a base hub lists none as far as is known."""
        return not self._open and not self._listed

    # -- probing (wire.md, "vanished clients")

    def _on_tick(self, now_s: float) -> bool:
        """Forget the connections that the hub has closed by now. Returns whether there is still something to watch."""
        expired = self._listed.forget_expired(now_s)
        if expired:
            if self._leaving:  # the hub was asked repeatedly
                extra = {"connections": expired, "waited_s": self.limits.listed_s, "fault": "hub"}
                logger.warning("the hub did not confirm that it has closed its clients' connections", extra=extra)
            self._notify()
        return bool(self._open or self._listed)

    def _probe(self, connection: TunnelConnection) -> None:
        if not self.peer_closes:
            self.counters.probes += 1
            self.tunnel.send(connection.conn_id, DATA)

    def _leave(self) -> None:
        """Probe often from now on: nobody waits for a client that isn't there."""
        self._leaving = True
        self._prober.interval_s = min(self._prober.interval_s, _DRAIN_PROBE_INTERVAL_S)

    # -- drain (wire.md, "DRAIN to the hub")

    async def wait_idle(self, timeout_s: float) -> None:
        """Wait until no connection is open, at most `timeout_s` seconds. Not while `drain` runs."""
        self._changed = asyncio.Event()
        try:
            await self._wait_until(lambda: not self._open, timeout_s)
        finally:
            self._changed = None

    def begin_drain(self) -> None:
        """Treat connections that end unused from now on as idle. Call it before the proxy drains."""
        self._leave()
        if self._drain_marks is None:
            self._drain_marks = {conn_id: connection.sent_bytes for conn_id, connection in self._open.items()}

    async def drain(self, deadline_s: float) -> None:
        """Wait for requests in flight, at most `deadline_s` seconds, end the rest by the table, then `settle`.

        The agent drains the proxy first. The proxy closes the idle connections and puts `Connection: close` on its
        responses. Probes are sent at once, since a closed client is not worth a wait. Returns early if the session is
        lost. If cancelled, the ended connections stay ended, and the rest continue.
        """
        self._changed = asyncio.Event()
        self.begin_drain()
        for connection in list(self._open.values()):  # a base hub doesn't report closed clients
            self._prober.ask(connection)
        try:
            await self._wait_until(lambda: not self._open, deadline_s)
            for connection in list(self._open.values()):
                connection.abort("the agent is going away")
            await self._wait_until(lambda: not self._open, 2 * self.limits.outcome_timeout_s)
            await self.settle()
        finally:
            self._changed = None

    async def settle(self) -> bool:
        """Wait until everything is sent and a base hub lists no connection. Returns whether that is so.

        A base hub may lock up for good if a session ends while it lists a connection of that session. So the agent asks
        about each connection that ended here until the hub doesn't know it. After a second an ERROR ends a client that
        has a whole response. A base hub that never replies gets `listed_s` beyond `settle_timeout_s`. If cancelled,
        nothing changes.
        """
        self._leave()
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
        deadline_s = now_s + limits.settle_timeout_s + (0.0 if self.peer_closes else limits.listed_s)
        interval_s = _SETTLE_FIRST_S
        while not self._lost and (self.tunnel.bytes_buffered or not (self.peer_closes or self.is_idle)):
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
            self._listed.end_due(now_s)
            asked = self._listed.ask()
            answered = await self._wait_until(functools.partial(self._heard_of, asked), min(left_s, interval_s))
            interval_s = _SETTLE_FIRST_S if answered else min(2 * interval_s, _SETTLE_MOST_S)
        return True

    def _heard_of(self, asked: list[int]) -> bool:
        """Whether the hub lists none of these any longer. For an empty list: whether no connection is open."""
        return self._listed.none_of(asked) if asked else not self._open

    async def _wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a state that `_notify` reports, at most `timeout_s`. Returns whether the state is reached.

        If cancelled, nothing changes.
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


def _log_end(connection: AgentConnection, ending: Ending | None) -> None:
    """Log the end of a connection. ending: the hub's ending, or None if the hub needs none."""
    level, what = logging.INFO, "connection closed"
    if ending is not None and ending.truncated:
        level, what = logging.WARNING, "connection closed, truncated"
    elif ending is not None and ending.code == ERROR:
        level, what = logging.WARNING, "connection failed"
    if not logger.isEnabledFor(level):
        return
    kind, stage = connection.outcome or ("", "")
    extra = {
        "conn_id": connection.conn_id,
        "mode": connection.mode,
        "kind": str(kind),
        "stage": str(stage),
        "response_bytes": connection.sent_bytes,
    }
    if connection.reason:
        extra["reason"] = connection.reason
    logger.log(level, what, extra=extra)


def _how_it_ended(connection: AgentConnection, ending: Ending | None) -> str:
    """Return the name of an end for the counters. ending: the hub's ending, or None if the hub needs none."""
    if ending is None or (connection.outcome is not None and connection.outcome[0] is Kind.CLIENT_GONE):
        return "client_gone"
    if ending.truncated:
        return "truncated"
    return "failed" if ending.code == ERROR else "complete"
