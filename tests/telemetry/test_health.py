"""The health address, asked by a real client."""

import asyncio
import contextlib
import socket

import httpx
import pytest

from agent.runtime.descriptors import open_descriptors
from agent.telemetry import health
from agent.telemetry.health import HealthServer

from ..limits import scaled


async def test_readyz_follows_the_agent_and_healthz_does_not() -> None:
    state = {"ready": False}
    server = HealthServer(lambda: state["ready"])
    port = await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/healthz")).text == "ok\n"
            assert (await client.get("/readyz")).status_code == 503
            state["ready"] = True
            assert (await client.get("/readyz?verbose")).text == "ready\n"
            assert (await client.head("/readyz")).status_code == 200
            assert (await client.get("/other")).status_code == 404
            assert (await client.post("/healthz")).status_code == 405
    finally:
        await server.close()


async def test_it_knows_the_addresses_that_it_listens_on() -> None:
    server = HealthServer(lambda: True)
    assert server.addresses == []
    port = await server.start("127.0.0.1", 0)
    assert [str(address) for address in server.addresses] == [f"127.0.0.1:{port}"]
    await server.close()
    assert server.addresses == []


async def test_a_page_that_fails_is_said_and_the_rest_answers_on(caplog: pytest.LogCaptureFixture) -> None:
    def page(accept: str) -> tuple[str, bytes]:
        raise LookupError(accept)

    server = HealthServer(lambda: True, page)
    port = await server.start("127.0.0.1", 0)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"Accept": "text/x"}) as client:
            answer = await client.get("/metrics")
            assert (answer.status_code, answer.headers["Content-Type"]) == (500, "text/plain")
            assert "LookupError" not in answer.text
            assert (await client.get("/healthz")).status_code == 200
    finally:
        await server.close()
    assert "LookupError: text/x" in caplog.text


async def test_closing_ends_a_client_that_says_nothing() -> None:
    server = HealthServer(lambda: True)
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /hea")
    await writer.drain()
    await server.close()
    with contextlib.suppress(ConnectionError):  # a reset, where the server had not accepted it yet
        assert await reader.read() == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_a_client_that_does_not_read_its_answer_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "REQUEST_TIMEOUT_S", 0.2)
    asked: list[str] = []

    def page(accept: str) -> tuple[str, bytes]:
        asked.append(accept)
        return "text/plain", bytes(16 * 2**20)

    server = HealthServer(lambda: True, page)
    port = await server.start("127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    before = open_descriptors()
    with contextlib.ExitStack() as clients:
        try:
            for _ in range(3):
                client = clients.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", port))
                await loop.sock_sendall(client, b"GET /metrics HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(scaled(10)):
                closed = False
                while not closed:
                    await asyncio.sleep(0.01)
                    own = open_descriptors() - before - 3  # without the clients'
                    closed = len(asked) == 3 and not server._requests and not own
        finally:
            await server.close()


async def test_a_burst_of_clients_leaves_none_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest makes room for one more, in the turn of the loop in which it came as well."""
    monkeypatch.setattr(health, "MAX_CONNECTIONS", 2)
    server = HealthServer(lambda: True)
    port = await server.start("127.0.0.1", 0)
    pairs = [Pair() for _ in range(6)]
    for pair in pairs:
        server._accept(*pair.made())
    try:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [pair.aborted for pair in pairs] == [True] * 4 + [False] * 2
    finally:
        await server.close()
    assert port


class Pair(asyncio.Transport):
    """A connection of which only its end is of interest."""

    aborted = False

    def made(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        return reader, asyncio.StreamWriter(self, asyncio.StreamReaderProtocol(reader), reader, loop)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted
