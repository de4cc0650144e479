"""Selects the packet that the hub gets when a connection ends, by wire.md's table of endings.

The rows come from the proxy's `outcome(conn_id, kind, stage)`, never from events on the carrier. Without an outcome,
only one certain fact counts: whether any byte of a response has been sent to the hub.
"""

from __future__ import annotations

from typing import NamedTuple

from ..outcome import Kind, Stage
from ..tunnel.packet import CLOSE, ERROR

__all__ = ["Ending", "choose_ending"]


class Ending(NamedTuple):
    """The packet that ends one connection.

    code: the control packet to send after the queued bytes, or None for no packet.
    truncated: the client has a part of a response and can't see that it is only a part. The agent writes nothing more
        to that client, not even the ERROR for a packet of a closed id. The text of that ERROR would count as body.
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
    # Both directions of an upgraded connection have ended.
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
    """Return the ending from the table for one connection whose end the hub doesn't know yet.

    If the proxy reports a lost client without a report from the hub, the carrier failed. The hub's client is still
    there then, and the stage shows how much it has. Unexpected combinations are treated as failures at their stage,
    which is the safe side.

    outcome: the proxy's (kind, stage), or None without a report.
    response_bytes: how many of the carrier's bytes the tunnel has taken.
    hub_closes: `close` was negotiated.
    """
    if outcome is None:
        if response_bytes == 0:
            return _ERROR
        return _ERROR if hub_closes else _TRUNCATED
    row = _ENDINGS.get(outcome) or _ENDINGS[Kind.FAILED, outcome[1]]
    return row[hub_closes]
