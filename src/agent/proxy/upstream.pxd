# The types that `upstream.py` has when it is compiled.
cimport cython

from agent.proxy.clock cimport Clock, Stall
from agent.proxy.readers cimport ResponseHeadReader


@cython.final
cdef class Upstream:
    cdef object __weakref__
    cdef public Upstreams pool
    cdef public object key
    cdef public object made
    cdef public object transport
    cdef public object path
    cdef public object exchange
    cdef public bint reused, is_tls, writing_paused
    cdef public Stall stall
    cdef public ResponseHeadReader heads
    cdef public double idle_until
    cdef public bint _reading_paused

    cpdef bint takes_nothing(self, double now)
    cpdef bint is_usable(self)
    cpdef pause_reading(self)
    cpdef resume_reading(self)
    cpdef abort(self)


cdef class Upstreams:
    cdef public object limits
    cdef public object _ssl_context, _generation, _swept_generation, _closed
    cdef public dict _idle
    cdef public set _open, _ended
    cdef public Clock _clock
    cdef public bint _closing, _generation_failed

    cpdef object key(self, target)

    @cython.locals(idle=list, upstream=Upstream)
    cpdef Upstream take(self, target)

    @cython.locals(idle=list)
    cpdef release(self, Upstream upstream)
    cpdef opened(self, Upstream upstream)

    @cython.locals(idle=list)
    cpdef retire(self, Upstream upstream)
    cpdef lost(self, Upstream upstream)
