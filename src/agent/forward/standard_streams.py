"""Joins standard input and output with a tunnel, as ssh's ProxyCommand needs it.

    one socket for both      the loop's transport of that socket
    a pipe or a terminal     the loop reads and writes it
    a file, or /dev/null     a thread reads it, and writes never wait

`StandardStreams` is the local transport of a joint. At the end, both descriptors get their blocking mode back, since
other processes may share them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import Any

from ..syntax import Address
from .carrier import Carrier
from .joining import Joint, Side

__all__ = ["StandardStreams", "forward_standard_streams"]

READ_BYTES = 65536
INPUT, OUTPUT = 0, 1


async def forward_standard_streams(carrier: Carrier, target: Address) -> bool:
    """Join the standard streams with a tunnel, until both directions have ended.

    Returns whether they ended in order. Raises ForwardError. If cancelled, the tunnel is reset.
    """
    modes = [(fd, os.get_blocking(fd)) for fd in (INPUT, OUTPUT)]
    try:
        joint = Joint(await carrier.connect(target))
        try:
            if _is_one_socket():
                sock = socket.socket(fileno=os.dup(INPUT))
                await asyncio.get_running_loop().connect_accepted_socket(lambda: joint.local, sock)
            else:
                await StandardStreams(joint.local).open()
            return await joint.done
        finally:
            joint.abort()
    finally:
        await carrier.close()
        for fd, is_blocking in modes:
            with contextlib.suppress(OSError):  # closed
                os.set_blocking(fd, is_blocking)


def _is_one_socket() -> bool:
    found = [os.fstat(fd) for fd in (INPUT, OUTPUT)]
    return stat.S_ISSOCK(found[0].st_mode) and os.path.samestat(*found)


def _is_polled(fd: int) -> bool:
    """Whether the loop can wait for a descriptor. It can't for files, and for devices other than terminals."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


class StandardStreams(asyncio.Transport):
    """A transport of standard input and output. side: its protocol."""

    def __init__(self, side: Side) -> None:
        super().__init__()
        self._side = side
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.ReadTransport | None = None
        self._writer: asyncio.WriteTransport | None = None
        self._reading: asyncio.Task[None] | None = None  # of a file
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._output_closed = False
        self._is_closing = False
        self._is_lost = False

    async def open(self) -> None:
        """Connect both streams to their side. Raises OSError."""
        # The loop closes its descriptors. The process's own stay open, so that no socket gets their numbers.
        if _is_polled(OUTPUT):
            file = os.fdopen(os.dup(OUTPUT), "wb", buffering=0)
            self._writer, _ = await self._loop.connect_write_pipe(lambda: _Output(self), file)
        self._side.connection_made(self)
        if _is_polled(INPUT):
            file = os.fdopen(os.dup(INPUT), "rb", buffering=0)
            self._reader, _ = await self._loop.connect_read_pipe(lambda: _Input(self), file)
            if self._is_closing:
                self._reader.close()
            elif not self._may_read.is_set():
                self._reader.pause_reading()
        elif not self._is_closing:
            self._reading = self._loop.create_task(self._read_file())

    async def _read_file(self) -> None:
        while True:
            await self._may_read.wait()
            try:
                data = await self._loop.run_in_executor(None, os.read, INPUT, READ_BYTES)
            except OSError as error:
                self.lose(error)
                return
            if self._is_closing:
                return
            if not data:
                self._side.eof_received()
                return
            self._side.data_received(data)

    # -- what the joint calls

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._writer is not None:
            self._writer.write(data)
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(OUTPUT, view) :]
        except OSError as error:
            self._loop.call_soon(self.lose, error)

    def write_eof(self) -> None:
        """Close standard output behind what is unsent, so that its reader sees the end."""
        self._output_closed = True
        if not os.isatty(OUTPUT):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, OUTPUT)  # the writer has another descriptor
            os.close(null)
        if self._writer is not None:
            self._writer.close()

    def pause_reading(self) -> None:
        self._may_read.clear()
        if self._reader is not None:
            self._reader.pause_reading()

    def resume_reading(self) -> None:
        self._may_read.set()
        if self._reader is not None and not self._reader.is_closing():
            self._reader.resume_reading()

    def close(self) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._stop_reading()
        if self._writer is None:
            self._loop.call_soon(self.lose, None)
        elif not self._output_closed:
            self.write_eof()
        elif self._writer.is_closing() and self._writer.get_write_buffer_size() == 0:
            self._loop.call_soon(self.lose, None)

    def abort(self) -> None:
        self._is_closing = True
        self._stop_reading()
        if self._writer is not None:
            self._writer.abort()
        self._loop.call_soon(self.lose, None)

    # -- what the streams call

    def lose(self, error: Exception | None) -> None:
        """The streams are closed, or one of them failed."""
        if self._is_lost:
            return
        self._is_lost = self._is_closing = True
        self._stop_reading()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.abort()
        self._side.connection_lost(error)

    def output_lost(self, error: Exception | None) -> None:
        """Standard output is closed: by this process, or because its reader has left."""
        if error is not None or not self._output_closed:
            self.lose(error or BrokenPipeError())
        elif self._is_closing:
            self.lose(None)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._reading is not None:
            self._reading.cancel()


class _Input(asyncio.Protocol):
    """Standard input."""

    def __init__(self, streams: StandardStreams) -> None:
        self._streams = streams

    def data_received(self, data: bytes) -> None:
        self._streams._side.data_received(data)

    def eof_received(self) -> bool:
        self._streams._side.eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._streams.lose(exc)


class _Output(asyncio.BaseProtocol):
    """Standard output."""

    def __init__(self, streams: StandardStreams) -> None:
        self._streams = streams

    def pause_writing(self) -> None:
        self._streams._side.pause_writing()

    def resume_writing(self) -> None:
        self._streams._side.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.output_lost(exc)
