"""CONNECT in the proxy: raw targets, and agents that respond to it themselves."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import struct
from typing import Any

import pytest

from agent.errors import Refused, TargetError
from agent.messages import Target
from agent.outcome import Kind, Stage
from agent.proxy import HubOrigin, ProxyLimits
from agent.proxy.heads import Fault, parse_request
from agent.proxy.upstream_stream import HeldTunnel, UpstreamStream

CONNECT = b"CONNECT db:5432 HTTP/1.1\r\nHost: other\r\nProxy-Authorization: Basic YzE6\r\nX-Kept: no\r\n\r\n"
OK = b"HTTP/1.1 200 Connection established\r\n\r\n"
SENDS = HubOrigin(sends_connect=True)


def raw(url: str, heads: list[Any] | None = None) -> Any:
    """The route of an agent: every CONNECT leads to this URL's address."""

    async def route(head):
        if heads is not None:
            heads.append(head)
        await asyncio.sleep(0)
        return Target(url, is_raw=True)

    return route


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"bye")
    writer.write_eof()
    await reader.read()


async def test_a_raw_target_gets_the_bytes_alone_and_each_way_ends_alone(stack, origin):
    heads: list[Any] = []
    async with origin(echo) as o, stack(o.url, connect_route=raw(o.url, heads)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT + b"early")
        assert await client.read_until(b"early") == OK + b"early"
        client.writer.write_eof()
        assert await client.read_all() == b"bye"
        assert await h.outcome() == (Kind.COMPLETE, Stage.UPGRADED)
        assert (heads[0].method, heads[0].target) == ("CONNECT", b"db:5432")
        assert (b"Proxy-Authorization", b"Basic YzE6") in heads[0].headers


async def test_a_target_that_speaks_and_ends_first_is_heard_whole(stack, origin):
    banner = random.Random(1).randbytes(2_000_000)

    async def speaks(reader, writer):
        writer.write(banner)
        writer.write_eof()
        await reader.read()

    async with origin(speaks) as o, stack(o.url, connect_route=raw(o.url)) as h:
        h.client_origin = SENDS
        for _ in range(10):
            client = await h.open()
            client.send(CONNECT)
            assert await client.read_all() == OK + banner
            client.writer.close()


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
async def test_the_kernel_probes_silent_peers_on_both_sides(stack, origin):
    async with origin(echo) as o, stack(o.url, connect_route=raw(o.url)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        await client.read_until(b"\r\n\r\n")
        (user,), (target,) = h.proxy._connections, h.upstreams._open
        for transport in (user._transport, target.transport):
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


async def test_a_target_that_resets_at_once_cuts_the_client(stack, origin):
    async def resets(reader, writer):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with origin(resets) as o, stack(o.url, connect_route=raw(o.url)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        assert (await client.read_all())[:12] in (OK[:12], b"HTTP/1.1 502")
        await h.outcome()


@pytest.mark.parametrize("origin_of", [HubOrigin(), HubOrigin(is_trusted=True), HubOrigin(is_base=True)])
async def test_a_hub_without_the_feature_gets_a_405(stack, origin, origin_of):
    async with origin() as o, stack(o.url, connect_route=raw(o.url)) as h:
        h.client_origin = origin_of
        client = await h.open()
        client.send(CONNECT + CONNECT)
        assert (await client.answer()).status == 405
        assert o.connections == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused(403, "no entry db:5432"), 403),
        (Refused(421, "another cluster"), 421),
        (TargetError(502, "the target's name could not be resolved", stage="resolve"), 502),
        (RuntimeError("secret"), 503),
    ],
)
async def test_a_refused_connect_closes_and_what_follows_is_no_request(stack, origin, error, status):
    async def route(head):
        raise error

    async with origin() as o, stack(o.url, connect_route=route) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.answer()
        assert answer.status == status
        assert answer.headers[b"connection"] == b"close"
        assert b"secret" not in answer.body
        assert await client.closed()
        assert o.connections == 0


