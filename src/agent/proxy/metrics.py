"""Measures a proxy's requests if metrics are on: how long each stage took, and which responses were sent.

An exchange notes the time at each change of stage. Without metrics it never reads the clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..runtime.histogram import Histogram

__all__ = ["RequestMetrics"]


class RequestMetrics:
    """Counts all requests of a proxy since its start.

    Attributes:
        policy: seconds of a policy that did not decide at once, such as a review.
        connect: seconds of a new connection to the target, with TLS. A pooled connection counts nothing.
        head: seconds from there to the response's head, including the request's body.
        body: seconds to the response's last byte, if the byte came after the head.
        whole: seconds from the request's head to the response's last byte, of whole responses only.
        at_once: seconds of most requests: a 2xx that arrived whole, without a wait for policy or connection. Here head
            and whole are the same.
        from_target: responses of targets by the first digit of their status, except those in `at_once`.
        own: responses of the proxy, by the same digit.
        cut: truncated responses. upgraded: 101s.
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
