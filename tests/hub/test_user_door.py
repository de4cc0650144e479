"""The door that users come through: responses to users without TLS, without a certificate, or with PROXY headers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import pathlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from agent.config.schema import LimitsConfig
from agent.hub import entrance, user_door
from agent.hub.proxy_protocol import SIGNATURE
from agent.proxy.origin import ClientOrigin
from agent.x509 import expiry

from ..limits import scaled
from ..own_responses import reason_of
from ..whole.whole_cluster import RunningAgent, running_hub
from ..whole.whole_peers import curl, running_origin, until

VALID_S = 86400.0
"""How long users' certificates are valid."""


def body_of(response: bytes) -> bytes:
    return response.partition(b"\r\n\r\n")[2]


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
        assert reason_of(body_of(told)) == b"the client sent an HTTP request to an HTTPS port\n"
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
        assert reason_of(body_of(told)) == b"the client sent no certificate, and one is required\n"
        assert not seen
        assert (await answer(port, certificates.client(certificates.user, version), HELLO)).startswith(b"HTTP/1.1 200")
        assert seen == ["GET /hello"]


async def test_by_http2_a_user_without_the_certificate_gets_the_400_too(certificates: Certificates) -> None:
    async with hub_with_agent(certificates, user_ca_file=certificates.ca) as (port, seen):
        shown = ("-k", "--http2", "-w", "%{http_version} %{http_code}")
        for more, status in (((), b"2 400"), (("-I",), b"2 400"), (("--cert", certificates.user), b"2 200")):
            code, output, errors = await curl(*shown, *more, f"https://127.0.0.1:{port}/c1/hello")
            assert code == 0, errors
            assert output.endswith(status)
            assert (b"the client sent no certificate" in output) is (more == ())
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
        assert reason_of(body_of(late)) == b"the client's certificate has expired\n"
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
        protocol=lambda origin: asyncio.Protocol(),
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
            door._accepted(ours, "peer")
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
        protocol=lambda origin: asyncio.Protocol(),
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
        door._accepted(others, "peer")

    monkeypatch.setattr(user_door._Answer, "connection_made", crowded)
    with theirs, last:
        theirs.sendall(HELLO)
        door._accepted(ours, "peer")
        await until(lambda: door.refused["handshakes"] == 1)
        await until(lambda: not door._entrance.answering and ours.fileno() < 0)
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


V1 = b"PROXY TCP4 203.0.113.9 198.51.100.7 56324 443\r\n"
V2 = SIGNATURE + b"\x21\x11\x00\x0c" + bytes([203, 0, 113, 9, 198, 51, 100, 7, 220, 4, 1, 187])
V2_IPV6 = SIGNATURE + b"\x21\x21\x00\x24" + bytes.fromhex("20010db8" + "00" * 27 + "01") + V2[-4:]
V2_LOCAL = SIGNATURE + b"\x20\x00\x00\x00"
UNKNOWN = b"PROXY UNKNOWN\r\n"
TRUSTED: dict[str, Any] = {"trusted_proxies": ("127.0.0.1",), "proxy_protocol": True}
STRANGERS: dict[str, Any] = {"trusted_proxies": ("192.0.2.0/24",), "proxy_protocol": True}


class Recorder(asyncio.Protocol):
    """A protocol in place of the proxy's: keeps the origin and the bytes, and responds `ok` to a head."""

    def __init__(self, origin: ClientOrigin) -> None:
        self.origin = origin
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.data.endswith(b"\r\n\r\n"):
            self.transport.write(b"ok")  # type: ignore[attr-defined]
            self.transport.close()


class Door(user_door.UserDoor):
    """A door on a free port, with a list of what it let in."""

    def __init__(self, certificates: Certificates | None = None, **config: Any) -> None:
        self.let_in: list[Recorder] = []
        tls: ssl.SSLContext | None = None
        if certificates is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
            tls.verify_mode = ssl.CERT_OPTIONAL
            tls.load_cert_chain(certificates.hub)
        known: dict[str, Any] = {
            "protocol": self._record,
            "open_connections": lambda: 0,
            "make_room": lambda: False,
            "max_connections": 100,
            "tls": tls,
            "certificate_required": False,
            "reason_of": str,
        }
        super().__init__(**known | config)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.port = self.open([listener])

    def _record(self, origin: ClientOrigin) -> Recorder:
        self.let_in.append(Recorder(origin))
        return self.let_in[-1]

    @property
    def only(self) -> tuple[str, str, int, bool]:
        (one,) = self.let_in
        return one.origin.peer, one.origin.scheme, one.origin.port, one.origin.is_trusted


@contextlib.asynccontextmanager
async def running_door(certificates: Certificates | None = None, **config: Any) -> AsyncIterator[Door]:
    door = Door(certificates, **config)
    try:
        yield door
    finally:
        await door.close()
        assert not door._entrance.entering


