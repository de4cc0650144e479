"""The door that users come through: responses to users without TLS or without a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import pathlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from agent.hub import user_door
from agent.x509 import expiry

from ..limits import scaled
from ..whole.whole_cluster import RunningAgent, running_hub
from ..whole.whole_peers import running_origin, until

VALID_S = 86400.0
"""How long users' certificates are valid."""


class Certificates:
    """A hub's certificate, and users': of the CA that the hub asks for, and of another."""

    def __init__(self, folder: pathlib.Path) -> None:
        ours, theirs = trustme.CA(), trustme.CA()
        self.ca, self.hub = str(folder / "ca.pem"), str(folder / "hub.pem")
        ours.cert_pem.write_to_path(self.ca)
        ours.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(self.hub)
        self.user, self.stranger = str(folder / "user.pem"), str(folder / "stranger.pem")
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=VALID_S)
        ours.issue_cert("alice@ours.test", not_after=until).private_key_and_cert_chain_pem.write_to_path(self.user)
        theirs.issue_cert("eve@theirs.test").private_key_and_cert_chain_pem.write_to_path(self.stranger)

    def client(self, shown: str = "", newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca)
        context.maximum_version = newest
        if shown:
            context.load_cert_chain(shown)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@contextlib.asynccontextmanager
async def hub_with_agent(certificates: Certificates, **config: Any) -> AsyncIterator[tuple[int, list[str]]]:
    """A hub with TLS for users, and an agent. Gives (its HTTP port, the requests that came through)."""
    async with (
        running_origin() as origin,
        running_hub(http_cert_file=certificates.hub, **config) as (grpc_port, http_port),
    ):
        agent = RunningAgent(
            hub_address=f"127.0.0.1:{grpc_port}", cluster_name="c1", insecure=True, routes=(f"/={origin.url}",)
        )
        try:
            await agent.wait_ready()
            yield http_port, origin.seen
        finally:
            await agent.stop()


