"""One agent's tunnel, seen from the hub: opens connections to the agent's proxy and carries their bytes.

    hub's proxy ── transport ══ pipe ══ _Connection ── outbound ──► tunnel ──► agent
                                             ◄── packet_received ◄──

`AgentSession.connect` gives the hub's proxy a pipe end that behaves as a TCP connection to the agent would. All state
belongs to one session and dies with it (wire.md, "conn ids"): nothing here is handed to the next one.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable
from typing import cast

from fastpipe import PipeEnd, create_pipe

from ..errors import AgentError, Party, TargetError
from ..runtime.deadlines import Deadline
from ..tunnel.features import CLOSE as FEATURE_CLOSE
from ..tunnel.features import GOAWAY as FEATURE_GOAWAY
from ..tunnel.packet import CLOSE, DATA, DRAIN, ERROR
from ..tunnel.scheduler import Outbound
from ..tunnel.session import Tunnel
from ..tunnel.window import ReceiveWindow

__all__ = ["AgentSession"]

SAID_BYTES = 200
"""Of an agent's words, in an answer and in the log."""

logger = logging.getLogger(__name__)

PIPE_LIMIT_BYTES = 65536
BEHIND_BYTES = 4 * 1024 * 1024
"""A client this far behind what its agent has sent makes the hub stop reading the tunnel of a base agent; others have
credit for no more than is held here."""
BEHIND_TIMEOUT_S = 3.0
"""How long a client may keep the hub from reading; then its connection is ended, for the others' sake. Below the 5 s in
which agents expect the answer to their probe (wire.md, "connected")."""
GONE = "the client is gone"
LEFT_OPEN_TIMEOUT_S = 10.0
"""How long an agent that has said DRAIN may leave its stream open behind its last connection; then the hub ends it."""
PROBE_INTERVAL_S = 10.0
"""wire.md, "vanished clients": an empty DATA makes the other side say whether it still knows the connection."""


