"""Asks the policy about a request: its target, and the head that goes there. It is synchronous if the policy is."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import PolicyError
from ..messages import RequestHead, Target

__all__ = ["Decision", "PendingDecision", "Process", "Route", "decide"]

Route = Callable[[RequestHead], "Target | Awaitable[Target]"]
Process = Callable[[RequestHead, Target], "RequestHead | Awaitable[RequestHead]"]
Decision = tuple[Target, RequestHead]


class PendingDecision:
    """A decision that has to be awaited. One of `settle` and `forget` is called, once."""

    __slots__ = ("_awaited", "_head", "_process", "_target")

    def __init__(
        self, awaited: Awaitable[Any], head: RequestHead, process: Process | None, target: Target | None
    ) -> None:
        self._awaited = awaited
        self._head = head
        self._process = process
        self._target = target

    async def settle(self) -> Decision:
        """Await it. Raises what the policy raises, PolicyError. Cancelled: so is the policy."""
        target, processed = self._target, await self._awaited
        if target is None:
            target, processed = processed, self._head
            if not isinstance(target, Target):
                raise PolicyError("route", "a Target or an awaitable of one", type(target).__name__)
            if self._process is not None:
                processed = self._process(self._head, target)
                if inspect.isawaitable(processed):
                    processed = await processed
        if not isinstance(processed, RequestHead):
            raise PolicyError("process", "a RequestHead or an awaitable of one", type(processed).__name__)
        return decided(target, processed)

    def forget(self) -> None:
        """Close a coroutine that has not begun, since nobody will await it."""
        if inspect.iscoroutine(self._awaited):
            self._awaited.close()


def decide(head: RequestHead, route: Route, process: Process | None) -> Decision | PendingDecision:
    """The target of a request, and its head as the processor leaves it. Raises what the policy raises, PolicyError."""
    target = route(head)
    if not isinstance(target, Target):
        if not inspect.isawaitable(target):
            raise PolicyError("route", "a Target or an awaitable of one", type(target).__name__)
        return PendingDecision(target, head, process, None)
    if process is None:
        return target, head
    processed = process(head, target)
    if not isinstance(processed, RequestHead):
        if not inspect.isawaitable(processed):
            raise PolicyError("process", "a RequestHead or an awaitable of one", type(processed).__name__)
        return PendingDecision(processed, head, process, target)
    return decided(target, processed)


def decided(target: Target, head: RequestHead) -> Decision:
    """The connection to the target is one of the identity that the processor named."""
    if head.client_identity != target.client_identity:
        target = target.with_identity(head.client_identity)
    return target, head
