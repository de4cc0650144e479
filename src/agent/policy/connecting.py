"""CONNECT at the agent: from `host:port` to the addresses that the agent dials, by `connect_allow`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from ..errors import Refused, TargetError
from ..messages import RequestHead, Target
from ..syntax import Address, ConnectEntry, IpAddress, find_address, parse_authority
from .connect_rules import ConnectRules

__all__ = ["ConnectPolicy", "Resolve"]

Resolve = Callable[[str, int], Awaitable[list[tuple[Any, ...]]]]
"""Returns the addresses of a name, as `getaddrinfo` does. Raises TargetError."""

CLUSTER_FIELD = b"tunnel-cluster"


class ConnectPolicy:
    """Chooses the target of each CONNECT from a hub.

    Args:
        entries: of `connect_allow`.
        cluster: the agent's own name.
        resolve: looks names up.
        is_own: whether the agent itself listens on an address and port. It never connects to these.
    """

    def __init__(
        self,
        entries: Iterable[ConnectEntry],
        *,
        cluster: str,
        resolve: Resolve,
        is_own: Callable[[IpAddress, int], bool] = lambda address, port: False,
    ) -> None:
        self._cluster = cluster.encode("ascii")
        self._resolve = resolve
        self._is_own = is_own
        self.use(entries)

    def use(self, entries: Iterable[ConnectEntry]) -> None:
        """Take these entries for every CONNECT from now on. Open connections stay."""
        self._rules = ConnectRules(tuple(entries))

    async def route(self, request: RequestHead) -> Target:
        """Return a raw target with the addresses to dial. If cancelled, nothing is left.

        Raises:
            Refused: 400, 421 for another cluster, 403 with the entry that is missing.
            TargetError: 502 or 504, if the name can't be resolved.
        """
        rules = self._rules
        names = [value for name, value in request.headers if name.lower() == CLUSTER_FIELD]
        if names != [self._cluster]:
            raise Refused(421, "this connection leads to another cluster")
        try:
            host, port = parse_authority(request.target.decode("ascii"))
        except ValueError as error:
            raise Refused(400, f"the target of CONNECT {error}") from None
        rules.check_name(host, port)
        try:
            found = await self._resolve(host, port)
        except TargetError as error:
            if error.status == 502:
                rules.check(host, port, [])  # a name that no entry names is 403, whether it exists or not
            raise
        addresses = {address: info for info in found if (address := find_address(info[4][0])) is not None}
        allowed = rules.check(host, port, list(addresses))
        if any(self._is_own(address, port) for address in allowed):
            raise Refused(403, "the agent does not connect to its own addresses (health_address)")
        return Target(
            f"http://{Address(host, port)}", is_raw=True, addresses=tuple(addresses[address] for address in allowed)
        )
