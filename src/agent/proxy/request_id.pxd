# The types that `request_id.py` has when it is compiled.
cimport cython

cdef list _PAIRS


@cython.final
cdef class RequestIds:
    # The random part, the number of ids so far, and all of an id but its last four digits.
    cdef public bytes _start
    cdef public long long _count
    cdef public bytes _head

    @cython.locals(count="long long", low=Py_ssize_t)
    cpdef bytes next(self)
