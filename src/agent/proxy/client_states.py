"""The states of an HTTP/1.1 client's connection, and the events that change them: `server.ClientConnection`'s table.

    HEAD:       REQUEST ─► WAITING, REQUEST_WITH_BODY ─► BODY, LINGER ─► LINGERING, CLOSE ─► CLOSED, LOST ─► CLOSED
    BODY:       BODY_END ─► WAITING, RESPONSE_END ─► DRAINING, SWITCH ─► UPGRADED, LINGER ─► LINGERING,
                CLOSE ─► CLOSED, LOST ─► CLOSED
    WAITING:    RESPONSE_END ─► HEAD, SWITCH ─► UPGRADED, CLOSE ─► CLOSED, LOST ─► CLOSED
    DRAINING:   BODY_END ─► HEAD, LINGER ─► LINGERING, CLOSE ─► CLOSED, LOST ─► CLOSED
    UPGRADED:   CLOSE ─► CLOSED, LOST ─► CLOSED
    LINGERING:  CLOSE ─► CLOSED, LOST ─► CLOSED
    CLOSED:     CLOSE ─► CLOSED, LOST ─► CLOSED

A malformed message, a client's FIN (EOF) and a deadline are no events of the table. The connection judges each of them
by its state, and the verdict is LINGER, CLOSE or LOST. A pair without an entry is a bug. It closes the connection.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["NEXT", "NEXT_BY_STATE", "Event", "State"]


class State(enum.Enum):
    """Decides how the next byte from the client is read."""

    __hash__ = object.__hash__  # the table is indexed by both, at C's speed

    HEAD = "head"
    """Of a request's head."""
    BODY = "body"
    """Of the body of the request in flight."""
    WAITING = "waiting"
    """Behind the request in flight, which is whole."""
    DRAINING = "draining"
    """Of the body of a request that has had its response."""
    UPGRADED = "upgraded"
    """Of a tunnel."""
    LINGERING = "lingering"
    """Ignored, so that the client can read its response before the connection closes."""
    CLOSED = "closed"
    """Ignored: our side is closed."""


class Event(enum.Enum):
    """An event that can change the state."""

    __hash__ = object.__hash__

    REQUEST = "request"
    """A whole head arrived, of a request without a body."""
    REQUEST_WITH_BODY = "request with body"
    """A whole head arrived, of a request with a body."""
    BODY_END = "body end"
    """The request's body was read to its end."""
    RESPONSE_END = "response end"
    """The response was sent to its end, and another may follow."""
    SWITCH = "switch"
    """A 101 was sent."""
    LINGER = "linger"
    """The connection must close, and the client may still send: malformed, too much, too late, the last one."""
    CLOSE = "close"
    """The connection closes once its written bytes are sent."""
    LOST = "lost"
    """The transport is closed or aborted."""


NEXT: Final[dict[tuple[State, Event], State]] = {
    (State.HEAD, Event.REQUEST): State.WAITING,
    (State.HEAD, Event.REQUEST_WITH_BODY): State.BODY,
    (State.HEAD, Event.LINGER): State.LINGERING,
    (State.BODY, Event.BODY_END): State.WAITING,
    (State.BODY, Event.RESPONSE_END): State.DRAINING,
    (State.BODY, Event.SWITCH): State.UPGRADED,  # what is left of the body goes through the tunnel first
    (State.BODY, Event.LINGER): State.LINGERING,
    (State.WAITING, Event.RESPONSE_END): State.HEAD,
    (State.WAITING, Event.SWITCH): State.UPGRADED,
    (State.DRAINING, Event.BODY_END): State.HEAD,
    (State.DRAINING, Event.LINGER): State.LINGERING,
    **{(state, Event.CLOSE): State.CLOSED for state in State},
    **{(state, Event.LOST): State.CLOSED for state in State},
}

NEXT_BY_STATE: Final[dict[State, dict[Event, State]]] = {
    state: {event: after for (before, event), after in NEXT.items() if before is state} for state in State
}
"""The same table, for a look-up that makes no tuple. Each request has three look-ups."""
