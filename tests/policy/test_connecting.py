"""CONNECT at the agent: its own cluster only, and exactly the checked addresses are dialled."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from agent.errors import Refused, TargetError
from agent.messages import RequestHead
from agent.policy.connecting import ConnectPolicy
from agent.syntax import parse_connect_entry


def info(address: str, port: int = 80) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = (address, port, 0, 0) if ":" in address else (address, port)
    return family, socket.SOCK_STREAM, 6, "", where


class Names:
    """A resolver. asked: the names, in order."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if not self.addresses:
            raise TargetError(502, "no address", stage="resolve")
        return [info(address, port) for address in self.addresses]


def policy(names: Names, *entries: str, **more: Any) -> ConnectPolicy:
    return ConnectPolicy(map(parse_connect_entry, entries), cluster="c1", resolve=names.resolve, **more)


def connect(target: bytes, *clusters: bytes) -> RequestHead:
    return RequestHead("CONNECT", target, "1.1", [(b"Tunnel-Cluster", cluster) for cluster in clusters or (b"c1",)])


async def test_exactly_the_checked_addresses_are_dialled() -> None:
    names = Names("10.0.0.1", "127.0.0.1", "fd00::1", "::ffff:169.254.169.254")
    target = await policy(names, "db.svc:80").route(connect(b"DB.svc.:80"))
    assert target.is_raw
    assert target.addresses == (info("10.0.0.1"), info("fd00::1"))


async def test_a_name_without_an_entry_is_not_resolved() -> None:
    names = Names("10.0.0.1")
    with pytest.raises(Refused, match=r"403 .*connect_allow has no entry other\.svc:80"):
        await policy(names, "db.svc:80").route(connect(b"other.svc:80"))
    assert names.asked == []


@pytest.mark.parametrize("clusters", [(b"c2",), (b"c1", b"c1"), (b"C1",), (b"",)])
async def test_another_cluster_is_421(clusters: tuple[bytes, ...]) -> None:
    with pytest.raises(Refused, match="421"):
        await policy(Names("10.0.0.1"), "db.svc:80").route(connect(b"db.svc:80", *clusters))
    request = connect(b"db.svc:80")
    request.headers = []
    with pytest.raises(Refused, match="421"):
        await policy(Names("10.0.0.1"), "db.svc:80").route(request)


async def test_the_agent_s_own_addresses_are_403() -> None:
    found = policy(
        Names("127.0.0.1"), "127.0.0.1:80", is_own=lambda address, port: (str(address), port) == ("127.0.0.1", 80)
    )
    with pytest.raises(Refused, match=r"403 .*its own addresses"):
        await found.route(connect(b"127.0.0.1:80"))


async def test_a_name_that_can_not_be_resolved_is_the_target_s_fault() -> None:
    with pytest.raises(TargetError) as caught:
        await policy(Names(), "db.svc:80").route(connect(b"db.svc:80"))
    assert (caught.value.status, caught.value.fault) == (502, "target")


async def test_new_entries_count_for_the_next_connect_and_not_for_one_under_way() -> None:
    resolved = asyncio.Event()

    async def slow(host: str, port: int) -> list[tuple[Any, ...]]:
        await resolved.wait()
        return [info("10.0.0.1", port)]

    found = ConnectPolicy([parse_connect_entry("db.svc:80")], cluster="c1", resolve=slow)
    under_way = asyncio.ensure_future(found.route(connect(b"db.svc:80")))
    await asyncio.sleep(0)
    found.use([])
    resolved.set()
    assert (await under_way).addresses == (info("10.0.0.1"),)
    with pytest.raises(Refused):
        await found.route(connect(b"db.svc:80"))