def in_one_segment(port: int, header: bytes, context: ssl.SSLContext, request: bytes) -> bytes:
    """The response over TLS, where the header and the ClientHello are one write."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        ahead = header
        done = b""
        steps: list[Callable[[], object]] = [tls.do_handshake, lambda: tls.write(request), lambda: tls.read(100)]
        while steps:
            try:
                found = steps[0]()
                steps.pop(0)
                done = found if isinstance(found, bytes) else b""
            except ssl.SSLWantReadError:
                sock.sendall(ahead + outgoing.read())
                ahead = b""
                received = sock.recv(65536)
                if not received:
                    raise ConnectionError("the door closed the connection") from None
                incoming.write(received)
        return done


HEADERS = {
    "v1": (V1, "203.0.113.9", 443),
    "v2": (V2, "203.0.113.9", 443),
    "v2-ipv6": (V2_IPV6, "2001:db8::", 443),
    "local": (V2_LOCAL, "127.0.0.1", 0),
    "unknown": (UNKNOWN, "127.0.0.1", 0),
}


@pytest.mark.parametrize("name", HEADERS)
async def test_the_source_of_a_trusted_proxys_header_is_the_user(name: str) -> None:
    header, peer, port = HEADERS[name]
    async with running_door(**TRUSTED) as door:
        assert await answer(door.port, None, header + HELLO) == b"ok"
        assert door.only[:3] == (peer, "http", port or door.port)
        assert door.let_in[0].data == HELLO
        assert not door.refused


@pytest.mark.parametrize("name", HEADERS)
async def test_a_header_comes_before_tls(certificates: Certificates, name: str) -> None:
    header, peer, port = HEADERS[name]
    async with running_door(certificates, **TRUSTED) as door:
        context = certificates.client()
        assert await asyncio.to_thread(in_one_segment, door.port, header, context, HELLO) == b"ok"
        assert door.only[:3] == (peer, "https", port or door.port)
        assert door.let_in[0].data == HELLO
        assert not door.refused


async def test_a_header_may_come_byte_by_byte() -> None:
    async with running_door(**TRUSTED) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in V2_IPV6 + HELLO:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            assert await reader.read() == b"ok"
        writer.close()
        await writer.wait_closed()
        assert door.let_in[0].data == HELLO


async def test_without_the_setting_a_trusted_proxy_sends_no_header() -> None:
    async with running_door(trusted_proxies=("127.0.0.0/8",)) as door:
        assert await answer(door.port, None, HELLO) == b"ok"
        assert door.only == ("127.0.0.1", "http", door.port, True)


async def test_a_stranger_needs_no_header() -> None:
    async with running_door(**STRANGERS) as door:
        assert await answer(door.port, None, HELLO) == b"ok"
        assert door.only == ("127.0.0.1", "http", door.port, False)


REFUSED = {
    "http": (HELLO, "must begin with a PROXY header (proxy_protocol)", None),
    "tls": (b"\x16\x03\x01\x02\x00\x01", "must begin with a PROXY header", None),
    "malformed": (V1.replace(b"TCP4", b"TCP5") + HELLO, "TCP4, TCP6 or UNKNOWN", None),
    "too-long": (SIGNATURE + b"\x21\x11\xff\xff", "at most 4096 bytes", "limits.proxy_header_bytes"),
    "late": (V1[:20], "within 0.2 s (limits.head_timeout_s)", "limits.head_timeout_s"),
    "silent": (b"", "within 0.2 s (limits.head_timeout_s)", "limits.head_timeout_s"),
}


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("name", REFUSED)
async def test_a_trusted_proxy_without_a_valid_header_gets_a_400(
    certificates: Certificates, name: str, is_tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sent, reason, limit = REFUSED[name]
    timeout_s = 0.2 if reason.startswith("within") else 60.0
    async with running_door(certificates if is_tls else None, header_timeout_s=timeout_s, **TRUSTED) as door:
        told = await answer(door.port, None, sent)
        assert told.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain")
        assert b"\r\nConnection: close\r\n" in told
        assert reason in told.decode()
        assert door.refused == {"proxy_header": 1}
        assert not door.let_in
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.getMessage() == "a trusted proxy sent no valid PROXY header"
    assert reason in vars(record)["reason"]
    assert vars(record)["peer"][0] == "127.0.0.1"
    assert (vars(record).get("limit"), vars(record)["fault"]) == (limit, "client")


async def test_a_truncated_header_gets_a_400() -> None:
    async with running_door(**TRUSTED) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(V1[:20])
        writer.write_eof()
        async with asyncio.timeout(20):
            assert b"ended within the header" in await reader.read()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_proxys_check_of_the_port_is_no_warning(
    certificates: Certificates, is_tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A TCP check connects and closes, or resets the connection."""
    caplog.set_level(logging.DEBUG)
    async with running_door(certificates if is_tls else None, **TRUSTED) as door:
        for linger in (b"", b"\1\0\0\0\0\0\0\0"):
            with socket.create_connection(("127.0.0.1", door.port)) as sock:
                if linger:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                await until(lambda: len(door._entrance.entering) == 1)
            await until(lambda: not door._entrance.entering)
        assert not door.refused
        assert not door.let_in
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]


