"""Immutable bytes: the objects that a write keeps by reference, its copies of others, and the Chunk.

The Python twin must detect whether a view of a Chunk is alive. The storage of a Chunk is a `bytearray`. It raises
BufferError for a change of its length while anything exports its buffer. A memoryview of any slice is such an export
until it is freed or released. So `append` and `pop` test for views. They raise, or change nothing. `__buffer__` could
count views, but exists only since Python 3.12. The compiled twin counts exports in the buffer protocol.
"""

from __future__ import annotations

from operator import index
from typing import Any, final

from fastpipe._errors import not_bytes_like
from fastpipe._pool import Pool


class Storage(bytearray):
    """The bytes of one Chunk. `immutable` recognizes a view of a Chunk by this type."""

    __slots__ = ()


@final
class Chunk:
    """A receive buffer. It is filled from the front, and its committed bytes are read-only.

    Received bytes go into `writable()`. `commit(n)` then makes the first n of them permanent and returns their
    read-only view. Committed bytes don't change while any view of the chunk is alive. `clear()` empties the chunk, and
    raises BufferError while a view is alive. Views of a chunk pass through a pipe by reference.

    Args:
        size: capacity in bytes, at least 1.
    """

    __slots__ = ("_filled", "_storage")

    def __init__(self, size: int, /) -> None:
        size = index(size)
        if size < 1:
            raise ValueError(f"a Chunk holds at least 1 byte, not {size}")
        self._storage = Storage(size)
        self._filled = 0

    @property
    def size(self) -> int:
        """Bytes it can hold."""
        return len(self._storage)

    @property
    def filled(self) -> int:
        """Bytes committed so far."""
        return self._filled

    @property
    def in_use(self) -> bool:
        """Whether a view of it is alive, a writable one included."""
        try:
            self._storage.append(0)
        except BufferError:
            return True
        self._storage.pop()
        return False

    def writable(self) -> memoryview:
        """The free rest, to receive into. Release it, or drop it, before the chunk is to be reused."""
        return memoryview(self._storage)[self._filled :]

    def commit(self, n: int, /) -> memoryview:
        """Commit the first n bytes of the free rest, 0 to all. Return a read-only view of them. Raises ValueError."""
        n = index(n)
        start, free = self._filled, len(self._storage) - self._filled
        if not 0 <= n <= free:
            raise ValueError(f"cannot commit {n} bytes, only {free} are free")
        self._filled = start + n
        return memoryview(self._storage).toreadonly()[start : start + n]

    def view(self, start: int = 0, stop: int | None = None) -> memoryview:
        """A read-only view of committed bytes, `start` to `stop` as in a slice of them."""
        return memoryview(self._storage).toreadonly()[: self._filled][start:stop]

    def clear(self) -> None:
        """Discard the committed bytes, so that the chunk can be filled again. Raises BufferError for a view alive."""
        if self.in_use:
            raise BufferError("a view of this Chunk is alive")
        self._filled = 0

    def __len__(self) -> int:
        return self._filled

    def __bytes__(self) -> bytes:
        return bytes(self.view())

    def __repr__(self) -> str:
        return f"<fastpipe.Chunk {self._filled} of {self.size} bytes>"


@final
class ChunkPool(Pool[Chunk]):
    """Chunks of one size. The pool reuses a chunk only after its last view is released."""

    make = Chunk


def immutable(data: Any) -> bytes | memoryview:
    """Return `data` as exact bytes or as a flat read-only view (1-D, format B) of bytes that never change.

    Exact `bytes`, views of them and read-only views of a Chunk are kept by reference. All other buffers are copied
    once. The pipe owns the returned view, so the caller may release its view.

    Raises:
        TypeError: for an object without a buffer.
    """
    if type(data) is bytes:
        return data
    if type(data) is Chunk:
        return data.view()
    try:
        view = memoryview(data)
    except TypeError:
        raise not_bytes_like(data) from None
    if not view.nbytes:
        return b""
    owner = view.obj
    is_immutable = type(owner) is bytes or (type(owner) is Storage and view.readonly)
    if not is_immutable or not view.c_contiguous:
        return view.tobytes()
    if view.ndim != 1 or view.format != "B":
        return view.cast("B")
    return view


def exact_bytes(piece: bytes | memoryview) -> bytes:
    """The bytes of a piece: the very object where the piece is the whole of one, else a copy."""
    if type(piece) is bytes:
        return piece
    owner = piece.obj  # type: ignore[union-attr]
    if type(owner) is bytes and len(owner) == len(piece):
        return owner
    return bytes(piece)
