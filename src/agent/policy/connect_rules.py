"""The rules of `connect_allow`: which addresses a CONNECT may reach. Without an entry there are none.

    entry                  allows
    db.prod.svc:5432       that name, whatever addresses it has
    *.svc:1-65535          every name below `svc`, of one or more labels before it
    10.0.0.0/8:443         an address in the network, or a name all of whose addresses lie in such networks

Some addresses lead into this machine, or to the keys of a cloud (`FORBIDDEN`). In each case they are dropped, unless an
entry names that address, or a network within those ranges. So a name can't lead inside, and neither can `0.0.0.0/0`.

An IPv6 address that carries an IPv4 address counts as both. Only an IPv4-mapped address (`::ffff:0:0/96`) is the same
host as its IPv4 address. Others, such as `64:ff9b::/96`, need an IPv6 entry, and are dropped for their IPv4 address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from ..errors import Refused
from ..syntax import Address, ConnectEntry, IpAddress, IpNetwork, find_address

__all__ = ["FORBIDDEN", "ConnectRules", "carried_address"]

FORBIDDEN: tuple[IpNetwork, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8",  # unspecified: Linux takes 0.0.0.0 for this machine
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, with the metadata service of most clouds
            "224.0.0.0/4",  # multicast
            "255.255.255.255/32",  # broadcast
            "168.63.129.16/32",  # Azure's metadata
            "100.100.100.200/32",  # Alibaba's metadata
            "::/128",
            "::1/128",
            "fe80::/10",
            "ff00::/8",
            "fd00:ec2::254/128",  # Amazon's metadata
        ),
    )
)
"""Addresses that only an entry for them allows."""

_CARRIERS: tuple[tuple[ipaddress.IPv6Network, int], ...] = tuple(
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),  # IPv4-mapped (RFC 4291, section 2.5.5.2)
        ("64:ff9b::/96", 0),  # NAT64 (RFC 6052, section 2.1)
        ("2002::/16", 80),  # 6to4 (RFC 3056, section 2)
        ("::/96", 0),  # IPv4-compatible, deprecated (RFC 4291, section 2.5.5.1)
    )
)
"""Networks whose addresses carry an IPv4 address, and how many bits are behind it."""


def carried_address(address: IpAddress) -> IpAddress:
    """Return the IPv4 address that an IPv6 address carries, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address) and int(address) > 1:  # `::` and `::1` are IPv6's own
        for network, shift in _CARRIERS:
            if address in network:
                return ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF)
    return address


def _carried_network(network: IpNetwork) -> IpNetwork:
    """The IPv4 network that an IPv6 network carries, or the network itself."""
    if isinstance(network, ipaddress.IPv6Network):
        for carrier, shift in _CARRIERS:
            if network.subnet_of(carrier) and int(network.network_address) > 1:
                first = ipaddress.IPv4Address(int(network.network_address) >> shift & 0xFFFFFFFF)
                length = min(32, network.prefixlen - (96 - shift))
                return ipaddress.IPv4Network((first, length), strict=False)
    return network


def _is_forbidden(address: IpAddress) -> bool:
    carried = carried_address(address)
    return any(address in network or carried in network for network in FORBIDDEN)


def _is_within_forbidden(network: IpNetwork) -> bool:
    return any(
        each.subnet_of(forbidden)  # type: ignore[arg-type]  # of one version
        for each in (network, _carried_network(network))
        for forbidden in FORBIDDEN
        if each.version == forbidden.version
    )


class ConnectRules:
    """Entries of `connect_allow`, which never change."""

    def __init__(self, entries: Iterable[ConnectEntry]) -> None:
        self._names: list[ConnectEntry] = []
        self._networks: list[tuple[ConnectEntry, IpNetwork, bool]] = []
        for entry in entries:
            if entry.network is None:
                self._names.append(entry)
            else:
                self._networks.append((entry, entry.network, _is_within_forbidden(entry.network)))

    def check_name(self, host: str, port: int) -> None:
        """Check whether any address of the host could be allowed, before it is resolved. Raises Refused: 403."""
        address = find_address(host)
        if address is not None:
            self.check(host, port, [address])
        elif not self._names_host(host, port) and not any(entry.has_port(port) for entry, _, _ in self._networks):
            raise _refused(Address(_plain_name(host), port))

    def check(self, host: str, port: int, addresses: Sequence[IpAddress]) -> list[IpAddress]:
        """Return the addresses to dial, in the order given.

        Args:
            host: the name or address that the client asked for.
            addresses: all addresses of it. Without one, an entry must name the host.

        Raises:
            Refused: 403, with the entry that is missing.
        """
        found = [_unmapped(address) for address in addresses]
        is_name = find_address(host) is None
        is_named = is_name and self._names_host(host, port)
        if not is_named and not (found and all(self._lies_in_network(address, port) for address in found)):
            raise _refused(Address(_plain_name(host) if is_name else str(found[0]), port))
        allowed = [address for address in found if not _is_forbidden(address) or self._names_address(address, port)]
        if found and not allowed:
            raise _refused(Address(str(found[0]), port), f", which {_plain_name(host)} leads to" if is_name else "")
        return allowed

    def _names_host(self, host: str, port: int) -> bool:
        name = _plain_name(host)
        return any(entry.has_port(port) and entry.has_name(name) for entry in self._names)

    def _lies_in_network(self, address: IpAddress, port: int) -> bool:
        return any(entry.has_port(port) and address in network for entry, network, _ in self._networks)

    def _names_address(self, address: IpAddress, port: int) -> bool:
        """Whether an entry names this forbidden address, or a network within the forbidden ranges."""
        return any(
            entry.has_port(port) and address in network and (is_narrow or network.num_addresses == 1)
            for entry, network, is_narrow in self._networks
        )


def _plain_name(host: str) -> str:
    return host.lower().removesuffix(".")


def _unmapped(address: IpAddress) -> IpAddress:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _refused(missing: Address, why: str = "") -> Refused:
    return Refused(403, f"the agent does not allow this CONNECT: connect_allow has no entry {missing}{why}")