class _Connection(asyncio.Protocol):
    """The tunnel's side of one connection: pipe → packets, packets → pipe.

    With `close` each direction ends on its own; without, the connection ends with the first.
    """

    accepts_views = True

    def __init__(self, session: AgentSession, conn_id: int, near: PipeEnd) -> None:
        self.conn_id = conn_id
        self._session = session
        self._end: PipeEnd | None = None
        self._near: PipeEnd | None = near  # the proxy's end, until ours is gone
        self._outbound: Outbound | None = None
        self._agent_done = False  # it has sent CLOSE
        self._window: ReceiveWindow | None = None  # the agent's credit, where credit is counted
        self._held: deque[bytes | memoryview] = deque()  # what the pipe has no room for; only with credit
        self._held_bytes = 0
        self._full = False  # the pipe is
        self._ending = False  # the agent sends no more: an end follows what is held
        self._end_said = False
        self.bytes_sent = 0
        self.bytes_seen = 0
        self.probed_at_bytes = -1

    # -- the pipe's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        end = cast(PipeEnd, transport)
        self._end = end
        if self._ending:  # before it began: the session was lost meanwhile
            end.close()
            return
        self._outbound = self._session.tunnel.outbound(self.conn_id, end.pause_reading, end.resume_reading)
        self._window = self._session.tunnel.receive_window(self.conn_id)

    def data_received(self, data: bytes | memoryview) -> None:
        if self._outbound is not None:
            self.bytes_sent += len(data)
            self._outbound.write(data)

    def eof_received(self) -> bool:
        # Only after a 101. The base protocol has no half-close: with the client's end the connection ends, or an agent
        # whose target had ended as well would wait for the client for ever, and this hub for the agent.
        if not self._session.closes:
            return False
        if self._outbound is not None:
            self._outbound.finish(CLOSE)
        return not self._agent_done or bool(self._held)

    def connection_lost(self, exc: Exception | None) -> None:
        """The proxy is done with this connection, or its client is gone: either way the agent may forget it."""
        self._drop_held()
        self._near = None
        outbound, self._outbound = self._outbound, None
        if outbound is not None:
            if self._agent_done and exc is None:
                outbound.finish(CLOSE)
            elif exc is None and not outbound.finished:
                outbound.finish(ERROR, GONE)
            else:
                outbound.abort()
                self._session.tunnel.send(self.conn_id, ERROR, error_message=GONE)
        self._session.forget(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pump()
        self._session.caught_up(self)

    # -- the tunnel's side

    @property
    def is_announced(self) -> bool:
        """Whether the agent has been sent a packet of it."""
        if self._outbound is None:
            return self._end is not None  # it is over; before it is connected it hasn't begun
        return self.bytes_sent > 0 and not self._outbound.queued_bytes

    def deliver(self, data: bytes | memoryview) -> None:
        end = self._end
        if end is None or self._ending:  # the agent has said CLOSE or ERROR: this is nobody's
            return
        size = len(data)
        self.bytes_seen += size
        if self._window is None:
            end.write(data)
            if end.get_write_buffer_size() > BEHIND_BYTES:
                self._session.fell_behind(self)
        elif self._window.arrived(size):
            self._held.append(data)
            self._held_bytes += size
            self._pump()
        else:
            self._session.tunnel.exceeded(self.conn_id)

    def _pump(self) -> None:
        """Write what is held as far as the pipe has room, and give credit for what has been read."""
        end, held = self._end, self._held
        assert end is not None
        while held and not self._full:  # `write` may call `pause_writing`
            data = held.popleft()
            self._held_bytes -= len(data)
            end.write(data)
        if self._window is not None:
            # What the pipe takes without being full counts as read: it is no more than the pipe's own buffer.
            self._window.unread(self._held_bytes + (end.get_write_buffer_size() if self._full else 0))
        if not held and self._ending:
            self._finish()

    def agent_done(self) -> None:
        """The agent sends no more: the proxy gets what had come, then the end of stream."""
        if not self._agent_done:
            self._agent_done = True
            self._close_window()
            self._end_behind_held()

    def end(self, failure: TargetError) -> None:
        """The agent is done with this connection, or lost: the proxy gets what had come, then sees its upstream end.

        A whole response may stand right before the tunnel's end, as it does when an agent drains. failure: what the
        proxy says where the response was not whole.
        """
        if self._near is not None and not self._agent_done:
            self._near.set_extra_info("failure", failure)
        self._drop_outbound()
        self._close_window()
        self._end_behind_held()

    def _end_behind_held(self) -> None:
        self._ending = True
        if self._end is not None and not self._held:
            self._finish()

    def _finish(self) -> None:
        """Everything has been written: the end of stream, or of the connection where nothing goes to the agent."""
        assert self._end is not None
        if self._outbound is None or self._outbound.finished:
            self._end.close()
        elif not self._end_said:
            self._end_said = True
            self._end.write_eof()

    def _close_window(self) -> None:
        if self._window is not None:
            self._window.close()
            self._window = None

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        self._close_window()

    def abort(self) -> None:
        """End it now, with what the client has not taken yet."""
        self._drop_outbound()
        self._drop_held()
        if self._end is not None:
            self._end.abort()

    def _drop_outbound(self) -> None:
        outbound, self._outbound = self._outbound, None
        if outbound is not None:
            outbound.abort()


class _Opening(asyncio.Protocol):
    """The first protocol of the proxy's end: hands it on when it is connected, unless the session is lost by then.

    opened: done then; whether it was handed on.
    """

    def __init__(self, protocol: asyncio.Protocol, is_lost: Callable[[], bool]) -> None:
        self._protocol = protocol
        self._is_lost = is_lost
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.opened.done():
            return  # nobody waits for it any more
        lost = self._is_lost()
        if not lost:
            cast(asyncio.Transport, transport).set_protocol(self._protocol)
            self._protocol.connection_made(transport)
        self.opened.set_result(not lost)


class AgentSession:
    """The connections of one tunnel.

    tunnel: the tunnel's hub role. cluster: the name its agent gave. identity: whom the agent was authenticated as, ""
    where none was asked for. on_lost: called once, when the tunnel has ended, with the error unless that was in order.
    on_draining: called once, when nothing
    more is opened here. successor: the session that connections go to then; None where there is none. It is also the
    `Path` of each connection.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        cluster: str,
        identity: str,
        on_lost: Callable[[AgentSession, Exception | None], None],
        *,
        on_draining: Callable[[AgentSession], None] = lambda session: None,
        successor: Callable[[AgentSession], AgentSession | None] = lambda session: None,
    ) -> None:
        self.tunnel = tunnel
        self.cluster = cluster
        self.identity = identity
        self.draining = False
        self._carried = [0, 0]
        self._on_lost = on_lost
        self._on_draining = on_draining
        self._successor = successor
        self._left_open: asyncio.TimerHandle | None = None
        self._lost = False
        self._lost_reason = ""
        self._lost_fault: Party = "agent"
        self._liveness = tunnel.liveness
        if self._liveness is not None:
            self._liveness.watchers.append(self._suspicion_changed)
        self._ids = itertools.count(1)
        self._connections: dict[int, _Connection] = {}
        self._behind: dict[_Connection, Deadline] = {}
        self._loop = asyncio.get_running_loop()
        self._probe_timer = self._loop.call_later(PROBE_INTERVAL_S, self._probe)

    @property
    def closes(self) -> bool:
        """Whether each side says that it is done with a connection: `close` was negotiated."""
        return FEATURE_CLOSE in self.tunnel.features

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def carried_bytes(self) -> tuple[int, int]:
        """Clients' bytes from the agent and to it, so far."""
        connections = self._connections.values()
        return (
            self._carried[0] + sum(connection.bytes_seen for connection in connections),
            self._carried[1] + sum(connection.bytes_sent for connection in connections),
        )

    @property
    def suspected(self) -> bool:
        """Whether the agent is silent though it was asked (tunnel/liveness.py). Of a lost one: whether that is why."""
        return self._liveness is not None and self._liveness.suspected

    @property
    def silent_s(self) -> float:
        """How long no byte has come from the agent; 0 where nobody watches."""
        return 0.0 if self._liveness is None else self._liveness.silent_s

    def waits(self) -> bool:
        """A request has waited for its response's head: ask whether the agent lives. Part of `Path`.

        Returns whether the agent is suspected, and another session of the cluster serves.
        """
        return self._liveness is not None and self._liveness.ask() and self._other is not None

    @property
    def _other(self) -> AgentSession | None:
        """Another session that serves; None where there is none that isn't suspected too."""
        other = self._successor(self)
        return None if other is None or other is self or other.suspected else other

    async def connect(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Open a connection to the agent's proxy and give it to `protocol`.

        Returns its transport when `connection_made` has been called. Where the session drains, is lost or suspected,
        another one of the cluster opens it: nothing of the request has been sent. Raises TargetError (502, 503) where
        there is none; a session that is only suspected opens it then. Cancelled: the connection is aborted.
        """
        if self._lost or self.draining:
            other = self._successor(self)
            if other is not None:
                return await other.connect(protocol)
            if self._lost:
                raise TargetError(502, self._lost_reason, stage="connect", fault=self._lost_fault)
            raise TargetError(503, "the only agent of this cluster is being stopped", stage="connect", fault="agent")
        if self.suspected:
            other = self._other
            if other is not None:
                return await other.connect(protocol)
        near, far = create_pipe(limit=PIPE_LIMIT_BYTES)
        near.set_extra_info("path", self)
        connection = _Connection(self, next(self._ids), near)
        self._connections[connection.conn_id] = connection
        far.set_protocol(connection)
        opening = _Opening(protocol, lambda: self._lost)
        near.set_protocol(opening)
        try:
            opened = await opening.opened
        except asyncio.CancelledError:
            near.abort()
            raise
        if not opened:
            near.abort()
            return await self.connect(protocol)
        return cast(asyncio.Transport, near)

    def drain(self) -> None:
        """Open nothing more here, and tell the agent, where it knows what that means (`goaway`); nothing else changes.

        The agent then goes elsewhere; what is in flight finishes, and the agent ends the stream.
        """
        if FEATURE_GOAWAY in self.tunnel.features and not self._lost:
            self._start_draining()
            self.tunnel.say_drain()

    def _start_draining(self) -> None:
        if self.draining:
            return
        self.draining = True
        if FEATURE_GOAWAY in self.tunnel.features:
            for connection in self._connections.values():
                if not connection.is_announced:
                    self.tunnel.announce(connection.conn_id)
        self._on_draining(self)
        self._watch_end()

    def _watch_end(self) -> None:
        """The agent ends the stream behind the last connection; this side does, where it doesn't."""
        if self.draining and not self._lost and not self._connections and self._left_open is None:
            self._left_open = self._loop.call_later(LEFT_OPEN_TIMEOUT_S, self.tunnel.finish_when_sent)

    # -- what the tunnel calls (PacketReceiver)

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        connection = self._connections.get(conn_id)
        if code == DRAIN and conn_id == 0:
            self._start_draining()
        elif connection is None:
            # The agent's probe of a connection this hub has forgotten (wire.md, "vanished clients"); bytes that were on
            # their way when it was forgotten need no answer, for the agent has been told then.
            if code == DATA and not data and not self.closes:
                self.tunnel.send(conn_id, ERROR, error_message=f"unknown packet connection {conn_id}")
        elif code == DATA:
            connection.deliver(data)
        elif code == CLOSE:
            connection.agent_done()
        elif code == ERROR:
            reason = readable(error_message)
            extra = {"conn_id": conn_id, "cluster": self.cluster, "reason": reason, "fault": "agent"}
            logger.info("agent ended a connection", extra=extra)
            said = f"the agent says: {reason}" if reason else "the agent ended the connection"
            connection.end(TargetError(502, said, stage="response head", fault="agent"))
        else:
            logger.debug("packet with an unknown code", extra={"conn_id": conn_id, "code": code})

    def tunnel_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._lost_fault, reason = why_lost(error)
        self._lost_reason = f"the agent of this cluster was lost: {reason}"
        failure = TargetError(502, self._lost_reason, stage="response head", fault=self._lost_fault)
        if self._liveness is not None and self._suspicion_changed in self._liveness.watchers:
            self._liveness.watchers.remove(self._suspicion_changed)
        self._probe_timer.cancel()
        if self._left_open is not None:
            self._left_open.cancel()
        for timer in self._behind.values():
            timer.cancel()
        self._behind.clear()
        for connection in list(self._connections.values()):
            connection.end(failure)
        self._on_lost(self, error)

    def _suspicion_changed(self) -> None:
        extra = {"cluster": self.cluster, "peer": self.tunnel.peername}
        if self.suspected:
            extra["silent_s"] = round(self.silent_s, 1)
            logger.warning("agent is suspected: it is silent though it was asked", extra=extra)
        else:
            logger.info("agent was heard again", extra=extra)

    # -- what connections call

    def forget(self, connection: _Connection) -> None:
        if self._connections.pop(connection.conn_id, None) is not None:
            self._carried[0] += connection.bytes_seen
            self._carried[1] += connection.bytes_sent
        self.caught_up(connection)
        self._watch_end()

    def fell_behind(self, connection: _Connection) -> None:
        """Stop reading the tunnel until this client has caught up, or its time is over."""
        if connection not in self._behind and not self._lost:
            self._behind[connection] = Deadline(BEHIND_TIMEOUT_S, functools.partial(self._too_slow, connection))
            if len(self._behind) == 1:
                self.tunnel.pause_reading()

    def caught_up(self, connection: _Connection) -> None:
        timer = self._behind.pop(connection, None)
        if timer is not None:
            timer.cancel()
            if not self._behind and not self._lost:
                self.tunnel.resume_reading()

    def _too_slow(self, connection: _Connection) -> None:
        extra = {"conn_id": connection.conn_id, "cluster": self.cluster, "fault": "client"}
        logger.warning("client too slow: its connection is ended", extra=extra)
        self.tunnel.send(connection.conn_id, ERROR, error_message="the client is too slow")
        connection.abort()

    def _probe(self) -> None:
        self._probe_timer = self._loop.call_later(PROBE_INTERVAL_S, self._probe)
        if self.closes:  # the agent says when it is done
            return
        for connection in self._connections.values():
            if connection.probed_at_bytes == connection.bytes_seen:
                self.tunnel.send(connection.conn_id, DATA)
            connection.probed_at_bytes = connection.bytes_seen


def why_lost(error: Exception | None) -> tuple[Party, str]:
    """Whose fault the end of a session is, and what may be said of it to users and in the log."""
    if error is None:
        return "agent", "it ended its session"
    if isinstance(error, (AgentError, OSError)):
        said = (error.strerror if isinstance(error, OSError) else "") or str(error)
        return "agent", readable(said) or type(error).__name__
    return "hub", f"the hub failed ({type(error).__name__})"  # the log has it; its text may hold anything


def readable(text: str) -> str:
    """A peer's words, fit for a log line and for an answer: one line of printable characters, bounded."""
    return "".join(char if char.isprintable() else " " for char in text[:SAID_BYTES]).strip()
