# The types that `control_frame_limiter.py` has when it is compiled.
cimport cython

cdef int _HEADERS, _RST_STREAM, _RESETS


@cython.final
cdef class ControlFrameLimiter:
    # what it asks
    cdef object _now_s
    cdef object _sent_bytes
    # what is left
    cdef bint _counts_streams
    cdef long long _seen_bytes
    cdef int _resets_left
    cdef dict _left

    cpdef frame(self, int kind, int flags)
    cpdef stream_completed(self)
    cpdef _count(self, int kind, int flags, tuple limits)
