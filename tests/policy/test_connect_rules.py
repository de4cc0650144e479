"""The rules of `connect_allow`: what they allow, and 40 targets that they refuse."""

from __future__ import annotations

import ipaddress
import random

import pytest

from agent.errors import Refused
from agent.policy.connect_rules import FORBIDDEN, ConnectRules, carried_address
from agent.syntax import parse_connect_entry


def rules(*entries: str) -> ConnectRules:
    return ConnectRules([parse_connect_entry(entry) for entry in entries])


def dialled(found: ConnectRules, host: str, port: int, *addresses: str) -> list[str]:
    found.check_name(host, port)
    return [str(address) for address in found.check(host, port, [ipaddress.ip_address(each) for each in addresses])]


ALLOWED = [
    ("db.prod.svc:5432", "db.prod.svc", 5432, "10.1.2.3"),
    ("db.prod.svc:5432", "DB.Prod.SVC.", 5432, "10.1.2.3"),
    ("DB.prod.svc.:5432", "db.prod.svc", 5432, "203.0.113.1"),
    ("*.svc:1-65535", "a.svc", 1, "10.1.2.3"),
    ("*.svc:1-65535", "a.b.c.svc.", 65535, "10.1.2.3"),
    ("10.0.0.0/8:443", "10.255.255.255", 443, "10.255.255.255"),
    ("10.0.0.0/8:443", "any.name", 443, "10.0.0.1"),
    ("10.1.1.1:443", "10.1.1.1", 443, "10.1.1.1"),
    ("10.0.0.0/8:443", "::ffff:10.1.1.1", 443, "10.1.1.1"),
    ("fd00::/8:443", "fd00::1", 443, "fd00::1"),
    ("[fd00::1]:443", "fd00:0::0:1", 443, "fd00::1"),
    ("127.0.0.1:6379", "127.0.0.1", 6379, "127.0.0.1"),
    ("127.0.0.0/8:6379", "127.9.9.9", 6379, "127.9.9.9"),
    ("[::1]:6379", "::1", 6379, "::1"),
    ("127.0.0.1:6379", "localhost", 6379, "127.0.0.1"),
    ("169.254.169.254:80", "169.254.169.254", 80, "169.254.169.254"),
    ("64:ff9b::/96:443", "64:ff9b::a00:1", 443, "64:ff9b::a00:1"),
    ("[64:ff9b::7f00:1]:443", "64:ff9b::7f00:1", 443, "64:ff9b::7f00:1"),
    ("64:ff9b::7f00:0/104:443", "64:ff9b::7f00:1", 443, "64:ff9b::7f00:1"),
    ("2002:7f00:1::/48:443", "2002:7f00:1::5", 443, "2002:7f00:1::5"),
    ("0.0.0.0/0:1-65535", "8.8.8.8", 53, "8.8.8.8"),
]


@pytest.mark.parametrize(("entry", "host", "port", "address"), ALLOWED)
def test_an_entry_allows_its_names_and_addresses(entry: str, host: str, port: int, address: str) -> None:
    assert dialled(rules(entry), host, port, address) == [address]


EVERYTHING = ("0.0.0.0/0:1-65535", "::/0:1-65535", "*.example.com:1-65535", "localhost:1-65535")
"""Entries that allow nearly every name and address, but name no forbidden one."""

