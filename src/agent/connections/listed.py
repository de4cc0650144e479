"""The connections that ended here and that a base hub may still list (wire.md, "DRAIN to the hub").

A base hub reports that a client has closed only if it is asked. It may lock up for good if a session ends while it
lists a connection of that session.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

__all__ = ["ListedConnections"]

_QUESTIONS = 256  # in one round, since a base hub keeps 1,000 packets for an agent, replies included
_PATIENCE_S = 1.0  # how long a client may take to close behind its last response, and how often it gets an ERROR then


@dataclasses.dataclass(slots=True)
class _Listed:
    """until_s: loop time when the hub has certainly closed it. takes_error: its client has a whole response, so an
    ERROR's text is no part of one. error_at_s: when the next ERROR is due, where the session is about to end.
    """

    until_s: float
    takes_error: bool
    error_at_s: float


class ListedConnections:
    """Of one session, the oldest first. Times are the loop's, in seconds.

    listed_s: how long a hub lists a connection at most. ask: asks the hub about an id. end: sends an ERROR for one.
    """

    def __init__(self, listed_s: float, ask: Callable[[int], None], end: Callable[[int], None]) -> None:
        self._listed_s = listed_s
        self._ask = ask
        self._end = end
        self._listed: dict[int, _Listed] = {}

    def __len__(self) -> int:
        return len(self._listed)

    def __contains__(self, conn_id: int) -> bool:
        return conn_id in self._listed

    def add(self, conn_id: int, now_s: float, *, takes_error: bool, idle: bool) -> None:
        """The connection has ended here. idle: it was unused since a drain began, so its client is ended at once."""
        error_at_s = now_s if idle else now_s + _PATIENCE_S
        self._listed[conn_id] = _Listed(now_s + self._listed_s, takes_error, error_at_s)
        if idle:
            self._end_one(conn_id, now_s)

    def discard(self, conn_id: int) -> bool:
        """Remove an id that the hub does not know. Returns whether it was here."""
        return self._listed.pop(conn_id, None) is not None

    def clear(self) -> None:
        self._listed.clear()

    def forget_expired(self, now_s: float) -> int:
        """Remove the ids that the hub has certainly closed, even without a reply. Returns how many they are.

        This bounds the number of ids that are kept.
        """
        expired = list(itertools.takewhile(lambda conn_id: self._listed[conn_id].until_s <= now_s, self._listed))
        for conn_id in expired:
            del self._listed[conn_id]
        return len(expired)

    def end_due(self, now_s: float) -> None:
        """Make the hub close its clients if that breaks no response. It repeats, since the hub may drop an ERROR."""
        for conn_id in list(self._listed):
            self._end_one(conn_id, now_s)

    def _end_one(self, conn_id: int, now_s: float) -> None:
        listed = self._listed[conn_id]
        if listed.takes_error and now_s >= listed.error_at_s:
            listed.error_at_s = now_s + _PATIENCE_S
            self._end(conn_id)

    def ask(self) -> list[int]:
        """Ask the hub whether it still lists the oldest ids. Returns the ids that it was asked about."""
        asked = list(itertools.islice(self._listed, _QUESTIONS))
        for conn_id in asked:
            self._ask(conn_id)
        return asked

    def none_of(self, conn_ids: list[int]) -> bool:
        """Whether the hub lists none of these any longer."""
        return not self._listed.keys() & conn_ids
