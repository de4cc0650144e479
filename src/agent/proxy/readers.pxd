# The types that `readers.py` has when it is compiled.
cimport cython

from agent.proxy.chunked cimport ChunkedDecoder
from agent.proxy.heads cimport Response


@cython.final
cdef class RequestHeadReader:
    cdef public object _limits
    cdef public Py_ssize_t _scanned
    cdef public bint _checked_line, serves_connect
    cdef public object begun

    @cython.locals(limit=Py_ssize_t, start=Py_ssize_t, end=Py_ssize_t)
    cpdef tuple take(self, data)


@cython.final
cdef class ResponseHeadReader:
    cdef public Py_ssize_t _limit
    cdef public Response _last
    cdef public object begun

    @cython.locals(limit=Py_ssize_t, last=Response, raw=bytes, end=Py_ssize_t)
    cpdef tuple take(self, data)

    @cython.locals(held=Py_ssize_t, end=Py_ssize_t)
    cdef tuple _take_more(self, data)

    @cython.locals(response=Response)
    cdef Response _parse(self, bytes head)
    cdef _check_partial(self, raw, Py_ssize_t scanned)


@cython.final
cdef class BodyReader:
    cdef public long long _left
    cdef public ChunkedDecoder decoder
    cdef public bint ended

    @cython.locals(left=cython.longlong)
    cpdef tuple take(self, data)
