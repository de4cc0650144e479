# The types that `coalescing.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

cdef long long _look_wakeups


@cython.final
cdef class ReceiveCoalescing:
    cdef readonly long long waiting_for_bytes
    cdef object _loop
    cdef object _transport
    cdef object _sock
    cdef object _timer
    cdef long long _wakeups
    cdef long long _bytes
    cdef double _looked_s
    cdef long long _held_bytes
    cdef long long _first_bytes
    cdef long long _most_bytes
    cdef long long _steady
    cdef double _rest_s
    cdef double _rested_s

    cpdef received(self, Py_ssize_t size_bytes)
    cpdef stop(self)
    cdef _look(self)
    cdef Py_ssize_t _after_silence(self, bint stalled) except -1
    cdef _wait_for(self, long long size_bytes)
