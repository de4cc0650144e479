"""One more handshake shows whose certificate has expired. It sends none of our data and soon gives up."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trustme

from agent.x509 import peer as peer_certificate
from agent.x509.peer import MAX_HANDSHAKE_BYTES, Reader, fault_of_own, whose_dates

from ..limits import scaled

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def expired(code: int = 10) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError("refused")
    error.verify_code = code
    return error


@contextlib.asynccontextmanager
async def listening(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def asked(port: int, error: BaseException | None = None) -> str:
    def connect(reader: Reader) -> Awaitable[object]:
        return asyncio.get_running_loop().create_connection(lambda: reader, "127.0.0.1", port)

    return await whose_dates(error or expired(), "the hub", "hub.test", connect)


def context_of(ca: trustme.CA, begins: datetime.datetime, ends: datetime.datetime) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("hub.test", common_name="hub.test", not_before=begins, not_after=ends).configure_cert(context)
    return context


@pytest.mark.loops("uvloop")  # asyncio in debug mode reports each failed handshake at the server
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        (NOW - 9 * DAY, NOW - 2 * DAY, f"expired on {(NOW - 2 * DAY).date()}"),
        (NOW + 2 * DAY, NOW + 9 * DAY, f"is not valid before {(NOW + 2 * DAY).date()}"),
    ],
    ids=["expired", "not yet"],
)
async def test_the_peers_certificate_is_named_with_its_date(
    ca: trustme.CA, begins: datetime.datetime, ends: datetime.datetime, said: str, version: ssl.TLSVersion
) -> None:
    context = context_of(ca, begins, ends)
    context.maximum_version = version
    async with listening(lambda _, writer: writer.close(), context) as port:
        found = await asked(port)
    assert found.startswith("the hub's certificate (")
    assert "CN=hub.test" in found
    assert found.endswith(f") {said}")


@pytest.mark.loops("uvloop")  # as above
async def test_a_valid_certificate_is_not_blamed_for_its_signers_dates(ca: trustme.CA) -> None:
    async with listening(lambda _, writer: writer.close(), context_of(ca, NOW - DAY, NOW + 9 * DAY)) as port:
        found = await asked(port)
    assert found.startswith("a certificate that signed the hub's has expired; the hub's own (")
    assert found.endswith(f"is valid until {(NOW + 9 * DAY).date()}")


async def test_no_more_than_a_handshakes_first_message_is_sent_by_tls_1_3(ca: trustme.CA) -> None:
    """The server's side is done by hand, so that every byte is seen."""
    seen = bytearray()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = context_of(ca, NOW - 9 * DAY, NOW - 2 * DAY)
    context.verify_mode = ssl.CERT_REQUIRED  # the server requires a certificate, too
    ca.configure_trust(context)
    tls = context.wrap_bio(incoming, outgoing, server_side=True)
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                seen.extend(data)
                incoming.write(data)
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                writer.write(outgoing.read())
        writer.close()
        ended.set()

    async with listening(serve) as port:
        assert "expired on" in await asked(port)
        await ended.wait()
    records = []
    while seen:
        size = int.from_bytes(seen[3:5], "big")
        records.append((seen[0], seen[5]))
        del seen[: 5 + size]
    assert records == [(22, 1)]  # a handshake record, and in it a ClientHello


@pytest.mark.parametrize("code", [18, 19, 20, 62])
async def test_other_failures_dial_nobody(code: int) -> None:
    for error in (expired(code), ssl.SSLError("other"), OSError("none")):
        assert await whose_dates(error, "the hub", "hub.test", lambda _: pytest.fail("dialled")) == ""


@pytest.mark.parametrize("kind", ["closes", "garbage", "flood", "nobody"])
async def test_a_peer_that_does_no_handshake_gives_nothing(kind: str) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            if kind == "garbage":
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            while kind == "flood":  # empty-ish records of a handshake that never is one
                writer.write(b"\x16\x03\x03\x40\x00" + b"\x02\xff\xff\xff" + bytes(0x3FFC))
                await writer.drain()
        writer.close()

    async with listening(serve) as port:
        assert await asked(1 if kind == "nobody" else port) == ""


async def test_a_silent_peer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_certificate, "TIMEOUT_S", 0.05)
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
        gone.set()
        writer.close()

    async with listening(serve) as port:
        assert await asked(port) == ""
        async with asyncio.timeout(scaled(10)):
            await gone.wait()


async def test_a_handshake_without_end_is_ended() -> None:
    class Transport(asyncio.Transport):
        aborted = 0

        def write(self, data: object) -> None: ...
        def abort(self) -> None:
            self.aborted += 1

    reader, transport = Reader("hub.test"), Transport()
    reader.connection_made(transport)
    record = b"\x16\x03\x03\x00\x01\x02"  # a byte of a message at a time
    for _ in range(MAX_HANDSHAKE_BYTES // len(record) + 2):
        if reader.done.is_set():
            break
        reader.get_buffer(-1)[: len(record)] = record
        reader.buffer_updated(len(record))
    assert reader.done.is_set()
    assert reader.der is None
    assert transport.aborted


async def test_cancelled_while_it_asks_nothing_stays_open() -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
        gone.set()
        writer.close()

    async with listening(serve) as port:
        asking = asyncio.ensure_future(asked(port))
        await arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        async with asyncio.timeout(scaled(10)):
            await gone.wait()


def test_the_fault_of_our_own_certificate_is_said(ca: trustme.CA, tmp_path: Path) -> None:
    path = tmp_path / "c1.pem"
    for begins, ends, said in (
        (NOW - 9 * DAY, NOW - 2 * DAY, f"expired on {(NOW - 2 * DAY).date()}"),
        (NOW + 2 * DAY, NOW + 9 * DAY, f"is not valid before {(NOW + 2 * DAY).date()}"),
        (NOW - DAY, NOW + DAY, ""),
    ):
        issued = ca.issue_cert("c1", common_name="c1", not_before=begins, not_after=ends)
        path.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
        found = fault_of_own(str(path))
        assert found.endswith(said) if said else found == ""
        assert not said or (found.startswith("our certificate (") and "CN=c1" in found)
    assert fault_of_own("") == fault_of_own(str(tmp_path / "none")) == ""