@pytest.mark.parametrize("header", [V1, V2, V2_LOCAL, UNKNOWN, SIGNATURE[:3]])
@pytest.mark.parametrize("config", [{}, STRANGERS, {"trusted_proxies": ("127.0.0.1",)}], ids=["off", "on", "trusted"])
async def test_an_unasked_header_to_the_tls_port_gets_a_400(
    certificates: Certificates, config: dict[str, Any], header: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_door(certificates, **config) as door:
        told = await answer(door.port, None, header)
        assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert reason_of(body_of(told)) == b"the hub accepts no PROXY header here (proxy_protocol, trusted_proxies)\n"
        assert door.refused == {"unasked_proxy_header": 1}
        assert not door.let_in
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert vars(record)["peer"][0] == "127.0.0.1"


@pytest.mark.parametrize("header", [V1, V2, V2_LOCAL, UNKNOWN])
async def test_an_unasked_header_to_the_plaintext_port_gets_a_400(header: bytes) -> None:
    for config in ({}, STRANGERS):
        async with running_hub(**config) as (_, port):
            told = await answer(port, None, header + HELLO)
            assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert told.count(b"HTTP/1.1 ") == 1


async def test_a_second_header_gets_a_400(certificates: Certificates) -> None:
    async with running_door(certificates, **TRUSTED) as door:
        assert b"accepts no PROXY header here" in await answer(door.port, None, V1 + V2)
    async with running_hub(**TRUSTED) as (_, port):
        told = await answer(port, None, V1 + V1 + HELLO)
        assert told.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert told.count(b"HTTP/1.1 ") == 1


async def test_log_lines_behind_a_header_name_the_user(
    certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_door(certificates, certificate_required=True, **TRUSTED) as door:
        assert reason_of(body_of(await answer(door.port, None, V2 + HELLO))).endswith(b"to an HTTPS port\n")
        await asyncio.to_thread(in_one_segment, door.port, V1, certificates.client(), HELLO)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(in_one_segment, door.port, V1, certificates.client(certificates.stranger), HELLO)
        await until(lambda: door.refused["tls"] == 1)
    lines = {each.getMessage(): vars(each)["peer"] for each in caplog.records if hasattr(each, "peer")}
    assert lines == {
        "a user speaks plain HTTP to the TLS port": ("203.0.113.9", 56324),
        "a user showed no certificate": ("203.0.113.9", 56324),
        "a user's TLS handshake failed": ("203.0.113.9", 56324),
    }


@pytest.mark.parametrize("is_tls", [False, True])
async def test_connections_without_their_header_are_bounded(
    certificates: Certificates, is_tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_door(certificates if is_tls else None, max_connections=20, **TRUSTED) as door:
        waiting = []
        for _ in range(15):
            waiting.append(await asyncio.open_connection("127.0.0.1", door.port))
            waiting[-1][1].write(V2[:13])
        async with asyncio.timeout(20):
            for reader, _ in waiting[:5]:
                assert await reader.read() == b""
        await until(lambda: len(door._entrance.entering) == 10)
        assert door.refused == {"handshakes": 5}
        waiting[-1][1].write(V2[13:] + (b"\x16" if is_tls else HELLO))
        if not is_tls:
            async with asyncio.timeout(20):
                assert await waiting[-1][0].read() == b"ok"
    assert {each.getMessage()[:14] for each in caplog.records} == {"too many users"}
    for reader, writer in waiting:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(20):
                await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_connections_that_gave_way_hold_few_descriptors(certificates: Certificates) -> None:
    """They came in one burst, so that none of them had a turn of the loop yet."""
    held: list[int] = []

    def open_connections() -> int:  # asked for each connection that is accepted
        held.append(sum(sock.fileno() >= 0 for sock in accepted))
        return 0

    accepted: list[socket.socket] = []
    async with running_door(certificates, max_connections=20, open_connections=open_connections) as door:
        assert door._acceptor is not None
        take = door._acceptor._accepted

        def note(sock: socket.socket, peer: Any) -> None:
            accepted.append(sock)
            take(sock, peer)

        door._acceptor._accepted = note
        users = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(120)]
        try:
            await until(lambda: len(held) == 120)
        finally:
            for user in users:
                user.close()
        assert max(held) <= 10 + entrance.MOST_LEAVING + 1
    assert not door._entrance.leaving


async def test_a_header_is_due_within_the_time_for_a_head() -> None:
    async with running_hub(limits=LimitsConfig(head_timeout_s=0.2), **TRUSTED) as (_, port):
        assert b"within 0.2 s (limits.head_timeout_s)" in await answer(port, None, b"PROXY ")
