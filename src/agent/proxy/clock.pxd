# The types that `clock.py` has when it is compiled.
cimport cython


@cython.final
cdef class Clock:
    cdef public double _tick_s
    cdef public object _sweep, _loop, _handle
    cdef public double now, _due_s, _stood_still_s
    cdef public bint _counts_stops, _skipped, _was_late

    cpdef double later(self, double seconds)


@cython.final
cdef class Stall:
    cdef public double _since
    cdef public Py_ssize_t _size
