# The types that `backlog.py` has when it is compiled.
cimport cython


@cython.final
cdef class Backlog:
    # The input, and whose it is.
    cdef public object transport
    cdef public object held
    cdef public Py_ssize_t _limit_bytes
    # The reasons to pause reading.
    cdef public bint _is_full, is_paused

    cpdef hold(self, data)
    cpdef bytes take(self)
    cpdef drop(self)
    cpdef pause(self)
    cpdef bint resume(self) except -1
    cpdef read_on(self)
    cdef _resume_transport(self)