async def test_a_target_that_does_not_respond_is_a_504_that_names_it(stack, origin, caplog):
    caplog.set_level(logging.INFO, "agent.proxy")

    async def never(protocol):
        await asyncio.get_running_loop().create_future()

    def route(head):
        return Target("http://db:5432", is_raw=True, connect=never)

    async with stack("http://unused", connect_route=route, limits={"connect_timeout_s": 0.1}) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        answer = await client.answer()
        assert (answer.status, b"the target took too long" in answer.body) == (504, True)
    (line,) = [record for record in caplog.records if record.name.startswith("agent.proxy")]
    found = line.__dict__
    assert (found["fault"], found["limit"], found["target"]) == ("target", "limits.connect_timeout_s", "db:5432")


def to_agent(url: str) -> Any:
    """The route of a hub: every CONNECT is sent on to this agent."""

    def route(head):
        return Target(url, cluster="c1", party="agent")

    return route


@pytest.mark.parametrize(
    "status", [b"200 OK", b"200 OK\r\nContent-Length: 5", b"204 Sure\r\nTransfer-Encoding: chunked"]
)
async def test_an_agent_s_2xx_opens_the_tunnel_whatever_framing_it_has(stack, origin, status):
    seen: list[bytes] = []

    async def agent(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 " + status + b"\r\n\r\nfirst")
        await echo(reader, writer)

    async with origin(agent) as o, stack(o.url, connect_route=to_agent(o.url)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT + b"early")
        assert await client.read_until(b"early") == OK + b"firstearly"
        client.writer.write_eof()
        assert await client.read_all() == b"bye"
        lines = seen[0].split(b"\r\n")
        assert lines[:3] == [b"CONNECT db:5432 HTTP/1.1", b"Host: db:5432", b"Tunnel-Cluster: c1"]
        assert not any(line.startswith((b"Proxy-", b"X-Kept")) for line in lines)


@pytest.mark.parametrize("status", [b"403 Forbidden", b"302 Found", b"502 Bad Gateway"])
async def test_an_agent_s_other_response_is_passed_on_and_closes(stack, origin, status):
    async def agent(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\nwhy?")
        await reader.read()

    async with origin(agent) as o, stack(o.url, connect_route=to_agent(o.url)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body) == (int(status[:3]), b"why?")
        assert answer.headers[b"connection"] == b"close"
        assert await client.closed()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x", 502),
        (b"405 Not Here\r\nContent-Length: 0", 501),
    ],
)
async def test_an_agent_s_101_is_a_502_and_its_405_a_501(stack, origin, line, status):
    async def agent(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + line + b"\r\n\r\n")
        await reader.read()

    async with origin(agent) as o, stack(o.url, connect_route=to_agent(o.url)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        assert (await client.answer()).status == status


async def test_silence_of_both_sides_ends_at_the_limit_which_the_log_names(stack, origin, caplog):
    caplog.set_level(logging.INFO, "agent.proxy")
    async with origin(echo) as o, stack(o.url, connect_route=raw(o.url), limits={"connect_idle_s": 0.3}) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        await client.read_until(b"\r\n\r\n")
        assert await client.closed()
        assert await h.outcome() == (Kind.COMPLETE, Stage.UPGRADED)
    (line,) = [record for record in caplog.records if record.name.startswith("agent.proxy")]
    assert (line.__dict__["limit"], line.__dict__["fault"]) == ("limits.connect_idle_s", "client")


async def test_a_target_that_takes_nothing_pauses_its_client(stack, origin, eventually):
    async def stalls(reader, writer):
        await asyncio.get_running_loop().create_future()

    limits = {"connect_idle_s": 0.3, "buffer_bytes": 65536}
    async with origin(stalls) as o, stack(o.url, connect_route=raw(o.url), limits=limits) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        await client.read_until(b"\r\n\r\n")
        for _ in range(64):
            client.send(bytes(1_000_000))
        await eventually(lambda: h.upstreams.open_connections == 1)
        reading = asyncio.ensure_future(client.read())
        done, _ = await asyncio.wait([reading], timeout=1.0)
        assert not done, "a side that takes nothing is not idle"
        assert client.writer.transport.get_write_buffer_size() > 8_000_000
        reading.cancel()


@pytest.mark.parametrize("carrier", ["tcp"], indirect=True)
async def test_a_client_that_resets_behind_its_end_is_noticed_while_the_target_is_silent(stack, origin, eventually):
    async def silent(reader, writer):
        await reader.read()
        await asyncio.get_running_loop().create_future()

    async with origin(silent) as o, stack(o.url, connect_route=raw(o.url)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        await client.read_until(b"\r\n\r\n")
        client.writer.write_eof()
        await eventually(lambda: o.open == 1)
        await asyncio.sleep(0.1)
        assert h.proxy.open_connections == 1, "a half-close is no end"
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await eventually(lambda: h.proxy.open_connections == 0)
        await eventually(lambda: h.upstreams.open_connections == 0)
        assert await h.outcome() == (Kind.CLIENT_GONE, Stage.UPGRADED)


async def test_a_target_that_resets_behind_its_end_is_noticed_while_the_client_is_silent(stack, origin, eventually):
    writers: list[asyncio.StreamWriter] = []

    async def ends(reader, writer):
        writers.append(writer)
        writer.write(b"bye")
        writer.write_eof()
        await asyncio.get_running_loop().create_future()

    async with origin(ends) as o, stack(o.url, connect_route=raw(o.url)) as h:
        h.client_origin = SENDS
        client = await h.open()
        client.send(CONNECT)
        await client.read_until(b"bye")
        await asyncio.sleep(0.1)
        assert h.upstreams.open_connections == 1, "a half-close is no end"
        sock = writers[0].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writers[0].transport.abort()
        await eventually(lambda: h.upstreams.open_connections == 0)
        assert await h.outcome() == (Kind.FAILED, Stage.UPGRADED)


@pytest.mark.parametrize("fast", [True, False])
def test_both_parsers_read_a_connect_alike(fast: bool) -> None:
    head = (
        b"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: a\r\nX: y\r\nProxy-Authorization: Basic YzE6\r\nUpgrade: x\r\n"
        b"Connection: keep-alive, upgrade\r\nProxy-Connection: keep-alive\r\nContent-Length: 0\r\n\r\n"
    )
    request, target = parse_request(head, ProxyLimits(), None, fast, serves_connect=True)
    assert (request.is_connect, target, request.length) == (True, b"[fd00::1]:443", 0)
    assert (request.keep_alive, request.upgrade) == (False, b"")
    assert request.fields == [(b"X", b"y"), (b"Proxy-Authorization", b"Basic YzE6")]
    assert parse_request(head, ProxyLimits(), request, fast, serves_connect=True)[0] is request
    with pytest.raises(Fault) as caught:
        parse_request(head, ProxyLimits(), None, fast)
    assert caught.value.status == 405


class Stream(UpstreamStream):
    """A stream that notes how often it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


class User:
    def __init__(self) -> None:
        self.calls: list[object] = []

    def tunnel_data(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def tunnel_eof(self) -> bool:
        self.calls.append("eof")
        return True

    def upstream_lost(self, error: Exception | None) -> None:
        self.calls.append(error)

    def pause_sending(self) -> None: ...
    def resume_sending(self) -> None: ...


def test_held_bytes_and_ends_reach_the_next_user_in_order() -> None:
    error = OSError("gone")
    for ends, told in (((), []), (("eof",), ["eof"]), (("lost",), [error]), (("eof", "lost"), [error])):
        stream, user = Stream(), User()
        held = HeldTunnel(stream)
        held.tunnel_data(b"a")
        held.tunnel_data(b"b")
        for end in ends:
            held.tunnel_eof() if end == "eof" else held.upstream_lost(error)
        assert held.give_to(user)
        assert user.calls == [b"a", b"b", *told]
        assert set(stream.calls) == {"pause"}
    assert not HeldTunnel(Stream()).give_to(User())


async def test_a_target_that_speaks_first_waits_for_a_client_that_takes_nothing(stack, origin, eventually):
    written = 0

    async def floods(reader, writer):
        nonlocal written
        for _ in range(64):
            writer.write(bytes(1_000_000))
            written += 1
            await writer.drain()

    async with origin(floods) as o, stack(o.url, connect_route=raw(o.url), limits={"buffer_bytes": 4096}) as h:
        h.client_origin = SENDS
        client = await h.open(limit=1024)
        client.send(CONNECT)
        await eventually(lambda: any(connection.writing_paused for connection in h.proxy._connections))
        await asyncio.sleep(0.3)
        (connection,) = h.proxy._connections
        assert connection._transport.get_write_buffer_size() < 2_000_000
        assert written < 64