async def answer(port: int, tls: ssl.SSLContext | None, request: bytes) -> bytes:
    """All that a connection gives for a request."""
    async with asyncio.timeout(scaled(20)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        try:
            writer.write(request)
            return await reader.read()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


HELLO = b"GET /c1/hello HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("request_bytes", [HELLO, b"POST /c1/ HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", b"PRI * "])
async def test_plain_http_to_the_tls_port_gets_a_400_that_says_so(
    certificates: Certificates, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with hub_with_agent(certificates) as (port, seen):
        told = await answer(port, None, request_bytes)
        assert told.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain")
        assert b"\r\nConnection: close\r\n" in told
        assert told.endswith(b"\r\n\r\nthe client sent an HTTP request to an HTTPS port\n")
        assert not seen
        (record,) = [each for each in caplog.records if "plain HTTP" in each.getMessage()]
        assert vars(record)["peer"][0] == "127.0.0.1"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_user_without_the_certificate_that_is_required_gets_a_400(
    certificates: Certificates, version: ssl.TLSVersion
) -> None:
    async with hub_with_agent(certificates, user_ca_file=certificates.ca) as (port, seen):
        told = await answer(port, certificates.client(newest=version), HELLO)
        assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert told.endswith(b"the client sent no certificate, and one is required\n")
        assert not seen
        assert (await answer(port, certificates.client(certificates.user, version), HELLO)).startswith(b"HTTP/1.1 200")
        assert seen == ["GET /hello"]


async def test_a_request_without_the_certificate_never_reaches_an_agent(certificates: Certificates) -> None:
    """However it is cut, and whatever comes behind it on its connection."""
    async with hub_with_agent(certificates, user_ca_file=certificates.ca) as (port, seen):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=certificates.client())
        for piece in (HELLO[:1], HELLO[1:], HELLO, HELLO * 100):
            writer.write(piece)
            await asyncio.sleep(0)
        async with asyncio.timeout(scaled(20)):
            with contextlib.suppress(ConnectionError):
                assert (await reader.read()).count(b"HTTP/1.1 ") == 1
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        assert not seen


async def test_a_session_of_a_user_without_a_certificate_is_no_certificate(certificates: Certificates) -> None:
    """TLS sessions are resumed without showing a certificate again: what was not shown then counts as not shown."""
    async with hub_with_agent(certificates, user_ca_file=certificates.ca) as (port, seen):

        def resumed(context: ssl.SSLContext) -> list[bytes]:
            session, told = None, []
            for _ in range(2):
                with (
                    socket.create_connection(("127.0.0.1", port), 10) as sock,
                    context.wrap_socket(sock, server_hostname="127.0.0.1", session=session) as tls,
                ):
                    tls.sendall(HELLO)
                    told.append(tls.recv(4096)[:12])
                    session = tls.session
            return told

        assert await asyncio.to_thread(resumed, certificates.client()) == [b"HTTP/1.1 400"] * 2
        assert not seen
        assert await asyncio.to_thread(resumed, certificates.client(certificates.user)) == [b"HTTP/1.1 200"] * 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_resumed_session_does_not_outlive_its_certificate(
    certificates: Certificates, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_with_agent(certificates, user_ca_file=certificates.ca) as (port, seen):
        context = certificates.client(certificates.user, version)

        def told(session: ssl.SSLSession | None) -> tuple[bytes, bool | None, ssl.SSLSession | None]:
            with (
                socket.create_connection(("127.0.0.1", port), 10) as sock,
                context.wrap_socket(sock, server_hostname="127.0.0.1", session=session) as tls,
            ):
                tls.sendall(HELLO)
                data = b""
                while piece := tls.recv(4096):
                    data += piece
                return data, tls.session_reused, tls.session

        first, _, session = await asyncio.to_thread(told, None)
        assert first.startswith(b"HTTP/1.1 200")
        again, reused, session = await asyncio.to_thread(told, session)
        assert (again[:12], reused) == (b"HTTP/1.1 200", True)
        del seen[:]
        monkeypatch.setattr(expiry, "time", SimpleNamespace(time=lambda: time.time() + 2 * VALID_S))
        late, reused, _ = await asyncio.to_thread(told, session)
        assert reused
        assert late.endswith(b"\r\n\r\nthe client's certificate has expired\n")
        assert not seen


async def test_an_untrusted_certificate_fails_in_the_handshake_and_the_line_has_the_peer(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with hub_with_agent(certificates, user_ca_file=certificates.ca) as (port, seen):
        with contextlib.suppress(OSError):
            assert await answer(port, certificates.client(certificates.stranger), HELLO) == b""
        found = await until(lambda: [each for each in caplog.records if "TLS handshake failed" in each.getMessage()])
        assert not seen
    (record,) = found
    assert vars(record)["peer"][0] == "127.0.0.1"
    assert "the client's certificate was refused" in vars(record)["reason"]


async def test_where_certificates_are_optional_a_user_without_one_is_served(certificates: Certificates) -> None:
    async with hub_with_agent(certificates, user_ca_file=certificates.ca, allow_any_user=True) as (port, seen):
        assert (await answer(port, certificates.client(), HELLO)).startswith(b"HTTP/1.1 200")
        assert seen == ["GET /hello"]


async def test_a_user_that_sends_nothing_is_closed_in_time(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(user_door, "TLS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(user_door, "ANSWER_TIMEOUT_S", 0.2)
    async with hub_with_agent(certificates) as (port, _):
        for said in (b"", b"\x16\x03\x01", b"G"):
            with contextlib.suppress(ConnectionError):
                told = await answer(port, None, said)
                assert told.startswith(b"HTTP/1.1 400") == (said == b"G")
        reasons = [vars(each)["reason"] for each in caplog.records if "TLS handshake failed" in each.getMessage()]
        assert reasons[0] == "no byte came in time"
        assert len(reasons) == 2


async def test_a_handshake_that_gives_way_before_it_began_leaves_no_socket(certificates: Certificates) -> None:
    """Many come in one turn of the loop. Each makes room for the next before its own turn."""
    loop = asyncio.get_running_loop()
    door = user_door.UserDoor(
        protocol=asyncio.Protocol,
        open_connections=lambda: 0,
        make_room=lambda: False,
        max_connections=20,
        tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        certificate_required=False,
        reason_of=str,
    )
    pairs = [socket.socketpair() for _ in range(15)]
    try:
        for ours, _ in pairs:
            door._accepted_tls(ours, "peer")
        assert door.refused["handshakes"] == 5
        for _, theirs in pairs[:5]:
            theirs.setblocking(False)
            async with asyncio.timeout(scaled(20)):
                assert await loop.sock_recv(theirs, 1) == b""
        await until(lambda: [ours.fileno() < 0 for ours, _ in pairs] == [True] * 5 + [False] * 10)
        await door.close()
        assert all(ours.fileno() < 0 for ours, _ in pairs)
    finally:
        for _, theirs in pairs:
            theirs.close()


async def test_a_user_that_gives_way_while_the_door_answers_is_counted_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the call of a protocol's `connection_made` and the end of `connect_accepted_socket`."""
    door = user_door.UserDoor(
        protocol=asyncio.Protocol,
        open_connections=lambda: 0,
        make_room=lambda: False,
        max_connections=3,
        tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        certificate_required=False,
        reason_of=str,
    )
    (ours, theirs), (others, last) = socket.socketpair(), socket.socketpair()
    made = user_door._Answer.connection_made

    def crowded(answer: user_door._Answer, transport: asyncio.BaseTransport) -> None:
        made(answer, transport)
        door._accepted_tls(others, "peer")

    monkeypatch.setattr(user_door._Answer, "connection_made", crowded)
    with theirs, last:
        theirs.sendall(HELLO)
        door._accepted_tls(ours, "peer")
        await until(lambda: door.refused["handshakes"] == 1)
        await until(lambda: not door._answering and ours.fileno() < 0)
        await door.close()
        assert others.fileno() < 0


async def test_the_hub_ends_with_users_at_its_door(certificates: Certificates) -> None:
    async with hub_with_agent(certificates) as (port, _):
        open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        open_ones[1][1].write(b"\x16\x03")
        open_ones[2][1].write(HELLO)
        async with asyncio.timeout(scaled(20)):
            assert (await open_ones[2][0].read(12)) == b"HTTP/1.1 400"
    async with asyncio.timeout(scaled(20)):
        for reader, writer in open_ones:
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
