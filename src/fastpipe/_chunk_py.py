"""Bytes nobody can change: what a write keeps by reference, what it copies, and the Chunk, whose views it keeps.

How the Python twin knows that no view of a Chunk is left: its storage is a `bytearray`, which refuses to change its
length while anything exports its buffer (BufferError), and a memoryview of any slice is such an export until it is
gone or released. So `append` and `pop` are the question, and raise or change nothing. (`__buffer__`, which could count,
is there from Python 3.12 only.) The compiled twin counts exports in the buffer protocol.
"""

from __future__ import annotations

from operator import index
from typing import Any, final

from fastpipe._errors import not_bytes_like
from fastpipe._pool import Pool


class Storage(bytearray):
    """The bytes of one Chunk; the type by which `immutable` knows a view of a Chunk."""

    __slots__ = ()


@final
class Chunk:
    """A receive buffer that is filled from the front and read-only behind that.

    size: bytes it holds, at least 1. Received bytes go into `writable()`, then `commit(n)` makes the first n of them
    permanent and gives their read-only view. What has been committed doesn't change while any view of the chunk lives;
    `clear()` makes it empty again, and refuses while one does. Views of it pass through a pipe by reference.
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
        """Keep the first n bytes of the free rest, 0 to all; gives a read-only view of them. Raises ValueError."""
        n = index(n)
        start, free = self._filled, len(self._storage) - self._filled
        if not 0 <= n <= free:
            raise ValueError(f"cannot commit {n} bytes: {free} are free")
        self._filled = start + n
        return memoryview(self._storage).toreadonly()[start : start + n]

    def view(self, start: int = 0, stop: int | None = None) -> memoryview:
        """A read-only view of committed bytes, `start` to `stop` as in a slice of them."""
        return memoryview(self._storage).toreadonly()[: self._filled][start:stop]

    def clear(self) -> None:
        """Forget what was committed, to receive anew. Raises BufferError while a view is alive."""
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
    """Chunks of one size, each given out again only when its last view has gone."""

    make = Chunk


def immutable(data: Any) -> bytes | memoryview:
    """`data` as exact bytes or as a flat read-only view (1-D, format B) of bytes that never change.

    Exact `bytes`, views of them and read-only views of a Chunk: by reference. All else with a buffer: one copy. The
    view is the pipe's own: the caller may release his. Raises TypeError for an object without a buffer.
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
