"""Names with several addresses: looked up for each new connection, both families tried, the first to connect wins."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from agent.config.limits import ProxyLimits
from agent.errors import TargetError
from agent.messages import Target
from agent.proxy import dial

from ..own_responses import reason_of

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d"
ATTEMPT_S = dial.ATTEMPT_DELAY_S


@pytest.fixture
def carrier() -> str:
    return "pipe"  # what the client's side runs on makes no difference here


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="::1 can't be bound here")


class Names:
    """A resolver. addresses: what a look-up finds from now on, in this order. error: what it raises. asked: so far."""

    def __init__(self) -> None:
        self.addresses: list[tuple[str, int]] = []
        self.asked: list[str] = []
        self.error: OSError | None = None

    async def look_up(self, host: str, port: int) -> list[tuple[object, ...]]:
        self.asked.append(host)
        if self.error is not None:
            raise self.error
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, number, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, number))
            for address, number in self.addresses
        ]


@pytest.fixture
def names(monkeypatch) -> Names:
    found = Names()
    monkeypatch.setattr(dial, "look_up", found.look_up)
    return found


@contextlib.asynccontextmanager
async def target(host: str, number: int) -> AsyncIterator[tuple[str, int]]:
    """A target that responds to every request with its number. Yields its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK % number)
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    async with server:
        yield host, server.sockets[0].getsockname()[1]


@contextlib.contextmanager
def deaf(host: str = "127.0.0.1"):
    """An address with a full queue, so that its connections neither open nor fail."""
    with contextlib.ExitStack() as stack:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = stack.enter_context(socket.socket(family))
        listening.bind((host, 0))
        listening.listen(0)
        for _ in range(4):  # Linux takes one more than asked for
            filling = stack.enter_context(socket.socket(family))
            filling.setblocking(False)
            filling.connect_ex(listening.getsockname())
        yield host, listening.getsockname()[1]


def refusing(host: str = "127.0.0.1") -> tuple[str, int]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        return host, sock.getsockname()[1]


@needs_ipv6
@pytest.mark.parametrize("stalls", ["::1", "127.0.0.1"])
async def test_a_first_address_that_stalls_costs_a_quarter_of_a_second(stack, names, stalls):
    other = "127.0.0.1" if ":" in stalls else "::1"
    async with target(other, 7) as there, stack("http://name.test") as h:
        with deaf(stalls) as first:
            names.addresses = [first, first, there]  # families alternate: the second of the first one's waits
            client = await h.open()
            began = time.monotonic()
            assert (await client.get()).body == b"7"
            assert ATTEMPT_S <= time.monotonic() - began < 20 * ATTEMPT_S
            assert h.upstreams.open_connections == 1


@needs_ipv6
async def test_a_first_address_that_refuses_costs_nothing(stack, names):
    async with target("127.0.0.1", 7) as there, stack("http://name.test") as h:
        names.addresses = [refusing("::1"), *[refusing("::1")] * 3, there]
        client = await h.open()
        assert (await client.get()).body == b"7"


@needs_ipv6
async def test_where_all_addresses_fail_it_is_the_first_ones_failure(stack, names):
    async with stack("http://name.test") as h:
        names.addresses = [refusing("::1"), refusing(), refusing()]
        client = await h.open()
        answer = await client.get()
        assert (answer.status, reason_of(answer.body)) == (502, b"the target refused the connection\n")
        with deaf() as first, deaf() as second:
            names.addresses = [first, second]
            began = time.monotonic()
            limits = ProxyLimits(connect_timeout_s=0.6)
            with pytest.raises(TargetError) as caught:
                await dial.dial(Target("http://name.test"), asyncio.Protocol(), limits, None)
            assert (caught.value.status, caught.value.stage) == (504, "connect")
            assert time.monotonic() - began >= 0.59  # uvloop's timers count whole milliseconds


async def test_a_name_that_moves_is_followed_by_the_next_connection(stack, names):
    async with target("127.0.0.1", 1) as first, target("127.0.0.1", 2) as second, stack("http://name.test") as h:
        client = await h.open()
        names.addresses = [first]
        assert [(await client.get()).body for _ in range(3)] == [b"1"] * 3
        assert names.asked == ["name.test"], "a pooled connection needs no name"
        names.addresses = [second]
        for upstream in list(h.upstreams._open):
            upstream.abort()  # as its target's end, or its time, would
        assert [(await client.get()).body for _ in range(3)] == [b"2"] * 3
        assert names.asked == ["name.test"] * 2


@pytest.mark.parametrize("error", [None, socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")])
async def test_a_name_without_addresses_is_a_502(stack, names, error):
    names.error = error
    async with stack("http://name.test") as h:
        client = await h.open()
        answer = await client.get()
        assert answer.status == 502
        said = b"the target's name could not be resolved\n" if error else b"the target's name has no address\n"
        assert reason_of(answer.body) == said
