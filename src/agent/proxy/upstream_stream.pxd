# The types that `upstream_stream.py` has when it is compiled.
from agent.proxy.head_writer cimport TargetHead
from agent.proxy.heads cimport Request


cdef class UpstreamStream:
    # The stream's user, and the path it takes.
    cdef public object user
    cdef public object path
    # The exchange decides retries and pauses by these.
    cdef public bint reused, has_answered, writing_paused

    cpdef bint start(self, user, Request request) except -1
    cpdef send(self, TargetHead head, list pieces, bint ended)
    cpdef pause_reading(self)
    cpdef resume_reading(self)
    cpdef bint takes_nothing(self, double now) except -1
    cpdef finish(self, bint request_done)
    cpdef abort(self)
    cpdef switch(self, user)
    cpdef write(self, data)
    cpdef bint write_eof(self) except -1
    cpdef close(self)
