"""`/healthz`, `/readyz` and `/metrics` at the health address: for a kubelet, a Prometheus, or a person with curl."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable

from ..errors import listening
from ..runtime.deadlines import timeout
from ..syntax import Address, parse_address

__all__ = ["HealthServer"]

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
HEAD_BYTES = 8192
MAX_CONNECTIONS = 16
"""Connections open at once. At the limit, a new one replaces the oldest."""
_ACCEPT = re.compile(rb"\r\naccept:[ \t]*([^\r\n]*)", re.IGNORECASE)


class HealthServer:
    """A small HTTP server, one request per connection.

    `/healthz` returns 200 while the event loop runs.

    Args:
        ready: whether `/readyz` returns 200 or 503.
        metrics: makes (content type, page) for `/metrics` from the request's Accept. None disables the page.
    """

    def __init__(self, ready: Callable[[], bool], metrics: Callable[[str], tuple[str, bytes]] | None = None) -> None:
        self._ready = ready
        self._metrics = metrics
        self._server: asyncio.Server | None = None
        self._requests: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. host "" means every interface. Raises OSError."""
        self._server = await asyncio.start_server(
            self._accept, host or None, port, limit=HEAD_BYTES, backlog=MAX_CONNECTIONS
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    @property
    def addresses(self) -> list[Address]:
        """The addresses that it listens on now."""
        sockets = self._server.sockets if self._server is not None else ()
        return [Address(*sock.getsockname()[:2]) for sock in sockets]

    async def listen(self, health_address: str) -> None:
        """Listen at the setting's HOST:PORT, nowhere if it is "". Raises ListenError."""
        if health_address:
            address = parse_address(health_address, listen=True)
            with listening("health_address", address):
                port = await self.start(address.host, address.port)
            logger.info("health checks are served", extra={"address": str(Address(address.host, port))})

    async def close(self) -> None:
        """Stop listening and end what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._requests:
            task.cancel()
        if self._requests:
            await asyncio.wait(self._requests)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._requests) >= MAX_CONNECTIONS:
            oldest = next(iter(self._requests))
            del self._requests[oldest]
            oldest.cancel()
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._requests[task] = None
        task.add_done_callback(lambda done: self._served(done, writer))

    def _served(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        self._requests.pop(task, None)
        writer.transport.abort()  # no effect if closed, otherwise the peer doesn't read, or was never served

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A peer that is slow, sends too much or leaves gets no response.
        with contextlib.suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            async with timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                writer.close()
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        content_type = "text/plain"
        if method not in (b"GET", b"HEAD"):
            status, text = "405 Method Not Allowed", b"only GET and HEAD\n"
        elif path == b"/healthz":
            status, text = "200 OK", b"ok\n"
        elif path == b"/readyz":
            status, text = ("200 OK", b"ready\n") if self._ready() else ("503 Service Unavailable", b"not ready\n")
        elif path == b"/metrics" and self._metrics is not None:
            accept = _ACCEPT.search(head)
            try:
                content_type, text = self._metrics(accept[1].decode("latin-1") if accept else "")
                status = "200 OK"
            except Exception:  # the page reads every room, and an error in one must not stop the health checks
                logger.exception("the page of metrics could not be made")
                status, text = "500 Internal Server Error", b"the page could not be made, and the log has the reason\n"
        else:
            status, text = "404 Not Found", b"not found\n"
        fields = (f"Content-Type: {content_type}", f"Content-Length: {len(text)}", "Connection: close")
        head_out = "\r\n".join((f"HTTP/1.1 {status}", *fields, "", ""))
        return head_out.encode("ascii") + (b"" if method == b"HEAD" else text)
