# Keeps the pieces that wait at an end, like `_waiting_py`. `_pipe_c.pyx` includes this file.

cdef inline Piece* new_piece(DeliveryQueue queue) except NULL:
    global pieces_made
    cdef Piece* piece = queue.spare
    if piece != NULL:
        queue.spare = piece.next
        queue.spares -= 1
    else:
        piece = <Piece*>PyMem_Malloc(sizeof(Piece))
        if piece == NULL:
            raise MemoryError()
    piece.owner = NULL
    piece.next = NULL
    if DEBUG:
        pieces_made += 1
    return piece


cdef inline void keep_piece(DeliveryQueue queue, Piece* piece) noexcept:
    """Free a piece, or keep it as a spare one. The reference to its owner passes to the caller."""
    global pieces_freed
    if queue.spares < SPARE_PIECES:
        piece.next = queue.spare
        queue.spare = piece
        queue.spares += 1
    else:
        PyMem_Free(piece)
    if DEBUG:
        pieces_freed += 1


cdef inline void free_piece(DeliveryQueue queue, Piece* piece) noexcept:
    cdef void* owner = piece.owner
    keep_piece(queue, piece)
    Py_XDECREF(<PyObject*>owner)  # last: freeing it may call anything


cdef inline Piece* bytes_piece(DeliveryQueue queue, object data) except NULL:
    cdef Piece* piece = new_piece(queue)
    Py_INCREF(data)
    piece.owner = <void*>data
    piece.start = PyBytes_AS_STRING(data)
    piece.length = PyBytes_GET_SIZE(data)
    return piece


cdef Piece* piece_of(DeliveryQueue queue, object data) except? NULL:
    """Like `immutable` of the Python twin, but NULL for empty data. Copies mutable data once. Raises TypeError."""
    cdef Py_buffer buffer
    cdef Piece* piece
    cdef object base, owner
    cdef bint is_immutable
    if PyBytes_CheckExact(data):
        return bytes_piece(queue, data) if PyBytes_GET_SIZE(data) else NULL
    if not PyObject_CheckBuffer(data):
        raise _errors.not_bytes_like(data)
    PyObject_GetBuffer(data, &buffer, PyBUF_FULL_RO)
    try:
        if buffer.len == 0:
            return NULL
        base = fastpipe_view_base(data) if PyMemoryView_Check(data) else <object>buffer.obj
        if PyBytes_CheckExact(base):
            owner = base
            is_immutable = True
        elif type(base) is Chunk and buffer.readonly:
            owner = None
            is_immutable = True
        else:
            is_immutable = False
        if not is_immutable or not PyBuffer_IsContiguous(&buffer, b"C"):
            owner = PyBytes_FromStringAndSize(NULL, buffer.len)
            PyBuffer_ToContiguous(PyBytes_AS_STRING(owner), &buffer, buffer.len, b"C")
            return bytes_piece(queue, owner)
        if owner is None:
            owner = PyMemoryView_FromObject(data)
            if buffer.ndim != 1 or buffer.itemsize != 1:
                owner = owner.cast("B")
        piece = new_piece(queue)
        Py_INCREF(owner)
        piece.owner = <void*>owner
        piece.start = <const char*>buffer.buf
        piece.length = buffer.len
        return piece
    finally:
        PyBuffer_Release(&buffer)


cdef object piece_bytes(Piece* piece, Py_ssize_t length):
    """The first bytes of a piece, exact: the very object where it is the whole of one."""
    cdef object owner = <object>piece.owner
    if PyBytes_CheckExact(owner) and length == PyBytes_GET_SIZE(owner):
        return owner
    return PyBytes_FromStringAndSize(piece.start, length)


cdef object piece_view(Piece* piece, Py_ssize_t length):
    """The first bytes of a piece, in place."""
    cdef object owner = <object>piece.owner
    cdef object view = PyMemoryView_FromObject(owner)
    cdef const char* base
    cdef Py_ssize_t whole, start
    cdef Py_buffer buffer
    if PyBytes_CheckExact(owner):
        base = PyBytes_AS_STRING(owner)
        whole = PyBytes_GET_SIZE(owner)
    else:
        PyObject_GetBuffer(view, &buffer, PyBUF_FULL_RO)
        base = <const char*>buffer.buf
        whole = buffer.len
        PyBuffer_Release(&buffer)
    start = piece.start - base
    if start == 0 and length == whole:
        return view
    return view[start:start + length]


cdef void drop_waiting(PipeEnd end) noexcept:
    cdef Piece* piece = end.first
    cdef Piece* following
    end.first = NULL
    end.last = NULL
    end.size = 0  # I1
    while piece != NULL:
        following = piece.next
        free_piece(end.queue, piece)
        piece = following


cdef int taken(PipeEnd end, Py_ssize_t n, int deliveries) except -1:
    """n bytes, at least 1, have left the pipe: keep the books, and let a paused writer know."""
    cdef Piece* piece
    cdef PipeEnd writer
    if end.stats is not None:
        end.stats.bytes_read += n
        end.stats.chunks_read += deliveries
    end.size -= n  # I1
    while n > 0:
        piece = end.first
        if n < piece.length:
            piece.start += n
            piece.length -= n
            break
        n -= piece.length
        end.first = piece.next
        if end.first == NULL:
            end.last = NULL
        free_piece(end.queue, piece)
    if end.linked:
        writer = <PipeEnd>end.peer
        if writer.protocol_paused and end.size <= writer.low_water:
            wake_quietly(writer)
    return 0


cdef Py_ssize_t fill(PipeEnd end, char* target, Py_ssize_t space) except -1:
    """Copy what waits to `target` and take it: as much as fits."""
    cdef Py_ssize_t filled = 0, n
    cdef Piece* piece = end.first
    while piece != NULL and filled < space:
        n = min(piece.length, space - filled)
        memcpy(target + filled, piece.start, n)
        filled += n
        piece = piece.next
    if filled:
        taken(end, filled, 1)
    return filled
