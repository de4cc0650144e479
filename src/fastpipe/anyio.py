"""Pipes as anyio's byte streams (`anyio.abc.ByteStream`), and a Listener as anyio's, on its asyncio backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
from anyio.abc import SocketAttribute

from fastpipe._errors import PipeClosedError
from fastpipe.listener import Listener
from fastpipe.streams import PipeReader, PipeWriter, open_pipe_streams, open_streams


class PipeByteStream(anyio.abc.ByteStream):
    """A connection in memory. Made by `open_byte_streams`, `connect` and `PipeListener`.

    Raises anyio's errors: EndOfStream, ClosedResourceError, BrokenResourceError, BusyResourceError for two at once.
    """

    def __init__(self, reader: PipeReader, writer: PipeWriter) -> None:
        self._reader, self._writer = reader, writer
        self._closed = False
        self._receiving = anyio.ResourceGuard("reading from")
        self._sending = anyio.ResourceGuard("writing to")

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """1 to max_bytes bytes. Cancelled, it has taken nothing."""
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        with self._receiving:
            await anyio.lowlevel.checkpoint()
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                data = await self._reader.read(max_bytes)
            except OSError as error:
                raise anyio.BrokenResourceError from error
        if data:
            return data
        if self._closed:
            raise anyio.ClosedResourceError
        raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        """Send all bytes. Waits while more than the pipe's limit is unread. If cancelled, the bytes are still sent."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                self._writer.write(item)
                await self._writer.drain()
            except OSError as error:
                raise (anyio.ClosedResourceError if self._closed else anyio.BrokenResourceError) from error

    async def send_eof(self) -> None:
        """Half-close: the other side's receive raises EndOfStream after all bytes."""
        with self._sending:
            await anyio.lowlevel.checkpoint()
            if self._closed:
                raise anyio.ClosedResourceError
            self._writer.write_eof()

    async def aclose(self) -> None:
        """Close both directions. Bytes sent before still arrive."""
        self._closed = True
        self._writer.close()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """SocketAttribute's addresses, where the listener or the caller gave some, and its family."""
        stand_in = self._writer.get_extra_info("socket")
        return {
            SocketAttribute.family: lambda: stand_in.family,
            SocketAttribute.local_address: stand_in.getsockname,
            SocketAttribute.remote_address: stand_in.getpeername,
        }


def open_byte_streams(*, limit: int = 65536) -> tuple[PipeByteStream, PipeByteStream]:
    """Make two connected streams.

    limit: the bytes that one side may send before the other receives them. As many again are read ahead.
    """
    first, second = open_pipe_streams(limit=limit)
    return PipeByteStream(*first), PipeByteStream(*second)


async def connect(listener: Listener, *, local_address: Any = "") -> PipeByteStream:
    """A stream to a listener, as anyio.connect_tcp. Raises ConnectionRefusedError once it is closed."""
    return PipeByteStream(*await listener.open_connection(local_address=local_address))


class PipeListener(anyio.abc.Listener[PipeByteStream]):
    """A Listener as anyio serves one: `await PipeListener(listener).serve(handler)`."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def serve(
        self, handler: Callable[[PipeByteStream], Any], task_group: anyio.abc.TaskGroup | None = None
    ) -> None:
        """Run `handler(stream)` for each connection until the listener is closed.

        The handlers run in the given task group, or in a new one. With a new group, `serve` waits for the handlers at
        the end. If `serve` is cancelled, the handlers are cancelled, and the listener stays open.
        """
        if task_group is None:
            async with anyio.create_task_group() as own:
                await self._serve(handler, own)
        else:
            await self._serve(handler, task_group)

    async def _serve(self, handler: Callable[[PipeByteStream], Any], task_group: anyio.abc.TaskGroup) -> None:
        while True:
            try:
                end = await self._listener.accept()
            except PipeClosedError:
                return
            task_group.start_soon(handler, PipeByteStream(*open_streams(end)))

    async def aclose(self) -> None:
        """Close the listener."""
        self._listener.close()
        await anyio.lowlevel.checkpoint()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """SocketAttribute.local_address: the listener's."""
        return {SocketAttribute.local_address: lambda: self._listener.address}
