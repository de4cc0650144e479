# The compiled pipe's data, and what Cython callers may use of it without Python's dispatch (the functions at the end).
#
# Only this module writes the fields. `peer` is borrowed. The end that is freed first clears the other's `peer`.

from libc.stdint cimport uint8_t

cdef struct Piece:              # bytes that wait to be taken, kept by reference
    void* owner                 # strong: bytes, or a flat memoryview that exports a Chunk
    const char* start           # inside the owner's bytes, which never change (I2)
    Py_ssize_t length           # > 0
    Piece* next

cdef class DeliveryQueue:       # the pipes of one event loop, or one pipe without: their thread, whose callback is due
    cdef void* loop             # borrowed, to be compared only: the loop keeps its queue, not the other way round
    cdef size_t thread          # the only one that may call
    cdef void* first_due        # PipeEnd, strong, linked by next_due: in the order they came due
    cdef void* last_due
    cdef void* first_deferred   # the same for ends whose EOF or loss is due in the next turn
    cdef void* last_deferred
    cdef bint eof_delivered     # eof_received was called in this turn
    cdef Piece* spare           # freed pieces, to be used again, and their number
    cdef int spares
    cdef int calls              # made in this turn, or in this outermost inline write
    cdef Py_ssize_t bytes       # delivered in the same
    cdef int depth              # inline deliveries on the stack
    cdef uint8_t scheduled      # the loop has a Drain to call
    cdef uint8_t draining       # that Drain is making callbacks

cdef class PipeStatistics:      # of one end, since collect_statistics
    cdef readonly long long bytes_written, chunks_written, bytes_read, chunks_read, pauses
    cdef double past_s          # seconds of finished pauses
    cdef double paused_at       # time.monotonic(), or < 0: not paused

cdef class Chunk:               # a receive buffer that is read-only behind what was committed
    cdef char* storage          # PyMem_Malloc
    cdef Py_ssize_t capacity    # bytes
    cdef Py_ssize_t used        # bytes committed
    cdef Py_ssize_t exports     # views alive, each counted once however often it is sliced

cdef class PipeEnd:             # one end: what its peer wrote and nobody took, and its protocol
    cdef object __weakref__
    cdef dict __dict__          # attributes that users set, such as a test's `write`. Not made before
    cdef void* peer             # PipeEnd, borrowed; NULL when it was freed
    cdef PipeEnd strong_peer    # the peer, kept alive while it has a protocol (I7)
    cdef DeliveryQueue queue    # of its loop, or its pipe's while there is no loop
    cdef object loop            # None: none yet
    cdef object protocol        # None: read by hand
    cdef object receive         # protocol.data_received, looked up by the first delivery
    cdef object context         # in which the protocol is called
    cdef object error           # the argument of connection_lost
    cdef dict extra             # for get_extra_info; None until one is set
    cdef object detach          # of the server whose connection this is
    cdef PipeStatistics stats   # None until collect_statistics
    cdef Piece* first           # the first of what the peer wrote and nobody took
    cdef Piece* last            # both NULL where nothing waits
    cdef Py_ssize_t size        # bytes in them (I1)
    cdef Py_ssize_t high_water, low_water, max_chunk  # bytes
    cdef void* next_due         # PipeEnd behind this one in the queue
    cdef uint8_t state          # a State
    cdef uint8_t linked         # the peer takes what this end writes (I8)
    cdef uint8_t fast_path      # nothing but bytes can be due, and how they are delivered (I9)
    cdef uint8_t made           # connection_made was called
    cdef uint8_t eof_sent, eof_in, eof_delivered  # sent by write_eof, by the peer, passed to eof_received
    cdef uint8_t reading_paused, protocol_paused  # by pause_reading, by pause_writing
    cdef uint8_t queued         # in the queue, or deferred (I4)
    cdef uint8_t busy           # a callback is on the stack, in its context
    cdef uint8_t deferred       # its EOF or loss was due a turn ago, and is delivered in this one
    cdef uint8_t inline_        # data is delivered within the peer's write
    cdef uint8_t buffered, accepts_views  # the protocol is a BufferedProtocol, or takes memoryviews

# For Cython callers, in the pipe's thread. Each function is like the method of its name.
cdef int pipe_write(PipeEnd end, object data) except -1
cdef int pipe_close(PipeEnd end) except -1
cdef int pipe_abort(PipeEnd end) except -1
cdef object pipe_peek(PipeEnd end)
cdef int pipe_consume(PipeEnd end, Py_ssize_t n) except -1
