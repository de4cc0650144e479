# The types that `inbound.py` has when it is compiled.
cimport cython


cdef class ByteBudget:
    # the bound, and what is taken of it
    cdef public long long limit_bytes
    cdef public long long held_bytes


cdef class FirstPacketBudget(ByteBudget):
    # for what waits behind first packets
    cdef public ByteBudget later


@cython.final
cdef class Inbound:
    # where the bytes go, and whether it takes them
    cdef public object _carrier
    cdef public bint _paused

    # bounds, given once
    cdef public long long _limit_bytes, _uncounted_bytes, _slice_bytes
    cdef public bint reframes

    # what waits, and the end that follows it
    cdef public object _pieces
    cdef public long long held_bytes
    cdef public long long _first_left_bytes
    cdef public bint _eof, _closes

    # what the budgets were charged (I3)
    cdef public FirstPacketBudget _budget
    cdef public long long _charged_bytes, _later_charged_bytes

    @cython.locals(size=Py_ssize_t, later_bytes=cython.longlong)
    cpdef str feed(self, data)

    @cython.locals(size=Py_ssize_t)
    cpdef str _feed_first(self, data)
    cpdef _hold(self, data)

    @cython.locals(size=Py_ssize_t)
    cpdef _pump(self)

    @cython.locals(due=cython.longlong, more=cython.longlong)
    cpdef bint _charge_later(self, long long later_bytes) except -1
    cpdef _give_back(self)
    cpdef pause(self)
    cpdef resume(self)
    cpdef finish(self)
    cpdef close(self)
    cpdef stop(self)
