# The types that `chunked.py` has when it is compiled.
cimport cython

cdef Py_ssize_t SLICE_BYTES  # a shorter piece is copied out, a longer one is a view


@cython.final
cdef class ChunkedDecoder:
    # where it is: the State, and bytes of the chunk that are still to come
    cdef public object _state
    cdef public long long _left
    # the begun line, and what bounds it
    cdef public bytes _partial
    cdef public object _limits
    cdef public bint _is_grpc
    # the end: bytes of the trailer section so far, its fields, and what came behind the body
    cdef public Py_ssize_t _trailer_bytes
    cdef public list trailers
    cdef public bint done
    cdef public bytes rest

    @cython.locals(raw=bytes, pieces=list, position=Py_ssize_t, size=Py_ssize_t, end=Py_ssize_t, long=bint)
    cpdef list feed(self, data)
