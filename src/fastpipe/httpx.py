"""An httpx transport that dials a Listener: HTTP/1.1 in memory, with httpcore's connection pool."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from fastpipe.listener import Listener
from fastpipe.streams import PipeReader, PipeWriter


class PipeTransport(httpx.AsyncBaseTransport):
    """Sends every request of a client to one listener, whatever its URL's host. `https` is rejected.

        client = httpx.AsyncClient(transport=PipeTransport(listener), base_url="http://app")

    Args:
        listener: the server.
        pool: options of httpcore.AsyncConnectionPool (`max_connections`, `keepalive_expiry`, …).

    Raises:
        httpx.ConnectError: the listener is closed.
        httpx.TransportError: the other errors of httpx, such as ReadTimeout.
    """

    def __init__(self, listener: Listener, **pool: Any) -> None:
        self._pool = httpcore.AsyncConnectionPool(network_backend=PipeBackend(listener), **pool)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert isinstance(request.stream, httpx.AsyncByteStream)
        url = request.url
        with httpx_errors():
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        assert isinstance(response.stream, AsyncIterable)
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=Body(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        with httpx_errors():
            await self._pool.aclose()


class Body(httpx.AsyncByteStream):
    """A response's body, with httpx's errors."""

    def __init__(self, parts: AsyncIterable[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with httpx_errors():
            async for part in self._parts:
                yield part

    async def aclose(self) -> None:
        close = getattr(self._parts, "aclose", None)
        if close is not None:
            await close()


@contextmanager
def httpx_errors() -> Iterator[None]:
    """httpcore's errors as httpx's, which have the same names."""
    try:
        yield
    except Exception as error:
        kind = getattr(httpx, type(error).__name__, None)
        if kind is None or not type(error).__module__.startswith("httpcore"):
            raise
        raise kind(str(error)) from error


class PipeBackend(httpcore.AsyncNetworkBackend):
    """httpcore's way to a network: here to one listener, for every host and port."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to the listener. ConnectTimeout while its backlog is full, ConnectError once it is closed."""
        try:
            async with asyncio.timeout(timeout):
                return PipeNetworkStream(*await self._listener.open_connection())
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        return await self.connect_tcp(path, 0, timeout)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class PipeNetworkStream(httpcore.AsyncNetworkStream):
    """A connection as httpcore's pool uses it. Timeouts in seconds; None: none."""

    def __init__(self, reader: PipeReader, writer: PipeWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._writer.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Refused: what goes through memory has nobody to hide from."""
        await self.aclose()
        raise httpcore.ConnectError("a pipe has no TLS: use an http:// URL")

    def get_extra_info(self, info: str) -> Any:
        """`is_readable` (of an idle connection: the server has left), `client_addr`, `server_addr`, `socket`."""
        if info == "is_readable":
            gone = self._reader.at_eof() or self._reader.exception() is not None
            return gone or self._writer.is_closing()
        names = {"client_addr": "sockname", "server_addr": "peername", "socket": "socket"}
        return self._writer.get_extra_info(names[info]) if info in names else None
