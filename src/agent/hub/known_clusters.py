"""The clusters that the hub knows, so that a wrong path is not reported as a missing agent.

named by the token file, or an agent is connected (draining) or was within the last hour    503, with Retry-After
otherwise                                                                                    404
within STARTING_S of the hub's start                                                         503, agents reconnect
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from ..errors import Refused

__all__ = ["HEARD", "UNKNOWN", "UNKNOWN_SEGMENT", "KnownClusters"]

REMEMBERED_S = 3600.0
STARTING_S = 60.0
"""Agents dial a hub that was reached before at most this long after it is back."""
MOST = 10_000
"""Clusters remembered without an agent: those seen last. Without tokens and certificates an agent may name any."""

HEARD = "Its agent must have been connected within the last hour"
UNKNOWN = f"the hub knows no cluster of this name: names are in lower case. {HEARD}"
UNKNOWN_SEGMENT = (
    "the hub knows no such cluster: the first segment of the path must be a cluster's name in lower case, as in "
    f"/<cluster>/path. {HEARD}"
)
ABSENT = "no agent is connected for this cluster"


class KnownClusters:
    """Remembers the clusters whose last agent has left.

    is_known: whether the configuration names a cluster, or an agent of it is connected. clock: seconds, monotonic.
    """

    def __init__(self, is_known: Callable[[str], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_known = is_known
        self._clock = clock
        self._started_s: float | None = None
        self._seen_s: OrderedDict[str, float] = OrderedDict()  # when its last agent left, the latest last

    def start(self) -> None:
        """The hub starts now."""
        self._started_s = self._clock()

    def seen(self, cluster: str) -> None:
        """An agent of the cluster leaves now."""
        self._seen_s[cluster] = self._clock()
        self._seen_s.move_to_end(cluster)
        if len(self._seen_s) > MOST:
            self._seen_s.popitem(last=False)

    def refusal(self, cluster: str, *, hint: str) -> Refused:
        """The response for a cluster without an agent. hint: the text for an unknown cluster."""
        now_s = self._clock()
        is_starting = self._started_s is None or now_s - self._started_s < STARTING_S
        if is_starting or self._is_known(cluster) or now_s - self._seen_s.get(cluster, float("-inf")) <= REMEMBERED_S:
            return Refused(503, ABSENT, fault="agent", cluster=cluster)
        self._seen_s.pop(cluster, None)
        return Refused(404, hint)
