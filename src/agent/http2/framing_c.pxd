"""The compiled data plane's types, from which other rooms' readers and writers inherit."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.string cimport memcpy

cdef extern from *:
    """
    /* bytes[start:end] and memoryview[start:end] without boxing the slice's numbers */
    static CYTHON_INLINE PyObject *framing_view(PyObject *whole, Py_ssize_t start, Py_ssize_t end) {
        PyObject *view = PyMemoryView_FromObject(whole), *part;
        if (view == NULL) return NULL;
        part = PySequence_GetSlice(view, start, end);
        Py_DECREF(view);
        return part;
    }
    """
    object framing_view(object whole, Py_ssize_t start, Py_ssize_t end)

cdef inline const unsigned char* octets(bytes buffer) noexcept:
    return <const unsigned char*>PyBytes_AS_STRING(buffer)


cdef inline Py_ssize_t copy_part(object piece, Py_ssize_t start, char* target, Py_ssize_t room) except -1:
    """Copy at most `room` bytes of piece[start:] to `target`. Returns their number."""
    cdef Py_buffer view
    cdef Py_ssize_t size
    if PyBytes_CheckExact(piece):
        size = min(PyBytes_GET_SIZE(piece) - start, room)
        memcpy(target, PyBytes_AS_STRING(piece) + start, size)
        return size
    PyObject_GetBuffer(piece, &view, PyBUF_SIMPLE)
    size = min(view.len - start, room)
    memcpy(target, <char*>view.buf + start, size)
    PyBuffer_Release(&view)
    return size


cdef struct Received:           # what a feed gave, for its duration
    PyObject* owner             # borrowed: bytes, or a flat read-only view
    const unsigned char* octets
    Py_ssize_t kept_bytes       # what a view of it keeps in memory


cdef class StreamReader:
    # the stream's flow control
    cdef public long long window
    cdef public long long unreturned
    cdef public long long unread
    cdef readonly bint manual_credit
    cdef public bint held
    # whether bytes are expected, and whether they are used
    cdef public bint ended
    cdef public bint closed
    cdef object data_received   # the sink's method

    cpdef consumed(self, Py_ssize_t size_bytes)
    cpdef close(self)
    cdef int data(self, Received* received, Py_ssize_t start, Py_ssize_t end) except -1


cdef class FrameReader:
    cdef object handler
    cdef public dict streams    # a StreamReader by the stream's id
    cdef public bint stopped
    # the connection's flow control, and what it takes
    cdef public long long window
    cdef public long long unreturned
    cdef public Py_ssize_t max_frame_size
    # the beginning of a connection
    cdef bytes preface          # its missing bytes
    cdef bint settings_seen
    # the current frame
    cdef Py_ssize_t left        # its missing bytes
    cdef bytes control          # a control frame being collected, None for other frames
    cdef Py_ssize_t control_filled
    cdef StreamReader reader    # of the current DATA frame, None to skip it
    cdef unsigned int stream_id
    cdef int flags
    cdef Py_ssize_t padding     # bytes at the end of the DATA frame, -1 if not read yet
    # the current header block (I5)
    cdef unsigned int block_stream   # its stream, 0 without a block
    cdef Py_ssize_t block_bytes
    # between frames
    cdef int stash_size         # bytes there are of an unfinished frame header, 0 to 8
    cdef unsigned char stash[9]

    cpdef feed(self, data, Py_ssize_t kept_bytes=*)
    cpdef feed_part(self, buffer, Py_ssize_t size)
    cdef int take(self, Received* received, Py_ssize_t end) except -1
    cdef int begin(self, const unsigned char* header) except -1
    cdef int begin_data(self, Py_ssize_t length) except -1
    cdef Py_ssize_t payload(self, Received* received, Py_ssize_t position, Py_ssize_t end) except -1
    cdef int data_done(self, StreamReader reader) except -1
    cdef int fail_stream(self, StreamReader reader, object error) except -1
    cdef int control_done(self) except -1
    cdef int credited(self, const unsigned char* whole) except -1


cdef class FrameWriter:
    cdef readonly Py_ssize_t pending
    cdef unsigned int stream_id
    # what is not in a frame yet
    cdef list pieces
    cdef Py_ssize_t first       # the piece that goes out next
    cdef Py_ssize_t gone        # bytes of it that are sent

    cpdef append(self, piece)
    cpdef list take(self, Py_ssize_t limit, Py_ssize_t max_frame_size)
    cpdef bytes take_joined(self, Py_ssize_t limit, Py_ssize_t max_frame_size)
    cdef int spent(self) except -1


cpdef bytes frame(int kind, int flags, unsigned int stream_id, bytes payload=*)
cdef int put_header(unsigned char* header, Py_ssize_t size, int kind, int flags, unsigned int stream_id) noexcept
