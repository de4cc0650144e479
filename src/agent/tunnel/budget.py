"""Limits the memory of unfinished messages, over all calls of all connections.

A gRPC message is kept until its last byte arrives. Its sender may stop in the middle. Without a limit, 100 calls of one
connection that each stop after 4 MiB hold 400 MiB of the hub's memory.

    MessageReader ──take──► account of its stream ──► MessageBudget
                  ◄──no───                              ends the call that holds most, on the connection that holds most

The received bytes of an unfinished message are charged. They are given back when the message is whole, or when its
stream or connection ends.

The hub ends one call if more bytes would exceed the budget. If the hub always ended the call that asks, a peer that
holds the whole budget would end all others. So the hub takes the connection that holds most, and ends its largest call.

For an agent, the hub is the only peer. It has few streams, and they carry the requests of many users. So an agent skips
the message, and only the message's connection fails (`SparedAccount`).
"""

from __future__ import annotations

from typing import Protocol

from ..http2.stream import Http2Stream
from . import message_rules
from .messages import ByteAccount, MessageReader

__all__ = ["MessageBudget", "SharedBudget", "SparedAccount"]

MESSAGE_BUDGET_BYTES = 64 * 1024 * 1024
"""The limit of a hub: sixteen of the longest messages, or a thousand of those that our agents send."""

SPARED_BYTES = 1024 * 1024
"""The bytes of each session's unfinished message that need no budget. With a spent budget, other requests continue."""


class SharedBudget(ByteAccount, Protocol):
    """The budget of an agent's accounts. It also holds the bytes that wait for slow targets."""


class MessageBudget:
    """The hub's, for all streams of all connections. limit_bytes: how much may be held."""

    def __init__(self, limit_bytes: int = MESSAGE_BUDGET_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.ended_calls = 0
        """The number of calls that the budget ended so far."""
        self._holding: dict[object, dict[_Account, None]] = {}  # by connection

    def account(self, stream: Http2Stream) -> ByteAccount:
        """Return the account for this stream's unfinished messages."""
        return _Account(self, stream)

    def take(self, account: _Account, size_bytes: int) -> bool:
        """Charge these bytes to one of this budget's accounts. Returns False if its call must end."""
        while self.held_bytes + size_bytes > self.limit_bytes:
            victim = self._largest(account, size_bytes)
            if victim is account:
                self.ended_calls += 1
                return False
            before = self.held_bytes
            victim.end_call()
            if self.held_bytes >= before:
                return False
            self.ended_calls += 1
        if not account.held_bytes:
            self._holding.setdefault(account.stream.connection, {})[account] = None
        self.held_bytes += size_bytes
        account.held_bytes += size_bytes
        return True

    def give_back(self, account: _Account, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        account.held_bytes -= size_bytes
        if not account.held_bytes:
            connection = account.stream.connection
            accounts = self._holding[connection]
            del accounts[account]
            if not accounts:
                del self._holding[connection]

    def _largest(self, asking: _Account, size_bytes: int) -> _Account:
        """Return the largest account of the connection that holds most. `asking` counts with its new bytes."""

        def held(account: _Account) -> int:
            return account.held_bytes + (size_bytes if account is asking else 0)

        groups = {connection: list(accounts) for connection, accounts in self._holding.items()}
        own = groups.setdefault(asking.stream.connection, [])
        if asking not in own:
            own.append(asking)
        return max(max(groups.values(), key=lambda accounts: sum(map(held, accounts))), key=held)


class _Account:
    """One stream's."""

    __slots__ = ("_budget", "held_bytes", "stream")

    def __init__(self, budget: MessageBudget, stream: Http2Stream) -> None:
        self._budget = budget
        self.stream = stream
        self.held_bytes = 0

    def take(self, size_bytes: int) -> bool:
        return self._budget.take(self, size_bytes)

    def give_back(self, size_bytes: int) -> None:
        self._budget.give_back(self, size_bytes)

    def end_call(self) -> None:
        """End the call, which gives back what it holds."""
        reader = self.stream.reader
        assert isinstance(reader, MessageReader)  # nothing else charges this account
        reader.refuse(message_rules.message_crowded_out(self.held_bytes))


class SparedAccount:
    """An agent's session. It charges a shared budget only for its bytes beyond SPARED_BYTES."""

    __slots__ = ("_budget", "_charged_bytes", "held_bytes")

    def __init__(self, budget: SharedBudget) -> None:
        self._budget = budget
        self._charged_bytes = 0
        self.held_bytes = 0

    def take(self, size_bytes: int) -> bool:
        due = max(self.held_bytes + size_bytes - SPARED_BYTES, 0)
        if due > self._charged_bytes and not self._budget.take(due - self._charged_bytes):
            return False
        self._charged_bytes = due
        self.held_bytes += size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        due = max(self.held_bytes - SPARED_BYTES, 0)
        if due < self._charged_bytes:
            self._budget.give_back(self._charged_bytes - due)
            self._charged_bytes = due
