# The types that `chunked.py` has when it is compiled.
cimport cython

cdef Py_ssize_t SLICE_BYTES


@cython.final
cdef class ChunkedDecoder:
    cdef public object _limits, _state
    cdef public long long _left
    cdef public bytes _partial
    cdef public Py_ssize_t _trailer_bytes
    cdef public bint done
    cdef public bytes rest
    cdef public list trailers

    @cython.locals(raw=bytes, pieces=list, position=Py_ssize_t, size=Py_ssize_t, end=Py_ssize_t, long=bint)
    cpdef list feed(self, data)
