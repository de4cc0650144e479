"""The health address, asked by a real client."""

import asyncio
import contextlib

import httpx
import pytest

from agent.telemetry.health import HealthServer


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
