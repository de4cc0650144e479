"""The receive buffers: Chunks that all connections of a thread share.

The transport writes into a Chunk of RECEIVE_BYTES. Payloads of small reads are copied. Payloads of large reads are
read-only views. The Chunk is reused only after the last view is released (`framing_py`, I3). A connection holds a Chunk
only from `get_buffer` to `buffer_updated`. With TLS it holds the Chunk until the record is whole. TLS itself buffers
twice as much.

Cython compiles this file as it is, with the types of `receiving.pxd` (fastpipe/extensions.py).
"""

from __future__ import annotations

import threading

from fastpipe import Chunk, ChunkPool

from .sizes import RECEIVE_BYTES

__all__ = ["ReceiveBuffer", "ReceivePool", "pool_of_thread"]

_SPARE_CHUNKS = 4  # of a thread, views of which may be alive


class ReceiveBuffer:
    """A Chunk to receive into. room: its writable bytes, None once views of it exist."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.room: memoryview | None = chunk.writable()

    def keep(self, size_bytes: int) -> memoryview:
        """A read-only view of the first bytes. They don't change while the view, or a view of it, is alive."""
        self.room = None
        return self.chunk.commit(size_bytes)


class ReceivePool:
    """The buffers that the connections of one thread receive into."""

    def __init__(self) -> None:
        self._next: ReceiveBuffer | None = None  # the one most likely free: given back last
        self._pool = ChunkPool(RECEIVE_BYTES, _SPARE_CHUNKS)

    def take(self) -> ReceiveBuffer:
        """Return an empty buffer without views. The caller owns it until `give_back`."""
        buffer = self._next
        if buffer is None:
            return ReceiveBuffer(self._pool.take())
        self._next = None
        if buffer.room is not None:
            return buffer
        chunk = buffer.chunk
        try:
            chunk.clear()
        except BufferError:  # a view is left
            self._pool.give_back(chunk)
            chunk = self._pool.take()
        return ReceiveBuffer(chunk)

    def give_back(self, buffer: ReceiveBuffer) -> None:
        """Take back a buffer that the caller no longer writes into. Views of it may be alive."""
        if self._next is None:
            self._next = buffer
        else:
            buffer.room = None
            self._pool.give_back(buffer.chunk)


class _PoolOfThread(threading.local):
    def __init__(self) -> None:
        self.pool = ReceivePool()


_pools = _PoolOfThread()


def pool_of_thread() -> ReceivePool:
    """The calling thread's."""
    return _pools.pool
