"""Opens connections to one agent's proxy over its tunnel, and carries their bytes.

    hub's proxy ── transport ══ pipe ══ HubConnection ── outbound ──► tunnel ──► agent
                                               ◄── packet_received ◄──

`AgentSession.connect` gives the hub's proxy a pipe end that behaves as a TCP connection to the agent would. All state
belongs to one session (wire.md, "conn ids"). The next session inherits nothing.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
from collections.abc import Callable
from typing import cast

from fastpipe import create_pipe

from ..connections.connection import Outbound, State, TunnelConnection
from ..connections.hub_connection import HubConnection
from ..connections.inbound import UNBOUNDED_BYTES, FirstPacketBudget, Inbound
from ..connections.probing import Prober
from ..errors import AgentError, Party, TargetError
from ..messages import Target
from ..runtime.deadlines import Deadline
from ..syntax import readable
from ..tunnel.features import CLOSE as FEATURE_CLOSE
from ..tunnel.features import GOAWAY as FEATURE_GOAWAY
from ..tunnel.features import WINDOW as FEATURE_WINDOW
from ..tunnel.packet import CLOSE, DATA, DRAIN, ERROR
from ..tunnel.session import Tunnel
from ..tunnel.window import ReceiveWindow

__all__ = ["AgentSession"]

logger = logging.getLogger(__name__)

OPEN = State.OPEN

PIPE_LIMIT_BYTES = 65536
BEHIND_BYTES = 4 * 1024 * 1024
"""The most bytes that a client may lag behind its base agent. Beyond them the hub stops reading the tunnel.

