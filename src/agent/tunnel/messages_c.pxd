"""The fields of the compiled twin of gRPC's messages."""

from agent.http2.framing_c cimport FrameWriter, Received, StreamReader


cdef struct Head:               # a packet without its payload, with positions from the message's first byte
    long long conn_id
    int code
    Py_ssize_t data_start
    Py_ssize_t data_end
    Py_ssize_t text_start
    Py_ssize_t text_end         # equal to text_start without a text
    unsigned int window


cdef class MessageReader(StreamReader):
    # the sink's methods
    cdef object packet
    cdef object credit
    cdef object bad_packet
    cdef object message_refused
    # the accepted messages
    cdef Py_ssize_t limit       # bytes of the longest message that is kept
    cdef bint ends              # refuse a longer message, or one without room, instead of skipping it
    # the message in hand
    cdef long long length       # up to 2^32 - 1, also where Py_ssize_t has 32 bits
    cdef long long want         # its missing bytes, 0 between messages
    cdef bytes whole            # its buffer, None if nothing was kept
    cdef Py_ssize_t filled      # bytes of `whole` that have arrived
    cdef bint passed_over       # it is too large, or there is no room for it
    # its memory
    cdef object account         # counts the bytes of unfinished messages
    cdef Py_ssize_t charged     # bytes of the message in hand that it holds
    # beginnings
    cdef int prefix_size        # bytes of an unfinished prefix, 0 to 4
    cdef int head_size          # bytes of the head of a skipped message
    cdef unsigned char prefix[5]
    cdef unsigned char head[11]

    cdef int uncharge(self) except -1
    cpdef refuse(self, error)
    cdef int give_up(self) except -1
    cdef int say_passed_over(self) except -1
    cdef int keep(self, const unsigned char* source, Py_ssize_t size) except -1
    cdef int pass_over(self, const unsigned char* source, Py_ssize_t size) except -1
    cdef int deliver(self, Received* received, Py_ssize_t start, Py_ssize_t end) except -1


cdef class PacketWriter(FrameWriter):
    cpdef append_packet(self, bytes field, list pieces, Py_ssize_t size)
