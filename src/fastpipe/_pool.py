"""A pool of receive buffers, the same for both twins' Chunks: it asks each one whether a view of it is alive."""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Generic, Protocol, TypeVar

from fastpipe._limits import DEFAULT_MAX_CHUNK


class Reusable(Protocol):
    """What the pool has to know of a Chunk."""

    def __init__(self, size: int, /) -> None: ...

    @property
    def in_use(self) -> bool: ...

    def clear(self) -> None: ...


Buffer = TypeVar("Buffer", bound=Reusable)


class Pool(Generic[Buffer]):
    """Gives out buffers of one size, `chunk_bytes`, and takes them back; keeps at most `spare`, 0 or more, of them.

    Whoever took a buffer owns it until `give_back`. Views of it may live on after that, anywhere, for as long as they
    like: the buffer is given out again only when none does, and where that never happens it is freed with the last.
    """

    make: ClassVar[type]

    def __init__(self, chunk_bytes: int = DEFAULT_MAX_CHUNK, spare: int = 4) -> None:
        if chunk_bytes < 1 or spare < 0:
            raise ValueError(f"a pool has chunk_bytes >= 1 and spare >= 0, not {chunk_bytes} and {spare}")
        self.chunk_bytes = chunk_bytes
        self.spare = spare
        self._resting: deque[Buffer] = deque(maxlen=spare)  # oldest first; a full one forgets its oldest

    def take(self) -> Buffer:
        """An empty buffer: one that rests here and of which no view is left, else a new one."""
        for _ in range(len(self._resting)):
            chunk = self._resting.popleft()
            if not chunk.in_use:
                chunk.clear()
                return chunk
            self._resting.append(chunk)
        new: Buffer = self.make(self.chunk_bytes)
        return new

    def give_back(self, chunk: Buffer) -> None:
        """The caller writes no more into it. Its views, alive or not, are nobody's concern but its own."""
        self._resting.append(chunk)