# (entries, host, port, the host's addresses, the entry that the 403 names)
REFUSED = [
    # Loopback in every spelling.
    (EVERYTHING, "127.0.0.1", 80, ["127.0.0.1"], "127.0.0.1:80"),
    (EVERYTHING, "127.255.255.254", 80, ["127.255.255.254"], "127.255.255.254:80"),
    (EVERYTHING, "localhost", 80, ["127.0.0.1", "::1"], "127.0.0.1:80"),
    (EVERYTHING, "LOCALHOST.", 80, ["::1"], "[::1]:80"),
    (EVERYTHING, "127.1", 80, ["127.0.0.1"], "127.0.0.1:80"),
    (EVERYTHING, "2130706433", 80, ["127.0.0.1"], "127.0.0.1:80"),
    (EVERYTHING, "0x7f000001", 80, ["127.0.0.1"], "127.0.0.1:80"),
    (EVERYTHING, "0177.0.0.1", 80, ["127.0.0.1"], "127.0.0.1:80"),
    (EVERYTHING, "::1", 80, ["::1"], "[::1]:80"),
    (EVERYTHING, "0:0:0:0:0:0:0:1", 80, ["::1"], "[::1]:80"),
    (EVERYTHING, "::ffff:127.0.0.1", 80, ["::ffff:127.0.0.1"], "127.0.0.1:80"),
    (EVERYTHING, "::ffff:7f00:1", 80, ["::ffff:7f00:1"], "127.0.0.1:80"),
    (EVERYTHING, "::127.0.0.1", 80, ["::127.0.0.1"], "[::7f00:1]:80"),
    (EVERYTHING, "64:ff9b::127.0.0.1", 80, ["64:ff9b::7f00:1"], "[64:ff9b::7f00:1]:80"),
    (EVERYTHING, "2002:7f00:1::", 80, ["2002:7f00:1::"], "[2002:7f00:1::]:80"),
    # Unspecified.
    (EVERYTHING, "0.0.0.0", 80, ["0.0.0.0"], "0.0.0.0:80"),
    (EVERYTHING, "0", 80, ["0.0.0.0"], "0.0.0.0:80"),
    (EVERYTHING, "::", 80, ["::"], "[::]:80"),
    (EVERYTHING, "::ffff:0.0.0.0", 80, ["::ffff:0.0.0.0"], "0.0.0.0:80"),
    # Link-local and multicast.
    (EVERYTHING, "169.254.1.1", 80, ["169.254.1.1"], "169.254.1.1:80"),
    (EVERYTHING, "fe80::1", 80, ["fe80::1"], "[fe80::1]:80"),
    (EVERYTHING, "64:ff9b::a9fe:a9fe", 80, ["64:ff9b::a9fe:a9fe"], "[64:ff9b::a9fe:a9fe]:80"),
    (EVERYTHING, "224.0.0.1", 80, ["224.0.0.1"], "224.0.0.1:80"),
    (EVERYTHING, "ff02::1", 80, ["ff02::1"], "[ff02::1]:80"),
    # Metadata.
    (EVERYTHING, "169.254.169.254", 80, ["169.254.169.254"], "169.254.169.254:80"),
    (EVERYTHING, "fd00:ec2::254", 80, ["fd00:ec2::254"], "[fd00:ec2::254]:80"),
    (EVERYTHING, "168.63.129.16", 80, ["168.63.129.16"], "168.63.129.16:80"),
    (EVERYTHING, "100.100.100.200", 80, ["100.100.100.200"], "100.100.100.200:80"),
    (EVERYTHING, "::ffff:169.254.169.254", 80, ["::ffff:a9fe:a9fe"], "169.254.169.254:80"),
    (EVERYTHING, "2002:a9fe:a9fe::1", 80, ["2002:a9fe:a9fe::1"], "[2002:a9fe:a9fe::1]:80"),
    # Names that point inside.
    (EVERYTHING, "inside.example.com", 80, ["127.0.0.1"], "127.0.0.1:80"),
    (EVERYTHING, "metadata.example.com", 80, ["169.254.169.254", "fd00:ec2::254"], "169.254.169.254:80"),
    (("*.example.com:80", "127.0.0.1:81"), "inside.example.com", 80, ["127.0.0.1"], "127.0.0.1:80"),
    (("10.0.0.0/8:443",), "mixed.example.com", 443, ["10.0.0.1", "192.168.0.1"], "mixed.example.com:443"),
    # Ports and names beyond the rule.
    (("db.prod.svc:5432",), "db.prod.svc", 5433, ["10.0.0.1"], "db.prod.svc:5433"),
    (("*.svc:1000-2000",), "db.svc", 2001, ["10.0.0.1"], "db.svc:2001"),
    (("10.0.0.0/8:443",), "10.0.0.1", 80, ["10.0.0.1"], "10.0.0.1:80"),
    (("10.0.0.0/8:443",), "11.0.0.1", 443, ["11.0.0.1"], "11.0.0.1:443"),
    (("*.svc:80",), "svc", 80, ["10.0.0.1"], "svc:80"),
    (("*.svc:80",), ".svc", 80, ["10.0.0.1"], ".svc:80"),
    (("*.svc:80",), "evilsvc", 80, ["10.0.0.1"], "evilsvc:80"),
    (("db.svc:80",), "x.db.svc", 80, ["10.0.0.1"], "x.db.svc:80"),
    (("10.0.0.0/8:443",), "64:ff9b::a00:1", 443, ["64:ff9b::a00:1"], "[64:ff9b::a00:1]:443"),
    ((), "db.svc", 80, ["10.0.0.1"], "db.svc:80"),
]


