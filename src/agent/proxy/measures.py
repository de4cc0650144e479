"""What the proxy measures of its requests where somebody asked for it: how long each stage took, and what was answered.

An exchange notes the time where it goes from one stage to the next; without measures it doesn't look at the clock.
"""

from __future__ import annotations

from agent.durations import Durations

__all__ = ["Measures"]


class Measures:
    """Of all requests of a proxy, since it was made.

    policy: where it had to be waited for, as for a review. connect: a new connection to the target, TLS included; none
    for a pooled one. head: from there to the response's head, so with the request's body. body: to the response's last
    byte, where that didn't come with the head. whole: from the request's head to the response's last byte, of whole
    responses only.
    from_target, own: answers by the first digit of their status: targets' responses, and the proxy's own answers.
    cut: responses that ended unfinished. upgraded: 101s.
    """

    __slots__ = ("body", "connect", "cut", "from_target", "head", "own", "policy", "upgraded", "whole")

    def __init__(self) -> None:
        self.policy, self.connect, self.head, self.body, self.whole = (Durations() for _ in range(5))
        self.from_target = [0] * 10
        self.own = [0] * 10
        self.cut = 0
        self.upgraded = 0
