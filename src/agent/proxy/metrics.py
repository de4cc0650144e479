"""What the proxy measures of its requests where somebody asked for it: how long each stage took, and what was answered.

An exchange notes the time where it goes from one stage to the next; without metrics it doesn't look at the clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..runtime.histogram import Histogram

__all__ = ["RequestMetrics"]


class RequestMetrics:
    """Of all requests of a proxy, since it was made.

    policy: where it had to be waited for, as for a review. connect: a new connection to the target, TLS included; none
    for a pooled one. head: from there to the response's head, so with the request's body. body: to the response's last
    byte, where that didn't come with the head. whole: from the request's head to the response's last byte, of whole
    responses only. at_once: of 2xx responses that came whole at once, and waited for neither policy nor connection:
    head and whole are the same for these, and they are most of all.
    from_target, own: answers by the first digit of their status: targets' responses but for those of `at_once`, and the
    proxy's own answers.
    cut: responses that ended unfinished. upgraded: 101s.
    """

    __slots__ = ("at_once", "body", "connect", "cut", "from_target", "head", "own", "policy", "upgraded", "whole")

    def __init__(self) -> None:
        self.at_once, self.policy, self.connect, self.head, self.body, self.whole = (Histogram() for _ in range(6))
        self.from_target = [0] * 10
        self.own = [0] * 10
        self.cut = 0
        self.upgraded = 0

    def settle(self) -> None:
        """Count what has come in: to be called every fraction of a second while requests are measured."""
        for durations in (self.at_once, self.policy, self.connect, self.head, self.body, self.whole):
            durations.settle()

    @property
    def responses(self) -> list[int]:
        """Targets' responses by the first digit of their status, those of `at_once` among them."""
        counts = self.from_target.copy()
        counts[2] += self.at_once.cumulative[-1]
        return counts

    @property
    def stages(self) -> Mapping[str, Histogram]:
        """Histogram by stage, those of `at_once` among them."""
        return {
            "policy": self.policy,
            "connect": self.connect,
            "head": self.head + self.at_once,
            "body": self.body,
            "whole": self.whole + self.at_once,
        }
