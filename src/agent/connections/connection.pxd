# The types that `connection.py` has when it is compiled.
from agent.connections.inbound cimport Inbound

cdef object OPEN, ENDING, FAILING, CLOSED


cdef class TunnelConnection:
    # who it is, and its role's table
    cdef public object conn_id
    cdef public dict _transitions

    # where it is in its life
    cdef public object state
    cdef public str reason
    cdef public bint peer_done, eof_seen
    cdef public bint _close_sent

    # its two neighbours: the carrier, and the tunnel (None once nothing more may reach it)
    cdef public object carrier
    cdef public Inbound inbound
    cdef public object _outbound, _window
    cdef public bint _reading_paused

    # what is counted, for metrics and for probes
    cdef public long long sent_bytes, received_bytes
    cdef public double probe_at_s

    cpdef bint feed(self, data) except -1
    cpdef _return_credit(self)
    cpdef data_received(self, data)
    cpdef _move(self, event)
    cpdef _release(self)
    cpdef _close_window(self)
