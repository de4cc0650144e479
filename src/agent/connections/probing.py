"""The schedule of probes, at either end. A probe asks the peer about one connection (wire.md, "vanished clients")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from .connection import TunnelConnection

__all__ = ["Prober"]

_TICKS_PER_PROBE = 10  # connections are probed in turn, not all in one burst


class Prober:
    """The timer that probes connections, each once per interval.

    A tick also finds proxies that left behind a half-close. It must be made on the connections' event loop.

    interval_s: may become shorter at any time.
    connections: returns the connections that are open now.
    probe: asks the peer about one connection.
    on_tick: called at the end of each tick with the loop's time, in seconds. Returns whether there is more to watch.
    """

    def __init__(
        self,
        interval_s: float,
        connections: Callable[[], Iterable[TunnelConnection]],
        probe: Callable[[TunnelConnection], None],
        on_tick: Callable[[float], bool],
    ) -> None:
        self.interval_s = interval_s
        self._tick_s = interval_s / _TICKS_PER_PROBE
        self._connections = connections
        self._probe = probe
        self._on_tick = on_tick
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connection: TunnelConnection) -> None:
        """Probe this connection from one interval from now on."""
        connection.probe_at_s = self._loop.time() + self.interval_s
        self.start()

    def start(self) -> None:
        """Tick from now on, until nothing is left to watch. Again is no error."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._tick_s, self._tick)

    def cancel(self) -> None:
        """Tick no more. Again is no error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ask(self, connection: TunnelConnection) -> None:
        """Probe this connection now. Its next turn is one interval from now."""
        connection.probe_at_s = self._loop.time() + self.interval_s
        self._probe(connection)

    def _tick(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        for connection in list(self._connections()):
            if connection.eof_seen and connection.peer_closed():
                connection.connection_lost(None)
            elif connection.probe_at_s <= now_s:
                self.ask(connection)
        if self._on_tick(now_s):
            self.start()
