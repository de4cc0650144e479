# The types that `request_reader.py` has when it is compiled.
cimport cython

from agent.proxy.heads cimport Request
from agent.proxy.readers cimport RequestHeadReader


@cython.final
cdef class RequestReader:
    # The last result.
    cdef public Request request
    cdef public bytes own_target
    # The parts that find it.
    cdef public RequestHeadReader _heads
    cdef public bint _is_base_hubs
    # The request before, for a head that repeats.
    cdef public Request _last
    cdef public bytes _last_head, _last_target

    @cython.locals(request=Request, target=bytes)
    cpdef take(self, data, limits)
    cpdef bint has_begun(self) except -1
