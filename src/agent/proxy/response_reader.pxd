# The types that `response_reader.py` has when it is compiled.
cimport cython

from agent.proxy.chunked cimport ChunkedDecoder
from agent.proxy.heads cimport Response
from agent.proxy.readers cimport ResponseHeadReader

cdef object HEAD, SIZED, IN_CHUNKS, TO_EOF, DONE
cdef long long CHUNKED, UNFRAMED
cdef list NO_TRAILERS


@cython.final
cdef class ResponseReader:
    # Of the connection.
    cdef public object _limits
    cdef public ResponseHeadReader _heads
    # Of the response that is read.
    cdef public object _state
    cdef public bint _is_head_only, _is_connect, _is_grpc
    cdef public int _informational
    cdef public long long _left
    cdef public ChunkedDecoder _decoder
    # Of the response that was read last.
    cdef public bint is_reusable

    cpdef expect(self, bint is_head_only, bint is_connect=*, bint is_grpc=*)

    @cython.locals(left=cython.longlong)
    cpdef feed(self, user, data)
    cpdef bint feed_eof(self, user) except -1
    cdef _end(self, bint is_clean)

    @cython.locals(response=Response)
    cdef _read_heads(self, user, data)

    @cython.locals(length=cython.longlong, declared=cython.longlong, left=cython.longlong)
    cdef _start(self, user, Response response, rest)

    @cython.locals(decoder=ChunkedDecoder, pieces=list, ended=bint, trailers=list)
    cdef _read_body(self, user, data, Response response=*)
