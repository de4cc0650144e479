"""An agent's links to its hubs: one for each configured address, and where that is a name of several, one to each.

Where a hub runs several times behind one name (a headless Service), a user's request may come to any of them. Names are
looked up again and again, so new hubs are dialled soon after they are known by DNS.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple

from ..syntax import Address, is_ip_address
from ..tunnel.client import TunnelClient

__all__ = ["HubLinks", "resolve"]

logger = logging.getLogger(__name__)

RESOLVE_INTERVAL_S = 30.0
RESOLVE_TIMEOUT_S = 5.0


class Link(NamedTuple):
    """What a client dials. number: of the configured address, from 0. host, ip: a name and which of its addresses; both
    "" where what is configured is dialled as it is. left: 0, or a number of its own where it is being left: its
    address may be wanted again before its last connection has gone.
    """

    number: int
    host: str
    ip: str
    left: int = 0


async def resolve(host: str) -> list[str]:
    """The addresses of a name, of one family: each is a hub's.

    An IPv4 and an IPv6 address are most likely one hub's, so the family that has more is taken. Raises OSError,
    UnicodeError, TimeoutError.
    """
    async with asyncio.timeout(RESOLVE_TIMEOUT_S):
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        families.setdefault(family, []).append(str(address[0]))
    return max((list(dict.fromkeys(ips)) for ips in families.values()), key=len, default=[])


class HubLinks:
    """Keeps the links of an agent.

    make: the client of a link, by the configured address's number and the IP address to dial, "" for the name itself.
    addresses: the configured ones now. is_proxied: whether this one is dialled through a proxy, which looks names up.
    """

    def __init__(
        self,
        make: Callable[[int, str], TunnelClient],
        addresses: Callable[[], tuple[Address, ...]],
        is_proxied: Callable[[int], bool],
    ) -> None:
        self._make = make
        self._addresses = addresses
        self._is_proxied = is_proxied
        self._links: dict[Link, tuple[TunnelClient, asyncio.Task[None]]] = {}
        self._lefts = itertools.count(1)
        self._look = asyncio.Event()
        self._held = False

    @property
    def clients(self) -> list[TunnelClient]:
        """All of them, those that are being left included."""
        return [client for client, _ in self._links.values()]

    def clients_of(self, number: int) -> list[TunnelClient]:
        """Those of one configured address."""
        return [client for link, (client, _) in self._links.items() if link.number == number]

    @property
    def by_hub(self) -> list[tuple[str, list[TunnelClient]]]:
        """Each configured address, as HOST:PORT, with its links."""
        return [(str(address), self.clients_of(number)) for number, address in enumerate(self._addresses())]

    def look_again(self) -> None:
        """Look at the configuration, and look names up, now.

        A link to an address of a name that isn't configured any more dials no more, from this call on: it would send
        the token there, under the name that is configured now.
        """
        self._leave_moved()
        self._look.set()

    def hold(self) -> None:
        """Make no new links: those there are, are on their way out."""
        self._held = True

    async def run(self) -> None:
        """Keep links until cancelled; all are dropped then. Raises what a client fails with, which is a bug."""
        try:
            while True:
                self._look.clear()
                if not self._held:
                    await self._arrange()
                timer = asyncio.ensure_future(self._look.wait())
                try:
                    tasks = [task for _, task in self._links.values()]
                    await asyncio.wait([timer, *tasks], timeout=RESOLVE_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    timer.cancel()
                for link, (_, task) in list(self._links.items()):
                    if task.done():  # it was left, and has gone
                        del self._links[link]
                        task.result()
        finally:
            tasks = [task for _, task in self._links.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _arrange(self) -> None:
        """Start the links that are missing, and leave those of no use any more."""
        addresses = self._addresses()
        wanted = await asyncio.gather(*(self._of(number, address) for number, address in enumerate(addresses)))
        if self._held or addresses != self._addresses():  # in the latter case `_look` is set
            return
        self._leave_moved()
        for link in (link for links in wanted for link in links or ()):
            if link not in self._links and not self._is_reached(link):
                client = self._make(link.number, link.ip)
                self._links[link] = client, asyncio.ensure_future(client.run())
        for link, (client, _) in list(self._links.items()):
            now = wanted[link.number]
            # One that DNS doesn't name just now, and that answers, goes on: not every answer has all addresses.
            if not link.left and now is not None and link not in now and not client.ready:
                self._leave(link)

    def _leave_moved(self) -> None:
        """Leave the links to addresses of names that aren't configured any more."""
        addresses = self._addresses()
        for link in list(self._links):
            if not link.left and link.host not in ("", addresses[link.number].host):
                self._leave(link)

    def _leave(self, link: Link) -> None:
        client, _ = self._links[link]
        client.retire()
        self._links[link._replace(left=next(self._lefts))] = self._links.pop(link)

    def _is_reached(self, link: Link) -> bool:
        """Whether this address has a tunnel already, dialled by the name alone when it had no other."""
        named = self._links.get(Link(link.number, "", ""))
        return named is not None and link.ip in named[0].peers

    async def _of(self, number: int, address: Address) -> set[Link] | None:
        """The links of one configured address; None for those that there are, where its name can't be looked up."""
        itself = {Link(number, "", "")}
        if is_ip_address(address.host) or self._is_proxied(number):
            return itself
        try:
            ips = await resolve(address.host)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            logger.debug("a hub's name can't be looked up", extra={"hub": str(address), "reason": str(error)})
            known = any(link.number == number and link.host in ("", address.host) for link in self._links)
            return None if known else itself  # dialling it says what is wrong
        links = {Link(number, address.host, ip) for ip in ips}
        if len(links) > 1:
            return links
        # One hub: dialling the name is as good, but where it has a tunnel from a time when there were more. A base hub
        # would give that one up for a second, with what is in flight.
        return links if any(link in self._links and self._links[link][0].ready for link in links) else itself
