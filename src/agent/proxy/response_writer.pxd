# The types that `response_writer.py` has when it is compiled.
cimport cython

from agent.proxy.heads cimport Response
from agent.proxy.pieces cimport write_pieces

cdef object BEFORE_HEAD, IN_SIZED, IN_CHUNKED
cdef long long CHUNKED
cdef Py_ssize_t JOIN_BYTES


@cython.final
cdef class ResponseWriter:
    # Of the connection.
    cdef public object transport
    # Of the response in flight: how far it has come, and how its body is framed.
    cdef public object stage
    cdef public bint _is_chunked, _is_grpc
    cdef public long long _sent_bytes
    cdef public int _status
    # A body that is collected before its head goes out.
    cdef public Response collecting
    cdef public bytearray _collected

    cpdef expect(self, bint is_grpc=*)

    @cython.locals(head=bytes, out=list)
    cpdef start(self, Response response, long long length, bytes connection, list pieces, bint ended, list trailers,
                bint is_open_ended=*)

    @cython.locals(out=list)
    cpdef send(self, list pieces, bint ended, list trailers)

    @cython.locals(out=list)
    cdef list _framed(self, list pieces, bint ended, list trailers)
    cpdef bint collect(self, list pieces, long long limit_bytes) except -1
    cpdef bytes collected(self)
    cpdef truncation(self)
