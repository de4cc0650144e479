"""A pool of receive buffers for the Chunks of both twins. It asks each Chunk whether a view of it is alive."""

from __future__ import annotations

from collections import deque
from typing import ClassVar, Generic, Protocol, TypeVar

from fastpipe._limits import DEFAULT_MAX_CHUNK


class Reusable(Protocol):
    """The part of a Chunk that the pool uses."""

    def __init__(self, size: int, /) -> None: ...

    @property
    def in_use(self) -> bool: ...

    def clear(self) -> None: ...


Buffer = TypeVar("Buffer", bound=Reusable)


class Pool(Generic[Buffer]):
    """Lends buffers of one size and takes them back.

    The caller of `take` owns the buffer until `give_back`. Views of the buffer may stay alive after that, without a
    limit. The pool reuses the buffer only when no view is alive. Otherwise the buffer is freed with its last view.

    Args:
        chunk_bytes: size of each buffer in bytes, at least 1.
        spare: how many returned buffers the pool keeps, 0 or more.
    """

    make: ClassVar[type]

    def __init__(self, chunk_bytes: int = DEFAULT_MAX_CHUNK, spare: int = 4) -> None:
        if chunk_bytes < 1 or spare < 0:
            raise ValueError(f"a pool has chunk_bytes >= 1 and spare >= 0, not {chunk_bytes} and {spare}")
        self.chunk_bytes = chunk_bytes
        self.spare = spare
        self._resting: deque[Buffer] = deque(maxlen=spare)  # oldest first; a full one forgets its oldest

    def take(self) -> Buffer:
        """Return an empty buffer: a returned one without a live view, or a new one."""
        for _ in range(len(self._resting)):
            chunk = self._resting.popleft()
            if not chunk.in_use:
                chunk.clear()
                return chunk
            self._resting.append(chunk)
        new: Buffer = self.make(self.chunk_bytes)
        return new

    def give_back(self, chunk: Buffer) -> None:
        """Return a buffer to the pool. The caller must no longer write into it. Its views may stay alive."""
        self._resting.append(chunk)
