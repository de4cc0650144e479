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
    """Reader and writer over a pipe's end; limit: the longest line in bytes, and half of what is read ahead.

    The end's protocol is from now on the reader. Raises ValueError; RuntimeError without a running loop.
    """
    return join_streams(end, PipeReader(limit, asyncio.get_running_loop()))


def join_streams(end: fastpipe.PipeEnd, reader: PipeReader) -> tuple[PipeReader, PipeWriter]:
    """The reader, now the end's protocol, and a writer to go with it."""
    end.set_protocol(cast(asyncio.Protocol, reader))  # by its methods; an extension type has no Python base
    return reader, PipeWriter(end, reader)


def open_pipe_streams(*, limit: int = DEFAULT_LIMIT) -> StreamPairs:
    """Two (reader, writer) pairs: what one writer writes, the other pair's reader reads.

    limit: as in asyncio.open_connection, the longest line in bytes, and half of what a reader reads ahead; also the
    high-water mark of the pipe, past which `drain` waits. Raises ValueError; RuntimeError without a running loop.
    """
    loop = asyncio.get_running_loop()
    one, other = PipeReader(limit, loop, True), PipeReader(limit, loop, True)
    first, second = fastpipe.create_pipe(limit=limit, max_chunk=None, loop=loop)
    return StreamPairs((join_streams(first, one), join_streams(second, other)))
