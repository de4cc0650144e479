"""The fields of the compiled data plane."""

from cpython.object cimport PyObject

cdef struct Received:           # what a feed gave, for its duration
    PyObject* owner             # borrowed: bytes, or a flat read-only view
    const unsigned char* octets
    Py_ssize_t kept_bytes       # what a view of it keeps in memory


cdef struct Head:               # a packet without its payload; positions count from the message's first byte
    long long conn_id
    int code
    Py_ssize_t data_start
    Py_ssize_t data_end
    Py_ssize_t text_start
    Py_ssize_t text_end         # text_start: there is none
    unsigned int window


cdef class MessageReader:
    cdef public long long window
    cdef public long long unreturned
    cdef public bint ended
    cdef public bint closed
    cdef public bint held
    cdef object packet          # the sink's methods
    cdef object credit
    cdef object bad_packet
    cdef Py_ssize_t limit       # bytes of the longest message that is kept
    cdef long long length       # of the message in hand: up to 2^32 - 1, also where Py_ssize_t has 32 bits
    cdef long long want         # bytes of it that are still to come; 0: between messages
    cdef bytes whole            # where it is assembled; None: nothing of it has been kept
    cdef Py_ssize_t filled      # bytes of `whole` that have come
    cdef bint passed_over       # it is too large, or there is no room for it
    cdef bint ends              # either raises in place of that
    cdef object account         # what unfinished messages are charged to
    cdef Py_ssize_t charged     # bytes of the message in hand that it holds
    cdef int prefix_size        # bytes there are of an unfinished prefix, 0 to 4
    cdef int head_size          # bytes there are of the head of one that is passed over
    cdef unsigned char prefix[5]
    cdef unsigned char head[11]

    cdef int data(self, Received* received, Py_ssize_t start, Py_ssize_t end) except -1
    cdef int uncharge(self) except -1
    cdef int give_up(self) except -1
    cdef int say_passed_over(self) except -1
    cdef int keep(self, const unsigned char* source, Py_ssize_t size) except -1
    cdef int pass_over(self, const unsigned char* source, Py_ssize_t size) except -1
    cdef int deliver(self, Received* received, Py_ssize_t start, Py_ssize_t end) except -1


cdef class FrameReader:
    cdef public dict streams
    cdef public long long window
    cdef public long long unreturned
    cdef public Py_ssize_t max_frame_size
    cdef public bint stopped
    cdef object handler
    cdef bytes preface          # what is still to come of it
    cdef bint settings_seen
    cdef Py_ssize_t left        # bytes still to come of the frame in hand
    cdef bytes control          # a control frame being collected; None: its bytes go elsewhere
    cdef Py_ssize_t control_filled
    cdef MessageReader reader   # whom the DATA frame in hand belongs to; None: passed over
    cdef unsigned int stream_id
    cdef int flags
    cdef Py_ssize_t padding     # bytes at the end of the DATA frame in hand; -1: not read yet
    cdef unsigned int block_stream
    cdef Py_ssize_t block_bytes
    cdef int stash_size         # bytes there are of an unfinished frame header, 0 to 8
    cdef unsigned char stash[9]

    cpdef feed(self, data, Py_ssize_t kept_bytes=*)
    cpdef feed_part(self, buffer, Py_ssize_t size)
    cdef int take(self, Received* received, Py_ssize_t end) except -1
    cdef int begin(self, const unsigned char* header) except -1
    cdef int begin_data(self, Py_ssize_t length) except -1
    cdef Py_ssize_t payload(self, Received* received, Py_ssize_t position, Py_ssize_t end) except -1
    cdef int data_done(self, MessageReader reader) except -1
    cdef int fail_stream(self, MessageReader reader, object error) except -1
    cdef int control_done(self) except -1
    cdef int credited(self, const unsigned char* whole) except -1


cdef class FrameWriter:
    cdef readonly Py_ssize_t pending
    cdef unsigned int stream_id
    cdef list pieces
    cdef Py_ssize_t first       # the piece that goes out next
    cdef Py_ssize_t gone        # bytes of it that have gone out

    cpdef append(self, piece)
    cpdef append_packet(self, bytes field, list pieces, Py_ssize_t size)
    cpdef list take(self, Py_ssize_t limit, Py_ssize_t max_frame_size)
    cpdef bytes take_joined(self, Py_ssize_t limit, Py_ssize_t max_frame_size)
    cdef int frame_head(self, unsigned char* header, Py_ssize_t size) noexcept
    cdef int spent(self) except -1
