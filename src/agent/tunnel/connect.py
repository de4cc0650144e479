"""Connections to a hub: straight, or through an HTTP proxy by CONNECT (RFC 9110, section 9.3.6), TLS within either."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from ssl import SSLContext
from typing import Protocol, cast

from ..errors import HubError
from ..syntax import Address

__all__ = ["Endpoint", "Proxy", "connect"]

MAX_ANSWER_BYTES = 16 * 1024
_UNAUTHENTICATED = (407, 401)  # tinyproxy returns the second for wrong credentials


class Proxy(Protocol):
    """The parts of a proxy that this module uses.

    str(): the proxy's URL, without credentials.
    variable: the name of the setting or environment variable that configures it.
    """

    @property
    def scheme(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def authorization(self) -> str: ...
    @property
    def variable(self) -> str: ...


class Endpoint(Protocol):
    """The parts of a hub's endpoint that this module uses."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def ssl(self) -> SSLContext | None: ...
    @property
    def server_hostname(self) -> str | None: ...
    @property
    def proxy(self) -> Proxy | None: ...
    @property
    def proxy_ssl(self) -> SSLContext | None: ...


async def connect(
    endpoint: Endpoint, protocol: asyncio.BufferedProtocol, *, dial_timeout_s: float, tls_timeout_s: float
) -> None:
    """Connect `protocol` to the hub. Returns after the call of its `connection_made`.

    If cancelled, nothing stays open.

    Args:
        dial_timeout_s: until the TCP connection is open, or until the proxy has opened it.
        tls_timeout_s: for the handshake with the hub, from then on. A hub that accepts thousands of agents at once lets
            each wait.

    Raises:
        OSError, ssl.SSLError, UnicodeError: as asyncio raises them.
        HubError: for every failure of a proxy, and after either timeout.
    """
    loop = asyncio.get_running_loop()
    proxy = endpoint.proxy
    address = Address(endpoint.host, endpoint.port)
    hub = str(address) if proxy is None else f"{address} through the proxy {proxy}"
    no_connection = f"no connection to {hub}"
    if proxy is None and endpoint.ssl is None:
        async with _within(dial_timeout_s, no_connection, "dial"):
            await loop.create_connection(lambda: protocol, endpoint.host, endpoint.port)
        return
    waiting = _Waiting()
    transport: asyncio.Transport | None = None
    try:
        async with _within(dial_timeout_s, no_connection, "dial"):
            if proxy is None:
                transport, _ = await loop.create_connection(lambda: waiting, endpoint.host, endpoint.port)
            else:
                transport = await _open_through(endpoint, proxy, waiting)
        if endpoint.ssl is not None:
            inner = _Waiting()
            name = endpoint.server_hostname or endpoint.host
            # Bytes after the proxy's response belong to the hub. A TLS server never sends first, so no byte is lost.
            async with _within(tls_timeout_s, f"no TLS handshake with {hub}", "tls"):
                transport = await loop.start_tls(transport, inner, endpoint.ssl, server_hostname=name)
            assert transport is not None
            inner.transport = transport
            waiting = inner
        waiting.hand_over(protocol)
    except BaseException:
        if transport is not None:
            transport.abort()
        raise


@contextlib.asynccontextmanager
async def _within(timeout_s: float, failure: str, cause: str) -> AsyncIterator[None]:
    """Within the block everything takes at most timeout_s. Raises HubError that begins with `failure`."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        if error.errno is not None:  # the kernel's own: ETIMEDOUT
            raise
        raise HubError(f"{failure} within {timeout_s:g} s", cause=cause) from None


async def _open_through(endpoint: Endpoint, proxy: Proxy, waiting: _Waiting) -> asyncio.Transport:
    """A connection that the proxy has opened to the hub, with `waiting` for its protocol. Raises HubError."""
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(lambda: waiting, proxy.host, proxy.port, ssl=endpoint.proxy_ssl)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or error
        raise HubError(f"TLS with the proxy {proxy}: {reason}", cause="dial") from None
    except OSError as error:
        raise HubError(f"no connection to the proxy {proxy}: {error.strerror or error}", cause="dial") from None
    try:
        transport.write(_request(endpoint, proxy))
        _check(await waiting.answer(proxy), proxy)
    except BaseException:
        transport.abort()
        raise
    return transport


def _request(endpoint: Endpoint, proxy: Proxy) -> bytes:
    host = endpoint.host if endpoint.host.isascii() else endpoint.host.encode("idna").decode("ascii")
    authority = str(Address(host, endpoint.port))
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _check(head: bytes, proxy: Proxy) -> None:
    line = head.partition(b"\r\n")[0].decode("latin-1")
    version, _, rest = line.partition(" ")
    status, _, phrase = rest.partition(" ")
    if version not in ("HTTP/1.0", "HTTP/1.1") or not (len(status) == 3 and status.isascii() and status.isdigit()):
        raise HubError(f"the proxy {proxy} did not respond to CONNECT in HTTP/1", cause="dial")
    if status.startswith("2"):
        return
    said = f"{status} {phrase}".strip()[:100]
    if int(status) in _UNAUTHENTICATED:
        how = "refused our credentials" if proxy.authorization else "asks for credentials"
        raise HubError(f"the proxy {proxy} {how} ({said})", retryable=False, cause="rejected")
    raise HubError(f"the proxy {proxy} did not open a connection to the hub ({said})", cause="dial")


class _Waiting(asyncio.Protocol):
    """Keeps the received bytes: first for the reader of the proxy's response, then for the connection's protocol."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._lost: Exception | None = None
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = exc or ConnectionResetError("closed")
        self._changed.set()

    async def answer(self, proxy: Proxy) -> bytes:
        """Return the head of the proxy's response, without its last empty line. Raises HubError."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if self._lost is not None:
                raise HubError(f"the proxy {proxy} closed the connection without a response to CONNECT", cause="dial")
            if len(self._received) > MAX_ANSWER_BYTES:
                raise HubError(f"the proxy {proxy} responded to CONNECT with a head that is too long", cause="dial")
            self._changed.clear()
            await self._changed.wait()
        head = bytes(self._received[:end])
        del self._received[: end + 4]
        return head

    def hand_over(self, protocol: asyncio.BufferedProtocol) -> None:
        """Give this protocol the connection and the received bytes. Raises OSError if the connection is lost."""
        if self._lost is not None:
            raise OSError("the connection was closed")
        assert self.transport is not None
        self.transport.pause_reading()  # uvloop asks which kind of protocol it is when it begins to read
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()
        protocol.connection_made(self.transport)
        while self._received:
            room = memoryview(protocol.get_buffer(len(self._received)))
            size = min(len(room), len(self._received))
            room[:size] = self._received[:size]
            protocol.buffer_updated(size)
            del self._received[:size]
