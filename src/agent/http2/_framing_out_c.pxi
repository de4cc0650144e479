# Frames on their way out: a part of `framing_c.pyx`, which includes it.

cdef class FrameWriter:
    """One stream's way out. See the Python twin."""

    def __init__(self, stream_id):
        self.stream_id = stream_id
        self.pieces = []

    cpdef append(self, piece):
        """Put the next piece behind what waits. piece: bytes or a view of single bytes, kept and not copied."""
        cdef Py_ssize_t size = len(piece)
        if size:
            self.pieces.append(piece)
            self.pending += size

    cpdef list take(self, Py_ssize_t limit, Py_ssize_t max_frame_size):
        """Frames with up to `limit` bytes of what waits, none larger than max_frame_size: buffers, in order."""
        cdef list out = []
        cdef list pieces = self.pieces
        cdef Py_ssize_t size, length
        cdef unsigned char header[9]
        if max_frame_size < 1:
            raise ValueError("a frame holds at least 1 byte")
        while limit > 0 and self.pending:
            size = min(min(limit, self.pending), max_frame_size)
            limit -= size
            self.pending -= size
            put_header(header, size, DATA, 0, self.stream_id)
            out.append(PyBytes_FromStringAndSize(<char*>header, 9))
            while size:
                piece = pieces[self.first]
                length = len(piece) - self.gone
                if length <= size:
                    out.append(framing_view(piece, self.gone, self.gone + length) if self.gone else piece)
                    pieces[self.first] = None
                    self.first += 1
                    self.gone = 0
                    size -= length
                else:
                    out.append(framing_view(piece, self.gone, self.gone + size))
                    self.gone += size
                    size = 0
        self.spent()
        return out

    cpdef bytes take_joined(self, Py_ssize_t limit, Py_ssize_t max_frame_size):
        """The same, copied into one."""
        cdef list pieces = self.pieces
        cdef Py_ssize_t left = max(min(limit, self.pending), 0), frames_number, size, part
        cdef unsigned char* target
        cdef bytes out
        if max_frame_size < 1:
            raise ValueError("a frame holds at least 1 byte")
        frames_number = left // max_frame_size + (left % max_frame_size > 0)
        out = PyBytes_FromStringAndSize(NULL, left + 9 * frames_number)
        target = <unsigned char*>PyBytes_AS_STRING(out)
        while left:
            size = min(left, max_frame_size)
            left -= size
            self.pending -= size
            put_header(target, size, DATA, 0, self.stream_id)
            target += 9
            while size:
                piece = pieces[self.first]
                part = copy_part(piece, self.gone, <char*>target, size)
                target += part
                size -= part
                if part + self.gone == len(piece):
                    pieces[self.first] = None
                    self.first += 1
                    self.gone = 0
                else:
                    self.gone += part
        self.spent()
        return out

    cdef int spent(self) except -1:
        """Drop the places of pieces that are sent."""
        if self.first == len(self.pieces):
            if self.first == 1:
                self.pieces.pop()  # keeps the list's memory for the next piece
            else:
                self.pieces.clear()
            self.first = 0
        elif self.first > SPENT_PIECES and self.first * 2 > len(self.pieces):
            del self.pieces[:self.first]
            self.first = 0
        return 0

    def clear(self):
        """Drop all waiting bytes, since the stream is closed."""
        self.pieces.clear()
        self.first = 0
        self.gone = 0
        self.pending = 0
