# The types that `http2_client_stream.py` has when it is compiled.
cimport cython

from agent.http2.framing_c cimport FrameWriter as Writer
from agent.http2.stream cimport Http2Stream
from agent.proxy.client_side cimport ClientSide
from agent.proxy.clock cimport Stall
from agent.proxy.heads cimport Request, Response
from agent.proxy.http2_requests cimport Http2RequestReader
from agent.proxy.http2_responses cimport response_fields
from agent.proxy.relay cimport Exchange

cdef double NEVER
cdef long long CHUNKED, WHOLE_BYTES
cdef list NO_TRAILERS


@cython.final
cdef class Http2ClientStream(ClientSide):
    # its connection, and the stream there
    cdef object _connection, _owner
    cdef Http2Stream _stream
    cdef Writer _writer
    # the request, and what came of it
    cdef Exchange _exchange
    cdef object _upgraded
    cdef bytes _websocket_key
    cdef bint _is_grpc
    # in: the body's missing bytes, what waits, and the credit that is held back
    cdef long long _left, _unread
    cdef object _held
    cdef bytearray _early
    cdef bint _request_paused
    cdef double _deadline
    # out
    cdef int _status
    cdef long long _sent_bytes
    cdef Stall _stall

    @cython.locals(request=Request, target=bytes, exchange=Exchange)
    cpdef begin(self, Http2RequestReader reader, list fields, bint ended)
    cpdef uncork(self)
    cpdef data_received(self, data)
    cpdef stream_ended(self)
    cpdef _lose(self)
    cpdef bint fill(self, writer) except -1
    cpdef _give_credit(self)

    @cython.locals(size=Py_ssize_t)
    cpdef bint _send_whole(self, int status, list fields, list pieces) except -1
    cpdef _begin_response(self, int status)
    cpdef _head(self, int status, list fields, bint ended)
    cpdef _sending(self)
    cpdef _drop_exchange(self)
    cpdef look_at_deadlines(self, double now)
    cpdef _late(self)
    cpdef _stalled(self)