def test_the_targets_to_refuse_are_forty() -> None:
    assert len(REFUSED) >= 40


@pytest.mark.parametrize(("entries", "host", "port", "addresses", "missing"), REFUSED)
def test_a_target_without_an_entry_is_403_which_names_the_entry(
    entries: tuple[str, ...], host: str, port: int, addresses: list[str], missing: str
) -> None:
    with pytest.raises(Refused) as caught:
        dialled(rules(*entries), host, port, *addresses)
    assert caught.value.status == 403
    words = caught.value.reason.replace(",", "").split()
    assert missing in words
    assert "connect_allow" in words


@pytest.mark.parametrize(("entries", "host", "port", "addresses", "missing"), REFUSED)
def test_the_entry_that_a_403_names_makes_it_work(
    entries: tuple[str, ...], host: str, port: int, addresses: list[str], missing: str
) -> None:
    if host == ".svc":
        return  # no name: only its form is wrong
    assert dialled(rules(*entries, missing), host, port, *addresses)


def test_a_forbidden_address_of_a_name_is_dropped_and_the_others_are_dialled() -> None:
    found = rules("*.svc:80")
    assert dialled(found, "db.svc", 80, "127.0.0.1", "10.0.0.1", "169.254.169.254", "fd00::1") == [
        "10.0.0.1",
        "fd00::1",
    ]


def test_a_name_is_refused_before_it_is_resolved_if_no_entry_can_allow_it() -> None:
    found = rules("db.svc:5432", "10.0.0.0/8:443")
    found.check_name("db.svc", 5432)
    found.check_name("any.name", 443)
    for host, port in (("any.name", 5432), ("db.svc", 80), ("127.0.0.1", 443)):
        with pytest.raises(Refused):
            found.check_name(host, port)


@pytest.mark.parametrize("seed", range(4))
def test_no_address_within_the_forbidden_ranges_is_ever_dialled(seed: int) -> None:
    choice = random.Random(seed)
    found = rules(*EVERYTHING)
    carriers = [ipaddress.ip_network(each) for each in ("::ffff:0:0/96", "64:ff9b::/96", "::/96")]
    for _ in range(500):
        network = choice.choice(FORBIDDEN)
        inside = network[choice.randrange(network.num_addresses)]
        if inside.version == 4 and choice.random() < 0.6:
            carrier = choice.choice([*carriers, None])
            value = int(inside)
            low = choice.getrandbits(80)
            six = 0x2002 << 112 | value << 80 | low if carrier is None else int(carrier[0]) | value
            inside = ipaddress.IPv6Address(six)
        host = choice.choice([str(inside), "x.example.com"])
        with pytest.raises(Refused):
            found.check(host, choice.randint(1, 65535), [inside])
        assert carried_address(inside).version == 4 or inside.version == 6
