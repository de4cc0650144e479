"""The agent's side: keeps one session with a hub, through everything that ends sessions."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ..errors import HubError
from .backoff import BackOff
from .budget import SharedBudget
from .call import Call, HubEndpoint, ReplacedError
from .features import FEATURES
from .grpc import check_metadata
from .packet import PacketReceiver
from .session import Tunnel
from .sizes import MESSAGE_BYTES, WINDOW_BYTES
from .window import WindowBudget

__all__ = ["HubEndpoint", "TunnelClient"]

_MAX_LEAVING = 4
"""The most sessions that drain at the hub's request. Past it, the oldest is closed."""

_DRAIN_ANSWER_TIMEOUT_S = 5.0
"""Seconds that a hub with `goaway` has for its reply to a DRAIN."""

_TURNED_AWAY_S = (5.0, 30.0)
"""The wait after a known hub closed before its first byte, since too many agents wait there (wire.md, "admission")."""

_PUSHBACK_SPREAD = (0.8, 1.2)
"""The range of a wait that a hub requested, as factors, so that its agents don't reconnect together."""

_FULL_FIRST_S = 5.0
"""The first wait if a hub has no room for another session. It doubles up to slow_retry_s."""

_LEAVE_POLL_S = 1.0
"""The interval of checks whether a draining session's last connection has closed."""

_VACATE_POLL_S = 0.1
"""The same for a session with a base hub that must end before the next one may be dialled."""

_LISTED_S = 31.0
"""Seconds that a base hub may list a connection, its 30 s and one more. A session that closes earlier may freeze the
hub. So a probe's reply may be as late while it lists some."""

_KNOWN_HUB_S = 10.0
"""The longest wait before a known hub is dialled again, since its users get 503 meanwhile."""

logger = logging.getLogger(__name__)


async def _wait(delay_s: float) -> None:
    await asyncio.sleep(delay_s)


