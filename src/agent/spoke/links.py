"""Keeps an agent's links to its hubs, one for each configured address. A name of several hubs has one for each.

If several hubs run behind one name (a headless Service), a user's request may reach any of them. So the agent needs a
link to each hub. It looks names up regularly, and dials a new hub soon after DNS has it.
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
    """The place that a client dials.

    number: the number of the configured address, from 0.
    host, ip: a name and one of its addresses. Both are "" if the configured address is dialled as it is.
    left: 0, or a unique number while the agent leaves the link. Another link to the same address may start meanwhile.
    """

    number: int
    host: str
    ip: str
    left: int = 0


async def resolve(host: str) -> list[str]:
    """Look up the addresses of a name, of one family. Each address is a hub's.

    An IPv4 and an IPv6 address most likely belong to one hub. So the result is the family with more addresses. Raises
    OSError, UnicodeError, TimeoutError.
    """
    async with asyncio.timeout(RESOLVE_TIMEOUT_S):
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        families.setdefault(family, []).append(str(address[0]))
    return max((list(dict.fromkeys(ips)) for ips in families.values()), key=len, default=[])


class HubLinks:
    """Keeps the links of an agent.

    make: makes the client of a link. Its arguments are the configured address's number and the IP address to dial. ""
        means the name itself.
    addresses: returns the configured addresses of now.
    is_proxied: whether the address of this number is dialled through a proxy, which looks names up.
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
        """The clients of all links, including those that the agent leaves."""
        return [client for client, _ in self._links.values()]

    def clients_of(self, number: int) -> list[TunnelClient]:
        """The clients of one configured address."""
        return [client for link, (client, _) in self._links.items() if link.number == number]

    @property
    def by_hub(self) -> list[tuple[str, list[TunnelClient]]]:
        """Each configured address, as HOST:PORT, with its links."""
        return [(str(address), self.clients_of(number)) for number, address in enumerate(self._addresses())]

    def look_again(self) -> None:
        """Compare the links with the configuration, and look names up, now.

        If a name is no longer configured, links to its addresses stop dialling with this call. Such a dial would send
        the token to the old address, under the name that is configured now.
        """
        self._leave_moved()
        self._look.set()

    def hold(self) -> None:
        """Make no new links, because the agent drains."""
        self._held = True

    async def run(self) -> None:
        """Keep links until cancelled, then drop all. Raises the exception of a failed client, which is a bug."""
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
                    if task.done():  # the agent has left the link
                        del self._links[link]
                        task.result()
        finally:
            tasks = [task for _, task in self._links.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    async def _arrange(self) -> None:
        """Start the links that are missing, and leave those that are no longer needed."""
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
            # A link that is ready stays, even if DNS doesn't list its address. Not every response has all addresses.
            if not link.left and now is not None and link not in now and not client.ready:
                self._leave(link)

    def _leave_moved(self) -> None:
        """Leave the links to addresses of names that are no longer configured."""
        addresses = self._addresses()
        for link in list(self._links):
            if not link.left and link.host not in ("", addresses[link.number].host):
                self._leave(link)

    def _leave(self, link: Link) -> None:
        client, _ = self._links[link]
        client.retire()
        self._links[link._replace(left=next(self._lefts))] = self._links.pop(link)

    def _is_reached(self, link: Link) -> bool:
        """Whether this address has a tunnel already, from a dial of the name when it had one address."""
        named = self._links.get(Link(link.number, "", ""))
        return named is not None and link.ip in named[0].peers

    async def _of(self, number: int, address: Address) -> set[Link] | None:
        """The links of one configured address, or None to keep its links if its name can't be looked up."""
        itself = {Link(number, "", "")}
        if is_ip_address(address.host) or self._is_proxied(number):
            return itself
        try:
            ips = await resolve(address.host)
        except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
            logger.debug("a hub's name can't be looked up", extra={"hub": str(address), "reason": str(error)})
            known = any(link.number == number and link.host in ("", address.host) for link in self._links)
            return None if known else itself  # the failed dial is logged with its reason
        links = {Link(number, address.host, ip) for ip in ips}
        if len(links) > 1:
            return links
        # A name with one address is dialled by the name, unless the address already has a tunnel. A base hub would drop
        # that tunnel and its requests in flight for a second tunnel.
        return links if any(link in self._links and self._links[link][0].ready for link in links) else itself
