"""What the hub is told when a connection ends: wire.md's table of endings, as a table.

The rows come from the proxy's `outcome(conn_id, kind, stage)`, never from what happened on the carrier. Without an
outcome, only what is certain counts: whether any byte of a response has gone to the hub.
"""

from __future__ import annotations

from typing import NamedTuple

from ..outcome import Kind, Stage
from ..tunnel.packet import CLOSE, ERROR

__all__ = ["Ending", "choose_ending"]


class Ending(NamedTuple):
    """code: the control packet to send after what is queued, None for nothing.

    truncated: the client has a part of a response and is not told that it is one. Nothing may be written to that
    client any more, not even the ERROR for a packet of a closed id: its text would count as body.
    """

    code: int | None
    truncated: bool = False


_NOTHING = Ending(None)
_CLOSE = Ending(CLOSE)
_ERROR = Ending(ERROR)
_TRUNCATED = Ending(None, truncated=True)

# (kind, stage): (base hub, hub with `close`), after wire.md, "How the proxy's end of a connection reaches the hub".
_ENDINGS: dict[tuple[Kind, Stage], tuple[Ending, Ending]] = {
    # After a complete response (also the proxy's own error response), or idle, at drain.
    (Kind.COMPLETE, Stage.IDLE): (_NOTHING, _CLOSE),
    # Both directions of an upgraded connection came to their end.
    (Kind.COMPLETE, Stage.UPGRADED): (_NOTHING, _CLOSE),
    # Nothing was outstanding, so nothing is missing.
    (Kind.FAILED, Stage.IDLE): (_NOTHING, _CLOSE),
    # Before any byte of the outstanding response, and not even an error response could be written.
    (Kind.FAILED, Stage.HEAD): (_ERROR, _ERROR),
    # In the middle of a chunked body: the text breaks the client's chunk parser, as it should.
    (Kind.FAILED, Stage.CHUNKED): (_ERROR, _ERROR),
    # In the middle of a Content-Length body, or after a 101: the text would count as body.
    (Kind.FAILED, Stage.SIZED): (_TRUNCATED, _ERROR),
    (Kind.FAILED, Stage.UPGRADED): (_TRUNCATED, _ERROR),
}


def choose_ending(outcome: tuple[Kind, Stage] | None, *, response_bytes: int, hub_closes: bool) -> Ending:
    """The row of the table for one connection whose end the hub doesn't know yet.

    outcome: the proxy's (kind, stage), None where it reported none. response_bytes: how many of the carrier's bytes
    have been handed to the tunnel. hub_closes: `close` was negotiated. A client that is gone for the proxy, though no
    hub said so, is a carrier that failed: the hub's client is still there, and the stage says what it has. Combinations
    that the proxy has no reason to give are treated as failures at their stage: the safe side.
    """
    if outcome is None:
        if response_bytes == 0:
            return _ERROR
        return _ERROR if hub_closes else _TRUNCATED
    row = _ENDINGS.get(outcome) or _ENDINGS[Kind.FAILED, outcome[1]]
    return row[hub_closes]