class TunnelClient:
    """An agent's link to one hub. `await run()` dials, probes, serves, and reconnects until cancelled or drained.

    Args:
        hub: the endpoint, or a callable that returns it before each dial, for changed certificates.
        cluster_name: sent as metadata.
        metadata: further metadata with names in lower case, or a callable that returns it before each dial.
        open_receiver: called for each session, before its first packet.
        on_ready: called with the tunnel after the hub's reply to the first probe.
        on_lost: called with the tunnel and the error after a ready session has closed.
        backoff: the default waits, at most 10 s before a known hub.
        probe_interval_s: silence before a hub with features is probed. Base hubs are probed each interval (wire.md,
            "liveness").
        probe_timeout_s, first_probe_timeout_s: for the reply to a probe, and to the first probe of a session.
        dial_timeout_s, tls_timeout_s: for the TCP connection, and for the TLS handshake after it.
        stable_after_s: a session that was ready for this long resets the back-off.
        slow_retry_s: the wait, ± 50 %, after the hub rejected this agent's identity or has another agent for the
            cluster.
        wait: awaited with each delay, for tests.
        features: the extensions offered to hubs.
        windows: the shared budget of connections' windows.
        is_idle: whether no connection of a session is open, here or at its hub.
        ask_idle: asks the hub for its connections. Called before `is_idle` when a session drains.
        settle: awaited before a session with a hub without `goaway` closes. Returns when the hub lists no connection,
            or after its time.

    Attributes:
        sessions: the number of sessions that were ready so far.
        redials: the number of further dials by cause, as in HubError. `left` is for a GOAWAY or `reconnect_now`.

    Raises:
        ValueError: the metadata can't be sent.
    """

    def __init__(
        self,
        hub: HubEndpoint | Callable[[], HubEndpoint],
        *,
        cluster_name: str,
        open_receiver: Callable[[Tunnel], PacketReceiver],
        metadata: Iterable[tuple[str, str | bytes]] | Callable[[], Iterable[tuple[str, str | bytes]]] = (),
        on_ready: Callable[[Tunnel], None] = lambda tunnel: None,
        on_lost: Callable[[Tunnel, HubError | None], None] = lambda tunnel, error: None,
        backoff: BackOff | None = None,
        probe_interval_s: float = 10.0,
        probe_timeout_s: float = 5.0,
        first_probe_timeout_s: float = 20.0,
        dial_timeout_s: float = 10.0,
        tls_timeout_s: float = 30.0,
        stable_after_s: float = 30.0,
        slow_retry_s: float = 60.0,
        window_bytes: int = WINDOW_BYTES,
        message_bytes: int = MESSAGE_BYTES,
        user_agent: str = "fastpipe-agent",
        features: frozenset[str] = FEATURES,
        windows: WindowBudget | None = None,
        messages: SharedBudget | None = None,
        is_idle: Callable[[Tunnel], bool] = lambda tunnel: not tunnel.open_outbounds,
        ask_idle: Callable[[Tunnel], object] = lambda tunnel: None,
        settle: Callable[[Tunnel], Awaitable[object]] | None = None,
        wait: Callable[[float], Awaitable[None]] = _wait,
    ) -> None:
        self._hub = hub
        self._cluster_name = cluster_name
        self._metadata = metadata if callable(metadata) else list(metadata)
        if not callable(self._metadata):
            check_metadata(self._metadata)
        check_metadata([("cluster-name", cluster_name)])
        self._open_receiver = open_receiver
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._backoff = backoff or BackOff()
        self._probe_interval_s = probe_interval_s
        self._probe_timeout_s = probe_timeout_s
        self._first_probe_timeout_s = first_probe_timeout_s
        self._dial_timeout_s = dial_timeout_s
        self._tls_timeout_s = tls_timeout_s
        self._stable_after_s = stable_after_s
        self._slow_retry_s = slow_retry_s
        self._full = BackOff(min(_FULL_FIRST_S, slow_retry_s), 2.0, max_s=slow_retry_s)
        self._full_told = False  # once, until the hub has let this agent in
        self._window_bytes = window_bytes
        self._message_bytes = message_bytes
        self._user_agent = user_agent
        self._features = features
        self._windows = windows or WindowBudget()
        self._messages = messages
        self._is_idle = is_idle
        self._ask_idle = ask_idle
        self._settle = settle
        self._wait = wait
        self.sessions = 0
        self.redials: Counter[str] = Counter()
        self._calls: list[Call] = []  # the open sessions, the newest last
        self._up: set[Call] = set()  # those of them that are ready
        self._tending: set[asyncio.Task[None]] = set()
        self._kick = asyncio.Event()  # cut the wait short
        self._draining = False
        self._retiring = False
        self._reconnecting = False  # the next dial doesn't wait
        self._reached = ""  # the hub that replied last

    @property
    def ready(self) -> bool:
        """Whether a session is open and ready."""
        return bool(self._up)

    @property
    def peers(self) -> set[str]:
        """The addresses of the hubs with a session that does not drain."""
        found = [call.tunnel.peername for call in self._up if not call.left.done()]
        return {str(peer[0]) for peer in found if peer}

    async def run(self) -> None:
        """Keep a session with the hub until cancelled, or `drain` has ended the last. Cancelled: all are dropped."""
        try:
            while not self._draining:
                delay_s = await self._session()
                if delay_s > 0 and not self._draining:
                    await self._pause(delay_s)
            while self._tending:
                await asyncio.wait(self._tending)
        finally:
            for call in self._calls:
                call.fail(None)
            while self._tending:
                await asyncio.wait(self._tending)
            for call in self._calls:  # one that was never ready
                await call.wait_closed()
            self._calls.clear()

    def reconnect_now(self) -> None:
        """Dial at once, without waiting. A session in use drains.

        A hub without `goaway` gets the new session only after the old one. A second session beside connections may
        freeze it (wire.md, "DRAIN to the hub").
        """
        self._reconnecting = bool(self._up)
        for call in self._up:
            call.leave()
        self._backoff.reset()
        self._kick.set()

    def retire(self) -> None:
        """Stop dialling, and close each session after its last connection. Then `run` returns. May be called again."""
        self._draining = self._retiring = True
        self._kick.set()
        for call in self._calls:
            if call not in self._up:
                call.fail(None)
            elif call.drains_first:
                call.drain()
            call.leave()

    async def announce_drain(self, timeout_s: float = _DRAIN_ANSWER_TIMEOUT_S) -> bool:
        """Begin to leave for good: stop dialling, and ask hubs with `goaway` to open nothing further.

        Returns after the hubs' replies, or timeout_s seconds after the request, however often this is called. Until
        then new connections must be served. Returns whether a session was asked. If cancelled, the sessions stay open.
        """
        self._draining = True
        self._kick.set()
        asked = []
        for call in self._calls:
            if call not in self._up:
                call.fail(None)
            elif call.drains_first:
                call.drain()
                asked.append(call)
            call.leave()
        waiting = [call for call in asked if not (call.drained.done() or call.ended.done())]
        left_s = timeout_s - max((call.drain_age_s for call in waiting), default=0.0)
        if left_s < 0.002:  # uvloop's clock counts whole milliseconds
            return bool(asked)
        try:
            async with asyncio.timeout(left_s):
                for call in waiting:
                    await asyncio.wait((call.drained, call.ended), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            logger.warning("the hub did not respond to DRAIN within %g s", timeout_s)
        return bool(asked)

    async def drain(self, timeout_s: float) -> None:
        """Leave for good: send DRAIN on every session, wait for the streams' end, and abort after timeout_s seconds.

        Connections in flight must have ended before. A hub that did not reply to a DRAIN in time gets no further wait.
        A hub without `goaway` gets DRAIN when it lists no connection (`settle`). Then `run` returns. If cancelled, the
        sessions are aborted at once.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        try:
            async with asyncio.timeout_at(deadline_s):
                await self.announce_drain(timeout_s)
            base = [call for call in self._calls if call in self._up and not call.drains_first]
            if base:
                await asyncio.gather(*(self._finish_base(call) for call in base))
                deadline_s = loop.time() + timeout_s
            async with asyncio.timeout_at(deadline_s):
                answering = [call for call in self._calls if call.drained.done() or not call.drains_first]
                for call in answering:
                    if call in self._up:
                        call.finish()
                if answering:
                    await asyncio.wait([call.ended for call in answering])
        except TimeoutError:
            logger.warning("the hub did not end the stream within %g s", timeout_s)
        finally:
            for call in list(self._calls):
                call.fail(None)

    async def _finish_base(self, call: Call) -> None:
        """Send DRAIN to a hub without `goaway`, in the same loop turn in which it is known to list nothing."""
        if self._settle is not None:
            await self._settle(call.tunnel)
        call.finish()

    async def _session(self) -> float:
        """Run one session until it closes or drains. Returns the wait before the next session, in seconds."""
        loop = asyncio.get_running_loop()
        endpoint = self._hub() if callable(self._hub) else self._hub
        extra = {"hub": str(endpoint)}
        extra_metadata = self._metadata() if callable(self._metadata) else self._metadata
        call = Call(
            endpoint,
            check_metadata([("cluster-name", self._cluster_name), *extra_metadata]),
            self._user_agent,
            window_bytes=self._window_bytes,
            message_bytes=self._message_bytes,
            features=self._features,
            windows=self._windows,
            messages=self._messages,
        )
        self._calls.append(call)
        call.tunnel.open(self._open_receiver(call.tunnel))
        try:
            await call.dial(self._dial_timeout_s, self._tls_timeout_s)
            await call.probe(self._first_probe_timeout_s)
        except HubError as error:
            call.fail(error)
            await call.wait_closed()
            self._calls.remove(call)
            if self._draining:
                return 0
            return self._after(error, extra)
        ready_at_s = loop.time()
        self._up.add(call)
        self.sessions += 1
        self._reached = str(endpoint)
        self._full.reset()
        self._full_told = False
        logger.info("the tunnel is up", extra=extra)
        self._on_ready(call.tunnel)
        task = loop.create_task(self._tend(call))
        self._tending.add(task)
        task.add_done_callback(self._tending.discard)
        await asyncio.wait((call.ended, call.left), return_when=asyncio.FIRST_COMPLETED)
        if call.left.done() and not call.drains_first:
            await self._vacate(call)
        if self._draining:
            return 0
        stable = loop.time() - ready_at_s >= self._stable_after_s
        if stable:
            self._backoff.reset()
        if call.ended.done() and not (call.left.done() and call.ended.result() is None):
            return self._after(call.ended.result() or HubError("the hub closed the tunnel"), extra)
        leaving = [one for one in self._calls if one.left.done()]
        for old in [one for one in leaving[:-_MAX_LEAVING] if one.drains_first or self._is_idle(one.tunnel)]:
            old.fail(HubError("too many sessions are being left"))
        self.redials["left"] += 1
        if stable or self._reconnecting:
            self._reconnecting = False
            return 0
        return self._backoff.next_s(_KNOWN_HUB_S)

    async def _vacate(self, call: Call) -> None:
        """Let a session that is left end before the same hub gets another, where it has no `goaway`."""
        loop = asyncio.get_running_loop()
        while not (call.ended.done() or self._draining or self._is_elsewhere(call.endpoint)):
            if not call.vacating:
                call.vacating = True
                logger.info("the next session waits for the end of this one", extra={"hub": str(call.endpoint)})
            self._kick.clear()
            kicked = loop.create_task(self._kick.wait())
            try:
                await asyncio.wait((call.ended, kicked), return_when=asyncio.FIRST_COMPLETED)
            finally:
                kicked.cancel()

    def _is_elsewhere(self, old: HubEndpoint) -> bool:
        """Whether another hub is dialled now."""
        endpoint = self._hub() if callable(self._hub) else self._hub
        return (endpoint.host, endpoint.port) != (old.host, old.port)

    async def _tend(self, call: Call) -> None:
        """Probe a session until it closes, and close it if the hub stops replying."""
        loop = asyncio.get_running_loop()
        try:
            while not call.ended.done():
                delay_s = call.next_probe_s(self._probe_interval_s) - loop.time()
                waits: tuple[asyncio.Future[Any], ...] = (call.ended, call.left)
                if call.left.done():
                    self._go_on_leaving(call)
                    delay_s = min(delay_s, _VACATE_POLL_S if call.vacating else _LEAVE_POLL_S)
                    waits = (call.ended,)
                await asyncio.wait(waits, timeout=max(0.0, delay_s), return_when=asyncio.FIRST_COMPLETED)
                late_s = loop.time() - call.next_probe_s(self._probe_interval_s)
                if late_s >= 0 and not call.ended.done():
                    listed = not call.drains_first and not self._is_idle(call.tunnel)
                    await call.probe(self._probe_timeout_s, least_s=_LISTED_S if listed else 0.0)
        except HubError as error:
            call.fail(error)
        finally:
            call.fail(HubError("the client was stopped"))
            self._calls.remove(call)
            self._up.discard(call)
            outcome = call.ended.result()
            if call.left.done() or outcome is None:
                logger.info("the session is closed", extra={"hub": str(call.endpoint)})
            self._on_lost(call.tunnel, outcome)
            await call.wait_closed()

    def _go_on_leaving(self, call: Call) -> None:
        """Take the next step of an orderly end, where its time has come."""
        replaced = not all(other.left.done() for other in self._up)
        if not call.drains_first:
            if replaced or self._retiring or call.vacating:
                self._ask_idle(call.tunnel)
                if self._is_idle(call.tunnel):
                    call.finish()
            if call.finish_age_s > _DRAIN_ANSWER_TIMEOUT_S:
                call.fail(HubError("the hub did not end the stream behind DRAIN"))
            return
        if replaced:  # until then the hub has nobody else to send to
            call.drain()
        answered = call.drained.done() or call.drain_age_s > _DRAIN_ANSWER_TIMEOUT_S
        if answered and self._is_idle(call.tunnel):
            call.finish()

    def _after(self, error: HubError, extra: dict[str, str]) -> float:
        """Log and count the reason for the missing session. Returns the wait in seconds."""
        self.redials[error.cause] += 1
        if error.cause == "full":
            delay_s = self._full.next_s()
            level = logging.DEBUG if self._full_told else logging.ERROR
            self._full_told = True
            logger.log(level, "%s; trying again, with waits of up to %.0f s", error, self._slow_retry_s, extra=extra)
            return delay_s
        if error.retryable:
            if error.pushback_s is not None:
                delay_s = self._backoff.between_s(*(part * error.pushback_s for part in _PUSHBACK_SPREAD))
            elif error.unheard and self._reached == extra["hub"]:
                delay_s = self._backoff.between_s(*_TURNED_AWAY_S)
            else:
                delay_s = self._backoff.next_s(_KNOWN_HUB_S if self._reached == extra["hub"] else None)
            logger.warning("%s; trying again in %.1f s", error, delay_s, extra=extra)
            return delay_s
        delay_s = self._backoff.spread_s(self._slow_retry_s)
        level = logging.WARNING if isinstance(error, ReplacedError) else logging.ERROR
        logger.log(level, "%s; trying again in %.0f s", error, delay_s, extra=extra)
        return delay_s

    async def _pause(self, delay_s: float) -> None:
        """Wait, unless there is something else to do."""
        self._kick.clear()
        if self._draining:
            return
        loop = asyncio.get_running_loop()
        waits = [loop.create_task(self._kick.wait()), asyncio.ensure_future(self._wait(delay_s))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
