"""CONNECT targets that lead inside the agent's machine or its cloud, in every spelling, or past the rule: all refused.

The entries allow every address by its network, so only the addresses themselves are the reason. The test resolves the
names. Numbers in odd spellings go to the system's resolver, which knows them as addresses.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from agent.proxy import dial

from ..limits import scaled
from .whole_cluster import Cluster
from .whole_connect import ask, connecting, tcp_target

pytestmark = pytest.mark.parametrize("hub_kind", ["ours"], indirect=True)

ENTRIES = (
    "0.0.0.0/0:1-60000",
    "[::/0]:1-60000",
    "*.inside.test:1-60000",
    "inside.test:1-60000",
    "db.test:5432",
    "10.0.0.0/8:443-445",
)

NAMES = {
    "loopback.inside.test": ["127.0.0.1"],
    "six.inside.test": ["::1"],
    "mapped.inside.test": ["::ffff:127.0.0.1"],
    "metadata.inside.test": ["169.254.169.254"],
    "amazon.inside.test": ["fd00:ec2::254"],
    "azure.inside.test": ["168.63.129.16"],
    "alibaba.inside.test": ["100.100.100.200"],
    "zero.inside.test": ["0.0.0.0"],
    "all.inside.test": ["127.0.0.1", "::1", "169.254.169.254"],
    "nat64.inside.test": ["64:ff9b::7f00:1"],
    "inside.test": ["127.0.0.2"],
    "outside.test": ["127.0.0.1"],
    "db.test": ["10.0.0.1"],
}

PORT = "PORT"
"""The port of a target on loopback, which no CONNECT may reach."""

REFUSED = [
    # Loopback and unspecified addresses, in every spelling.
    *("127.0.0.1:PORT", "127.0.0.2:PORT", "127.255.255.254:PORT", "127.1:PORT", "127.0.1:PORT", "0x7f.1:PORT"),
    *("0x7f000001:PORT", "0x7f.0x0.0x0.0x1:PORT", "2130706433:PORT", "0177.0.0.1:PORT", "017700000001:PORT"),
    *("127.0.0.1.:PORT", "[::1]:PORT", "[0:0:0:0:0:0:0:1]:PORT", "[::0001]:PORT", "0.0.0.0:PORT", "0:PORT", "0x0:PORT"),
    *("[::]:PORT", "localhost:PORT", "LOCALHOST:PORT", "localhost.:PORT"),
    # IPv6 addresses that carry one of these.
    *("[::ffff:127.0.0.1]:PORT", "[::ffff:7f00:1]:PORT", "[0:0:0:0:0:ffff:127.0.0.1]:PORT", "[::127.0.0.1]:PORT"),
    *("[64:ff9b::127.0.0.1]:PORT", "[64:ff9b::a9fe:a9fe]:80", "[2002:7f00:1::]:PORT", "[2002:a9fe:a9fe::1]:80"),
    *("[::ffff:169.254.169.254]:80", "[::ffff:0.0.0.0]:PORT"),
    # Link-local, multicast, broadcast and metadata addresses.
    *("169.254.169.254:80", "169.254.0.1:80", "0xa9fea9fe:80", "2852039166:80", "[fe80::1]:80", "[febf::1]:80"),
    *("224.0.0.1:80", "255.255.255.255:80", "[ff02::1]:80", "[fd00:ec2::254]:80", "168.63.129.16:80"),
    "100.100.100.200:80",
    # Names that point inside, whether an entry names them or not.
    *(f"{name}:PORT" for name in NAMES if name != "db.test"),
    *("LOOPBACK.inside.TEST:PORT", "loopback.inside.test.:PORT"),
    # Ports beyond the rule, and what no entry names.
    *(
        "db.test:61000",
        "10.0.0.1:60001",
        "203.0.113.1:65535",
        "unknown.test:60001",
        "[2001:db8::1]:60001",
    ),
]

MALFORMED = [
    *("[::1%25lo]:80", "[fe80::1%25eth0]:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:080808"),
    *("user@127.0.0.1:80", "http://127.0.0.1:80", "127.0.0.1:80/", "[127.0.0.1]:80", "::1:80", "%31%32%37.0.0.1:80"),
    *("127\u3002\u0030.0.1:80", "\u2460\u2461\u2466.0.0.1:80"),
]


async def refusal(whole: Any, target: str) -> tuple[int, str]:
    head, reader, writer = await ask(whole, target)
    if head.startswith("HTTP/1.1 200 "):
        writer.close()
        return 200, head
    body = await reader.read()
    writer.close()
    return int(head.split(" ")[1]), body.decode()


async def test_no_target_leads_inside_and_each_refusal_names_the_missing_entry(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    system = dial.look_up

    async def look_up(host: str, port: int) -> list[Any]:
        name = host.lower().removesuffix(".")
        asked.append(name)
        if name.endswith(".test"):
            found = NAMES.get(name)
            if found is None:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [
                (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
                for each in found
            ]
        return await system(host, port)

    async def reached(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        connections.append(1)

    connections: list[int] = []
    monkeypatch.setattr(dial, "look_up", look_up)
    async with tcp_target(reached) as port, connecting(cluster, *ENTRIES) as whole, asyncio.timeout(scaled(60)):
        shown: dict[str, str] = {}
        for target in REFUSED:
            status, reason = await refusal(whole, target.replace(PORT, str(port)))
            shown[target] = f"{status} {reason}"
        wrong = {
            target: each for target, each in shown.items() if not each.startswith("403 ") or "connect_allow" not in each
        }
        assert wrong == {}
        for target in MALFORMED:
            status, reason = await refusal(whole, target)
            assert status == 400, (target, reason)
        assert connections == []
        assert whole.agent.agent.upstreams.open_connections == 0
    assert len(REFUSED) >= 40
    assert "unknown.test" not in asked  # what no entry can allow is not even looked up
