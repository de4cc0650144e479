# The types that `connection.py` has when it is compiled.
from agent.connections.inbound cimport Inbound

cdef object OPEN, ENDING, FAILING, CLOSED


cdef class Connection:
    cdef public object conn_id
    cdef public object state
    cdef public object outcome
    cdef public str reason
    cdef public long long response_bytes
    cdef public bint hub_done, eof_seen
    cdef public bint strayed
    cdef public double probe_at_s
    cdef public object carrier
    cdef public Inbound inbound
    cdef public object _owner, _outbound, _window, _outcome_deadline
    cdef public bint _reading_paused, _close_sent, _owes_answer

    cpdef bint feed(self, data) except -1
    cpdef _return_credit(self)
    cpdef data_received(self, data)
    cpdef _move(self, event)
    cpdef _end(self, ending)
    cpdef _close_window(self)
    cpdef _ending_when_aborted(self, stage)
