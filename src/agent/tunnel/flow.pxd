# The types that `flow.py` has when it is compiled: C fields where nobody outside looks.
cimport cython

from agent.http2.stream cimport Http2Stream as Stream
from agent.tunnel.messages_c cimport PacketWriter as Writer
from agent.tunnel.scheduler cimport Scheduler as Queue


cdef long long _MAX_CONTROL_BYTES


cdef class PacketFlow:
    cdef public frozenset features
    cdef public bint lost
    # whom packets go to, and come from
    cdef public object receiver
    cdef readonly object _side
    cdef readonly Queue _scheduler
    cdef public Stream _stream
    cdef public object _afterwards
    # counters
    cdef readonly long long packets_received
    cdef readonly long long packets_sent
    cdef public object unknown_packets

    @cython.locals(number="long long", kind="long long")
    cpdef packet(self, conn_id, code, data, error_message)
    cpdef bint fill(self, Writer writer) except -1
    cpdef _wake(self)
