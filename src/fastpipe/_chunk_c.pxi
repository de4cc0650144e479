# Receive buffers, like those of `_chunk_py`. `_pipe_c.pyx` includes this file.

@cython.final
@cython.no_gc  # never part of a cycle, because a Chunk refers to nothing. A cleared Tail would count on None
cdef class Tail:
    """The free rest of a Chunk, as a separate exporter. The buffer that users write into is no view of the Chunk."""

    cdef Chunk chunk

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        cdef Chunk chunk = self.chunk
        PyBuffer_FillInfo(buffer, self, chunk.storage + chunk.used, chunk.capacity - chunk.used, False, flags)
        chunk.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.chunk.exports -= 1


@cython.final
cdef class Chunk:
    """A receive buffer. It is filled from the front, and its committed bytes are read-only.

    Received bytes go into `writable()`. `commit(n)` then makes the first n of them permanent and returns their
    read-only view. Committed bytes don't change while any view of the chunk is alive. `clear()` empties the chunk, and
    raises BufferError while a view is alive. Views of a chunk pass through a pipe by reference.

    Args:
        size: capacity in bytes, at least 1.
    """

    def __cinit__(self, size, /):
        cdef Py_ssize_t n = PyNumber_Index(size)
        if n < 1:
            raise ValueError(f"a Chunk holds at least 1 byte, not {n}")
        self.storage = <char*>PyMem_Malloc(n)
        if self.storage == NULL:
            raise MemoryError()
        self.capacity = n

    def __dealloc__(self):
        PyMem_Free(self.storage)

    @property
    def size(self):
        """Bytes it can hold."""
        return self.capacity

    @property
    def filled(self):
        """Bytes committed so far."""
        return self.used

    @property
    def in_use(self):
        """Whether a view of it is alive, a writable one included."""
        return self.exports > 0

    def writable(self):
        """The free rest, to receive into. Release it, or drop it, before the chunk is to be reused."""
        cdef Tail tail = Tail.__new__(Tail)
        tail.chunk = self
        return PyMemoryView_FromObject(tail)

    def commit(self, n, /):
        """Commit the first n bytes of the free rest, 0 to all. Return a read-only view of them. Raises ValueError."""
        cdef Py_ssize_t start = self.used
        cdef Py_ssize_t free = self.capacity - start
        n = PyNumber_Index(n)
        if not 0 <= n <= free:
            raise ValueError(f"cannot commit {n} bytes, only {free} are free")
        self.used = start + <Py_ssize_t>n
        return PyMemoryView_FromObject(self)[start:self.used]

    def view(self, start=0, stop=None):
        """A read-only view of committed bytes, `start` to `stop` as in a slice of them."""
        return PyMemoryView_FromObject(self)[start:stop]

    def clear(self):
        """Discard the committed bytes, so that the chunk can be filled again. Raises BufferError for a view alive."""
        if self.exports:
            raise BufferError("a view of this Chunk is alive")
        self.used = 0

    def __len__(self):
        return self.used

    def __bytes__(self):
        return PyBytes_FromStringAndSize(self.storage, self.used)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        global views_made
        PyBuffer_FillInfo(buffer, self, self.storage, self.used, True, flags)
        self.exports += 1
        if DEBUG:
            views_made += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        global views_freed
        self.exports -= 1
        if DEBUG:
            views_freed += 1

    def __repr__(self):
        return f"<fastpipe.Chunk {self.used} of {self.capacity} bytes>"


class ChunkPool(Pool):
    """Chunks of one size. The pool reuses a chunk only after its last view is released."""

    make = Chunk