Other agents have no credit for more than the hub holds.
"""
BEHIND_TIMEOUT_S = 3.0
"""How long a client may keep the hub from reading. Then the hub closes the client's connection, to spare the others.
The time is below the 5 s in which agents expect the reply to their probe (wire.md, "connected")."""
LEFT_OPEN_TIMEOUT_S = 10.0
"""How long the stream may stay open after DRAIN and the last connection. Then the hub ends the stream."""
PROBE_INTERVAL_S = 10.0
"""The time between two empty DATA for a connection. If the other side has forgotten the connection, it sends ERROR
(wire.md, "vanished clients")."""


class _Opening(asyncio.Protocol):
    """The first protocol of the proxy's end. Once connected, it passes the end to the real protocol.

    If the session is lost by then, it keeps the end.

    Args:
        protocol: the real protocol.
        is_lost: whether the session is lost.

    Attributes:
        opened: whether the real protocol got the end. Done once the end is connected.
    """

    def __init__(self, protocol: asyncio.Protocol, is_lost: Callable[[], bool]) -> None:
        self._protocol = protocol
        self._is_lost = is_lost
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.opened.done():
            return  # `connect` was cancelled
        lost = self._is_lost()
        if not lost:
            cast(asyncio.Transport, transport).set_protocol(self._protocol)
            self._protocol.connection_made(transport)
        self.opened.set_result(not lost)


class AgentSession:
    """The connections of one tunnel. It is also the `Path` of each connection.

    Args:
        tunnel: the tunnel's hub role.
        cluster: the cluster name that the agent sent.
        identity: the authenticated identity of the agent, "" if the hub requires none.
        on_lost: called once, when the tunnel has ended. Its second argument is the error, None after an orderly end.
        on_draining: called once, when the session stops opening connections.
        successor: returns the session that then opens connections, None without one.

    Attributes:
        targets: the targets of requests for this agent, by their public prefix. The hub makes and keeps them.
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
        self.targets: dict[bytes, Target] = {}
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
        self._connections: dict[int, HubConnection] = {}
        self._behind: dict[HubConnection, Deadline] = {}
        self._loop = asyncio.get_running_loop()
        self._budget = FirstPacketBudget(UNBOUNDED_BYTES, UNBOUNDED_BYTES)  # credit, or a pause of the tunnel, bounds
        self._prober = Prober(PROBE_INTERVAL_S, self._connections.values, self._probe, self._watches)

    @property
    def peer_closes(self) -> bool:
        """Whether each side reports that it is done with a connection (`close` was negotiated)."""
        return FEATURE_CLOSE in self.tunnel.features

    @property
    def _counts_credit(self) -> bool:
        """Whether credit limits what the agent sends (`window` was negotiated)."""
        return FEATURE_WINDOW in self.tunnel.features

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def carried_bytes(self) -> tuple[int, int]:
        """Clients' bytes from the agent and to it, so far."""
        connections = self._connections.values()
        return (
            self._carried[0] + sum(connection.received_bytes for connection in connections),
            self._carried[1] + sum(connection.sent_bytes for connection in connections),
        )

    @property
    def suspected(self) -> bool:
        """Whether the agent did not reply to a probe (tunnel/liveness.py). It stays True if that ended the session."""
        return self._liveness is not None and self._liveness.suspected

    @property
    def silent_s(self) -> float:
        """The time since the agent's last byte, 0 if no `Liveness` watches."""
        return 0.0 if self._liveness is None else self._liveness.silent_s

    def waits(self) -> bool:
        """Probe the agent, since a request has waited for its response's head. Part of `Path`.

        Returns:
            Whether the agent is suspected and another session of the cluster serves.
        """
        return self._liveness is not None and self._liveness.ask() and self._other is not None

    @property
    def _other(self) -> AgentSession | None:
        """Another session that serves and is not suspected, None without one."""
        other = self._successor(self)
        return None if other is None or other is self or other.suspected else other

    async def connect(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Open a connection to the agent's proxy and give it to `protocol`.

        If the session drains, is lost or is suspected, another session of the cluster opens the connection. That is
        safe, since nothing of the request has been sent. If there is no other, a suspected session still opens it.
        If cancelled, the connection is aborted.

        Returns:
            The connection's transport, after `connection_made` was called.

        Raises:
            TargetError: 502 if the session is lost, 503 if it drains, and no other session serves.
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
        connection = HubConnection(next(self._ids), self, near)
        connection.attach(far, Inbound(far, self._budget, limit_bytes=UNBOUNDED_BYTES, uncounted_bytes=UNBOUNDED_BYTES))
        self._connections[connection.conn_id] = connection
        if not self.peer_closes:  # else the agent reports when it is done
            self._prober.watch(connection)
        far.set_protocol(cast(asyncio.Protocol, connection))  # by its methods, not its base
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
        """Stop opening connections, and send DRAIN to the agent. Without `goaway` it does nothing.

        The agent then dials another hub. Requests in flight finish, and the agent ends the stream.
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
        """End the stream LEFT_OPEN_TIMEOUT_S after the last connection, if the agent has not ended it."""
        if self.draining and not self._lost and not self._connections and self._left_open is None:
            self._left_open = self._loop.call_later(LEFT_OPEN_TIMEOUT_S, self.tunnel.finish_when_sent)

    # -- what the tunnel calls (PacketReceiver)

    def packet_received(self, conn_id: int, code: int, data: bytes | memoryview, error_message: str) -> None:
        connection = self._connections.get(conn_id)
        if code == DRAIN and conn_id == 0:
            self._start_draining()
        elif connection is None:
            # Only a probe of a forgotten connection needs a reply (wire.md, "vanished clients"). Late bytes need none,
            # because the agent got the connection's end before.
            if code == DATA and not data and not self.peer_closes:
                self.tunnel.send(conn_id, ERROR, error_message=f"unknown packet connection {conn_id}")
        elif code == DATA:
            if connection.state is OPEN and not connection.peer_done:  # else it is nobody's
                self._deliver(connection, data)
        elif code == CLOSE:
            connection.peer_finished()
        elif code == ERROR:
            reason = readable(error_message)
            extra = {"conn_id": conn_id, "cluster": self.cluster, "reason": reason, "fault": "agent"}
            logger.info("agent ended a connection", extra=extra)
            said = f"the agent reported: {reason}" if reason else "the agent ended the connection"
            connection.peer_ended(TargetError(502, said, stage="response head", fault="agent"))
        else:
            logger.debug("packet with an unknown code", extra={"conn_id": conn_id, "code": code})

    def _deliver(self, connection: HubConnection, data: bytes | memoryview) -> None:
        if not data:  # a probe of an open connection needs no reply
            return
        if not connection.feed(data):
            self.tunnel.exceeded(connection.conn_id)
        elif not self._counts_credit and connection.waiting_bytes > BEHIND_BYTES:
            self._fell_behind(connection)

    def tunnel_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._lost_fault, reason = why_lost(error)
        self._lost_reason = f"the agent of this cluster was lost: {reason}"
        failure = TargetError(502, self._lost_reason, stage="response head", fault=self._lost_fault)
        if self._liveness is not None and self._suspicion_changed in self._liveness.watchers:
            self._liveness.watchers.remove(self._suspicion_changed)
        self._prober.cancel()
        if self._left_open is not None:
            self._left_open.cancel()
        for timer in self._behind.values():
            timer.cancel()
        self._behind.clear()
        for connection in list(self._connections.values()):
            connection.peer_ended(failure)
        self._on_lost(self, error)

    def _suspicion_changed(self) -> None:
        extra = {"cluster": self.cluster, "peer": self.tunnel.peername}
        if self.suspected:
            extra["silent_s"] = round(self.silent_s, 1)
            logger.warning("agent is suspected: no byte since the probe", extra=extra)
        else:
            logger.info("agent was heard again", extra=extra)

    # -- what connections call

    def outbound(self, conn_id: int, pause: Callable[[], None], resume: Callable[[], None]) -> Outbound:
        return self.tunnel.outbound(conn_id, pause, resume)

    def receive_window(self, conn_id: int) -> ReceiveWindow | None:
        return self.tunnel.receive_window(conn_id)

    def late_error(self, conn_id: int, text: str) -> None:
        self.tunnel.send(conn_id, ERROR, error_message=text)

    def connection_closed(self, connection: HubConnection) -> None:
        if self._connections.pop(connection.conn_id, None) is not None:
            self._carried[0] += connection.received_bytes
            self._carried[1] += connection.sent_bytes
        self.connection_caught_up(connection)
        self._watch_end()

    def _fell_behind(self, connection: HubConnection) -> None:
        """Stop reading the tunnel until this client has caught up or its time has passed."""
        if connection not in self._behind and not self._lost:
            self._behind[connection] = Deadline(BEHIND_TIMEOUT_S, functools.partial(self._too_slow, connection))
            if len(self._behind) == 1:
                self.tunnel.pause_reading()

    def connection_caught_up(self, connection: HubConnection) -> None:
        timer = self._behind.pop(connection, None)
        if timer is not None:
            timer.cancel()
            if not self._behind and not self._lost:
                self.tunnel.resume_reading()

    def _too_slow(self, connection: HubConnection) -> None:
        extra = {"conn_id": connection.conn_id, "cluster": self.cluster, "fault": "client"}
        logger.warning("client too slow, connection closed", extra=extra)
        connection.abort("the client is too slow")

    def _watches(self, now_s: float) -> bool:
        return bool(self._connections)

    def _probe(self, connection: TunnelConnection) -> None:
        """Probe a connection on which the agent has sent nothing since the last turn."""
        assert isinstance(connection, HubConnection)
        if connection.probed_at_bytes == connection.received_bytes:
            self.tunnel.send(connection.conn_id, DATA)
        connection.probed_at_bytes = connection.received_bytes


def why_lost(error: Exception | None) -> tuple[Party, str]:
    """Return who caused the end of a session, and a reason that users and the log may show."""
    if error is None:
        return "agent", "it ended its session"
    if isinstance(error, (AgentError, OSError)):
        said = (error.strerror if isinstance(error, OSError) else "") or str(error)
        return "agent", readable(said) or type(error).__name__
    return "hub", f"the hub failed ({type(error).__name__})"  # its text may hold anything, and the log has it
