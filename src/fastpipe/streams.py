"""Awaitable streams over a pipe: the interface of asyncio's streams, read without their second copy.

(reader, writer), (their_reader, their_writer) = open_pipe_streams()
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Final, cast

import fastpipe
from fastpipe._streams import PipeReader, PipeWriter

__all__ = ["DEFAULT_LIMIT", "PipeReader", "PipeWriter", "StreamPairs", "open_pipe_streams", "open_streams"]

DEFAULT_LIMIT: Final = 65536  # asyncio's: the longest line, and half of what is read ahead


class StreamPairs(tuple[tuple[PipeReader, PipeWriter], tuple[PipeReader, PipeWriter]]):
    """Two connected (reader, writer) pairs. May be awaited, as asyncio.open_connection has to be; gives itself."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, StreamPairs]:
        yield from ()
        return self


def open_streams(end: fastpipe.PipeEnd, *, limit: int = DEFAULT_LIMIT) -> tuple[PipeReader, PipeWriter]:
    """Return a reader and a writer over a pipe's end. The reader becomes the end's protocol.

    Args:
        end: one end of a pipe.
        limit: the longest line in bytes. The reader reads ahead twice as much.

    Raises:
        ValueError: for a limit out of range.
        RuntimeError: without a running loop.
    """
    return join_streams(end, PipeReader(limit, asyncio.get_running_loop()))


def join_streams(end: fastpipe.PipeEnd, reader: PipeReader) -> tuple[PipeReader, PipeWriter]:
    """Make the reader the end's protocol. Return the reader with its writer."""
    end.set_protocol(cast(asyncio.Protocol, reader))  # it has the methods, but an extension type has no Python base
    return reader, PipeWriter(end, reader)


def open_pipe_streams(*, limit: int = DEFAULT_LIMIT) -> StreamPairs:
    """Return two (reader, writer) pairs. Each reader reads the bytes of the other pair's writer.

    Args:
        limit: the longest line in bytes, as in `asyncio.open_connection`. A reader reads ahead twice as much. The
            limit is also the high-water mark of the pipe, past which `drain` waits.

    Raises:
        ValueError: for a limit out of range.
        RuntimeError: without a running loop.
    """
    loop = asyncio.get_running_loop()
    one, other = PipeReader(limit, loop, True), PipeReader(limit, loop, True)
    first, second = fastpipe.create_pipe(limit=limit, max_chunk=None, loop=loop)
    return StreamPairs((join_streams(first, one), join_streams(second, other)))
