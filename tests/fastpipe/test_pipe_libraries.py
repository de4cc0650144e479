"""Protocols of uvicorn, aiohttp and asyncio's TLS run unchanged on pipe ends, with real HTTP/1.1 bytes."""

from __future__ import annotations

import asyncio
import ssl

import h11
import pytest
import trustme
import uvicorn
from aiohttp import web
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

BODY = bytes(range(256)) * 1200  # 300 KiB: past the limits on the way


class Client:
    """An HTTP/1.1 client of h11 and asyncio's streams."""

    def __init__(self, end) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        end.set_protocol(protocol)
        self.writer = asyncio.StreamWriter(end, protocol, self.reader, loop)
        self.connection = h11.Connection(h11.CLIENT)

    async def request(self, method: str, target: str, body: bytes = b"", *headers: tuple) -> tuple[int, bytes]:
        head = [("host", "pipe"), ("content-length", str(len(body))), *headers]
        events = [h11.Request(method=method, target=target, headers=head), h11.Data(data=body), h11.EndOfMessage()]
        for event in events:
            self.writer.write(self.connection.send(event) or b"")
        await self.writer.drain()
        status, received = 0, b""
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                self.connection.receive_data(await self.reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                received += event.data
            elif isinstance(event, h11.EndOfMessage):
                if self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE:
                    self.connection.start_next_cycle()
                return status, received

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def echo_app(scope, receive, send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", scope["raw_path"])]})
    for start in range(0, len(body), 70_000):
        await send({"type": "http.response.body", "body": body[start : start + 70_000], "more_body": True})
    await send({"type": "http.response.body", "body": b"."})


@pytest.mark.parametrize("inline", [False, True], ids=["default", "inline"])
@pytest.mark.parametrize("protocol_class", [H11Protocol, HttpToolsProtocol])
async def test_uvicorns_protocols_serve_a_pipe(twin, protocol_class, inline):
    config = uvicorn.Config(echo_app, lifespan="off", log_config=None, access_log=False)
    config.load()
    near, far = twin.create_pipe(inline=inline)
    state = ServerState()
    far.set_protocol(protocol_class(config, server_state=state, app_state={}))
    client = Client(near)
    for number in range(10):
        assert await client.request("POST", f"/{number}", b"x" * number) == (200, b"x" * number + b".")
    assert await client.request("POST", "/large", BODY) == (200, BODY + b".")
    assert await client.request("GET", "/last", b"", ("connection", "close")) == (200, b".")
    assert await client.reader.read() == b""
    await client.close()
    await asyncio.sleep(0)
    assert not state.connections


async def test_aiohttps_server_serves_a_pipe_files_included(twin, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(BODY)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/file":
            return web.FileResponse(path)
        return web.Response(body=await request.read() + b".")

    server = web.Server(handler, access_log=None)
    near, far = twin.create_pipe()
    far.set_protocol(server())
    client = Client(near)
    for number in range(10):
        assert await client.request("POST", f"/{number}", b"x" * number) == (200, b"x" * number + b".")
    assert await client.request("POST", "/large", BODY) == (200, BODY + b".")
    assert await client.request("GET", "/file") == (200, BODY)
    await client.close()
    await server.shutdown(1)


@pytest.mark.loops("asyncio")  # uvloop's start_tls takes its own transports only
async def test_asyncios_tls_runs_over_a_pipe(twin):
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("pipe.example").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    loop = asyncio.get_running_loop()
    near, far = twin.create_pipe()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    async def serve():
        echo = Echo()
        echo.connection_made(await loop.start_tls(far, echo, server_context, server_side=True))

    far.set_protocol(asyncio.Protocol())
    client = Client(near)
    await asyncio.sleep(0)
    serving = asyncio.create_task(serve())
    await client.writer.start_tls(client_context, server_hostname="pipe.example")
    await serving
    client.writer.write(BODY)
    assert await client.reader.readexactly(len(BODY)) == BODY
    await client.close()
